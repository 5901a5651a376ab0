//! One entry: what comes into it is handled, and its answer leaves from it.

use super::{ENTRY_BYTES, PAYLOAD_AT, Queue, Server, TABLE_AT};
use crate::opcode::Opcode;
use crate::reply::{OUT_HEADER, Reply, out_header};
use crate::request::{Op, ParseError, parse};
use crate::transport::dev_fuse::{BODY_INLINE, InWork, poll_once};
use crate::transport::interrupt::{Hint, Way, can_be_given_up, watch};
use crate::wire::flags::uring_cmd::{COMMIT_AND_FETCH, REGISTER};
use crate::wire::uring_header::{BYTES, ENT_IN_OUT, OP_IN, OP_IN_BYTES};
use crate::wire::{InHeader, ReadIn, UringCmdReq, UringEntInOut, WriteIn};
use fastcache_api::{Errno, Ino};
use fastcache_reactor::{COMMAND_BYTES, IoBuf, Place, Segments, sleep, spawn};
use fastcache_types::REQUEST_MAX;
use rustix::io::Errno as OsErrno;
use smallvec::SmallVec;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use zerocopy::{FromBytes, IntoBytes};

/// Pause after an unexpected error, so that a broken connection does not burn a core.
const ERROR_PAUSE: Duration = Duration::from_millis(10);
/// How often it is looked whether device I/O of a request that was given up has ended.
const RELEASE_LOOK: Duration = Duration::from_millis(1);
/// Data beyond this gives its pages back when the entry's memory is its own, bytes.
const KEPT_BYTES: usize = 64 << 10;

/// What an entry does next.
#[derive(Clone, Copy)]
pub(super) enum Next {
    /// Tell the kernel its memory.
    Register,
    /// Answer the request of this number with what is in the memory, and wait for another.
    Commit(u64),
}

/// What became of a request.
enum Outcome {
    /// Its answer is in the entry.
    Answered,
    /// It was given up, and another task has the entry; nothing more is to be done.
    Moved,
}

/// What a request begins with.
struct Head {
    header: InHeader,
    commit_id: u64,
    /// Bytes of the first argument.
    op_bytes: usize,
    /// Bytes in the payload.
    payload_bytes: usize,
}

impl Head {
    fn parse(buf: &[u8]) -> Result<Head, ParseError> {
        let short = |_| ParseError::Short("entry");
        let (header, _) = InHeader::read_from_prefix(buf).map_err(short)?;
        let extra = buf.get(ENT_IN_OUT..BYTES).unwrap_or_default();
        let extra =
            UringEntInOut::read_from_bytes(extra).map_err(|_| ParseError::Short("entry"))?;
        let got = header.len as usize;
        let payload_bytes = extra.payload_sz as usize;
        let op_bytes = got
            .checked_sub(size_of::<InHeader>() + payload_bytes)
            .filter(|op| *op <= OP_IN_BYTES && PAYLOAD_AT + payload_bytes <= ENTRY_BYTES);
        let Some(op_bytes) = op_bytes else {
            return Err(ParseError::Length {
                header: header.len,
                got: payload_bytes,
            });
        };
        Ok(Head {
            header,
            commit_id: extra.commit_id,
            op_bytes,
            payload_bytes,
        })
    }

    fn is(&self, opcode: Opcode) -> bool {
        self.header.opcode == opcode as u32
    }

    /// Bytes that a READ asks for.
    fn read_bytes(&self, buf: &[u8]) -> usize {
        let args = buf.get(OP_IN..).unwrap_or_default();
        match ReadIn::read_from_prefix(args) {
            Ok((args, _)) if self.is(Opcode::Read) => args.size as usize,
            _ => 0,
        }
    }

    /// It changes nothing before it is past return, so its future can simply be dropped.
    fn is_dropped_when_given_up(&self) -> bool {
        self.is(Opcode::Read) || self.is(Opcode::Write)
    }
}

