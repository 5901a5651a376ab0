//! What a device holds: what is durable, what waits in its cache, and what of that a power cut may leave.

use std::collections::BTreeMap;
use std::sync::Arc;

/// What a power cut leaves old or new, never half, bytes.
pub const SECTOR: usize = 512;
/// Unit in which mediums share memory, bytes.
const PAGE: usize = 4096;

/// Bytes at rest. Clones share what is not changed; what was never written is zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Medium {
    pages: Vec<Option<Arc<[u8; PAGE]>>>,
    len: u64,
}

/// The pieces of a range in its pages: page, where in it, how many bytes.
#[allow(clippy::cast_possible_truncation, reason = "a medium is in memory")]
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    let end = offset as usize + len;
    let mut at = offset as usize;
    std::iter::from_fn(move || {
        let skip = at % PAGE;
        let take = (PAGE - skip).min(end - at);
        let piece = (at / PAGE, skip, take);
        at += take;
        (take > 0).then_some(piece)
    })
}

impl Medium {
    /// Zeros.
    #[allow(clippy::cast_possible_truncation, reason = "a medium is in memory")]
    pub fn new(len: u64) -> Medium {
        Medium {
            pages: vec![None; (len as usize).div_ceil(PAGE)],
            len,
        }
    }

    /// Its length, bytes.
    #[expect(
        clippy::len_without_is_empty,
        reason = "the capacity of a device, not a collection"
    )]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Fills `out` from `offset` on; what is past the end is zeros.
    pub fn read(&self, offset: u64, out: &mut [u8]) {
        let mut out = out;
        for (page, skip, take) in pieces(offset, out.len()) {
            let (piece, rest) = out.split_at_mut(take);
            match self.pages.get(page).and_then(Option::as_ref) {
                Some(bytes) => piece.copy_from_slice(&bytes[skip..skip + take]),
                None => piece.fill(0),
            }
            out = rest;
        }
    }

    /// Writes at `offset`; what is past the end is dropped.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut bytes = bytes;
        for (page, skip, take) in pieces(offset, bytes.len()) {
            let (piece, rest) = bytes.split_at(take);
            if let Some(page) = self.pages.get_mut(page) {
                let page = page.get_or_insert_with(|| Arc::new([0; PAGE]));
                Arc::make_mut(page)[skip..skip + take].copy_from_slice(piece);
            }
            bytes = rest;
        }
    }
}

/// What a device does, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A write began.
    Write {
        /// Of the write.
        number: u64,
        /// Where, bytes.
        offset: u64,
        /// What.
        bytes: Arc<[u8]>,
    },
    /// That write ended: readers see it.
    Written(u64),
    /// That write ended with an error: a power cut may show it, until something else is durable there.
    Failed(u64),
    /// A flush began; it is about the writes that had ended.
    Flush(u64),
    /// That flush ended.
    Flushed(u64),
}

#[derive(Clone, Debug)]
struct Write {
    number: u64,
    offset: u64,
    bytes: Arc<[u8]>,
    is_done: bool,
    /// How many writes had begun before this one, and when it failed.
    begun: u64,
    failed: Option<u64>,
}

impl Write {
    fn end(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }

    /// Whether this one had failed before `later` began.
    fn is_before(&self, later: &Write) -> bool {
        self.failed.is_some_and(|failed| failed <= later.begun)
    }

    /// What of it is outside of `other`.
    #[allow(clippy::cast_possible_truncation, reason = "a write is in memory")]
    fn without(&self, other: &Write) -> impl Iterator<Item = Write> {
        let below = self.offset..self.end().min(other.offset);
        let above = self.offset.max(other.end())..self.end();
        let pieces = [below, above].map(|piece| {
            (!piece.is_empty()).then(|| {
                let from = (piece.start - self.offset) as usize;
                let to = (piece.end - self.offset) as usize;
                Write {
                    offset: piece.start,
                    bytes: self.bytes[from..to].into(),
                    ..self.clone()
                }
            })
        });
        pieces.into_iter().flatten()
    }
}

/// What a power cut takes of the writes that no flush has covered. A sector that several of them wrote has one of their
/// values or the durable one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Loss {
    /// All of them.
    All,
    /// None: the process died, not the machine.
    None,
    /// Some of them, each as a whole.
    Writes,
    /// Some sectors.
    Sectors,
    /// What came last, from the middle of a write on.
    Tail,
    /// Those above or those below some address.
    Side,
    /// One of them.
    One,
}

impl Loss {
    /// Each.
    pub const EACH: [Loss; 7] = [
        Loss::All,
        Loss::None,
        Loss::Writes,
        Loss::Sectors,
        Loss::Tail,
        Loss::Side,
        Loss::One,
    ];
}

