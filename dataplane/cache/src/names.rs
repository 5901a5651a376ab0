//! Operations on names and attributes: asked of the agent, remembered under the lease.

use crate::changing::{Change, Changing};
use crate::inode::{Inode, InodeState};
use crate::lease::{Grant, Moment};
use crate::link::expect_answer;
use crate::{Entry, FileSystem, Found, Opened, Result, StatfsOut, lock};
use fastcache_api::{
    Attr, Cred, Errno, Ino, Kind, Layout, NewInode, NsAnswer, NsOp, NsReply, RenameMode, Version,
};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// `O_TRUNC` of Linux.
const O_TRUNC: u32 = 0o1000;
/// `O_APPEND` of Linux.
const O_APPEND: u32 = 0o2000;
/// `O_EXCL` of Linux.
const O_EXCL: u32 = 0o200;
/// What statfs reports as the size: object stores have no end, programs want a number. 1 PiB.
const STATFS_BYTES: u64 = 1 << 50;

impl FileSystem {
    /// An entry of a directory: its attributes are taken in, and a lookup counted.
    fn entry_in(&self, parent: Ino, attr: &Attr, grant: Grant) -> Entry {
        self.entry_and_pages(parent, attr, grant).0
    }

    /// The same, and whether the kernel may hear of it with the pages that it has.
    fn entry_and_pages(&self, parent: Ino, attr: &Attr, grant: Grant) -> (Entry, bool) {
        let now = self.inner.lease.now();
        let inode = self.inner.inodes.get_or_insert(attr.ino);
        let mut state = lock(&inode.state);
        state.lookups += 1;
        self.take_in_at(attr.ino, &mut state, attr, grant, now);
        let entry = Entry {
            attr: state.told().unwrap_or_else(|| attr.clone()),
            entry_valid: self.name_valid(parent, grant, now),
            attr_valid: self.valid(&state, now),
        };
        (entry, state.pages.are_right())
    }

    /// How long the kernel may keep the attributes of an inode.
    fn valid(&self, state: &InodeState, now: Moment) -> Duration {
        match self.is_trusted_at(state, now) {
            true => now.left(),
            false => Duration::ZERO,
        }
    }

    /// How long the kernel may keep a name of a directory, present or absent. A kernel that cannot be told to ask again for
    /// all names keeps none where others change them: dropping a single one takes the directory's lock, which a change here
    /// may hold while it waits for another node, which may wait for this one.
    fn name_valid(&self, parent: Ino, grant: Grant, now: Moment) -> Duration {
        let lease = &self.inner.lease;
        let notify = self.inner.notify.get();
        let can_be_told = !lease.is_shared() || notify.is_some_and(|n| n.can_inval_names());
        match can_be_told && lease.holds_at(grant, parent, now) != 0 {
            true => notify.map_or_else(|| now.left(), |notify| lease.tell_name(&**notify, now)),
            false => Duration::ZERO,
        }
    }

    /// Finds a name. ENOENT, ENOTDIR.
    pub async fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Entry> {
        match self.find(parent, name).await? {
            Found::Entry(entry) => Ok(entry),
            Found::Absent(_) => Err(Errno::ENOENT),
        }
    }

