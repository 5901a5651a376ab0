//! A real S3 server (moto) with one bucket.

use crate::certificates::Certificates;
use crate::fault_proxy::FaultProxy;
use crate::machine::{free_port, repository, run, wait_until};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Running for as long as this value lives.
#[derive(Debug)]
pub struct S3 {
    child: Child,
    /// HTTP or HTTPS, and where.
    base: String,
    /// Whom to trust where it speaks HTTPS.
    authority: Option<PathBuf>,
    port: u16,
    /// Port that nodes are told: of a proxy, or our own.
    told: u16,
}

/// The bucket of the tests.
const BUCKET: &str = "fastcache-tests";
/// How long the server may take to answer.
const START_LIMIT: Duration = Duration::from_secs(90);

impl S3 {
    /// Starts a server on a free port and makes the bucket.
    ///
    /// # Panics
    /// When it is not installed or does not come up.
    pub fn start() -> S3 {
        S3::start_on("127.0.0.1", free_port(), None)
    }

    /// The same at an address of this machine; with certificates it speaks HTTPS.
    ///
    /// # Panics
    /// When it is not installed or does not come up.
    pub fn start_on(host: &str, port: u16, tls: Option<&Certificates>) -> S3 {
        let binary = repository().join(".venv/bin/moto_server");
        assert!(
            binary.exists(),
            "no S3 server: tests/setup/install.sh makes .venv with moto"
        );
        let mut command = Command::new(binary);
        command.args(["-H", host, "-p", &port.to_string()]);
        if let Some(tls) = tls {
            command.arg("-s").arg("-c").arg(tls.certificate());
            command.arg("-k").arg(tls.key());
        }
        let child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("moto_server: {e}"));
        let scheme = if tls.is_some() { "https" } else { "http" };
        let s3 = S3 {
            child,
            base: format!("{scheme}://{host}:{port}"),
            authority: tls.map(Certificates::authority),
            port,
            told: port,
        };
        wait_until("the S3 server answers", START_LIMIT, || {
            TcpStream::connect((host, port)).is_ok()
        });
        let bucket = format!("{}/{BUCKET}", s3.endpoint());
        run(s3.curl().args(["-X", "PUT", &bucket]));
        s3
    }

    /// The test's own way to the server.
    fn curl(&self) -> Command {
        let mut command = Command::new("curl");
        command.arg("-sSf");
        if let Some(authority) = &self.authority {
            command.arg("--cacert").arg(authority);
        }
        command
    }

    /// Its address.
    pub fn endpoint(&self) -> String {
        self.base.clone()
    }

    /// Nodes reach it through a proxy; the tests' own look at the objects does not.
    #[must_use]
    pub fn through(mut self, proxy: &FaultProxy) -> S3 {
        self.told = proxy.port();
        self
    }

    /// The address that nodes are told.
    pub fn endpoint_for_nodes(&self) -> String {
        format!("http://127.0.0.1:{}", self.told)
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The bucket's name.
    pub fn bucket(&self) -> &'static str {
        BUCKET
    }

    /// Every object in the bucket: key and bytes.
    ///
    /// # Panics
    /// When the server does not answer.
    pub fn objects(&self) -> Vec<(String, u64)> {
        let mut objects = Vec::new();
        let mut start_after = String::new();
        loop {
            let page = run(self.curl().args([
                "-G",
                &format!("{}/{BUCKET}", self.endpoint()),
                "--data-urlencode",
                "list-type=2",
                "--data-urlencode",
                &format!("start-after={start_after}"),
            ]));
            for item in page.split("<Contents>").skip(1) {
                let key = between(item, "<Key>", "</Key>");
                let bytes = between(item, "<Size>", "</Size>").parse().unwrap_or(0);
                objects.push((key.to_owned(), bytes));
            }
            match objects.last() {
                Some((key, _)) if page.contains("<IsTruncated>true") => {
                    assert!(*key > start_after, "the listing goes on");
                    start_after = key.clone();
                }
                _ => return objects,
            }
        }
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn between<'a>(text: &'a str, from: &str, to: &str) -> &'a str {
    text.split_once(from)
        .and_then(|(_, t)| t.split_once(to))
        .map_or("", |(t, _)| t)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_more_than_one_page() {
        let s3 = S3::start();
        let script = "for n in $(seq 1 1005); do printf 'url = \"%s/fastcache-tests/chunks/ab/%04d\"\\nupload-file = \"/dev/stdin\"\\noutput = /dev/null\\n' \
                      $0 $n; done";
        assert!(s3.objects().is_empty());
        let config = run(Command::new("bash").args(["-c", script, &s3.endpoint()]));
        let dir = tempfile::tempdir().unwrap();
        let empty = dir.path().join("empty");
        std::fs::write(&empty, b"xy").unwrap();
        std::fs::write(
            dir.path().join("config"),
            config.replace("/dev/stdin", &empty.to_string_lossy()),
        )
        .unwrap();
        run(Command::new("curl")
            .arg("-sSfK")
            .arg(dir.path().join("config")));
        let objects = s3.objects();
        assert_eq!(objects.len(), 1005);
        assert!(
            objects
                .iter()
                .all(|(key, bytes)| key.starts_with("chunks/a") && *bytes == 2)
        );
    }
}
