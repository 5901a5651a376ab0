//! Who may talk to whom: both ends prove that they know the cluster's token without saying it, and that they are of one file
//! system.
//!
//! ```text
//!  who connects                                     who listens
//!    Hello      nonce, file system, id       ──►
//!                                            ◄──    Challenge  nonce, file system, id
//!    Proof      HMAC("connects", both)       ──►
//!                                            ◄──    Welcome    HMAC("listens", both)      or Refused, with a sentence
//! ```
//!
//! HMAC-SHA256 under the token over a word for the role, the payload of `Hello` and that of `Challenge`; compared in constant
//! time. What flows afterwards is neither encrypted nor signed.

use crate::frame::{FrameError, HANDSHAKE_MAX, HEADER_BYTES, Header, Kind, Status, VERSION};
use crate::stream::{Broken, Incoming};
use fastcache_reactor::{Fd, IoBuf, entropy};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use std::fmt;

/// Fewest bytes of a token: it must not be guessed.
pub const TOKEN_MIN: usize = 16;
/// Longest token, bytes.
pub const TOKEN_MAX: usize = 1024;
/// Longest id of a node, bytes.
pub const ID_MAX: usize = 128;

const NONCE_BYTES: usize = 32;
const MAC_BYTES: usize = 32;
const CONNECTS: &[u8] = b"fastcache peer connects";
const LISTENS: &[u8] = b"fastcache peer listens";

/// The secret that the nodes of a cluster share. Never printed.
#[derive(Clone)]
pub struct Token(Box<[u8]>);

impl Token {
    /// From its bytes, without white space around them (a file may end with a newline).
    ///
    /// # Errors
    /// A sentence when it is too short or too long.
    pub fn new(text: &[u8]) -> Result<Token, String> {
        let text = text.trim_ascii();
        if !(TOKEN_MIN..=TOKEN_MAX).contains(&text.len()) {
            return Err(format!(
                "the cluster token has {} bytes; it needs {TOKEN_MIN} to {TOKEN_MAX}, such as `openssl rand -hex 32` gives",
                text.len()
            ));
        }
        Ok(Token(text.into()))
    }

    fn mac(&self, role: &[u8], hello: &[u8], challenge: &[u8]) -> Option<Hmac<Sha256>> {
        // HMAC takes keys of any length.
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).ok()?;
        for part in [role, hello, challenge] {
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part);
        }
        Some(mac)
    }

    fn prove(&self, role: &[u8], hello: &[u8], challenge: &[u8]) -> Vec<u8> {
        self.mac(role, hello, challenge)
            .map(|mac| mac.finalize().into_bytes().to_vec())
            .unwrap_or_default()
    }

    fn is_proven(&self, role: &[u8], hello: &[u8], challenge: &[u8], proof: &[u8]) -> bool {
        proof.len() == MAC_BYTES
            && self
                .mac(role, hello, challenge)
                .is_some_and(|mac| mac.verify_slice(proof).is_ok())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(***)")
    }
}

/// What a node says of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Its id in the cluster, at most [`ID_MAX`] bytes.
    pub id: String,
    /// Number of the file system: what has the same key is the same bytes only within one.
    pub file_system: u64,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The stream broke, or a frame cannot be used.
    #[error(transparent)]
    Broken(#[from] Broken),
    /// The other node refused; its words.
    #[error("the other node refuses: {0}")]
    ByOther(String),
    /// This node refuses the other one.
    #[error("refused: {0}")]
    ByUs(String),
}

impl From<FrameError> for Refusal {
    fn from(error: FrameError) -> Refusal {
        Refusal::Broken(Broken::Frame(error))
    }
}

impl Refusal {
    fn unexpected(kind: Kind) -> Refusal {
        Refusal::ByUs(format!("{kind:?} is not what comes next in the handshake"))
    }
}

/// A frame with a short payload, ready to be sent.
fn frame(kind: Kind, status: Status, payload: &[u8]) -> IoBuf {
    let payload = &payload[..payload.len().min(HANDSHAKE_MAX)];
    let header = Header {
        status,
        ..Header::new(kind, 0).with_payload(payload)
    };
    let mut buf = IoBuf::alloc(HEADER_BYTES + payload.len());
    buf[..HEADER_BYTES].copy_from_slice(&header.encode());
    buf[HEADER_BYTES..].copy_from_slice(payload);
    buf
}

async fn say(stream: &Fd, kind: Kind, payload: &[u8]) -> Result<(), Refusal> {
    let (sent, _) = stream.send_whole(frame(kind, Status::Ok, payload)).await;
    sent.map_err(|e| Refusal::Broken(Broken::Io(e)))
}

/// Refuses, as far as the other node still listens.
async fn refuse(stream: &Fd, status: Status, why: &str) -> Refusal {
    let _ = stream
        .send_whole(frame(Kind::Refused, status, why.as_bytes()))
        .await;
    Refusal::ByUs(why.to_owned())
}

