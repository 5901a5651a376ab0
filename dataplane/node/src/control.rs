//! The control socket: listens, shakes hands, and moves frames between the agent's lanes and the file system.
//!
//! Every lane is served by the core it belongs to. A new agent session ends the lanes of the one before and gets
//! an arena of its own.

use anyhow::{Context, Result};
use fastcache_api::control::{
    CONTROL_VERSION, ClientHello, FRAME_MAX, SLOT_BYTES, ServerHello, ToData,
};
use fastcache_cache::FileSystem;
use fastcache_reactor::watch::labelled;
use fastcache_reactor::{Arena, Fd, IoBuf, Remote};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde::Serialize;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

/// Slots of the arena: downloads, uploads and REST transfers together (memory is taken when a slot is first used).
pub const ARENA_SLOTS: usize = 40;
/// Messages put into one write.
const BATCH: usize = 64;
/// Bytes asked for in one read of a lane.
const READ_BYTES: usize = 256 << 10;
/// How long a connection may take to say who it is.
const HELLO_SECONDS: Duration = Duration::from_secs(5);
/// Pause after a failed accept, so that a lasting error does not burn the core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// An arena of the size the control protocol promises.
pub fn new_arena() -> Result<Arena> {
    Arena::new(ARENA_SLOTS, SLOT_BYTES).context("the shared memory for the agent cannot be made")
}

/// Binds the socket. A socket file nobody listens on is replaced; a live one is an error.
pub fn bind(path: &Path) -> Result<UnixListener> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(|| {
            format!(
                "the directory of the control socket {} cannot be made",
                dir.display()
            )
        })?;
    }
    if path.exists() {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            anyhow::bail!(
                "another fastcache-data listens on {}: stop it, or choose another --socket",
                path.display()
            );
        }
        std::fs::remove_file(path)
            .with_context(|| format!("the stale socket {} cannot be removed", path.display()))?;
    }
    let listener = UnixListener::bind(path)
        .with_context(|| format!("the control socket {} cannot be made", path.display()))?;
    // Who can connect reads and writes every file: the owner alone.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// What every agent is told about this node.
pub struct Greeting {
    /// Capacity of the store for chunks, bytes.
    pub capacity_bytes: u64,
    /// Where it listens for other nodes.
    pub peer_listen: Option<String>,
}

