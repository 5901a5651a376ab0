//! A session: several actors work on files of their own, at the same time, until they are done or the power fails.

use crate::Said;
use crate::model::{Change, File, is_size, wrong_byte};
use crate::node::{CHUNK, Node};
use fastcache_api::control::DataCall;
use fastcache_api::{Cred, Errno, Ino};
use fastcache_cache::SetAttrRequest;
use fastcache_reactor::sim::random;
use fastcache_reactor::{IoBuf, now, sleep};
use fastcache_types::BLOCK;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

/// Largest file, bytes.
const LIMIT: usize = 5 * CHUNK + 1000;
/// Operations of an actor in a session.
const OPERATIONS: usize = 40;

/// One file and who uses it.
pub struct Actor {
    pub node: Rc<Node>,
    pub file: Rc<RefCell<File>>,
    /// Errors of the device may be told.
    pub is_sick: bool,
    pub said: Said,
}

/// A number of the range.
fn pick(from: usize, to: usize) -> usize {
    from + random((to - from) as u64) as usize
}

/// Bytes that are like no others: none is 0.
fn bytes(len: usize) -> Vec<u8> {
    let seed = random(u64::MAX);
    let byte = |i: u64| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 | 1;
    (0..len as u64)
        .map(|i| byte(seed.wrapping_add(i)))
        .collect()
}

/// Makes a file and opens it.
pub async fn create(node: &Node, name: &str) -> Ino {
    let cred = Cred { uid: 0, gid: 0 };
    let made = node
        .fs
        .create(Ino::ROOT, name.as_bytes(), 0o644, cred, 0o102);
    made.await.unwrap().0.attr.ino
}

/// Reads `len` bytes, fewer at the end.
pub async fn read(node: &Node, ino: Ino, at: usize, len: usize) -> Result<Vec<u8>, Errno> {
    let mut buf = IoBuf::alloc(len.next_multiple_of(BLOCK));
    // What is in the buffer must not matter.
    buf.fill(0xee);
    let (result, buf) = node.fs.read(ino, 0, at as u64, len, buf).await;
    result.map(|n| buf[..n].to_vec())
}

impl Actor {
    pub async fn play(self) {
        for _ in 0..OPERATIONS {
            if self.file.borrow().is_vague() {
                return;
            }
            let ino = self.file.borrow().ino;
            let what = random(100);
            let said = match what {
                0..34 => self.write().await,
                34..42 => self.truncate().await,
                42..54 => self.close().await,
                54..62 => self.sync().await,
                62..80 => self.check().await,
                80..86 => self.evict(ino).await,
                86..90 => {
                    self.node.upload().await;
                    Ok(0)
                }
                90..91 => {
                    self.node.restart_agent().await;
                    Ok(0)
                }
                _ => {
                    let most = [1_000, 30_000, 1_200_000, 11_000_000][pick(0, 4)];
                    sleep(Duration::from_micros(random(most))).await;
                    Ok(0)
                }
            };
            self.said.note(&(now(), ino, what, said));
            // Without a sick device nothing fails but for want of room.
            let is_allowed = matches!(said, Ok(_) | Err(Errno::ENOSPC)) || self.is_sick;
            assert!(is_allowed, "operation {what} of {ino}: {said:?}");
        }
    }

    /// A range: small, middle or large, on borders of blocks or not.
    fn place(&self) -> (usize, usize) {
        let max = [100, 3 * BLOCK, CHUNK, 3 * CHUNK][pick(0, 4)];
        let mut len = pick(1, max + 1);
        let mut at = match random(3) {
            0 => pick(0, LIMIT / CHUNK + 1) * CHUNK,
            1 => self.file.borrow().size(),
            _ => pick(0, LIMIT),
        };
        if random(2) == 0 {
            at = at / BLOCK * BLOCK;
            len = len.next_multiple_of(BLOCK);
        }
        at = at.min(LIMIT - 1);
        (at, len.min(LIMIT - at))
    }

    async fn write(&self) -> Result<usize, Errno> {
        let (at, len) = self.place();
        let data = bytes(len);
        let skew = if random(5) == 0 { 13 } else { 0 };
        let mut whole = IoBuf::alloc(skew + len);
        let mut buf = whole.split_off(skew);
        buf.copy_from_slice(&data);
        let (ino, begun) = {
            let mut file = self.file.borrow_mut();
            (file.ino, file.begin(&Change::Write(at, &data)))
        };
        let (result, buf) = self.node.fs.write(ino, 0, at as u64, buf, false).await;
        assert!(buf[..] == data[..], "a write changes its buffer");
        let written = result?;
        assert_eq!(written as usize, len, "no short writes");
        self.file.borrow_mut().done(begun);
        Ok(at)
    }

    async fn truncate(&self) -> Result<usize, Errno> {
        let size = match random(4) {
            0 => 0,
            1 => self.place().0,
            _ => pick(0, self.file.borrow().size() + 1),
        };
        let (ino, begun) = {
            let mut file = self.file.borrow_mut();
            (file.ino, file.begin(&Change::Truncate(size)))
        };
        let request = SetAttrRequest {
            size: Some(size as u64),
            ..SetAttrRequest::default()
        };
        self.node.fs.setattr(ino, request).await?;
        self.file.borrow_mut().done(begun);
        Ok(size)
    }

    async fn close(&self) -> Result<usize, Errno> {
        let (ino, mark) = {
            let file = self.file.borrow();
            (file.ino, file.now())
        };
        self.node.fs.flush(ino, 0).await?;
        self.file.borrow_mut().closed(mark);
        Ok(0)
    }

    async fn sync(&self) -> Result<usize, Errno> {
        let (ino, mark) = {
            let file = self.file.borrow();
            (file.ino, file.now())
        };
        self.node.fs.fsync(ino, 0, false).await?;
        let mut file = self.file.borrow_mut();
        file.closed(mark);
        file.synced(mark);
        Ok(0)
    }

    async fn check(&self) -> Result<usize, Errno> {
        let (at, len) = self.place();
        let ino = self.file.borrow().ino;
        let got = read(&self.node, ino, at, len).await?;
        let file = self.file.borrow();
        let wrong = wrong_byte(file.live(), at, &got);
        assert_eq!(wrong, None, "{ino}: a wrong byte of {at}+{len}");
        let end = (at + got.len()) as u64;
        let is_end = got.len() < len && (got.is_empty() || is_size(file.live(), end));
        assert!(
            got.len() == len || is_end,
            "{ino}: {at}+{len} ends at {end}"
        );
        Ok(got.len())
    }

    async fn evict(&self, ino: Ino) -> Result<usize, Errno> {
        let call = DataCall::Evict {
            ino: Some(ino).filter(|_| random(2) == 0),
            pinned: Vec::new(),
        };
        self.node.fs.serve(call).await?;
        Ok(0)
    }
}
