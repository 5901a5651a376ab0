//! Goal: what programs set between the last write and `close` costs no question where the commit tells it anyway, and is asked at
//! once where it does not. Method: an agent that keeps such questions, so that whoever asks one waits.

use crate::agent::Agent;
use crate::node::{Node, on_node, pattern, soon, until};
use fastcache_api::{Ino, NsOp, SetAttr, Time};
use fastcache_cache::SetAttrRequest;
use std::future::Future;

const LONG_AGO: Time = Time {
    sec: 1_000_000_000,
    nsec: 5,
};

fn is_set_attr(op: &NsOp) -> bool {
    matches!(op, NsOp::SetAttr { .. })
}

fn set(node: &Node, ino: Ino, set: SetAttr) -> impl Future<Output = ()> + use<> {
    let fs = node.fs.clone();
    async move {
        let request = SetAttrRequest {
            set,
            ..SetAttrRequest::default()
        };
        soon("setattr", fs.setattr(ino, request)).await.unwrap();
    }
}

/// A file of a node with others, written and not closed; questions for attributes wait from now on.
async fn written(node: &Node, agent: &Agent) -> Ino {
    node.share().await;
    let ino = node.create("file").await;
    node.write(ino, 0, &pattern(1, 5_000)).await.unwrap();
    agent.holds_calls.set(Some(is_set_attr));
    ino
}

/// Sets it, and sees that it is asked for at once.
async fn asked(node: &Node, agent: &Agent, ino: Ino, what: SetAttr) {
    let setting = fastcache_reactor::spawn(set(node, ino, what));
    until("it is asked for", || agent.held_calls() == 1).await;
    agent.let_calls_go(&node.link);
    agent.holds_calls.set(Some(is_set_attr));
    setting.await;
}

/// What tar and cp set of a file that is theirs already.
fn as_unpacked() -> [SetAttr; 3] {
    let none = SetAttr::default();
    [
        SetAttr {
            mtime: Some(LONG_AGO),
            ..none
        },
        SetAttr {
            uid: Some(0),
            gid: Some(0),
            kill_suid: true,
            ..none
        },
        SetAttr {
            mode: Some(0o644),
            ..none
        },
    ]
}

#[test]
fn what_is_set_before_close_goes_with_the_commit() {
    on_node(async |node, agent| {
        let ino = written(&node, &agent).await;
        for what in as_unpacked() {
            set(&node, ino, what).await;
        }
        let mtime = async || soon("getattr", node.fs.getattr(ino)).await.unwrap().0.mtime;
        assert_eq!(mtime().await, LONG_AGO);
        node.flush(ino).await.unwrap();
        assert_eq!(agent.file(ino).0.mtime, LONG_AGO);
        assert_eq!(mtime().await, LONG_AGO);

        // A write behind it is later.
        node.write(ino, 0, b"more").await.unwrap();
        set(&node, ino, as_unpacked()[0]).await;
        node.write(ino, 4, b"again").await.unwrap();
        node.flush(ino).await.unwrap();
        assert_ne!(agent.file(ino).0.mtime, LONG_AGO);
    });
}

#[test]
fn what_the_commit_does_not_tell_is_asked_at_once() {
    on_node(async |node, agent| {
        let ino = written(&node, &agent).await;
        let none = SetAttr::default();
        let changes = [
            SetAttr {
                mode: Some(0o600),
                mtime: Some(LONG_AGO),
                ..none
            },
            SetAttr {
                uid: Some(5),
                ..none
            },
            SetAttr {
                atime: Some(LONG_AGO),
                ..none
            },
        ];
        for what in changes {
            asked(&node, &agent, ino, what).await;
        }
        let (told, _) = agent.file(ino);
        assert_eq!((told.mode, told.uid, told.atime), (0o600, 5, LONG_AGO));

        // Nor does a commit that is through already, or of a file that another node has asked for since.
        node.flush(ino).await.unwrap();
        assert_eq!(agent.file(ino).0.mtime, LONG_AGO);
        asked(&node, &agent, ino, as_unpacked()[2]).await;
        node.write(ino, 0, b"more").await.unwrap();
        node.revoke(ino).await;
        asked(&node, &agent, ino, as_unpacked()[0]).await;
    });
}
