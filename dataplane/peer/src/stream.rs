//! One TCP connection, both ways: frames that come in are cut out of the stream, frames that go out wait in a queue.

use crate::frame::{FrameError, HEADER_BYTES, Header};
use event_listener::Event;
use fastcache_reactor::sync::Mutex;
use fastcache_reactor::{Fd, IoBuf, timeout};
use rustix::net::Shutdown;
use std::any::Any;
use std::collections::VecDeque;
use std::io;
use std::sync::PoisonError;
use std::time::Duration;

/// Bytes read ahead of the frames they are in. A longer payload is received where it belongs.
const STAGING: usize = 64 << 10;
/// Headers without payload that go out in one write.
const HEADERS_MAX: usize = 128;
/// A payload up to this length is copied behind its header, so that both go out in one write with others.
const COPY_MAX: usize = 8 << 10;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// Of the socket.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It was closed.
    #[error("the connection was closed")]
    Ended,
    /// It was closed in the middle of a frame.
    #[error("the connection was cut in the middle of a frame")]
    Cut,
    /// What came cannot be used.
    #[error("{0}")]
    Frame(#[from] FrameError),
}

impl Broken {
    /// The other end takes nothing, or sends nothing in the middle of a frame.
    pub(crate) fn stalled() -> Broken {
        Broken::Io(io::ErrorKind::TimedOut.into())
    }
}

/// What comes in.
pub(crate) struct Incoming {
    stream: Fd,
    staging: IoBuf,
    /// Range of `staging` that came and was not taken.
    from: usize,
    to: usize,
}

impl Incoming {
    pub(crate) fn new(stream: Fd) -> Incoming {
        Incoming {
            stream,
            staging: IoBuf::alloc(STAGING),
            from: 0,
            to: 0,
        }
    }

    /// The next frame's header; its payload has to be taken before the next one. `None`: the stream ended between frames.
    pub(crate) async fn header(&mut self) -> Result<Option<Header>, Broken> {
        loop {
            let staged = &self.staging[self.from..self.to];
            if let Some(bytes) = staged.first_chunk::<HEADER_BYTES>() {
                let header = Header::parse(bytes)?;
                self.from += HEADER_BYTES;
                return Ok(Some(header));
            }
            if self.fill().await? == 0 {
                return match self.from == self.to {
                    true => Ok(None),
                    false => Err(Broken::Cut),
                };
            }
        }
    }

    async fn fill(&mut self) -> io::Result<usize> {
        self.staging.copy_within(self.from..self.to, 0);
        self.to -= self.from;
        self.from = 0;
        let free = self.staging.split_off(self.to);
        let (got, free) = self.stream.recv(free).await;
        join(&mut self.staging, free);
        let n = got?;
        self.to += n;
        Ok(n)
    }

    /// The payload of the header that came last, into `buf`, which is as long; verified.
    pub(crate) async fn payload(
        &mut self,
        header: &Header,
        mut buf: IoBuf,
    ) -> Result<IoBuf, Broken> {
        assert_eq!(buf.len(), header.payload as usize, "room for a payload");
        let staged = (self.to - self.from).min(buf.len());
        buf[..staged].copy_from_slice(&self.staging[self.from..self.from + staged]);
        self.from += staged;
        if staged < buf.len() {
            let rest = buf.split_off(staged);
            let wanted = rest.len();
            let (got, rest) = self.stream.recv_whole(rest).await;
            join(&mut buf, rest);
            if got? < wanted {
                return Err(Broken::Cut);
            }
        }
        header.verify(&buf)?;
        Ok(buf)
    }

    /// Reads a payload that nobody wants.
    pub(crate) async fn skip(&mut self, header: &Header) -> Result<(), Broken> {
        let mut left = header.payload as usize;
        loop {
            let staged = (self.to - self.from).min(left);
            self.from += staged;
            left -= staged;
            if left == 0 {
                return Ok(());
            }
            if self.fill().await? == 0 {
                return Err(Broken::Cut);
            }
        }
    }
}

