//! Walking the tree for REST: symbolic links are followed as long as they stay below the root, parents are made.

use super::error::eloop;
use super::path::FilePath;
use crate::Node;
use fastcache_api::{Attr, Cred, Errno, Ino, Kind, NewInode, NsAnswer, NsOp};
use std::collections::VecDeque;

/// Most symbolic links in one path (as Linux).
const SYMLINKS_MAX: u32 = 40;
/// Permission bits of directories that a `PUT` makes.
const DIR_MODE: u32 = 0o755;
/// Entries asked for at once.
const LIST_BATCH: u32 = 4096;
/// Most directories waiting in one walk.
const WALK_MAX: usize = 1 << 20;

/// Who owns what REST makes: whoever runs the agent.
pub fn cred() -> Cred {
    Cred {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
    }
}

/// Where a path leads.
#[derive(Debug)]
pub struct Place {
    /// The directory.
    pub parent: Ino,
    /// The name in it; empty when the path ends in a directory that a link names by `.` or `..`.
    pub name: Vec<u8>,
    /// What has the name.
    pub attr: Option<Attr>,
}

/// What a path leads to; a path through something that is no directory leads nowhere.
pub async fn find(node: &Node, path: &FilePath) -> Result<Attr, Errno> {
    match node.resolve(path.names()).await {
        Ok(attr) if attr.kind != Kind::Symlink => Ok(attr),
        Ok(_) | Err(Errno::ENOTDIR) => match walk(node, path.names()).await {
            Err(Errno::ENOTDIR) => Err(Errno::ENOENT),
            other => other?.and_then(|p| p.attr).ok_or(Errno::ENOENT),
        },
        Err(e) => Err(e),
    }
}

/// Where a path leads, whether or not there is something; `None` when a directory on the way is missing.
pub async fn place(node: &Node, path: &FilePath) -> Result<Option<Place>, Errno> {
    walk(node, path.names()).await
}

/// Attributes of one name.
pub async fn lookup(node: &Node, parent: Ino, name: &[u8]) -> Result<Attr, Errno> {
    let op = NsOp::Lookup {
        parent,
        name: name.to_vec(),
    };
    entry(node.ns(op).await?.result?)
}

/// Attributes of an inode.
pub async fn getattr(node: &Node, ino: Ino) -> Result<Attr, Errno> {
    entry(node.ns(NsOp::GetAttr { ino }).await?.result?)
}

fn entry(answer: NsAnswer) -> Result<Attr, Errno> {
    match answer {
        NsAnswer::Entry(attr) | NsAnswer::Attr(attr) => Ok(attr),
        _ => Err(Errno::EIO),
    }
}

/// Step by step, following symbolic links; `None` when a directory on the way is missing. A target that is absolute
/// or leaves the root is not found (ENOENT): what it means depends on where somebody mounted this file system.
async fn walk(node: &Node, names: &[Vec<u8>]) -> Result<Option<Place>, Errno> {
    let mut todo: VecDeque<Vec<u8>> = names.iter().cloned().collect();
    let mut at = vec![Ino::ROOT];
    let mut links = 0;
    while let Some(name) = todo.pop_front() {
        match &name[..] {
            b"" | b"." => continue,
            b".." => {
                at.pop();
                if at.is_empty() {
                    return Err(Errno::ENOENT);
                }
                continue;
            }
            _ => {}
        }
        let parent = at.last().copied().unwrap_or(Ino::ROOT);
        let attr = match lookup(node, parent, &name).await {
            Ok(attr) => attr,
            Err(Errno::ENOENT) if todo.is_empty() => {
                let attr = None;
                return Ok(Some(Place { parent, name, attr }));
            }
            Err(Errno::ENOENT) => return Ok(None),
            Err(e) => return Err(e),
        };
        match attr.kind {
            Kind::Symlink => {
                links += 1;
                if links > SYMLINKS_MAX {
                    return Err(eloop());
                }
                let NsAnswer::Bytes(target) =
                    node.ns(NsOp::Readlink { ino: attr.ino }).await?.result?
                else {
                    return Err(Errno::EIO);
                };
                if target.first() == Some(&b'/') {
                    return Err(Errno::ENOENT);
                }
                for part in target.split(|b| *b == b'/').rev() {
                    todo.push_front(part.to_vec());
                }
            }
            _ if todo.is_empty() => {
                let attr = Some(attr);
                return Ok(Some(Place { parent, name, attr }));
            }
            Kind::Dir => at.push(attr.ino),
            _ => return Err(Errno::ENOTDIR),
        }
    }
    let parent = at.last().copied().unwrap_or(Ino::ROOT);
    let attr = Some(getattr(node, parent).await?);
    let name = Vec::new();
    Ok(Some(Place { parent, name, attr }))
}

/// The directory at `names`, made with its parents where it is missing.
pub async fn make_dirs(node: &Node, names: &[Vec<u8>]) -> Result<Ino, Errno> {
    let mut parent = Ino::ROOT;
    for (i, name) in names.iter().enumerate() {
        let found = match lookup(node, parent, name).await {
            Err(Errno::ENOENT) => {
                let new = NewInode {
                    kind: Kind::Dir,
                    mode: DIR_MODE,
                    rdev: 0,
                    cred: cred(),
                    target: Vec::new(),
                    chunk_size: 0,
                };
                let op = NsOp::Make {
                    at: Some((parent, name.clone())),
                    new,
                };
                match node.ns(op).await.and_then(|r| r.result) {
                    Ok(answer) => entry(answer)?,
                    // somebody else made it meanwhile
                    Err(Errno::EEXIST) => lookup(node, parent, name).await?,
                    Err(e) => return Err(e),
                }
            }
            other => other?,
        };
        let found = match found.kind {
            Kind::Symlink => walk(node, &names[..=i])
                .await?
                .and_then(|p| p.attr)
                .ok_or(Errno::ENOENT)?,
            _ => found,
        };
        if found.kind != Kind::Dir {
            return Err(Errno::ENOTDIR);
        }
        parent = found.ino;
    }
    Ok(parent)
}

/// Every regular file below a directory.
pub async fn files_below(node: &Node, dir: Ino) -> Result<Vec<Ino>, Errno> {
    let mut files = Vec::new();
    let mut dirs = vec![dir];
    while let Some(ino) = dirs.pop() {
        let mut after = 0;
        loop {
            let op = NsOp::Readdir {
                ino,
                after,
                max: LIST_BATCH,
                plus: false,
            };
            let (entries, is_end) = match node.ns(op).await.and_then(|r| r.result) {
                Ok(NsAnswer::Dir { entries, is_end }) => (entries, is_end),
                // removed meanwhile
                Err(Errno::ENOENT) => break,
                Ok(_) => return Err(Errno::EIO),
                Err(e) => return Err(e),
            };
            let Some(next) = entries.last().map(|e| e.cookie) else {
                break;
            };
            after = next;
            for entry in entries {
                match entry.kind {
                    Kind::File => files.push(entry.ino),
                    Kind::Dir if dirs.len() < WALK_MAX => dirs.push(entry.ino),
                    Kind::Dir => return Err(Errno::ENOMEM),
                    _ => {}
                }
            }
            if is_end {
                break;
            }
        }
    }
    Ok(files)
}
