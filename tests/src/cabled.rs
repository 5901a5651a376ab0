//! Several nodes of one coordinator, one of them at the far end of a cable.

use crate::cluster::TOKEN;
use crate::coordinator::Coordinator;
use crate::island::Cable;
use crate::machine::temp_dir;
use crate::node::{Node, Setup};
use std::time::Duration;
use tempfile::TempDir;

/// A coordinator and nodes that have chunks from each other, with a bucket that is a folder. One node can be cut off.
#[derive(Debug)]
pub struct CabledNodes {
    /// The nodes; the last one is at the far end. Stopped before the coordinator.
    pub nodes: Vec<Node>,
    /// Their coordinator, at the near end.
    pub coordinator: Coordinator,
    /// What is between the far node and all else.
    pub cable: Cable,
    _bucket: TempDir,
}

impl CabledNodes {
    /// A coordinator that gives leases of this length, and so many nodes. To be called on an island; the test takes `limit`
    /// at the most.
    ///
    /// # Panics
    /// When one does not come up.
    #[track_caller]
    pub fn start(count: usize, lease: Duration, limit: Duration) -> CabledNodes {
        let cable = Cable::lay();
        let bucket = temp_dir("bucket");
        let folder = bucket.path().display().to_string();
        let cloud = ["--cloud-provider", "dir", "--cloud-dir", &folder];
        let lease = lease.as_secs().to_string();
        let flags = [&cloud[..], &["--lease", &lease]].concat();
        let coordinator = Coordinator::start_at(Cable::NEAR, &flags, &[]);
        let start = |host: &str| {
            let own = [
                format!("--coordinator={}", coordinator.address()),
                format!("--listen={host}:0"),
            ];
            let flags = cloud.iter().map(|f| (*f).to_owned()).chain(own);
            Node::start(Setup {
                capacity: Some("256MiB"),
                flags: flags.collect(),
                env: vec![
                    ("FASTCACHE_CLUSTER_TOKEN", TOKEN.to_owned()),
                    ("POD_IP", host.to_owned()),
                ],
                limit,
                ..Setup::default()
            })
        };
        let mut nodes: Vec<Node> = (1..count).map(|_| start(Cable::NEAR)).collect();
        nodes.push(cable.at_far_end(|| start(Cable::FAR)));
        CabledNodes {
            nodes,
            coordinator,
            cable,
            _bucket: bucket,
        }
    }

    /// Stops it in order.
    ///
    /// # Panics
    /// When the far node does not end.
    pub fn end(self) {
        // Its REST is at the other end.
        if let Some(far) = self.nodes.last() {
            self.cable.at_far_end(|| far.down());
        }
    }
}
