//! A data plane for tests: threads, one map of chunks, one map of files.

use fastcache_api::control::*;
use fastcache_api::locks::{Lock, LockAnswer, LockOp};
use fastcache_api::{ChunkKey, Errno, Ino, Version};
use rustix::fs::MemfdFlags;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};

const LANES: u32 = 2;
const SLOTS: u32 = 8;
/// Where it asks.
const CALLS_LANE: u32 = 1;

pub(super) fn key(ino: u64, version: u64) -> ChunkKey {
    ChunkKey {
        ino: Ino(ino),
        index: 0,
        version: Version(version),
    }
}

#[derive(Default)]
struct State {
    chunks: BTreeMap<(u64, u64), (Vec<u8>, bool)>,
    clean: HashSet<ChunkKey>,
    files: HashMap<Ino, (u64, Vec<u8>)>,
    seen: Vec<DataCall>,
    lanes: BTreeMap<u32, UnixStream>,
    answers: HashMap<u64, mpsc::Sender<Result<NodeAnswer, Errno>>>,
    slots_out: HashSet<u32>,
    is_stopped: bool,
    goes_at_seal: bool,
    /// What comes on the lane of its calls is not looked at.
    are_calls_paused: bool,
    asked_locks: HashMap<u64, (Ino, Lock)>,
    locks: Vec<(Ino, Lock)>,
}

#[derive(Clone)]
pub(super) struct DataPlane {
    state: Arc<Mutex<State>>,
    arena: Arc<File>,
    next: Arc<AtomicU64>,
}

fn send(mut stream: &UnixStream, message: &ToAgent) {
    let body = postcard::to_stdvec(message).unwrap();
    let mut frame = (body.len() as u32).to_le_bytes().to_vec();
    frame.extend(body);
    let _ = stream.write_all(&frame);
}

fn receive<T: serde::de::DeserializeOwned>(mut stream: &UnixStream) -> Option<T> {
    let mut head = [0; 4];
    stream.read_exact(&mut head).ok()?;
    let mut body = vec![0; u32::from_le_bytes(head) as usize];
    stream.read_exact(&mut body).ok()?;
    Some(postcard::from_bytes(&body).unwrap())
}

