//! Goal: what a client may send is judged as DESIGN section 6 says, whatever it sends. Method: tables over the
//! pure functions, then the router with a node whose data plane is away.

use super::error::eloop;
use super::path::{FilePath, PathError, Target, encode, parameter, target};
use super::range::{Selected, select};
use super::{etag, status_of};
use axum::http::{HeaderMap, HeaderValue, header};
use fastcache_api::Errno;

fn names(path: &str) -> FilePath {
    FilePath::from_bytes(path.as_bytes()).unwrap()
}

#[test]
fn path_rules() {
    let long = "n".repeat(256);
    let deep = "d/".repeat(2049);
    let refused: &[(&str, PathError)] = &[
        ("", PathError::Empty),
        ("/etc/passwd", PathError::Absolute),
        ("%2Fetc/passwd", PathError::Absolute),
        ("a//b", PathError::EmptyComponent),
        ("a/b/", PathError::EmptyComponent),
        ("a%2F%2Fb", PathError::EmptyComponent),
        (".", PathError::Dots),
        ("..", PathError::Dots),
        ("a/../b", PathError::Dots),
        ("a/./b", PathError::Dots),
        ("a/%2e%2e/b", PathError::Dots),
        ("a%2F..%2Fb", PathError::Dots),
        ("%2E%2E%2Fx", PathError::Dots),
        ("../size", PathError::Dots),
        ("a%00b", PathError::Nul),
        ("a%", PathError::Escape),
        ("a%4", PathError::Escape),
        ("a%zz", PathError::Escape),
        ("a%+1", PathError::Escape),
        ("/size", PathError::Empty),
        (&long, PathError::NameTooLong),
        (&deep, PathError::TooLong),
    ];
    for (raw, why) in refused {
        assert_eq!(target(raw), Err(*why), "{raw:?}");
    }
    let taken: &[(&str, Target)] = &[
        ("a", Target::File(names("a"))),
        ("size", Target::File(names("size"))),
        ("a/b.txt", Target::File(names("a/b.txt"))),
        ("a%2Fb", Target::File(names("a/b"))),
        ("a+b", Target::File(names("a+b"))),
        ("a%20b", Target::File(names("a b"))),
        ("...", Target::File(names("..."))),
        ("..a/b..", Target::File(names("..a/b.."))),
        ("%252e%252e", Target::File(names("%2e%2e"))),
        ("a/size", Target::Size(names("a"))),
        ("a%2Fsize", Target::File(names("a/size"))),
        ("a%2Fsize/size", Target::Size(names("a/size"))),
        ("size/size", Target::Size(names("size"))),
        ("a/SIZE", Target::File(names("a/SIZE"))),
        ("a\\..\\b", Target::File(names("a\\..\\b"))),
    ];
    for (raw, what) in taken {
        assert_eq!(target(raw).as_ref(), Ok(what), "{raw:?}");
    }
    let bytes = FilePath::from_encoded("%FF%fe").unwrap();
    assert_eq!(bytes.names(), &[vec![0xff, 0xfe]]);
}

#[test]
fn what_is_encoded_comes_back() {
    let all: Vec<u8> = (1..=255).filter(|b| *b != b'/').collect();
    assert_eq!(
        FilePath::from_encoded(&encode(&all, true)).unwrap().names(),
        std::slice::from_ref(&all)
    );
    let query = format!("x=1&path={}", encode(&all, false));
    assert_eq!(parameter(Some(&query), "path").unwrap(), Some(all));
    assert_eq!(
        parameter(Some("path=a+b"), "path").unwrap(),
        Some(b"a b".to_vec())
    );
    assert_eq!(parameter(Some("wait"), "wait").unwrap(), Some(Vec::new()));
    assert_eq!(parameter(None, "path").unwrap(), None);
    assert_eq!(parameter(Some("path=%"), "path"), Err(PathError::Escape));
}