/// Accepts connections for ever, on the core that calls. `remotes[i]` is the core of lane `i`.
pub async fn listen(
    fs: FileSystem,
    listener: UnixListener,
    remotes: Vec<Remote>,
    greeting: Greeting,
) {
    let data: u64 = rand::random();
    let listener = Fd::from(OwnedFd::from(listener));
    let mut connections = 0;
    let mut session = None;
    loop {
        if fs.is_stopping() {
            return;
        }
        let stream = match listener.accept().await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::error!(target: "control", %error, "accept failed");
                fastcache_reactor::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Lane 0 begins a session, and a session gets an arena of its own: what an old agent still maps is never
        // used again. Which lane this is comes with the answer, so each connection is offered a new one.
        let arena = match new_arena() {
            Ok(arena) => arena,
            Err(error) => {
                tracing::error!(target: "control", %error, "no new arena: the agent is refused");
                fastcache_reactor::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let hello = ServerHello {
            version: CONTROL_VERSION,
            data,
            lanes: u32::try_from(remotes.len()).unwrap_or(1),
            slots: u32::try_from(arena.slots()).unwrap_or(0),
            capacity_bytes: greeting.capacity_bytes,
            peer_listen: greeting.peer_listen.clone(),
        };
        let shaken =
            fastcache_reactor::timeout(HELLO_SECONDS, shake(&stream, &hello, &arena)).await;
        let (client, first) = match shaken {
            Ok(Ok(shaken)) => shaken,
            Ok(Err(error)) => {
                tracing::warn!(target: "control", %error, "a connection to the control socket was refused");
                continue;
            }
            Err(_) => {
                tracing::warn!(target: "control", "a connection to the control socket said nothing: closed");
                continue;
            }
        };
        let Some(remote) = remotes.get(client.lane as usize) else {
            tracing::warn!(target: "control", lane = client.lane, "the agent asked for a lane that does not exist");
            continue;
        };
        if client.lane == 0 {
            tracing::info!(target: "control", agent = client.agent, "an agent connected");
            fs.begin_session(arena);
            fs.set_chunk_size(client.chunk_size);
            fs.set_has_cloud(client.has_cloud);
            fs.set_has_coordinator(client.has_coordinator);
            fs.drop_nameless();
            session = Some(client.agent);
        } else if session != Some(client.agent) {
            tracing::warn!(target: "control", lane = client.lane, agent = client.agent, "a lane of an agent that is not the one connected: refused");
            continue;
        }
        connections += 1;
        let number = connections;
        let (fs, lane) = (fs.clone(), client.lane as usize);
        remote.spawn(move || serve_lane(fs, stream, first, lane, number));
    }
}

/// Greets an agent. Answers who it is, and what came behind its greeting: it need not wait before it goes on.
async fn shake(stream: &Fd, hello: &ServerHello, arena: &Arena) -> Result<(ClientHello, Vec<u8>)> {
    let bytes = frame(hello)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [arena.fd()];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    // One small message into an empty socket: it does not wait.
    let sent = rustix::net::sendmsg(
        stream.as_fd(),
        &[IoSlice::new(&bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    anyhow::ensure!(sent == bytes.len(), "the greeting was cut short");
    let mut frames = Frames::of(Vec::new());
    let answer = loop {
        if let Some(message) = frames.next()? {
            break message.to_vec();
        }
        anyhow::ensure!(
            frames.fill(stream).await?,
            "the connection was closed before it said who it is"
        );
    };
    let client: ClientHello =
        postcard::from_bytes(&answer).context("not a greeting of an agent")?;
    anyhow::ensure!(
        client.version == CONTROL_VERSION,
        "the agent speaks control protocol {}, this data plane {CONTROL_VERSION}: install the same version of both",
        client.version
    );
    let size = client.chunk_size as usize;
    anyhow::ensure!(
        size > 0 && size <= SLOT_BYTES && size.is_multiple_of(4096),
        "a chunk size of {size} bytes: it must be a multiple of 4096, at most {SLOT_BYTES}"
    );
    Ok((client, frames.rest()))
}

/// Serves a lane on which the bytes `first` have been received already.
async fn serve_lane(fs: FileSystem, stream: Fd, first: Vec<u8>, lane: usize, connection: u64) {
    fs.agent().attach(lane, connection);
    let writer = fastcache_reactor::spawn(send_all(fs.clone(), stream.clone(), lane, connection));
    if let Err(error) = receive_all(&fs, &stream, first, lane).await {
        tracing::warn!(target: "control", lane, %error, "the agent's lane broke");
    }
    fs.agent().detach(lane, connection);
    drop(writer);
    tracing::info!(target: "control", lane, "the agent's lane is closed");
}

async fn send_all(fs: FileSystem, stream: Fd, lane: usize, connection: u64) {
    while let Some(messages) = fs.agent().outgoing(lane, connection, BATCH).await {
        let mut bytes = Vec::with_capacity(4096);
        for message in &messages {
            match frame(message) {
                Ok(one) => bytes.extend_from_slice(&one),
                Err(error) => {
                    tracing::error!(target: "control", %error, "a message could not be encoded")
                }
            }
        }
        let mut buf = IoBuf::alloc(bytes.len());
        buf.copy_from_slice(&bytes);
        while !buf.is_empty() {
            let (sent, back) = stream.send(buf).await;
            buf = back;
            match sent {
                Ok(n) if n > 0 => {
                    drop(buf.split_to(n));
                }
                other => {
                    tracing::debug!(target: "control", lane, ?other, "the lane takes no more");
                    // The reader sees the end too, and closes the lane.
                    let _ = rustix::net::shutdown(stream.as_fd(), rustix::net::Shutdown::Both);
                    return;
                }
            }
        }
    }
}

async fn receive_all(fs: &FileSystem, stream: &Fd, first: Vec<u8>, lane: usize) -> Result<()> {
    let mut frames = Frames::of(first);
    loop {
        while let Some(message) = frames.next()? {
            match postcard::from_bytes(message).context("a message this version does not know")? {
                ToData::Answer(id, answer) => fs.agent().answered(lane, id, answer),
                ToData::ReleaseSlot(slot) => fs.release_slot(slot),
                ToData::Call(id, call) => {
                    let fs = fs.clone();
                    let label = crate::watchdog::label_of(&call);
                    let work = async move {
                        let answer = fs.serve(call).await;
                        fs.agent().answer(lane, id, answer);
                    };
                    fastcache_reactor::spawn(labelled(label, work)).detach();
                }
            }
        }
        if !frames.fill(stream).await? {
            return Ok(());
        }
    }
}

/// A message with its length in front.
fn frame(message: &impl Serialize) -> Result<Vec<u8>> {
    let mut bytes = postcard::to_extend(message, vec![0; 4])?;
    let len = bytes.len() - 4;
    anyhow::ensure!(
        len <= FRAME_MAX,
        "a message of {len} bytes is over the limit of {FRAME_MAX}"
    );
    bytes[..4].copy_from_slice(&u32::try_from(len)?.to_le_bytes());
    Ok(bytes)
}

/// Cuts a stream into messages.
struct Frames {
    bytes: Vec<u8>,
    at: usize,
    buf: Option<IoBuf>,
}

impl Frames {
    /// A stream of which these bytes came already.
    fn of(bytes: Vec<u8>) -> Frames {
        Frames {
            bytes,
            at: 0,
            buf: None,
        }
    }

    /// What came and was not taken.
    fn rest(mut self) -> Vec<u8> {
        self.bytes.split_off(self.at)
    }

    /// Reads what is there; `false` at the end of the stream.
    async fn fill(&mut self, stream: &Fd) -> Result<bool> {
        let buf = self.buf.take().unwrap_or_else(|| IoBuf::alloc(READ_BYTES));
        let (got, buf) = stream.recv(buf).await;
        let n = got?;
        self.bytes.drain(..self.at);
        self.at = 0;
        self.bytes.extend_from_slice(&buf[..n]);
        self.buf = Some(buf);
        Ok(n > 0)
    }

    fn next(&mut self) -> Result<Option<&[u8]>> {
        let rest = &self.bytes[self.at..];
        let Some(len) = rest.first_chunk::<4>() else {
            return Ok(None);
        };
        let len = u32::from_le_bytes(*len) as usize;
        anyhow::ensure!(
            len <= FRAME_MAX,
            "a frame of {len} bytes is over the limit of {FRAME_MAX}"
        );
        let Some(message) = rest.get(4..4 + len) else {
            return Ok(None);
        };
        self.at += 4 + len;
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn what_comes_right_behind_a_greeting_is_not_lost() {
        let config = fastcache_reactor::Config {
            entries: 32,
            pool_buffers: 1,
            buffer_bytes: 4096,
            ..fastcache_reactor::Config::default()
        };
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let hello = ClientHello {
            version: CONTROL_VERSION,
            agent: 1,
            lane: 0,
            chunk_size: 4 << 20,
            has_coordinator: false,
            has_cloud: true,
        };
        // An agent with one lane begins with its calls at once: all of it may come in one piece, and end in the middle.
        let mut bytes = frame(&hello).unwrap();
        let behind = [frame(&ToData::ReleaseSlot(7)).unwrap(), vec![9, 0]].concat();
        bytes.extend_from_slice(&behind);
        theirs.write_all(&bytes).unwrap();
        let (client, first) = fastcache_reactor::run(config, || async move {
            let stream = Fd::from(OwnedFd::from(ours));
            let arena = Arena::new(1, 4096).unwrap();
            let server = ServerHello {
                version: CONTROL_VERSION,
                data: 2,
                lanes: 1,
                slots: 1,
                capacity_bytes: 1,
                peer_listen: None,
            };
            shake(&stream, &server, &arena).await.unwrap()
        })
        .unwrap();
        assert_eq!(client.agent, 1);
        assert_eq!(first, behind);
        let mut frames = Frames::of(first);
        let message = frames.next().unwrap().unwrap();
        let message: ToData = postcard::from_bytes(message).unwrap();
        assert!(matches!(message, ToData::ReleaseSlot(7)));
        assert!(frames.next().unwrap().is_none(), "half a message waits");
    }
}
