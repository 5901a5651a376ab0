//! rename(2) and its flags.

use crate::Result;
use crate::store::Store;
use crate::tx::{Tx, check_name, is_below};
use fastcache_api::{Errno, Ino, Kind, LINK_MAX, NsAnswer, RenameMode};

pub(crate) fn rename<S: Store + ?Sized>(
    tx: &mut Tx<'_, S>,
    (parent, name): (Ino, &[u8]),
    (new_parent, new_name): (Ino, &[u8]),
    mode: RenameMode,
) -> Result<NsAnswer> {
    check_name(name)?;
    check_name(new_name)?;
    tx.live_dir(parent)?;
    let into = tx.live_dir(new_parent)?;
    let source = tx.dirent(parent, name)?.ok_or(Errno::ENOENT)?;
    let target = tx.dirent(new_parent, new_name)?;
    match (mode, target) {
        (RenameMode::NoReplace, Some(_)) => return Err(Errno::EEXIST.into()),
        (RenameMode::Exchange, None) => return Err(Errno::ENOENT.into()),
        _ => {}
    }
    let is_dir = source.kind == Kind::Dir;
    if is_dir && is_below(&tx.over, new_parent, source.ino)? {
        return Err(Errno::EINVAL.into());
    }
    if target.is_some_and(|t| t.ino == source.ino) {
        // Two names of one inode: POSIX asks to do nothing.
        return Ok(NsAnswer::Done);
    }
    let is_across = parent != new_parent;

    if mode == RenameMode::Exchange
        && let Some(target) = target
    {
        let target_is_dir = target.kind == Kind::Dir;
        if target_is_dir && is_below(&tx.over, parent, target.ino)? {
            return Err(Errno::EINVAL.into());
        }
        tx.remove_name(parent, name, source);
        tx.remove_name(new_parent, new_name, target);
        tx.set_name(parent, name, crate::tx::Dirent { cookie: source.cookie, ..target })?;
        tx.set_name(new_parent, new_name, crate::tx::Dirent { cookie: target.cookie, ..source })?;
        let moved = if is_across { i32::from(is_dir) - i32::from(target_is_dir) } else { 0 };
        if moved > 0 && into.nlink >= LINK_MAX {
            return Err(Errno::EMLINK.into());
        }
        tx.touch_dir(parent, -moved)?;
        tx.touch_dir(new_parent, moved)?;
        stamp(tx, source.ino)?;
        stamp(tx, target.ino)?;
        return Ok(NsAnswer::Done);
    }

    let mut answer = NsAnswer::Done;
    let mut gone_dirs = 0;
    if let Some(target) = target {
        match (is_dir, target.kind == Kind::Dir) {
            (false, true) => return Err(Errno::EISDIR.into()),
            (true, false) => return Err(Errno::ENOTDIR.into()),
            (true, true) if !tx.is_empty_dir(target.ino)? => return Err(Errno::ENOTEMPTY.into()),
            (true, true) => gone_dirs = 1,
            (false, false) => {}
        }
        tx.remove_name(new_parent, new_name, target);
        let attr = tx.attr(target.ino)?;
        let is_orphan = tx.drop_link(attr)?;
        answer = NsAnswer::Unlinked { ino: target.ino, is_orphan };
    }
    let came = i32::from(is_dir && is_across);
    if came > gone_dirs && into.nlink >= LINK_MAX {
        return Err(Errno::EMLINK.into());
    }
    tx.remove_name(parent, name, source);
    tx.add_name(new_parent, new_name, source.ino, source.kind)?;
    if is_across {
        tx.touch_dir(parent, -came)?;
    }
    tx.touch_dir(new_parent, came - gone_dirs)?;
    stamp(tx, source.ino)?;
    Ok(answer)
}

/// A renamed inode's ctime changes.
fn stamp<S: Store + ?Sized>(tx: &mut Tx<'_, S>, ino: Ino) -> Result<()> {
    let mut attr = tx.attr(ino)?;
    attr.ctime = tx.now;
    tx.put_attr(attr)
}
