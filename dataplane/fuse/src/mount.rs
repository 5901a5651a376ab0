//! Mounting and unmounting, and the handshake in between.
//!
//! [`mount`] returns only when the kernel's INIT was answered, so that whoever holds a [`Mount`] can hand its
//! sessions to the cores in any order. Until those serve, every request waits in the kernel; therefore nothing here
//! touches the mount point itself once it is mounted (a `stat` of it would wait for ever): what must be known comes
//! from `/proc/self/mountinfo`.

mod mountinfo;

pub use mountinfo::{MountEntry, find_mount, parse_mountinfo};

use crate::handshake::{HandshakeError, Negotiated, Verdict, negotiate, parse_init};
use crate::notify::Notifier;
use crate::reply::{OUT_HEADER, out_header};
use crate::transport::choice::Choice;
use crate::transport::interrupt::Waiting;
use crate::transport::{Session, dev_fuse, uring};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use zerocopy::IntoBytes;

/// What the mount table shows as source.
const SOURCE: &str = "fastcache";
/// What the mount table shows as type, and how a mount of our own is recognised.
pub const FS_TYPE: &str = "fuse.fastcache";
/// The device of FUSE connections.
const DEVICE: &str = "/dev/fuse";
/// Readahead of the mount, KiB. The kernel's 128 KiB keeps one request in flight; four of the largest keep the
/// device busy (8 MiB: 3 % more for one reader, within the noise).
pub const READ_AHEAD_KIB: u32 = 4096;
/// How long the kernel may take to send INIT after mount(2) returned, seconds. It has queued it by then.
const INIT_SECONDS: i64 = 10;
/// How long a mount that is found in the way may take to show that it lives.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// Room for the INIT request, bytes (`FUSE_MIN_READ_BUFFER`).
const INIT_BUFFER: usize = 8192;
/// Most stacked mounts of our own that are taken off a mount point before mounting.
const STALE_MAX: usize = 16;

/// How to mount.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// Readahead, KiB.
    pub read_ahead_kib: u32,
    /// Let setuid programs on the mount take effect.
    pub suid: bool,
    /// Let device nodes on the mount work.
    pub dev: bool,
    /// How requests are to come.
    pub transport: Choice,
    /// Other nodes may lock the same files.
    pub remote_locks: bool,
}

impl Default for MountOptions {
    fn default() -> Self {
        MountOptions {
            read_ahead_kib: READ_AHEAD_KIB,
            suid: true,
            dev: true,
            transport: Choice::dev("it is the default"),
            remote_locks: false,
        }
    }
}

/// Why the mount failed, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// mount(2) needs privilege.
    #[error("mounting {dir} needs root (CAP_SYS_ADMIN): run this with sudo, or give the container --privileged", dir = .0.display())]
    NotRoot(PathBuf),
    /// There is no FUSE device.
    #[error(
        "{DEVICE} cannot be opened ({0}): load the module with `modprobe fuse`; in a container add --device {DEVICE}"
    )]
    NoDevice(io::Error),
    /// The mount point is no directory.
    #[error("the mount point {dir} is not a directory: create it with `mkdir -p {dir}`", dir = .0.display())]
    NotADirectory(PathBuf),
    /// Something is mounted there already, and it is alive.
    #[error("{dir} already carries a live {fs_type} mount: unmount it with `umount {dir}`, or choose another directory", dir = .dir.display())]
    Busy {
        /// The mount point.
        dir: PathBuf,
        /// Type of what is mounted.
        fs_type: String,
    },
    /// What is mounted there is dead, and not ours to remove.
    #[error("{dir} carries a dead {fs_type} mount of another program: remove it with `umount -l {dir}`", dir = .dir.display())]
    Dead {
        /// The mount point.
        dir: PathBuf,
        /// Type of what is mounted.
        fs_type: String,
    },
    /// The stale mount of an earlier run could not be removed.
    #[error("the stale mount of an earlier run on {dir} could not be removed ({source}): try `umount -l {dir}`", dir = .dir.display())]
    Stale {
        /// The mount point.
        dir: PathBuf,
        /// What umount(2) said.
        source: io::Error,
    },
    /// The path cannot be a mount point.
    #[error("{dir} cannot be used as a mount point: {source}", dir = .dir.display())]
    Path {
        /// The mount point.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// mount(2) failed.
    #[error("mounting on {dir} failed: {source}; `dmesg | tail` may say more", dir = .dir.display())]
    Mount {
        /// The mount point.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel did not start the conversation.
    #[error("the kernel's first FUSE request could not be answered: {0}; unmount and try again")]
    Conversation(io::Error),
    /// The kernel's FUSE does not fit.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
}

/// A mounted file system. Dropping it unmounts, lazily when it is in use.
#[derive(Debug)]
pub struct Mount {
    /// Canonical path of the mount point.
    dir: PathBuf,
    connection: Arc<Connection>,
    transport: Choice,
    is_mounted: bool,
}

/// What every session of a mount shares.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) device: OwnedFd,
    pub(crate) negotiated: Negotiated,
    /// Requests in work, for INTERRUPT: it may come to another core.
    pub(crate) waiting: Waiting,
    /// Device number of the mount, as in mountinfo; names the connection in `/sys/fs/fuse/connections`.
    dev: Option<(u32, u32)>,
}

