//! How a lane begins: connect, take the hello and the arena's descriptor, answer.
//!
//! Blocking, with time-outs, on a thread for blocking work: the descriptor arrives as ancillary data, which
//! tokio's streams do not carry.

use fastcache_api::control::{CONTROL_VERSION, ClientHello, ServerHello};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Longest a hello may take.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// Longest hello, bytes.
const HELLO_MAX: usize = 4096;

/// Connects one lane and takes its hello.
pub(super) fn hello(socket: &Path) -> io::Result<(UnixStream, ServerHello, OwnedFd)> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(HELLO_DEADLINE))?;
    stream.set_write_timeout(Some(HELLO_DEADLINE))?;
    let mut head = [0u8; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let got = {
        let mut iov = [IoSliceMut::new(&mut head)];
        recvmsg(&stream, &mut iov, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?
    };
    if got.bytes == 0 {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the data plane closed the connection",
        ));
    }
    let mut fd = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            fd = fds.last();
        }
    }
    stream.read_exact(&mut head[got.bytes..])?;
    let len = usize::try_from(u32::from_le_bytes(head)).unwrap_or(usize::MAX);
    if len > HELLO_MAX {
        return Err(bad("its hello is too long: not a fastcache data plane?"));
    }
    let mut body = vec![0; len];
    stream.read_exact(&mut body)?;
    let hello: ServerHello =
        postcard::from_bytes(&body).map_err(|_| bad("its hello cannot be understood"))?;
    if hello.version != CONTROL_VERSION {
        return Err(bad(&format!(
            "it speaks version {} of the control protocol, this agent {CONTROL_VERSION}; \
             use binaries of one release",
            hello.version
        )));
    }
    let fd = fd.ok_or_else(|| bad("its hello carries no arena"))?;
    Ok((stream, hello, fd))
}

/// Answers the hello of a lane; the stream is nonblocking afterwards.
pub(super) fn answer(mut stream: UnixStream, hello: &ClientHello) -> io::Result<UnixStream> {
    let body = postcard::to_stdvec(hello).map_err(|_| bad("hello cannot be encoded"))?;
    let len = u32::try_from(body.len()).map_err(|_| bad("hello is too long"))?;
    let mut frame = len.to_le_bytes().to_vec();
    frame.extend_from_slice(&body);
    stream.write_all(&frame)?;
    stream.set_read_timeout(None)?;
    stream.set_write_timeout(None)?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

fn bad(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.to_owned())
}
