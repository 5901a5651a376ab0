//! GETATTR, SETATTR, STATFS.

use super::Handlers;
use crate::reply::{Reply, attr_reply, statfs_reply};
use crate::wire::SetattrIn;
use crate::wire::flags::fattr;
use fastcache_api::{Ino, Kind, SetAttr, Time};
use fastcache_cache::SetAttrRequest;

/// The time a SETATTR asks for.
fn time_of(valid: u32, set: u32, now: u32, sec: u64, nsec: u32) -> Option<Time> {
    if valid & now != 0 {
        Some(Time::now())
    } else if valid & set != 0 {
        Some(Time {
            sec: sec.cast_signed(),
            nsec: nsec.min(999_999_999),
        })
    } else {
        None
    }
}

/// What a SETATTR asks for, without what the kernel leaves to the file system to know.
pub(crate) fn set_attr_of(args: &SetattrIn) -> SetAttrRequest {
    let asked = |flag, value| (args.valid & flag != 0).then_some(value);
    // A new size sets the modification time to now by itself, and with the commit, not with a call of its own.
    const RESIZED_NOW: u32 = fattr::SIZE | fattr::MTIME | fattr::MTIME_NOW;
    let mtime_valid = if args.valid & RESIZED_NOW == RESIZED_NOW {
        0
    } else {
        args.valid
    };
    SetAttrRequest {
        size: (args.valid & fattr::SIZE != 0).then_some(args.size),
        is_open: args.valid & fattr::FH != 0,
        set: SetAttr {
            mode: asked(fattr::MODE, args.mode & 0o7777),
            uid: asked(fattr::UID, args.uid),
            gid: asked(fattr::GID, args.gid),
            atime: time_of(
                args.valid,
                fattr::ATIME,
                fattr::ATIME_NOW,
                args.atime,
                args.atimensec,
            ),
            mtime: time_of(
                mtime_valid,
                fattr::MTIME,
                fattr::MTIME_NOW,
                args.mtime,
                args.mtimensec,
            ),
            ctime: time_of(args.valid, fattr::CTIME, 0, args.ctime, args.ctimensec),
            kill_suid: args.valid & fattr::KILL_SUIDGID != 0,
        },
    }
}

impl Handlers {
    pub(super) async fn getattr(&self, ino: Ino) -> Reply {
        match self.fs.getattr(ino).await {
            Ok((attr, valid)) => attr_reply(&attr, valid),
            Err(e) => Reply::Error(e),
        }
    }

    pub(super) async fn setattr(&self, ino: Ino, args: SetattrIn) -> Reply {
        let mut request = set_attr_of(&args);
        let is_chown = request.set.uid.is_some() || request.set.gid.is_some();
        if is_chown && request.set.mode.is_none() && self.negotiated.handles_killpriv() {
            // With HANDLE_KILLPRIV_V2 the kernel does not say so at a chown, which clears the bits of anything but a
            // directory, whoever asks.
            match self.fs.getattr(ino).await {
                Ok((attr, _)) => request.set.kill_suid |= attr.kind != Kind::Dir,
                Err(e) => return Reply::Error(e),
            }
        }
        match self.fs.setattr(ino, request).await {
            Ok((attr, valid)) => attr_reply(&attr, valid),
            Err(e) => Reply::Error(e),
        }
    }

    pub(super) async fn statfs(&self) -> Reply {
        self.fs
            .statfs()
            .await
            .map_or_else(Reply::Error, |counts| statfs_reply(&counts))
    }
}