/// Mounts on `dir` and shakes hands with the kernel. A stale mount of an earlier run is removed first.
///
/// # Errors
/// See [`MountError`]; each says what to do.
pub fn mount(dir: &Path, options: &MountOptions) -> Result<Mount, MountError> {
    let dir = prepare(dir)?;
    let device = open_device().map_err(|e| MountError::NoDevice(e.into()))?;
    let data = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other",
        device.as_raw_fd()
    );
    let data = CString::new(data).unwrap_or_default();
    let mut flags = MountFlags::empty();
    flags.set(MountFlags::NOSUID, !options.suid);
    flags.set(MountFlags::NODEV, !options.dev);
    rustix::mount::mount(SOURCE, &dir, FS_TYPE, flags, Some(data.as_c_str())).map_err(
        |e| match e {
            Errno::PERM => MountError::NotRoot(dir.clone()),
            Errno::NOTDIR => MountError::NotADirectory(dir.clone()),
            e => MountError::Mount {
                dir: dir.clone(),
                source: e.into(),
            },
        },
    )?;
    // From here on a failure must not leave the mount behind.
    let undo = Undo {
        dir: &dir,
        is_armed: true,
    };
    let negotiated = converse(&device, options)?;
    let transport = options.transport.after(negotiated.over_io_uring());
    let dev = find_mount(&dir).ok().flatten().map(|entry| entry.dev);
    undo.disarm();
    match dev {
        Some(dev) => raise_read_ahead(dev, options.read_ahead_kib),
        None => {
            tracing::warn!(target: "fuse", dir = %dir.display(), "the new mount is not in /proc/self/mountinfo; readahead stays as it is")
        }
    }
    tracing::info!(
        target: "fuse", dir = %dir.display(), minor = negotiated.minor,
        flags = format_args!("{:#x}", negotiated.flags), transport = transport.kind.name(), why = %transport.why,
        "mounted"
    );
    Ok(Mount {
        dir,
        connection: Arc::new(Connection {
            device,
            negotiated,
            waiting: Waiting::default(),
            dev,
        }),
        transport,
        is_mounted: true,
    })
}

/// Unmounts unless told that all went well.
struct Undo<'a> {
    dir: &'a Path,
    is_armed: bool,
}

impl Undo<'_> {
    fn disarm(mut self) {
        self.is_armed = false;
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if self.is_armed {
            let _ = rustix::mount::unmount(self.dir, UnmountFlags::DETACH);
        }
    }
}

