//! What somebody else uses, or used: ports, folders, devices, mount points.

use super::place::{Place, limited, refused, small_node, works};
use fastcache_tests::{Bytes, Plane, serial, wait_until};
use std::net::TcpListener;
use std::time::Duration;

#[test]
fn a_port_in_use_is_named() {
    let _one = serial();
    let place = Place::new();
    let taken = TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = taken.local_addr().expect("address").port().to_string();
    refused(
        &mut place.up_plain(&["--port", &port, "--nvme-capacity", "64MiB"]),
        &[&port, "--port"],
    );
    let listen = format!("127.0.0.1:{port}");
    refused(
        limited("fastcache-ctl")
            .args(["coordinator", "--listen", &listen, "--state-dir"])
            .arg(place.at("state")),
        &[&port, "--listen"],
    );
    // The agent alone, as a service manager runs it.
    refused(
        limited("fastcache-ctl")
            .args([
                "--port",
                &port,
                "--bind",
                "127.0.0.1",
                "--cloud-provider",
                "none",
            ])
            .arg("--socket")
            .arg(place.at("sock"))
            .arg("--state-dir")
            .arg(place.at("state2")),
        &[&port, "--port"],
    );
}

#[test]
fn a_second_instance_is_refused_and_the_first_goes_on() {
    let _one = serial();
    let node = small_node();
    works(&node);
    let place = Place::new();
    // Another node in the same folder.
    let mut same_dir = limited("fastcache-ctl");
    same_dir.arg("up").arg("--dir").arg(node.dir());
    same_dir.arg("--mount").arg(&place.mount).arg("--detach");
    refused(&mut same_dir, &["already runs", "status", "down"]);
    // Another data plane on the same device.
    refused(
        &mut place.data(&node.dir().join("nvme")),
        &["another process is using this chunk store", "--nvme"],
    );
    // Another node on the same device.
    let nvme = node.dir().join("nvme");
    refused(
        &mut place.up(&["--nvme", nvme.to_str().expect("path")]),
        &["another process is using this chunk store"],
    );
    // Another node on the same mount point: the first one's mount stays.
    let mount = node.mount().to_str().expect("path").to_owned();
    refused(
        &mut place.up(&["--mount", &mount]),
        &[&mount, "choose another"],
    );
    // Another data plane on the same mount point, and on the same socket.
    let mut data = limited("fastcache-data");
    data.arg("--nvme").arg(place.at("nvme"));
    data.args(["--nvme-capacity", "64MiB", "--mount", &mount, "--socket"]);
    data.arg(node.dir().join("run/data.sock"));
    refused(&mut data, &["another fastcache-data listens", "--socket"]);
    works(&node);
    assert!(node.is_mounted());
}

#[test]
fn a_stale_mount_is_cleaned_and_used_again() {
    let _one = serial();
    let node = small_node();
    let bytes = Bytes::of(3).range(0, 1_000_000);
    std::fs::write(node.at("kept"), &bytes).expect("write");
    for plane in [Plane::Supervisor, Plane::Data, Plane::Agent] {
        assert!(node.kill(plane));
    }
    wait_until("the mount is dead", Duration::from_secs(10), || {
        std::fs::metadata(node.at("kept")).is_err()
    });
    node.up();
    assert!(std::fs::read(node.at("kept")).expect("read") == bytes);
}
