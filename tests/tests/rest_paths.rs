//! Promise: no path that a client can write leaves the root of the file system, whatever its encoding and whatever
//! symbolic links are on the way. Method: a table of paths against a running node, each with every method, and a look
//! at what is outside and inside afterwards.

use fastcache_tests::{Http, Node, serial};
use std::collections::BTreeSet;
use std::os::unix::fs::symlink;

const SECRET: &str = "outside the root";

/// What a path is to be answered with: any of these.
type Statuses = &'static [u16];

const REFUSED: Statuses = &[400];
/// A name like any other, that nothing has: GET, HEAD and DELETE find nothing, PUT makes it.
const A_NAME: Statuses = &[404];

#[test]
fn no_path_leaves_the_root() {
    let _one = serial();
    let node = Node::start_default();
    let http = Http::on(node.port());
    let secret = node.outside().join("secret");
    std::fs::write(&secret, SECRET).expect("a file beside the mount");
    let outside = secret.to_string_lossy().into_owned();
    std::fs::create_dir_all(node.at("d/sub")).expect("mkdir");
    std::fs::write(node.at("d/inside"), "inside").expect("write");

    // As seen from the mount (DIR/mnt), ../secret is the file beside it.
    let long_name = "n".repeat(256);
    let encoded_long_name = "%6e".repeat(256);
    let deep = "d/".repeat(2100) + "x";
    let absolute = outside.replace('/', "%2F");
    let plain = outside.clone();
    let table: Vec<(&str, Statuses)> = vec![
        ("../secret", REFUSED),
        ("d/../../secret", REFUSED),
        ("d/sub/../../../secret", REFUSED),
        ("..", REFUSED),
        (".", REFUSED),
        ("./d/inside", REFUSED),
        ("d/./inside", REFUSED),
        ("d/..", REFUSED),
        ("%2e%2e/secret", REFUSED),
        ("%2E%2E%2Fsecret", REFUSED),
        ("..%2fsecret", REFUSED),
        (".%2e/secret", REFUSED),
        ("d%2f..%2f..%2fsecret", REFUSED),
        ("d/%2e%2e/%2e%2e/secret", REFUSED),
        (&plain, REFUSED),
        (&absolute, REFUSED),
        ("/etc/passwd", REFUSED),
        ("%2Fetc%2Fpasswd", REFUSED),
        ("//etc/passwd", REFUSED),
        ("d//inside", REFUSED),
        ("d%2F%2Finside", REFUSED),
        ("d/inside/", REFUSED),
        ("d%00", REFUSED),
        ("d/inside%00.txt", REFUSED),
        ("%00", REFUSED),
        ("d/%zz", REFUSED),
        ("d/%", REFUSED),
        ("d/%2", REFUSED),
        (&long_name, REFUSED),
        (&encoded_long_name, REFUSED),
        (&deep, REFUSED),
        // decoded once: what is left is letters
        ("%252e%252e%252fsecret", A_NAME),
        ("%252e%252e", A_NAME),
        ("%252Fetc%252Fpasswd", A_NAME),
        // a backslash is a letter of a name, as in any POSIX file system
        ("..\\secret", A_NAME),
        ("..%5csecret", A_NAME),
        ("d%5c..%5c..%5csecret", A_NAME),
        // neither is what it looks like
        ("%c0%ae%c0%ae%c0%afsecret", A_NAME),
        ("%e2%80%a5%e2%88%95secret", A_NAME),
        ("...", A_NAME),
        ("..;", A_NAME),
        ("..%20", A_NAME),
        ("~root", A_NAME),
        ("file:%2F%2Fsecret%3F", REFUSED),
    ];
    for (path, want) in &table {
        for method in ["GET", "HEAD", "DELETE", "PUT"] {
            let answer = http.ask(method, &format!("/api/files/{path}"), &[], b"new");
            let short: String = path.chars().take(60).collect();
            let is_made = method == "PUT" && *want == A_NAME;
            if is_made {
                assert_eq!(answer.status, 200, "{method} {short}: {}", answer.text());
                let gone = http.ask("DELETE", &format!("/api/files/{path}"), &[], b"");
                assert_eq!(gone.status, 204, "{short}");
                continue;
            }
            assert!(
                want.contains(&answer.status),
                "{method} {short}: {} {}",
                answer.status,
                answer.text()
            );
            assert!(!answer.text().contains(SECRET), "{method} {short}");
            if method != "HEAD" {
                assert!(
                    answer.json()["error"]["code"].is_string(),
                    "{method} {short}"
                );
            }
        }
        let size = http.ask("GET", &format!("/api/files/{path}/size"), &[], b"");
        assert!(
            want.contains(&size.status),
            "size of {path}: {}",
            size.status
        );
    }

    // Paths of the admin endpoints and of the query are judged the same.
    for path in [
        "../secret",
        "%2e%2e%2fsecret",
        "/etc/passwd",
        "d//inside",
        "d%00",
    ] {
        for (method, at) in [("GET", "state"), ("POST", "evict"), ("POST", "flush")] {
            let answer = http.ask(method, &format!("/api/admin/{at}?path={path}"), &[], b"");
            assert_eq!(answer.status, 400, "{at} {path}: {}", answer.text());
        }
    }

    assert_eq!(std::fs::read_to_string(&secret).expect("read"), SECRET);
    assert!(!node.outside().join("mnt/secret").exists());
    let left: BTreeSet<String> = std::fs::read_dir(node.mount())
        .expect("list")
        .map(|e| e.expect("entry").file_name().to_string_lossy().into_owned())
        .collect();
    assert_eq!(left, BTreeSet::from(["d".to_owned()]));
    assert_eq!(
        std::fs::read_to_string(node.at("d/inside")).expect("read"),
        "inside"
    );

    symbolic_links(&node, &http, &outside);
}