/// The canonical mount point, free of stale mounts of our own.
fn prepare(dir: &Path) -> Result<PathBuf, MountError> {
    if !rustix::process::geteuid().is_root() {
        return Err(MountError::NotRoot(dir.to_owned()));
    }
    let path_error = |source| MountError::Path {
        dir: dir.to_owned(),
        source,
    };
    // The parent is resolved, not the mount point: resolving that would ask a dead mount.
    let absolute = std::path::absolute(dir).map_err(path_error)?;
    let canonical = match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) => match parent.canonicalize() {
            Ok(parent) => parent.join(name),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(MountError::NotADirectory(dir.to_owned()));
            }
            Err(e) => return Err(path_error(e)),
        },
        _ => absolute,
    };
    for _ in 0..STALE_MAX {
        let found = find_mount(&canonical).map_err(path_error)?;
        let Some(entry) = found.filter(|e| e.fs_type == "fuse" || e.fs_type.starts_with("fuse."))
        else {
            break;
        };
        let fs_type = entry.fs_type;
        match ask(&canonical) {
            Err(Errno::NOTCONN | Errno::CONNABORTED) if fs_type == FS_TYPE => {
                tracing::info!(target: "fuse", dir = %canonical.display(), "removing the stale mount of an earlier run");
                rustix::mount::unmount(&canonical, UnmountFlags::DETACH).map_err(|e| {
                    MountError::Stale {
                        dir: canonical.clone(),
                        source: e.into(),
                    }
                })?;
            }
            Err(Errno::NOTCONN | Errno::CONNABORTED) => {
                return Err(MountError::Dead {
                    dir: canonical,
                    fs_type,
                });
            }
            _ => {
                return Err(MountError::Busy {
                    dir: canonical,
                    fs_type,
                });
            }
        }
    }
    match std::fs::canonicalize(&canonical) {
        Ok(path) if path.is_dir() => Ok(path),
        Ok(_) => Err(MountError::NotADirectory(dir.to_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            Err(MountError::NotADirectory(dir.to_owned()))
        }
        Err(e) => Err(path_error(e)),
    }
}

/// Asks the server of a FUSE mount for its counts: unlike stat(2), whose answer may come from the kernel's cache, this
/// reaches it or fails. A server that lives and does not answer must not hold the caller, so a thread asks.
fn ask(dir: &Path) -> Result<(), Errno> {
    let (send, receive) = std::sync::mpsc::channel();
    let dir = dir.to_owned();
    let asked = std::thread::Builder::new()
        .name("fuse-ask".to_owned())
        .spawn(move || {
            let _ = send.send(rustix::fs::statfs(&dir).map(drop));
        });
    match asked {
        Ok(_) => receive
            .recv_timeout(ASK_TIMEOUT)
            .unwrap_or(Err(Errno::TIMEDOUT)),
        Err(_) => Err(Errno::AGAIN),
    }
}

/// Opens the FUSE device, nonblocking: it is read until EAGAIN.
pub(crate) fn open_device() -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    rustix::fs::open(DEVICE, flags, Mode::empty())
}

/// Reads INIT and answers it.
fn converse(device: &OwnedFd, options: &MountOptions) -> Result<Negotiated, MountError> {
    let transport = &options.transport;
    let mut buffer = vec![0u8; INIT_BUFFER];
    loop {
        let mut fds = [PollFd::new(device, PollFlags::IN)];
        let timeout = Timespec {
            tv_sec: INIT_SECONDS,
            tv_nsec: 0,
        };
        let failed = |e: Errno| MountError::Conversation(e.into());
        if rustix::event::poll(&mut fds, Some(&timeout)).map_err(failed)? == 0 {
            return Err(failed(Errno::TIMEDOUT));
        }
        let got = match rustix::io::read(device, &mut buffer) {
            Ok(got) => got,
            Err(Errno::AGAIN | Errno::INTR) => continue,
            Err(e) => return Err(failed(e)),
        };
        let (header, offer) = parse_init(&buffer[..got])?;
        let (out, negotiated) = match negotiate(&offer, transport.is_uring(), options.remote_locks)?
        {
            Verdict::Agreed(_, negotiated)
                if transport.is_demanded && !negotiated.over_io_uring() =>
            {
                return Err(HandshakeError::NoUring.into());
            }
            Verdict::Agreed(out, negotiated) => (out, Some(negotiated)),
            Verdict::AskAgain(out) => (out, None),
        };
        let mut reply = Vec::with_capacity(OUT_HEADER + size_of_val(&*out));
        reply.extend_from_slice(out_header(header.unique, None, size_of_val(&*out)).as_bytes());
        reply.extend_from_slice(out.as_bytes());
        rustix::io::write(device, &reply).map_err(failed)?;
        if let Some(negotiated) = negotiated {
            return Ok(negotiated);
        }
    }
}

