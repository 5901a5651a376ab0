//! Several nodes of one coordinator, on one machine.

use crate::coordinator::Coordinator;
use crate::machine::temp_dir;
use crate::node::{Node, Setup};
use tempfile::TempDir;

/// A coordinator and its nodes, with a bucket that is a folder.
#[derive(Debug)]
pub struct Cluster {
    /// The nodes. Stopped before the coordinator.
    pub nodes: Vec<Node>,
    /// Their coordinator.
    pub coordinator: Coordinator,
    flags: Vec<String>,
    _bucket: TempDir,
}

impl Cluster {
    /// A coordinator with further flags, and so many nodes with theirs.
    ///
    /// # Panics
    /// When one does not come up.
    #[track_caller]
    pub fn start(count: usize, coordinator: &[&str], node: &[&str]) -> Cluster {
        let bucket = temp_dir("bucket");
        let folder = bucket.path().display().to_string();
        let cloud = ["--cloud-provider", "dir", "--cloud-dir", folder.as_str()];
        let coordinator = Coordinator::start_with(&[&cloud[..], coordinator].concat());
        let address = coordinator.address();
        let own = ["--coordinator", address.as_str()];
        let flags = [&cloud[..], &own[..], node].concat();
        let flags = flags.into_iter().map(str::to_owned).collect();
        let mut cluster = Cluster {
            nodes: Vec::new(),
            coordinator,
            flags,
            _bucket: bucket,
        };
        for _ in 0..count {
            cluster.join();
        }
        cluster
    }

    /// One more node.
    ///
    /// # Panics
    /// When it does not come up.
    #[track_caller]
    pub fn join(&mut self) {
        self.nodes.push(Node::start(Setup {
            capacity: Some("256MiB"),
            flags: self.flags.clone(),
            ..Setup::default()
        }));
    }
}
