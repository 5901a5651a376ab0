//! Operations on names and attributes: asked of the agent, remembered under the lease.

use crate::inode::Inode;
use crate::link::expect_answer;
use crate::{DirPage, Entry, FileSystem, Opened, Result, SetAttrRequest, StatfsOut, lock};
use fastcache_api::control::{NodeAnswer, NodeCall};
use fastcache_api::{
    Attr, Cred, Errno, Ino, Kind, Layout, NewInode, NsAnswer, NsOp, NsReply, PIN_XATTR, RenameMode,
    Version, XattrMode,
};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The extended attribute that tells a file's durability state.
const STATE_XATTR: &[u8] = b"user.fastcache.state";
/// `O_TRUNC` of Linux.
const O_TRUNC: u32 = 0o1000;
/// `O_EXCL` of Linux.
const O_EXCL: u32 = 0o200;
/// What statfs reports as the size: object stores have no end, programs want a number. 1 PiB.
const STATFS_BYTES: u64 = 1 << 50;
/// Most orphans told to the coordinator in one operation.
const REAP_BATCH: usize = 1024;

impl FileSystem {
    fn entry(&self, attr: Attr, deadline_ms: Option<u32>) -> Entry {
        let deadline = self.deadline_of(deadline_ms);
        let inode = self.inner.inodes.get_or_insert(attr.ino);
        let attr = {
            let mut state = lock(&inode.state);
            state.lookups += 1;
            state.learn(&attr, deadline);
            state.told().unwrap_or(attr)
        };
        let valid = self.lease();
        Entry {
            attr,
            entry_valid: valid,
            attr_valid: valid,
        }
    }

    /// Finds a name. ENOENT, ENOTDIR.
    pub async fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Entry> {
        if self.current_lease_ms().is_none() && self.inner.absent.is_absent(parent, name) {
            return Err(Errno::ENOENT);
        }
        let reply = self
            .inner
            .link
            .ns(NsOp::Lookup {
                parent,
                name: name.to_vec(),
            })
            .await?;
        let lease = reply.lease_ms;
        let attr = expect_answer!(reply, NsAnswer::Entry(a) => a)?;
        Ok(self.entry(attr, lease))
    }

    /// The kernel gives back `n` lookups.
    pub fn forget(&self, ino: Ino, n: u64) {
        if let Some(inode) = self.inner.inodes.get(ino) {
            let mut state = lock(&inode.state);
            state.lookups = state.lookups.saturating_sub(n);
            drop(state);
            self.inner.inodes.drop_if_idle(ino);
        }
    }

    /// Counts a lookup for an entry that a listing told the kernel; answers its current attributes.
    pub fn remember(&self, attr: &Attr) -> Entry {
        self.entry(attr.clone(), self.current_lease_ms())
    }

    fn current_lease_ms(&self) -> Option<u32> {
        match self.inner.lease_ms.load(Ordering::Relaxed) {
            crate::ENDLESS_MS => None,
            ms => Some(ms),
        }
    }

    /// Attributes, and how long they may be kept.
    pub async fn getattr(&self, ino: Ino) -> Result<(Attr, Duration)> {
        let (_, attr) = self.with_attr(ino).await?;
        Ok((attr, self.lease()))
    }

    /// Changes attributes and size.
    pub async fn setattr(&self, ino: Ino, request: SetAttrRequest) -> Result<(Attr, Duration)> {
        if let Some(size) = request.size {
            self.set_size(ino, size, request.set.kill_suid).await?;
        }
        let set = fastcache_api::SetAttr {
            kill_suid: false,
            ..request.set
        };
        let is_size_only = set == fastcache_api::SetAttr::default();
        if !is_size_only || (request.set.kill_suid && request.size.is_none()) {
            self.set_attributes(ino, request.set).await?;
        }
        self.getattr(ino).await
    }

