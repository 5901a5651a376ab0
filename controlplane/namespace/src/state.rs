//! The state behind the operations: typed access to the tables, for reads and for changes that gather in an overlay.

use crate::keys;
use crate::kv::{Changes, Kv, KvError, Overlay};
use fastcache_api::{
    Attr, COUNTER_BITS, CloudRef, DirEntry, Errno, Ino, Kind, Layout, NAME_MAX, NsReply, OpId,
    Time, Version,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Answers kept for each client, so that a request sent twice is done once. More than a client may have in flight.
pub const REPLIES_KEPT: u64 = 4096;

/// Inodes whose numbers are this near each other are read in one go: to walk over a few that nobody asked for costs less than to
/// look for one.
const ATTR_GAP: u64 = 4;
/// Fewer of them are looked for one by one: to begin a walk costs as much as some lookups.
const ATTRS_WALKED: usize = 8;

/// Entries of a directory that is small.
const FEW: usize = 64;
/// Entries of a listing that room is made for at once where there are more: what a node asks for, and one more.
const ROOM_AT_ONCE: usize = 1025;

/// Deepest path that is followed upwards, directories.
const LINEAGE_MAX: usize = 100_000;

/// A directory entry in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dirent {
    /// The inode.
    pub ino: Ino,
    /// What it is.
    pub kind: Kind,
    /// Its place in listings.
    pub cookie: u64,
}

/// Numbers that only rise, and counts of what exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counters {
    /// Raised by every start; the upper bits of inode numbers and versions.
    pub epoch: u64,
    /// The last inode counter used in this epoch.
    pub ino: u64,
    /// The last version counter used in this epoch.
    pub version: u64,
    /// The last cookie.
    pub cookie: u64,
    /// The last number of the garbage queue.
    pub garbage: u64,
    /// The position of the last applied record.
    pub position: u64,
    /// Inodes that exist.
    pub inodes: u64,
    /// Bytes of all files, without holes.
    pub bytes: u64,
}

/// Why an operation did not happen.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The answer is this error; nothing changed.
    #[error(transparent)]
    Refused(#[from] Errno),
    /// The store failed; nothing is known to have changed.
    #[error(transparent)]
    Store(#[from] KvError),
    /// A value in the store cannot be decoded.
    #[error("the namespace holds a value this version cannot read (table {table:?}): {error}")]
    Damaged {
        /// Letter of the table.
        table: char,
        /// What the decoder said.
        error: postcard::Error,
    },
}

pub(crate) type Done<T> = Result<T, Fault>;

pub(crate) fn decode<'v, T: Deserialize<'v>>(key: &[u8], value: &'v [u8]) -> Done<T> {
    postcard::from_bytes(value).map_err(|error| Fault::Damaged {
        table: key.first().map_or('?', |b| char::from(*b)),
        error,
    })
}

fn encode<T: Serialize>(value: &T) -> Done<Vec<u8>> {
    postcard::to_stdvec(value).map_err(|error| Fault::Damaged { table: '?', error })
}

/// The spare of a chunk: its version, and how many of its bytes are valid.
pub(crate) type SpareValue = (Version, u32);

/// An inode, and which entry of a listing leads to it.
type Place = (Ino, usize);

/// A view of the state, with the changes of one operation.
pub(crate) struct State<'a, K: Kv> {
    pub(crate) kv: Overlay<'a, K>,
    pub counters: Counters,
    /// Inodes whose attributes changed, in order.
    pub touched: Vec<Ino>,
}

