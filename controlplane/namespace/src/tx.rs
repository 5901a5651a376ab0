//! One change while it is being made: typed access to the tables over pending writes.
//!
//! Rules are checked before the first write of an operation where that is easy, but need not be: a change that
//! fails is dropped whole.

use crate::counters::{Counters, counters};
use crate::store::{Batch, Order, Overlay, Pair, Store};
use crate::{NsError, Result, keys};
use fastcache_api::{Attr, Errno, Ino, Kind, NAME_MAX, Time};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// What a name stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Dirent {
    pub(crate) ino: Ino,
    pub(crate) kind: Kind,
    pub(crate) cookie: u64,
}

/// An entry of a listing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Listed {
    pub(crate) name: Vec<u8>,
    pub(crate) ino: Ino,
    pub(crate) kind: Kind,
}

/// Pairs read at once where a table of an inode is walked to its end.
pub(crate) const SCAN_STEP: usize = 1024;

/// Deepest tree that is walked upwards: more can only be a cycle.
const DEPTH_MAX: usize = 1 << 20;

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T> {
    postcard::from_bytes(bytes)
        .map_err(|e| NsError::Damaged(format!("{what} cannot be decoded: {e}")))
}

pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    postcard::to_stdvec(value).map_err(|e| NsError::Damaged(format!("encoding failed: {e}")))
}

/// A name that may stand in a directory.
pub(crate) fn check_name(name: &[u8]) -> Result<()> {
    if name.len() > NAME_MAX {
        return Err(Errno::ENAMETOOLONG.into());
    }
    if name.is_empty() || name == b"." || name == b".." || name.iter().any(|b| matches!(b, 0 | b'/'))
    {
        return Err(Errno::EINVAL.into());
    }
    Ok(())
}

pub(crate) fn get_attr<S: Store + ?Sized>(store: &S, ino: Ino) -> Result<Attr> {
    match store.get(&keys::key(keys::ATTR, ino.0))? {
        Some(bytes) => decode(&bytes, "an inode"),
        None => Err(Errno::ENOENT.into()),
    }
}

pub(crate) fn get_dir<S: Store + ?Sized>(store: &S, ino: Ino) -> Result<Attr> {
    let attr = get_attr(store, ino)?;
    if attr.kind == Kind::Dir { Ok(attr) } else { Err(Errno::ENOTDIR.into()) }
}

pub(crate) fn get_dirent<S: Store + ?Sized>(
    store: &S,
    dir: Ino,
    name: &[u8],
) -> Result<Option<Dirent>> {
    match store.get(&keys::named(keys::DIRENT, dir, name))? {
        Some(bytes) => Ok(Some(decode(&bytes, "a directory entry")?)),
        None => Ok(None),
    }
}

/// One directory and name that lead to an inode; `None` for the root and for orphans.
pub(crate) fn a_link<S: Store + ?Sized>(store: &S, ino: Ino) -> Result<Option<(Ino, Vec<u8>)>> {
    let from = keys::key(keys::PARENT, ino.0);
    let Some((key, _)) = store.scan(&from, &keys::after(&from), Order::Up, 1)?.pop() else {
        return Ok(None);
    };
    match (keys::u64_at(&key, 9), key.get(17..)) {
        (Some(dir), Some(name)) => Ok(Some((Ino(dir), name.to_vec()))),
        _ => Err(NsError::Damaged(format!("the link of {ino} cannot be decoded"))),
    }
}

/// Whether `dir` is `top` or below it.
pub(crate) fn is_below<S: Store + ?Sized>(store: &S, dir: Ino, top: Ino) -> Result<bool> {
    let mut at = dir;
    for _ in 0..DEPTH_MAX {
        if at == top {
            return Ok(true);
        }
        match a_link(store, at)? {
            Some((parent, _)) => at = parent,
            None => return Ok(false),
        }
    }
    Err(NsError::Damaged(format!("the directories above {dir} form a circle")))
}

/// All pairs of a prefix, however many.
pub(crate) fn scan_all<S: Store + ?Sized>(store: &S, prefix: &[u8]) -> Result<Vec<Pair>> {
    scan_range(store, prefix.to_vec(), &keys::after(prefix))
}

/// All pairs of a range, however many.
pub(crate) fn scan_range<S: Store + ?Sized>(
    store: &S,
    mut from: Vec<u8>,
    to: &[u8],
) -> Result<Vec<Pair>> {
    let mut all: Vec<Pair> = Vec::new();
    loop {
        let part = store.scan(&from, to, Order::Up, SCAN_STEP)?;
        let is_end = part.len() < SCAN_STEP;
        all.extend(part);
        let Some((last, _)) = all.last().filter(|_| !is_end) else { return Ok(all) };
        from.clone_from(last);
        from.push(0);
    }
}

/// A change being made.
pub(crate) struct Tx<'a, S: ?Sized> {
    pub(crate) over: Overlay<'a, S>,
    pub(crate) counters: Counters,
    pub(crate) now: Time,
    /// Position of the record this becomes.
    pub(crate) position: u64,
    touched: Vec<Ino>,
    cookies: u64,
}

