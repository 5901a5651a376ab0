//! A lane's socket. It is registered for what comes alone: one that is registered for writing, too, wakes its owner each
//! time the other end has read something, once for every answer.

use bytes::BytesMut;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Most bytes of one read.
const READ_BYTES: usize = 64 << 10;

/// What comes.
pub(super) struct Reader {
    socket: AsyncFd<UnixStream>,
    piece: Box<[u8]>,
}

/// What goes.
pub(super) struct Writer(UnixStream);

pub(super) type Ends = (Reader, Writer);

/// Both, of a socket that does not block. Inside the runtime that is to read it.
pub(super) fn split(socket: UnixStream) -> io::Result<Ends> {
    let writer = Writer(socket.try_clone()?);
    let reader = Reader {
        socket: registered(socket, Interest::READABLE)?,
        piece: vec![0; READ_BYTES].into_boxed_slice(),
    };
    Ok((reader, writer))
}

#[expect(
    deprecated,
    reason = "its successor is unsafe, for types that may close what they own; a UnixStream keeps its descriptor"
)]
fn registered(socket: UnixStream, interest: Interest) -> io::Result<AsyncFd<UnixStream>> {
    AsyncFd::with_interest(socket, interest)
}

impl Reader {
    /// Waits for bytes and appends them; how many, 0 at the end.
    pub(super) async fn read(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        loop {
            let mut ready = self.socket.readable().await?;
            match ready.try_io(|socket| socket.get_ref().read(&mut self.piece)) {
                Ok(Ok(len)) => {
                    if len < self.piece.len() {
                        // There is no more: what comes from now on says so.
                        ready.clear_ready();
                    }
                    buffer.extend_from_slice(&self.piece[..len]);
                    return Ok(len);
                }
                Ok(Err(error)) if error.kind() == ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
    }
}

impl Writer {
    /// Writes all of it, waiting where the socket is full.
    pub(super) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match (&self.0).write(bytes) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(len) => bytes = &bytes[len..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let full = registered(self.0.try_clone()?, Interest::WRITABLE)?;
                    let _ = full.writable().await?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// More than a socket takes at once goes through, in order, and its end is told.
    #[tokio::test]
    async fn a_full_socket_is_waited_for() {
        let (one, other) = UnixStream::pair().unwrap();
        for socket in [&one, &other] {
            socket.set_nonblocking(true).unwrap();
        }
        let sent: Vec<u8> = (0..4_000_000u32).map(|n| (n % 251) as u8).collect();
        let bytes = sent.clone();
        let writing = tokio::spawn(async move {
            let (_reader, writer) = split(one).unwrap();
            writer.write_all(&bytes).await
        });
        let (mut reader, _writer) = split(other).unwrap();
        let mut got = BytesMut::new();
        let reading = async {
            while reader.read(&mut got).await.unwrap() > 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), reading)
            .await
            .unwrap();
        assert!(got == sent, "{} of {} bytes", got.len(), sent.len());
        writing.await.unwrap().unwrap();
    }
}
