//! Which nodes were said, over REST, to hold a file's chunks: a hint, in memory only. Nodes are asked (`coordinator/asking`).

use fastcache_api::Ino;
use std::collections::{BTreeSet, HashMap, VecDeque};

/// Most files with a location; the one noted first goes first.
pub(crate) const LOCATIONS_MAX: usize = 100_000;

/// Peer ids by file.
#[derive(Debug, Default)]
pub(crate) struct Locations {
    by_ino: HashMap<Ino, BTreeSet<String>>,
    order: VecDeque<Ino>,
}

impl Locations {
    /// A node holds a file, or no longer.
    pub(crate) fn set(&mut self, ino: Ino, peer_id: &str, is_present: bool) {
        if !is_present {
            if let Some(peers) = self.by_ino.get_mut(&ino) {
                peers.remove(peer_id);
            }
            return;
        }
        if !self.by_ino.contains_key(&ino) {
            if self.order.len() >= LOCATIONS_MAX
                && let Some(old) = self.order.pop_front()
            {
                self.by_ino.remove(&old);
            }
            self.order.push_back(ino);
        }
        self.by_ino
            .entry(ino)
            .or_default()
            .insert(peer_id.to_owned());
    }

    /// The nodes that said they hold a file.
    pub(crate) fn of(&self, ino: Ino) -> BTreeSet<String> {
        self.by_ino.get(&ino).cloned().unwrap_or_default()
    }
}
