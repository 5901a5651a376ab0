//! `status --cluster`: the nodes side by side, as their coordinator knows them. A node with an embedded one is alone.

use super::print_json;
use crate::cli::StatusFlags;
use crate::client::{Api, Target};
use crate::output::{bytes, duration, percent, say};
use fastcache_agent::rest::types::{PeerBody, PeersBody, StatusBody};
use fastcache_coordinator::Peer;
use serde::{Deserialize, Serialize};
use std::process::ExitCode;
use std::time::Duration;

/// Answer to the coordinator's `GET /api/peers`.
#[derive(Deserialize)]
struct Registered {
    peers: Vec<Peer>,
}

/// A node in a line.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct Line {
    /// Its name.
    id: String,
    /// `HOST:PORT` of its REST; empty: not known.
    address: String,
    /// `HOST:PORT` for other nodes; empty: it does not listen for any.
    peer_address: String,
    /// `live`; `stale`: the coordinator does not hear of it; of a node that is alone `degraded`: its data plane is away.
    state: String,
    /// The node that was asked.
    is_self: bool,
    /// Milliseconds since the coordinator last heard of it.
    last_heartbeat_ms: Option<u64>,
    /// Of its software.
    version: String,
    /// Of the kernel's requests; empty while its data plane is away.
    transport: String,
    /// Of its store, bytes.
    capacity_bytes: u64,
    /// Used of it, bytes.
    used_bytes: u64,
    /// Not yet in the cloud, bytes.
    dirty_bytes: u64,
    /// Requests of the kernel a second.
    load: Option<u64>,
}

/// Everything that is told.
#[derive(Serialize)]
struct Cluster {
    /// `HOST:PORT`, or `embedded`.
    coordinator: String,
    /// By name.
    nodes: Vec<Line>,
}

impl Line {
    fn registered(peer: Peer, me: &str) -> Line {
        Line {
            is_self: peer.peer_id == me,
            id: peer.peer_id,
            address: peer.rest_address,
            peer_address: peer.peer_address,
            state: peer.state,
            last_heartbeat_ms: Some(peer.last_heartbeat_ms),
            version: peer.version,
            transport: peer.transport,
            capacity_bytes: peer.capacity_bytes,
            used_bytes: peer.used_bytes,
            dirty_bytes: peer.dirty_bytes,
            load: Some(peer.load),
        }
    }

    fn alone(node: PeerBody) -> Line {
        Line {
            id: node.id,
            address: node.address.unwrap_or_default(),
            peer_address: node.peer_address.unwrap_or_default(),
            state: match node.is_healthy {
                true => "live",
                false => "degraded",
            }
            .to_owned(),
            is_self: node.is_self,
            last_heartbeat_ms: node.last_heartbeat_ms,
            version: node.version,
            transport: node.transport,
            capacity_bytes: node.capacity_bytes,
            used_bytes: node.used_bytes,
            dirty_bytes: node.dirty_bytes,
            load: node.load,
        }
    }

    /// As [`HEADINGS`].
    fn columns(&self) -> [String; 10] {
        let or_none = |text: String| match text.is_empty() {
            true => "-".to_owned(),
            false => text,
        };
        let mark = if self.is_self { " *" } else { "" };
        let heard = self.last_heartbeat_ms.map(Duration::from_millis);
        [
            format!("{}{mark}", self.id),
            or_none(self.address.clone()),
            self.state.clone(),
            or_none(heard.map(duration).unwrap_or_default()),
            or_none(self.version.clone()),
            or_none(self.transport.clone()),
            bytes(self.capacity_bytes),
            format!(
                "{} ({})",
                bytes(self.used_bytes),
                percent(self.used_bytes, self.capacity_bytes)
            ),
            bytes(self.dirty_bytes),
            or_none(self.load.map(|n| format!("{n}/s")).unwrap_or_default()),
        ]
    }
}

