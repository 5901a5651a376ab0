//! What a file may hold, byte by byte: everything it was since the last moment that survives for sure.

use fastcache_api::Ino;
use std::rc::Rc;

/// Most states that a file may be in at once, because operations failed half-way. Beyond, it is left alone.
const UNSURE_MAX: usize = 16;

type Image = Rc<Vec<u8>>;

/// A change of contents.
pub enum Change<'a> {
    Write(usize, &'a [u8]),
    Truncate(usize),
}

impl Change<'_> {
    fn of(&self, image: &Image) -> Image {
        let mut image = image.to_vec();
        match self {
            Change::Write(at, bytes) => {
                let end = at + bytes.len();
                if image.len() < end {
                    image.resize(end, 0);
                }
                image[*at..end].copy_from_slice(bytes);
            }
            Change::Truncate(size) => image.resize(*size, 0),
        }
        Rc::new(image)
    }
}

#[derive(Clone)]
pub struct File {
    pub ino: Ino,
    images: Vec<Image>,
    /// From here on are those that it may be now.
    sure: usize,
    /// From here on, when it was closed last: those that it may be after a kill.
    closed: usize,
}

impl File {
    /// A file that is this, durably.
    pub fn new(ino: Ino, bytes: Vec<u8>) -> File {
        File {
            ino,
            images: vec![Rc::new(bytes)],
            sure: 0,
            closed: 0,
        }
    }

    /// A change begins, after which it may be what it was or what it is to be. Where the states after it begin.
    pub fn begin(&mut self, change: &Change<'_>) -> usize {
        let after: Vec<Image> = self.images[self.sure..]
            .iter()
            .map(|image| change.of(image))
            .collect();
        let first = self.images.len();
        self.images.extend(after);
        first
    }

    /// A change ended well.
    pub fn done(&mut self, first: usize) {
        self.sure = first;
    }

    /// What it may be now; to be handed to [`File::closed`] and [`File::synced`] when they have ended.
    pub fn now(&self) -> usize {
        self.sure
    }

    /// `close` said that what it was at `mark` is safe.
    pub fn closed(&mut self, mark: usize) {
        self.closed = mark;
    }

    /// The same of `fsync`.
    pub fn synced(&mut self, mark: usize) {
        self.images.drain(..mark);
        self.sure -= mark;
        self.closed = self.closed.saturating_sub(mark);
    }

    /// Whether too many operations failed for saying anything about it.
    pub fn is_vague(&self) -> bool {
        self.images.len() - self.sure > UNSURE_MAX
    }

    /// Its greatest possible size.
    pub fn size(&self) -> usize {
        self.images[self.sure..]
            .iter()
            .map(|i| i.len())
            .max()
            .unwrap_or(0)
    }

    /// What it may be now.
    pub fn live(&self) -> &[Image] {
        &self.images[self.sure..]
    }

    /// What it may be after a kill, or a power cut.
    pub fn left(&self, is_kill: bool) -> &[Image] {
        &self.images[if is_kill { self.closed } else { 0 }..]
    }
}

/// Whether a size is possible: a change may have stopped in the middle.
pub fn is_size(images: &[Image], size: u64) -> bool {
    let sizes = images.iter().map(|i| i.len() as u64);
    sizes.clone().min() <= Some(size) && Some(size) <= sizes.max()
}

/// The first byte, from `offset` on, that is none of those that it may be.
pub fn wrong_byte(images: &[Image], offset: usize, got: &[u8]) -> Option<usize> {
    got.iter().enumerate().position(|(n, byte)| {
        let is = |image: &Image| image.get(offset + n).copied().unwrap_or(0) == *byte;
        !images.iter().any(is)
    })
}
