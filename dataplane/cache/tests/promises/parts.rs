//! Goal: a small read of a large chunk costs the bytes it wants, wherever they are, and no more waiting than any other miss. Method:
//! other nodes by a script, an agent with the cloud.

use crate::node::{assert_same, on_node};
use crate::scripted::{Does, Script, with_others_of};
use std::time::Duration;

/// A chunk of which small reads are parts.
const LARGE: usize = 1 << 20;

/// Reads 4 KiB of a large chunk that is not here, with these others: who was asked, whether the agent was, and whether the chunk was
/// kept.
fn who_is_asked_for_a_part(set: impl FnOnce(&mut Script)) -> (Vec<String>, usize, bool) {
    on_node(async |node, agent| {
        node.fs.set_chunk_size(LARGE as u32);
        let (others, ino, data) = with_others_of(&node, true, LARGE - 100).await;
        set(&mut others.0.lock().unwrap());
        let got = node.read(ino, 8192, 4096).await.unwrap();
        assert_same("a part", &got, &data[8192..12288]);
        let rests = || node.fs.stats().fetching_chunks == 0;
        crate::node::until("nothing is under way", rests).await;
        let is_kept = !node.fs.store().chunks_of(ino).is_empty();
        (others.asked(), agent.fetches.borrow().len(), is_kept)
    })
}

#[test]
fn a_small_read_asks_a_home_for_its_bytes_alone() {
    use Does::{Absent, Failed, Has};
    let part = |name| format!("{name} for 4096 at 8192");
    let asked = who_is_asked_for_a_part(|s| s.homes = vec![("a", Has), ("b", Has)]);
    assert_eq!(asked, (vec![part("a")], 0, false));
    let asked = who_is_asked_for_a_part(|s| s.homes = vec![("a", Absent), ("b", Has)]);
    assert_eq!(asked, (vec![part("a"), part("b")], 0, false));
    // None has it: they are not asked again before the cloud is.
    let asked = who_is_asked_for_a_part(|s| {
        s.homes = vec![("a", Absent), ("b", Absent)];
        s.keeper = Some(("a", Has));
    });
    let brought = ["a brings", "a"].map(str::to_owned);
    let all = [vec![part("a"), part("b")], brought.to_vec()].concat();
    assert_eq!(asked, (all, 0, true));
    // One that failed may have it, and the cloud may.
    let asked = who_is_asked_for_a_part(|s| s.homes = vec![("a", Failed)]);
    assert_eq!(asked, (vec![part("a"), "a".to_owned()], 1, true));
    assert_eq!(who_is_asked_for_a_part(|_| {}), (vec![], 1, true));
}

#[test]
fn a_home_that_is_late_with_a_part_is_not_waited_for() {
    let since = std::time::Instant::now();
    for does in [Does::Nothing, Does::Late] {
        let (asked, fetches, is_kept) = who_is_asked_for_a_part(|s| s.homes = vec![("a", does)]);
        assert_eq!(asked, ["a for 4096 at 8192", "a"]);
        assert_eq!((fetches, is_kept), (1, true));
    }
    assert!(since.elapsed() < Duration::from_secs(20));
}

#[test]
fn a_chunk_that_is_read_again_and_again_in_parts_is_fetched() {
    on_node(async |node, agent| {
        node.fs.set_chunk_size(LARGE as u32);
        let (others, ino, data) = with_others_of(&node, true, LARGE).await;
        others.0.lock().unwrap().homes = vec![("a", Does::Has)];
        for n in 0..LARGE / 32 / 4096 {
            assert!(node.fs.store().chunks_of(ino).is_empty());
            let at = n * 37 % 200 * 4096;
            let got = node.read(ino, at as u64, 4096).await.unwrap();
            assert_same("a part", &got, &data[at..at + 4096]);
        }
        let kept = || !node.fs.store().chunks_of(ino).is_empty();
        crate::node::until("it is kept", kept).await;
        let asked = others.asked();
        assert_eq!(asked.len(), LARGE / 32 / 4096 + 1);
        assert_eq!(asked.iter().filter(|who| *who == "a").count(), 1);
        assert_eq!(agent.fetches.borrow().len(), 0);
        let stats = node.fs.stats().peers;
        assert_eq!((stats.peer_parts, stats.peer_part_bytes), (8, 8 * 4096));
        node.read(ino, 0, LARGE).await.unwrap();
        assert!(others.asked().is_empty());
    });
}