const HEADINGS: [&str; 10] = [
    "node",
    "address",
    "state",
    "heard",
    "version",
    "transport",
    "capacity",
    "used",
    "dirty",
    "load",
];

/// The lines of the table, each column as wide as its widest entry.
fn table(nodes: &[Line]) -> Vec<String> {
    let mut rows = vec![HEADINGS.map(str::to_owned)];
    rows.extend(nodes.iter().map(Line::columns));
    let mut widths = [0; HEADINGS.len()];
    for row in &rows {
        for (width, text) in widths.iter_mut().zip(row) {
            *width = text.chars().count().max(*width);
        }
    }
    let line = |row: &[String; HEADINGS.len()]| {
        let cells = row.iter().zip(widths);
        let cells = cells.map(|(text, width)| format!("{text:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

async fn ask(flags: &StatusFlags) -> anyhow::Result<Cluster> {
    let (coordinator, me) = match &flags.coordinator {
        Some(address) => (address.clone(), String::new()),
        None => {
            let target = Target::find(&flags.node)?;
            let status: StatusBody = target.api.get("/api/admin/status").await?;
            if status.coordinator == "embedded" {
                let alone: PeersBody = target.api.get("/api/peers").await?;
                return Ok(Cluster {
                    coordinator: status.coordinator,
                    nodes: alone.peers.into_iter().map(Line::alone).collect(),
                });
            }
            (status.coordinator, status.peer_id)
        }
    };
    let api = Api::at(&coordinator, flags.node.api_key.clone());
    let known: Registered = api.get("/api/peers").await?;
    let mut nodes: Vec<Line> = known
        .peers
        .into_iter()
        .map(|peer| Line::registered(peer, &me))
        .collect();
    nodes.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(Cluster { coordinator, nodes })
}

/// `status --cluster`.
pub async fn cluster(flags: &StatusFlags) -> anyhow::Result<ExitCode> {
    let cluster = ask(flags).await?;
    if flags.node.json {
        print_json(&cluster)?;
        return Ok(ExitCode::SUCCESS);
    }
    let live = cluster.nodes.iter().filter(|n| n.state == "live").count();
    say!(
        "coordinator {}: {live} of {} nodes are live",
        cluster.coordinator,
        cluster.nodes.len()
    );
    for line in table(&cluster.nodes) {
        say!("{line}");
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other() {
        let node = Line {
            id: "node-1".to_owned(),
            address: "10.0.0.7:8081".to_owned(),
            state: "live".to_owned(),
            is_self: true,
            last_heartbeat_ms: Some(1200),
            version: "0.1.0".to_owned(),
            transport: "uring".to_owned(),
            capacity_bytes: 1 << 40,
            used_bytes: 1 << 39,
            dirty_bytes: 3 << 20,
            load: Some(1234),
            ..Line::default()
        };
        let gone = Line {
            id: "a-node-with-a-long-name".to_owned(),
            state: "stale".to_owned(),
            last_heartbeat_ms: Some(3_600_000),
            ..Line::default()
        };
        let lines = table(&[node, gone]);
        let want = [
            "node                     address        state  heard      version  transport  capacity  used                dirty    load",
            "node-1 *                 10.0.0.7:8081  live   1.2 s      0.1.0    uring      1.0 TiB   512.0 GiB (50 %)    3.0 MiB  1234/s",
            "a-node-with-a-long-name  -              stale  1 h 0 min  -        -          0 B       0 B (-)             0 B      -",
        ];
        for (line, want) in lines.iter().zip(want) {
            let words = |text: &str| {
                text.split_whitespace()
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            };
            assert_eq!(words(line), words(want));
        }
        for heading in ["address", "state", "capacity", "load"] {
            let at = lines[0].find(heading).unwrap();
            for line in &lines[1..] {
                assert_eq!(&line[at - 2..at], "  ", "{heading}: {line}");
                assert_ne!(&line[at..=at], " ", "{heading}: {line}");
            }
        }
    }
}