/// Serves an entry until the connection ends, or until another task has it.
pub(super) async fn serve_entry(
    server: Rc<Server>,
    queue: Rc<Queue>,
    place: Rc<Place>,
    mut next: Next,
) {
    let mut used = 0;
    loop {
        let result = server.command(&queue, &place, next).await;
        queue.free.set(queue.free.get() - 1);
        if let Err(error) = result {
            match OsErrno::from_io_error(&error) {
                Some(
                    OsErrno::NOTCONN | OsErrno::CONNABORTED | OsErrno::NODEV | OsErrno::CANCELED,
                ) => break,
                // The kernel has no such request any more: it goes on with the same memory as a new entry.
                Some(OsErrno::NOENT) if matches!(next, Next::Commit(_)) => {
                    tracing::debug!(target: "fuse", queue = queue.number, "an answer came too late");
                    next = Next::Register;
                    queue.free.set(queue.free.get() + 1);
                    continue;
                }
                _ => {
                    tracing::error!(target: "fuse", queue = queue.number, %error, "the kernel refused an entry of FUSE over io_uring");
                    sleep(ERROR_PAUSE).await;
                    break;
                }
            }
        }
        server.came(&queue);
        match server.request(&queue, &place, &mut used).await {
            (Outcome::Answered, commit_id) => next = Next::Commit(commit_id),
            (Outcome::Moved, _) => return,
        }
        queue.free.set(queue.free.get() + 1);
    }
    server.entry_ended(&queue);
}

impl Server {
    /// Gives the entry to the kernel, and waits for a request in it.
    async fn command(&self, queue: &Queue, place: &Place, next: Next) -> io::Result<usize> {
        let (op, commit_id, segments) = match next {
            Next::Register => {
                let parts = [0..BYTES, PAYLOAD_AT..ENTRY_BYTES];
                let segments = Segments {
                    table_at: TABLE_AT,
                    parts,
                };
                (REGISTER, 0, Some(segments))
            }
            Next::Commit(commit_id) => (COMMIT_AND_FETCH, commit_id, None),
        };
        let request = UringCmdReq {
            commit_id,
            qid: queue.number,
            ..UringCmdReq::default()
        };
        let mut area = [0; COMMAND_BYTES];
        area[..size_of::<UringCmdReq>()].copy_from_slice(request.as_bytes());
        // SAFETY: the kernel writes into the entry that is registered or whose request is answered. REGISTER names the
        // place; a request's number came into this same place, and names the entry that was registered with it.
        unsafe { self.device.command(op, area, place, segments) }.await
    }

    /// Handles what is in the entry and puts the answer there. Says also which request it was.
    /// `used`: most bytes of data that were in it since pages were last given back.
    async fn request(
        self: &Rc<Self>,
        queue: &Rc<Queue>,
        place: &Rc<Place>,
        used: &mut usize,
    ) -> (Outcome, u64) {
        let buf = whole(place).await;
        let head = match Head::parse(&buf) {
            Ok(head) => head,
            Err(error) => {
                tracing::error!(target: "fuse", %error, "the kernel sent a damaged request");
                let (header, _) = InHeader::read_from_prefix(&buf).unwrap_or_default();
                drop(buf);
                answer(place, header.unique, Reply::Error(Errno::EIO)).await;
                // The kernel gives a request one number for both.
                return (Outcome::Answered, header.unique);
            }
        };
        let mut buf = buf;
        if *used > KEPT_BYTES && head.payload_bytes <= KEPT_BYTES {
            // What the request before it left. Not earlier: its answer went out of this memory.
            drop(buf);
            if let Err(error) = place.discard(PAYLOAD_AT + KEPT_BYTES) {
                tracing::debug!(target: "fuse", %error, "an entry's memory is not given back");
            }
            buf = whole(place).await;
            *used = 0;
        }
        *used = (*used).max(head.payload_bytes).max(head.read_bytes(&buf));
        (self.finish(queue, place, &head, buf).await, head.commit_id)
    }

    async fn finish(
        self: &Rc<Self>,
        queue: &Rc<Queue>,
        place: &Rc<Place>,
        head: &Head,
        buf: IoBuf,
    ) -> Outcome {
        let unique = head.header.unique;
        let in_work = InWork::default();
        {
            let mut handle = pin!(self.handle(head, buf, &in_work));
            let done = match poll_once(handle.as_mut()).await {
                Poll::Ready(reply) => Some(reply),
                Poll::Pending => self.wait(head, &in_work, handle.as_mut()).await,
            };
            if let Some(reply) = done {
                if in_work.is_noted.take() {
                    self.connection.waiting.leave(unique);
                }
                answer(place, unique, reply).await;
                return Outcome::Answered;
            }
            if !head.is_dropped_when_given_up() {
                // The entry goes on without it; what it comes to is taken back.
                answer(place, unique, Reply::Error(Errno::EINTR)).await;
                let next = Next::Commit(head.commit_id);
                queue.free.set(queue.free.get() + 1);
                let (server, queue) = (Rc::clone(self), Rc::clone(queue));
                spawn(serve_entry(server, queue, Rc::clone(place), next)).detach();
                let reply = handle.await;
                self.connection.waiting.leave(unique);
                self.handlers.take_back(&head.header, reply).await;
                return Outcome::Moved;
            }
        }
        self.connection.waiting.leave(unique);
        answer(place, unique, Reply::Error(Errno::EINTR)).await;
        Outcome::Answered
    }

