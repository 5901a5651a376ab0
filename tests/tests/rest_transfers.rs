//! Promise: a REST transfer costs little memory, whatever its size; and a client that is slow, stops, or vanishes takes
//! nothing from the others and leaves nothing behind.

use fastcache_tests::{
    Answer, Bytes, Http, Node, Plane, Setup, read_answer, serial, vanish, wait_until,
};
use rustix::net::sockopt;
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
/// What one transfer may add to the resident memory of a process.
const RISE_MAX: u64 = 64 * MIB;
/// `PUT` is limited to this unless configured.
const LARGE: usize = 100 << 20;
/// Longest a transfer waits for others that do nothing: they are cut after 30 s.
const CUT: Duration = Duration::from_secs(55);

/// A line of /proc/PID/status, bytes.
fn memory(node: &Node, plane: Plane, what: &str) -> u64 {
    let pid = node.pid(plane).expect("it runs");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let line = status.lines().find(|l| l.starts_with(what));
    let kib = line.and_then(|l| l.split_whitespace().nth(1));
    kib.and_then(|n| n.parse::<u64>().ok()).expect("a number") << 10
}

/// Runs something; by how much the resident memory of each plane was higher than before, at its highest.
fn rise(node: &Node, mut what: impl FnMut()) -> [u64; 2] {
    let before = [Plane::Agent, Plane::Data].map(|plane| {
        let pid = node.pid(plane).expect("it runs");
        // 5: the highest so far begins anew
        std::fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("clear_refs");
        (plane, memory(node, plane, "VmRSS:"))
    });
    what();
    before.map(|(plane, at)| memory(node, plane, "VmHWM:").saturating_sub(at))
}

/// Sends bytes as a body, made as they go.
fn put_streamed(http: &Http, path: &str, content: Bytes, len: usize) -> Answer {
    let head = format!("Content-Length: {len}\r\n");
    let mut stream = http.begin("PUT", path, &head).expect("connect");
    let mut buf = vec![0; 1 << 20];
    let mut at = 0;
    while at < len {
        let n = buf.len().min(len - at);
        content.fill(at as u64, &mut buf[..n]);
        stream.write_all(&buf[..n]).expect("send");
        at += n;
    }
    read_answer(&mut stream, false).expect("an answer")
}

/// Reads a body as it comes and compares it.
fn get_streamed(http: &Http, path: &str, content: Bytes, len: usize) {
    let mut stream = http.begin("GET", path, "").expect("connect");
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).expect("the head");
        head.push(byte[0]);
    }
    assert!(
        head.starts_with(b"HTTP/1.1 200 "),
        "{}",
        String::from_utf8_lossy(&head)
    );
    let mut buf = vec![0; 1 << 20];
    let mut at = 0;
    loop {
        let n = stream.read(&mut buf).expect("the body");
        if n == 0 {
            break;
        }
        assert_eq!(content.first_difference(at as u64, &buf[..n]), None);
        at += n;
    }
    assert_eq!(at, len);
}

#[test]
fn a_transfer_of_100_mib_raises_no_plane_by_more_than_64_mib() {
    let _one = serial();
    let node = Node::start_default();
    let http = Http::on(node.port());
    assert_eq!(
        http.ask("PUT", "/api/files/small", &[], b"small").status,
        200
    );
    assert_eq!(http.ask("GET", "/api/files/small", &[], b"").status, 200);
    let content = Bytes::of(7);
    let check = |what: &str, rise: [u64; 2]| {
        println!(
            "{what}: agent +{} MiB, data plane +{} MiB",
            rise[0] / MIB,
            rise[1] / MIB
        );
        for (plane, rise) in ["agent", "data plane"].iter().zip(rise) {
            assert!(
                rise <= RISE_MAX,
                "{what}: the {plane} grew by {} MiB",
                rise / MIB
            );
        }
    };
    let put = rise(&node, || {
        let put = put_streamed(&http, "/api/files/large", content, LARGE);
        assert_eq!(put.status, 200, "{}", put.text());
    });
    check("PUT", put);
    let upload = rise(&node, || node.flush());
    println!(
        "upload: agent +{} MiB, data plane +{} MiB",
        upload[0] / MIB,
        upload[1] / MIB
    );
    let get = rise(&node, || {
        get_streamed(&http, "/api/files/large", content, LARGE)
    });
    check("GET from NVMe", get);
    node.evict();
    let get = rise(&node, || {
        get_streamed(&http, "/api/files/large", content, LARGE)
    });
    check("GET from the cloud", get);
}

