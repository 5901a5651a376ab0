//! Buckets, devices and mount points that cannot be used.

use super::place::{Place, limited, refused};
use fastcache_tests::{Fault, FaultProxy, S3, output_of, run, serial};
use std::path::Path;
use std::process::Command;

#[test]
fn a_bucket_that_is_missing_or_refuses_is_said_at_start() {
    let _one = serial();
    let s3 = S3::start();
    let proxy = FaultProxy::start(s3.port());
    let place = Place::new();
    let endpoint = proxy.endpoint();
    let up = |bucket: &str| {
        let mut command = place.up(&["--cloud-provider", "s3", "--s3-endpoint", &endpoint]);
        command.args(["--s3-bucket", bucket]);
        command.env("AWS_ACCESS_KEY_ID", "test");
        command.env("AWS_SECRET_ACCESS_KEY", "test");
        command
    };
    refused(&mut up("no-such-bucket"), &["no-such-bucket", "bucket"]);
    for code in [401, 403] {
        proxy.set(Fault::Status {
            code,
            share: 1.0,
            retry_after_s: None,
        });
        refused(&mut up(s3.bucket()), &[s3.bucket(), "credentials"]);
    }
    // One half of the credentials.
    let mut half = up(s3.bucket());
    half.env_remove("AWS_SECRET_ACCESS_KEY");
    refused(&mut half, &["AWS_SECRET_ACCESS_KEY"]);
    // Nothing is left behind: with the right answers it starts.
    proxy.set(Fault::Pass);
    run(&mut up(s3.bucket()));
}

/// A loop device.
struct Loop(String);

impl Loop {
    fn over(file: &Path, flags: &[&str]) -> Loop {
        let name = run(Command::new("losetup")
            .args(flags)
            .args(["-f", "--show"])
            .arg(file));
        Loop(name.trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = output_of(Command::new("losetup").args(["-d", &self.0]));
    }
}

#[test]
fn a_device_that_cannot_hold_a_store_is_refused() {
    let _one = serial();
    let place = Place::new();
    // Too small, as a file, as a device, and by what was asked for.
    let small = place.at("small");
    std::fs::write(&small, vec![0; 1 << 20]).expect("write");
    refused(&mut place.data(&small), &["1048576", "larger"]);
    let device = Loop::over(&small, &[]);
    refused(
        &mut place.data(Path::new(&device.0)),
        &["1048576", "larger"],
    );
    drop(device);
    refused(
        &mut place.up_plain(&["--port", "0", "--nvme-capacity", "1MiB"]),
        &["1048576", "--nvme-capacity"],
    );
    // Larger than the disk, and larger than any store: nothing is left that a smaller one would trip over.
    refused(
        &mut place.up_plain(&["--port", "0", "--nvme-capacity", "9TiB"]),
        &["nvme", "--nvme-capacity"],
    );
    refused(
        &mut place.up_plain(&["--port", "0", "--nvme-capacity", "90TiB"]),
        &["--nvme-capacity"],
    );
    // Read-only.
    let file = place.at("readonly");
    std::fs::File::create(&file)
        .and_then(|f| f.set_len(64 << 20))
        .expect("file");
    let device = Loop::over(&file, &["-r"]);
    refused(
        &mut place.data(Path::new(&device.0)),
        &[&device.0, "read-only"],
    );
    drop(device);
    // Not a device at all.
    refused(
        &mut place.data(Path::new("/dev/null")),
        &["/dev/null", "block device"],
    );
    refused(
        &mut place.data(&place.at("a/b/c")),
        &["a/b/c", "check the path"],
    );
    // Somebody else's: as its own mkfs made it.
    let theirs = place.at("ext4");
    std::fs::File::create(&theirs)
        .and_then(|f| f.set_len(64 << 20))
        .expect("file");
    run(Command::new("mkfs.ext4").arg("-q").arg(&theirs));
    let before = std::fs::read(&theirs).expect("read");
    refused(&mut place.data(&theirs), &["ext4", "--format --force"]);
    assert!(
        std::fs::read(&theirs).expect("read") == before,
        "refused, and changed"
    );
    // All of these were refused; now it starts.
    run(&mut place.up(&[]));
}

#[test]
fn a_mount_point_that_cannot_be_one_is_refused() {
    let _one = serial();
    let place = Place::new();
    let file = place.at("file");
    std::fs::write(&file, "mine").expect("write");
    let path = file.to_str().expect("path").to_owned();
    refused(
        &mut place.up(&["--mount", &path]),
        &[&path, "not a directory", "mkdir"],
    );
    let mut data = limited("fastcache-data");
    data.args(["--mount", &path, "--nvme"])
        .arg(place.at("nvme"));
    data.args(["--nvme-capacity", "64MiB", "--socket"])
        .arg(place.at("sock"));
    refused(&mut data, &[&path, "not a directory", "mkdir"]);
    assert_eq!(std::fs::read_to_string(&file).expect("read"), "mine");
    // Missing: `up` makes it; the data plane alone says how.
    let missing = place.at("no/such/mnt");
    let mut data = limited("fastcache-data");
    data.arg("--mount")
        .arg(&missing)
        .arg("--nvme")
        .arg(place.at("nvme"));
    data.args(["--nvme-capacity", "64MiB", "--socket"])
        .arg(place.at("sock"));
    refused(&mut data, &["no/such/mnt", "mkdir"]);
    // In use by another file system.
    let busy = place.at("busy");
    std::fs::create_dir(&busy).expect("mkdir");
    run(Command::new("mount")
        .args(["-t", "tmpfs", "none"])
        .arg(&busy));
    std::fs::write(busy.join("theirs"), "theirs").expect("write");
    let busy_name = busy.to_str().expect("path").to_owned();
    let out = output_of(&mut place.up(&["--mount", &busy_name]));
    let theirs = std::fs::read_to_string(busy.join("theirs"));
    run(Command::new("umount").arg("-l").arg(&busy));
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && text.contains("tmpfs"), "{text}");
    assert_eq!(theirs.expect("read"), "theirs");
}