/// A device's medium and its cache.
#[derive(Clone, Debug)]
pub struct Contents {
    durable: Medium,
    /// What readers see.
    now: Medium,
    /// Writes that no flush has covered, in the order in which they began.
    cached: Vec<Write>,
    /// Flushes under way, and the writes they are about.
    flushes: BTreeMap<u64, Vec<u64>>,
    /// Writes that have begun.
    begun: u64,
}

impl Contents {
    /// With all of `medium` durable.
    pub fn new(medium: Medium) -> Contents {
        Contents {
            now: medium.clone(),
            durable: medium,
            cached: Vec::new(),
            flushes: BTreeMap::new(),
            begun: 0,
        }
    }

    /// What readers see.
    pub fn now(&self) -> &Medium {
        &self.now
    }

    /// The same, to be changed behind the back of whoever uses the device.
    pub fn rot(&mut self, offset: u64, bytes: &[u8]) {
        self.now.write(offset, bytes);
        self.durable.write(offset, bytes);
    }

    /// Takes a step.
    pub fn step(&mut self, step: &Step) {
        match step {
            Step::Write {
                number,
                offset,
                bytes,
            } => {
                self.cached.push(Write {
                    number: *number,
                    offset: *offset,
                    bytes: bytes.clone(),
                    is_done: false,
                    begun: self.begun,
                    failed: None,
                });
                self.begun += 1;
            }
            Step::Written(number) => {
                if let Some(write) = self.cached.iter_mut().find(|w| w.number == *number) {
                    write.is_done = true;
                    self.now.write(write.offset, &write.bytes);
                }
            }
            Step::Failed(number) => {
                if let Some(write) = self.cached.iter_mut().find(|w| w.number == *number) {
                    write.failed = Some(self.begun);
                }
            }
            Step::Flush(number) => {
                let done = self.cached.iter().filter(|w| w.is_done);
                self.flushes
                    .insert(*number, done.map(|w| w.number).collect());
            }
            Step::Flushed(number) => {
                let covered = self.flushes.remove(number).unwrap_or_default();
                let is_covered = |write: &Write| covered.contains(&write.number);
                let (durable, left) = std::mem::take(&mut self.cached)
                    .into_iter()
                    .partition(is_covered);
                self.cached = left;
                for write in durable {
                    self.make_durable(&write);
                }
            }
        }
    }

    /// What failed before it, and would come to the same place, never does.
    fn make_durable(&mut self, write: &Write) {
        self.durable.write(write.offset, &write.bytes);
        let is_superseded = |old: &Write| {
            old.is_before(write) && old.offset < write.end() && write.offset < old.end()
        };
        let old = std::mem::take(&mut self.cached);
        for old in old {
            if is_superseded(&old) {
                self.cached.extend(old.without(write));
            } else {
                self.cached.push(old);
            }
        }
    }

    /// Whether a power cut could leave more than one thing.
    pub fn is_settled(&self) -> bool {
        self.cached.is_empty()
    }

    /// What a power cut leaves. `pick(n)` is a number below `n`.
    pub fn cut(&self, loss: Loss, mut pick: impl FnMut(u64) -> u64) -> Medium {
        let mut left = self.durable.clone();
        let writes = self.cached.len() as u64;
        if writes == 0 || loss == Loss::All {
            return left;
        }
        let one = pick(writes);
        let side = self.cached.get(usize::try_from(one).unwrap_or(0));
        let border = side.map_or(0, |w| w.offset);
        let is_above = pick(2) == 0;
        // So that some cuts take little, and others leave little.
        let odds = 1 + pick(15);
        for (n, write) in (0..writes).zip(&self.cached) {
            let is_kept = match loss {
                Loss::All => false,
                Loss::None => true,
                Loss::Writes => pick(16) < odds,
                Loss::Sectors => {
                    for (n, sector) in (0..).zip(write.bytes.chunks(SECTOR)) {
                        if pick(16) < odds {
                            left.write(write.offset + n * SECTOR as u64, sector);
                        }
                    }
                    false
                }
                Loss::Tail if n == one => {
                    let sectors = pick((write.bytes.len() / SECTOR) as u64 + 1);
                    let bytes = usize::try_from(sectors).unwrap_or(0) * SECTOR;
                    left.write(write.offset, &write.bytes[..bytes]);
                    false
                }
                Loss::Tail => n < one,
                Loss::Side => (write.offset >= border) == is_above,
                Loss::One => n != one,
            };
            if is_kept {
                left.write(write.offset, &write.bytes);
            }
        }
        left
    }
}

#[cfg(test)]
mod tests;
