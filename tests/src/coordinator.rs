//! A coordinator in a process of its own.

use crate::machine::{free_port, program, temp_dir, wait_until};
use crate::plane::{Stopped, signal};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// A running coordinator; killed when dropped.
#[derive(Debug)]
pub struct Coordinator {
    home: TempDir,
    host: String,
    port: u16,
    flags: Vec<String>,
    env: Vec<(&'static str, String)>,
    child: Option<Child>,
}

impl Coordinator {
    /// Starts one with further flags, on a free port and a folder of its own, and returns when it listens.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn start_with(flags: &[&str]) -> Coordinator {
        Coordinator::start_in(flags, &[])
    }

    /// The same with a bucket that is a folder; and the flags that nodes take: those of the bucket, and its own address.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn start_with_folder(folder: &Path) -> (Coordinator, Vec<String>) {
        let folder = folder.display().to_string();
        let bucket = ["--cloud-provider", "dir", "--cloud-dir", folder.as_str()];
        let coordinator = Coordinator::start_with(&bucket);
        let address = coordinator.address();
        let flags = bucket.iter().copied();
        let flags = flags.chain(["--coordinator", address.as_str()]);
        let flags = flags.map(str::to_owned).collect();
        (coordinator, flags)
    }

    /// The same with further environment.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn start_in(flags: &[&str], env: &[(&'static str, String)]) -> Coordinator {
        Coordinator::start_at("127.0.0.1", flags, env)
    }

    /// The same on another address of this machine.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn start_at(host: &str, flags: &[&str], env: &[(&'static str, String)]) -> Coordinator {
        let mut coordinator = Coordinator {
            home: temp_dir("coordinator"),
            host: host.to_owned(),
            port: free_port(),
            flags: flags.iter().map(|f| (*f).to_owned()).collect(),
            env: env.to_vec(),
            child: None,
        };
        coordinator.start();
        coordinator
    }

    /// Its bucket, as flags, which its nodes have to be given: a directory of its own. None where its own flags name
    /// another one.
    pub fn bucket(&self) -> Vec<String> {
        if self.flags.iter().any(|f| f == "--cloud-provider") {
            return Vec::new();
        }
        let dir = self.home.path().join("cloud");
        ["--cloud-provider", "dir", "--cloud-dir"]
            .map(str::to_owned)
            .into_iter()
            .chain([dir.display().to_string()])
            .collect()
    }

    /// Starts it again after [`Coordinator::kill`], on the same port and folder.
    ///
    /// # Panics
    /// When it does not come up.
    #[track_caller]
    pub fn start(&mut self) {
        let child = Command::new(program("fastcache-ctl"))
            .args(["coordinator", "--listen", &self.address(), "--state-dir"])
            .arg(self.home.path().join("state"))
            .args(self.bucket())
            .args(&self.flags)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("fastcache-ctl coordinator: {e}"));
        self.child = Some(child);
        wait_until("the coordinator answers", Duration::from_secs(20), || {
            TcpStream::connect((&*self.host, self.port)).is_ok()
        });
    }

    /// The same with other flags.
    ///
    /// # Panics
    /// When it does not come up.
    #[track_caller]
    pub fn start_again_with(&mut self, flags: &[&str]) {
        self.flags = flags.iter().map(|f| (*f).to_owned()).collect();
        self.start();
    }

    /// kill -9.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Its state, as it is on the disk now. To be taken when nothing is written.
    ///
    /// # Panics
    /// When it cannot be copied.
    #[track_caller]
    pub fn copy_state(&self) -> TempDir {
        let copy = temp_dir("state");
        let done = Command::new("cp")
            .arg("-a")
            .arg(self.home.path().join("state"))
            .arg(copy.path())
            .status();
        assert!(done.is_ok_and(|s| s.success()), "the state is copied");
        copy
    }

    /// Puts a state of before in the place of its own, as a power cut leaves it: another boot follows. It was killed.
    ///
    /// # Panics
    /// When that cannot be done.
    #[track_caller]
    pub fn lose_power(&self, copy: &TempDir) {
        let state = self.home.path().join("state");
        let done = std::fs::remove_dir_all(&state)
            .and_then(|()| std::fs::rename(copy.path().join("state"), &state))
            .and_then(|()| std::fs::write(state.join("boot-id"), "the one before"));
        done.unwrap_or_else(|e| panic!("the state of before: {e}"));
    }

    /// SIGSTOP. It goes on when what this returns is dropped. `None` when it was killed.
    pub fn stop(&self) -> Option<Stopped> {
        let pid = self.child.as_ref().map(Child::id);
        pid.filter(|pid| signal(*pid, rustix::process::Signal::STOP))
            .map(Stopped)
    }

    /// Its process; 0 when it was killed.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `HOST:PORT`.
    pub fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// A folder that goes with it.
    pub fn dir(&self) -> &Path {
        self.home.path()
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        self.kill();
    }
}
