//! `/api/files/{path}`: bytes of files, streamed both ways.
//!
//! A `PUT` writes an inode that has no name yet and gives it its name when every byte is committed: readers see the
//! old contents or the new ones, never a part. A `PUT` that ends early leaves nothing: [`Orphan`] sees to it.

use super::path::{FilePath, Target, target};
use super::range::{Selected, select};
use super::types::{PutBody, SizeBody};
use super::{ApiError, Rest, etag, tree};
use crate::Node;
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use fastcache_api::control::SLOT_BYTES;
use fastcache_api::{Attr, Errno, Ino, Kind, NewInode, NsAnswer, NsOp, Version};
use futures_util::{StreamExt, stream};
use std::time::Duration;

/// Bytes of one piece of a stream: one chunk of the default size.
const PIECE: u64 = 4 << 20;
/// Pieces read ahead of the client.
const READ_AHEAD: usize = 2;
/// How long a `PUT` waits for the next bytes of its body.
const BODY_IDLE: Duration = Duration::from_secs(60);
/// How long a `PUT` waits until its sealed contents are in the namespace.
const COMMIT_BOUND: Duration = Duration::from_secs(30);
/// Permission bits of a new file.
const FILE_MODE: u32 = 0o644;

/// `/api/files` without a path.
pub async fn no_path() -> ApiError {
    super::PathError::Empty.into()
}

fn target_of(uri: &Uri) -> Result<Target, ApiError> {
    Ok(target(
        uri.path().strip_prefix("/api/files/").unwrap_or_default(),
    )?)
}

fn file_of(method: &Method, uri: &Uri) -> Result<FilePath, ApiError> {
    match target_of(uri)? {
        Target::File(path) => Ok(path),
        Target::Size(_) => Err(ApiError::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            format!(
                "{method} does not go with the suffix /size; a file of that name is written as \
                 %2Fsize"
            ),
        )),
    }
}

/// A regular file with everything that was written to it so far: what an application has open is sealed first,
/// because `close` does not wait until its contents are in the namespace.
async fn current(node: &Node, path: &FilePath) -> Result<Attr, ApiError> {
    let attr = tree::find(node, path)
        .await
        .map_err(|e| ApiError::of(e, path))?;
    match attr.kind {
        Kind::File => {}
        Kind::Dir => return Err(ApiError::of(Errno::EISDIR, path)),
        _ => {
            return Err(ApiError::new(
                StatusCode::CONFLICT,
                "not_a_file",
                format!("{path}: is not a regular file"),
            ));
        }
    }
    if let Err(error) = node.seal(Some(attr.ino), false).await {
        tracing::debug!(target: "rest", %error, ino = %attr.ino, "not sealed; committed contents");
        return Ok(attr);
    }
    tree::getattr(node, attr.ino)
        .await
        .map_err(|e| ApiError::of(e, path))
}

fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""))
}

/// `GET /api/files/{path}` and `…/size`.
pub async fn get_file(
    State(rest): State<Rest>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    match target_of(&uri)? {
        Target::Size(path) => {
            let size = current(&rest.node, &path).await?.size;
            Ok(Json(SizeBody { size }).into_response())
        }
        Target::File(path) => answer_file(rest, &method, &headers, path).await,
    }
}

/// `HEAD /api/files/{path}`: the headers of the `GET`.
pub async fn head_file(
    State(rest): State<Rest>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    match target_of(&uri)? {
        Target::Size(path) => {
            let size = current(&rest.node, &path).await?.size;
            Ok(Json(SizeBody { size }).into_response())
        }
        Target::File(path) => answer_file(rest, &method, &headers, path).await,
    }
}

