//! Attributes that are set: those of contents that are being written go with their commit, the others are asked for.

use crate::inode::{Inode, without_suid};
use crate::link::expect_answer;
use crate::{FileSystem, Result, SetAttrRequest, lock};
use fastcache_api::{Attr, Ino, NsAnswer, NsOp, SetAttr};
use std::time::Duration;

impl FileSystem {
    /// Changes attributes and size.
    pub async fn setattr(&self, ino: Ino, request: SetAttrRequest) -> Result<(Attr, Duration)> {
        if let Some(size) = request.size {
            let by_name = !request.is_open;
            self.set_size(ino, size, request.set.kill_suid, by_name)
                .await?;
        }
        let set = SetAttr {
            kill_suid: false,
            ..request.set
        };
        let is_size_only = set == SetAttr::default();
        if !is_size_only || (request.set.kill_suid && request.size.is_none()) {
            self.set_attributes(ino, request.set).await?;
        }
        match request.size {
            // The kernel has given its pages this size, and writes none of them until it is answered.
            Some(_) => Ok(self.attr_told(ino).await?.1),
            None => self.getattr(ino).await,
        }
    }

    /// Changes attributes other than the size.
    async fn set_attributes(&self, ino: Ino, set: SetAttr) -> Result<()> {
        let inode = self.inner.inodes.get_or_insert(ino);
        if self.goes_with_the_commit(&inode, &set) {
            return Ok(());
        }
        // A seal or a commit that is on its way would set the time of the last write over the one set here, and take
        // setuid and setgid from the mode set here.
        let _one_at_a_time = inode.seal_lock.lock().await;
        self.commits_answered(&inode).await?;
        let had_kill = {
            let mut state = lock(&inode.state);
            let kill = set.mode.is_some() && std::mem::take(&mut state.unsealed.kill_suid);
            state.kills_suid &= set.mode.is_none();
            kill
        };
        let asked = self.inner.lease.ask();
        let reply = self.inner.link.ns(NsOp::SetAttr { ino, set }).await;
        let told = reply.and_then(|reply| {
            let grant = asked.answered(reply.lease_ms);
            self.learn_touched(&reply, grant);
            let attr = expect_answer!(reply, NsAnswer::Attr(a) => a)?;
            Ok((attr, grant))
        });
        let mut state = lock(&inode.state);
        match told {
            Ok((attr, grant)) => {
                self.take_in(ino, &mut state, &attr, grant);
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

    /// Whether the next commit tells the coordinator all that is set here, and then it is set: a modification time of contents
    /// that are not sealed yet, and the mode, owner and access time that the file has. Programs that unpack or copy set them between
    /// the last write and `close`.
    fn goes_with_the_commit(&self, inode: &Inode, set: &SetAttr) -> bool {
        // Not while the file is handed over: its commit may be under way.
        let Some(_turn) = inode.writers.try_read() else {
            return false;
        };
        let mut state = lock(&inode.state);
        let is_before_its_seal = state.unsealed.is_dirty
            && !state.is_sealing
            && state.commits.is_empty()
            && !state.is_conflict
            && !state.is_orphan;
        if !is_before_its_seal || !self.is_usable(&state) || !self.may_write(&state) {
            return false;
        }
        let Some(attr) = &mut state.attr else {
            return false;
        };
        if !is_as_it_is(attr, set) {
            return false;
        }
        attr.mtime = set.mtime.unwrap_or(attr.mtime);
        attr.ctime = crate::wall_now();
        true
    }
}

/// Whether nothing but the modification time would change, and the change time, which is that of the operation.
fn is_as_it_is(attr: &Attr, set: &SetAttr) -> bool {
    let kept = SetAttr {
        mode: set.mode.map(|_| attr.mode & 0o7777),
        uid: set.uid.map(|_| attr.uid),
        gid: set.gid.map(|_| attr.gid),
        atime: set.atime.map(|_| attr.atime),
        mtime: set.mtime,
        ctime: None,
        kill_suid: set.kill_suid && without_suid(attr.mode) == attr.mode,
    };
    *set == kept
}
