//! The operations that change something: dispatch, repetition, and those that fit in a few lines.

use crate::record::{Record, RecordOp};
use crate::store::{Batch, Order, Store};
use crate::tx::{Tx, check_name, decode, encode, get_attr};
use crate::{NsError, Result, counters, keys};
use fastcache_api::{
    Attr, Cred, Errno, Ino, Kind, LINK_MAX, NewInode, NsAnswer, NsOp, NsReply, NsRequest, OpId,
    SYMLINK_MAX, SetAttr, Time, Version, XATTR_NAME_MAX, XATTR_VALUE_MAX, XattrMode,
};

/// Answers kept for each client, so that a request which is sent again is not carried out again. More than a
/// client has under way at any time.
pub const REPLIES_PER_CLIENT: u64 = 4096;

/// Clients whose answers are kept; the one not heard of for longest goes first. Each run of a data plane or an
/// agent is one.
const CLIENTS_MAX: usize = 256;

/// How far the noted position of a client may lag behind: it is not written at every change.
const CLIENT_NOTE_EVERY: u64 = 1024;

/// Largest chunk, bytes.
const CHUNK_MAX: u32 = 4 << 20;

/// All names of extended attributes of an inode, bytes with their NULs (Linux XATTR_LIST_MAX).
const XATTR_LIST_MAX: usize = 65536;

/// Most objects one `TakeGarbage` takes.
const GARBAGE_MAX: u32 = 4096;

/// A change, ready to be put down.
#[derive(Debug)]
pub struct Changed {
    /// For the log.
    pub record: Record,
    /// For the state. Both must be put down at once.
    pub batch: Batch,
    /// For the asker, once both are down.
    pub reply: NsReply,
}

/// What came of a request to change something.
#[derive(Debug)]
pub enum Outcome {
    /// It is to be put down.
    Changed(Box<Changed>),
    /// There is nothing to put down: it was done before.
    Known(Box<NsReply>),
}

/// Works a change out. Writes nothing.
pub fn change<S: Store + ?Sized>(store: &S, request: &NsRequest) -> Result<Outcome> {
    if !request.op.is_change() {
        return Err(Errno::EINVAL.into());
    }
    if let Some(id) = request.id
        && let Some(bytes) = store.get(&keys::key2(keys::REPLY, id.client, id.seq))?
    {
        return Ok(Outcome::Known(Box::new(decode(&bytes, "a kept answer")?)));
    }
    let mut tx = Tx::new(store, request.now)?;
    let position = tx.position;
    let applied = apply(&mut tx, &request.op)?;
    let reply = NsReply {
        result: Ok(applied.answer),
        touched: tx.touched_attrs()?,
        log_position: position,
        lease_ms: None,
    };
    if applied.is_known {
        return Ok(Outcome::Known(Box::new(reply)));
    }
    if let Some(id) = request.id {
        keep_reply(&mut tx, id, &reply)?;
    }
    let record = Record {
        position,
        id: request.id,
        now: request.now,
        op: RecordOp::Op(request.op.clone()),
        given: applied.given,
    };
    Ok(Outcome::Changed(Box::new(Changed { record, batch: tx.finish()?, reply })))
}

/// What a start of the coordinator puts down, durably, before it answers anything.
pub fn begin_epoch<S: Store + ?Sized>(store: &S, now: Time) -> Result<(Record, Batch)> {
    let epoch = counters(store)?.epoch + 1;
    let mut tx = Tx::new(store, now)?;
    let record =
        Record { position: tx.position, id: None, now, op: RecordOp::Epoch(epoch), given: 0 };
    apply_epoch(&mut tx, epoch)?;
    Ok((record, tx.finish()?))
}

