//! A real Azure Blob server (Azurite) on a free port, with one container.

use crate::machine::{free_port, repository, temp_dir, wait_until};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// Running for as long as this value lives.
#[derive(Debug)]
pub struct Azurite {
    child: Child,
    port: u16,
    _data: TempDir,
}

/// The only account Azurite has unless told otherwise, with the key that is printed in its documentation.
const ACCOUNT: &str = "devstoreaccount1";
const KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";
/// The container of the tests.
const CONTAINER: &str = "fastcache-tests";
/// How long the server may take to answer.
const START_LIMIT: Duration = Duration::from_secs(30);

impl Azurite {
    /// Starts a server and makes the container.
    ///
    /// # Panics
    /// When it is not installed or does not come up.
    pub fn start() -> Azurite {
        let script =
            repository().join("target/tools/azurite/node_modules/azurite/dist/src/blob/main.js");
        assert!(
            script.exists(),
            "no Azure server: tests/setup/install.sh test installs Azurite"
        );
        let (port, data) = (free_port(), temp_dir("azurite"));
        let child = Command::new("node")
            .arg(&script)
            .args(["--blobHost", "127.0.0.1", "--blobPort", &port.to_string()])
            .arg("--location")
            .arg(data.path())
            .args(["--silent", "--disableTelemetry"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("node: {e}"));
        let azurite = Azurite {
            child,
            port,
            _data: data,
        };
        wait_until("Azurite answers", START_LIMIT, || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        azurite.make_container();
        azurite
    }

    /// Signs by hand: the test's own way to the server, which shares no code with what is tested.
    fn make_container(&self) {
        let script = include_str!("azurite/make_container.py");
        crate::machine::run(Command::new(python()).arg("-c").arg(script).args([
            &self.endpoint(),
            ACCOUNT,
            KEY,
            CONTAINER,
        ]));
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its address, with the account.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}/{ACCOUNT}", self.port)
    }

    /// The account's name.
    pub fn account(&self) -> &'static str {
        ACCOUNT
    }

    /// The account's key.
    pub fn key(&self) -> &'static str {
        KEY
    }

    /// The container's name.
    pub fn container(&self) -> &'static str {
        CONTAINER
    }
}

/// Any Python 3 will do.
fn python() -> &'static Path {
    Path::new("python3")
}

impl Drop for Azurite {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