fn symbolic_links(node: &Node, http: &Http, outside: &str) {
    let dir_outside = node.outside().join("folder");
    std::fs::create_dir(&dir_outside).expect("mkdir");
    std::fs::write(dir_outside.join("f"), SECRET).expect("write");
    let folder = dir_outside.to_string_lossy().into_owned();
    for (name, target) in [
        ("to-file", outside),
        ("to-folder", folder.as_str()),
        ("up-file", "../secret"),
        ("d/up-folder", "../../folder"),
        ("d/sub/up-up", "../../../secret"),
        ("loop", "loop"),
        ("dangling", "nowhere/at/all"),
    ] {
        symlink(target, node.at(name)).expect("symlink");
    }
    for path in [
        "to-file",
        "to-folder/f",
        "up-file",
        "d/up-folder/f",
        "d/sub/up-up",
        "loop",
        "loop/x",
        "to-file/x",
    ] {
        let at = format!("/api/files/{path}");
        for method in ["GET", "HEAD"] {
            let answer = http.ask(method, &at, &[], b"");
            assert!(
                matches!(answer.status, 404 | 409),
                "{method} {path}: {}",
                answer.status
            );
            assert!(!answer.text().contains(SECRET), "{method} {path}");
        }
        let put = http.ask("PUT", &at, &[], b"overwritten");
        assert_eq!(put.status, 409, "PUT {path}: {}", put.text());
        let new = http.ask("PUT", &format!("{at}-new/f"), &[], b"");
        assert!(matches!(new.status, 200 | 409), "{path}: {}", new.status);
    }
    let new = http.ask("PUT", "/api/files/to-folder/new", &[], b"x");
    assert_eq!(new.status, 409, "{}", new.text());
    let gone = http.ask("DELETE", "/api/files/to-folder/f", &[], b"");
    assert_eq!(gone.status, 404, "{}", gone.text());
    // What is deleted is the link.
    assert_eq!(
        http.ask("DELETE", "/api/files/to-file", &[], b"").status,
        204
    );

    assert_eq!(std::fs::read_to_string(outside).expect("read"), SECRET);
    let names: Vec<_> = std::fs::read_dir(&dir_outside).expect("list").collect();
    assert_eq!(names.len(), 1, "{names:?}");
    assert_eq!(
        std::fs::read_to_string(dir_outside.join("f")).expect("read"),
        SECRET
    );

    // Links that stay inside are followed, to read and to replace, and stay links.
    symlink("sub/../inside", node.at("d/link")).expect("symlink");
    symlink("d", node.at("dir-link")).expect("symlink");
    symlink("sub/fresh", node.at("d/to-fresh")).expect("symlink");
    assert_eq!(
        http.ask("GET", "/api/files/d/link", &[], b"").text(),
        "inside"
    );
    let put = http.ask("PUT", "/api/files/dir-link/link", &[], b"replaced");
    assert_eq!(put.status, 200, "{}", put.text());
    assert_eq!(
        std::fs::read_to_string(node.at("d/inside")).expect("read"),
        "replaced"
    );
    assert!(node.at("d/link").is_symlink());
    let put = http.ask("PUT", "/api/files/d/to-fresh", &[], b"fresh");
    assert_eq!(put.status, 200, "{}", put.text());
    assert_eq!(
        std::fs::read_to_string(node.at("d/sub/fresh")).expect("read"),
        "fresh"
    );
    assert_eq!(http.ask("PUT", "/api/files/dangling", &[], b"").status, 409);
}
