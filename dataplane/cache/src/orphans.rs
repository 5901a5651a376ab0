//! Inodes without a name: they live until nobody has them open, on any node.

use crate::inode::Inode;
use crate::{FileSystem, Result, lock};
use fastcache_api::{Errno, Ino, NsAnswer, NsOp, Version};
use std::sync::Arc;

/// Most orphans told to the coordinator in one operation.
const REAP_BATCH: usize = 1024;

impl FileSystem {
    /// An inode lost its last name: it goes now when nobody has it open, else with the last close.
    pub(crate) fn orphaned(&self, ino: Ino) {
        self.inner.entries.forget(ino);
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
    pub(crate) fn reap(&self, inode: &Arc<Inode>) {
        if self.is_shared() {
            // Another node may have it open, and want its bytes: they go when the coordinator has let it go.
            lock(&self.inner.orphans).push(inode.ino);
            return;
        }
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

    /// Takes a lease on those orphans that are open here, or that the agent is making a file of: on nothing else may another
    /// node's reap run aground.
    pub(crate) async fn hold_open(&self, inos: &[Ino]) -> Result<()> {
        for inode in inos.iter().filter_map(|ino| self.inner.inodes.get(*ino)) {
            let (is_open, is_nameless) = {
                let state = lock(&inode.state);
                let has_no_link = state.attr.as_ref().is_some_and(|a| a.nlink == 0);
                (state.opens > 0, has_no_link && !state.is_orphan)
            };
            if is_open {
                self.orphaned(inode.ino);
            }
            if !is_open && !is_nameless {
                continue;
            }
            match self.hold(&inode).await {
                // It went before.
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
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
            if self.is_shared() {
                self.drop_reaped(batch).await;
            }
        }
    }

    /// Drops the chunks of orphans that are gone; the others, which some node has open, are tried again.
    async fn drop_reaped(&self, inos: Vec<Ino>) {
        for ino in inos {
            // A question that no lease comes with.
            let op = NsOp::CloudRefs {
                ino,
                only: Some((u32::MAX, Version::NONE)),
            };
            let is_there = self.inner.link.ns(op).await.and_then(|r| r.result);
            if is_there == Err(Errno::ENOENT) {
                let inode = self.inner.inodes.get_or_insert(ino);
                self.drop_chunks(&inode).await;
                drop(inode);
                self.inner.inodes.drop_if_idle(ino);
            } else {
                lock(&self.inner.orphans).push(ino);
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
                match is_there.and_then(|r| r.result) {
                    Err(Errno::ENOENT) => fs.orphaned(ino),
                    // A node is away that may know it: to be tried again.
                    Ok(NsAnswer::Attr(attr)) if attr.nlink == 0 => fs.orphaned(ino),
                    _ => {}
                }
            }
        })
        .detach();
    }
}
