//! A real Azure Blob server (Azurite) with one container.

use crate::certificates::Certificates;
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
    /// HTTP or HTTPS, and where.
    base: String,
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
const START_LIMIT: Duration = Duration::from_secs(90);

impl Azurite {
    /// Starts a server on a free port and makes the container.
    ///
    /// # Panics
    /// When it is not installed or does not come up.
    pub fn start() -> Azurite {
        Azurite::start_on("127.0.0.1", free_port(), None)
    }

    /// The same at an address of this machine; with certificates it speaks HTTPS, and takes tokens, too. A request whose
    /// host is a name finds the account there and not in the path, as with Azure itself.
    ///
    /// # Panics
    /// When it is not installed or does not come up.
    pub fn start_on(host: &str, port: u16, tls: Option<&Certificates>) -> Azurite {
        let script =
            repository().join("target/tools/azurite/node_modules/azurite/dist/src/blob/main.js");
        assert!(
            script.exists(),
            "no Azure server: tests/setup/install.sh test installs Azurite"
        );
        let data = temp_dir("azurite");
        let mut command = Command::new("node");
        command
            .arg(&script)
            .args(["--blobHost", host, "--blobPort", &port.to_string()])
            .arg("--location")
            .arg(data.path())
            .args(["--silent", "--disableTelemetry"]);
        if let Some(tls) = tls {
            command.args(["--oauth", "basic", "--cert"]);
            command.arg(tls.certificate()).arg("--key").arg(tls.key());
        }
        let child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("node: {e}"));
        let scheme = if tls.is_some() { "https" } else { "http" };
        let azurite = Azurite {
            child,
            base: format!("{scheme}://{host}:{port}"),
            port,
            _data: data,
        };
        wait_until("Azurite answers", START_LIMIT, || {
            TcpStream::connect((host, port)).is_ok()
        });
        azurite.make_container(tls);
        azurite
    }

    /// Signs by hand: the test's own way to the server, which shares no code with what is tested.
    fn make_container(&self, tls: Option<&Certificates>) {
        let script = include_str!("azurite/make_container.py");
        let mut command = Command::new(python());
        command.arg("-c").arg(script);
        command.args([&self.endpoint(), ACCOUNT, KEY, CONTAINER]);
        command.args(tls.map(Certificates::authority));
        crate::machine::run(&mut command);
    }

    /// A shared access signature of the container that allows to read, write, list and delete, and ends so many seconds
    /// from now (or before now).
    ///
    /// # Panics
    /// Without Python.
    pub fn sas(&self, ends_in_s: i32) -> String {
        let script = include_str!("azurite/sas.py");
        let mut command = Command::new(python());
        command.arg("-c").arg(script);
        command.args([ACCOUNT, KEY, CONTAINER, &ends_in_s.to_string()]);
        crate::machine::run(&mut command).trim().to_owned()
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its address, with the account.
    pub fn endpoint(&self) -> String {
        format!("{}/{ACCOUNT}", self.base)
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