/// What a node has, for comparison: inodes, chunks of files that are in nobody's way, dirty bytes.
fn belongings(http: &Http) -> (u64, BTreeSet<String>) {
    let stats = http.ask("GET", "/api/cache/stats", &[], b"").json();
    let inodes = stats["namespace"]["inodes"].as_u64().expect("inodes");
    let list = http.ask("GET", "/api/cache?limit=10000", &[], b"").json();
    let chunks = list["chunks"].as_array().expect("chunks").iter();
    let key = |c: &Value| format!("{}.{}-{}", c["ino"], c["index"], c["version"]);
    (inodes, chunks.map(key).collect())
}

#[test]
fn a_body_that_ends_early_leaves_nothing() {
    let _one = serial();
    let node = Node::start(Setup {
        flags: ["--garbage-grace", "60"].map(str::to_owned).to_vec(),
        ..Setup::default()
    });
    let http = Http::on(node.port());
    assert_eq!(
        http.ask("PUT", "/api/files/d/old", &[], b"old contents")
            .status,
        200
    );
    node.flush();
    let before = belongings(&http);
    let objects = node.data_objects();
    let body = Bytes::of(3).range(0, 20 << 20);
    let limit = LARGE + 1;
    let ways = [
        "closed",
        "reset",
        "chunked",
        "chunk",
        "too large",
        "announced",
        "condition",
    ];
    for round in 0..3 {
        for way in ways {
            for path in ["/api/files/d/old", "/api/files/new/dir/file"] {
                one_way_to_end(&http, way, path, &body, limit);
            }
        }
        wait_until(
            &format!("everything of the cut bodies is gone (round {round})"),
            Duration::from_secs(30),
            || belongings(&http) == before,
        );
    }
    let old = http.ask("GET", "/api/files/d/old", &[], b"");
    assert_eq!((old.status, old.text().as_str()), (200, "old contents"));
    assert!(
        !node.at("new").exists(),
        "no directory for a file that is not there"
    );
    let names: Vec<_> = std::fs::read_dir(node.at("d")).expect("list").collect();
    assert_eq!(names.len(), 1);
    // Nothing is left to upload, and what was uploaded ahead is deleted again.
    node.flush();
    wait_until(
        "the objects are those of before",
        Duration::from_secs(150),
        || node.data_objects() == objects,
    );
}

#[test]
fn a_put_whose_agent_is_killed_leaves_nothing() {
    let _one = serial();
    let node = Node::start_default();
    let http = Http::on(node.port());
    assert_eq!(http.ask("PUT", "/api/files/kept", &[], b"kept").status, 200);
    node.flush();
    let before = belongings(&http);
    let mut stream = http
        .begin("PUT", "/api/files/cut", "Content-Length: 33554432\r\n")
        .expect("connect");
    stream.write_all(&vec![7; 10 << 20]).expect("send");
    wait_until("some of it is written", Duration::from_secs(20), || {
        node.stat("written_bytes") >= 9 << 20
    });
    assert!(node.kill(Plane::Agent));
    node.wait_for_return();
    wait_until("everything of it is gone", Duration::from_secs(60), || {
        http.try_ask("GET", "/api/health", &[], b"")
            .is_ok_and(|a| a.status == 200)
            && belongings(&http) == before
    });
    assert!(!node.at("cut").exists());
    assert_eq!(std::fs::read(node.at("kept")).expect("read"), b"kept");
}

