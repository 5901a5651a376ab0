//! `/dev/fuse` read and written on the core's ring.
//!
//! A core's buffer while a request is in it; the kernel writes header, arguments and data of a WRITE in one piece, and
//! takes header and data of a READ's answer in one piece, so both are placed to put the data on a page of its own:
//!
//! ```text
//!  0              4016     4056          4096                                   4096 + 1 MiB
//!  |   unused     | header | WRITE args  | data of a WRITE, page-aligned           |
//!  |   unused     | header | arguments of another request, names …                 |
//!  |   unused                   | header | data of a READ's answer, page-aligned    |
//!                               4080     4096
//! ```
//!
//! Workers are tasks that receive a request each and finish it; see [`super::gate`] for whose turn it is. A request
//! that needs no payload gives its buffer back before it is handled. READ and WRITE hold theirs while they wait for a
//! tier, within a budget: READs beyond it wait in line without a buffer, so that everything else goes on.
//! Small answers are written with write(2) at once, which neither blocks nor needs a buffer; contents go through the ring.

use super::Transport;
use super::gate::{Budget, Gate, READS_MAX, Seat};
use super::interrupt::{Way, can_be_given_up, watch};
use crate::handlers::Handlers;
use crate::handshake::Negotiated;
use crate::mount::{Connection, open_device};
use crate::reply::{OUT_HEADER, Reply, encode, out_header};
use crate::request::{Op, ParseError, parse, parse_header};
use crate::wire::{InHeader, InterruptIn, ReadIn, WriteIn};
use fastcache_api::{Errno, Ino};
use fastcache_reactor::{BufPool, Fd, IoBuf, Poller, pool, sleep, spawn};
use fastcache_types::{BLOCK, REQUEST_MAX};
use rustix::io::Errno as OsErrno;
use smallvec::SmallVec;
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;
use zerocopy::{FromBytes, IntoBytes};

/// Bytes of a WRITE in front of its data.
const WRITE_HEAD: usize = size_of::<InHeader>() + size_of::<WriteIn>();
/// Where in the buffer a request is received.
const RECEIVE_AT: usize = BLOCK - WRITE_HEAD;
/// Least size of the core's pool buffers, bytes: a READ that does not start on a block needs one block more than it asks for.
pub const BUFFER_MIN: usize = 2 * BLOCK + REQUEST_MAX;
/// Least number of buffers a session is served with.
pub(super) const BUFFERS_MIN: usize = BUFFERS_TO_RECEIVE + BUFFERS_FOR_OTHERS + 4;
/// Buffers of a core's pool that requests in work leave to the other users of the pool: uploads make room for writes.
const BUFFERS_FOR_OTHERS: usize = 4;
/// Buffers that READs leave free beyond these: to receive with.
const BUFFERS_TO_RECEIVE: usize = READS_MAX;
/// Most requests in work on a core. Each is a task of some kilobytes; beyond it they wait in the kernel.
const WORKERS_MAX: usize = 4096;
/// Bytes of a request without payload kept in the worker itself; longer ones (long names, values) go on the heap.
pub(super) const BODY_INLINE: usize = 320;
/// Pause after an unexpected error of the device, so that a broken one does not burn a core.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

/// The device's ioctl that makes a descriptor a further one of a connection: `_IOR(229, 0, uint32_t)`.
const DEV_IOC_CLONE: rustix::ioctl::Opcode = rustix::ioctl::opcode::read::<u32>(229, 0);

/// One core's share of a mount, before it is served.
#[derive(Debug)]
pub struct Session {
    pub(super) device: OwnedFd,
    pub(super) connection: Arc<Connection>,
}

impl Session {
    /// A descriptor of its own for the connection: its requests in work are not shared with other cores'.
    pub(crate) fn clone_from(connection: Arc<Connection>) -> io::Result<Session> {
        let device = open_device()?;
        let number = u32::try_from(connection.device.as_raw_fd())
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: FUSE_DEV_IOC_CLONE reads one u32, the number of a descriptor, and keeps no pointer.
        unsafe {
            rustix::ioctl::ioctl(
                &device,
                rustix::ioctl::Setter::<DEV_IOC_CLONE, u32>::new(number),
            )?;
        }
        Ok(Session { device, connection })
    }

    /// What was agreed on with the kernel.
    #[must_use]
    pub fn negotiated(&self) -> Negotiated {
        self.connection.negotiated
    }
}

impl Transport for Session {
    async fn serve(self, handlers: Handlers) {
        let buffers = pool().buffers();
        self.serve_with(handlers, buffers).await;
    }
}

