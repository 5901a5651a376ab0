//! What stands in for the ring with the feature `race`: tasks, time and disks whose every step is up to the schedule that
//! shuttle tries. What is built on the reactor runs in it unchanged, on as many "cores" as it has tasks.
//!
//! Stricter than the world in two things, so that what hides a fault there does not hide it here: a timeout never fires,
//! so a lost wake-up is a deadlock, which shuttle reports; and each task may be interrupted by any other at every lock and
//! every atomic, also by one of its own core.

use crate::buffer::IoBuf;
use crate::disk::DiskOptions;
use crate::sim::{Contents, Loss, Medium, Step};
use crate::sync::{Mutex, MutexGuard};
use crate::time::{Elapsed, Instant};
use shuttle::future::JoinHandle;
use shuttle::rand::Rng;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

/// Unit of a disk's transfers, bytes.
const PIECE: usize = 4096;

/// Handle of a task; the task ends when it is dropped, unless it was detached.
#[derive(Debug)]
pub struct Task<T>(Option<JoinHandle<T>>);

impl<T> Task<T> {
    /// Lets the task go on by itself.
    pub fn detach(mut self) {
        self.0 = None;
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        if let Some(handle) = self.0.take() {
            handle.abort();
        }
    }
}

impl<T> Future for Task<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let Some(handle) = &mut self.0 else {
            panic!("a task was polled after its end");
        };
        Pin::new(handle).poll(cx).map(|result| {
            self.0 = None;
            match result {
                Ok(value) => value,
                Err(error) => panic!("a task was ended while somebody waited for it: {error}"),
            }
        })
    }
}

/// Runs a future beside all others.
pub fn spawn<T: 'static>(future: impl Future<Output = T> + 'static) -> Task<T> {
    Task(Some(shuttle::future::spawn_local(future)))
}

/// Lets the others run.
pub async fn yield_now() {
    shuttle::future::yield_now().await;
}

/// The time, which stands still.
pub fn now() -> Instant {
    Instant::START
}

/// Waits as long as the schedule likes.
pub async fn sleep(_duration: Duration) {
    shuttle::future::yield_now().await;
}

/// Waits for `future`: the time is never over.
pub async fn timeout<F: Future>(_duration: Duration, future: F) -> Result<F::Output, Elapsed> {
    Ok(future.await)
}

/// Bytes that nobody can guess.
pub fn entropy(out: &mut [u8]) -> io::Result<()> {
    shuttle::rand::thread_rng().fill(out);
    Ok(())
}

/// The start of 1970, which it is.
pub fn wall_clock() -> std::time::SystemTime {
    std::time::UNIX_EPOCH
}

/// Seconds since 1970, which it is.
pub fn wall_clock_seconds() -> u64 {
    0
}

/// Handle of a core.
#[derive(Clone, Debug)]
pub struct Remote;

impl Remote {
    /// Runs what `make` returns.
    pub fn spawn<F: Future<Output = ()> + 'static>(
        &self,
        make: impl FnOnce() -> F + Send + 'static,
    ) {
        spawn(make()).detach();
    }

    /// Number of the core.
    pub fn core(&self) -> usize {
        0
    }
}

/// Handle of the only core.
pub fn remote() -> Remote {
    Remote
}

thread_local! {
    /// The disks of a run, by their paths.
    static DISKS: RefCell<BTreeMap<PathBuf, Disk>> = const { RefCell::new(BTreeMap::new()) };
}

/// A disk in memory. Transfers take their time, page by page, and what is not synced may be lost.
#[derive(Clone, Debug)]
pub struct Disk {
    len: u64,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    numbers: u64,
    contents: Contents,
}

impl Disk {
    fn new(medium: Medium) -> Disk {
        let len = medium.len();
        let contents = Contents::new(medium);
        let state = State {
            numbers: 0,
            contents,
        };
        Disk {
            len,
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// The disk with this path: as long as the file that it names, and empty when it is opened for the first time.
    pub fn open(path: impl AsRef<Path>, _options: DiskOptions) -> io::Result<Disk> {
        let len = std::fs::metadata(path.as_ref())?.len();
        let new = || Disk::new(Medium::new(len));
        let path = path.as_ref().to_owned();
        Ok(DISKS.with_borrow_mut(|disks| disks.entry(path).or_insert_with(new).clone()))
    }

    /// Forgets all disks: a run begins.
    pub(crate) fn forget_all() {
        DISKS.take();
    }

    /// The disk that a power cut leaves behind, under the same path for whoever opens it next: of what was not synced, a
    /// part that the schedule chooses.
    pub(crate) fn cut_power(path: &Path) {
        let Some(old) = DISKS.with_borrow(|disks| disks.get(path).cloned()) else {
            return;
        };
        let mut chance = shuttle::rand::thread_rng();
        let loss = Loss::EACH[chance.gen_range(0..Loss::EACH.len())];
        let left = old.lock().contents.cut(loss, |n| chance.gen_range(0..n));
        DISKS.with_borrow_mut(|disks| disks.insert(path.to_owned(), Disk::new(left)));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its length, bytes.
    #[expect(
        clippy::len_without_is_empty,
        reason = "the capacity of a device, not a collection"
    )]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Reads the whole buffer.
    pub async fn read(&self, mut buf: IoBuf, offset: u64) -> (io::Result<usize>, IoBuf) {
        for (n, piece) in (0..).zip(buf.chunks_mut(PIECE)) {
            let at = offset + n * PIECE as u64;
            self.lock().contents.now().read(at, piece);
        }
        (Ok(buf.len()), buf)
    }

    /// Writes the whole buffer.
    pub async fn write(&self, buf: IoBuf, offset: u64) -> (io::Result<usize>, IoBuf) {
        for (n, piece) in (0..).zip(buf.chunks(PIECE)) {
            let mut state = self.lock();
            state.numbers += 1;
            let number = state.numbers;
            let write = Step::Write {
                number,
                offset: offset + n * PIECE as u64,
                bytes: piece.into(),
            };
            state.contents.step(&write);
            state.contents.step(&Step::Written(number));
        }
        (Ok(buf.len()), buf)
    }

    /// Makes what was written before the call durable.
    pub async fn sync(&self) -> io::Result<()> {
        let number = {
            let mut state = self.lock();
            state.numbers += 1;
            let number = state.numbers;
            state.contents.step(&Step::Flush(number));
            number
        };
        yield_now().await;
        self.lock().contents.step(&Step::Flushed(number));
        Ok(())
    }

    /// Nobody else has it.
    pub fn try_lock_exclusive(&self) -> io::Result<()> {
        Ok(())
    }
}
