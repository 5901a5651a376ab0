//! Several nodes of one coordinator, on one machine.

use crate::coordinator::Coordinator;
use crate::machine::temp_dir;
use crate::node::{Node, Setup};
use tempfile::TempDir;

/// What nodes that listen for each other show.
pub(crate) const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// A coordinator and its nodes, with a bucket that is a folder.
#[derive(Debug)]
pub struct Cluster {
    /// The nodes. Stopped before the coordinator.
    pub nodes: Vec<Node>,
    /// Their coordinator.
    pub coordinator: Coordinator,
    flags: Vec<String>,
    capacity: &'static str,
    /// They have chunks from each other, not from the bucket alone.
    listen: bool,
    _bucket: TempDir,
}

impl Cluster {
    /// A coordinator with further flags, and so many nodes that have chunks from each other.
    ///
    /// # Panics
    /// When one does not come up.
    #[track_caller]
    pub fn start(count: usize, coordinator: &[&str]) -> Cluster {
        Cluster::of(count, coordinator, true, "256MiB")
    }

    /// The same with nodes that have chunks of others from the bucket alone.
    ///
    /// # Panics
    /// When one does not come up.
    #[track_caller]
    pub fn start_apart(count: usize, coordinator: &[&str]) -> Cluster {
        Cluster::of(count, coordinator, false, "256MiB")
    }

    /// Nodes that have chunks from each other, each with room for 1 GiB and as much again.
    ///
    /// # Panics
    /// When one does not come up.
    #[track_caller]
    pub fn start_large(count: usize) -> Cluster {
        Cluster::of(count, &[], true, "2GiB")
    }

    #[track_caller]
    fn of(count: usize, coordinator: &[&str], listen: bool, capacity: &'static str) -> Cluster {
        let bucket = temp_dir("bucket");
        let folder = bucket.path().display().to_string();
        let cloud = ["--cloud-provider", "dir", "--cloud-dir", folder.as_str()];
        let coordinator = Coordinator::start_with(&[&cloud[..], coordinator].concat());
        let address = coordinator.address();
        let own = ["--coordinator", address.as_str()];
        let flags = [&cloud[..], &own[..]].concat();
        let flags = flags.into_iter().map(str::to_owned).collect();
        let mut cluster = Cluster {
            nodes: Vec::new(),
            coordinator,
            flags,
            capacity,
            listen,
            _bucket: bucket,
        };
        let all = std::thread::scope(|scope| {
            let starting: Vec<_> = (0..count).map(|_| scope.spawn(|| cluster.node())).collect();
            let joined = starting
                .into_iter()
                .map(|node| node.join().expect("a node"));
            joined.collect::<Vec<_>>()
        });
        cluster.nodes = all;
        cluster
    }

    /// One more node.
    ///
    /// # Panics
    /// When it does not come up.
    #[track_caller]
    pub fn join(&mut self) {
        let node = self.node();
        self.nodes.push(node);
    }

    fn node(&self) -> Node {
        let mut setup = Setup {
            capacity: Some(self.capacity),
            flags: self.flags.clone(),
            ..Setup::default()
        };
        if self.listen {
            setup.flags.push("--listen=127.0.0.1:0".to_owned());
            let token = ("FASTCACHE_CLUSTER_TOKEN", TOKEN.to_owned());
            setup.env.push(token);
        }
        Node::start(setup)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // They tell what they did.
            return self.nodes.clear();
        }
        // At once, as they were started: each waits for its own end.
        std::thread::scope(|scope| {
            for node in self.nodes.drain(..) {
                scope.spawn(|| drop(node));
            }
        });
    }
}
