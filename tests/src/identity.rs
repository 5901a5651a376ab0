//! Who hands out temporary credentials: the metadata services of EC2, ECS, EKS and Azure, Azure's authority for tokens
//! and Amazon's for roles. A real HTTP(S) server that answers as those do, right and wrong requests alike.
//!
//! Tokens of Azure are what Azurite checks (issuer, audience, times; nobody checks the signature). Roles are asked of
//! moto's STS, whose answer is passed on.

use crate::certificates::Certificates;
use crate::machine::{temp_dir, wait_until};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// How long the server may take to answer.
const START_LIMIT: Duration = Duration::from_secs(90);

/// Where it listens, and what it hands out.
#[derive(Debug, Default)]
pub struct IdentitySetup<'a> {
    /// HOST:PORT of plain HTTP.
    pub plain: &'a [&'a str],
    /// HOST:PORT of HTTPS.
    pub tls: &'a [&'a str],
    /// For HTTPS.
    pub certificates: Option<&'a Certificates>,
    /// Address of moto: only then it knows roles.
    pub sts: Option<String>,
    /// Seconds after which a client is to ask again (clients do so five minutes before the end they are told). What was
    /// handed out is refused by Azurite two seconds later. 0: an hour.
    pub renew_after_s: u32,
}

/// Running for as long as this value lives.
#[derive(Debug)]
pub struct Identity {
    child: Child,
    home: TempDir,
}

impl Identity {
    /// The application, also that of a managed identity.
    pub const CLIENT: &'static str = "11111111-2222-3333-4444-555555555555";
    /// Its secret.
    pub const SECRET: &'static str = "s3cret-of-the-application";
    /// Its tenant.
    pub const TENANT: &'static str = "66666666-7777-8888-9999-000000000000";
    /// The role that may be assumed.
    pub const ROLE: &'static str = "arn:aws:iam::123456789012:role/tests";
    /// What is in [`Identity::token_file`].
    const POD: &'static str = "token-of-the-pod";

    /// Starts it.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start(setup: &IdentitySetup) -> Identity {
        let home = temp_dir("identity");
        std::fs::write(home.path().join("token"), Identity::POD)
            .unwrap_or_else(|e| panic!("token: {e}"));
        let path = |file: fn(&Certificates) -> PathBuf| setup.certificates.map(file);
        let told = serde_json::json!({
            "plain": setup.plain,
            "tls": setup.tls,
            "certificate": path(Certificates::certificate),
            "key": path(Certificates::key),
            "authority": path(Certificates::authority),
            "sts": setup.sts,
            "renew_after": setup.renew_after_s,
            "client": Identity::CLIENT,
            "secret": Identity::SECRET,
            "tenant": Identity::TENANT,
            "role": Identity::ROLE,
            "pod": Identity::POD,
            "log": home.path().join("log"),
        });
        let child = Command::new("python3")
            .args(["-c", include_str!("identity/server.py"), &told.to_string()])
            .stdout(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("python3: {e}"));
        let identity = Identity { child, home };
        for address in setup.plain.iter().chain(setup.tls) {
            wait_until("the identity server answers", START_LIMIT, || {
                TcpStream::connect(address).is_ok()
            });
        }
        identity
    }

    /// A free address for [`IdentitySetup`].
    ///
    /// # Panics
    /// When there is none.
    pub fn free_address() -> String {
        TcpListener::bind("127.0.0.1:0")
            .and_then(|l| l.local_addr())
            .unwrap_or_else(|e| panic!("no free port: {e}"))
            .to_string()
    }

    /// The file with the token that the pod has been given, for all that ask for one.
    pub fn token_file(&self) -> String {
        self.home.path().join("token").display().to_string()
    }

    /// What was asked for and came of it, in order: `imds`, `ecs`, `eks`, `azure-imds`, `azure-workload`, `azure-secret`
    /// or `sts`, and `ok` or `refused`.
    pub fn log(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.home.path().join("log")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

impl Drop for Identity {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