/// Works out what a record of the log did, on the state it was applied to.
pub fn replay<S: Store + ?Sized>(store: &S, record: &Record) -> Result<Batch> {
    let mut tx = Tx::new(store, record.now)?;
    if record.position != tx.position {
        return Err(NsError::Damaged(format!(
            "log record {} where {} was expected",
            record.position, tx.position
        )));
    }
    match &record.op {
        RecordOp::Epoch(epoch) => apply_epoch(&mut tx, *epoch)?,
        RecordOp::Op(op) => {
            let applied = apply(&mut tx, op).map_err(|e| {
                NsError::Damaged(format!("log record {} does not apply: {e}", record.position))
            })?;
            if applied.given != record.given {
                return Err(NsError::Damaged(format!(
                    "log record {} was given {:x}, its replay {:x}",
                    record.position, record.given, applied.given
                )));
            }
            if let Some(id) = record.id {
                let reply = NsReply {
                    result: Ok(applied.answer),
                    touched: tx.touched_attrs()?,
                    log_position: record.position,
                    lease_ms: None,
                };
                keep_reply(&mut tx, id, &reply)?;
            }
        }
    }
    tx.finish()
}

fn apply_epoch<S: Store + ?Sized>(tx: &mut Tx<'_, S>, epoch: u64) -> Result<()> {
    if epoch <= tx.counters.epoch {
        return Err(NsError::Damaged(format!("epoch {epoch} after {}", tx.counters.epoch)));
    }
    tx.counters.epoch = epoch;
    tx.counters.inos = 0;
    tx.counters.versions = 0;
    if matches!(tx.attr(Ino::ROOT), Err(NsError::Rule(_))) {
        tx.counters.statfs.inodes += 1;
        let root = NewInode {
            kind: Kind::Dir,
            mode: 0o755,
            rdev: 0,
            cred: Cred { uid: 0, gid: 0 },
            target: Vec::new(),
            chunk_size: 0,
        };
        let attr = new_attr(Ino::ROOT, &root, tx.now);
        tx.put_attr(attr)?;
    }
    Ok(())
}

fn keep_reply<S: Store + ?Sized>(tx: &mut Tx<'_, S>, id: OpId, reply: &NsReply) -> Result<()> {
    tx.over.put(keys::key2(keys::REPLY, id.client, id.seq), encode(reply)?);
    if let Some(old) = id.seq.checked_sub(REPLIES_PER_CLIENT) {
        tx.over.remove(keys::key2(keys::REPLY, id.client, old));
    }
    let noted = keys::key(keys::CLIENT, id.client);
    match tx.over.get(&noted)?.as_deref().and_then(|v| keys::u64_at(v, 0)) {
        Some(at) if tx.position - at < CLIENT_NOTE_EVERY => return Ok(()),
        Some(_) => {}
        None => {
            let all = [keys::CLIENT];
            let clients = tx.over.scan(&all, &keys::after(&all), Order::Up, CLIENTS_MAX)?;
            if clients.len() >= CLIENTS_MAX
                && let Some((oldest, _)) = clients.into_iter().min_by_key(|(_, at)| at.clone())
                && let Some(client) = keys::u64_at(&oldest, 1)
            {
                for (key, _) in crate::tx::scan_all(&tx.over, &keys::key(keys::REPLY, client))? {
                    tx.over.remove(key);
                }
                tx.over.remove(oldest);
            }
        }
    }
    tx.over.put(noted, tx.position.to_be_bytes().to_vec());
    Ok(())
}

/// What an operation came to.
pub(crate) struct Applied {
    pub(crate) answer: NsAnswer,
    /// The inode made, or the first version.
    pub(crate) given: u64,
    /// It was done before: nothing is to be written.
    pub(crate) is_known: bool,
}

impl From<NsAnswer> for Applied {
    fn from(answer: NsAnswer) -> Applied {
        Applied { answer, given: 0, is_known: false }
    }
}

