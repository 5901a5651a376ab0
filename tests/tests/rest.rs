//! Promise: REST and the mount show the same files, and a file's chunks are objects in the cloud.

use fastcache_tests::{Bytes, Cloud, Node, S3, Setup, output_of, run, serial};
use std::path::{Path, PathBuf};
use std::process::Command;

const SIZE: usize = 50 << 20;
const CHUNKS: usize = 13;

/// An answer.
struct Answer {
    status: u16,
    headers: String,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

struct Client<'a> {
    node: &'a Node,
    body: PathBuf,
    headers: PathBuf,
}

impl Client<'_> {
    fn of(node: &Node) -> Client<'_> {
        Client {
            node,
            body: node.outside().join("body"),
            headers: node.outside().join("headers"),
        }
    }

    fn ask(&self, method: &str, path: &str, more: &[&str]) -> Answer {
        let _ = std::fs::remove_file(&self.body);
        let mut curl = Command::new("curl");
        curl.args([
            "-sS",
            "--path-as-is",
            "--max-time",
            "120",
            "-w",
            "%{http_code}",
        ]);
        curl.arg("-o").arg(&self.body).arg("-D").arg(&self.headers);
        if method == "HEAD" {
            curl.arg("--head");
        } else {
            curl.args(["-X", method]);
        }
        let status = run(curl.args(more).arg(format!("{}{path}", self.node.url())));
        Answer {
            status: status.trim().parse().expect("a status"),
            headers: std::fs::read_to_string(&self.headers).expect("headers"),
            body: std::fs::read(&self.body).unwrap_or_default(),
        }
    }

    fn put(&self, path: &str, file: &Path) -> Answer {
        self.ask(
            "PUT",
            path,
            &["-H", "Expect:", "-T", &file.to_string_lossy()],
        )
    }
}

fn a_dataset(cloud: Cloud) {
    let _one = serial();
    let node = Node::start(Setup {
        cloud,
        ..Setup::default()
    });
    let http = Client::of(&node);
    let content = Bytes::of(50).range(0, SIZE);
    let local = node.outside().join("local");
    std::fs::write(&local, &content).expect("a file on the disk");

    let url = "/api/files/sub/dataset.parquet";
    let put = http.put(url, &local);
    assert_eq!(put.status, 200, "{}", String::from_utf8_lossy(&put.body));
    let on_mount = std::fs::read(node.at("sub/dataset.parquet")).expect("under the mount at once");
    assert!(on_mount == content, "and with the same bytes");

    node.flush();
    let objects = node.data_objects();
    assert_eq!(objects.len(), CHUNKS, "{objects:?}");
    assert_eq!(
        objects.iter().map(|(_, bytes)| bytes).sum::<u64>(),
        SIZE as u64
    );
    let state = node.json(&["state", "sub/dataset.parquet"]);
    assert!(state.to_string().contains("persisted"), "{state}");
    for (key, _) in &objects {
        let name = key.rsplit('/').next().unwrap_or(key);
        assert!(
            state.to_string().contains(name),
            "state names the object {key}: {state}"
        );
    }

    for round in ["NVMe", "cloud"] {
        let get = http.ask("GET", url, &[]);
        assert_eq!(get.status, 200, "from {round}");
        assert!(get.body == content, "from {round}");
        let etag = get.header("etag").expect("an ETag").to_owned();

        let range = http.ask("GET", url, &["-H", "Range: bytes=4194000-8389000"]);
        assert_eq!(range.status, 206);
        assert!(
            range.body == content[4_194_000..=8_389_000],
            "a range over three chunks"
        );
        assert_eq!(
            range.header("content-range"),
            Some("bytes 4194000-8389000/52428800")
        );
        let tail = http.ask("GET", url, &["-H", "Range: bytes=-1000"]);
        assert_eq!(
            (tail.status, tail.body == content[SIZE - 1000..]),
            (206, true)
        );
        let beyond = http.ask("GET", url, &["-H", "Range: bytes=52428800-"]);
        assert_eq!(beyond.status, 416);

        let head = http.ask("HEAD", url, &[]);
        assert_eq!(
            (head.status, head.header("content-length")),
            (200, Some("52428800"))
        );
        assert_eq!(head.header("etag"), Some(etag.as_str()));
        let unchanged = http.ask("GET", url, &["-H", &format!("If-None-Match: {etag}")]);
        assert_eq!((unchanged.status, unchanged.body.len()), (304, 0));

        let size = http.ask("GET", &format!("{url}/size"), &[]);
        assert_eq!(size.status, 200);
        assert!(String::from_utf8_lossy(&size.body).contains("52428800"));
        node.evict();
    }

    // Replaced as a whole, and seen on the mount at once.
    std::fs::write(&local, b"short").expect("a file on the disk");
    assert_eq!(http.put(url, &local).status, 200);
    assert_eq!(
        std::fs::read(node.at("sub/dataset.parquet")).expect("read"),
        b"short"
    );
    // What the mount writes, REST shows.
    std::fs::write(node.at("sub/from the mount"), b"hello").expect("write on the mount");
    assert_eq!(
        http.ask("GET", "/api/files/sub/from%20the%20mount", &[])
            .body,
        b"hello"
    );

    let delete = http.ask("DELETE", url, &[]);
    assert!(matches!(delete.status, 200 | 204), "{}", delete.status);
    assert!(
        !node.at("sub/dataset.parquet").exists(),
        "gone from the mount"
    );
    assert_eq!(http.ask("GET", url, &[]).status, 404);
    assert_eq!(http.ask("HEAD", url, &[]).status, 404);
}

