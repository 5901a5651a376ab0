//! Goal: other nodes hear which versions are to be copied, and which need no copies any more. Method: other nodes by a script.

use crate::node::{CHUNK, on_node, pattern, until};
use crate::scripted::Others;
use fastcache_api::Errno;

#[test]
fn copies_of_a_version_are_needed_until_the_next_one_is_committed() {
    on_node(async |node, agent| {
        let others = Others::around(&node);
        let told = || others.told();
        let keys = |ino| node.keys_of(ino);
        let ino = node.create("file").await;
        node.write(ino, 0, &pattern(1, 2 * CHUNK)).await.unwrap();
        node.fsync(ino).await.unwrap();
        let first = keys(ino);
        told();
        // The first chunk is written in part and sealed at close, the second one whole and ahead of it, twice.
        agent.ignores_commits.set(true);
        let asked = agent.commits.borrow().len();
        node.write(ino, 0, b"new").await.unwrap();
        for round in 2..4 {
            let before = keys(ino)[1];
            node.write(ino, CHUNK as u64, &pattern(round, CHUNK))
                .await
                .unwrap();
            let is_sealed = || keys(ino)[1] != before;
            until("it is sealed ahead", is_sealed).await;
        }
        // It is in the store a moment before that is noted.
        let awaits = || node.fs.awaits_commit(keys(ino)[1]);
        until("it awaits its commit", awaits).await;
        node.flush(ino).await.unwrap();
        let second = keys(ino);
        let is_asked = || agent.commits.borrow().len() > asked;
        until("the commit is asked for", is_asked).await;
        assert_eq!(told(), (vec![], vec![]), "nobody knows how it ends");
        for (old, new) in first.iter().zip(&second) {
            assert!(old != new && !node.fs.awaits_commit(*old));
            assert!(node.fs.awaits_commit(*new) && node.fs.is_uncommitted(ino));
        }
        node.link.detach(0, 1);
        agent.ignores_commits.set(false);
        agent.attach(&node.link, &node.arena, 2);
        node.fsync(ino).await.unwrap();
        let (mut sealed, mut settled) = told();
        sealed.sort();
        settled.sort();
        assert_eq!((sealed, settled), (second.clone(), first));
        assert!(!node.fs.awaits_commit(second[0]) && !node.fs.is_uncommitted(ino));
        assert_eq!(node.fs.is_named(second[0]).await, Some(true));
    });
}

#[test]
fn a_commit_that_is_refused_leaves_the_copies_of_what_the_layout_names() {
    on_node(async |node, agent| {
        let others = Others::around(&node);
        let ino = node.create("file").await;
        node.write(ino, 0, &pattern(1, 5000)).await.unwrap();
        node.fsync(ino).await.unwrap();
        let first = node.fs.store().chunks_of(ino)[0].key();
        agent.others_truncate(ino, 4500);
        node.write(ino, 0, b"new").await.unwrap();
        assert_eq!(node.fsync(ino).await, Err(Errno::EIO));
        let script = others.0.lock().unwrap();
        // The file beside it, with what was refused, has a copy, too.
        let of_file = script.sealed.iter().filter(|key| key.ino == ino);
        assert_eq!(of_file.collect::<Vec<_>>(), [&first]);
        assert!(!script.settled.contains(&first));
    });
}

#[test]
fn what_is_sealed_is_to_be_copied_until_the_cloud_has_it() {
    on_node(async |node, _| {
        let others = Others::around(&node);
        let ino = node.create("file").await;
        node.write(ino, 0, &pattern(1, 3 * CHUNK)).await.unwrap();
        node.fsync(ino).await.unwrap();
        let here = node.keys_of(ino);
        let (mut sealed, _) = others.told();
        sealed.sort();
        assert_eq!(sealed, here);
        // Written again: the version before needs no copies any more.
        node.write(ino, 0, b"new").await.unwrap();
        node.fsync(ino).await.unwrap();
        let (sealed, settled) = others.told();
        assert_eq!((sealed.len(), settled), (1, vec![here[0]]));
        node.upload().await;
        assert_eq!(others.0.lock().unwrap().settled.len(), 3);
    });
}
