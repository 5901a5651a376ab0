//! The namespace as a whole, for `gc` and `fsck`: every inode checked against the rules of the tree, every cloud ref,
//! what waits to be deleted. Each page is one moment; what is wrong in one is wrong, however busy the file system is.

use crate::keys;
use crate::kv::Kv;
use crate::state::{Dirent, Done, Fault, State, decode};
use fastcache_api::{
    Attr, Audited, AuditedRef, ChunkKey, CloudRef, DirEntry, Errno, Flaw, Ino, Kind, Layout,
    NsAnswer, RefUse, Version,
};

/// Most inodes of a page.
const INODES_MAX: u32 = 1024;
/// A page ends early when its inodes have so many runs and entries: they bound its time and its size.
const PAGE_WORK_MAX: usize = 50_000;
/// Most cloud refs, or objects of the deletion queue, of a page.
const REFS_MAX: u32 = 10_000;
/// Entries of a directory read at once.
const ENTRIES_AT_ONCE: usize = 1000;
/// Deepest directory; beyond it is a loop.
const DEPTH_MAX: usize = 100_000;
/// Flaws told of one inode; a broken directory has one for each entry.
const FLAWS_MAX: usize = 16;

/// What is wrong with one inode.
#[derive(Default)]
struct Flaws(Vec<Flaw>);

impl Flaws {
    fn add(&mut self, code: &str, text: String) {
        if self.0.len() < FLAWS_MAX {
            self.0.push(Flaw {
                code: code.to_owned(),
                text,
            });
        }
    }
}

fn shown(name: &[u8]) -> String {
    format!("\"{}\"", name.escape_ascii())
}