#[test]
fn a_put_is_13_objects_in_a_directory() {
    a_dataset(Cloud::Dir);
}

#[test]
fn a_put_is_13_objects_in_s3() {
    a_dataset(Cloud::S3(S3::start()));
}

#[test]
fn nothing_leaves_the_root_and_errors_are_json() {
    let _one = serial();
    let node = Node::start_default();
    let http = Client::of(&node);
    std::fs::create_dir(node.at("dir")).expect("mkdir");
    std::fs::write(node.outside().join("local"), b"x").expect("a file on the disk");
    for path in [
        "../etc/passwd",
        "..%2fetc%2fpasswd",
        "a/../../b",
        "a/./b",
        "a//b",
        "%2fetc/passwd",
        "a%00b",
        "%2e%2e/x",
    ] {
        for method in ["GET", "DELETE", "HEAD"] {
            let answer = http.ask(method, &format!("/api/files/{path}"), &[]);
            assert_eq!(answer.status, 400, "{method} {path}");
        }
        let put = http.put(&format!("/api/files/{path}"), &node.outside().join("local"));
        assert_eq!(put.status, 400, "PUT {path}");
        assert!(
            serde_json::from_slice::<serde_json::Value>(&put.body).is_ok(),
            "errors are JSON: {}",
            String::from_utf8_lossy(&put.body)
        );
    }
    let put = http.put("/api/files/dir", &node.outside().join("local"));
    assert_eq!(put.status, 409, "PUT on a directory");
    let large = node.outside().join("large");
    std::fs::File::create(&large)
        .and_then(|f| f.set_len((100 << 20) + 1))
        .expect("a large file");
    let refused = output_of(
        Command::new("curl")
            .args(["-sS", "-o", "/dev/null", "-w", "%{http_code}", "-T"])
            .arg(&large)
            .arg(format!("{}/api/files/large", node.url())),
    );
    assert_eq!(
        String::from_utf8_lossy(&refused.stdout),
        "413",
        "PUT is limited to 100 MiB"
    );
    assert!(!node.at("large").exists());

    for (path, want) in [
        ("/api/health", ""),
        ("/api/cache", ""),
        ("/api/cache/stats", ""),
        ("/metrics", "fastcache_"),
    ] {
        let answer = http.ask("GET", path, &[]);
        assert_eq!(answer.status, 200, "{path}");
        assert!(
            String::from_utf8_lossy(&answer.body).contains(want),
            "{path}"
        );
    }
}

#[test]
fn an_api_key_is_wanted_everywhere_but_for_health() {
    let _one = serial();
    let flags = vec!["--api-key".to_owned(), "s3cret-key".to_owned()];
    let node = Node::start(Setup {
        flags,
        ..Setup::default()
    });
    let http = Client::of(&node);
    std::fs::write(node.at("file"), b"x").expect("write on the mount");
    assert_eq!(http.ask("GET", "/api/health", &[]).status, 200);
    for path in ["/api/files/file", "/api/cache", "/metrics"] {
        assert_eq!(http.ask("GET", path, &[]).status, 401, "{path}");
        assert_eq!(
            http.ask("GET", path, &["-H", "X-API-Key: wrong"]).status,
            401,
            "{path}"
        );
        assert_eq!(
            http.ask("GET", path, &["-H", "X-API-Key: s3cret-key"])
                .status,
            200,
            "{path}"
        );
    }
    assert!(
        !node.logs().contains("s3cret-key"),
        "secrets are never printed"
    );
}
