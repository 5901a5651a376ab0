//! Which nodes keep a chunk: rendezvous hashing (Thaler and Ravishankar, 1998). Every node computes the same from the list of
//! nodes alone; a node that comes or goes moves only what is its own.

use crate::ChunkId;

/// Copies of a chunk: its home nodes.
pub const HOMES: usize = 3;

/// What stands for a node in the choice: of its id alone, the same on every node and in every release.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NodeHash(u64);

impl NodeHash {
    /// Of a node's id (FNV-1a, mixed).
    #[must_use]
    pub fn of(id: &str) -> NodeHash {
        let fnv = id.bytes().fold(0xCBF2_9CE4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
        });
        NodeHash(mix(fnv))
    }

    /// How much it wants a chunk; those that want it most are its homes.
    fn weight(self, id: ChunkId) -> u64 {
        mix(self.0 ^ mix(mix(id.ino.0) ^ u64::from(id.index)))
    }
}

/// The finalizer of splitmix64 (Steele, Lea and Flood, 2014).
fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The homes of a chunk among `nodes`, by their places in that list, the first home first. All of them, where there are fewer
/// than [`HOMES`].
#[must_use]
pub fn homes(id: ChunkId, nodes: &[NodeHash]) -> Vec<usize> {
    let mut first: Vec<(u64, usize)> = Vec::with_capacity(HOMES + 1);
    for (at, node) in nodes.iter().enumerate() {
        // Of two nodes with one weight (2^-64) the one that is first in the list.
        let weight = node.weight(id);
        let place = first.partition_point(|(other, _)| *other >= weight);
        if place < HOMES {
            first.insert(place, (weight, at));
            first.truncate(HOMES);
        }
    }
    first.into_iter().map(|(_, at)| at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Ino;

    fn nodes(n: usize) -> Vec<NodeHash> {
        (0..n)
            .map(|i| NodeHash::of(&format!("node-{i:012x}")))
            .collect()
    }

    fn chunks(n: u64) -> impl Iterator<Item = ChunkId> {
        // As a real namespace has them: counters in an epoch, files of many sizes.
        (0..n).map(|i| ChunkId {
            ino: Ino((3 << 40) + i / 7),
            index: u32::try_from(i % 7).expect("below 7"),
        })
    }

    #[test]
    fn thirty_nodes_have_equal_shares() {
        let nodes = nodes(30);
        let (mut first, mut all) = (vec![0u64; 30], vec![0u64; 30]);
        for id in chunks(30_000) {
            let homes = homes(id, &nodes);
            assert_eq!(homes.len(), HOMES);
            first[homes[0]] += 1;
            homes.iter().for_each(|at| all[*at] += 1);
        }
        for (shares, mean) in [(first, 1000.0), (all, 3000.0)] {
            let most = shares.iter().max().copied().unwrap_or(0) as f64;
            assert!(most / mean <= 1.25, "max/mean {}", most / mean);
        }
    }

    #[test]
    fn a_node_that_leaves_moves_only_its_own() {
        let with = nodes(30);
        let gone = 11;
        let mut without = with.clone();
        without.remove(gone);
        let (mut moved, mut total) = (0u32, 0u32);
        for id in chunks(30_000) {
            let before = homes(id, &with);
            let after: Vec<NodeHash> = homes(id, &without).iter().map(|at| without[*at]).collect();
            for at in before {
                total += 1;
                if !after.contains(&with[at]) {
                    assert_eq!(at, gone, "only what was its own");
                    moved += 1;
                }
            }
        }
        let share = f64::from(moved) / f64::from(total);
        assert!(share <= 1.5 / 30.0, "{share}");
    }

    #[test]
    fn few_nodes_are_all_homes_and_the_order_of_the_list_does_not_matter() {
        let id = ChunkId {
            ino: Ino(1 << 40),
            index: 0,
        };
        assert!(homes(id, &[]).is_empty());
        assert_eq!(homes(id, &nodes(2)).len(), 2);
        let (there, mut back) = (nodes(9), nodes(9));
        back.reverse();
        let chosen = |list: &[NodeHash]| -> Vec<NodeHash> {
            homes(id, list).iter().map(|at| list[*at]).collect()
        };
        assert_eq!(chosen(&there), chosen(&back));
    }

    #[test]
    fn the_choice_is_the_same_in_every_release() {
        let list = nodes(8);
        let id = |index| ChunkId {
            ino: Ino((1 << 40) + 5),
            index,
        };
        let got: Vec<Vec<usize>> = (0..3).map(|index| homes(id(index), &list)).collect();
        assert_eq!(
            got, GOLDEN,
            "nodes of two releases would look in different places"
        );
    }

    const GOLDEN: [[usize; 3]; 3] = [[4, 0, 6], [3, 6, 0], [1, 2, 0]];
}
