//! Goal: each fault is what its name says, and with none the server behind cannot be told from the server itself.
//! Method: curl against moto through the proxy.

use super::*;
use crate::S3;
use crate::machine::output_of;
use std::process::{Command, Output};

fn curl(proxy: &FaultProxy, args: &[&str]) -> Output {
    let (path, options) = args.split_last().unwrap();
    let url = format!("{}/fastcache-tests/{path}", proxy.endpoint());
    output_of(
        Command::new("curl")
            .args(["-sS", "--max-time", "2"])
            .args(options)
            .arg(url),
    )
}

/// Public, since moto gives unsigned requests nothing else; and with a type, or it takes the body for a form.
fn put(proxy: &FaultProxy, body: &str, key: &str) -> Output {
    let of = [
        "-X",
        "PUT",
        "-H",
        "x-amz-acl: public-read",
        "-H",
        "Content-Type: application/octet-stream",
    ];
    curl(
        proxy,
        &[&of[..], &["-f", "--data-binary", body, key]].concat(),
    )
}

/// What curl says of it: its exit code.
fn code(out: &Output) -> i32 {
    out.status.code().unwrap()
}

#[test]
fn faults_do_what_they_say() {
    let s3 = S3::start();
    let proxy = FaultProxy::start(s3.port());
    let body = "0123456789".repeat(1000);
    let done = put(&proxy, &body, "a");
    assert_eq!(code(&done), 0, "{done:?}");
    assert!(curl(&proxy, &["-f", "a"]).stdout == body.as_bytes());
    let part = curl(&proxy, &["-f", "-r", "10-12", "a"]);
    assert_eq!(part.stdout, b"012");
    let seen = proxy.requests();
    assert_eq!(
        (seen.len(), seen[0].is_put(), seen[1].is_get()),
        (3, true, true)
    );
    assert_eq!(seen[2].range.as_deref(), Some("bytes=10-12"));
    assert_eq!(proxy.hurt(), 0);

    proxy.set(Fault::Corrupt);
    let wrong = curl(&proxy, &["-f", "a"]).stdout;
    let differing = wrong
        .iter()
        .zip(body.as_bytes())
        .filter(|(a, b)| a != b)
        .count();
    assert_eq!((wrong.len(), differing), (body.len(), 1));

    proxy.set(Fault::Truncate);
    let cut = curl(&proxy, &["-f", "a"]);
    assert_eq!(
        (code(&cut), cut.stdout.len()),
        (18, body.len() / 2),
        "transfer closed"
    );
    proxy.set(Fault::Shorten);
    let short = curl(&proxy, &["-f", "a"]);
    assert_eq!((code(&short), short.stdout.len()), (0, body.len() / 2));

    proxy.set(Fault::Status {
        code: 503,
        share: 1.0,
        retry_after_s: Some(7),
    });
    let busy = String::from_utf8(curl(&proxy, &["-i", "a"]).stdout).unwrap();
    assert!(busy.starts_with("HTTP/1.1 503 "), "{busy}");
    assert!(
        busy.contains("Retry-After: 7") && busy.contains("<Code>SlowDown</Code>"),
        "{busy}"
    );

    proxy.set(Fault::Reset { share: 1.0 });
    assert!(matches!(code(&curl(&proxy, &["a"])), 52 | 56), "no answer");
    proxy.set(Fault::BlackHole);
    assert_eq!(code(&curl(&proxy, &["a"])), 28, "time-out");

    proxy.set(Fault::Delay {
        delay: Duration::from_millis(300),
        share: 1.0,
    });
    let began = Instant::now();
    assert_eq!(code(&curl(&proxy, &["-f", "a"])), 0);
    assert!(began.elapsed() >= Duration::from_millis(300));
    proxy.set(Fault::Slow {
        bytes_per_second: 20_000,
    });
    let began = Instant::now();
    assert!(curl(&proxy, &["-f", "a"]).stdout == body.as_bytes());
    assert!(began.elapsed() >= Duration::from_millis(400));

    proxy.set(Fault::LoseAnswer);
    let lost = put(&proxy, "x", "lost");
    assert!(matches!(code(&lost), 52 | 56), "{lost:?}");
    proxy.set(Fault::Pass);
    assert_eq!(curl(&proxy, &["-f", "lost"]).stdout, b"x", "it took effect");
}

#[test]
fn refuses_and_comes_back_on_the_same_port() {
    let s3 = S3::start();
    let proxy = FaultProxy::start(s3.port());
    for _ in 0..3 {
        assert_eq!(code(&curl(&proxy, &["?list-type=2"])), 0);
        proxy.set(Fault::Refuse);
        assert_eq!(code(&curl(&proxy, &["?list-type=2"])), 7, "cannot connect");
        proxy.set(Fault::Pass);
    }
    let port = proxy.port();
    drop(proxy);
    let gone = output_of(Command::new("curl").args(["-s", &format!("http://127.0.0.1:{port}/")]));
    assert_eq!(code(&gone), 7);
}

#[test]
fn a_share_of_the_chosen_requests_is_hurt() {
    let s3 = S3::start();
    let proxy = FaultProxy::start(s3.port());
    assert_eq!(code(&put(&proxy, "x", "a")), 0);
    let fault = Fault::Status {
        code: 500,
        share: 0.5,
        retry_after_s: None,
    };
    proxy.set_where(fault, |r| r.is_get() && r.path.ends_with("/a"));
    for _ in 0..100 {
        curl(&proxy, &["a"]);
        assert_eq!(code(&curl(&proxy, &["-f", "?list-type=2"])), 0);
    }
    assert!((20..=80).contains(&proxy.hurt()), "{}", proxy.hurt());
    proxy.forget();
    assert_eq!((proxy.requests().len(), proxy.hurt()), (0, 0));
}