    /// Finds a name, or that it is absent. ENOTDIR.
    pub async fn find(&self, parent: Ino, name: &[u8]) -> Result<Found> {
        let lease = &self.inner.lease;
        let asked = lease.ask();
        let known = asked.answered(None);
        let (found, ask) = self.inner.entries.look(lease, parent, name);
        if let Some(ask) = ask {
            self.fill(parent, ask);
        }
        match found {
            Some(None) => return Ok(Found::Absent(self.absent_valid(parent, known))),
            Some(Some(ino)) => {
                if let Ok((inode, attr)) = self.with_attr(ino).await {
                    self.pages_right(&inode).await;
                    let mut state = lock(&inode.state);
                    // Revoked while its attributes were asked for: it may be another one's name now.
                    if self.inner.entries.find(lease, parent, name) == Some(Some(ino)) {
                        state.lookups += 1;
                        return Ok(Found::Entry(Entry {
                            attr,
                            entry_valid: self.name_valid(parent, known, lease.now()),
                            attr_valid: self.valid(&state, lease.now()),
                        }));
                    }
                }
            }
            None => {}
        }
        let asked = lease.ask();
        let op = NsOp::Lookup {
            parent,
            name: name.to_vec(),
        };
        let reply = self.inner.link.ns(op).await?;
        let grant = asked.answered(reply.lease_ms);
        match expect_answer!(reply, NsAnswer::Entry(a) => a) {
            Ok(attr) => {
                if name != b".." {
                    let ino = Some(attr.ino);
                    self.inner.entries.learn(lease, grant, parent, name, ino);
                }
                let entry = self.entry_in(parent, &attr, grant);
                self.pages_of_right(entry.attr.ino).await;
                Ok(Found::Entry(entry))
            }
            Err(Errno::ENOENT) => {
                self.inner.entries.learn(lease, grant, parent, name, None);
                Ok(Found::Absent(self.absent_valid(parent, grant)))
            }
            Err(e) => Err(e),
        }
    }

    /// How long the kernel may remember that a name does not exist: as long as anything else, for it is told of every
    /// name that somebody else makes. Not at all where it could not be told after the agent was gone.
    fn absent_valid(&self, parent: Ino, grant: Grant) -> Duration {
        match self.inner.notify.get() {
            Some(notify) if notify.can_inval_names() => {
                self.name_valid(parent, grant, self.inner.lease.now())
            }
            _ => Duration::ZERO,
        }
    }

    /// The kernel gives back `n` lookups.
    pub fn forget(&self, ino: Ino, n: u64) {
        if let Some(inode) = self.inner.inodes.get(ino) {
            let mut state = lock(&inode.state);
            state.lookups = state.lookups.saturating_sub(n);
            // The kernel forgets inodes with their names, and all names when one is revoked; it asks again before long.
            let is_kept = self.inner.lease.is_shared()
                && self.is_trusted(&state)
                && !state.is_orphan
                && self.has_room_for_inodes();
            drop(state);
            if !is_kept {
                self.inner.inodes.drop_if_idle(ino);
            }
        }
    }

    /// Counts a lookup for an entry that a listing of `parent` is about to tell the kernel; answers its current attributes. `None`,
    /// and nothing counted, when the kernel has to drop pages before it hears of them: it asks for them when it needs them.
    pub fn remember(&self, parent: Ino, attr: &Attr, grant: Grant) -> Option<Entry> {
        let (entry, are_right) = self.entry_and_pages(parent, attr, grant);
        if are_right || self.inner.notify.get().is_none() {
            return Some(entry);
        }
        self.forget(entry.attr.ino, 1);
        None
    }

    /// Counts a lookup of an inode without a name; its attributes.
    pub async fn entry_of(&self, ino: Ino) -> Result<Entry> {
        let (inode, attr) = self.with_attr(ino).await?;
        self.pages_right(&inode).await;
        let mut state = lock(&inode.state);
        state.lookups += 1;
        let attr_valid = self.valid(&state, self.inner.lease.now());
        Ok(Entry {
            attr,
            entry_valid: attr_valid,
            attr_valid,
        })
    }

    /// Attributes, and how long they may be kept.
    pub async fn getattr(&self, ino: Ino) -> Result<(Attr, Duration)> {
        let (inode, told) = self.attr_told(ino).await?;
        self.pages_right(&inode).await;
        Ok(told)
    }

    pub(crate) async fn attr_told(&self, ino: Ino) -> Result<(Arc<Inode>, (Attr, Duration))> {
        let (inode, attr) = self.with_attr(ino).await?;
        let valid = self.valid(&lock(&inode.state), self.inner.lease.now());
        Ok((inode, (attr, valid)))
    }

