//! INIT as kernels from 5.4 to 6.18 send it.

use super::message;
use crate::handshake::{HandshakeError, Negotiated, Verdict, negotiate, parse_init};
use crate::wire::InitIn;
use crate::wire::flags::init;
use zerocopy::IntoBytes;

fn agreed(offer: &InitIn) -> (crate::wire::InitOut, Negotiated) {
    match negotiate(offer, false, false).unwrap() {
        Verdict::Agreed(out, negotiated) => (*out, negotiated),
        Verdict::AskAgain(_) => panic!("not agreed"),
    }
}

#[test]
fn locks_are_asked_for_where_other_nodes_may_lock() {
    let offer = InitIn {
        major: 7,
        minor: 45,
        flags: u32::MAX,
        ..InitIn::default()
    };
    let with = |remote_locks| match negotiate(&offer, false, remote_locks).unwrap() {
        Verdict::Agreed(_, negotiated) => negotiated,
        Verdict::AskAgain(_) => panic!("not agreed"),
    };
    assert!(with(true).has(init::POSIX_LOCKS | init::FLOCK_LOCKS));
    assert!(!with(false).has_remote_locks());
}

#[test]
fn a_new_kernel_gets_what_it_offers() {
    let offer = InitIn {
        major: 7,
        minor: 45,
        max_readahead: 131_072,
        flags: u32::MAX,
        flags2: u32::MAX,
        ..InitIn::default()
    };
    let (out, negotiated) = agreed(&offer);
    assert_eq!((out.major, out.minor), (7, 45));
    assert_eq!(out.max_write, 1 << 20);
    assert_eq!(out.max_pages, 256);
    assert_eq!(out.time_gran, 1);
    assert!(out.max_background >= 256);
    assert_eq!(out.congestion_threshold, out.max_background / 4 * 3);
    assert!(negotiated.handles_killpriv() && negotiated.setxattr_ext());
    assert!(negotiated.has(init::EXPLICIT_INVAL_DATA | init::HAS_EXPIRE_ONLY));
    for unwanted in [
        init::WRITEBACK_CACHE,
        init::ATOMIC_O_TRUNC,
        init::POSIX_LOCKS,
        init::FLOCK_LOCKS,
        init::OVER_IO_URING,
        init::POSIX_ACL,
    ] {
        assert_eq!(negotiated.flags & unwanted, 0);
    }
}

#[test]
fn debian_11_sends_the_short_form() {
    let offer = InitIn {
        major: 7,
        minor: 32,
        max_readahead: 131_072,
        flags: 0x03ff_fffb,
        ..InitIn::default()
    };
    let bytes = message(26, &offer.as_bytes()[..16]);
    let (_, parsed) = parse_init(&bytes).unwrap();
    assert_eq!(parsed, offer);
    let (out, negotiated) = agreed(&parsed);
    assert_eq!(out.flags2, 0);
    assert_eq!(negotiated.minor, 32);
    assert!(!negotiated.handles_killpriv() && !negotiated.setxattr_ext());
}

#[test]
fn the_upper_flags_count_only_when_announced() {
    let offer = InitIn {
        major: 7,
        minor: 45,
        flags: !(1 << 30),
        flags2: u32::MAX,
        ..InitIn::default()
    };
    assert_eq!(agreed(&offer).0.flags2, 0);
}

#[test]
fn other_versions_are_refused_or_asked_again() {
    let newer = InitIn {
        major: 8,
        minor: 0,
        ..InitIn::default()
    };
    let Verdict::AskAgain(out) = negotiate(&newer, false, false).unwrap() else {
        panic!("agreed on 8.0")
    };
    assert_eq!(out.major, 7);
    let older = InitIn {
        major: 7,
        minor: 30,
        ..InitIn::default()
    };
    assert_eq!(
        negotiate(&older, false, false),
        Err(HandshakeError::TooOld {
            major: 7,
            minor: 30
        })
    );
    assert_eq!(
        parse_init(&message(3, &[0; 16])),
        Err(HandshakeError::NotInit(3))
    );
    assert!(parse_init(b"").is_err());
}

#[test]
fn io_uring_is_agreed_on_only_when_it_is_wanted_and_offered() {
    let mut offer = InitIn {
        major: 7,
        minor: 45,
        flags: u32::MAX,
        flags2: u32::MAX,
        ..InitIn::default()
    };
    let over = |offer: &InitIn, wanted| match negotiate(offer, wanted, false).unwrap() {
        Verdict::Agreed(out, negotiated) => {
            let told = u64::from(out.flags2) << 32 & init::OVER_IO_URING != 0;
            assert_eq!(told, negotiated.over_io_uring());
            told
        }
        Verdict::AskAgain(_) => panic!("not agreed"),
    };
    assert!(over(&offer, true) && !over(&offer, false));
    offer.flags2 &= !(1 << 9);
    assert!(!over(&offer, true));
}
