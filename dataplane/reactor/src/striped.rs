//! What every core changes and hardly anybody looks at (counters, notes): one for each core, in cache lines of its own, so
//! that cores do not take them from each other with every request.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many there are of each; threads beyond that share.
pub const STRIPES: usize = 16;

/// One of them. As large as two cache lines, which processors fetch together.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Stripe<T>(pub T);

/// A value for each core.
#[derive(Debug, Default)]
pub struct Striped<T>([Stripe<T>; STRIPES]);

impl<T> Striped<T> {
    /// Of these values.
    pub const fn new(all: [Stripe<T>; STRIPES]) -> Striped<T> {
        Striped(all)
    }

    /// The one of this thread.
    pub fn mine(&self) -> &T {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static AT: Cell<usize> = const { Cell::new(usize::MAX) };
        }
        let mut at = AT.get();
        if at == usize::MAX {
            at = NEXT.fetch_add(1, Ordering::Relaxed) % STRIPES;
            AT.set(at);
        }
        &self.0[at].0
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|stripe| &stripe.0)
    }
}

#[cfg(test)]
mod tests {
    //! Each thread has its own, and nothing is lost.

    use super::*;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn threads_have_their_own_and_the_sum_is_right() {
        let counts = Striped::<AtomicU64>::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        counts.mine().fetch_add(1, Ordering::Relaxed);
                    }
                    assert!(counts.mine().load(Ordering::Relaxed) >= 1000);
                });
            }
        });
        let sum: u64 = counts.iter().map(|c| c.load(Ordering::Relaxed)).sum();
        assert_eq!(sum, 4000);
    }
}
