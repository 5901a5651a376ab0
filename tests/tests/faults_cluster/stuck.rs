//! A data plane dies while the kernel waits for it.

use super::files::{SOON, expect_within, three};
use fastcache_tests::{Bytes, Cluster, Plane, have_own_files, serial, write_and_close};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

/// While a data plane tells the kernel to drop a page that is being read, it is killed: nobody answers that read any more.
#[test]
fn a_data_plane_that_is_killed_while_the_kernel_waits_for_it_comes_back() {
    let _one = serial();
    for planes in [
        &[Plane::Data][..],
        &[Plane::Supervisor, Plane::Agent, Plane::Data],
    ] {
        let cluster = Cluster::start_apart(3, &["--lease", "3"]);
        let [a, b, c] = three(&cluster.nodes);
        fs::write(a.at("other"), b"other").expect("write");
        assert_eq!(fs::read(b.at("other")).expect("read"), b"other");
        write_and_close(a.at("file"), &Bytes::of(1).range(0, 100_000)).expect("write");
        // It is on that node alone: whoever reads it elsewhere waits.
        let stopped = a.stop(Plane::Agent);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                have_own_files();
                fs::read(b.at("file"))
            });
            std::thread::sleep(Duration::from_millis(500));
            assert!(!reader.is_finished(), "the read waits");
            scope.spawn(|| {
                let changed = fs::set_permissions(c.at("file"), fs::Permissions::from_mode(0o600));
                changed.expect("chmod");
            });
            std::thread::sleep(Duration::from_secs(1));
            for plane in planes {
                assert!(b.kill(*plane), "{plane:?}");
            }
            let since = Instant::now();
            if planes.contains(&Plane::Supervisor) {
                b.up();
            }
            b.wait_for_return();
            let took = since.elapsed();
            assert!(took < SOON, "{planes:?}: {took:?}");
            reader
                .join()
                .expect("a reader")
                .expect_err("its mount ended");
            drop(stopped);
        });
        assert_eq!(fs::read(b.at("other")).expect("read"), b"other");
        expect_within(b, &[("file".to_owned(), 1, 100_000)], SOON);
    }
}
