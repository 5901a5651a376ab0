//! TCP: connections that are made, and transfers of whole buffers. What is listened on is bound with the standard library
//! and then is an [`Fd`] like any other.

use std::io;
use std::net::SocketAddr;

use io_uring::{opcode, types};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::os::fd::AsRawFd;

use crate::buffer::IoBuf;
use crate::fd::Fd;
use crate::op::{Op, count, room};
use crate::ring::{Kind, Payload};

/// `struct sockaddr_in` and `struct sockaddr_in6`, bytes.
const SOCKADDR_IN: usize = 16;
const SOCKADDR_IN6: usize = 28;
const _: () = assert!(
    size_of::<libc::sockaddr_in>() == SOCKADDR_IN
        && size_of::<libc::sockaddr_in6>() == SOCKADDR_IN6
);

impl Fd {
    /// A TCP connection to an address; close-on-exec, without Nagle's delay. Waits as long as the kernel does: bound it with
    /// [`timeout`](crate::timeout). When the future is dropped, so is the connection.
    ///
    /// # Errors
    /// Of socket(2) and connect(2).
    ///
    /// # Panics
    /// Outside of a reactor thread.
    pub async fn connect(address: SocketAddr) -> io::Result<Fd> {
        let family = match address {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let socket =
            rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        rustix::net::sockopt::set_tcp_nodelay(&socket, true)?;
        let fd = Fd::from(socket);
        room().await;
        let buf = sockaddr(address);
        // SAFETY: the address and its length are those of the payload's buffer, which keeps its place when it moves; the
        // descriptor is kept by the payload.
        let op = unsafe {
            Op::start(Kind::Pending, |_| {
                let target = types::Fd(Fd::as_fd(&fd).as_raw_fd());
                let len = libc::socklen_t::try_from(buf.len()).unwrap_or(0);
                let entry = opcode::Connect::new(target, buf.start().as_ptr().cast(), len).build();
                (
                    entry,
                    Payload {
                        buf: Some(buf),
                        keep: fd.keep(),
                    },
                )
            })
        };
        let (result, _) = op.await;
        count(result)?;
        Ok(fd)
    }

    /// Fills the whole buffer. Fewer bytes come only at the end of the stream.
    ///
    /// # Panics
    /// Outside of a reactor thread.
    pub async fn recv_whole(&self, mut buf: IoBuf) -> (io::Result<usize>, IoBuf) {
        let mut done = buf.split_to(0);
        while !buf.is_empty() {
            let (got, back) = self
                .transfer(buf, |fd, start, len| {
                    opcode::Recv::new(fd, start, len)
                        .flags(libc::MSG_WAITALL)
                        .build()
                })
                .await;
            buf = back;
            match got {
                Ok(0) => break,
                Ok(n) => join(&mut done, buf.split_to(n.min(buf.len()))),
                Err(error) => {
                    join(&mut done, buf);
                    return (Err(error), done);
                }
            }
        }
        let n = done.len();
        join(&mut done, buf);
        (Ok(n), done)
    }

    /// Sends the whole buffer.
    ///
    /// # Panics
    /// Outside of a reactor thread.
    pub async fn send_whole(&self, mut buf: IoBuf) -> (io::Result<()>, IoBuf) {
        let mut done = buf.split_to(0);
        let mut result = Ok(());
        while !buf.is_empty() && result.is_ok() {
            let (sent, back) = self
                .transfer(buf, |fd, start, len| {
                    opcode::Send::new(fd, start, len)
                        .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
                        .build()
                })
                .await;
            buf = back;
            match sent {
                Ok(0) => result = Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => join(&mut done, buf.split_to(n.min(buf.len()))),
                Err(error) => result = Err(error),
            }
        }
        join(&mut done, buf);
        (result, done)
    }
}

/// Puts two neighbours of one buffer together again.
fn join(head: &mut IoBuf, tail: IoBuf) {
    assert!(
        head.unsplit(tail).is_ok(),
        "two neighbours of one buffer are not"
    );
}

/// The address as the kernel takes it (`struct sockaddr_in` or `sockaddr_in6`).
fn sockaddr(address: SocketAddr) -> IoBuf {
    let port = address.port().to_be_bytes();
    match address {
        SocketAddr::V4(v4) => {
            let mut buf = IoBuf::alloc(SOCKADDR_IN);
            buf[..2].copy_from_slice(&family(libc::AF_INET));
            buf[2..4].copy_from_slice(&port);
            buf[4..8].copy_from_slice(&v4.ip().octets());
            buf
        }
        SocketAddr::V6(v6) => {
            let mut buf = IoBuf::alloc(SOCKADDR_IN6);
            buf[..2].copy_from_slice(&family(libc::AF_INET6));
            buf[2..4].copy_from_slice(&port);
            buf[4..8].copy_from_slice(&v6.flowinfo().to_be_bytes());
            buf[8..24].copy_from_slice(&v6.ip().octets());
            buf[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
            buf
        }
    }
}

fn family(number: i32) -> [u8; 2] {
    libc::sa_family_t::try_from(number)
        .unwrap_or(0)
        .to_ne_bytes()
}