/// The payload of `Hello` and `Challenge`.
fn introduction(me: &Identity) -> Result<Vec<u8>, Refusal> {
    let mut nonce = [0; NONCE_BYTES];
    entropy(&mut nonce).map_err(|e| Refusal::Broken(Broken::Io(e)))?;
    let id = &me.id.as_bytes()[..me.id.len().min(ID_MAX)];
    let mut bytes = nonce.to_vec();
    bytes.extend(me.file_system.to_le_bytes());
    bytes.extend(id);
    Ok(bytes)
}

/// Reads an introduction. Any bytes may come.
pub(crate) fn introduced(bytes: &[u8]) -> Result<Identity, FrameError> {
    let wrong = FrameError::Bounds("an introduction");
    let (_nonce, rest) = bytes.split_at_checked(NONCE_BYTES).ok_or(wrong)?;
    let (file_system, id) = rest.split_first_chunk::<8>().ok_or(wrong)?;
    let id = std::str::from_utf8(id).map_err(|_| wrong)?;
    if id.len() > ID_MAX || id.chars().any(char::is_control) {
        return Err(wrong);
    }
    Ok(Identity {
        id: id.to_owned(),
        file_system: u64::from_le_bytes(*file_system),
    })
}

/// The next frame, which has to be of this kind.
async fn expect(incoming: &mut Incoming, kind: Kind) -> Result<Vec<u8>, Refusal> {
    let Some(header) = incoming.header().await? else {
        return Err(Refusal::Broken(Broken::Ended));
    };
    let is_refusal = header.kind == Kind::Refused;
    if header.kind != kind && !is_refusal {
        return Err(Refusal::unexpected(header.kind));
    }
    let buf = IoBuf::alloc(header.payload as usize);
    let payload = incoming.payload(&header, buf).await?;
    if is_refusal {
        let why: String = String::from_utf8_lossy(&payload)
            .chars()
            .filter(|c| !c.is_control())
            .collect();
        return Err(Refusal::ByOther(why));
    }
    Ok(payload.to_vec())
}

fn other_file_system(me: &Identity, other: &Identity) -> String {
    format!(
        "node {} is of file system {:x}, node {} of {:x}",
        other.id, other.file_system, me.id, me.file_system
    )
}

/// The side that connected. Returns who listens.
pub(crate) async fn connect(
    stream: &Fd,
    incoming: &mut Incoming,
    token: &Token,
    me: &Identity,
) -> Result<Identity, Refusal> {
    let hello = introduction(me)?;
    say(stream, Kind::Hello, &hello).await?;
    let challenge = expect(incoming, Kind::Challenge).await?;
    let other = introduced(&challenge)?;
    say(
        stream,
        Kind::Proof,
        &token.prove(CONNECTS, &hello, &challenge),
    )
    .await?;
    let proof = expect(incoming, Kind::Welcome).await?;
    if !token.is_proven(LISTENS, &hello, &challenge, &proof) {
        let why = format!("node {} does not know the cluster token", other.id);
        return Err(Refusal::ByUs(why));
    }
    if other.file_system != me.file_system {
        return Err(Refusal::ByUs(other_file_system(me, &other)));
    }
    Ok(other)
}

/// The side that listens. Returns who connected. `me` is `None` while this node does not know who it is.
pub(crate) async fn accept(
    stream: &Fd,
    incoming: &mut Incoming,
    token: &Token,
    me: Option<&Identity>,
) -> Result<Identity, Refusal> {
    let hello = match expect(incoming, Kind::Hello).await {
        Ok(hello) => hello,
        Err(Refusal::Broken(Broken::Frame(error @ FrameError::Version { theirs }))) => {
            let why = format!(
                "this node speaks version {VERSION} of the peer protocol, the other one {theirs}: install the same release on both"
            );
            refuse(stream, Status::Version, &why).await;
            return Err(error.into());
        }
        Err(Refusal::ByUs(why)) => {
            return Err(refuse(stream, Status::Token, &format!("no handshake: {why}")).await);
        }
        Err(error) => return Err(error),
    };
    let other = introduced(&hello)?;
    let Some(me) = me else {
        let why = "this node has not heard of its cluster yet";
        return Err(refuse(stream, Status::NotReady, why).await);
    };
    let challenge = introduction(me)?;
    say(stream, Kind::Challenge, &challenge).await?;
    let proof = match expect(incoming, Kind::Proof).await {
        Ok(proof) => proof,
        Err(Refusal::ByUs(why)) => {
            return Err(refuse(stream, Status::Token, &format!("no proof: {why}")).await);
        }
        Err(error) => return Err(error),
    };
    if !token.is_proven(CONNECTS, &hello, &challenge, &proof) {
        let why = format!("node {} does not know this cluster's token", other.id);
        return Err(refuse(stream, Status::Token, &why).await);
    }
    if other.file_system != me.file_system {
        let why = other_file_system(me, &other);
        return Err(refuse(stream, Status::FileSystem, &why).await);
    }
    say(
        stream,
        Kind::Welcome,
        &token.prove(LISTENS, &hello, &challenge),
    )
    .await?;
    Ok(other)
}
