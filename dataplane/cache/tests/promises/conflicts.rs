//! Goal: what was written here and is refused, because another node has written the file since, is in a file beside it, every
//! byte; and nothing of it gets into the other node's. Method: an agent that refuses a commit, at the moments that matter.

use crate::agent::Agent;
use crate::node::{on_reactor, start, until};
use fastcache_api::control::DataCall;
use fastcache_api::{Ino, NsOp};
use std::rc::Rc;

#[test]
fn a_file_handed_over_before_its_maker_knew_of_it_is_not_written_without_asking() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Rc::new(Agent::default());
    on_reactor(|| async {
        let node = start(dir.path(), &agent, 1).await;
        node.share().await;
        agent
            .holds_calls
            .set(Some(|op| matches!(op, NsOp::Make { .. })));
        let overtaken = async {
            until("it is being made", || agent.held_calls() == 1).await;
            let call = DataCall::HandOver {
                inos: vec![Ino(1000)],
            };
            node.fs.serve(call).await.unwrap();
            agent.let_calls_go(&node.link);
        };
        let (ino, ()) = futures_util::future::join(node.create("file"), overtaken).await;
        assert_eq!(ino, Ino(1000));
        assert_eq!(agent.write_opens.get(), 0);
        node.write(ino, 0, b"asked").await.unwrap();
        assert_eq!(agent.write_opens.get(), 1);
        // Of one that was not handed over there is no need to.
        let other = node.create("other").await;
        node.write(other, 0, b"not asked").await.unwrap();
        assert_eq!(agent.write_opens.get(), 1);
    });
}
