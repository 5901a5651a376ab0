//! Creation of a ring: the fastest flags this kernel takes, and errors that say what to do.

use std::io;

use io_uring::squeue::EntryMarker;
use io_uring::{Builder, IoUring, Submitter, cqueue};

use crate::buffer::{Region, Registration};

/// Most bytes of one fixed buffer (kernel limit).
const FIXED_BUFFER_BYTES: usize = 1 << 30;

/// Most fixed buffers of a ring (kernel limit, IORING_MAX_REG_BUFFERS).
const FIXED_BUFFERS: usize = 1 << 14;

/// How many sets of flags are tried.
const ATTEMPTS: usize = 4;

/// Sets the flags of one attempt, best first. DEFER_TASKRUN lets completions be processed exactly when the loop asks for
/// them (6.1), COOP_TASKRUN at least without interrupting it (5.19); both need the flag that shows that completions are
/// waiting.
fn set_flags<S: EntryMarker>(builder: &mut Builder<S>, attempt: usize) {
    if attempt < 1 {
        builder.setup_defer_taskrun();
    }
    if attempt < 2 {
        builder.setup_single_issuer();
    }
    if attempt < 3 {
        builder.setup_coop_taskrun().setup_taskrun_flag();
    }
}

/// Creates a ring with `entries` submission entries and at least `completions` completion entries.
pub(super) fn create<S: EntryMarker>(entries: u32, completions: u32) -> io::Result<IoUring<S>> {
    let entries = entries.max(8);
    let mut last = io::Error::from(io::ErrorKind::Unsupported);
    for attempt in 0..ATTEMPTS {
        let mut builder = IoUring::<S, cqueue::Entry>::builder();
        builder
            .setup_clamp()
            .setup_cqsize(completions.max(entries.saturating_mul(2)));
        set_flags(&mut builder, attempt);
        match builder.build(entries) {
            Ok(ring) => {
                let params = ring.params();
                if !params.is_feature_ext_arg()
                    || !params.is_feature_nodrop()
                    || !params.is_feature_rw_cur_pos()
                    || !params.is_feature_fast_poll()
                {
                    return Err(io::Error::new(
                        io::ErrorKind::Unsupported,
                        "io_uring of this kernel is too old: Linux 5.13 or later is needed",
                    ));
                }
                return Ok(ring);
            }
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => last = error,
            Err(error) => return Err(explain(&error)),
        }
    }
    Err(explain(&last))
}

/// Says what an administrator can do about a failed io_uring_setup.
fn explain(error: &io::Error) -> io::Error {
    let hint = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            "io_uring is forbidden here. Allow it with `sysctl kernel.io_uring_disabled=0` (with 1 only members of \
             kernel.io_uring_group and CAP_SYS_ADMIN may use it), and in a container with a seccomp profile that \
             permits io_uring_setup, io_uring_enter and io_uring_register (the default profiles do not)"
        }
        Some(libc::ENOSYS) => {
            "io_uring is not supported here: the kernel is older than 5.1 or built without CONFIG_IO_URING, or a \
             container's seccomp profile hides io_uring_setup, io_uring_enter and io_uring_register; permit them there"
        }
        Some(libc::ENOMEM) => {
            "no memory for an io_uring: raise the limit on locked memory (ulimit -l, LimitMEMLOCK)"
        }
        _ => "io_uring cannot be set up",
    };
    io::Error::new(error.kind(), format!("{hint}: {error}"))
}

/// Registers the memory of a pool as fixed buffers; a failure is only worth a warning.
pub(super) fn register_pool(ring: &Submitter<'_>, ring_id: u64, region: &Region) {
    let pieces = region.pieces();
    let stride = region.stride();
    if pieces == 0 || stride > FIXED_BUFFER_BYTES {
        return;
    }
    let pieces_per_buffer = (FIXED_BUFFER_BYTES / stride).min(pieces);
    let buffers: Vec<libc::iovec> = (0..pieces)
        .step_by(pieces_per_buffer)
        .map(|first| libc::iovec {
            iov_base: region
                .memory()
                .base()
                .as_ptr()
                .wrapping_add(first * stride)
                .cast(),
            iov_len: (pieces - first).min(pieces_per_buffer) * stride,
        })
        .collect();
    if buffers.len() > FIXED_BUFFERS {
        tracing::warn!(
            buffers = buffers.len(),
            "too many fixed buffers; using plain ones"
        );
        return;
    }
    let Ok(pieces_per_buffer) = u32::try_from(pieces_per_buffer) else {
        return;
    };
    // SAFETY: the addresses are the region's memory. The kernel pins its pages, so even memory unmapped later stays
    // valid for it; entries only use a fixed buffer together with an IoBuf of the region.
    match unsafe { ring.register_buffers(&buffers) } {
        Ok(()) => region.set_registration(Registration {
            ring_id,
            pieces_per_buffer,
        }),
        Err(error) => tracing::warn!(
            %error,
            bytes = pieces * stride,
            "buffers cannot be registered (limit on locked memory: ulimit -l, LimitMEMLOCK); using plain ones"
        ),
    }
}
