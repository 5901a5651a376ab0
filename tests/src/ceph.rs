//! A real Ceph object gateway: monitor, manager, one OSD and the gateway, on free ports of this machine, with one bucket.

use crate::machine::{free_port, output_of, repository, run, temp_dir};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Running for as long as this value lives.
#[derive(Debug)]
pub struct Ceph {
    child: Child,
    port: u16,
    _dir: TempDir,
}

/// The bucket of the tests.
const BUCKET: &str = "fastcache-tests";
/// The keys of its user.
const KEYS: (&str, &str) = ("AKIACEPH", "ceph-secret");
/// How long it may take to come up: 16 s on an idle machine with two cores.
const START_LIMIT: Duration = Duration::from_secs(180);

impl Ceph {
    /// Starts everything and makes the bucket.
    ///
    /// # Panics
    /// When Ceph is not installed or does not come up, with what it said.
    pub fn start() -> Ceph {
        let script: PathBuf = repository().join("tests/setup/ceph-gateway.sh");
        let (port, dir) = (free_port(), temp_dir("ceph"));
        let log = dir.path().join("start.log");
        let out = std::fs::File::create(&log).unwrap_or_else(|e| panic!("{}: {e}", log.display()));
        let child = Command::new(script)
            .arg(dir.path().join("ceph"))
            .args([
                port.to_string(),
                free_port().to_string(),
                free_port().to_string(),
            ])
            .args([KEYS.0, KEYS.1])
            .stdin(Stdio::piped())
            .stdout(out.try_clone().unwrap_or_else(|e| panic!("{e}")))
            .stderr(out)
            .spawn()
            .unwrap_or_else(|e| panic!("ceph-gateway.sh: {e}"));
        let mut ceph = Ceph {
            child,
            port,
            _dir: dir,
        };
        let began = Instant::now();
        loop {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            if said.lines().any(|l| l == "ready") {
                break;
            }
            let has_ended = !matches!(ceph.child.try_wait(), Ok(None));
            assert!(
                !has_ended && began.elapsed() < START_LIMIT,
                "Ceph did not come up:\n{said}"
            );
            std::thread::sleep(Duration::from_millis(200));
        }
        let made = format!("{}/{BUCKET}", ceph.endpoint());
        run(Command::new("curl")
            .args(["-sSf", "--user", &format!("{}:{}", KEYS.0, KEYS.1)])
            .args(["--aws-sigv4", "aws:amz:us-east-1:s3", "-X", "PUT", &made])
            .args(["-H", "x-amz-content-sha256: UNSIGNED-PAYLOAD"]));
        ceph
    }

    /// Its address.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The bucket's name.
    pub fn bucket(&self) -> &'static str {
        BUCKET
    }

    /// Access key and secret key.
    pub fn keys(&self) -> (&'static str, &'static str) {
        KEYS
    }
}

impl Drop for Ceph {
    fn drop(&mut self) {
        // The script ends what it started when its input ends.
        drop(self.child.stdin.take());
        let began = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && began.elapsed() < Duration::from_secs(30)
        {
            std::thread::sleep(Duration::from_millis(100));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Its folder goes next, and nothing may be writing there.
        let _ = output_of(&mut Command::new("sync"));
    }
}