#[test]
fn ranges() {
    let part = |start, len| Selected::Part { start, len };
    let big = "99999999999999999999999";
    let table: &[(&str, u64, Selected)] = &[
        ("bytes=0-0", 10, part(0, 1)),
        ("bytes=0-9", 10, part(0, 10)),
        ("bytes=0-10", 10, part(0, 10)),
        ("bytes=5-", 10, part(5, 5)),
        ("bytes=9-", 10, part(9, 1)),
        ("bytes=-1", 10, part(9, 1)),
        ("bytes=-10", 10, part(0, 10)),
        ("bytes=-11", 10, part(0, 10)),
        ("Bytes=1-2", 10, part(1, 2)),
        ("bytes=10-", 10, Selected::Unsatisfiable),
        ("bytes=10-20", 10, Selected::Unsatisfiable),
        ("bytes=-0", 10, Selected::Unsatisfiable),
        ("bytes=0-", 0, Selected::Unsatisfiable),
        ("bytes=-5", 0, Selected::Unsatisfiable),
        ("bytes=5-4", 10, Selected::Whole),
        ("bytes=-", 10, Selected::Whole),
        ("bytes=", 10, Selected::Whole),
        ("bytes", 10, Selected::Whole),
        ("", 10, Selected::Whole),
        ("items=0-1", 10, Selected::Whole),
        ("bytes=0-1,3-4", 10, Selected::Whole),
        ("bytes=a-b", 10, Selected::Whole),
        ("bytes=+1-2", 10, Selected::Whole),
        ("bytes=1--2", 10, Selected::Whole),
        ("bytes=0-18446744073709551615", u64::MAX, part(0, u64::MAX)),
    ];
    for (header, size, what) in table {
        assert_eq!(select(header, *size), *what, "{header:?} of {size}");
    }
    assert_eq!(
        select(&format!("bytes={big}-"), 10),
        Selected::Unsatisfiable
    );
    assert_eq!(select(&format!("bytes=2-{big}"), 10), part(2, 8));
    assert_eq!(select(&format!("bytes=-{big}"), 10), part(0, 10));
}

#[test]
fn preconditions() {
    let with = |name, text: &str| {
        let mut h = HeaderMap::new();
        h.insert(name, HeaderValue::from_str(text).unwrap());
        h
    };
    let here = Some("\"1-2\"");
    use etag::Verdict::{Failed, Have, Proceed};
    assert_eq!(etag::judge(&HeaderMap::new(), here), Proceed);
    assert_eq!(
        etag::judge(&with(header::IF_MATCH, "\"1-2\""), here),
        Proceed
    );
    assert_eq!(
        etag::judge(&with(header::IF_MATCH, "\"0\", \"1-2\""), here),
        Proceed
    );
    assert_eq!(etag::judge(&with(header::IF_MATCH, "*"), here), Proceed);
    assert_eq!(etag::judge(&with(header::IF_MATCH, "*"), None), Failed);
    assert_eq!(
        etag::judge(&with(header::IF_MATCH, "W/\"1-2\""), here),
        Failed
    );
    assert_eq!(etag::judge(&with(header::IF_MATCH, "\"x\""), here), Failed);
    assert_eq!(
        etag::judge(&with(header::IF_NONE_MATCH, "W/\"1-2\""), here),
        Have
    );
    assert_eq!(etag::judge(&with(header::IF_NONE_MATCH, "*"), here), Have);
    assert_eq!(
        etag::judge(&with(header::IF_NONE_MATCH, "*"), None),
        Proceed
    );
    assert_eq!(
        etag::judge(&with(header::IF_NONE_MATCH, "\"x\""), here),
        Proceed
    );
    let mut odd = HeaderMap::new();
    odd.insert(header::IF_MATCH, HeaderValue::from_bytes(b"\xff").unwrap());
    assert_eq!(etag::judge(&odd, here), Failed);
    assert!(etag::range_applies(&HeaderMap::new(), "\"1-2\""));
    assert!(etag::range_applies(
        &with(header::IF_RANGE, "\"1-2\""),
        "\"1-2\""
    ));
    assert!(!etag::range_applies(
        &with(header::IF_RANGE, "Tue, 1 Jan 2030"),
        "\"1-2\""
    ));
}

#[test]
fn every_errno_has_a_status() {
    let table = [
        (Errno::ENOENT, 404),
        (Errno::EISDIR, 409),
        (Errno::ENOTDIR, 409),
        (Errno::EEXIST, 409),
        (Errno::ENOTEMPTY, 409),
        (Errno::ESTALE, 409),
        (Errno::EINVAL, 400),
        (Errno::ENAMETOOLONG, 400),
        (Errno::EACCES, 403),
        (Errno::EPERM, 403),
        (Errno::EFBIG, 413),
        (Errno::ENOSPC, 507),
        (Errno::ENOTCONN, 503),
        (Errno::EAGAIN, 503),
        (Errno::ETIMEDOUT, 504),
        (Errno::ENOTSUP, 501),
        (Errno::EIO, 500),
        (eloop(), 409),
    ];
    for (errno, status) in table {
        assert_eq!(status_of(errno).0.as_u16(), status, "{errno}");
    }
    for code in 1..200 {
        let status = status_of(Errno::from_code(code)).0;
        assert!(
            status.is_client_error() || status.is_server_error(),
            "{code}"
        );
    }
}