    /// Makes a node, directory or symbolic link.
    pub async fn make(&self, parent: Ino, name: &[u8], mut new: NewInode) -> Result<Entry> {
        if new.kind == Kind::File {
            new.chunk_size = self.inner.chunk_size.load(Ordering::Relaxed);
        }
        let is_dir = new.kind == Kind::Dir;
        let op = NsOp::Make {
            at: Some((parent, name.to_vec())),
            new,
        };
        let (reply, grant) = self.change_names(op, &[(parent, name)]).await?;
        let attr = expect_answer!(reply, NsAnswer::Entry(a) => a)?;
        let ino = attr.ino;
        if is_dir {
            self.inner.entries.made(&self.inner.lease, grant, ino);
        }
        let entry = self.entry_in(parent, &attr, grant);
        if let Some(inode) = self.inner.inodes.get(ino) {
            let mut state = lock(&inode.state);
            // Asked anew: another core may have handed it over since the entry was taken in.
            let learned = self.inner.lease.holds(grant, ino);
            if learned != 0 && self.is_trusted(&state) {
                state.xattrs = Some(Box::default());
                // Whoever makes a file is the first who may write it.
                state.may_write = learned;
            }
        }
        Ok(entry)
    }

    /// Does a change of these names: what came of each is known, and what else is known of their directories stays.
    async fn change_names(&self, op: NsOp, names: &[(Ino, &[u8])]) -> Result<(NsReply, Grant)> {
        let changing = Changing::begin(self, names);
        let what = Change::of(&op);
        let asked = self.inner.lease.ask();
        let reply = self.inner.link.ns(op).await?;
        let grant = asked.answered(reply.lease_ms);
        self.learn_touched(&reply, grant);
        changing.end(what, &reply.result, grant);
        Ok((reply, grant))
    }

    /// Makes a file and opens it; opens the one that is there unless O_EXCL says otherwise.
    pub async fn create(
        &self,
        parent: Ino,
        name: &[u8],
        mode: u32,
        cred: Cred,
        flags: u32,
    ) -> Result<(Entry, Opened)> {
        let new = NewInode {
            kind: Kind::File,
            mode,
            rdev: 0,
            cred,
            target: Vec::new(),
            chunk_size: 0,
        };
        let entry = match self.make(parent, name, new).await {
            Err(Errno::EEXIST) if flags & O_EXCL == 0 => {
                let entry = self.lookup(parent, name).await?;
                let opened = match self.open(entry.attr.ino, flags, false).await {
                    Ok(opened) => opened,
                    Err(e) => {
                        self.forget(entry.attr.ino, 1);
                        return Err(e);
                    }
                };
                return Ok((entry, opened));
            }
            other => other?,
        };
        let inode = self.inner.inodes.get_or_insert(entry.attr.ino);
        let mut state = lock(&inode.state);
        if state.layout.is_none() && entry.attr.layout_version == Version::NONE {
            state.layout = Some(Layout::default());
        }
        state.opens += 1;
        drop(state);
        let is_direct = self.is_direct(flags);
        Ok((
            entry,
            Opened {
                fh: self.next_handle(flags & 0o3 != 0, is_direct),
                keep_cache: true,
                is_direct,
                is_being_read: false,
            },
        ))
    }

    /// Opens a file. `flags` are those of open(2).
    pub async fn open(&self, ino: Ino, flags: u32, kill_suid: bool) -> Result<Opened> {
        let is_write = flags & 0o3 != 0;
        let inode = self.inner.inodes.get_or_insert(ino);
        // Before it is asked for: what is unlinked elsewhere meanwhile is kept for who has it open.
        lock(&inode.state).opens += 1;
        if let Err(e) = self.with_layout(ino, is_write).await {
            drop(inode);
            // It may be the last one by now.
            let _ = self.release(ino, 0).await;
            return Err(e);
        }
        let keep_cache = {
            let mut state = lock(&inode.state);
            !std::mem::take(&mut state.is_kernel_stale) && !state.pages.are_going()
        };
        if flags & O_TRUNC != 0 {
            let truncated = match self.turn_to_write(&inode).await {
                Ok(_turn) => self.truncate_open(&inode, 0, kill_suid).await,
                Err(e) => Err(e),
            };
            if let Err(e) = truncated {
                self.close_handle(&inode);
                return Err(e);
            }
        }
        let is_being_read = !is_write && self.read_first(&inode);
        let is_direct = self.is_direct(flags);
        Ok(Opened {
            fh: self.next_handle(is_write, is_direct),
            keep_cache,
            is_direct,
            is_being_read,
        })
    }