impl Session {
    /// Serves with at most so many buffers of the core's pool.
    pub(super) async fn serve_with(self, handlers: Handlers, buffers: usize) {
        let reserved = BUFFERS_TO_RECEIVE + BUFFERS_FOR_OTHERS;
        assert!(
            buffers > reserved,
            "the pool has {buffers} buffers, FUSE needs more than {reserved}"
        );
        let answers = match self.device.try_clone() {
            Ok(answers) => Arc::new(answers),
            Err(error) => {
                tracing::error!(target: "fuse", %error, "a core cannot serve the mount: raise the limit of open files");
                return;
            }
        };
        let server = Rc::new(Server {
            handlers,
            setxattr_ext: self.connection.negotiated.setxattr_ext(),
            connection: self.connection,
            device: Fd::from(self.device),
            answers,
            poller: RefCell::new(None),
            budget: Budget::new(buffers - reserved, buffers - BUFFERS_FOR_OTHERS),
            pool: pool(),
            gate: Gate::new(),
            workers: Cell::new(0),
            waiting_for_end: RefCell::new(None),
        });
        server.call_workers();
        server.ended().await;
        tracing::debug!(target: "fuse", "a core's session has ended");
    }
}

/// A core's session while it is served.
struct Server {
    handlers: Handlers,
    setxattr_ext: bool,
    connection: Arc<Connection>,
    device: Fd,
    /// The same descriptor once more, for the answer to a request that is given up: any core may send that.
    answers: Arc<OwnedFd>,
    /// Not here while the worker that waits for a request has it.
    poller: RefCell<Option<Poller>>,
    pool: BufPool,
    gate: Gate,
    budget: Budget,
    workers: Cell<usize>,
    waiting_for_end: RefCell<Option<Waker>>,
}

/// Whether a request in work can be given up, and is noted as such.
#[derive(Default)]
pub(super) struct InWork {
    pub(super) is_noted: Cell<bool>,
    /// It has begun to change something: from now on it is finished.
    pub(super) is_past_return: Cell<bool>,
}

/// What came of a turn.
enum Received {
    /// A request: its bytes start at the beginning of the buffer.
    Request(IoBuf, usize),
    /// The turn was given up: others are at it.
    TurnGone,
    /// The mount is gone.
    Closed,
}

impl Server {
    /// Gives free turns to waiting workers, and to new ones where none waits.
    fn call_workers(self: &Rc<Self>) {
        while self.gate.has_turn() {
            if self.gate.call_one() {
                continue;
            }
            if self.workers.get() == WORKERS_MAX || !self.gate.try_enter() {
                return;
            }
            self.workers.set(self.workers.get() + 1);
            spawn(Rc::clone(self).work()).detach();
        }
    }

