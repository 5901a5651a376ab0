//! Bytes of a file on their way from a client: `PUT /api/files/{path}`.
//!
//! A `PUT` writes an inode that has no name yet and gives it its name when every byte is committed: readers see the
//! old contents or the new ones, never a part. A `PUT` that ends early, for whatever reason, leaves nothing:
//! [`Nameless`] sees to it. While it waits for its client it holds a place and at most two pieces, no slot.

use super::files::{JUDGED_MAX, precondition, sealed, value};
use super::path::FilePath;
use super::types::PutBody;
use super::{ApiError, Rest, etag, tree, turn};
use crate::Node;
use crate::link::lock;
use axum::Json;
use axum::body::{Body, BodyDataStream};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::BytesMut;
use fastcache_api::{Attr, Errno, Ino, Kind, NewInode, NsAnswer, NsOp, Version};
use futures_util::StreamExt;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Bytes of one write.
const PIECE: usize = 1 << 20;
/// In each window of this length ...
const WINDOW: Duration = Duration::from_secs(30);
/// ... at least so many bytes of a body have to come.
const WINDOW_BYTES: usize = 4096;
/// How long a `PUT` waits until its sealed contents are in the namespace.
const COMMIT_BOUND: Duration = Duration::from_secs(30);
/// How long what a client still sends is thrown away after an early error: one that only looks for the answer when
/// everything is sent would otherwise see a broken connection instead.
const LINGER: Duration = Duration::from_secs(5);
/// Permission bits of a new file.
const FILE_MODE: u32 = 0o644;

/// Answers a `PUT`.
pub async fn put(
    rest: &Rest,
    path: &FilePath,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let mut body = body.into_data_stream();
    let done = take(rest, path, headers, &mut body).await;
    // One that asked first (Expect: 100-continue) has sent nothing, and asking its body on would call for it.
    if done.is_err() && !headers.contains_key(header::EXPECT) {
        tokio::spawn(async move {
            let rest = async { while let Some(Ok(_)) = body.next().await {} };
            let _ = tokio::time::timeout(LINGER, rest).await;
        });
    }
    done
}

async fn take(
    rest: &Rest,
    path: &FilePath,
    headers: &HeaderMap,
    body: &mut BodyDataStream,
) -> Result<Response, ApiError> {
    let node = &rest.node;
    let limit = node.config().put_limit;
    check_headers(headers, limit)?;
    let about = |e| about_put(e, path);
    let before = tree::place(node, path).await.map_err(about)?;
    let before = judged(node, path, headers, before.and_then(|p| p.attr)).await?;
    let _place = turn(&rest.puts).await?;
    let mut file = Nameless::make(node, before.as_ref()).await.map_err(about)?;
    let size = receive(&mut file, body, limit, path).await?;
    // From here on it is done to the end, also when the client goes away: nothing is cut between two steps.
    let (node, path, headers) = (node.clone(), path.clone(), headers.clone());
    let finished = tokio::spawn(async move {
        let about = |e| about_put(e, &path);
        let ino = file.ino;
        node.seal(Some(ino), false).await.map_err(about)?;
        committed(&node, ino, size).await.map_err(about)?;
        give_name(&node, &path, &headers, ino).await?;
        file.keep();
        let attr = tree::getattr(&node, ino).await.map_err(about)?;
        let answer = PutBody {
            path: path.to_string(),
            size,
            chunks: size.div_ceil(u64::from(attr.chunk_size.max(1))),
            etag: etag::of(&attr),
        };
        Ok(([(header::ETAG, value(&answer.etag))], Json(answer)).into_response())
    });
    // A task that panicked has said so.
    finished.await.unwrap_or(Err(Errno::EIO.into()))
}

/// An errno of a `PUT`. What is missing is not the file, which need not exist, but something on the way to it.
fn about_put(errno: Errno, path: &FilePath) -> ApiError {
    if errno == Errno::ENOENT {
        return ApiError::new(
            StatusCode::CONFLICT,
            "conflict",
            format!(
                "{path}: a symbolic link on the way leads out of this file system or nowhere, or a \
                 directory was removed meanwhile"
            ),
        );
    }
    ApiError::of(errno, path)
}

fn check_headers(headers: &HeaderMap, limit: u64) -> Result<(), ApiError> {
    if headers.contains_key(header::CONTENT_RANGE) {
        return Err(ApiError::bad_request(
            "a PUT replaces the whole file: no Content-Range",
        ));
    }
    if headers
        .get(header::CONTENT_ENCODING)
        .is_some_and(|v| v != "identity")
    {
        return Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_encoding",
            "send the bytes as they are: no Content-Encoding".to_owned(),
        ));
    }
    match headers.get(header::CONTENT_LENGTH) {
        Some(v) => {
            let announced = v.to_str().ok().and_then(|v| v.parse::<u64>().ok());
            match announced {
                None => Err(ApiError::bad_request("Content-Length is not a number")),
                Some(n) if n > limit => Err(too_large(limit)),
                Some(_) => Ok(()),
            }
        }
        None if headers.contains_key(header::TRANSFER_ENCODING) => Ok(()),
        // By the letter it is an empty body; more often it is a body that got lost, and the file with it.
        None => Err(ApiError::new(
            StatusCode::LENGTH_REQUIRED,
            "length_required",
            "say how long the body is: Content-Length (0 for an empty file), or \
             Transfer-Encoding: chunked"
                .to_owned(),
        )),
    }
}

