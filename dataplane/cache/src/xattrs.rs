//! Extended attributes. Their names are remembered with the inode, under its lease: the kernel asks for one before the first
//! write to each file.

use crate::link::expect_answer;
use crate::{FileSystem, Result, lock};
use fastcache_api::control::{NodeAnswer, NodeCall};
use fastcache_api::{Errno, Ino, Kind, NsAnswer, NsOp, PIN_XATTR, XattrMode};

/// The extended attribute that tells a file's durability state.
const STATE_XATTR: &[u8] = b"user.fastcache.state";

impl FileSystem {
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
            return Ok(names.to_vec());
        }
        let asked = self.inner.lease.ask();
        let reply = self.inner.link.ns(NsOp::ListXattr { ino }).await?;
        let grant = asked.answered(reply.lease_ms);
        let names = expect_answer!(reply, NsAnswer::Names(n) => n)?;
        let mut state = lock(&inode.state);
        if self.inner.lease.holds(grant, ino) != 0 {
            state.xattrs = Some(names.clone().into());
        }
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
        let asked = self.inner.lease.ask();
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
        self.learn_touched(&reply, asked.answered(reply.lease_ms));
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
        let asked = self.inner.lease.ask();
        let reply = self
            .inner
            .link
            .ns(NsOp::RemoveXattr {
                ino,
                name: name.to_vec(),
            })
            .await?;
        self.forget_xattrs(ino);
        self.learn_touched(&reply, asked.answered(reply.lease_ms));
        reply.result.map(|_| ())
    }
}
