//! Goal: what was cut off by a truncation, or punched, never comes back when the file grows again, although its block
//! still waits in memory, is open, sealed, or was evicted. Method: every mix of how the old bytes were stored, where the
//! file is cut and where it grows again; read before and after each further step.

use crate::node::{CHUNK, Node, assert_same, on_node, pattern, until};
use fastcache_api::Ino;
use fastcache_api::control::DataEvent;

/// What happens between two steps.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Then {
    Nothing,
    Flush,
    Evict,
}

async fn then(node: &Node, ino: Ino, what: Then) {
    match what {
        Then::Nothing => {}
        Then::Flush => node.flush(ino).await.unwrap(),
        Then::Evict => {
            node.fsync(ino).await.unwrap();
            node.upload().await;
            node.evict(ino).await;
            assert!(
                node.fs.store().chunks_of(ino).is_empty(),
                "everything is evicted"
            );
        }
    }
}

async fn check(node: &Node, ino: Ino, model: &[u8], what: &str) {
    let got = node.read(ino, 0, model.len() + 10).await.unwrap();
    assert_same(what, &got, model);
}

#[test]
fn what_was_cut_off_does_not_come_back() {
    let all = [Then::Nothing, Then::Flush, Then::Evict];
    on_node(async |node, _| {
        let mut number = 0;
        // Sizes: gathered in memory; several blocks; written directly, over the first chunk's end.
        for size in [3000, 10_000, CHUNK + 20_000] {
            for cut in [1, 2500, 4096, 5000, CHUNK - 1, CHUNK, CHUNK + 4097] {
                // The end is extended by a write in the same block, behind it, by a truncation.
                for gap in [0, 10, 4000, 9000, CHUNK] {
                    for (before, between) in
                        all.iter().flat_map(|a| all.iter().map(move |b| (*a, *b)))
                    {
                        if cut >= size {
                            continue;
                        }
                        number += 1;
                        let what = format!(
                            "{size} cut to {cut}, written {gap} behind, {before:?}, {between:?}"
                        );
                        let ino = node.create(&format!("file {number}")).await;
                        let mut model = pattern(number, size);
                        node.write(ino, 0, &model).await.unwrap();
                        then(&node, ino, before).await;
                        node.truncate(ino, cut as u64).await.unwrap();
                        model.truncate(cut);
                        then(&node, ino, between).await;
                        let more = pattern(number + 1, 100);
                        node.write(ino, (cut + gap) as u64, &more).await.unwrap();
                        model.resize(cut + gap, 0);
                        model.extend_from_slice(&more);
                        check(&node, ino, &model, &what).await;
                        // And once more by a truncation alone.
                        node.truncate(ino, (cut + gap) as u64).await.unwrap();
                        node.truncate(ino, (cut + gap + 5000) as u64).await.unwrap();
                        model.truncate(cut + gap);
                        model.resize(cut + gap + 5000, 0);
                        check(&node, ino, &model, &format!("{what}, again")).await;
                        node.flush(ino).await.unwrap();
                        check(&node, ino, &model, &format!("{what}, sealed")).await;
                        then(&node, ino, Then::Evict).await;
                        check(&node, ino, &model, &format!("{what}, evicted")).await;
                        node.truncate(ino, 0).await.unwrap();
                        node.flush(ino).await.unwrap();
                        node.fs.release(ino, 0).await.unwrap();
                    }
                }
            }
        }
        assert!(number > 300);
    });
}

#[test]
fn what_was_cut_off_leaves_the_store_once_that_is_committed() {
    on_node(async |node, agent| {
        let ino = node.create("file").await;
        let bytes = pattern(1, 4 * CHUNK);
        node.write(ino, 0, &bytes).await.unwrap();
        node.fsync(ino).await.unwrap();
        node.upload().await;
        // One chunk stays, one is cut and written again, the others go.
        let model = [&bytes[..CHUNK], &pattern(2, 5000)].concat();
        node.truncate(ino, CHUNK as u64).await.unwrap();
        node.write(ino, CHUNK as u64, &model[CHUNK..])
            .await
            .unwrap();
        node.fsync(ino).await.unwrap();
        let here = || {
            let bodies = node.fs.store().chunks_of(ino);
            bodies.iter().map(|b| b.key().index).collect::<Vec<_>>()
        };
        until("the rest is gone", || here() == [0, 1]).await;
        check(&node, ino, &model, "cut and written again").await;
        node.upload().await;
        node.truncate(ino, 0).await.unwrap();
        node.fsync(ino).await.unwrap();
        until("all of it is gone", || here().is_empty()).await;
        let gone = agent.events.borrow();
        let gone = gone.iter().filter_map(|e| match e {
            DataEvent::Gone(keys) => Some(keys.len()),
            _ => None,
        });
        assert!(gone.sum::<usize>() >= 4, "the agent is told");
    });
}