fn too_large(limit: u64) -> ApiError {
    ApiError::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "too_large",
        format!(
            "the body is larger than {limit} bytes (--put-limit); write larger files through the \
             mount"
        ),
    )
}

/// What is at a place, with what was written to it, when it may be replaced: it is a file or nothing, and the
/// preconditions hold.
async fn judged(
    node: &Node,
    path: &FilePath,
    headers: &HeaderMap,
    attr: Option<Attr>,
) -> Result<Option<Attr>, ApiError> {
    let about = |e| about_put(e, path);
    let attr = match attr {
        Some(attr) if attr.kind == Kind::Dir => return Err(about(Errno::EISDIR)),
        Some(attr) if etag::is_conditional(headers) => {
            Some(sealed(node, attr).await.map_err(about)?)
        }
        attr => attr,
    };
    let tag = attr.as_ref().map(etag::of);
    match etag::judge(headers, tag.as_deref()) {
        etag::Verdict::Proceed => Ok(attr),
        _ => Err(precondition(path)),
    }
}

/// Gives the file its name, replacing what has it. With preconditions, only what they were judged on: when that
/// changed in between, they are judged again.
async fn give_name(
    node: &Node,
    path: &FilePath,
    headers: &HeaderMap,
    ino: Ino,
) -> Result<(), ApiError> {
    let about = |e| about_put(e, path);
    for _ in 0..JUDGED_MAX {
        let place = match tree::place(node, path).await.map_err(about)? {
            Some(place) => place,
            None => {
                tree::make_dirs(node, path.split().0).await.map_err(about)?;
                match tree::place(node, path).await.map_err(about)? {
                    Some(place) => place,
                    // removed again already
                    None => continue,
                }
            }
        };
        let (parent, name) = (place.parent, place.name);
        let op = if etag::is_conditional(headers) {
            let attr = judged(node, path, headers, place.attr).await?;
            let expected = attr.map(|a| (a.ino, a.layout_version));
            NsOp::LinkReplaceIf {
                ino,
                parent,
                name,
                expected,
            }
        } else {
            NsOp::LinkReplace { ino, parent, name }
        };
        match node.ns(op).await.and_then(|r| r.result) {
            Ok(_) => return Ok(()),
            Err(Errno::ESTALE) => {}
            Err(e) => return Err(about(e)),
        }
    }
    if etag::is_conditional(headers) {
        Err(precondition(path))
    } else {
        Err(about(Errno::ENOENT))
    }
}

/// Writes a body into a file. Its length.
async fn receive(
    file: &mut Nameless,
    body: &mut BodyDataStream,
    limit: u64,
    path: &FilePath,
) -> Result<u64, ApiError> {
    let about = |e| ApiError::of(e, path);
    let mut buffer = BytesMut::with_capacity(PIECE);
    let mut size = 0u64;
    let mut window = (Instant::now() + WINDOW, 0usize);
    loop {
        let next = tokio::time::timeout_at(window.0, body.next())
            .await
            .map_err(|_| {
                ApiError::new(
                    StatusCode::REQUEST_TIMEOUT,
                    "body_timeout",
                    format!(
                        "{path}: fewer than {WINDOW_BYTES} bytes of the body came in {WINDOW:?}"
                    ),
                )
            })?;
        let Some(piece) = next else { break };
        let mut piece = piece.map_err(|e| {
            ApiError::new(
                StatusCode::BAD_REQUEST,
                "body_cut",
                format!("{path}: the body ended early: {e}"),
            )
        })?;
        window.1 += piece.len();
        if window.1 >= WINDOW_BYTES {
            window = (Instant::now() + WINDOW, 0);
        }
        size += piece.len() as u64;
        if size > limit {
            return Err(too_large(limit));
        }
        while !piece.is_empty() {
            let take = piece.len().min(PIECE - buffer.len());
            buffer.extend_from_slice(&piece.split_to(take));
            if buffer.len() == PIECE {
                file.write(&mut buffer).await.map_err(about)?;
                // waiting for the disk is not waiting for the client
                window = (Instant::now() + WINDOW, 0);
            }
        }
    }
    if !buffer.is_empty() {
        file.write(&mut buffer).await.map_err(about)?;
    }
    file.written().await.map_err(about)?;
    Ok(size)
}

