//! The first read of a small file, begun at its `open`: the device works while the program hears that the file is open and asks
//! for what is in it.
//!
//! Of one file at a time: where several programs read, the device has enough to do, and this would cost processor time. And only
//! where small files that are opened are then read by asking here, most of them: what the kernel has in its pages it answers
//! itself, and the device would work for nothing.

use crate::inode::Inode;
use crate::{FileSystem, lock};
use event_listener::Event;
use fastcache_api::{ChunkId, ChunkKey, Ino};
use fastcache_reactor::IoBuf;
use fastcache_reactor::sync::{AtomicU32, Mutex};
use fastcache_types::BLOCK;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Largest file that is small, bytes.
const SMALL: u64 = 32 << 10;
/// A small file that is read counts for so many that are opened.
const READ_WEIGHT: u32 = 2;
/// Highest score: so many files are opened and not read before that is believed, about.
const SCORE_MAX: u32 = 64;
/// From this score on a small file is read when it is opened.
const SCORE_MIN: u32 = 32;

/// What is read ahead of the program, or was.
struct First {
    key: ChunkKey,
    /// `None`: on its way.
    bytes: Option<IoBuf>,
}

/// The first read that nobody has asked for yet, and whether there is to be one.
#[derive(Default)]
pub(crate) struct FirstRead {
    /// Falls with each small file that is opened, rises with each that is read here from its beginning. Two that change it at
    /// once may count as one.
    score: AtomicU32,
    first: Mutex<Option<First>>,
    /// What was on its way is here, or will not be.
    came: Event,
}

impl FirstRead {
    /// A small file was opened to read. Whether it is to be read now.
    fn opened(&self) -> bool {
        let score = self.score.load(Ordering::Relaxed);
        self.score.store(score.saturating_sub(1), Ordering::Relaxed);
        score >= SCORE_MIN
    }

    /// Whether this is the one that is read now: not while another one is.
    fn begin(&self, key: ChunkKey) -> bool {
        let mut first = lock(&self.first);
        let is_busy = first.as_ref().is_some_and(|first| first.bytes.is_none());
        if !is_busy {
            *first = Some(First { key, bytes: None });
        }
        !is_busy
    }

    /// What came of it.
    fn end(&self, key: ChunkKey, bytes: Option<IoBuf>) {
        *lock(&self.first) = bytes.map(|bytes| First {
            key,
            bytes: Some(bytes),
        });
        self.came.notify(usize::MAX);
    }

    /// Fills `buf` from the beginning of a chunk, when that was read at the `open`; waits for it when it is on its way. Bytes of
    /// a key never change, so it does not matter how long ago.
    pub(crate) async fn take(&self, key: ChunkKey, buf: &mut IoBuf) -> bool {
        if key.index != 0 || buf.len() as u64 > SMALL {
            return false;
        }
        let score = self.score.load(Ordering::Relaxed);
        if score < SCORE_MAX {
            self.score.store(score + READ_WEIGHT, Ordering::Relaxed);
        }
        loop {
            let coming = {
                let mut first = lock(&self.first);
                match first.take_if(|first| first.key == key && first.bytes.is_some()) {
                    Some(First {
                        bytes: Some(bytes), ..
                    }) => {
                        let Some(wanted) = bytes.get(..buf.len()) else {
                            return false;
                        };
                        buf.copy_from_slice(wanted);
                        return true;
                    }
                    _ if first.as_ref().is_some_and(|first| first.key == key) => self.came.listen(),
                    _ => return false,
                }
            };
            coming.await;
        }
    }

    /// Nobody has the file open any more.
    pub(crate) fn closed(&self, ino: Ino) {
        lock(&self.first).take_if(|first| first.key.ino == ino && first.bytes.is_some());
    }
}

/// A read that is on its way, and is no more when this is dropped.
struct Coming {
    fs: FileSystem,
    key: ChunkKey,
    bytes: Option<IoBuf>,
}

impl Coming {
    /// What cannot be read is read again, and seen to, when it is asked for.
    fn came(mut self, bytes: Option<IoBuf>) {
        self.bytes = bytes;
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        self.fs.inner.first_read.end(self.key, self.bytes.take());
    }
}

impl FileSystem {
    /// A file was opened to be read. Whether the device is about to read what is in it.
    pub(crate) fn read_first(&self, inode: &Arc<Inode>) -> bool {
        let id = ChunkId {
            ino: inode.ino,
            index: 0,
        };
        let Some((len, key)) = small(inode, id) else {
            return false;
        };
        if !self.inner.first_read.opened() {
            return false;
        }
        let body = self.inner.store.get(id).filter(|body| body.key() == key);
        let Some(body) = body.filter(|_| self.inner.first_read.begin(key)) else {
            return false;
        };
        let coming = Coming {
            fs: self.clone(),
            key,
            bytes: None,
        };
        fastcache_reactor::spawn(async move {
            let store = &coming.fs.inner.store;
            let (result, bytes) = store.read(&body, 0, IoBuf::alloc(len)).await;
            coming.came(result.is_ok().then_some(bytes));
        })
        .detach();
        true
    }
}

/// How much of the one chunk of a small file there is, in whole blocks, and its key; `None` of any other file.
fn small(inode: &Inode, id: ChunkId) -> Option<(usize, ChunkKey)> {
    let state = lock(&inode.state);
    let attr = state.attr.as_ref()?;
    if attr.size == 0 || attr.size > SMALL || !state.open_chunks.is_empty() {
        return None;
    }
    let (version, _) = state.layout.as_ref()?.chunk(0, attr.chunk_size)?;
    let len = usize::try_from(attr.size).ok()?.next_multiple_of(BLOCK);
    let key = ChunkKey {
        ino: id.ino,
        index: id.index,
        version,
    };
    Some((len, key))
}