impl<'a, S: Store + ?Sized> Tx<'a, S> {
    pub(crate) fn new(store: &'a S, now: Time) -> Result<Tx<'a, S>> {
        let counters = counters(store)?;
        let position = counters.position + 1;
        Ok(Tx {
            over: Overlay::new(store),
            counters,
            now,
            position,
            touched: Vec::new(),
            cookies: 0,
        })
    }

    pub(crate) fn attr(&self, ino: Ino) -> Result<Attr> {
        get_attr(&self.over, ino)
    }

    /// A directory that has a name (or is the root), so that something may be put into it.
    pub(crate) fn live_dir(&self, ino: Ino) -> Result<Attr> {
        let attr = get_dir(&self.over, ino)?;
        if attr.nlink == 0 { Err(Errno::ENOENT.into()) } else { Ok(attr) }
    }

    pub(crate) fn dirent(&self, dir: Ino, name: &[u8]) -> Result<Option<Dirent>> {
        get_dirent(&self.over, dir, name)
    }

    /// Writes attributes, with this change as their last one.
    pub(crate) fn put_attr(&mut self, mut attr: Attr) -> Result<()> {
        attr.seq = self.position;
        if !self.touched.contains(&attr.ino) {
            self.touched.push(attr.ino);
        }
        self.over.put(keys::key(keys::ATTR, attr.ino.0), encode(&attr)?);
        Ok(())
    }

    /// Stamps a change of contents of a directory, with `links` more or fewer subdirectories.
    pub(crate) fn touch_dir(&mut self, ino: Ino, links: i32) -> Result<()> {
        let mut attr = self.attr(ino)?;
        attr.nlink = attr
            .nlink
            .checked_add_signed(links)
            .ok_or_else(|| NsError::Damaged(format!("directory {ino} has too few links")))?;
        attr.mtime = self.now;
        attr.ctime = self.now;
        self.put_attr(attr)
    }

    /// A name comes into a directory. Cookies are positions of the log, so they are never used twice; 3 and more,
    /// because 1 and 2 are `.` and `..`.
    pub(crate) fn add_name(&mut self, dir: Ino, name: &[u8], ino: Ino, kind: Kind) -> Result<()> {
        assert!(self.cookies < 2, "a change adds at most two names");
        let cookie = 2 * self.position + 1 + self.cookies;
        self.cookies += 1;
        self.set_name(dir, name, Dirent { ino, kind, cookie })
    }

    /// A name, with a cookie it has already.
    pub(crate) fn set_name(&mut self, dir: Ino, name: &[u8], entry: Dirent) -> Result<()> {
        let listed = Listed { name: name.to_vec(), ino: entry.ino, kind: entry.kind };
        self.over.put(keys::named(keys::DIRENT, dir, name), encode(&entry)?);
        self.over.put(keys::key2(keys::COOKIE, dir.0, entry.cookie), encode(&listed)?);
        self.over.put(keys::parent(entry.ino, dir, name), Vec::new());
        Ok(())
    }

    /// A name goes.
    pub(crate) fn remove_name(&mut self, dir: Ino, name: &[u8], entry: Dirent) {
        self.over.remove(keys::named(keys::DIRENT, dir, name));
        self.over.remove(keys::key2(keys::COOKIE, dir.0, entry.cookie));
        self.over.remove(keys::parent(entry.ino, dir, name));
    }

    /// Whether a directory has no entries.
    pub(crate) fn is_empty_dir(&self, ino: Ino) -> Result<bool> {
        let from = keys::key(keys::COOKIE, ino.0);
        Ok(self.over.scan(&from, &keys::after(&from), Order::Up, 1)?.is_empty())
    }

    /// An inode lost a name (or, a directory, its only one). Tells whether it is an orphan now.
    pub(crate) fn drop_link(&mut self, mut attr: Attr) -> Result<bool> {
        attr.nlink = if attr.kind == Kind::Dir { 0 } else { attr.nlink.saturating_sub(1) };
        attr.ctime = self.now;
        let is_orphan = attr.nlink == 0;
        if is_orphan {
            self.over.put(keys::key(keys::ORPHAN, attr.ino.0), Vec::new());
        }
        self.put_attr(attr)?;
        Ok(is_orphan)
    }

    /// An object is to be deleted.
    pub(crate) fn discard_object(&mut self, object: &str) {
        self.counters.garbage += 1;
        self.over.put(keys::key(keys::GARBAGE, self.counters.garbage), object.as_bytes().to_vec());
    }

    /// The new attributes of what was changed and still exists.
    pub(crate) fn touched_attrs(&self) -> Result<Vec<Attr>> {
        let mut out = Vec::with_capacity(self.touched.len());
        for &ino in &self.touched {
            match self.attr(ino) {
                Ok(attr) => out.push(attr),
                Err(NsError::Rule(_)) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(out)
    }

    /// The pending writes, with the counters moved on.
    pub(crate) fn finish(mut self) -> Result<Batch> {
        self.counters.position = self.position;
        self.over.put(keys::COUNTERS.to_vec(), encode(&self.counters)?);
        Ok(self.over.into_batch())
    }
}