    fn is_direct(&self, flags: u32) -> bool {
        flags & O_APPEND != 0 && self.is_shared()
    }

    fn close_handle(&self, inode: &Arc<Inode>) -> bool {
        let mut state = lock(&inode.state);
        state.opens = state.opens.saturating_sub(1);
        if state.opens == 0 {
            state.refused_handles = None;
        }
        state.opens == 0
    }

    /// The last reference to a handle went away.
    pub async fn release(&self, ino: Ino, _fh: u64) -> Result<()> {
        let Some(inode) = self.inner.inodes.get(ino) else {
            return Ok(());
        };
        if self.close_handle(&inode) {
            self.stop_ahead(&inode);
            self.inner.first_read.closed(ino);
            if lock(&inode.state).is_orphan {
                self.reap(&inode);
            } else if let Err(error) = self.seal_file(&inode, false).await {
                tracing::error!(target: "cache", %ino, %error, "the last close could not seal the file; it is tried again");
            }
        }
        drop(inode);
        self.inner.inodes.drop_if_idle(ino);
        Ok(())
    }

    /// Removes a name, and the inode itself when nobody has it open.
    async fn remove(&self, op: NsOp, names: &[(Ino, &[u8])]) -> Result<()> {
        let (reply, _) = self.change_names(op, names).await?;
        if let NsAnswer::Unlinked {
            ino,
            is_orphan: true,
        } = reply.result?
        {
            self.orphaned(ino);
        }
        Ok(())
    }

    /// Removes a name that is not a directory's.
    pub async fn unlink(&self, parent: Ino, name: &[u8]) -> Result<()> {
        let op = NsOp::Unlink {
            parent,
            name: name.to_vec(),
        };
        self.remove(op, &[(parent, name)]).await
    }

    /// Removes an empty directory.
    pub async fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<()> {
        let op = NsOp::Rmdir {
            parent,
            name: name.to_vec(),
        };
        self.remove(op, &[(parent, name)]).await
    }

    /// Renames.
    pub async fn rename(
        &self,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        mode: RenameMode,
    ) -> Result<()> {
        let op = NsOp::Rename {
            parent,
            name: name.to_vec(),
            new_parent,
            new_name: new_name.to_vec(),
            mode,
        };
        self.remove(op, &[(parent, name), (new_parent, new_name)])
            .await
    }

    /// A further name.
    pub async fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Entry> {
        let op = NsOp::Link {
            ino,
            parent,
            name: name.to_vec(),
        };
        let (reply, grant) = self.change_names(op, &[(parent, name)]).await?;
        let attr = expect_answer!(reply, NsAnswer::Entry(a) => a)?;
        let entry = self.entry_in(parent, &attr, grant);
        self.pages_of_right(ino).await;
        Ok(entry)
    }

    /// Target of a symbolic link.
    pub async fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        let reply = self.inner.link.ns(NsOp::Readlink { ino }).await?;
        expect_answer!(reply, NsAnswer::Bytes(b) => b)
    }

    /// Counts of the file system.
    pub async fn statfs(&self) -> Result<StatfsOut> {
        let reply = self.inner.link.ns(NsOp::Statfs).await?;
        let counts = expect_answer!(reply, NsAnswer::Statfs(s) => s)?;
        let blocks = STATFS_BYTES / 4096;
        let free = blocks.saturating_sub(counts.bytes / 4096);
        Ok(StatfsOut {
            blocks,
            bfree: free,
            bavail: free,
            files: u64::from(u32::MAX).max(counts.inodes * 2),
            ffree: u64::from(u32::MAX).max(counts.inodes * 2) - counts.inodes,
            bsize: 4096,
            namelen: 255,
            frsize: 4096,
        })
    }
}