    /// Changes attributes other than the size.
    async fn set_attributes(&self, ino: Ino, set: fastcache_api::SetAttr) -> Result<()> {
        let inode = self.inner.inodes.get_or_insert(ino);
        // A seal or a commit that is on its way would set the time of the last write over the one set here, and take
        // setuid and setgid from the mode set here.
        let _one_at_a_time = inode.seal_lock.lock().await;
        self.commits_sent(&inode).await?;
        let had_kill = {
            let mut state = lock(&inode.state);
            let kill = set.mode.is_some() && std::mem::take(&mut state.unsealed.kill_suid);
            state.kills_suid &= set.mode.is_none();
            kill
        };
        let reply = self.inner.link.ns(NsOp::SetAttr { ino, set }).await;
        let told = reply.and_then(|reply| {
            self.learn_touched(&reply);
            let deadline = self.deadline_of(reply.lease_ms);
            let attr = expect_answer!(reply, NsAnswer::Attr(a) => a)?;
            Ok((attr, deadline))
        });
        let mut state = lock(&inode.state);
        match told {
            Ok((attr, deadline)) => {
                state.learn(&attr, deadline);
                if let (Some(local), Some(mtime)) = (&mut state.attr, set.mtime) {
                    local.mtime = mtime;
                }
                Ok(())
            }
            Err(e) => {
                state.unsealed.kill_suid |= had_kill;
                state.kills_suid |= had_kill;
                Err(e)
            }
        }
    }

    /// Makes a node, directory or symbolic link.
    pub async fn make(&self, parent: Ino, name: &[u8], mut new: NewInode) -> Result<Entry> {
        if new.kind == Kind::File {
            new.chunk_size = self.inner.chunk_size.load(Ordering::Relaxed);
        }
        let folder = (new.kind == Kind::Dir).then(|| self.inner.absent.epoch());
        self.inner.absent.may_exist(parent, name);
        let op = NsOp::Make {
            at: Some((parent, name.to_vec())),
            new,
        };
        let reply = self.inner.link.ns(op).await?;
        self.learn_touched(&reply);
        let lease = reply.lease_ms;
        let attr = expect_answer!(reply, NsAnswer::Entry(a) => a)?;
        let ino = attr.ino;
        if let Some(epoch) = folder {
            self.inner.absent.made(ino, epoch);
        }
        let entry = self.entry(attr, lease);
        if let Some(inode) = self.inner.inodes.get(ino) {
            lock(&inode.state).xattrs = Some(Vec::new());
        }
        Ok(entry)
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
        Ok((
            entry,
            Opened {
                fh: 0,
                keep_cache: true,
            },
        ))
    }

    /// Opens a file. `flags` are those of open(2).
    pub async fn open(&self, ino: Ino, flags: u32, kill_suid: bool) -> Result<Opened> {
        let is_write = flags & 0o3 != 0;
        let inode = self.with_layout(ino, is_write).await?;
        let keep_cache = {
            let mut state = lock(&inode.state);
            state.opens += 1;
            !std::mem::take(&mut state.is_kernel_stale)
        };
        if flags & O_TRUNC != 0
            && let Err(e) = self.truncate_open(&inode, 0, kill_suid).await
        {
            self.close_handle(&inode);
            return Err(e);
        }
        Ok(Opened { fh: 0, keep_cache })
    }

    fn close_handle(&self, inode: &Arc<Inode>) -> bool {
        let mut state = lock(&inode.state);
        state.opens = state.opens.saturating_sub(1);
        state.opens == 0
    }