/// Waits until the namespace has the contents: only then may the file get its name.
async fn committed(node: &Node, ino: Ino, size: u64) -> Result<(), Errno> {
    let wait = async {
        let mut pause = Duration::from_millis(1);
        loop {
            let attr = tree::getattr(node, ino).await?;
            if attr.size == size && (size == 0 || attr.layout_version != Version::NONE) {
                return Ok(());
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    };
    tokio::time::timeout(COMMIT_BOUND, wait)
        .await
        .unwrap_or(Err(Errno::ETIMEDOUT))
}

type Writing = JoinHandle<(BytesMut, Result<(), Errno>)>;

/// A file without a name, dropped unless it is kept: also when the client goes away and the handler with it.
struct Nameless {
    node: Node,
    ino: Ino,
    /// Bytes handed over to be written.
    len: u64,
    /// The write that runs, in a task of its own: it ends whoever goes away.
    writing: Option<Writing>,
    /// The buffer that is not being filled.
    spare: BytesMut,
    is_kept: bool,
    making: Making,
}

/// A file without a name is written: nobody else reaps it.
struct Making(Node, Ino);

impl Making {
    fn begin(node: &Node, ino: Ino) -> Making {
        lock(&node.inner().nameless).insert(ino);
        Making(node.clone(), ino)
    }

    /// It has a name, or is given up.
    fn end(&self) {
        lock(&self.0.inner().nameless).remove(&self.1);
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        self.end();
    }
}

impl Nameless {
    /// Makes one, with the owner and permissions of the file it is to replace.
    async fn make(node: &Node, before: Option<&Attr>) -> Result<Nameless, Errno> {
        let before = before.filter(|a| a.kind == Kind::File);
        let mut cred = tree::cred();
        if let Some(attr) = before {
            cred.uid = attr.uid;
            cred.gid = attr.gid;
        }
        let new = NewInode {
            kind: Kind::File,
            mode: before.map_or(FILE_MODE, |a| a.mode),
            rdev: 0,
            cred,
            target: Vec::new(),
            chunk_size: node.config().chunk_size,
        };
        let node = node.clone();
        // a task of its own: who goes away in the middle would leave an inode that nobody knows
        let made = tokio::spawn(async move {
            let reply = node.ns(NsOp::Make { at: None, new }).await?;
            match reply.result? {
                NsAnswer::Entry(attr) => Ok(Nameless {
                    making: Making::begin(&node, attr.ino),
                    node,
                    ino: attr.ino,
                    len: 0,
                    writing: None,
                    spare: BytesMut::new(),
                    is_kept: false,
                }),
                _ => Err(Errno::EIO),
            }
        });
        made.await.unwrap_or(Err(Errno::EIO))
    }

    /// Begins to write what is in the buffer at the end of the file, after the write before; the buffer is empty then.
    async fn write(&mut self, buffer: &mut BytesMut) -> Result<(), Errno> {
        self.written().await?;
        let full = std::mem::replace(buffer, std::mem::take(&mut self.spare));
        let (node, ino, at) = (self.node.clone(), self.ino, self.len);
        self.len += full.len() as u64;
        self.writing = Some(tokio::spawn(async move {
            let done = node.write_file(ino, at, &full).await;
            let mut empty = full;
            empty.clear();
            (empty, done)
        }));
        Ok(())
    }

    /// Waits for the write that runs.
    async fn written(&mut self) -> Result<(), Errno> {
        let Some(writing) = &mut self.writing else {
            return Ok(());
        };
        let done = writing.await;
        self.writing = None;
        // A task that panicked has said so.
        let (empty, done) = done.map_err(|_| Errno::EIO)?;
        self.spare = empty;
        done
    }

    /// It has a name now.
    fn keep(mut self) {
        self.is_kept = true;
    }
}

impl Drop for Nameless {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        self.making.end();
        let (node, ino, writing) = (self.node.clone(), self.ino, self.writing.take());
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        runtime.spawn(async move {
            if let Some(writing) = writing {
                let _ = writing.await;
            }
            if let Err(error) = reap(&node, ino).await {
                tracing::warn!(target: "rest", %error, %ino, "the rest of a cut PUT stays until the data plane restarts");
            }
        });
    }
}

/// Drops an inode that has no name, and its chunks. The namespace decides: when it has a name after all (the answer
/// to the naming got lost), it stays.
async fn reap(node: &Node, ino: Ino) -> Result<(), Errno> {
    node.ns(NsOp::Reap { inos: vec![ino] }).await?;
    match tree::getattr(node, ino).await {
        Err(Errno::ENOENT) => node.abandon(ino).await,
        Err(e) => Err(e),
        // It could not be reaped yet, because a node is away that may know it: the data plane tries again.
        Ok(attr) if attr.nlink == 0 => node.abandon(ino).await,
        Ok(_) => Ok(()),
    }
}