    /// Waits until no worker is left.
    async fn ended(&self) {
        poll_fn(|cx| {
            if self.workers.get() == 0 {
                return Poll::Ready(());
            }
            *self.waiting_for_end.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// A worker: receives requests and finishes them. It starts with a turn.
    async fn work(self: Rc<Self>) {
        let seat = Rc::new(Seat::default());
        while self.take_turns(&seat).await {}
        self.workers.set(self.workers.get() - 1);
        if self.workers.get() == 0
            && let Some(waker) = self.waiting_for_end.take()
        {
            waker.wake();
        }
    }

    /// Uses a turn until it is gone, then waits for the next. False when there will be none.
    async fn take_turns(self: &Rc<Self>, seat: &Rc<Seat>) -> bool {
        loop {
            match self.receive().await {
                Received::Request(buf, len) => {
                    self.call_workers();
                    let header = parse_header(&buf, len).ok();
                    let in_work = InWork::default();
                    let mut finish = pin!(self.finish(buf, len, &in_work));
                    if poll_once(finish.as_mut()).await.is_pending() {
                        self.note(header, &in_work);
                        // It waits for something: the next worker receives meanwhile.
                        self.gate.leave();
                        self.call_workers();
                        finish.await;
                        if !self.gate.try_enter() {
                            return self.gate.wait(seat).await;
                        }
                    }
                }
                Received::TurnGone => return self.gate.wait(seat).await,
                Received::Closed => {
                    self.gate.leave();
                    self.gate.close();
                    return false;
                }
            }
        }
    }

    /// Receives one request, with a turn. One worker of the core waits for it in the kernel; the others look whether
    /// there is one now.
    async fn receive(&self) -> Received {
        self.budget.may_receive().await;
        let mut buf = self.receive_buffer().await;
        loop {
            if self.gate.is_closed() {
                return Received::Closed;
            }
            let waits = self.gate.try_wait_alone();
            let result = if waits {
                let result;
                (result, buf) = self.await_request(buf).await;
                self.gate.has_waited();
                result
            } else {
                rustix::io::read(&self.device, &mut buf[..]).map_err(io::Error::from)
            };
            let error = match result {
                Ok(len) if waits => {
                    self.gate.on_request(self.workers.get() - self.gate.idle());
                    return Received::Request(buf, len);
                }
                Ok(len) => {
                    self.gate.on_request_at_once();
                    return Received::Request(buf, len);
                }
                Err(error) => error,
            };
            match OsErrno::from_io_error(&error) {
                Some(OsErrno::AGAIN) => {
                    self.gate.on_empty();
                    return Received::TurnGone;
                }
                // The request was taken back while it was being read.
                Some(OsErrno::INTR | OsErrno::NOENT) => {}
                Some(OsErrno::NODEV | OsErrno::CONNABORTED) => return Received::Closed,
                _ => {
                    tracing::warn!(target: "fuse", %error, "reading the FUSE device failed");
                    sleep(ERROR_PAUSE).await;
                }
            }
        }
    }

    /// One read of the device, which waits for a request. On the ring it waits although the descriptor is nonblocking;
    /// kernels before 5.18 tell that there is nothing, and then poll.
    async fn await_request(&self, mut buf: IoBuf) -> (io::Result<usize>, IoBuf) {
        loop {
            let result;
            (result, buf) = self.device.read(buf).await;
            let is_empty =
                |error: &io::Error| OsErrno::from_io_error(error) == Some(OsErrno::AGAIN);
            if !result.as_ref().is_err_and(is_empty) {
                return (result, buf);
            }
            let poller = self.poller.take();
            let mut poller = poller.unwrap_or_else(|| self.device.poller());
            let result = poller.next().await;
            self.poller.replace(Some(poller));
            if let Err(error) = result {
                tracing::warn!(target: "fuse", %error, "polling the FUSE device failed");
                sleep(ERROR_PAUSE).await;
            }
        }
    }

    /// A buffer to receive with: the place for a request, data of a WRITE on a page boundary.
    async fn receive_buffer(&self) -> IoBuf {
        let mut buf = self.pool.get().await;
        assert!(
            buf.len() >= BUFFER_MIN && buf.is_aligned(),
            "a pool buffer of {} bytes, FUSE needs {BUFFER_MIN}",
            buf.len()
        );
        buf.split_off(RECEIVE_AT)
    }

    /// Notes a request that waits, so that it can be given up.
    fn note(&self, header: Option<InHeader>, in_work: &InWork) {
        if let Some(header) = header
            && can_be_given_up(header.opcode)
            && !in_work.is_past_return.get()
        {
            in_work.is_noted.set(true);
            let waiting = &self.connection.waiting;
            let way = Way::Device(Arc::clone(&self.answers));
            if waiting.enter(header.unique, header.pid, way) {
                watch(Arc::clone(&self.connection), header.unique);
            }
        }
    }

    /// The request is finished, or cannot be given up any more. True when it was given up: it has its answer.
    fn is_given_up(&self, header: &InHeader, in_work: &InWork) -> bool {
        in_work.is_past_return.set(true);
        in_work.is_noted.take() && self.connection.waiting.leave(header.unique)
    }

    /// Handles a request and answers it.
    async fn finish(&self, buf: IoBuf, len: usize, in_work: &InWork) {
        let header = match parse_header(&buf, len) {
            Ok(header) => header,
            Err(error) => {
                // Without a header there is nobody to answer.
                tracing::error!(target: "fuse", %error, "the kernel sent a damaged request");
                return;
            }
        };
        let body = size_of::<InHeader>()..len;
        let head = &buf[size_of::<InHeader>()..len.min(WRITE_HEAD)];
        // What holds data is told by its opcode; the rest of both is parsed like anything else.
        let result = match parse_payload_op(&header, head) {
            Some(Ok(Op::Read(args))) => return self.finish_read(&header, args, buf, in_work).await,
            Some(Ok(Op::Write(args))) => self.finish_write(&header, args, buf, len, in_work).await,
            None if header.opcode == crate::opcode::Opcode::Interrupt as u32 => {
                crate::opcode::count(header.opcode);
                if let Ok((args, _)) = InterruptIn::read_from_prefix(head) {
                    self.handlers.interrupt(args.unique);
                    if self.connection.waiting.interrupt(args.unique) {
                        watch(Arc::clone(&self.connection), args.unique);
                    }
                }
                return;
            }
            Some(Err(error)) => Err(error),
            Some(Ok(_)) | None => {
                let body: SmallVec<[u8; BODY_INLINE]> = SmallVec::from_slice(&buf[body]);
                drop(buf);
                match parse(&header, &body, self.setxattr_ext) {
                    Ok(op) => Ok(self.handlers.handle(&header, op, &mut None).await),
                    Err(error) => Err(error),
                }
            }
        };
        let reply = result.unwrap_or_else(|error| {
            tracing::error!(target: "fuse", opcode = header.opcode, %error, "the kernel sent a damaged request");
            Reply::Error(Errno::EIO)
        });
        if self.is_given_up(&header, in_work) {
            self.handlers.take_back(&header, reply).await;
        } else if matches!(reply, Reply::BytesAndMore(_)) {
            self.answer_with_more(&header, reply).await;
        } else {
            self.answer(&header, reply);
        }
    }

    async fn finish_write(
        &self,
        header: &InHeader,
        args: WriteIn,
        mut buf: IoBuf,
        len: usize,
        in_work: &InWork,
    ) -> Result<Reply, ParseError> {
        if len.checked_sub(WRITE_HEAD) != Some(args.size as usize) {
            return Err(ParseError::Short("data"));
        }
        let _held = self.budget.hold();
        if let Err(error) = self
            .handlers
            .await_room(Ino(header.nodeid), args.size)
            .await
        {
            return Ok(Reply::Error(error));
        }
        if self.is_given_up(header, in_work) {
            return Ok(Reply::Silent);
        }
        let mut data = buf.split_off(WRITE_HEAD);
        drop(buf);
        drop(data.split_off(args.size as usize));
        let mut payload = Some(data);
        Ok(self
            .handlers
            .handle(header, Op::Write(args), &mut payload)
            .await)
    }

    async fn finish_read(&self, header: &InHeader, args: ReadIn, mut buf: IoBuf, in_work: &InWork) {
        if args.size as usize > REQUEST_MAX {
            return self.answer(header, Reply::Error(Errno::EINVAL));
        }
        let _held = match self.budget.try_hold() {
            Some(held) => held,
            None => {
                drop(buf);
                let held = self.budget.wait().await;
                buf = self.receive_buffer().await;
                held
            }
        };
        let mut payload = Some(buf.split_off(WRITE_HEAD));
        let reply = self
            .handlers
            .handle(header, Op::Read(args), &mut payload)
            .await;
        if self.is_given_up(header, in_work) {
            return;
        }
        let Reply::Payload(len) = reply else {
            return self.answer(header, reply);
        };
        let joined = payload.map(|data| buf.unsplit(data));
        assert!(
            matches!(joined, Some(Ok(()))),
            "the file system kept a READ's buffer"
        );
        let mut message = buf.split_off(WRITE_HEAD - OUT_HEADER);
        drop(message.split_off(OUT_HEADER + len));
        let out = out_header(header.unique, None, len);
        message[..OUT_HEADER].copy_from_slice(out.as_bytes());
        let (result, _message) = self.device.write(message).await;
        if let Err(error) = result {
            report(header, OsErrno::from_io_error(&error));
        }
    }

    /// Sends a small answer with what else is to be submitted: after one that is sent at once, the program that waits for it may
    /// run before that.
    async fn answer_with_more(&self, header: &InHeader, reply: Reply) {
        let Some(bytes) = encode(header.unique, reply) else {
            return;
        };
        let mut message = IoBuf::alloc(bytes.len());
        message.copy_from_slice(&bytes);
        if let (Err(error), _) = self.device.write(message).await {
            report(header, OsErrno::from_io_error(&error));
        }
    }

    /// Sends a small answer at once.
    fn answer(&self, header: &InHeader, reply: Reply) {
        let Some(bytes) = encode(header.unique, reply) else {
            return;
        };
        while let Err(error) = rustix::io::write(&self.device, &bytes) {
            if error != OsErrno::INTR {
                return report(header, Some(error));
            }
        }
    }
}

/// READ and WRITE with their arguments; `None` for everything else.
fn parse_payload_op<'a>(header: &InHeader, head: &'a [u8]) -> Option<Result<Op<'a>, ParseError>> {
    const READ: u32 = crate::opcode::Opcode::Read as u32;
    const WRITE: u32 = crate::opcode::Opcode::Write as u32;
    matches!(header.opcode, READ | WRITE).then(|| parse(header, head, false))
}

/// An answer that the kernel did not take. ENOENT: the request was taken back (its process was killed); ENODEV,
/// ECONNABORTED, EPERM: the mount is gone.
fn report(header: &InHeader, error: Option<OsErrno>) {
    match error {
        Some(OsErrno::NOENT | OsErrno::NODEV | OsErrno::CONNABORTED | OsErrno::PERM) => {}
        error => {
            tracing::error!(target: "fuse", opcode = header.opcode, unique = header.unique, ?error, "the kernel refused an answer");
        }
    }
}

/// Polls once and says how it went.
pub(super) async fn poll_once<F: Future>(mut future: Pin<&mut F>) -> Poll<F::Output> {
    poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
}

#[cfg(test)]
mod tests {
    //! What a core's workers may take.

    use super::*;

    /// Size of the future that a function makes.
    fn future_bytes<A, F: Future>(_: impl FnOnce(A) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn all_workers_of_a_core_fit_into_their_memory() {
        let worker = future_bytes(Server::work);
        assert!(
            worker * WORKERS_MAX <= crate::REQUESTS_BYTES as usize,
            "a worker takes {worker} bytes"
        );
    }
}