/// Puts two neighbours of one buffer together again.
pub(crate) fn join(head: &mut IoBuf, tail: IoBuf) {
    assert!(
        head.unsplit(tail).is_ok(),
        "two neighbours of one buffer are not"
    );
}

/// Kept until a frame was sent, or never will be.
pub(crate) type Held = Option<Box<dyn Any + Send>>;

/// A frame that goes out.
pub(crate) enum Out {
    /// Without payload.
    Header([u8; HEADER_BYTES]),
    /// Header and payload in one buffer.
    Whole(IoBuf),
}

#[derive(Default)]
struct Queue {
    frames: VecDeque<(Out, Held)>,
    is_closed: bool,
}

/// What goes out. Bounded by who puts frames in: one for each request that is in flight, and one for each that was cancelled.
#[derive(Default)]
pub(crate) struct Outbox {
    queue: Mutex<Queue>,
    changed: Event,
}

impl Outbox {
    fn queue(&self) -> fastcache_reactor::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a frame. False when nothing goes out any more.
    pub(crate) fn push(&self, out: Out, held: Held) -> bool {
        {
            let mut queue = self.queue();
            if queue.is_closed {
                return false;
            }
            queue.frames.push_back((out, held));
        }
        self.changed.notify(1);
        true
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.queue().is_closed
    }

    /// Drops what is queued; nothing goes out any more.
    pub(crate) fn close(&self) {
        let frames = {
            let mut queue = self.queue();
            queue.is_closed = true;
            std::mem::take(&mut queue.frames)
        };
        drop(frames);
        self.changed.notify(usize::MAX);
    }

    /// Sends what is queued, for ever. Returns when the outbox is closed or the stream takes no more: or not within
    /// `patience`, of which each write has its own.
    pub(crate) async fn run(&self, stream: &Fd, patience: Option<Duration>) -> Result<(), Broken> {
        let mut staging = IoBuf::alloc(HEADERS_MAX * HEADER_BYTES + COPY_MAX);
        loop {
            let listener = self.changed.listen();
            let mut used = 0;
            let mut large = None;
            let mut held = Vec::new();
            {
                let mut queue = self.queue();
                if queue.is_closed {
                    return Ok(());
                }
                while large.is_none()
                    && let Some((out, hold)) = queue.frames.pop_front()
                {
                    let bytes: &[u8] = match &out {
                        Out::Header(bytes) => bytes,
                        Out::Whole(buf) => buf,
                    };
                    if let Some(place) = staging.get_mut(used..used + bytes.len())
                        && bytes.len() <= COPY_MAX
                    {
                        place.copy_from_slice(bytes);
                        used += bytes.len();
                        held.push(hold);
                    } else if used == 0 {
                        large = Some((out, hold));
                    } else {
                        // After what was gathered.
                        queue.frames.push_front((out, hold));
                        break;
                    }
                }
            }
            if used > 0 {
                let part = staging.split_to(used);
                let mut part = send(stream, part, patience).await?;
                join(&mut part, staging);
                staging = part;
            } else if let Some((Out::Whole(buf), hold)) = large {
                send(stream, buf, patience).await?;
                drop(hold);
            } else {
                listener.await;
            }
            drop(held);
        }
    }
}

async fn send(stream: &Fd, buf: IoBuf, patience: Option<Duration>) -> Result<IoBuf, Broken> {
    let sending = stream.send_whole(buf);
    let (sent, buf) = match patience {
        Some(patience) => {
            let sent = timeout(patience, sending).await;
            sent.map_err(|_| Broken::stalled())?
        }
        None => sending.await,
    };
    sent?;
    Ok(buf)
}

/// Ends a connection for both directions, so that whoever waits on it goes on.
pub(crate) fn hang_up(stream: &Fd) {
    // It may be gone already.
    let _ = rustix::net::shutdown(stream.as_fd(), Shutdown::Both);
}
