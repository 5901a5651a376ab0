//! TLS in front of a server that speaks plain HTTP: of a proxy that looks at requests, say.

use crate::certificates::Certificates;
use crate::machine::{free_port, wait_until};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How long it may take to listen.
const START_LIMIT: Duration = Duration::from_secs(90);

/// Running for as long as this value lives.
#[derive(Debug)]
pub struct TlsFront {
    child: Child,
    port: u16,
}

impl TlsFront {
    /// On a free port of 127.0.0.1, in front of another one.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start(upstream: u16, certificates: &Certificates) -> TlsFront {
        let port = free_port();
        let child = Command::new("python3")
            .args(["-c", include_str!("tls_front/front.py")])
            .args([port.to_string(), upstream.to_string()])
            .args([certificates.certificate(), certificates.key()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("python3: {e}"));
        let front = TlsFront { child, port };
        wait_until("the TLS front listens", START_LIMIT, || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        front
    }

    /// Its address.
    pub fn endpoint(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }
}

impl Drop for TlsFront {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
