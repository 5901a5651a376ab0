//! The reads.

use crate::keys;
use crate::kv::{Kv, Pair};
use crate::state::{Done, State};
use fastcache_api::{Errno, Ino, Kind, NsAnswer, NsOp, Statfs};

/// Most entries of one listing.
const READDIR_MAX: u32 = 4096;
/// Most extended attributes looked at in one read; each may be 64 KiB long.
const XATTRS_MAX: u32 = 256;
/// Deepest path that is told or resolved, names.
const PATH_DEPTH_MAX: usize = 4096;

impl<K: Kv> State<'_, K> {
    /// Answers one read.
    pub fn query(&self, op: &NsOp) -> Done<NsAnswer> {
        match op {
            NsOp::Lookup { parent, name } => {
                let dir = self.dir(*parent)?;
                let ino = match name.as_slice() {
                    b"." => dir.ino,
                    b".." => self.parent_of(dir.ino)?,
                    name => self.need_entry(*parent, name)?.ino,
                };
                Ok(NsAnswer::Entry(self.attr(ino)?))
            }
            NsOp::GetAttr { ino } => Ok(NsAnswer::Attr(self.attr(*ino)?)),
            NsOp::Open { ino, .. } => {
                let attr = self.attr(*ino)?;
                let layout = self.layout(*ino)?;
                Ok(NsAnswer::Opened { attr, layout })
            }
            NsOp::Readlink { ino } => {
                let attr = self.attr(*ino)?;
                if attr.kind != Kind::Symlink {
                    return Err(Errno::EINVAL.into());
                }
                Ok(NsAnswer::Bytes(self.target(*ino)?.unwrap_or_default()))
            }
            NsOp::Readdir {
                ino,
                after,
                max,
                plus,
            } => self.readdir(*ino, *after, *max, *plus),
            NsOp::GetXattr { ino, name } => {
                self.attr(*ino)?;
                Ok(NsAnswer::Bytes(
                    self.xattr(*ino, name)?.ok_or(Errno::ENODATA)?,
                ))
            }
            NsOp::ListXattr { ino } => {
                self.attr(*ino)?;
                Ok(NsAnswer::Names(self.xattr_names(*ino)?))
            }
            NsOp::Statfs => Ok(NsAnswer::Statfs(Statfs {
                inodes: self.counters.inodes,
                bytes: self.counters.bytes,
            })),
            NsOp::Sync => Ok(NsAnswer::Done),
            NsOp::CloudRefs { ino, only } => {
                self.attr(*ino)?;
                Ok(NsAnswer::CloudRefs(self.cloud_refs(*ino, *only)?))
            }
            NsOp::Resolve { path } => {
                if path.len() > PATH_DEPTH_MAX {
                    return Err(Errno::ENAMETOOLONG.into());
                }
                let mut at = Ino::ROOT;
                for name in path {
                    self.dir(at)?;
                    at = self.need_entry(at, name)?.ino;
                }
                Ok(NsAnswer::Entry(self.attr(at)?))
            }
            NsOp::PathOf { ino } => self.path_of(*ino),
            NsOp::Audit { after, max } => self.audit(*after, *max),
            NsOp::AllRefs { after, max } => self.all_refs(*after, *max),
            NsOp::QueuedGarbage { after, max } => self.queued_garbage(*after, *max),
            NsOp::Spares { after, max } => self.list_spares(*after, *max),
            NsOp::WithXattr { name, after, max } => self.with_xattr(name, after.as_ref(), *max),
            _ => Err(Errno::EINVAL.into()),
        }
    }

    fn with_xattr(&self, name: &[u8], after: Option<&(Ino, Vec<u8>)>, max: u32) -> Done<NsAnswer> {
        let max = max.clamp(1, XATTRS_MAX) as usize;
        let from = after.map_or_else(Vec::new, |(ino, name)| {
            let mut from = keys::xattr(*ino, name);
            from.push(0);
            from
        });
        let pairs = self.kv.scan(&keys::xattrs(), &from, max)?;
        let found = |(key, _): &Pair| keys::parse_xattr(key).map(|(ino, n)| (ino, n.to_vec()));
        let last = (pairs.len() == max)
            .then(|| pairs.last().and_then(found))
            .flatten();
        let inos = pairs.iter().filter_map(found);
        let inos = inos
            .filter(|(_, n)| n == name)
            .map(|(ino, _)| ino)
            .collect();
        Ok(NsAnswer::WithXattr { inos, last })
    }

    fn readdir(&self, ino: Ino, after: u64, max: u32, plus: bool) -> Done<NsAnswer> {
        self.dir(ino)?;
        let max = max.clamp(1, READDIR_MAX) as usize;
        let mut entries = self.list(ino, after.max(2), max + 1)?;
        let is_end = entries.len() <= max;
        entries.truncate(max);
        if plus {
            self.add_attrs(&mut entries)?;
        }
        Ok(NsAnswer::Dir { entries, is_end })
    }

    fn path_of(&self, ino: Ino) -> Done<NsAnswer> {
        self.attr(ino)?;
        let mut names = Vec::new();
        let mut at = ino;
        while at != Ino::ROOT {
            if names.len() > PATH_DEPTH_MAX {
                return Err(Errno::ENAMETOOLONG.into());
            }
            let (parent, name) = self.a_name(at)?.ok_or(Errno::ENOENT)?;
            names.push(name);
            at = parent;
        }
        names.reverse();
        Ok(NsAnswer::Bytes(names.join(&b'/')))
    }
}