    /// Waits for a request, unless it is given up meanwhile: then `None`.
    async fn wait<F: Future<Output = Reply>>(
        &self,
        head: &Head,
        in_work: &InWork,
        mut handle: Pin<&mut F>,
    ) -> Option<Reply> {
        let header = &head.header;
        if !can_be_given_up(header.opcode) || in_work.is_past_return.get() {
            return Some(handle.await);
        }
        let hint = poll_fn(|cx| Poll::Ready(Hint::new(cx.waker().clone()))).await;
        let way = Way::Task(Arc::clone(&hint));
        in_work.is_noted.set(true);
        if self
            .connection
            .waiting
            .enter(header.unique, header.pid, way)
        {
            watch(Arc::clone(&self.connection), header.unique);
        }
        poll_fn(|cx| match handle.as_mut().poll(cx) {
            Poll::Ready(reply) => Poll::Ready(Some(reply)),
            Poll::Pending if hint.is_given() && !in_work.is_past_return.get() => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        })
        .await
    }

    /// The answer to a request. When it is there, nobody uses the entry's memory; a READ's data is at its place.
    async fn handle(&self, head: &Head, mut buf: IoBuf, in_work: &InWork) -> Reply {
        let first = OP_IN..OP_IN + head.op_bytes;
        let result = if head.is(Opcode::Read) {
            match ReadIn::read_from_bytes(&buf[first]) {
                Ok(args) => Ok(self.read(head, args, buf).await),
                Err(_) => Err(ParseError::Short("read arguments")),
            }
        } else if head.is(Opcode::Write) {
            match WriteIn::read_from_bytes(&buf[first]) {
                Ok(args) => self.write(head, args, buf, in_work).await,
                Err(_) => Err(ParseError::Short("write arguments")),
            }
        } else {
            let mut body: SmallVec<[u8; BODY_INLINE]> = SmallVec::new();
            body.extend_from_slice(&buf[first]);
            let payload = buf.split_off(PAYLOAD_AT);
            body.extend_from_slice(&payload[..head.payload_bytes]);
            drop((buf, payload));
            match parse(&head.header, &body, self.setxattr_ext) {
                Ok(op) => Ok(self.handlers.handle(&head.header, op, &mut None).await),
                Err(error) => Err(error),
            }
        };
        result.unwrap_or_else(|error| {
            tracing::error!(target: "fuse", opcode = head.header.opcode, %error, "the kernel sent a damaged request");
            Reply::Error(Errno::EIO)
        })
    }

    async fn read(&self, head: &Head, args: ReadIn, mut buf: IoBuf) -> Reply {
        if args.size as usize > REQUEST_MAX {
            return Reply::Error(Errno::EINVAL);
        }
        let room = buf.split_off(PAYLOAD_AT);
        drop(buf);
        let start = room.as_ptr();
        let mut payload = Some(room);
        let op = Op::Read(args);
        let reply = self.handlers.handle(&head.header, op, &mut payload).await;
        assert!(
            !matches!(reply, Reply::Payload(_)) || payload.is_some_and(|p| p.as_ptr() == start),
            "the file system kept a READ's buffer"
        );
        reply
    }

    async fn write(
        &self,
        head: &Head,
        args: WriteIn,
        mut buf: IoBuf,
        in_work: &InWork,
    ) -> Result<Reply, ParseError> {
        if args.size as usize != head.payload_bytes {
            return Err(ParseError::Short("data"));
        }
        let mut data = buf.split_off(PAYLOAD_AT);
        drop(buf);
        drop(data.split_off(head.payload_bytes));
        if let Err(error) = self
            .handlers
            .await_room(Ino(head.header.nodeid), args.size)
            .await
        {
            return Ok(Reply::Error(error));
        }
        in_work.is_past_return.set(true);
        let mut payload = Some(data);
        let op = Op::Write(args);
        Ok(self.handlers.handle(&head.header, op, &mut payload).await)
    }
}

/// All of an entry's memory, once nobody uses it: at once, but for device I/O of a READ that was given up.
async fn whole(place: &Place) -> IoBuf {
    loop {
        if let Some(buf) = place.take() {
            return buf;
        }
        sleep(RELEASE_LOOK).await;
    }
}