fn one_way_to_end(http: &Http, way: &str, path: &str, body: &[u8], limit: usize) {
    let whole = format!("Content-Length: {}\r\n", body.len());
    let most = &body[..body.len() - 1];
    match way {
        "closed" => {
            let mut stream = http.begin("PUT", path, &whole).expect("connect");
            stream.write_all(most).expect("send");
        }
        "reset" => {
            let mut stream = http.begin("PUT", path, &whole).expect("connect");
            stream.write_all(&body[..5 << 20]).expect("send");
            vanish(stream);
        }
        "chunked" => {
            let mut stream = http
                .begin("PUT", path, "Transfer-Encoding: chunked\r\n")
                .expect("connect");
            stream
                .write_all(format!("{:x}\r\n", body.len()).as_bytes())
                .expect("send");
            stream.write_all(body).expect("send");
            stream.write_all(b"\r\n").expect("send");
            stream
                .shutdown(std::net::Shutdown::Write)
                .expect("shutdown");
            let _ = read_answer(&mut stream, false);
        }
        "chunk" => {
            let mut stream = http
                .begin("PUT", path, "Transfer-Encoding: chunked\r\n")
                .expect("connect");
            stream.write_all(b"400000\r\n").expect("send");
            stream.write_all(&body[..4 << 20]).expect("send");
            let _ = stream.write_all(b"\r\nno number\r\n");
            let answer = read_answer(&mut stream, false).expect("an answer");
            assert_eq!(answer.status, 400, "{}", answer.text());
        }
        "too large" => {
            let mut stream = http
                .begin("PUT", path, "Transfer-Encoding: chunked\r\n")
                .expect("connect");
            stream
                .write_all(format!("{limit:x}\r\n").as_bytes())
                .expect("send");
            let mut left = limit;
            while left > 0 {
                let n = left.min(body.len());
                stream
                    .write_all(&body[..n])
                    .expect("what is sent after the refusal is taken");
                left -= n;
            }
            let answer = read_answer(&mut stream, false).expect("an answer");
            assert_eq!(answer.status, 413, "{}", answer.text());
        }
        "announced" => {
            let head = format!("Content-Length: {limit}\r\n");
            let mut stream = http.begin("PUT", path, &head).expect("connect");
            let answer = read_answer(&mut stream, false).expect("an answer");
            assert_eq!(answer.status, 413, "{}", answer.text());
        }
        "condition" => {
            let answer = http.ask("PUT", path, &[("If-Match", "\"no-such\"")], body);
            assert_eq!(answer.status, 412, "{}", answer.text());
        }
        other => panic!("{other}"),
    }
}

/// A client that takes little at once, so that the server waits for it soon.
fn small_window(stream: &TcpStream) {
    let _ = sockopt::set_socket_recv_buffer_size(stream, 8 << 10);
}

#[test]
fn clients_that_stop_or_vanish_take_nothing_from_the_others() {
    let _one = serial();
    let node = Node::start_default();
    let http = Http::on(node.port());
    let content = Bytes::of(11);
    let large = 32 << 20;
    assert_eq!(
        put_streamed(&http, "/api/files/large", content, large).status,
        200
    );
    assert_eq!(
        http.ask("PUT", "/api/files/other", &[], b"other").status,
        200
    );
    node.flush();
    let before = belongings(&http);

    // Vanished: in the middle of what they read, and of what they send.
    for n in 0..150 {
        let mut stream = http.begin("GET", "/api/files/large", "").expect("connect");
        let mut some = vec![0; 1000 + n * 3000];
        stream.read_exact(&mut some).expect("some bytes");
        vanish(stream);
        let mut stream = http
            .begin("PUT", "/api/files/cut", "Content-Length: 33554432\r\n")
            .expect("connect");
        stream
            .write_all(&vec![1; 1000 + n * 30_000])
            .expect("some bytes");
        vanish(stream);
    }
    let soon = Instant::now();
    get_streamed(&http, "/api/files/large", content, large);
    assert!(
        soon.elapsed() < Duration::from_secs(20),
        "{:?}",
        soon.elapsed()
    );

    // Stopped: more than there are places for, of each kind. Those behind them get their turn when the server has
    // given them up.
    let mut stopped = Vec::new();
    for _ in 0..270 {
        let stream = http.begin("GET", "/api/files/large", "").expect("connect");
        small_window(&stream);
        stopped.push(stream);
    }
    for _ in 0..40 {
        let mut stream = http
            .begin("PUT", "/api/files/cut", "Content-Length: 33554432\r\n")
            .expect("connect");
        stream.write_all(&[2; 5000]).expect("some bytes");
        stopped.push(stream);
    }
    // What needs no place is not affected at all.
    let now = Instant::now();
    assert_eq!(http.ask("GET", "/api/health", &[], b"").status, 200);
    assert_eq!(http.ask("HEAD", "/api/files/large", &[], b"").status, 200);
    assert_eq!(
        std::fs::read(node.at("other")).expect("the mount"),
        b"other"
    );
    assert!(now.elapsed() < CUT / 2, "{:?}", now.elapsed());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let got = http.ask("GET", "/api/files/other", &[], b"");
            assert_eq!((got.status, got.text().as_str()), (200, "other"));
        });
        scope.spawn(|| {
            let put = http.ask("PUT", "/api/files/other", &[], b"other");
            assert_eq!(put.status, 200, "{}", put.text());
        });
    });
    assert!(now.elapsed() < CUT, "{:?}", now.elapsed());
    println!("behind the stopped: {:?}", now.elapsed());
    // A node that gave them up has nothing of theirs.
    wait_until("what the stopped held is free", CUT, || {
        belongings(&http).0 == before.0
    });
    drop(stopped);
    assert!(!node.at("cut").exists());
    let rest = memory(&node, Plane::Agent, "VmRSS:");
    println!("agent afterwards: {} MiB", rest / MIB);
    // Every slot of the shared memory is there again: as many large transfers as there are places.
    std::thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| get_streamed(&http, "/api/files/large", content, large));
        }
    });
}