impl DataPlane {
    pub(super) fn start(socket: &Path) -> DataPlane {
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket).unwrap();
        let arena = File::from(rustix::fs::memfd_create("arena", MemfdFlags::CLOEXEC).unwrap());
        arena.set_len(u64::from(SLOTS) * SLOT_BYTES as u64).unwrap();
        let data = DataPlane {
            state: Arc::default(),
            arena: Arc::new(arena),
            next: Arc::default(),
        };
        let accepting = data.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if accepting.state.lock().unwrap().is_stopped {
                    return;
                }
                accepting.hello(stream.unwrap());
            }
        });
        data
    }

    fn hello(&self, stream: UnixStream) {
        let hello = ServerHello {
            peer_listen: None,
            version: CONTROL_VERSION,
            data: 1,
            lanes: LANES,
            slots: SLOTS,
            capacity_bytes: 1 << 30,
        };
        let body = postcard::to_stdvec(&hello).unwrap();
        let mut frame = (body.len() as u32).to_le_bytes().to_vec();
        frame.extend(body);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds = [self.arena.as_fd()];
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
        sendmsg(
            &stream,
            &[IoSlice::new(&frame)],
            &mut ancillary,
            SendFlags::empty(),
        )
        .unwrap();
        let serving = self.clone();
        std::thread::spawn(move || {
            let Some(client) = receive::<ClientHello>(&stream) else {
                return;
            };
            {
                let mut state = serving.state.lock().unwrap();
                if state.is_stopped {
                    // A lane that was on its way when it stopped.
                    return;
                }
                state.lanes.insert(client.lane, stream.try_clone().unwrap());
            }
            while let Some(message) = receive::<ToData>(&stream) {
                let is_answer = matches!(message, ToData::Answer(..));
                while is_answer && serving.state.lock().unwrap().are_calls_paused {
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
                serving.on_message(&stream, message);
            }
        });
    }

    fn on_message(&self, stream: &UnixStream, message: ToData) {
        match message {
            ToData::Call(_, DataCall::Seal { .. }) if self.state.lock().unwrap().goes_at_seal => {
                self.stop();
            }
            ToData::Call(id, call) => {
                let answer = self.answer(call);
                send(stream, &ToAgent::Answer(id, answer));
            }
            ToData::Answer(id, answer) => {
                let asker = {
                    let mut state = self.state.lock().unwrap();
                    let asked = state.asked_locks.remove(&id);
                    if matches!(answer, Ok(NodeAnswer::Lock(LockAnswer::Done))) {
                        state.locks.extend(asked);
                    }
                    state.answers.remove(&id).unwrap()
                };
                asker.send(answer).unwrap();
            }
            ToData::ReleaseSlot(slot) => {
                assert!(
                    self.state.lock().unwrap().slots_out.remove(&slot),
                    "released twice"
                );
            }
        }
    }

    fn slot_with(&self, state: &mut State, bytes: &[u8]) -> DataAnswer {
        let slot = (0..SLOTS).find(|s| !state.slots_out.contains(s)).unwrap();
        state.slots_out.insert(slot);
        self.arena
            .write_all_at(bytes, u64::from(slot) * SLOT_BYTES as u64)
            .unwrap();
        let crc32c = crc_fast::crc32_iscsi(bytes);
        DataAnswer::Slot {
            slot,
            len: bytes.len() as u32,
            crc32c,
        }
    }

    fn answer(&self, call: DataCall) -> Result<DataAnswer, Errno> {
        let mut state = self.state.lock().unwrap();
        state.seen.push(call.clone());
        match call {
            DataCall::Inventory { from } => {
                // One chunk a page.
                let at = from.unwrap_or(0) as usize;
                let chunks: Vec<_> = state.chunks.iter().skip(at).take(1).collect();
                let next = (at + 1 < state.chunks.len()).then_some(at as u64 + 1);
                let chunks = chunks
                    .into_iter()
                    .map(|((ino, v), (b, d))| local(key(*ino, *v), b.len() as u32, *d))
                    .collect();
                Ok(DataAnswer::Inventory { chunks, next })
            }
            DataCall::ReadChunk { key, .. } => {
                let found = state.chunks.get(&(key.ino.0, key.version.0)).cloned();
                let (bytes, _) = found.ok_or(Errno::ENOENT)?;
                Ok(self.slot_with(&mut state, &bytes))
            }
            DataCall::MarkClean { keys } => {
                state.clean.extend(keys);
                Ok(DataAnswer::Done)
            }
            DataCall::Drop { keys } => {
                for key in keys {
                    state.chunks.remove(&(key.ino.0, key.version.0));
                }
                Ok(DataAnswer::Done)
            }
            DataCall::TakeSlot => Ok(self.slot_with(&mut state, &[])),
            DataCall::WriteFile {
                ino,
                offset,
                slot,
                len,
            } => {
                assert!(state.slots_out.remove(&slot));
                state.files.insert(ino, (offset, self.slot(slot, len)));
                Ok(DataAnswer::Done)
            }
            DataCall::ReadFile { ino, offset, len } => {
                let file = state.files.get(&ino).cloned();
                let bytes = file.filter(|f| f.0 == offset).map_or(vec![], |f| f.1);
                let len = bytes.len().min(len as usize);
                Ok(self.slot_with(&mut state, &bytes[..len]))
            }
            DataCall::Locks => Ok(DataAnswer::Locks(state.locks.clone())),
            DataCall::Stats => Ok(DataAnswer::Stats(Box::default())),
            _ => Ok(DataAnswer::Done),
        }
    }

    pub(super) fn put(&self, key: ChunkKey, bytes: &[u8], is_dirty: bool) {
        let mut state = self.state.lock().unwrap();
        state
            .chunks
            .insert((key.ino.0, key.version.0), (bytes.to_vec(), is_dirty));
    }

    /// A lane, once the agent has opened it.
    fn lane(&self, lane: u32) -> UnixStream {
        loop {
            if let Some(lane) = self.state.lock().unwrap().lanes.get(&lane) {
                return lane.try_clone().unwrap();
            }
            std::thread::yield_now();
        }
    }

    pub(super) fn tell_stored(&self, key: ChunkKey) {
        let lane = self.lane(0);
        let state = self.state.lock().unwrap();
        let len = state
            .chunks
            .get(&(key.ino.0, key.version.0))
            .map_or(1, |c| c.0.len() as u32);
        send(
            &lane,
            &ToAgent::Event(DataEvent::Stored(vec![local(key, len, true)])),
        );
    }

    pub(super) fn call(&self, call: NodeCall) -> Result<NodeAnswer, Errno> {
        let (answer, answered) = mpsc::channel();
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let lane = self.lane(CALLS_LANE);
        {
            let mut state = self.state.lock().unwrap();
            state.answers.insert(id, answer);
            if let NodeCall::Lock(LockOp::Set { ino, lock, .. }) = &call {
                state.asked_locks.insert(id, (*ino, *lock));
            }
        }
        send(&lane, &ToAgent::Call(id, call));
        answered
            .recv_timeout(std::time::Duration::from_secs(20))
            .unwrap()
    }

    /// Whether answers to [`DataPlane::call`] wait, and what comes behind them.
    pub(super) fn pause_calls(&self, is_paused: bool) {
        self.state.lock().unwrap().are_calls_paused = is_paused;
    }

    pub(super) fn slot(&self, slot: u32, len: u32) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        self.arena
            .read_exact_at(&mut bytes, u64::from(slot) * SLOT_BYTES as u64)
            .unwrap();
        bytes
    }

    pub(super) fn clean(&self) -> HashSet<ChunkKey> {
        self.state.lock().unwrap().clean.clone()
    }

    pub(super) fn is_gone(&self, key: ChunkKey) -> bool {
        !self
            .state
            .lock()
            .unwrap()
            .chunks
            .contains_key(&(key.ino.0, key.version.0))
    }

    pub(super) fn seen(&self) -> Vec<DataCall> {
        self.state.lock().unwrap().seen.clone()
    }

    pub(super) fn slots_out(&self) -> usize {
        self.state.lock().unwrap().slots_out.len()
    }

    /// Closes all lanes when it is asked to seal.
    pub(super) fn go_at_seal(&self) {
        self.state.lock().unwrap().goes_at_seal = true;
    }

    /// Closes all lanes.
    pub(super) fn stop(&self) {
        let mut state = self.state.lock().unwrap();
        state.is_stopped = true;
        for lane in state.lanes.values() {
            let _ = lane.shutdown(std::net::Shutdown::Both);
        }
    }
}

fn local(key: ChunkKey, len: u32, is_dirty: bool) -> LocalChunk {
    LocalChunk {
        key,
        len,
        device_bytes: len,
        is_dirty,
    }
}
