//! Entity tags and the preconditions built on them (RFC 9110, sections 8.8.3 and 13).

use axum::http::{HeaderMap, HeaderName, header};
use fastcache_api::Attr;

/// The tag of a file's contents: strong, because a layout version names bytes that never change.
pub fn of(attr: &Attr) -> String {
    format!("\"{:x}-{:x}\"", attr.ino.0, attr.layout_version.0)
}

/// Whether a header such as `If-Match` names `etag`; `*` names any. `weak` also accepts `W/"…"`.
pub fn names(header: &str, etag: &str, weak: bool) -> bool {
    header.split(',').map(str::trim).any(|tag| {
        tag == "*" || tag == etag || (weak && tag.strip_prefix("W/").is_some_and(|t| t == etag))
    })
}

/// Whether any header of this name does.
fn any_names(headers: &HeaderMap, name: HeaderName, etag: &str, weak: bool) -> bool {
    headers
        .get_all(name)
        .iter()
        .any(|value| value.to_str().is_ok_and(|v| names(v, etag, weak)))
}

/// What the preconditions of a request say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Go on.
    Proceed,
    /// The client has it already: 304 for GET and HEAD, 412 for the rest.
    Have,
    /// 412.
    Failed,
}

/// Whether a request has preconditions.
pub fn is_conditional(headers: &HeaderMap) -> bool {
    headers.contains_key(header::IF_MATCH) || headers.contains_key(header::IF_NONE_MATCH)
}

/// Judges `If-Match` and `If-None-Match` against what is there (`None`: nothing).
pub fn judge(headers: &HeaderMap, etag: Option<&str>) -> Verdict {
    if headers.contains_key(header::IF_MATCH)
        && !etag.is_some_and(|t| any_names(headers, header::IF_MATCH, t, false))
    {
        return Verdict::Failed;
    }
    if etag.is_some_and(|t| any_names(headers, header::IF_NONE_MATCH, t, true)) {
        return Verdict::Have;
    }
    Verdict::Proceed
}

/// Whether `Range` may be honoured under `If-Range`: its tag, if any, is the file's. Dates never match, because
/// no `Last-Modified` is sent.
pub fn range_applies(headers: &HeaderMap, etag: &str) -> bool {
    headers
        .get(header::IF_RANGE)
        .is_none_or(|value| value.to_str().is_ok_and(|v| v.trim() == etag))
}