impl<K: Kv> State<'_, K> {
    /// Answers [`fastcache_api::NsOp::Audit`].
    pub(crate) fn audit(&self, after: Ino, max: u32) -> Done<NsAnswer> {
        let max = max.clamp(1, INODES_MAX) as usize;
        let from = keys::attr(Ino(after.0.saturating_add(1)));
        let pairs = self.kv.scan(&keys::attrs(), &from, max)?;
        let mut is_end = pairs.len() < max;
        let mut inodes = Vec::with_capacity(pairs.len());
        let mut work = 0;
        for (key, value) in pairs {
            if work > PAGE_WORK_MAX {
                is_end = false;
                break;
            }
            let attr: Attr = decode(&key, &value)?;
            let mut flaws = Flaws::default();
            if keys::number_at(&key, 1) != Some(attr.ino.0) {
                let text = format!("its attributes are those of inode {}", attr.ino);
                flaws.add("attributes", text);
            }
            let is_orphan = self.check_names_of(&attr, &mut flaws)?;
            let mut layout = Layout::default();
            match attr.kind {
                Kind::Dir => work += self.check_dir(&attr, &mut flaws)?,
                Kind::File => {
                    layout = self.layout(attr.ino)?;
                    check_layout(&attr, &layout, &mut flaws);
                    work += layout.runs.len();
                    work += self.check_spares(&attr, &layout, &mut flaws)?;
                }
                Kind::Symlink => match self.target(attr.ino)? {
                    Some(target) if target.len() as u64 == attr.size => {}
                    Some(target) => flaws.add(
                        "symlink",
                        format!(
                            "its target has {} bytes, its size says {}",
                            target.len(),
                            attr.size
                        ),
                    ),
                    None => flaws.add("symlink", "it has no target".to_owned()),
                },
                _ => {}
            }
            inodes.push(Audited {
                attr,
                is_orphan,
                layout,
                flaws: flaws.0,
            });
        }
        let mut flaws = Flaws::default();
        if after.0 == 0 {
            for ino in self.orphans()? {
                match self.attr(ino) {
                    Ok(_) => {}
                    Err(Fault::Refused(_)) => {
                        flaws.add(
                            "orphan",
                            format!("inode {ino} is listed as an orphan and does not exist"),
                        );
                    }
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(NsAnswer::Audit {
            inodes,
            flaws: flaws.0,
            is_end,
            epoch: self.counters.epoch,
            position: self.counters.position,
        })
    }

    /// Link count, names, orphans, the way to the root. Whether it is an orphan.
    fn check_names_of(&self, attr: &Attr, flaws: &mut Flaws) -> Done<bool> {
        let ino = attr.ino;
        let mut names = 0u64;
        let mut from = Vec::new();
        loop {
            let page = self.kv.scan(&keys::links(ino), &from, ENTRIES_AT_ONCE)?;
            for (key, _) in &page {
                names += 1;
                let (Some(parent), Some(name)) = (keys::number_at(key, 9).map(Ino), key.get(17..))
                else {
                    flaws.add("lost_name", "one of its names cannot be read".to_owned());
                    continue;
                };
                match self.load::<Dirent>(&keys::dirent(parent, name))? {
                    Some(entry) if entry.ino == ino && entry.kind == attr.kind => {}
                    _ => flaws.add(
                        "lost_name",
                        format!("it is said to be {} in directory {parent}, which does not have it there", shown(name)),
                    ),
                }
                match self.dir(parent) {
                    Ok(_) => {}
                    Err(Fault::Refused(_)) => flaws.add(
                        "lost_name",
                        format!(
                            "its name {} is in inode {parent}, which is no directory",
                            shown(name)
                        ),
                    ),
                    Err(e) => return Err(e),
                }
            }
            match page.last() {
                Some((last, _)) if page.len() == ENTRIES_AT_ONCE => {
                    from.clone_from(last);
                    from.push(0);
                }
                _ => break,
            }
        }
        let is_orphan = self.is_orphan(ino)?;
        if ino == Ino::ROOT {
            if names > 0 || is_orphan || attr.kind != Kind::Dir {
                flaws.add("unreachable", "the root is not a root".to_owned());
            }
            return Ok(is_orphan);
        }
        if attr.kind == Kind::Dir {
            if names > 1 {
                flaws.add("link_count", format!("a directory with {names} names"));
            }
            if names == 0 && !is_orphan {
                flaws.add("unreachable", "a directory without a name".to_owned());
            }
            if names == 1 && !self.is_rooted(ino)? {
                flaws.add("unreachable", "it does not lead to the root".to_owned());
            }
        } else {
            if u64::from(attr.nlink) != names {
                flaws.add(
                    "link_count",
                    format!("it has {names} names, its link count says {}", attr.nlink),
                );
            }
            if names == 0 && !is_orphan {
                flaws.add(
                    "orphan",
                    "it has no name and is not listed as an orphan".to_owned(),
                );
            }
        }
        if is_orphan && names > 0 {
            flaws.add(
                "orphan",
                "it is listed as an orphan and has a name".to_owned(),
            );
        }
        Ok(is_orphan)
    }

    fn is_rooted(&self, dir: Ino) -> Done<bool> {
        let mut at = dir;
        for _ in 0..DEPTH_MAX {
            if at == Ino::ROOT {
                return Ok(true);
            }
            match self.a_name(at)? {
                Some((parent, _)) => at = parent,
                None => return Ok(false),
            }
        }
        Ok(false)
    }

    /// A directory's entries, by both of their tables, and its link count. How many entries there are.
    fn check_dir(&self, dir: &Attr, flaws: &mut Flaws) -> Done<usize> {
        let (mut listed, mut dirs, mut after) = (0usize, 0u32, 0u64);
        loop {
            let page = self.list(dir.ino, after, ENTRIES_AT_ONCE)?;
            for DirEntry {
                name,
                ino,
                kind,
                cookie,
                ..
            } in &page
            {
                listed += 1;
                after = *cookie;
                dirs += u32::from(*kind == Kind::Dir);
                match self.load::<Dirent>(&keys::dirent(dir.ino, name))? {
                    Some(e) if e.ino == *ino && e.kind == *kind && e.cookie == *cookie => {}
                    _ => flaws.add(
                        "dangling_name",
                        format!("{} is listed and cannot be looked up", shown(name)),
                    ),
                }
                match self.attr(*ino) {
                    Ok(attr) if attr.kind == *kind => {}
                    Ok(attr) => flaws.add(
                        "dangling_name",
                        format!(
                            "{} is listed as {kind:?} and is {:?}",
                            shown(name),
                            attr.kind
                        ),
                    ),
                    Err(Fault::Refused(_)) => flaws.add(
                        "dangling_name",
                        format!("{} names inode {ino}, which does not exist", shown(name)),
                    ),
                    Err(e) => return Err(e),
                }
                if self.kv.get(&keys::link(*ino, dir.ino, name))?.is_none() {
                    flaws.add(
                        "lost_name",
                        format!(
                            "{} names inode {ino}, which does not know of it",
                            shown(name)
                        ),
                    );
                }
            }
            if page.len() < ENTRIES_AT_ONCE {
                break;
            }
        }
        let mut found = 0usize;
        let mut from = Vec::new();
        loop {
            let page = self
                .kv
                .scan(&keys::dirents(dir.ino), &from, ENTRIES_AT_ONCE)?;
            found += page.len();
            match page.last() {
                Some((last, _)) if page.len() == ENTRIES_AT_ONCE => {
                    from.clone_from(last);
                    from.push(0);
                }
                _ => break,
            }
        }
        if found != listed {
            flaws.add(
                "dangling_name",
                format!("{found} names can be looked up, {listed} are listed"),
            );
        }
        // A directory that was removed while it was open has none, and no entries.
        let want = if dir.nlink == 0 && listed == 0 {
            0
        } else {
            dirs + 2
        };
        if dir.nlink != want {
            flaws.add(
                "link_count",
                format!("its link count is {} and has to be {want}", dir.nlink),
            );
        }
        Ok(listed)
    }

    /// What `contents` says of spares. How many the file has.
    fn check_spares(&self, attr: &Attr, layout: &Layout, flaws: &mut Flaws) -> Done<usize> {
        let ino = attr.ino;
        let spares = self.spares(ino)?;
        for (index, (version, _)) in &spares {
            let mut wrong = |what: &str| {
                let text = format!("the spare of its chunk {index} {what}");
                flaws.add("spare", text);
            };
            if self.cloud_refs(ino, Some((*index, *version)))?.is_empty() {
                wrong("has no object");
            }
            match layout.chunk(*index, attr.chunk_size) {
                None => wrong("is of a chunk that it does not have"),
                Some((named, _)) if named == *version => wrong("is the chunk itself"),
                Some((named, _)) if !self.cloud_refs(ino, Some((*index, named)))?.is_empty() => {
                    wrong("is of a chunk that needs none");
                }
                Some(_) => {}
            }
        }
        Ok(spares.len())
    }

    fn is_spare(&self, ino: Ino, index: u32, version: Version) -> Done<bool> {
        Ok(self.spare(ino, index)?.is_some_and(|(v, _)| v == version))
    }

    /// Answers [`fastcache_api::NsOp::AllRefs`].
    pub(crate) fn all_refs(&self, after: Option<ChunkKey>, max: u32) -> Done<NsAnswer> {
        let max = max.clamp(1, REFS_MAX) as usize;
        let from = after.map_or_else(Vec::new, |k| {
            let mut from = keys::cloud_ref(k.ino, k.index, k.version);
            from.push(0);
            from
        });
        let pairs = self.kv.scan(&keys::all_cloud_refs(), &from, max)?;
        let is_end = pairs.len() < max;
        let mut refs = Vec::with_capacity(pairs.len());
        let mut file: Option<(Ino, Option<(Attr, Layout)>)> = None;
        for (key, value) in pairs {
            let at: CloudRef = decode(&key, &value)?;
            let (Some(ino), Some((index, version))) = (
                keys::number_at(&key, 1).map(Ino),
                keys::parse_cloud_ref(&key),
            ) else {
                continue;
            };
            if file.as_ref().is_none_or(|(of, _)| *of != ino) {
                let found = match self.attr(ino) {
                    Ok(attr) => Some((attr, self.layout(ino)?)),
                    Err(Fault::Refused(Errno::ENOENT)) => None,
                    Err(e) => return Err(e),
                };
                file = Some((ino, found));
            }
            let used = match file.as_ref().and_then(|(_, found)| found.as_ref()) {
                None => RefUse::NoInode,
                Some((attr, layout)) => match layout.chunk(index, attr.chunk_size) {
                    Some((v, _)) if v == version => RefUse::Named,
                    _ if self.is_spare(ino, index, version)? => RefUse::Spare,
                    _ => RefUse::Unnamed,
                },
            };
            let key = ChunkKey {
                ino,
                index,
                version,
            };
            refs.push(AuditedRef { key, at, used });
        }
        Ok(NsAnswer::AllRefs { refs, is_end })
    }

    /// Answers [`fastcache_api::NsOp::QueuedGarbage`].
    pub(crate) fn queued_garbage(&self, after: u64, max: u32) -> Done<NsAnswer> {
        let max = max.clamp(1, REFS_MAX) as usize;
        let from = keys::garbage(after.saturating_add(1));
        let pairs = self.kv.scan(&keys::all_garbage(), &from, max)?;
        let is_end = pairs.len() < max;
        let objects = pairs
            .into_iter()
            .filter_map(|(key, value)| {
                let number = keys::number_at(&key, 1)?;
                Some((number, String::from_utf8_lossy(&value).into_owned()))
            })
            .collect();
        Ok(NsAnswer::QueuedGarbage { objects, is_end })
    }

    /// Does [`fastcache_api::NsOp::Discard`].
    pub(crate) fn discard(&mut self, objects: &[(ChunkKey, String)]) -> Done<NsAnswer> {
        let mut count = 0;
        for (key, object) in objects {
            let is_named = match self.attr(key.ino) {
                Ok(attr) => self
                    .layout(key.ino)?
                    .chunk(key.index, attr.chunk_size)
                    .is_some_and(|(version, _)| version == key.version),
                Err(Fault::Refused(Errno::ENOENT)) => false,
                Err(e) => return Err(e),
            };
            if is_named || self.is_spare(key.ino, key.index, key.version)? {
                continue;
            }
            let mut is_queued = false;
            for (index, version, at) in self.cloud_refs(key.ino, Some((key.index, key.version)))? {
                is_queued |= at.object == *object;
                self.remove_cloud_ref(key.ino, index, version, at);
                count += 1;
            }
            if !is_queued {
                self.add_garbage(object.clone());
                count += 1;
            }
        }
        Ok(NsAnswer::Discarded(count))
    }
}

/// Runs in order, without overlap, none longer than a chunk, none where the file has ended.
fn check_layout(attr: &Attr, layout: &Layout, flaws: &mut Flaws) {
    let mut next = 0u64;
    for run in &layout.runs {
        let first = u64::from(run.first);
        if run.count == 0 || first < next || run.valid > attr.chunk_size {
            flaws.add(
                "layout",
                format!("its run at chunk {} cannot be", run.first),
            );
        }
        next = first + u64::from(run.count);
    }
    if attr.chunk_size == 0 || !attr.chunk_size.is_multiple_of(4096) {
        let text = format!("chunks of {} bytes", attr.chunk_size);
        flaws.add("layout", text);
    }
}
