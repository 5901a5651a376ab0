//! Goal: what is not here comes from the first that has it, and nobody waits for a node that stands still. Method: other nodes
//! by a script, an agent with the cloud.

use crate::node::{assert_same, on_node, until};
use crate::scripted::{Does, Script, with_others};
use fastcache_api::Errno;
use fastcache_reactor::now;
use std::time::Duration;

/// Reads a file that is not here, with these others: who was asked, and whether the agent was.
fn who_is_asked(is_in_cloud: bool, set: impl FnOnce(&mut Script)) -> (Vec<String>, usize) {
    on_node(async |node, agent| {
        let (others, ino, data) = with_others(&node, is_in_cloud).await;
        set(&mut others.0.lock().unwrap());
        let got = node.read(ino, 0, data.len()).await.unwrap();
        assert_same("what was read", &got, &data);
        let slots = || node.arena.free() == node.arena.slots();
        until("every slot came back", slots).await;
        let asked = others.asked();
        // It is kept: nobody is asked again.
        let kept = || !node.fs.store().chunks_of(ino).is_empty();
        until("it is kept", kept).await;
        node.read(ino, 0, data.len()).await.unwrap();
        assert!(others.asked().is_empty());
        (asked, agent.fetches.borrow().len())
    })
}

#[test]
fn homes_are_asked_in_order_and_the_cloud_only_after_them() {
    use Does::{Absent, Failed, Has};
    let (asked, fetches) = who_is_asked(true, |s| {
        s.homes = vec![("a", Absent), ("b", Failed), ("c", Has)];
        s.keeper = Some(("a", Has));
    });
    assert_eq!(
        (asked, fetches),
        (vec!["a".into(), "b".into(), "c".into()], 0)
    );
    let (asked, fetches) = who_is_asked(true, |s| s.homes = vec![("a", Absent), ("b", Failed)]);
    assert_eq!((asked, fetches), (vec!["a".into(), "b".into()], 1));
    // Nobody there.
    let (asked, fetches) = who_is_asked(true, |_| {});
    assert_eq!((asked, fetches), (vec![], 1));
}

#[test]
fn the_first_home_brings_it_from_the_cloud_when_it_can() {
    use Does::{Absent, Has};
    let (asked, fetches) = who_is_asked(true, |s| {
        s.homes = vec![("b", Absent)];
        s.keeper = Some(("a", Has));
    });
    let brought: Vec<String> = ["b", "a brings", "a"].map(str::to_owned).to_vec();
    assert_eq!((asked, fetches), (brought.clone(), 0));
    let (asked, fetches) = who_is_asked(true, |s| {
        s.homes = vec![("b", Absent)];
        s.keeper = Some(("a", Absent));
    });
    assert_eq!((asked.len(), fetches), (2, 1));
    // As long as it is there it is waited for; else not.
    let (asked, fetches) = who_is_asked(true, |s| {
        s.homes = vec![("b", Absent)];
        s.keeper = Some(("a", Does::Slow));
    });
    assert_eq!((asked, fetches), (brought, 0));
    let since = std::time::Instant::now();
    let (asked, fetches) = who_is_asked(true, |s| {
        s.homes = vec![("b", Absent)];
        s.keeper = Some(("a", Does::Nothing));
    });
    assert_eq!((asked.len(), fetches), (2, 1));
    assert!(since.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_late_answer_does_not_make_the_cloud_read_twice() {
    use Does::{Late, Slow};
    let (asked, fetches) = who_is_asked(true, |s| {
        s.homes = vec![("b", Late)];
        s.keeper = Some(("a", Slow));
    });
    let brought: Vec<String> = ["b", "a brings", "a"].map(str::to_owned).to_vec();
    assert_eq!((asked, fetches), (brought, 0));
}

#[test]
fn what_neither_homes_nor_the_cloud_have_is_looked_for_everywhere() {
    let (asked, fetches) = who_is_asked(false, |s| {
        s.homes = vec![("a", Does::Absent)];
        s.far = Some("z");
    });
    assert_eq!((asked, fetches), (vec!["a".into(), "z".into()], 1));
}

#[test]
fn a_node_that_stands_still_is_not_waited_for() {
    let since = std::time::Instant::now();
    let (asked, fetches) = who_is_asked(true, |s| {
        s.homes = vec![("a", Does::Nothing), ("b", Does::Has)];
    });
    assert_eq!((asked, fetches), (vec!["a".into(), "b".into()], 0));
    let (asked, fetches) = who_is_asked(true, |s| s.homes = vec![("a", Does::Nothing)]);
    assert_eq!((asked, fetches), (vec!["a".into()], 1));
    assert!(since.elapsed() < Duration::from_secs(20));
}

#[test]
fn what_nobody_has_is_an_error_in_time() {
    on_node(async |node, _| {
        let (others, ino, _) = with_others(&node, false).await;
        others.0.lock().unwrap().homes = vec![("a", Does::Absent), ("b", Does::Failed)];
        let since = now();
        assert_eq!(node.read(ino, 0, 100).await, Err(Errno::EIO));
        assert!(since.elapsed() < Duration::from_secs(15));
        assert_eq!(node.fs.stats().peers.peer_absent, 1);
    });
}
