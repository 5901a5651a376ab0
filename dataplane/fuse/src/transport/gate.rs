//! Who may receive the next request: a few of a core's workers at a time, more when requests keep coming.
//!
//! Workers follow one another: one that has received a request and must wait for something gives its turn to the next,
//! so that no task and no buffer is made per request. Tasks of one core only; nothing here is shared between threads.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// Most workers of a core that receive at once.
pub(super) const READS_MAX: usize = 8;

/// A place where one task waits for its turn.
#[derive(Default)]
pub(super) struct Seat {
    waker: RefCell<Option<Waker>>,
    is_called: Cell<bool>,
}

impl Seat {
    /// Ends the wait.
    fn call(&self) {
        self.is_called.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Waits until called.
    async fn wait(&self) {
        poll_fn(|cx| {
            if self.is_called.take() {
                return Poll::Ready(());
            }
            *self.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// The turns to receive.
#[derive(Default)]
pub(super) struct Gate {
    /// Workers that receive now.
    turns: Cell<usize>,
    /// How many may.
    limit: Cell<usize>,
    /// One of them waits in the kernel for the next request. Never more: a request wakes all that wait, for one to get it.
    is_one_waiting: Cell<bool>,
    /// Workers without a turn, the last to come on top: its memory is still in the cache.
    seated: RefCell<Vec<Rc<Seat>>>,
    /// No more requests will come.
    is_closed: Cell<bool>,
}

impl Gate {
    /// A gate with one turn to give.
    pub(super) fn new() -> Gate {
        let gate = Gate::default();
        gate.limit.set(1);
        gate
    }

    /// Takes a turn if one is free.
    pub(super) fn try_enter(&self) -> bool {
        let is_free = self.turns.get() < self.limit.get() && !self.is_closed.get();
        if is_free {
            self.turns.set(self.turns.get() + 1);
        }
        is_free
    }

    /// Gives a turn back.
    pub(super) fn leave(&self) {
        let turns = self.turns.get();
        assert!(turns > 0, "a turn was given back twice");
        self.turns.set(turns - 1);
    }

    /// Calls one waiting worker and gives it a turn. False when no turn is free or nobody waits.
    pub(super) fn call_one(&self) -> bool {
        let Some(seat) = self.seated.borrow_mut().pop() else {
            return false;
        };
        if !self.try_enter() {
            self.seated.borrow_mut().push(seat);
            return false;
        }
        seat.call();
        true
    }

    /// Whether a turn is free.
    pub(super) fn has_turn(&self) -> bool {
        self.turns.get() < self.limit.get() && !self.is_closed.get()
    }

    /// Waits for a turn. False when the gate was closed.
    pub(super) async fn wait(&self, seat: &Rc<Seat>) -> bool {
        if self.is_closed.get() {
            return false;
        }
        self.seated.borrow_mut().push(Rc::clone(seat));
        seat.wait().await;
        !self.is_closed.get()
    }

    /// Makes the caller, who has a turn, the one that waits for the next request. False when another one is it.
    pub(super) fn try_wait_alone(&self) -> bool {
        !self.is_one_waiting.replace(true)
    }

    /// It waits no more.
    pub(super) fn has_waited(&self) {
        self.is_one_waiting.set(false);
    }

    /// A request was waited for. While others of the core are in work, more may have come: one more may look.
    pub(super) fn on_request(&self, at_work: usize) {
        if at_work > 0 {
            self.limit.set(self.limit.get().max(2));
        }
    }

    /// A request was there at once: more may look for the next.
    pub(super) fn on_request_at_once(&self) {
        self.limit.set((self.limit.get() * 2).min(READS_MAX));
    }

    /// The device was empty: the one that waits is enough, and the caller's turn is gone.
    pub(super) fn on_empty(&self) {
        self.limit.set(1);
        self.leave();
    }

    /// Workers that receive or wait for a turn.
    pub(super) fn idle(&self) -> usize {
        self.turns.get() + self.seated.borrow().len()
    }

    /// No more requests: everybody is called and told so.
    pub(super) fn close(&self) {
        self.is_closed.set(true);
        for seat in self.seated.borrow_mut().drain(..) {
            seat.call();
        }
    }

    /// Whether no more requests will come.
    pub(super) fn is_closed(&self) -> bool {
        self.is_closed.get()
    }
}

/// Counts the payload buffers that requests hold, so that some are left to receive with.
pub(super) struct Budget {
    held: Cell<usize>,
    /// Up to here reads may hold a buffer.
    max: usize,
    /// Up to here requests are received at all: a write cannot give back what it came in.
    limit: usize,
    /// Reads waiting, first in first out.
    seated: RefCell<VecDeque<Rc<Seat>>>,
    /// Workers that wait before they receive.
    receivers: RefCell<Vec<Rc<Seat>>>,
}

/// A place in the budget.
pub(super) struct Held<'a>(&'a Budget);

impl Budget {
    /// A budget of `max` buffers for reads, and of `limit` when writes are counted in.
    pub(super) fn new(max: usize, limit: usize) -> Budget {
        assert!(0 < max && max < limit, "a budget of {max} below {limit}");
        let (seated, receivers) = Default::default();
        Budget {
            held: Cell::new(0),
            max,
            limit,
            seated,
            receivers,
        }
    }

    /// Waits until a further request may be received.
    pub(super) async fn may_receive(&self) {
        while self.held.get() >= self.limit {
            let seat = Rc::new(Seat::default());
            self.receivers.borrow_mut().push(Rc::clone(&seat));
            seat.wait().await;
        }
    }

    fn take(&self) -> Held<'_> {
        self.held.set(self.held.get() + 1);
        Held(self)
    }

    /// A place if one is free and nobody waits for it.
    pub(super) fn try_hold(&self) -> Option<Held<'_>> {
        (self.held.get() < self.max && self.seated.borrow().is_empty()).then(|| self.take())
    }

    /// A place even beyond the budget, for what cannot give its buffer back: the data of a write.
    pub(super) fn hold(&self) -> Held<'_> {
        self.take()
    }

    /// Waits for a place.
    pub(super) async fn wait(&self) -> Held<'_> {
        let seat = Rc::new(Seat::default());
        self.seated.borrow_mut().push_back(Rc::clone(&seat));
        seat.wait().await;
        // The one that gave its place up left it counted.
        Held(self)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let budget = self.0;
        if budget.held.get() <= budget.max
            && let Some(next) = budget.seated.borrow_mut().pop_front()
        {
            next.call();
        } else {
            budget.held.set(budget.held.get() - 1);
            for receiver in budget.receivers.borrow_mut().drain(..) {
                receiver.call();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    //! The turns and the budget, step by step, with a hand-made executor.

    use super::*;
    use std::pin::pin;
    use std::task::Context;

    fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn more_receive_only_while_requests_keep_coming() {
        let gate = Gate::new();
        assert!(gate.try_enter() && !gate.try_enter());
        assert!(gate.try_wait_alone() && !gate.try_wait_alone());
        gate.on_request(0);
        assert!(
            !gate.has_turn(),
            "one request alone does not widen the gate"
        );
        gate.on_request(1);
        assert!(gate.try_enter() && !gate.try_enter());
        for _ in 0..3 {
            gate.on_request_at_once();
        }
        assert_eq!(gate.limit.get(), READS_MAX);
        gate.on_empty();
        assert_eq!(gate.idle(), 1, "the one that waits");
        assert!(!gate.try_enter());
        gate.has_waited();
        assert!(gate.try_wait_alone());
    }

    #[test]
    fn a_turn_goes_to_the_one_that_waits() {
        let gate = Gate::new();
        assert!(gate.try_enter());
        let seat = Rc::new(Seat::default());
        let mut wait = pin!(gate.wait(&seat));
        assert!(poll(wait.as_mut()).is_pending());
        assert!(!gate.call_one(), "no turn is free");
        gate.leave();
        assert!(gate.call_one());
        assert_eq!(poll(wait.as_mut()), Poll::Ready(true));
        assert!(!gate.try_enter());
    }

    #[test]
    fn closing_calls_everybody() {
        let gate = Gate::new();
        let seat = Rc::new(Seat::default());
        let mut wait = pin!(gate.wait(&seat));
        assert!(poll(wait.as_mut()).is_pending());
        gate.close();
        assert_eq!(poll(wait.as_mut()), Poll::Ready(false));
        assert!(!gate.try_enter());
    }

    #[test]
    fn nothing_is_received_while_writes_hold_everything() {
        let budget = Budget::new(1, 2);
        let writes = [budget.hold(), budget.hold()];
        let mut wait = pin!(budget.may_receive());
        assert!(poll(wait.as_mut()).is_pending());
        drop(writes);
        assert!(poll(wait.as_mut()).is_ready());
    }

    #[test]
    fn a_read_beyond_the_budget_waits_in_line() {
        let budget = Budget::new(1, 3);
        let first = budget.try_hold();
        assert!(first.is_some() && budget.try_hold().is_none());
        let mut wait = pin!(budget.wait());
        assert!(poll(wait.as_mut()).is_pending());
        let write = budget.hold();
        drop(write);
        assert!(poll(wait.as_mut()).is_pending(), "still one too many");
        drop(first);
        let Poll::Ready(second) = poll(wait.as_mut()) else {
            panic!("the place was free")
        };
        assert!(budget.try_hold().is_none());
        drop(second);
        assert!(budget.try_hold().is_some());
    }
}
