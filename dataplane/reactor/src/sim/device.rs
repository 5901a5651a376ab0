//! A device of a simulated world: it takes its time, ends what was asked at the same time in any order, fails now and
//! then, forgets in a power cut what was not flushed, and rots, all as the world's seed has it.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::contents::{Contents, Loss, Medium, SECTOR, Step};
use super::world::{self, random};
use crate::buffer::IoBuf;
use crate::executor::{Task, spawn};
use crate::time::sleep;

/// How often: one in so many; 0 is never.
type OneIn = u64;

/// How a device behaves.
#[derive(Clone, Debug, Default)]
pub struct Moods {
    /// How long reads and writes take, microseconds. Empty: no time.
    pub transfer_us: Range<u64>,
    /// How long flushes take, microseconds. Empty: no time.
    pub flush_us: Range<u64>,
    /// One read in so many fails with EIO.
    pub read_eio: OneIn,
    /// One write in so many fails with EIO.
    pub write_eio: OneIn,
    /// One write in so many fails with ENOSPC, as one to a file without blocks of its own.
    pub write_enospc: OneIn,
    /// One flush in so many fails with EIO.
    pub flush_eio: OneIn,
    /// One write in so many is stored with a wrong bit.
    pub rot: OneIn,
}

#[derive(Debug)]
struct State {
    contents: Contents,
    moods: Moods,
    numbers: u64,
    /// What happened since recording began.
    log: Option<Vec<Step>>,
}

impl State {
    fn step(&mut self, step: Step) {
        self.contents.step(&step);
        if let Some(log) = &mut self.log {
            log.push(step);
        }
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }
}

/// A device in memory. Clones share it. [`Disk::open`](crate::Disk::open) finds it under the path where it was attached.
#[derive(Clone, Debug)]
pub struct Device {
    len: u64,
    state: Arc<Mutex<State>>,
}

/// An operation goes on when nobody waits for it any more, as one that the kernel has.
struct Started<T>(Option<Task<T>>);

impl<T> Drop for Started<T> {
    fn drop(&mut self) {
        if let Some(task) = self.0.take() {
            task.detach();
        }
    }
}

async fn start<T: 'static>(operation: impl Future<Output = T> + 'static) -> T {
    let mut started = Started(Some(spawn(operation)));
    match &mut started.0 {
        Some(task) => {
            let result = task.await;
            started.0 = None;
            result
        }
        None => unreachable!("it was just started"),
    }
}

async fn wait(time: &Range<u64>) {
    if !time.is_empty() {
        sleep(Duration::from_micros(
            time.start + random(time.end - time.start),
        ))
        .await;
    }
}

fn happens(one_in: OneIn) -> bool {
    one_in > 0 && random(one_in) == 0
}

impl Device {
    /// With these contents, all of them durable.
    pub fn new(medium: Medium, moods: Moods) -> Device {
        Device {
            len: medium.len(),
            state: Arc::new(Mutex::new(State {
                contents: Contents::new(medium),
                moods,
                numbers: 0,
                log: None,
            })),
        }
    }

    /// From now on whoever opens a disk with this path in this thread's world gets this device.
    ///
    /// # Panics
    /// Outside of a simulated world.
    pub fn attach(&self, path: &Path) {
        world::attach(path, self.clone());
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

    /// From now on it behaves so.
    pub fn set_moods(&self, moods: Moods) {
        self.lock().moods = moods;
    }

    /// Begins to record, forgetting what was recorded.
    pub fn record(&self) {
        self.lock().log = Some(Vec::new());
    }

    /// Steps recorded so far.
    pub fn recorded(&self) -> usize {
        self.lock().log.as_ref().map_or(0, Vec::len)
    }

    /// Ends recording, and what was recorded.
    pub fn take_log(&self) -> Vec<Step> {
        self.lock().log.take().unwrap_or_default()
    }

    /// What readers see.
    pub fn now(&self) -> Medium {
        self.lock().contents.now().clone()
    }

    /// What a power cut would leave.
    pub fn cut(&self, loss: Loss) -> Medium {
        self.lock().contents.cut(loss, random)
    }

    /// Turns a bit of a sector of these bytes, durably.
    pub fn rot(&self, bytes: Range<u64>) {
        let sector = SECTOR as u64;
        let at = (bytes.start + random(bytes.end - bytes.start)) / sector * sector;
        let mut old = [0; SECTOR];
        let mut state = self.lock();
        state.contents.now().read(at, &mut old);
        spoil(&mut old);
        state.contents.rot(at, &old);
    }

    pub(crate) async fn read(&self, mut buf: IoBuf, offset: u64) -> (io::Result<usize>, IoBuf) {
        let moods = self.lock().moods.clone();
        wait(&moods.transfer_us).await;
        if happens(moods.read_eio) {
            return (Err(io::Error::from_raw_os_error(libc::EIO)), buf);
        }
        let have = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let count = have.min(buf.len());
        self.lock().contents.now().read(offset, &mut buf[..count]);
        (Ok(count), buf)
    }

    pub(crate) async fn write(&self, buf: IoBuf, offset: u64) -> (io::Result<usize>, IoBuf) {
        let moods = self.lock().moods.clone();
        if offset + buf.len() as u64 > self.len || happens(moods.write_enospc) {
            return (Err(io::Error::from_raw_os_error(libc::ENOSPC)), buf);
        }
        let is_failing = happens(moods.write_eio);
        let mut bytes: Vec<u8> = buf.to_vec();
        if happens(moods.rot) {
            spoil(&mut bytes);
        }
        let number = {
            let mut state = self.lock();
            let number = state.number();
            let bytes = bytes.into();
            state.step(Step::Write {
                number,
                offset,
                bytes,
            });
            number
        };
        let device = self.clone();
        let end = async move {
            wait(&moods.transfer_us).await;
            // What failed may have been written or not; a power cut has both.
            let result = match is_failing {
                true => {
                    device.lock().step(Step::Failed(number));
                    Err(io::Error::from_raw_os_error(libc::EIO))
                }
                false => {
                    device.lock().step(Step::Written(number));
                    Ok(buf.len())
                }
            };
            (result, buf)
        };
        // The buffer goes with the operation, as it does with the ring.
        start(end).await
    }

    pub(crate) async fn sync(&self) -> io::Result<()> {
        let moods = self.lock().moods.clone();
        let number = {
            let mut state = self.lock();
            let number = state.number();
            state.step(Step::Flush(number));
            number
        };
        let device = self.clone();
        start(async move {
            wait(&moods.flush_us).await;
            if happens(moods.flush_eio) {
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
            device.lock().step(Step::Flushed(number));
            Ok(())
        })
        .await
    }
}

/// Turns one bit.
fn spoil(bytes: &mut [u8]) {
    let bits = bytes.len() as u64 * 8;
    if let Ok(bit) = usize::try_from(random(bits)) {
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
}