/// Raises the readahead of the mount's backing-device entry; INIT cannot (before 7.46).
fn raise_read_ahead((major, minor): (u32, u32), kib: u32) {
    let path = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    if let Err(error) = std::fs::write(&path, kib.to_string()) {
        tracing::warn!(target: "fuse", %path, %error, "readahead stays at the kernel's default; sequential reads will be slower");
    }
}

impl Mount {
    /// The mount point.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What was agreed on with the kernel.
    #[must_use]
    pub fn negotiated(&self) -> Negotiated {
        self.connection.negotiated
    }

    /// How requests come, and why so.
    #[must_use]
    pub fn transport(&self) -> &Choice {
        &self.transport
    }

    /// Sessions for the cores on these processors, each with a descriptor cloned from the mount's, so that cores do not
    /// share a queue of requests in work; further entries of FUSE over io_uring take at most `entries_bytes`. To be moved to that core and given to [`serve`](crate::serve).
    ///
    /// # Errors
    /// When the device cannot be opened or cloned, or it is not known how many processors there can be.
    pub fn sessions(&self, cpus: &[usize], entries_bytes: u64) -> io::Result<Vec<Session>> {
        let dev = || dev_fuse::Session::clone_from(Arc::clone(&self.connection));
        if !self.transport.is_uring() {
            return cpus.iter().map(|_| dev().map(Session::Dev)).collect();
        }
        let shares = uring::shares(uring::possible_cpus()?, cpus, entries_bytes);
        let with_queues = |share| Ok(Session::Uring(uring::Session::new(dev()?, share)));
        shares.into_iter().map(with_queues).collect()
    }

    /// What tells the kernel to forget things.
    ///
    /// # Errors
    /// When its descriptor or thread cannot be made.
    pub fn notifier(&self) -> io::Result<Notifier> {
        Notifier::start(
            self.connection.device.try_clone()?,
            self.connection.negotiated,
        )
    }

    /// Unmounts: orderly when nobody uses the mount, else lazily (it disappears from the tree at once, and goes when
    /// its last user does). To be called from a thread that serves no requests while the sessions are still served.
    /// Says whether it was orderly.
    ///
    /// # Errors
    /// When the kernel refuses both.
    pub fn unmount(mut self) -> io::Result<bool> {
        self.take_off()
    }

    fn take_off(&mut self) -> io::Result<bool> {
        if !std::mem::take(&mut self.is_mounted) {
            return Ok(true);
        }
        match rustix::mount::unmount(&self.dir, UnmountFlags::NOFOLLOW) {
            Ok(()) => return Ok(true),
            // Somebody else unmounted it.
            Err(Errno::INVAL | Errno::NOENT) => return Ok(true),
            Err(error) => {
                tracing::warn!(target: "fuse", dir = %self.dir.display(), %error, "the mount is in use: unmounting lazily");
            }
        }
        rustix::mount::unmount(&self.dir, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)?;
        Ok(false)
    }

    /// A handle that ends the connection at once, whoever waits on it: every request fails with ECONNABORTED. For a
    /// shutdown that has waited long enough.
    #[must_use]
    pub fn aborter(&self) -> Aborter {
        Aborter {
            connection: self.connection.dev.map(|(_, minor)| minor),
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = self.take_off() {
            tracing::error!(target: "fuse", dir = %self.dir.display(), %error, "the mount stays behind; remove it with `umount -l`");
        }
    }
}

/// Ends a FUSE connection by force.
#[derive(Clone, Copy, Debug)]
pub struct Aborter {
    connection: Option<u32>,
}

impl Aborter {
    /// Ends it.
    ///
    /// # Errors
    /// When `/sys/fs/fuse/connections` does not show the connection.
    pub fn abort(self) -> io::Result<()> {
        let Some(number) = self.connection else {
            return Err(io::ErrorKind::NotFound.into());
        };
        std::fs::write(format!("/sys/fs/fuse/connections/{number}/abort"), "1")
    }
}