async fn answer_file(
    rest: Rest,
    method: &Method,
    headers: &HeaderMap,
    path: FilePath,
) -> Result<Response, ApiError> {
    let attr = current(&rest.node, &path).await?;
    let tag = etag::of(&attr);
    match etag::judge(headers, Some(&tag)) {
        etag::Verdict::Proceed => {}
        etag::Verdict::Have => {
            return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, value(&tag))]).into_response());
        }
        etag::Verdict::Failed => return Err(precondition(&path)),
    }
    let range = headers
        .get(header::RANGE)
        .and_then(|v| v.to_str().ok())
        // RFC 9110: Range is defined for GET only
        .filter(|_| *method == Method::GET && etag::range_applies(headers, &tag));
    let selected = range.map_or(Selected::Whole, |r| select(r, attr.size));
    let (status, start, len) = match selected {
        Selected::Whole => (StatusCode::OK, 0, attr.size),
        Selected::Part { start, len } => (StatusCode::PARTIAL_CONTENT, start, len),
        Selected::Unsatisfiable => {
            return Err(ApiError::new(
                StatusCode::RANGE_NOT_SATISFIABLE,
                "range_not_satisfiable",
                format!("{path}: has {} bytes", attr.size),
            )
            .with_header(
                header::CONTENT_RANGE,
                value(&format!("bytes */{}", attr.size)),
            ));
        }
    };
    let body = if *method == Method::HEAD || len == 0 {
        Body::empty()
    } else {
        contents(rest, attr.ino, start, len)
            .await
            .map_err(|e| ApiError::of(e, &path))?
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let h = response.headers_mut();
    h.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    h.insert(header::CONTENT_LENGTH, HeaderValue::from(len));
    h.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    h.insert(header::ETAG, value(&tag));
    if status == StatusCode::PARTIAL_CONTENT {
        let last = start + len - 1;
        h.insert(
            header::CONTENT_RANGE,
            value(&format!("bytes {start}-{last}/{}", attr.size)),
        );
    }
    Ok(response)
}

fn precondition(path: &FilePath) -> ApiError {
    ApiError::new(
        StatusCode::PRECONDITION_FAILED,
        "precondition_failed",
        format!("{path}: If-Match or If-None-Match does not hold"),
    )
}

/// A body that reads as the client takes it. The first piece is read before the status is sent, so that a file
/// that cannot be read is an error and not a cut connection.
async fn contents(rest: Rest, ino: Ino, start: u64, len: u64) -> Result<Body, Errno> {
    // the semaphore is never closed
    let permit = rest
        .gets
        .clone()
        .acquire_owned()
        .await
        .map_err(|_| Errno::EAGAIN)?;
    let end = start.saturating_add(len);
    let piece = move |at: u64| (PIECE - at % PIECE).min(end - at);
    let first_len = piece(start);
    let first = exact(&rest.node, ino, start, first_len).await?;
    let rest_of = stream::iter(std::iter::successors(Some(start + first_len), move |at| {
        Some(at + piece(*at))
    }))
    .take_while(move |at| std::future::ready(*at < end))
    .map(move |at| {
        let node = rest.node.clone();
        async move {
            exact(&node, ino, at, piece(at)).await.map_err(|error| {
                tracing::warn!(target: "rest", %error, %ino, offset = at, "a download was cut");
                std::io::Error::from_raw_os_error(error.code())
            })
        }
    })
    .buffered(READ_AHEAD);
    let all = stream::once(std::future::ready(Ok(first)))
        .chain(rest_of)
        .inspect(move |_| {
            let _ = &permit;
        });
    Ok(Body::from_stream(all))
}

/// Exactly so many bytes; the file may have become shorter meanwhile, and then the answer cannot be completed.
async fn exact(node: &Node, ino: Ino, offset: u64, len: u64) -> Result<Bytes, Errno> {
    let want = u32::try_from(len).map_err(|_| Errno::EINVAL)?;
    let bytes = node.read_file(ino, offset, want).await?;
    if bytes.len() as u64 == len {
        Ok(bytes)
    } else {
        Err(Errno::ESTALE)
    }
}