fn apply<S: Store + ?Sized>(tx: &mut Tx<'_, S>, op: &NsOp) -> Result<Applied> {
    match op {
        NsOp::Make { at, new } => make(tx, at.as_ref().map(|(p, n)| (*p, n.as_slice())), new),
        NsOp::SetAttr { ino, set } => set_attr(tx, *ino, set).map(Applied::from),
        NsOp::Unlink { parent, name } => unlink(tx, *parent, name).map(Applied::from),
        NsOp::Rmdir { parent, name } => rmdir(tx, *parent, name).map(Applied::from),
        NsOp::Rename { parent, name, new_parent, new_name, mode } => {
            crate::rename::rename(tx, (*parent, name), (*new_parent, new_name), *mode)
                .map(Applied::from)
        }
        NsOp::Link { ino, parent, name } => link(tx, *ino, *parent, name).map(Applied::from),
        NsOp::LinkReplace { ino, parent, name } => {
            link_replace(tx, *ino, *parent, name).map(Applied::from)
        }
        NsOp::SetXattr { ino, name, value, mode } => {
            set_xattr(tx, *ino, name, value, *mode).map(Applied::from)
        }
        NsOp::RemoveXattr { ino, name } => remove_xattr(tx, *ino, name).map(Applied::from),
        NsOp::Commit(commit) => crate::commit::commit(tx, commit),
        NsOp::Persisted { chunks } => crate::commit::persisted(tx, chunks).map(Applied::from),
        NsOp::Reap { inos } => {
            for &ino in inos {
                crate::commit::reap(tx, ino)?;
            }
            Ok(NsAnswer::Done.into())
        }
        NsOp::ReapAllBut { open } => {
            for (key, _) in crate::tx::scan_all(&tx.over, &[keys::ORPHAN])? {
                if let Some(ino) = keys::u64_at(&key, 1).map(Ino)
                    && !open.contains(&ino)
                {
                    crate::commit::reap(tx, ino)?;
                }
            }
            Ok(NsAnswer::Done.into())
        }
        NsOp::AllocVersions { count } => {
            if *count == 0 {
                return Err(Errno::EINVAL.into());
            }
            let first = tx.counters.next_versions(*count)?;
            let answer = NsAnswer::Versions { first, count: *count };
            Ok(Applied { answer, given: first.0, is_known: false })
        }
        NsOp::TakeGarbage { max } => take_garbage(tx, *max),
        _ => Err(Errno::EINVAL.into()),
    }
}

fn new_attr(ino: Ino, new: &NewInode, now: Time) -> Attr {
    Attr {
        ino,
        kind: new.kind,
        mode: new.mode & 0o7777,
        nlink: if new.kind == Kind::Dir { 2 } else { 1 },
        uid: new.cred.uid,
        gid: new.cred.gid,
        rdev: if matches!(new.kind, Kind::Char | Kind::Block) { new.rdev } else { 0 },
        size: match new.kind {
            Kind::Symlink => new.target.len() as u64,
            _ => 0,
        },
        atime: now,
        mtime: now,
        ctime: now,
        chunk_size: if new.kind == Kind::File { new.chunk_size } else { 0 },
        layout_version: Version::NONE,
        seq: 0,
    }
}

fn make<S: Store + ?Sized>(
    tx: &mut Tx<'_, S>,
    at: Option<(Ino, &[u8])>,
    new: &NewInode,
) -> Result<Applied> {
    match new.kind {
        Kind::File
            if new.chunk_size == 0
                || new.chunk_size > CHUNK_MAX
                || !new.chunk_size.is_multiple_of(4096) =>
        {
            return Err(Errno::EINVAL.into());
        }
        Kind::Symlink if new.target.is_empty() => return Err(Errno::ENOENT.into()),
        Kind::Symlink if new.target.len() > SYMLINK_MAX => return Err(Errno::ENAMETOOLONG.into()),
        _ => {}
    }
    let parent = match at {
        Some((dir, name)) => {
            check_name(name)?;
            let dir = tx.live_dir(dir)?;
            if tx.dirent(dir.ino, name)?.is_some() {
                return Err(Errno::EEXIST.into());
            }
            if new.kind == Kind::Dir && dir.nlink >= LINK_MAX {
                return Err(Errno::EMLINK.into());
            }
            Some((dir, name))
        }
        None => None,
    };
    let ino = tx.counters.next_ino()?;
    let mut attr = new_attr(ino, new, tx.now);
    match parent {
        Some((dir, name)) => {
            if dir.mode & 0o2000 != 0 {
                attr.gid = dir.gid;
                if new.kind == Kind::Dir {
                    attr.mode |= 0o2000;
                }
            }
            tx.put_attr(attr)?;
            tx.add_name(dir.ino, name, ino, new.kind)?;
            tx.touch_dir(dir.ino, i32::from(new.kind == Kind::Dir))?;
        }
        None => {
            attr.nlink = 0;
            tx.put_attr(attr)?;
            tx.over.put(keys::key(keys::ORPHAN, ino.0), Vec::new());
        }
    }
    if new.kind == Kind::Symlink {
        tx.over.put(keys::key(keys::SYMLINK, ino.0), new.target.clone());
    }
    tx.counters.statfs.inodes += 1;
    Ok(Applied { answer: NsAnswer::Entry(tx.attr(ino)?), given: ino.0, is_known: false })
}