impl<'a, K: Kv> State<'a, K> {
    pub fn new(kv: &'a K) -> Done<State<'a, K>> {
        let counters = match kv.get(&keys::counters())? {
            Some(v) => decode(b"m", &v)?,
            None => Counters::default(),
        };
        Ok(State {
            kv: Overlay::new(kv),
            counters,
            touched: Vec::new(),
        })
    }

    /// Whether anything differs from the state before, of which these are the counters.
    pub fn is_changed(&self, before: &Counters) -> bool {
        !self.kv.changes.is_empty() || self.counters != *before
    }

    pub fn finish(mut self) -> Done<Changes> {
        let counters = encode(&self.counters)?;
        self.kv.put(keys::counters(), counters);
        Ok(self.kv.changes)
    }

    pub(crate) fn load<T: DeserializeOwned>(&self, key: &[u8]) -> Done<Option<T>> {
        match self.kv.get(key)? {
            Some(v) => Ok(Some(decode(key, &v)?)),
            None => Ok(None),
        }
    }

    fn store<T: Serialize>(&mut self, key: Vec<u8>, value: &T) -> Done<()> {
        let value = encode(value)?;
        self.kv.put(key, value);
        Ok(())
    }

    // ---- inodes ----

    pub fn attr(&self, ino: Ino) -> Done<Attr> {
        self.load(&keys::attr(ino))?
            .ok_or(Fault::Refused(Errno::ENOENT))
    }

    pub fn dir(&self, ino: Ino) -> Done<Attr> {
        let attr = self.attr(ino)?;
        if attr.kind == Kind::Dir {
            Ok(attr)
        } else {
            Err(Errno::ENOTDIR.into())
        }
    }

    /// Stores attributes, stamped with this record's position.
    pub fn put_attr(&mut self, mut attr: Attr) -> Done<Attr> {
        attr.seq = self.counters.position;
        if !self.touched.contains(&attr.ino) {
            self.touched.push(attr.ino);
        }
        self.store(keys::attr(attr.ino), &attr)?;
        Ok(attr)
    }

    pub fn next_ino(&mut self) -> Ino {
        self.counters.ino += 1;
        Ino((self.counters.epoch << COUNTER_BITS) | self.counters.ino)
    }

    pub fn next_versions(&mut self, count: u32) -> Version {
        let first = self.counters.version + 1;
        self.counters.version += u64::from(count);
        Version((self.counters.epoch << COUNTER_BITS) | first)
    }

    pub fn target(&self, ino: Ino) -> Done<Option<Vec<u8>>> {
        Ok(self.kv.get(&keys::target(ino))?)
    }

    pub fn put_target(&mut self, ino: Ino, target: Vec<u8>) {
        self.kv.put(keys::target(ino), target);
    }

    pub fn set_orphan(&mut self, ino: Ino, is_orphan: bool) {
        if is_orphan {
            self.kv.put(keys::orphan(ino), Vec::new());
        } else {
            self.kv.remove(keys::orphan(ino));
        }
    }

    pub fn is_orphan(&self, ino: Ino) -> Done<bool> {
        Ok(self.kv.get(&keys::orphan(ino))?.is_some())
    }

    pub fn orphans(&self) -> Done<Vec<Ino>> {
        let pairs = self.kv.scan(&keys::orphans(), &[], usize::MAX)?;
        Ok(pairs
            .iter()
            .filter_map(|(k, _)| keys::number_at(k, 1))
            .map(Ino)
            .collect())
    }

    /// Removes an inode that has no name, with everything it has; its objects go to the garbage queue.
    pub fn remove_inode(&mut self, attr: &Attr) -> Done<()> {
        let ino = attr.ino;
        for (key, value) in self.kv.scan(&keys::cloud_refs(ino), &[], usize::MAX)? {
            let at: CloudRef = decode(&key, &value)?;
            self.kv.remove(key);
            self.add_garbage(at.object);
        }
        // Their objects are among the refs above.
        for (key, _) in self.kv.scan(&keys::spares(ino), &[], usize::MAX)? {
            self.kv.remove(key);
        }
        for (key, _) in self.kv.scan(&keys::xattr(ino, b""), &[], usize::MAX)? {
            self.kv.remove(key);
        }
        for key in [
            keys::attr(ino),
            keys::target(ino),
            keys::layout(ino),
            keys::reverted(ino),
            keys::orphan(ino),
        ] {
            self.kv.remove(key);
        }
        self.touched.retain(|t| *t != ino);
        self.counters.inodes = self.counters.inodes.saturating_sub(1);
        if attr.kind == Kind::File {
            self.counters.bytes = self.counters.bytes.saturating_sub(attr.allocated);
        }
        Ok(())
    }

    // ---- names ----

    pub fn entry(&self, parent: Ino, name: &[u8]) -> Done<Option<Dirent>> {
        check_name(name)?;
        self.load(&keys::dirent(parent, name))
    }

    pub fn need_entry(&self, parent: Ino, name: &[u8]) -> Done<Dirent> {
        self.entry(parent, name)?
            .ok_or(Fault::Refused(Errno::ENOENT))
    }

    pub fn put_entry(&mut self, parent: Ino, name: &[u8], ino: Ino, kind: Kind) -> Done<()> {
        check_name(name)?;
        self.counters.cookie = self.counters.cookie.max(2) + 1;
        let cookie = self.counters.cookie;
        self.store(keys::dirent(parent, name), &Dirent { ino, kind, cookie })?;
        self.store(keys::cookie(parent, cookie), &(name, ino, kind))?;
        self.kv.put(keys::link(ino, parent, name), Vec::new());
        Ok(())
    }

    pub fn remove_entry(&mut self, parent: Ino, name: &[u8], entry: Dirent) {
        self.kv.remove(keys::dirent(parent, name));
        self.kv.remove(keys::cookie(parent, entry.cookie));
        self.kv.remove(keys::link(entry.ino, parent, name));
    }

    pub fn is_empty_dir(&self, ino: Ino) -> Done<bool> {
        Ok(self.kv.scan(&keys::cookies(ino), &[], 1)?.is_empty())
    }

    /// Entries after a cookie, in cookie order, without attributes.
    pub fn list(&self, ino: Ino, after: u64, max: usize) -> Done<Vec<DirEntry>> {
        let first = keys::cookie(ino, after.saturating_add(1));
        // No entry has the last cookie of all.
        let end = keys::cookie(ino, u64::MAX);
        let (mut out, mut wrong) = (Vec::new(), None);
        let mut take = |key: &[u8], value: &[u8]| {
            if out.len() == FEW {
                // It does not grow by and by from here: each size is another piece of memory.
                out.reserve_exact(max.min(ROOM_AT_ONCE));
            }
            match decode::<(&[u8], Ino, Kind)>(key, value) {
                Ok((name, ino, kind)) => {
                    let entry = |cookie| DirEntry {
                        name: name.to_vec(),
                        ino,
                        kind,
                        cookie,
                        attr: None,
                    };
                    out.extend(keys::number_at(key, 9).map(entry));
                }
                Err(fault) => wrong = Some(fault),
            }
            out.len() < max && wrong.is_none()
        };
        if max > 0 {
            self.kv.each(&first, &end, &mut take)?;
        }
        wrong.map_or(Ok(out), Err)
    }

    /// Adds the attributes of the inodes; none to an entry whose inode does not exist. Those whose numbers are near each other
    /// are read in one go.
    pub fn add_attrs(&self, entries: &mut [DirEntry]) -> Done<()> {
        let mut places: Vec<Place> = entries.iter().map(|e| e.ino).zip(0..).collect();
        places.sort_unstable();
        for run in places.chunk_by(|(one, _), (next, _)| next.0 - one.0 <= ATTR_GAP) {
            match run {
                [first, .., last] if run.len() >= ATTRS_WALKED => {
                    self.walk_attrs(first.0, last.0, run, entries)?;
                }
                few => {
                    for (ino, place) in few {
                        entries[*place].attr = self.load(&keys::attr(*ino))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// [`State::add_attrs`] of the inodes from `first` to `last` that are `wanted`.
    fn walk_attrs(
        &self,
        first: Ino,
        last: Ino,
        wanted: &[Place],
        entries: &mut [DirEntry],
    ) -> Done<()> {
        let mut wanted = wanted.iter().peekable();
        let mut wrong = None;
        let end = keys::attr(Ino(last.0.saturating_add(1)));
        self.kv.each(&keys::attr(first), &end, &mut |key, value| {
            let Some(ino) = keys::number_at(key, 1).map(Ino) else {
                return true;
            };
            // Those before it are gone.
            while wanted.next_if(|(want, _)| *want < ino).is_some() {}
            while let Some((_, place)) = wanted.next_if(|(want, _)| *want == ino) {
                match decode(key, value) {
                    Ok(attr) => entries[*place].attr = Some(attr),
                    Err(fault) => wrong = Some(fault),
                }
            }
            wrong.is_none()
        })?;
        wrong.map_or(Ok(()), Err)
    }

    /// One name of an inode: its directory and the name there.
    pub fn a_name(&self, ino: Ino) -> Done<Option<(Ino, Vec<u8>)>> {
        let found = self.kv.scan(&keys::links(ino), &[], 1)?;
        Ok(found.first().and_then(|(k, _)| {
            let parent = keys::number_at(k, 9)?;
            Some((Ino(parent), k.get(17..)?.to_vec()))
        }))
    }

    /// The directory a directory is in; the root is in itself.
    pub fn parent_of(&self, dir: Ino) -> Done<Ino> {
        Ok(self.a_name(dir)?.map_or(Ino::ROOT, |(parent, _)| parent))
    }

    /// An inode and the directories that lead to it by one of its names.
    pub fn lineage(&self, ino: Ino) -> Done<Vec<Ino>> {
        let mut out = Vec::new();
        let mut at = ino;
        match self.attr(ino) {
            Ok(_) => out.push(ino),
            Err(Fault::Refused(_)) => return Ok(out),
            Err(e) => return Err(e),
        }
        while at != Ino::ROOT && out.len() < LINEAGE_MAX {
            at = self.parent_of(at)?;
            out.push(at);
        }
        Ok(out)
    }

    /// The number of the file system; `None` before its first epoch.
    pub fn file_system(&self) -> Done<Option<u64>> {
        self.load(&keys::file_system())
    }

    pub fn put_file_system(&mut self, number: u64) -> Done<()> {
        self.store(keys::file_system(), &number)
    }

    // ---- contents ----

    pub fn layout(&self, ino: Ino) -> Done<Layout> {
        Ok(self.load(&keys::layout(ino))?.unwrap_or_default())
    }

    pub fn put_layout(&mut self, ino: Ino, layout: &Layout) -> Done<()> {
        self.store(keys::layout(ino), layout)
    }

    pub fn cloud_refs(
        &self,
        ino: Ino,
        only: Option<(u32, Version)>,
    ) -> Done<Vec<(u32, Version, CloudRef)>> {
        if let Some((index, version)) = only {
            let found = self.load(&keys::cloud_ref(ino, index, version))?;
            return Ok(found.map(|at| (index, version, at)).into_iter().collect());
        }
        self.decode_refs(self.kv.scan(&keys::cloud_refs(ino), &[], usize::MAX)?)
    }

    pub fn cloud_refs_of(&self, ino: Ino, index: u32) -> Done<Vec<(u32, Version, CloudRef)>> {
        self.decode_refs(
            self.kv
                .scan(&keys::cloud_refs_of(ino, index), &[], usize::MAX)?,
        )
    }

    fn decode_refs(&self, pairs: Vec<crate::kv::Pair>) -> Done<Vec<(u32, Version, CloudRef)>> {
        let mut out = Vec::with_capacity(pairs.len());
        for (key, value) in pairs {
            if let Some((index, version)) = keys::parse_cloud_ref(&key) {
                out.push((index, version, decode(&key, &value)?));
            }
        }
        Ok(out)
    }

    pub fn put_cloud_ref(&mut self, key: fastcache_api::ChunkKey, at: &CloudRef) -> Done<()> {
        self.store(keys::cloud_ref(key.ino, key.index, key.version), at)
    }

    pub fn remove_cloud_ref(&mut self, ino: Ino, index: u32, version: Version, at: CloudRef) {
        self.kv.remove(keys::cloud_ref(ino, index, version));
        self.add_garbage(at.object);
    }

    pub fn spare(&self, ino: Ino, index: u32) -> Done<Option<SpareValue>> {
        self.load(&keys::spare(ino, index))
    }

    /// All spares of a file: index and value.
    pub fn spares(&self, ino: Ino) -> Done<Vec<(u32, SpareValue)>> {
        let mut out = Vec::new();
        for (key, value) in self.kv.scan(&keys::spares(ino), &[], usize::MAX)? {
            if let Some(index) = keys::parse_spare(&key) {
                out.push((index, decode(&key, &value)?));
            }
        }
        Ok(out)
    }

    pub fn put_spare(&mut self, ino: Ino, index: u32, spare: SpareValue) -> Done<()> {
        self.store(keys::spare(ino, index), &spare)
    }

    pub fn remove_spare(&mut self, ino: Ino, index: u32) {
        self.kv.remove(keys::spare(ino, index));
    }

    /// The layout versions before and after the last revert of a file.
    pub fn reverted(&self, ino: Ino) -> Done<Option<(Version, Version)>> {
        self.load(&keys::reverted(ino))
    }

    pub fn put_reverted(&mut self, ino: Ino, from: Version, to: Version) -> Done<()> {
        self.store(keys::reverted(ino), &(from, to))
    }

    pub fn add_garbage(&mut self, object: String) {
        self.counters.garbage += 1;
        self.kv
            .put(keys::garbage(self.counters.garbage), object.into_bytes());
    }

    /// Takes from the front of the deletion queue, numbers up to `upto`.
    pub fn take_garbage(&mut self, max: usize, upto: u64) -> Done<Vec<String>> {
        let mut out = Vec::new();
        for (key, value) in self.kv.scan(&keys::all_garbage(), &[], max)? {
            if keys::number_at(&key, 1).is_none_or(|number| number > upto) {
                break;
            }
            self.kv.remove(key);
            out.push(String::from_utf8_lossy(&value).into_owned());
        }
        Ok(out)
    }

    // ---- extended attributes ----

    pub fn xattr(&self, ino: Ino, name: &[u8]) -> Done<Option<Vec<u8>>> {
        Ok(self.kv.get(&keys::xattr(ino, name))?)
    }

    pub fn xattr_names(&self, ino: Ino) -> Done<Vec<Vec<u8>>> {
        let pairs = self.kv.scan(&keys::xattr(ino, b""), &[], usize::MAX)?;
        Ok(pairs
            .iter()
            .filter_map(|(k, _)| k.get(9..).map(<[u8]>::to_vec))
            .collect())
    }

    /// Bytes of the names as listxattr(2) tells them, and bytes of names and values, without the attribute `but`.
    pub fn xattr_space(&self, ino: Ino, but: &[u8]) -> Done<(usize, usize)> {
        let prefix = keys::xattr(ino, b"").len();
        let (mut list, mut total) = (0, 0);
        for (key, value) in self.kv.scan(&keys::xattr(ino, b""), &[], usize::MAX)? {
            if key.get(prefix..) != Some(but) {
                let name = key.len().saturating_sub(prefix);
                list += name + 1;
                total += name + value.len();
            }
        }
        Ok((list, total))
    }

    pub fn put_xattr(&mut self, ino: Ino, name: &[u8], value: Vec<u8>) {
        self.kv.put(keys::xattr(ino, name), value);
    }

    pub fn remove_xattr(&mut self, ino: Ino, name: &[u8]) {
        self.kv.remove(keys::xattr(ino, name));
    }

    // ---- answers given ----

    pub fn reply(&self, id: OpId) -> Done<Option<NsReply>> {
        self.load(&keys::reply(id))
    }

    pub fn put_reply(&mut self, id: OpId, reply: &NsReply) -> Done<()> {
        if let Some(old) = id.seq.checked_sub(REPLIES_KEPT) {
            self.kv.remove(keys::reply(OpId {
                client: id.client,
                seq: old,
            }));
        }
        self.store(keys::reply(id), reply)
    }

    /// A change to a directory's entries at `now`.
    pub fn touch_dir(&mut self, mut dir: Attr, now: Time, nlink_by: i32) -> Done<Attr> {
        dir.mtime = now;
        dir.ctime = now;
        dir.nlink = dir.nlink.saturating_add_signed(nlink_by);
        self.put_attr(dir)
    }
}

/// Refuses names no directory can hold.
pub(crate) fn check_name(name: &[u8]) -> Result<(), Errno> {
    if name.len() > NAME_MAX {
        return Err(Errno::ENAMETOOLONG);
    }
    if name.is_empty()
        || name == b"."
        || name == b".."
        || name.iter().any(|b| matches!(b, 0 | b'/'))
    {
        return Err(Errno::EINVAL);
    }
    Ok(())
}
