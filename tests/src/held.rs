//! Several nodes whose chunks do not get into the bucket until they are let.

use crate::cluster::TOKEN;
use crate::coordinator::Coordinator;
use crate::fault_proxy::{Fault, FaultProxy};
use crate::machine::wait_until;
use crate::node::{Node, Setup};
use crate::s3::S3;
use std::time::Duration;

/// How long nodes may take to hear of each other: a heartbeat, and room.
const HEARD_OF: Duration = Duration::from_secs(20);

/// Nodes that know each other, their coordinator, and a bucket behind a proxy that refuses chunks.
#[derive(Debug)]
pub struct HeldNodes {
    /// The nodes. Stopped before what they need.
    pub nodes: Vec<Node>,
    /// Between them and the bucket.
    pub proxy: FaultProxy,
    _coordinator: Coordinator,
    _s3: S3,
}

impl HeldNodes {
    /// So many nodes with further flags.
    ///
    /// # Panics
    /// When one does not come up, or does not hear of the others.
    #[track_caller]
    pub fn start(count: usize, flags: &[&str]) -> HeldNodes {
        let s3 = S3::start();
        let proxy = FaultProxy::start(s3.port());
        let bucket = [
            "--cloud-provider",
            "s3",
            "--s3-region=us-east-1",
            "--s3-bucket",
            s3.bucket(),
        ];
        let keys = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"].map(|n| (n, "test".to_owned()));
        // Nodes hear of each other with a heartbeat, a quarter of a lease.
        let straight = format!("--s3-endpoint={}", s3.endpoint());
        let of_coordinator = [&bucket[..], &[&straight, "--lease", "4"]].concat();
        let coordinator = Coordinator::start_in(&of_coordinator, &keys);
        let own = [
            format!("--s3-endpoint={}", proxy.endpoint()),
            format!("--coordinator={}", coordinator.address()),
            "--listen=127.0.0.1:0".to_owned(),
        ];
        let shared = bucket.iter().chain(flags).map(|flag| (*flag).to_owned());
        let flags: Vec<String> = shared.chain(own).collect();
        let setup = || Setup {
            capacity: Some("256MiB"),
            flags: flags.clone(),
            env: [&keys[..], &[("FASTCACHE_CLUSTER_TOKEN", TOKEN.to_owned())]].concat(),
            ..Setup::default()
        };
        let nodes = std::thread::scope(|scope| {
            let starting: Vec<_> = (0..count)
                .map(|_| scope.spawn(|| Node::start(setup())))
                .collect();
            let joined = starting.into_iter().map(|n| n.join().expect("a node"));
            joined.collect::<Vec<_>>()
        });
        let held = HeldNodes {
            nodes,
            proxy,
            _coordinator: coordinator,
            _s3: s3,
        };
        held.hold_uploads();
        for node in &held.nodes {
            wait_until("the nodes know each other", HEARD_OF, || {
                let status = node.json(&["status"]);
                let known = status["nvme"]["peers"]["peers"].as_array();
                known.is_some_and(|known| known.len() + 1 == count)
            });
        }
        held
    }

    /// No chunk reaches the bucket from now on.
    pub fn hold_uploads(&self) {
        let fault = Fault::Status {
            code: 503,
            share: 1.0,
            retry_after_s: None,
        };
        self.proxy
            .set_where(fault, |r| r.is_put() && r.path.contains("/chunks/"));
    }

    /// They do again.
    pub fn let_uploads(&self) {
        self.proxy.set(Fault::Pass);
    }
}
