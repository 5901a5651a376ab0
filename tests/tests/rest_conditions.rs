//! Promise: `If-Match` and `If-None-Match` hold when the change is made, not only when they are looked at: no update of
//! another client is lost.

use fastcache_tests::{Http, Node, serial};
use std::sync::atomic::{AtomicU32, Ordering};

#[test]
fn of_many_that_create_a_file_one_does() {
    let _one = serial();
    let node = Node::start_default();
    let http = Http::on(node.port());
    for round in 0..20 {
        let path = format!("/api/files/once/{round}");
        let won = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for n in 0..16 {
                let (http, path, won) = (&http, &path, &won);
                scope.spawn(move || {
                    let body = format!("{n}");
                    let put = http.ask("PUT", path, &[("If-None-Match", "*")], body.as_bytes());
                    match put.status {
                        200 => {
                            won.store(won.load(Ordering::SeqCst) * 100 + n + 1, Ordering::SeqCst)
                        }
                        412 => assert_eq!(put.json()["error"]["code"], "precondition_failed"),
                        other => panic!("{other}: {}", put.text()),
                    }
                });
            }
        });
        let won = won.load(Ordering::SeqCst);
        assert!(
            (1..=16).contains(&won),
            "round {round}: one and only one: {won}"
        );
        assert_eq!(
            http.ask("GET", &path, &[], b"").text(),
            format!("{}", won - 1)
        );
    }
}

#[test]
fn no_increment_of_a_shared_counter_is_lost() {
    let _one = serial();
    let node = Node::start_default();
    let http = Http::on(node.port());
    let path = "/api/files/counter";
    assert_eq!(http.ask("PUT", path, &[], b"0").status, 200);
    let refused = AtomicU32::new(0);
    let (clients, each) = (12, 25);
    std::thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| {
                let mut done = 0;
                while done < each {
                    let Ok(got) = http.try_ask("GET", path, &[], b"") else {
                        continue;
                    };
                    // replaced while it was read: read again
                    if got.status != 200 {
                        assert!(matches!(got.status, 404 | 409 | 500), "{}", got.status);
                        continue;
                    }
                    let tag = got.header("etag").expect("an ETag").to_owned();
                    let value: u32 = got.text().parse().expect("a number");
                    let next = (value + 1).to_string();
                    let put = http.ask("PUT", path, &[("If-Match", &tag)], next.as_bytes());
                    match put.status {
                        200 => done += 1,
                        412 => drop(refused.fetch_add(1, Ordering::SeqCst)),
                        other => panic!("{other}: {}", put.text()),
                    }
                }
            });
        }
    });
    let last = http.ask("GET", path, &[], b"").text();
    println!(
        "{} increments, {} refused",
        last,
        refused.load(Ordering::SeqCst)
    );
    assert_eq!(last, (clients * each).to_string());
    assert!(refused.load(Ordering::SeqCst) > 0, "they met at least once");
}

#[test]
fn what_the_mount_wrote_counts_for_a_condition() {
    let _one = serial();
    let node = Node::start_default();
    let http = Http::on(node.port());
    let put = http.ask("PUT", "/api/files/f", &[], b"first");
    let tag = put.header("etag").expect("an ETag").to_owned();
    std::fs::write(node.at("f"), "by an application").expect("write");
    for method in ["PUT", "DELETE"] {
        let stale = http.ask(method, "/api/files/f", &[("If-Match", &tag)], b"second");
        assert_eq!(stale.status, 412, "{method}: {}", stale.text());
    }
    let get = http.ask("GET", "/api/files/f", &[("If-None-Match", &tag)], b"");
    assert_eq!(
        (get.status, get.text().as_str()),
        (200, "by an application")
    );
    let tag = get.header("etag").expect("an ETag").to_owned();
    let unchanged = http.ask("GET", "/api/files/f", &[("If-None-Match", &tag)], b"");
    assert_eq!((unchanged.status, unchanged.body.len()), (304, 0));
    let many = format!("\"x\", {tag}");
    let put = http.ask("PUT", "/api/files/f", &[("If-Match", &many)], b"second");
    assert_eq!(put.status, 200, "{}", put.text());
    let missing = http.ask("PUT", "/api/files/g", &[("If-Match", "*")], b"x");
    assert_eq!(missing.status, 412);
    let gone = http.ask("DELETE", "/api/files/f", &[("If-Match", "*")], b"");
    assert_eq!(gone.status, 204);
}
