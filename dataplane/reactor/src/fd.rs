//! Sockets and character devices: everything that is read and written without an offset.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use io_uring::{opcode, squeue, types};

use crate::buffer::IoBuf;
use crate::op::{MultiOp, Op, count, length, returned, room};
use crate::ring::{Keep, Kind, Payload};

/// Offset that means the file's current position, and nothing for sockets and character devices.
const NO_OFFSET: u64 = u64::MAX;

/// A descriptor, shared by its clones and by the operations on it; closed with the last of them. An operation whose
/// future is dropped is cancelled: data it had received is lost.
#[derive(Clone)]
pub struct Fd {
    fd: Arc<OwnedFd>,
}

impl From<OwnedFd> for Fd {
    fn from(fd: OwnedFd) -> Self {
        Fd { fd: Arc::new(fd) }
    }
}

impl AsFd for Fd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl fmt::Debug for Fd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Fd").field(&self.fd.as_raw_fd()).finish()
    }
}

impl Fd {
    /// The descriptor.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// One read(2) into the buffer. Waits for data; only devices that the ring cannot wait for (`/dev/fuse`) give
    /// `WouldBlock` when they are nonblocking, and then [`Fd::poller`] tells when to read again.
    ///
    /// # Panics
    /// Outside of a reactor thread.
    pub async fn read(&self, buf: IoBuf) -> (io::Result<usize>, IoBuf) {
        self.transfer(buf, |fd, start, len| {
            opcode::Read::new(fd, start, len).offset(NO_OFFSET).build()
        })
        .await
    }

    /// One write(2) of the buffer; it may take fewer bytes.
    ///
    /// # Panics
    /// Outside of a reactor thread.
    pub async fn write(&self, buf: IoBuf) -> (io::Result<usize>, IoBuf) {
        self.transfer(buf, |fd, start, len| {
            opcode::Write::new(fd, start, len).offset(NO_OFFSET).build()
        })
        .await
    }

    /// One recv(2) into the buffer; 0 bytes means the peer closed.
    ///
    /// # Panics
    /// Outside of a reactor thread.
    pub async fn recv(&self, buf: IoBuf) -> (io::Result<usize>, IoBuf) {
        self.transfer(buf, |fd, start, len| {
            opcode::Recv::new(fd, start, len).build()
        })
        .await
    }

    /// One send(2) of the buffer with MSG_NOSIGNAL; it may take fewer bytes.
    ///
    /// # Panics
    /// Outside of a reactor thread.
    pub async fn send(&self, buf: IoBuf) -> (io::Result<usize>, IoBuf) {
        self.transfer(buf, |fd, start, len| {
            opcode::Send::new(fd, start, len)
                .flags(libc::MSG_NOSIGNAL)
                .build()
        })
        .await
    }

    pub(crate) async fn transfer(
        &self,
        buf: IoBuf,
        make: impl FnOnce(types::Fd, *mut u8, u32) -> squeue::Entry,
    ) -> (io::Result<usize>, IoBuf) {
        room().await;
        // SAFETY: the address and length are those of the payload's buffer, which keeps its place when it moves; the
        // descriptor is kept by the payload.
        let op = unsafe {
            Op::start(Kind::Pending, |_| {
                let entry = make(self.target(), buf.start().as_ptr(), length(&buf));
                (
                    entry,
                    Payload {
                        buf: Some(buf),
                        keep: self.keep(),
                    },
                )
            })
        };
        let (result, payload) = op.await;
        (count(result), returned(payload))
    }

    /// The next connection of a listening socket. Close-on-exec, blocking mode (which is right for a ring).
    ///
    /// # Panics
    /// Outside of a reactor thread.
    pub async fn accept(&self) -> io::Result<Fd> {
        room().await;
        // SAFETY: the entry has no address; the descriptor is kept by the payload.
        let op = unsafe {
            Op::start(Kind::Accept, |_| {
                let null = std::ptr::null_mut();
                let entry = opcode::Accept::new(self.target(), null, std::ptr::null_mut())
                    .flags(libc::SOCK_CLOEXEC)
                    .build();
                (
                    entry,
                    Payload {
                        buf: None,
                        keep: self.keep(),
                    },
                )
            })
        };
        let (result, _) = op.await;
        if result < 0 {
            return Err(io::Error::from_raw_os_error(result.wrapping_neg()));
        }
        // SAFETY: the kernel made this descriptor for this operation, and nobody else was told.
        Ok(Fd::from(unsafe { OwnedFd::from_raw_fd(result) }))
    }

    /// Waits until a read would not block: there is data, the end, or an error to be read.
    ///
    /// # Panics
    /// Outside of a reactor thread.
    pub async fn readable(&self) -> io::Result<()> {
        room().await;
        // SAFETY: the entry has no address; the descriptor is kept by the payload.
        let op = unsafe {
            Op::start(Kind::Pending, |_| {
                let entry = opcode::PollAdd::new(self.target(), POLL_IN).build();
                (
                    entry,
                    Payload {
                        buf: None,
                        keep: self.keep(),
                    },
                )
            })
        };
        let (result, _) = op.await;
        count(result).map(drop)
    }

    /// A standing poll for readability, for one reader that takes everything there is after each event.
    pub fn poller(&self) -> Poller {
        Poller {
            fd: self.clone(),
            op: None,
            not_send: PhantomData,
        }
    }

    fn target(&self) -> types::Fd {
        types::Fd(self.fd.as_raw_fd())
    }

    pub(crate) fn keep(&self) -> Keep {
        Keep::Fd(self.fd.clone())
    }
}

/// POLLIN as the kernel's entry takes it.
const POLL_IN: u32 = 1;
const _: () = assert!(libc::POLLIN == 1);

/// A multishot poll: one entry, many events. Edge-triggered: an event means that something arrived since the last one.
pub struct Poller {
    fd: Fd,
    op: Option<MultiOp>,
    not_send: PhantomData<*const ()>,
}

impl Poller {
    /// Waits for the next event; several since the last call count as one. Armed again by itself when the kernel ends
    /// it (then, as at the first call, a descriptor that is readable already gives an event at once).
    ///
    /// # Panics
    /// Outside of a reactor thread.
    pub async fn next(&mut self) -> io::Result<()> {
        let op = match &mut self.op {
            Some(op) => op,
            None => {
                room().await;
                // SAFETY: the entry has no address; the descriptor is kept by the payload.
                let op = unsafe {
                    MultiOp::start(|_| {
                        let entry = opcode::PollAdd::new(self.fd.target(), POLL_IN)
                            .multi(true)
                            .build();
                        (
                            entry,
                            Payload {
                                buf: None,
                                keep: self.fd.keep(),
                            },
                        )
                    })
                };
                self.op.insert(op)
            }
        };
        let result = op.next().await;
        if op.has_ended() {
            self.op = None;
        }
        count(result).map(drop)
    }
}
