//! What was written under a lease that was lost, when somebody else has written the file since: it becomes a file beside it.

use crate::inode::Inode;
use crate::link::expect_answer;
use crate::{FileSystem, Result, lock};
use fastcache_api::ns::NAME_MAX;
use fastcache_api::{Cred, Errno, Ino, Kind, NewInode, NsAnswer, NsOp, Version};
use fastcache_reactor::IoBuf;
use fastcache_types::{BLOCK, REQUEST_MAX};
use std::pin::Pin;
use std::sync::Arc;

/// A name for the contents of this version.
fn conflict_name(name: &[u8], version: Version) -> Vec<u8> {
    let suffix = format!(".conflict-{:x}", version.0);
    let kept = name.len().min(NAME_MAX - suffix.len());
    [&name[..kept], suffix.as_bytes()].concat()
}

impl FileSystem {
    /// Copies a file as it is here to a file beside it. To be called while the commit that was refused still makes it count as
    /// changed here: until then reads find what was written here.
    ///
    /// Boxed: what it makes is committed in turn.
    pub(crate) fn save_conflict<'f>(
        &'f self,
        inode: &'f Arc<Inode>,
        version: Version,
    ) -> Pin<Box<dyn Future<Output = ()> + 'f>> {
        Box::pin(self.save_beside(inode, version))
    }

    async fn save_beside(&self, inode: &Arc<Inode>, version: Version) {
        match self.copy_beside(inode, version).await {
            Ok(name) => {
                let name = String::from_utf8_lossy(&name);
                tracing::error!(target: "cache", ino = %inode.ino, %name, "another node wrote a file that was written here while the lease was lost; what was written here is in a file beside it");
            }
            Err(error) => {
                tracing::error!(target: "cache", ino = %inode.ino, %error, "another node wrote a file that was written here while the lease was lost; what was written here could not be saved");
            }
        }
    }

    async fn copy_beside(&self, inode: &Arc<Inode>, version: Version) -> Result<Vec<u8>> {
        let ino = inode.ino;
        let attr = lock(&inode.state).told().ok_or(Errno::ESTALE)?;
        let link = &self.inner.link;
        let path = expect_answer!(link.ns(NsOp::PathOf { ino }).await?, NsAnswer::Bytes(b) => b)?;
        let mut path: Vec<Vec<u8>> = path
            .split(|byte| *byte == b'/')
            .filter(|name| !name.is_empty())
            .map(<[u8]>::to_vec)
            .collect();
        let name = path.pop().ok_or(Errno::ENOENT)?;
        let parent = match path.is_empty() {
            true => Ino::ROOT,
            false => {
                let reply = link.ns(NsOp::Resolve { path }).await?;
                expect_answer!(reply, NsAnswer::Entry(a) => a.ino)?
            }
        };
        let name = conflict_name(&name, version);
        let new = NewInode {
            kind: Kind::File,
            mode: attr.mode,
            rdev: 0,
            cred: Cred {
                uid: attr.uid,
                gid: attr.gid,
            },
            target: Vec::new(),
            chunk_size: 0,
        };
        let made = self.make(parent, &name, new).await?.attr.ino;
        let copied = self.copy_contents(ino, made, attr.size).await;
        // The lookup that making it counted.
        self.forget(made, 1);
        if let Some(notify) = self.inner.notify.get() {
            notify.inval_names();
            notify.inval_attr(parent);
        }
        copied.map(|()| name)
    }

    async fn copy_contents(&self, from: Ino, to: Ino, size: u64) -> Result<()> {
        let target = self.inner.inodes.get_or_insert(to);
        let mut at = 0;
        while at < size {
            let want = usize::try_from(size - at).unwrap_or(usize::MAX);
            let want = want.min(REQUEST_MAX);
            let buf = IoBuf::alloc(want.next_multiple_of(BLOCK));
            let (read, mut buf) = self.read(from, 0, at, want, buf).await;
            let n = read?;
            if n == 0 {
                break;
            }
            let _rest = buf.split_off(n);
            if buf.iter().any(|byte| *byte != 0) {
                let _turn = self.turn_to_write(&target).await?;
                self.write_inode(&target, at, buf, false).await.0?;
            }
            at += n as u64;
        }
        {
            let _turn = self.turn_to_write(&target).await?;
            self.truncate_open(&target, size, false).await?;
        }
        self.seal_file(&target, false).await?;
        self.commits_sent(&target).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conflict_has_a_name_of_its_own_that_is_not_too_long() {
        let version = Version(0x2a);
        assert_eq!(conflict_name(b"a.txt", version), b"a.txt.conflict-2a");
        let long = conflict_name(&[b'x'; NAME_MAX], version);
        assert_eq!(long.len(), NAME_MAX);
        assert!(long.ends_with(b".conflict-2a"));
    }
}
