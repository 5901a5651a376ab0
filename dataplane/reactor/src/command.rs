//! Commands to a driver (IORING_OP_URING_CMD with 128-byte entries), for FUSE over io_uring.

use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

use io_uring::squeue::Entry128;
use io_uring::{opcode, types};

use crate::buffer::{IoBuf, Place};
use crate::executor::with_core;
use crate::fd::Fd;
use crate::op::{Op, count, room};
use crate::ring::{Kind, Payload};

/// Bytes of a command that are the driver's.
pub const COMMAND_BYTES: usize = 80;

/// Offset of `len` in a submission entry (`struct io_uring_sqe`).
const LEN_AT: usize = 24;
const _: () = assert!(size_of::<Entry128>() == 128 && size_of::<libc::iovec>() == 16);

/// Two parts of a place that a command tells the driver, as an array of two `struct iovec`.
#[derive(Clone, Debug)]
pub struct Segments {
    /// Where in the place the array is written: 32 bytes that no part overlaps.
    pub table_at: usize,
    /// The parts, in bytes from the start of the place.
    pub parts: [Range<usize>; 2],
}

impl Fd {
    /// One command; completes when the driver says so. `WouldBlock` while a range of the place is still held by somebody,
    /// `Unsupported` on a ring that was made without `wide_entries`. When the future is dropped the operation keeps the
    /// place until the driver ends it.
    ///
    /// # Safety
    /// Until the command completes, the driver must touch no memory but the place, whatever it was told by this or an
    /// earlier command.
    ///
    /// # Panics
    /// Outside of a reactor thread, and if the segments are not inside of the place.
    pub async unsafe fn command(
        &self,
        op: u32,
        area: [u8; COMMAND_BYTES],
        place: &Place,
        segments: Option<Segments>,
    ) -> io::Result<usize> {
        room().await;
        if !with_core(|core| core.driver.borrow().is_wide()) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let Some(mut buf) = place.take() else {
            return Err(io::ErrorKind::WouldBlock.into());
        };
        let command = opcode::UringCmd80::new(types::Fd(self.as_fd().as_raw_fd()), op).cmd(area);
        let entry = match segments {
            None => command.build(),
            Some(segments) => {
                let table = write_table(&mut buf, &segments);
                with_len(command.addr(Some(table)).build(), 2)
            }
        };
        // SAFETY: the addresses are in the payload's buffer, which keeps its place when it moves, and by the caller's
        // promise the driver uses no others; the descriptor is kept by the payload.
        let op = unsafe {
            Op::start(Kind::Pending, |_| {
                (
                    entry,
                    Payload {
                        buf: Some(buf),
                        keep: self.keep(),
                    },
                )
            })
        };
        let (result, _) = op.await;
        count(result)
    }
}

/// Writes the array into the buffer and says its address.
fn write_table(buf: &mut IoBuf, segments: &Segments) -> u64 {
    let start = buf.start().as_ptr();
    let mut at = segments.table_at;
    let table = at..at + 2 * size_of::<libc::iovec>();
    for part in &segments.parts {
        assert!(
            part.start <= part.end && part.end <= buf.len(),
            "a segment {part:?} of {} bytes",
            buf.len()
        );
        assert!(
            part.end <= table.start || table.end <= part.start,
            "the segment {part:?} overlaps the table at {table:?}"
        );
        // struct iovec: address and length, in the machine's order.
        let base = start.wrapping_add(part.start).expose_provenance();
        buf[at..at + 8].copy_from_slice(&base.to_ne_bytes());
        buf[at + 8..at + 16].copy_from_slice(&part.len().to_ne_bytes());
        at += size_of::<libc::iovec>();
    }
    start.wrapping_add(table.start).expose_provenance() as u64
}

/// The entry with its field `len`, for which the crate has no setter.
fn with_len(entry: Entry128, len: u32) -> Entry128 {
    // SAFETY: an entry is 128 initialised bytes without padding (repr(C) over the kernel's structure, made from zeros).
    let mut bytes = unsafe { std::mem::transmute::<Entry128, [u8; 128]>(entry) };
    bytes[LEN_AT..LEN_AT + 4].copy_from_slice(&len.to_ne_bytes());
    // SAFETY: as above; any bytes are an entry, and only a length was changed.
    unsafe { std::mem::transmute::<[u8; 128], Entry128>(bytes) }
}