/// Puts an answer into the entry.
async fn answer(place: &Place, unique: u64, reply: Reply) {
    let mut buf = whole(place).await;
    let (error, len) = match reply {
        // What is silent elsewhere does not come this way.
        Reply::Silent | Reply::Done => (None, 0),
        Reply::Error(errno) => (Some(errno), 0),
        Reply::Payload(len) => (None, len),
        Reply::Bytes(bytes) | Reply::BytesAndMore(bytes) => {
            let body = &bytes[OUT_HEADER..];
            match buf.get_mut(PAYLOAD_AT..PAYLOAD_AT + body.len()) {
                Some(room) => {
                    room.copy_from_slice(body);
                    (None, body.len())
                }
                None => (Some(Errno::EIO), 0),
            }
        }
    };
    buf[..OUT_HEADER].copy_from_slice(out_header(unique, error, len).as_bytes());
    let extra = UringEntInOut {
        payload_sz: u32::try_from(len).unwrap_or(0),
        ..UringEntInOut::default()
    };
    buf[ENT_IN_OUT..BYTES].copy_from_slice(extra.as_bytes());
}

#[cfg(test)]
mod tests {
    //! What is in an entry is understood, whatever it is, and answers have their places.

    use super::*;
    use proptest::prelude::*;

    fn entry(len: usize, payload_sz: u32, opcode: u32) -> Vec<u8> {
        let mut bytes = vec![0; PAYLOAD_AT];
        let header = InHeader {
            len: u32::try_from(len).unwrap(),
            opcode,
            unique: 6,
            ..InHeader::default()
        };
        bytes[..size_of::<InHeader>()].copy_from_slice(header.as_bytes());
        let extra = UringEntInOut {
            commit_id: 6,
            payload_sz,
            ..UringEntInOut::default()
        };
        bytes[ENT_IN_OUT..BYTES].copy_from_slice(extra.as_bytes());
        bytes
    }

    #[test]
    fn the_first_argument_is_what_header_and_payload_leave() {
        // WRITE: 40 bytes of arguments, 8192 of data.
        let head = Head::parse(&entry(40 + 40 + 8192, 8192, 16)).unwrap();
        assert_eq!((head.op_bytes, head.payload_bytes), (40, 8192));
        assert!(head.is(Opcode::Write) && head.is_dropped_when_given_up());
        // LOOKUP: no arguments, a name.
        let head = Head::parse(&entry(40 + 5, 5, 1)).unwrap();
        assert_eq!(
            (head.op_bytes, head.payload_bytes, head.commit_id),
            (0, 5, 6)
        );
        for (len, payload) in [(39, 0), (40, 1), (40 + 129, 0), (0, 0)] {
            assert!(
                Head::parse(&entry(len, payload, 1)).is_err(),
                "{len} {payload}"
            );
        }
        assert!(Head::parse(&[0; 100]).is_err());
    }

    proptest! {
        #[test]
        fn no_entry_panics_or_names_bytes_outside(
            len in any::<u32>(), payload in any::<u32>(), opcode in any::<u32>(),
        ) {
            if let Ok(head) = Head::parse(&entry(len as usize, payload, opcode)) {
                prop_assert!(head.op_bytes <= OP_IN_BYTES);
                prop_assert!(PAYLOAD_AT + head.payload_bytes <= ENTRY_BYTES);
            }
        }
    }

    #[test]
    fn answers_are_where_the_kernel_looks() {
        let place = Place::lazy(ENTRY_BYTES).unwrap();
        let put = |reply| {
            let mut future = pin!(answer(&place, 6, reply));
            let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
            assert!(future.as_mut().poll(&mut cx).is_ready());
            place.take().unwrap()
        };
        let buf = put(Reply::raw(b"12345678"));
        assert_eq!(buf[..4], 24_u32.to_ne_bytes());
        assert_eq!(buf[4..8], 0_i32.to_ne_bytes());
        assert_eq!(buf[8..16], 6_u64.to_ne_bytes());
        assert_eq!(buf[ENT_IN_OUT + 16..ENT_IN_OUT + 20], 8_u32.to_ne_bytes());
        assert_eq!(&buf[PAYLOAD_AT..PAYLOAD_AT + 8], b"12345678");
        drop(buf);
        let buf = put(Reply::Error(Errno::EINTR));
        assert_eq!(buf[4..8], (-libc::EINTR).to_ne_bytes());
        assert_eq!(buf[ENT_IN_OUT + 16..ENT_IN_OUT + 20], [0; 4]);
    }
}