/// Takes setuid, and setgid where the group may execute, from a regular file.
pub(crate) fn kill_suid(attr: &mut Attr) {
    if attr.kind == Kind::File {
        attr.mode &= !0o4000;
        if attr.mode & 0o010 != 0 {
            attr.mode &= !0o2000;
        }
    }
}

fn set_attr<S: Store + ?Sized>(tx: &mut Tx<'_, S>, ino: Ino, set: &SetAttr) -> Result<NsAnswer> {
    let is_time = |t: Option<Time>| t.is_none_or(|t| t.nsec < 1_000_000_000);
    if !(is_time(set.atime) && is_time(set.mtime) && is_time(set.ctime)) {
        return Err(Errno::EINVAL.into());
    }
    let mut attr = tx.attr(ino)?;
    if let Some(mode) = set.mode {
        attr.mode = mode & 0o7777;
    }
    attr.uid = set.uid.unwrap_or(attr.uid);
    attr.gid = set.gid.unwrap_or(attr.gid);
    attr.atime = set.atime.unwrap_or(attr.atime);
    attr.mtime = set.mtime.unwrap_or(attr.mtime);
    attr.ctime = set.ctime.unwrap_or(tx.now);
    if set.kill_suid {
        kill_suid(&mut attr);
    }
    tx.put_attr(attr)?;
    Ok(NsAnswer::Attr(tx.attr(ino)?))
}

fn unlink<S: Store + ?Sized>(tx: &mut Tx<'_, S>, parent: Ino, name: &[u8]) -> Result<NsAnswer> {
    check_name(name)?;
    tx.live_dir(parent)?;
    let entry = tx.dirent(parent, name)?.ok_or(Errno::ENOENT)?;
    if entry.kind == Kind::Dir {
        return Err(Errno::EISDIR.into());
    }
    tx.remove_name(parent, name, entry);
    tx.touch_dir(parent, 0)?;
    let attr = tx.attr(entry.ino)?;
    let is_orphan = tx.drop_link(attr)?;
    Ok(NsAnswer::Unlinked { ino: entry.ino, is_orphan })
}

fn rmdir<S: Store + ?Sized>(tx: &mut Tx<'_, S>, parent: Ino, name: &[u8]) -> Result<NsAnswer> {
    check_name(name)?;
    tx.live_dir(parent)?;
    let entry = tx.dirent(parent, name)?.ok_or(Errno::ENOENT)?;
    if entry.kind != Kind::Dir {
        return Err(Errno::ENOTDIR.into());
    }
    if !tx.is_empty_dir(entry.ino)? {
        return Err(Errno::ENOTEMPTY.into());
    }
    tx.remove_name(parent, name, entry);
    tx.touch_dir(parent, -1)?;
    let attr = tx.attr(entry.ino)?;
    let is_orphan = tx.drop_link(attr)?;
    Ok(NsAnswer::Unlinked { ino: entry.ino, is_orphan })
}

fn link<S: Store + ?Sized>(
    tx: &mut Tx<'_, S>,
    ino: Ino,
    parent: Ino,
    name: &[u8],
) -> Result<NsAnswer> {
    check_name(name)?;
    let mut attr = tx.attr(ino)?;
    if attr.kind == Kind::Dir {
        return Err(Errno::EPERM.into());
    }
    tx.live_dir(parent)?;
    if tx.dirent(parent, name)?.is_some() {
        return Err(Errno::EEXIST.into());
    }
    if attr.nlink == 0 {
        return Err(Errno::ENOENT.into());
    }
    if attr.nlink >= LINK_MAX {
        return Err(Errno::EMLINK.into());
    }
    attr.nlink += 1;
    attr.ctime = tx.now;
    tx.add_name(parent, name, ino, attr.kind)?;
    tx.put_attr(attr)?;
    tx.touch_dir(parent, 0)?;
    Ok(NsAnswer::Entry(tx.attr(ino)?))
}

