//! An authority of the tests' own, and a certificate that it gave a server.

use crate::machine::{run, temp_dir};
use std::path::PathBuf;
use std::process::Command;
use tempfile::TempDir;

/// Files in PEM, gone with this value.
#[derive(Debug)]
pub struct Certificates {
    dir: TempDir,
}

impl Certificates {
    /// For a server that is asked for by one of these names (`DNS:host`) or addresses (`IP:127.0.0.1`).
    ///
    /// # Panics
    /// When openssl is missing or fails.
    pub fn of(names: &[&str]) -> Certificates {
        let dir = temp_dir("certificates");
        // A client that follows the rules takes no authority's certificate from a server: so there are two.
        let script = r#"
            new() { openssl req "$@" -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes; }
            new -x509 -keyout ca.key -out ca.pem -days 2 -subj '/CN=authority of the tests' \
                -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign &&
            new -keyout server.key -out server.csr -subj '/CN=server of the tests' &&
            printf 'subjectAltName=%s\nbasicConstraints=CA:FALSE\n' "$0" > extensions &&
            openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
                -extfile extensions -out server.pem"#;
        run(Command::new("sh")
            .args(["-c", script, &names.join(",")])
            .current_dir(dir.path()));
        Certificates { dir }
    }

    /// What a client has to trust: for `--cloud-ca`.
    pub fn authority(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// The server's certificate.
    pub fn certificate(&self) -> PathBuf {
        self.dir.path().join("server.pem")
    }

    /// The server's key.
    pub fn key(&self) -> PathBuf {
        self.dir.path().join("server.key")
    }
}