#[test]
fn two_hundred_clients_at_once() {
    let _one = serial();
    let node = Node::start_default();
    let http = Http::on(node.port());
    let len = 700_000;
    std::thread::scope(|scope| {
        for n in 0..200 {
            let http = &http;
            scope.spawn(move || {
                let path = format!("/api/files/many/{n}");
                let content = Bytes::of(n).range(0, len);
                let put = http.ask("PUT", &path, &[], &content);
                assert_eq!(put.status, 200, "{n}: {}", put.text());
                let tag = put.header("etag").expect("an ETag").to_owned();
                let get = http.ask("GET", &path, &[], b"");
                assert_eq!((get.status, get.body == content), (200, true), "{n}");
                assert_eq!(get.header("etag"), Some(tag.as_str()), "{n}");
                let range = http.ask("GET", &path, &[("Range", "bytes=-1000")], b"");
                assert_eq!(
                    (range.status, range.body == content[len - 1000..]),
                    (206, true),
                    "{n}"
                );
                if n % 2 == 0 {
                    let gone = http.ask("DELETE", &path, &[("If-Match", &tag)], b"");
                    assert_eq!(gone.status, 204, "{n}: {}", gone.text());
                }
            });
        }
    });
    assert_eq!(
        std::fs::read_dir(node.at("many")).expect("list").count(),
        100
    );
    for n in (1..200).step_by(2) {
        let got = std::fs::read(node.at(&format!("many/{n}"))).expect("read");
        assert_eq!(
            (got.len(), Bytes::of(n).first_difference(0, &got)),
            (len, None)
        );
    }
}

#[test]
fn a_download_of_a_file_that_changes_is_cut_and_never_a_mixture() {
    let _one = serial();
    let node = Node::start_default();
    let http = Http::on(node.port());
    let len = 64 << 20;
    assert_eq!(
        put_streamed(&http, "/api/files/f", Bytes::of(1), len).status,
        200
    );
    // Larger than what is under way in the sockets: the server waits for its client.
    let mut stream = http.begin("GET", "/api/files/f", "").expect("connect");
    let mut first = vec![0; 1 << 20];
    stream.read_exact(&mut first).expect("the first bytes");
    // An application changes the end of the file in place.
    use std::os::unix::fs::FileExt as _;
    let file = std::fs::File::options()
        .write(true)
        .open(node.at("f"))
        .expect("open");
    file.write_all_at(b"changed", (len - 100) as u64)
        .expect("write");
    drop(file);
    let mut rest = Vec::new();
    let ended = stream.read_to_end(&mut rest);
    assert!(
        ended.is_err() || first.len() + rest.len() < len,
        "a whole answer, under the ETag of the old contents"
    );
}