/// `DELETE /api/files/{path}`: removes the name. 204.
pub async fn delete_file(
    State(rest): State<Rest>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Result<StatusCode, ApiError> {
    let path = file_of(&method, &uri)?;
    let about = |e| ApiError::of(e, &path);
    let (parents, name) = path.split();
    let parent = match FilePath::from_bytes(&parents.join(&b'/')) {
        Ok(dir) => tree::find(&rest.node, &dir).await.map_err(about)?.ino,
        Err(_) => Ino::ROOT,
    };
    let attr = tree::lookup(&rest.node, parent, name)
        .await
        .map_err(|e| match e {
            Errno::ENOTDIR => about(Errno::ENOENT),
            e => about(e),
        })?;
    if etag::judge(&headers, Some(&etag::of(&attr))) != etag::Verdict::Proceed {
        return Err(precondition(&path));
    }
    let op = NsOp::Unlink {
        parent,
        name: name.to_vec(),
    };
    rest.node
        .ns(op)
        .await
        .and_then(|r| r.result)
        .map_err(about)?;
    Ok(StatusCode::NO_CONTENT)
}

/// `PUT /api/files/{path}`.
pub async fn put_file(
    State(rest): State<Rest>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let path = file_of(&method, &uri)?;
    let node = &rest.node;
    let limit = node.config().put_limit;
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
    let announced = match headers.get(header::CONTENT_LENGTH) {
        None => None,
        Some(v) => Some(
            v.to_str()
                .ok()
                .and_then(|v| v.parse::<u64>().ok())
                .ok_or_else(|| ApiError::bad_request("Content-Length is not a number"))?,
        ),
    };
    if announced.is_some_and(|n| n > limit) {
        return Err(too_large(limit));
    }
    let about = |e| ApiError::of(e, &path);
    let before = match tree::find(node, &path).await {
        Ok(attr) if attr.kind == Kind::Dir => return Err(about(Errno::EISDIR)),
        Ok(attr) => Some(attr),
        Err(Errno::ENOENT) => None,
        Err(e) => return Err(about(e)),
    };
    if etag::judge(&headers, before.as_ref().map(etag::of).as_deref()) != etag::Verdict::Proceed {
        return Err(precondition(&path));
    }
    let _permit = rest
        .puts
        .clone()
        .acquire_owned()
        .await
        .map_err(|_| Errno::EAGAIN)?;
    let orphan = Orphan::make(node, before.as_ref()).await.map_err(about)?;
    let ino = orphan.ino;
    let size = receive(node, ino, body, limit, &path).await?;
    node.seal(Some(ino), false).await.map_err(about)?;
    committed(node, ino, size).await.map_err(about)?;
    let (parents, name) = path.split();
    let parent = tree::make_dirs(node, parents).await.map_err(about)?;
    let op = NsOp::LinkReplace {
        ino,
        parent,
        name: name.to_vec(),
    };
    node.ns(op).await.and_then(|r| r.result).map_err(about)?;
    orphan.keep();
    let attr = tree::getattr(node, ino).await.map_err(about)?;
    let tag = etag::of(&attr);
    let answer = PutBody {
        path: path.to_string(),
        size,
        chunks: size.div_ceil(u64::from(attr.chunk_size.max(1))),
        etag: tag.clone(),
    };
    Ok(([(header::ETAG, value(&tag))], Json(answer)).into_response())
}

fn too_large(limit: u64) -> ApiError {
    ApiError::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "too_large",
        format!("the body is larger than {limit} bytes; write larger files through the mount"),
    )
}

/// Writes a body into a file, slot by slot. Its length.
async fn receive(
    node: &Node,
    ino: Ino,
    body: Body,
    limit: u64,
    path: &FilePath,
) -> Result<u64, ApiError> {
    let about = |e| ApiError::of(e, path);
    let mut stream = body.into_data_stream();
    let mut buffer = BytesMut::new();
    let mut written = 0u64;
    loop {
        let next = tokio::time::timeout(BODY_IDLE, stream.next())
            .await
            .map_err(|_| {
                ApiError::new(
                    StatusCode::REQUEST_TIMEOUT,
                    "body_timeout",
                    format!("{path}: no bytes came for {BODY_IDLE:?}"),
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
        if written + buffer.len() as u64 + piece.len() as u64 > limit {
            return Err(too_large(limit));
        }
        while !piece.is_empty() {
            let take = piece.len().min(SLOT_BYTES - buffer.len());
            buffer.extend_from_slice(&piece.split_to(take));
            if buffer.len() == SLOT_BYTES {
                node.write_file(ino, written, &buffer)
                    .await
                    .map_err(about)?;
                written += buffer.len() as u64;
                buffer.clear();
            }
        }
    }
    if !buffer.is_empty() {
        node.write_file(ino, written, &buffer)
            .await
            .map_err(about)?;
        written += buffer.len() as u64;
    }
    Ok(written)
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

/// A file without a name, dropped unless it is kept: also when the client goes away and the handler with it.
struct Orphan {
    node: Node,
    ino: Ino,
    is_kept: bool,
}

impl Orphan {
    /// Makes one, with the owner and permissions of the file it is to replace.
    async fn make(node: &Node, before: Option<&Attr>) -> Result<Orphan, Errno> {
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
        let reply = node.ns(NsOp::Make { at: None, new }).await?;
        match reply.result? {
            NsAnswer::Entry(attr) => Ok(Orphan {
                node: node.clone(),
                ino: attr.ino,
                is_kept: false,
            }),
            _ => Err(Errno::EIO),
        }
    }

    /// It has a name now.
    fn keep(mut self) {
        self.is_kept = true;
    }
}

impl Drop for Orphan {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        let (node, ino) = (self.node.clone(), self.ino);
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        runtime.spawn(async move {
            // sealed first, so that its chunks are known and go with the inode
            let _ = node.seal(Some(ino), false).await;
            if let Err(error) = node.ns(NsOp::Reap { inos: vec![ino] }).await {
                tracing::warn!(target: "rest", %error, %ino, "the rest of a cut PUT stays an orphan until the data plane restarts");
            }
        });
    }
}
