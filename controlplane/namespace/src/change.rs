//! The changes: what each does to the state. Deterministic: the same record on the same state gives the same state.

use crate::kv::Kv;
use crate::state::{Dirent, Done, Fault, State, check_name};
use fastcache_api::{
    Attr, Errno, Ino, Kind, LINK_MAX, NewInode, NsAnswer, NsOp, RenameMode, SYMLINK_MAX, SetAttr,
    Time, Version, XATTR_LIST_MAX, XATTR_NAME_MAX, XATTR_TOTAL_MAX, XATTR_VALUE_MAX, XattrMode,
};

/// Most garbage taken at once.
const GARBAGE_MAX: u32 = 10_000;
/// Deepest directory tree a rename walks up, so that a damaged tree cannot loop.
const DEPTH_MAX: usize = 100_000;

/// A name's place.
type Place<'n> = (Ino, &'n [u8]);

impl<K: Kv> State<'_, K> {
    /// Does one change at `now`.
    pub fn change(&mut self, op: &NsOp, now: Time) -> Done<NsAnswer> {
        match op {
            NsOp::Make { at, new } => {
                let at = at.as_ref().map(|(parent, name)| (*parent, name.as_slice()));
                self.make(at, new, now)
            }
            NsOp::SetAttr { ino, set } => self.set_attr(*ino, set, now),
            NsOp::Unlink { parent, name } => self.unlink((*parent, name), now),
            NsOp::Rmdir { parent, name } => self.rmdir((*parent, name), now),
            NsOp::Rename {
                parent,
                name,
                new_parent,
                new_name,
                mode,
            } => self.rename((*parent, name), (*new_parent, new_name), *mode, now),
            NsOp::Link { ino, parent, name } => self.link(*ino, (*parent, name), now),
            NsOp::LinkReplace { ino, parent, name } => {
                self.link_replace(*ino, (*parent, name), now)
            }
            NsOp::LinkReplaceIf {
                ino,
                parent,
                name,
                expected,
            } => {
                self.expect((*parent, name), *expected)?;
                self.link_replace(*ino, (*parent, name), now)
            }
            NsOp::UnlinkIf {
                parent,
                name,
                expected,
            } => {
                self.expect((*parent, name), Some(*expected))?;
                self.unlink((*parent, name), now)
            }
            NsOp::SetXattr {
                ino,
                name,
                value,
                mode,
            } => self.set_xattr(*ino, name, value, *mode, now),
            NsOp::RemoveXattr { ino, name } => self.drop_xattr(*ino, name, now),
            NsOp::Commit(commit) => self.commit(commit, now),
            NsOp::Persisted { chunks } => self.persisted(chunks),
            NsOp::Reap { inos } => {
                for ino in inos {
                    self.reap(*ino)?;
                }
                Ok(NsAnswer::Done)
            }
            NsOp::ReapAllBut { open } => {
                for ino in self.orphans()? {
                    if !open.contains(&ino) {
                        self.reap(ino)?;
                    }
                }
                Ok(NsAnswer::Done)
            }
            NsOp::AllocVersions { count } => {
                let count = (*count).clamp(1, 1 << 24);
                Ok(NsAnswer::Versions {
                    first: self.next_versions(count),
                    count,
                })
            }
            NsOp::TakeGarbage { max, upto } => {
                let max = (*max).min(GARBAGE_MAX) as usize;
                Ok(NsAnswer::Garbage(self.take_garbage(max, *upto)?))
            }
            NsOp::Begin { file_system } => {
                if self.file_system()?.is_none() {
                    self.put_file_system(*file_system)?;
                }
                if self.counters.inodes == 0 {
                    self.make_root(now)?;
                }
                Ok(NsAnswer::Done)
            }
            NsOp::Discard { objects } => self.discard(objects),
            NsOp::Revert { chunks } => self.revert(chunks, now),
            _ => Err(Errno::EINVAL.into()),
        }
    }

    fn make(&mut self, at: Option<Place<'_>>, new: &NewInode, now: Time) -> Done<NsAnswer> {
        let dir = match at {
            Some((parent, name)) => {
                let dir = self.dir(parent)?;
                if self.entry(parent, name)?.is_some() {
                    return Err(Errno::EEXIST.into());
                }
                if dir.nlink == 0 {
                    return Err(Errno::ENOENT.into());
                }
                Some(dir)
            }
            None if new.kind == Kind::File => None,
            None => return Err(Errno::EINVAL.into()),
        };
        if new.kind == Kind::Symlink && (new.target.is_empty() || new.target.len() > SYMLINK_MAX) {
            let wrong = if new.target.is_empty() {
                Errno::EINVAL
            } else {
                Errno::ENAMETOOLONG
            };
            return Err(wrong.into());
        }
        if new.kind == Kind::File && (new.chunk_size == 0 || !new.chunk_size.is_multiple_of(4096)) {
            return Err(Errno::EINVAL.into());
        }
        let is_dir = new.kind == Kind::Dir;
        let mut mode = new.mode & 0o7777;
        let mut gid = new.cred.gid;
        if let Some(dir) = &dir
            && dir.mode & 0o2000 != 0
        {
            gid = dir.gid;
            if is_dir {
                mode |= 0o2000;
            }
        }
        let attr = Attr {
            ino: self.next_ino(),
            kind: new.kind,
            mode,
            nlink: match (&dir, is_dir) {
                (None, _) => 0,
                (_, true) => 2,
                _ => 1,
            },
            uid: new.cred.uid,
            gid,
            rdev: if matches!(new.kind, Kind::Char | Kind::Block) {
                new.rdev
            } else {
                0
            },
            size: if new.kind == Kind::Symlink {
                new.target.len() as u64
            } else {
                0
            },
            allocated: 0,
            atime: now,
            mtime: now,
            ctime: now,
            chunk_size: if new.kind == Kind::File {
                new.chunk_size
            } else {
                0
            },
            layout_version: Version::NONE,
            seq: 0,
        };
        let attr = self.put_attr(attr)?;
        self.counters.inodes += 1;
        if new.kind == Kind::Symlink {
            self.put_target(attr.ino, new.target.clone());
        }
        match (at, dir) {
            (Some((parent, name)), Some(dir)) => {
                self.put_entry(parent, name, attr.ino, new.kind)?;
                self.touch_dir(dir, now, i32::from(is_dir))?;
            }
            _ => self.set_orphan(attr.ino, true),
        }
        Ok(NsAnswer::Entry(attr))
    }

    fn set_attr(&mut self, ino: Ino, set: &SetAttr, now: Time) -> Done<NsAnswer> {
        let mut attr = self.attr(ino)?;
        if set.kill_suid {
            kill_suid(&mut attr);
        }
        if let Some(mode) = set.mode {
            attr.mode = mode & 0o7777;
        }
        attr.uid = set.uid.unwrap_or(attr.uid);
        attr.gid = set.gid.unwrap_or(attr.gid);
        attr.atime = set.atime.unwrap_or(attr.atime);
        attr.mtime = set.mtime.unwrap_or(attr.mtime);
        attr.ctime = set.ctime.unwrap_or(now);
        Ok(NsAnswer::Attr(self.put_attr(attr)?))
    }

    /// Takes a name off an inode; without names it is an orphan (a directory goes at once).
    fn drop_link(&mut self, place: Place<'_>, entry: Dirent, now: Time) -> Done<bool> {
        self.remove_entry(place.0, place.1, entry);
        let mut attr = self.attr(entry.ino)?;
        attr.ctime = now;
        if attr.kind == Kind::Dir {
            attr.nlink = 0;
        } else {
            attr.nlink = attr.nlink.saturating_sub(1);
        }
        let is_orphan = attr.nlink == 0;
        self.put_attr(attr)?;
        if is_orphan {
            self.set_orphan(entry.ino, true);
        }
        Ok(is_orphan)
    }

    fn unlink(&mut self, place: Place<'_>, now: Time) -> Done<NsAnswer> {
        let dir = self.dir(place.0)?;
        let entry = self.need_entry(place.0, place.1)?;
        if entry.kind == Kind::Dir {
            return Err(Errno::EISDIR.into());
        }
        let is_orphan = self.drop_link(place, entry, now)?;
        self.touch_dir(dir, now, 0)?;
        Ok(NsAnswer::Unlinked {
            ino: entry.ino,
            is_orphan,
        })
    }

    fn rmdir(&mut self, place: Place<'_>, now: Time) -> Done<NsAnswer> {
        let dir = self.dir(place.0)?;
        let entry = self.need_entry(place.0, place.1)?;
        if entry.kind != Kind::Dir {
            return Err(Errno::ENOTDIR.into());
        }
        if !self.is_empty_dir(entry.ino)? {
            return Err(Errno::ENOTEMPTY.into());
        }
        let is_orphan = self.drop_link(place, entry, now)?;
        self.touch_dir(dir, now, -1)?;
        Ok(NsAnswer::Unlinked {
            ino: entry.ino,
            is_orphan,
        })
    }

    /// Whether `dir` is `ancestor` or lies below it.
    fn is_below(&self, dir: Ino, ancestor: Ino) -> Done<bool> {
        let mut at = dir;
        for _ in 0..DEPTH_MAX {
            if at == ancestor {
                return Ok(true);
            }
            if at == Ino::ROOT {
                return Ok(false);
            }
            at = self.parent_of(at)?;
        }
        Err(Errno::EIO.into())
    }

    fn rename(
        &mut self,
        old: Place<'_>,
        new: Place<'_>,
        mode: RenameMode,
        now: Time,
    ) -> Done<NsAnswer> {
        self.dir(old.0)?;
        let into = self.dir(new.0)?;
        let source = self.need_entry(old.0, old.1)?;
        let target = self.entry(new.0, new.1)?;
        if into.nlink == 0 {
            return Err(Errno::ENOENT.into());
        }
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => return Err(Errno::EEXIST.into()),
            (RenameMode::Exchange, None) => return Err(Errno::ENOENT.into()),
            (_, Some(t)) if t.ino == source.ino => return Ok(NsAnswer::Done),
            _ => {}
        }
        if source.kind == Kind::Dir && old.0 != new.0 && self.is_below(new.0, source.ino)? {
            return Err(Errno::EINVAL.into());
        }
        if let (RenameMode::Exchange, Some(target)) = (mode, target) {
            if target.kind == Kind::Dir && old.0 != new.0 && self.is_below(old.0, target.ino)? {
                return Err(Errno::EINVAL.into());
            }
            self.remove_entry(old.0, old.1, source);
            self.remove_entry(new.0, new.1, target);
            self.put_entry(old.0, old.1, target.ino, target.kind)?;
            self.put_entry(new.0, new.1, source.ino, source.kind)?;
            let moved = i32::from(source.kind == Kind::Dir) - i32::from(target.kind == Kind::Dir);
            self.moved(old.0, new.0, -moved, moved, now)?;
            for ino in [source.ino, target.ino] {
                self.touch_ctime(ino, now)?;
            }
            return Ok(NsAnswer::Done);
        }
        let mut answer = NsAnswer::Done;
        let source_is_dir = source.kind == Kind::Dir;
        let mut lost_dir = 0;
        if let Some(target) = target {
            match (source_is_dir, target.kind == Kind::Dir) {
                (true, false) => return Err(Errno::ENOTDIR.into()),
                (false, true) => return Err(Errno::EISDIR.into()),
                (true, true) if !self.is_empty_dir(target.ino)? => {
                    return Err(Errno::ENOTEMPTY.into());
                }
                _ => {}
            }
            lost_dir = i32::from(target.kind == Kind::Dir);
            let is_orphan = self.drop_link(new, target, now)?;
            answer = NsAnswer::Unlinked {
                ino: target.ino,
                is_orphan,
            };
        }
        self.remove_entry(old.0, old.1, source);
        self.put_entry(new.0, new.1, source.ino, source.kind)?;
        let moved = i32::from(source_is_dir);
        self.moved(old.0, new.0, -moved, moved - lost_dir, now)?;
        self.touch_ctime(source.ino, now)?;
        Ok(answer)
    }

    /// Times and link counts of the two directories of a rename.
    fn moved(&mut self, from: Ino, to: Ino, from_by: i32, to_by: i32, now: Time) -> Done<()> {
        if from == to {
            let dir = self.attr(from)?;
            self.touch_dir(dir, now, from_by + to_by)?;
            return Ok(());
        }
        let dir = self.attr(from)?;
        self.touch_dir(dir, now, from_by)?;
        let dir = self.attr(to)?;
        self.touch_dir(dir, now, to_by)?;
        Ok(())
    }

    fn touch_ctime(&mut self, ino: Ino, now: Time) -> Done<()> {
        let mut attr = self.attr(ino)?;
        attr.ctime = now;
        self.put_attr(attr)?;
        Ok(())
    }

    fn link(&mut self, ino: Ino, place: Place<'_>, now: Time) -> Done<NsAnswer> {
        let dir = self.dir(place.0)?;
        let mut attr = self.attr(ino)?;
        if attr.kind == Kind::Dir {
            return Err(Errno::EPERM.into());
        }
        if self.entry(place.0, place.1)?.is_some() {
            return Err(Errno::EEXIST.into());
        }
        if dir.nlink == 0 || attr.nlink == 0 {
            return Err(Errno::ENOENT.into());
        }
        if attr.nlink >= LINK_MAX {
            return Err(Errno::EMLINK.into());
        }
        attr.nlink += 1;
        attr.ctime = now;
        self.put_entry(place.0, place.1, ino, attr.kind)?;
        self.touch_dir(dir, now, 0)?;
        Ok(NsAnswer::Entry(self.put_attr(attr)?))
    }

    fn link_replace(&mut self, ino: Ino, place: Place<'_>, now: Time) -> Done<NsAnswer> {
        let dir = self.dir(place.0)?;
        let mut attr = self.attr(ino)?;
        if attr.kind != Kind::File || !self.is_orphan(ino)? {
            return Err(Errno::EINVAL.into());
        }
        if dir.nlink == 0 {
            return Err(Errno::ENOENT.into());
        }
        let mut answer = NsAnswer::Done;
        if let Some(target) = self.entry(place.0, place.1)? {
            if target.kind == Kind::Dir {
                return Err(Errno::EISDIR.into());
            }
            let is_orphan = self.drop_link(place, target, now)?;
            answer = NsAnswer::Unlinked {
                ino: target.ino,
                is_orphan,
            };
        }
        self.put_entry(place.0, place.1, ino, attr.kind)?;
        attr.nlink = 1;
        attr.ctime = now;
        self.put_attr(attr)?;
        self.set_orphan(ino, false);
        self.touch_dir(dir, now, 0)?;
        Ok(answer)
    }

    /// ESTALE unless a name leads to this inode with this layout version, or (`None`) does not exist.
    fn expect(&self, place: Place<'_>, expected: Option<(Ino, Version)>) -> Done<()> {
        self.dir(place.0)?;
        let found = match self.entry(place.0, place.1)? {
            Some(entry) => Some((entry.ino, self.attr(entry.ino)?.layout_version)),
            None => None,
        };
        if found == expected {
            Ok(())
        } else {
            Err(Errno::ESTALE.into())
        }
    }

    fn set_xattr(
        &mut self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
        now: Time,
    ) -> Done<NsAnswer> {
        let mut attr = self.attr(ino)?;
        if name.is_empty() || name.len() > XATTR_NAME_MAX {
            return Err(Errno::ERANGE.into());
        }
        if value.len() > XATTR_VALUE_MAX {
            return Err(Errno::ERANGE.into());
        }
        let exists = self.xattr(ino, name)?.is_some();
        match mode {
            XattrMode::Create if exists => return Err(Errno::EEXIST.into()),
            XattrMode::Replace if !exists => return Err(Errno::ENODATA.into()),
            _ => {}
        }
        let (list, total) = self.xattr_space(ino, name)?;
        if list + name.len() + 1 > XATTR_LIST_MAX
            || total + name.len() + value.len() > XATTR_TOTAL_MAX
        {
            return Err(Errno::ENOSPC.into());
        }
        self.put_xattr(ino, name, value.to_vec());
        attr.ctime = now;
        self.put_attr(attr)?;
        Ok(NsAnswer::Done)
    }

    fn drop_xattr(&mut self, ino: Ino, name: &[u8], now: Time) -> Done<NsAnswer> {
        let mut attr = self.attr(ino)?;
        if self.xattr(ino, name)?.is_none() {
            return Err(Errno::ENODATA.into());
        }
        self.remove_xattr(ino, name);
        attr.ctime = now;
        self.put_attr(attr)?;
        Ok(NsAnswer::Done)
    }

    fn reap(&mut self, ino: Ino) -> Done<()> {
        let attr = match self.attr(ino) {
            Ok(attr) => attr,
            Err(Fault::Refused(Errno::ENOENT)) => return Ok(()),
            Err(e) => return Err(e),
        };
        if attr.nlink == 0 && self.is_orphan(ino)? {
            self.remove_inode(&attr)?;
        }
        Ok(())
    }

    /// Makes the root directory of an empty file system.
    pub fn make_root(&mut self, now: Time) -> Done<()> {
        let root = Attr {
            ino: Ino::ROOT,
            kind: Kind::Dir,
            mode: 0o755,
            nlink: 2,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            allocated: 0,
            atime: now,
            mtime: now,
            ctime: now,
            chunk_size: 0,
            layout_version: Version::NONE,
            seq: 0,
        };
        self.put_attr(root)?;
        self.counters.inodes += 1;
        Ok(())
    }
}

/// Clears setuid, and setgid where the group may execute; for files only (write(2), chown(2)).
pub(crate) fn kill_suid(attr: &mut Attr) {
    if attr.kind == Kind::Dir {
        return;
    }
    attr.mode &= !0o4000;
    if attr.mode & 0o010 != 0 {
        attr.mode &= !0o2000;
    }
}

/// Checks the names of an operation before anything else, so that every operation refuses the same names.
pub(crate) fn check_names(op: &NsOp) -> Result<(), Errno> {
    match op {
        NsOp::Make {
            at: Some((_, name)),
            ..
        }
        | NsOp::Unlink { name, .. }
        | NsOp::Rmdir { name, .. }
        | NsOp::Link { name, .. }
        | NsOp::LinkReplace { name, .. }
        | NsOp::LinkReplaceIf { name, .. }
        | NsOp::UnlinkIf { name, .. } => check_name(name),
        NsOp::Rename { name, new_name, .. } => check_name(name).and_then(|()| check_name(new_name)),
        _ => Ok(()),
    }
}
