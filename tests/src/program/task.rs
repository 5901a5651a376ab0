//! A program as a process: its arguments, its start, and what it noted when it is over.

use super::Noted;
use crate::Node;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// Where a program works, and with which choices.
#[derive(Clone, Debug)]
pub struct Task {
    /// Of its node.
    pub mount: PathBuf,
    /// A folder beneath it, on what is not mounted.
    pub outside: PathBuf,
    /// Which node that is.
    pub node: usize,
    /// Which of the programs there; one more than those that are started looks at things.
    pub program: usize,
    /// Below the mount.
    pub folder: String,
    /// Of its choices.
    pub seed: u64,
}

impl Task {
    /// On this node.
    #[must_use]
    pub fn on(mount: &Node, node: usize, program: usize, folder: &str, seed: u64) -> Task {
        Task {
            mount: mount.mount().to_owned(),
            outside: mount.outside().to_owned(),
            node,
            program,
            folder: folder.to_owned(),
            seed,
        }
    }

    /// The same from its arguments.
    #[must_use]
    pub fn parse(args: &[String]) -> Option<Task> {
        let [mount, outside, node, program, folder, seed] = args else {
            return None;
        };
        Some(Task {
            mount: mount.into(),
            outside: outside.into(),
            node: node.parse().ok()?,
            program: program.parse().ok()?,
            folder: folder.clone(),
            seed: seed.parse().ok()?,
        })
    }

    /// Starts `executable` with it.
    ///
    /// # Panics
    /// When that cannot be started.
    pub fn start(&self, executable: &str) -> Running {
        let mut command = Command::new(executable);
        command
            .args([&self.mount, &self.outside])
            .args([self.node.to_string(), self.program.to_string()])
            .args([&self.folder, &self.seed.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        Running(
            command
                .spawn()
                .unwrap_or_else(|e| panic!("{command:?} cannot be started: {e}")),
        )
    }
}

/// A program that works.
pub struct Running(Child);

impl Running {
    /// Says that it is over.
    pub fn stop(&mut self) {
        drop(self.0.stdin.take());
    }

    /// Stops it, and takes what it noted.
    ///
    /// # Panics
    /// When it did not end well.
    #[must_use]
    pub fn noted(mut self) -> Noted {
        self.stop();
        let output = self.0.wait_with_output().expect("a program's output");
        assert!(output.status.success(), "a program: {}", output.status);
        serde_json::from_slice(&output.stdout).expect("what a program noted")
    }
}