fn link_replace<S: Store + ?Sized>(
    tx: &mut Tx<'_, S>,
    ino: Ino,
    parent: Ino,
    name: &[u8],
) -> Result<NsAnswer> {
    check_name(name)?;
    let mut attr = tx.attr(ino)?;
    if attr.nlink != 0 || attr.kind == Kind::Dir {
        return Err(Errno::EINVAL.into());
    }
    tx.live_dir(parent)?;
    let old = tx.dirent(parent, name)?;
    let mut answer = NsAnswer::Done;
    if let Some(old) = old {
        if old.kind == Kind::Dir {
            return Err(Errno::EISDIR.into());
        }
        tx.remove_name(parent, name, old);
        let replaced = tx.attr(old.ino)?;
        let is_orphan = tx.drop_link(replaced)?;
        answer = NsAnswer::Unlinked { ino: old.ino, is_orphan };
    }
    attr.nlink = 1;
    attr.ctime = tx.now;
    tx.over.remove(keys::key(keys::ORPHAN, ino.0));
    tx.add_name(parent, name, ino, attr.kind)?;
    tx.put_attr(attr)?;
    tx.touch_dir(parent, 0)?;
    Ok(answer)
}

fn set_xattr<S: Store + ?Sized>(
    tx: &mut Tx<'_, S>,
    ino: Ino,
    name: &[u8],
    value: &[u8],
    mode: XattrMode,
) -> Result<NsAnswer> {
    if name.is_empty() || name.len() > XATTR_NAME_MAX || name.contains(&0) {
        return Err(Errno::ERANGE.into());
    }
    if value.len() > XATTR_VALUE_MAX {
        return Err(Errno::ENOSPC.into());
    }
    let mut attr = tx.attr(ino)?;
    let key = keys::named(keys::XATTR, ino, name);
    let exists = tx.over.get(&key)?.is_some();
    match mode {
        XattrMode::Create if exists => return Err(Errno::EEXIST.into()),
        XattrMode::Replace if !exists => return Err(Errno::ENODATA.into()),
        _ => {}
    }
    if !exists {
        let names = crate::tx::scan_all(&tx.over, &keys::key(keys::XATTR, ino.0))?;
        let bytes: usize = names.iter().map(|(k, _)| k.len() - 8).sum();
        if bytes + name.len() + 1 > XATTR_LIST_MAX {
            return Err(Errno::ENOSPC.into());
        }
    }
    tx.over.put(key, value.to_vec());
    attr.ctime = tx.now;
    tx.put_attr(attr)?;
    Ok(NsAnswer::Done)
}

fn remove_xattr<S: Store + ?Sized>(tx: &mut Tx<'_, S>, ino: Ino, name: &[u8]) -> Result<NsAnswer> {
    let mut attr = get_attr(&tx.over, ino)?;
    let key = keys::named(keys::XATTR, ino, name);
    if tx.over.get(&key)?.is_none() {
        return Err(Errno::ENODATA.into());
    }
    tx.over.remove(key);
    attr.ctime = tx.now;
    tx.put_attr(attr)?;
    Ok(NsAnswer::Done)
}

fn take_garbage<S: Store + ?Sized>(tx: &mut Tx<'_, S>, max: u32) -> Result<Applied> {
    let max = max.clamp(1, GARBAGE_MAX) as usize;
    let all = [keys::GARBAGE];
    let taken = tx.over.scan(&all, &keys::after(&all), Order::Up, max)?;
    let is_known = taken.is_empty();
    let mut objects = Vec::with_capacity(taken.len());
    for (key, object) in taken {
        tx.over.remove(key);
        objects.push(
            String::from_utf8(object)
                .map_err(|_| NsError::Damaged("an object key is no text".into()))?,
        );
    }
    Ok(Applied { answer: NsAnswer::Garbage(objects), given: 0, is_known })
}