    /// The last reference to a handle went away.
    pub async fn release(&self, ino: Ino, _fh: u64) -> Result<()> {
        let Some(inode) = self.inner.inodes.get(ino) else {
            return Ok(());
        };
        if self.close_handle(&inode) {
            self.stop_ahead(&inode);
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

    /// Opens a directory.
    pub async fn opendir(&self, _ino: Ino) -> Result<u64> {
        Ok(0)
    }

    /// Entries of a directory after cookie `after`, at most `max`.
    pub async fn readdir(&self, ino: Ino, after: u64, max: u32, plus: bool) -> Result<DirPage> {
        let op = NsOp::Readdir {
            ino,
            after,
            max: max.clamp(1, 4096),
            plus,
        };
        let reply = self.inner.link.ns(op).await?;
        expect_answer!(reply, NsAnswer::Dir { entries, is_end } => (entries, is_end))
    }

    /// The folder that a folder is in; the root is in itself.
    pub async fn parent_of(&self, ino: Ino) -> Result<Ino> {
        let name = b"..".to_vec();
        let reply = self
            .inner
            .link
            .ns(NsOp::Lookup { parent: ino, name })
            .await?;
        expect_answer!(reply, NsAnswer::Entry(a) => a.ino)
    }

    async fn remove(&self, op: NsOp) -> Result<()> {
        let reply = self.inner.link.ns(op).await?;
        self.name_went(reply)
    }

    /// What happens when a name went away: attributes, and the inode itself when nobody has it open.
    fn name_went(&self, reply: NsReply) -> Result<()> {
        self.learn_touched(&reply);
        if let NsAnswer::Unlinked {
            ino,
            is_orphan: true,
        } = reply.result?
        {
            self.orphaned(ino);
        }
        Ok(())
    }

    /// An inode lost its last name: it goes now when nobody has it open, else with the last close.
    pub(crate) fn orphaned(&self, ino: Ino) {
        self.inner.absent.forget(ino);
        let inode = self.inner.inodes.get_or_insert(ino);
        let is_open = {
            let mut state = lock(&inode.state);
            state.is_orphan = true;
            if let Some(attr) = &mut state.attr {
                attr.nlink = 0;
            }
            state.opens > 0
        };
        if !is_open {
            self.reap(&inode);
        }
    }

    /// Drops an orphan that is open nowhere: its chunks here, and (in a batch) its inode there.
    fn reap(&self, inode: &Arc<Inode>) {
        let fs = self.clone();
        let inode = Arc::clone(inode);
        fastcache_reactor::spawn(async move {
            fs.drop_chunks(&inode).await;
            let ino = inode.ino;
            lock(&fs.inner.orphans).push(ino);
            drop(inode);
            fs.inner.inodes.drop_if_idle(ino);
        })
        .detach();
    }

    /// Tells the coordinator of orphans that are gone. Called now and then.
    pub(crate) async fn reap_orphans(&self) {
        let mut inos = std::mem::take(&mut *lock(&self.inner.orphans));
        while !inos.is_empty() {
            let batch: Vec<Ino> = inos.drain(..inos.len().min(REAP_BATCH)).collect();
            let sent = self
                .inner
                .link
                .ns(NsOp::Reap {
                    inos: batch.clone(),
                })
                .await;
            if let Err(error) = sent.and_then(|r| r.result) {
                tracing::warn!(target: "cache", %error, count = batch.len(), "orphans could not be reaped; tried again");
                lock(&self.inner.orphans).extend(batch.into_iter().chain(inos));
                return;
            }
        }
    }

    /// After a start nothing is open: orphans of the run before can go.
    pub async fn drop_stale_orphans(&self) {
        let sent = self
            .inner
            .link
            .ns(NsOp::ReapAllBut { open: Vec::new() })
            .await;
        if let Err(error) = sent.and_then(|r| r.result) {
            tracing::warn!(target: "cache", %error, "orphans of the run before could not be reaped; the next start does it");
        }
    }

    /// A new agent session begins: files that the one before was making without a name (REST PUT) are nobody's. To be
    /// called before the session serves, so that it has none of its own yet.
    pub fn drop_nameless(&self) {
        let is_nameless = |inode: &Arc<Inode>| {
            let state = lock(&inode.state);
            let has_no_link = state.attr.as_ref().is_some_and(|a| a.nlink == 0);
            has_no_link && state.opens == 0 && !state.is_orphan
        };
        let all = self.inner.inodes.all();
        let inos: Vec<Ino> = all
            .iter()
            .filter(|i| is_nameless(i))
            .map(|i| i.ino)
            .collect();
        if inos.is_empty() {
            return;
        }
        let fs = self.clone();
        fastcache_reactor::spawn(async move {
            let link = &fs.inner.link;
            // The coordinator decides: one of them may have got its name in the last moment of that session.
            let reaped = link.ns(NsOp::Reap { inos: inos.clone() }).await;
            if let Err(error) = reaped.and_then(|r| r.result) {
                tracing::warn!(target: "cache", %error, "files that a PUT left without a name stay until the next start");
                return;
            }
            for ino in inos {
                let is_there = link.ns(NsOp::GetAttr { ino }).await;
                if matches!(is_there.and_then(|r| r.result), Err(Errno::ENOENT)) {
                    fs.orphaned(ino);
                }
            }
        })
        .detach();
    }

    /// Removes a name that is not a directory's.
    pub async fn unlink(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.remove(NsOp::Unlink {
            parent,
            name: name.to_vec(),
        })
        .await
    }

    /// Removes an empty directory.
    pub async fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.remove(NsOp::Rmdir {
            parent,
            name: name.to_vec(),
        })
        .await
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
        self.inner.absent.may_exist(new_parent, new_name);
        let (name, new_name) = (name.to_vec(), new_name.to_vec());
        self.remove(NsOp::Rename {
            parent,
            name,
            new_parent,
            new_name,
            mode,
        })
        .await
    }

    /// A further name.
    pub async fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Entry> {
        self.inner.absent.may_exist(parent, name);
        let reply = self
            .inner
            .link
            .ns(NsOp::Link {
                ino,
                parent,
                name: name.to_vec(),
            })
            .await?;
        self.learn_touched(&reply);
        let lease = reply.lease_ms;
        let attr = expect_answer!(reply, NsAnswer::Entry(a) => a)?;
        Ok(self.entry(attr, lease))
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

    /// Value of an extended attribute.
    pub async fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        if name == STATE_XATTR {
            return self.state_of(ino).await.map(String::into_bytes);
        }
        if !self.xattr_names(ino).await?.iter().any(|n| n == name) {
            return Err(Errno::ENODATA);
        }
        let reply = self
            .inner
            .link
            .ns(NsOp::GetXattr {
                ino,
                name: name.to_vec(),
            })
            .await?;
        expect_answer!(reply, NsAnswer::Bytes(b) => b)
    }

    /// Names of the extended attributes, remembered with the inode.
    async fn xattr_names(&self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        let (inode, _) = self.with_attr(ino).await?;
        if let Some(names) = &lock(&inode.state).xattrs {
            return Ok(names.clone());
        }
        let reply = self.inner.link.ns(NsOp::ListXattr { ino }).await?;
        let names = expect_answer!(reply, NsAnswer::Names(n) => n)?;
        lock(&inode.state).xattrs = Some(names.clone());
        Ok(names)
    }

    fn forget_xattrs(&self, ino: Ino) {
        if let Some(inode) = self.inner.inodes.get(ino) {
            lock(&inode.state).xattrs = None;
        }
    }

    /// The durability state of a file: what is open or sealed here is dirty; else the agent knows.
    pub(crate) async fn state_of(&self, ino: Ino) -> Result<String> {
        let (inode, attr) = self.with_attr(ino).await?;
        if attr.kind != Kind::File {
            return Err(Errno::ENODATA);
        }
        if lock(&inode.state).has_local_changes() {
            return Ok("dirty".to_owned());
        }
        match self.inner.link.call(NodeCall::State { ino }).await? {
            NodeAnswer::State(text) => Ok(text),
            other => Err(crate::link::unexpected(&other)),
        }
    }

    /// Sets an extended attribute. EPERM for the ones fastcache makes itself.
    pub async fn setxattr(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
    ) -> Result<()> {
        if name.starts_with(b"user.fastcache.") && name != PIN_XATTR {
            return Err(Errno::EPERM);
        }
        let (name, value) = (name.to_vec(), value.to_vec());
        let reply = self
            .inner
            .link
            .ns(NsOp::SetXattr {
                ino,
                name,
                value,
                mode,
            })
            .await?;
        self.forget_xattrs(ino);
        self.learn_touched(&reply);
        reply.result.map(|_| ())
    }

    /// Names of the extended attributes; state and pin are not listed, so that copies do not carry them.
    pub async fn listxattr(&self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        let mut names = self.xattr_names(ino).await?;
        names.retain(|name| name != PIN_XATTR);
        Ok(names)
    }

    /// Removes an extended attribute.
    pub async fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        let reply = self
            .inner
            .link
            .ns(NsOp::RemoveXattr {
                ino,
                name: name.to_vec(),
            })
            .await?;
        self.forget_xattrs(ino);
        self.learn_touched(&reply);
        reply.result.map(|_| ())
    }

    /// Puts a directory's entries on stable storage.
    pub async fn fsyncdir(&self, ino: Ino) -> Result<()> {
        self.with_the_cloud(|waited| NodeCall::Fsync { ino, waited })
            .await
    }
}
