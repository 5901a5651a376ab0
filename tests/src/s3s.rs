//! A real S3 server that keeps objects as files and checks signatures (s3s-fs), on a free port, with one bucket.

use crate::machine::{free_port, repository, temp_dir, wait_until};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// Running for as long as this value lives. Its conditional PUT is not atomic: not for tests of that.
#[derive(Debug)]
pub struct S3s {
    child: Child,
    port: u16,
    root: TempDir,
}

/// The bucket of the tests.
const BUCKET: &str = "fastcache-tests";
/// The keys it accepts.
const ACCESS_KEY: &str = "AKIAS3S";
const SECRET_KEY: &str = "s3s-secret";
/// How long the server may take to answer.
const START_LIMIT: Duration = Duration::from_secs(90);

impl S3s {
    /// Starts a server and makes the bucket.
    ///
    /// # Panics
    /// When it is not installed or does not come up.
    pub fn start() -> S3s {
        let binary = repository().join("target/tools/bin/s3s-fs");
        assert!(
            binary.exists(),
            "no s3s-fs: tests/setup/install.sh clouds builds it"
        );
        let (port, root) = (free_port(), temp_dir("s3s"));
        std::fs::create_dir(root.path().join(BUCKET)).unwrap_or_else(|e| panic!("{BUCKET}: {e}"));
        let child = Command::new(binary)
            .args(["--host", "127.0.0.1", "--port", &port.to_string()])
            .args(["--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY])
            .arg(root.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("s3s-fs: {e}"));
        let s3s = S3s { child, port, root };
        wait_until("s3s-fs answers", START_LIMIT, || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        s3s
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
        (ACCESS_KEY, SECRET_KEY)
    }

    /// Where the objects of the bucket are files.
    pub fn files(&self) -> PathBuf {
        self.root.path().join(BUCKET)
    }
}

impl Drop for S3s {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
