//! Goal: what is not here comes from the first that has it, nobody waits for a node that stands still, and what is kept for other
//! nodes stays as long as they need it and harms nothing of this one. Method: other nodes by a script, an agent with the cloud.

use crate::agent::Agent;
use crate::node::{CHUNK, Node, assert_same, on_reactor, pattern, soon, start};
use event_listener::{Event, EventListener};
use fastcache_api::control::{PeerNode, PeersStats};
use fastcache_api::{ChunkId, ChunkKey, Errno, Ino, Version};
use fastcache_cache::{PeerMiss, PeerSource, PeerTier};
use fastcache_reactor::{IoBuf, now, sleep};
use futures_util::future::LocalBoxFuture;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What a node does when it is asked for a chunk.
#[derive(Clone, Copy, PartialEq)]
pub enum Does {
    Has,
    Absent,
    Failed,
    Nothing,
    /// Says that it is absent, after its time was over.
    Late,
    /// It takes long to bring something, and answers meanwhile.
    Slow,
}

/// Longer than anybody is patient with a node, and with one that fetches and does not answer.
const LATE: Duration = Duration::from_millis(60);
const SLOW: Duration = Duration::from_secs(3);
/// Longer than any test.
const NEVER: Duration = Duration::from_secs(3600);

#[derive(Default)]
pub struct Script {
    /// Homes, by their names.
    pub homes: Vec<(&'static str, Does)>,
    /// Who is to bring a chunk, and whether it can.
    pub keeper: Option<(&'static str, Does)>,
    /// Who has it beyond the homes.
    far: Option<&'static str>,
    pub contents: Vec<(ChunkKey, Vec<u8>)>,
    /// Who was asked, in order.
    asked: Vec<String>,
    /// Requests that were given up.
    given_up: usize,
    pub sealed: Vec<ChunkKey>,
    pub settled: Vec<ChunkKey>,
    /// How many of them have a chunk on their devices.
    pub copies: HashMap<ChunkKey, usize>,
    /// The same of every chunk.
    pub all_have: usize,
    pub changed: Event,
    pub hurried: Vec<ChunkKey>,
    /// They take chunks over; what they took.
    pub takes: bool,
    pub taken: Vec<ChunkKey>,
    pub gone: Vec<&'static str>,
}

#[derive(Clone, Default)]
pub struct Others(pub Arc<Mutex<Script>>);

struct Other {
    name: &'static str,
    does: Does,
    others: Others,
}

struct GivenUp(Others, bool);

impl Drop for GivenUp {
    fn drop(&mut self) {
        if self.1 {
            self.0.0.lock().unwrap().given_up += 1;
        }
    }
}

impl PeerSource for Other {
    fn name(&self) -> &str {
        self.name
    }

    fn patience(&self) -> Duration {
        Duration::from_millis(20)
    }

    fn bring(&self, _key: ChunkKey) -> LocalBoxFuture<'_, Result<(), PeerMiss>> {
        let mut script = self.others.0.lock().unwrap();
        script.asked.push(format!("{} brings", self.name));
        let (after, done) = match self.does {
            Does::Has => (Duration::ZERO, Ok(())),
            Does::Slow => (SLOW, Ok(())),
            Does::Absent | Does::Late => (Duration::ZERO, Err(PeerMiss::Absent)),
            Does::Failed => (Duration::ZERO, Err(PeerMiss::Failed)),
            Does::Nothing => (NEVER, Err(PeerMiss::Failed)),
        };
        Box::pin(async move {
            sleep(after).await;
            done
        })
    }

    fn answers(&self, _key: ChunkKey) -> LocalBoxFuture<'_, bool> {
        Box::pin(async move { self.does != Does::Nothing })
    }

    fn part(
        &self,
        key: ChunkKey,
        offset: usize,
        mut buf: IoBuf,
    ) -> LocalBoxFuture<'_, Result<IoBuf, PeerMiss>> {
        let said = format!("{} for {} at {offset}", self.name, buf.len());
        self.others.0.lock().unwrap().asked.push(said);
        Box::pin(async move {
            let mut given_up = GivenUp(self.others.clone(), true);
            match self.does {
                Does::Absent => Err(PeerMiss::Absent),
                Does::Failed => Err(PeerMiss::Failed),
                Does::Nothing => {
                    sleep(NEVER).await;
                    Err(PeerMiss::Failed)
                }
                Does::Late => {
                    sleep(LATE).await;
                    Err(PeerMiss::Absent)
                }
                Does::Has | Does::Slow => {
                    let script = self.others.0.lock().unwrap();
                    let (_, bytes) = script.contents.iter().find(|(k, _)| *k == key).unwrap();
                    let end = bytes.len().min(offset + buf.len());
                    buf.fill(0);
                    buf[..end - offset].copy_from_slice(&bytes[offset..end]);
                    Ok(buf)
                }
            }
            .inspect(|_| given_up.1 = false)
            .inspect_err(|_| given_up.1 = false)
        })
    }

    fn fetch(
        &self,
        key: ChunkKey,
        expected: usize,
        mut buf: IoBuf,
    ) -> LocalBoxFuture<'_, Result<(IoBuf, usize), PeerMiss>> {
        self.others
            .0
            .lock()
            .unwrap()
            .asked
            .push(self.name.to_owned());
        Box::pin(async move {
            let mut given_up = GivenUp(self.others.clone(), true);
            match self.does {
                Does::Absent => Err(PeerMiss::Absent),
                Does::Failed => Err(PeerMiss::Failed),
                Does::Nothing => {
                    sleep(NEVER).await;
                    Err(PeerMiss::Failed)
                }
                Does::Late => {
                    sleep(LATE).await;
                    Err(PeerMiss::Absent)
                }
                Does::Has | Does::Slow => {
                    let script = self.others.0.lock().unwrap();
                    let (_, bytes) = script.contents.iter().find(|(k, _)| *k == key).unwrap();
                    assert_eq!(expected, bytes.len());
                    // What was in the buffer must not matter.
                    buf.fill(0xdd);
                    buf[..bytes.len()].copy_from_slice(bytes);
                    Ok((buf, bytes.len()))
                }
            }
            .inspect(|_| given_up.1 = false)
            .inspect_err(|_| given_up.1 = false)
        })
    }
}

impl Others {
    fn source(&self, name: &'static str, does: Does) -> Box<dyn PeerSource> {
        Box::new(Other {
            name,
            does,
            others: self.clone(),
        })
    }

    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap().asked)
    }
}

impl PeerTier for Others {
    fn set(&self, _me: String, _file_system: u64, _peers: &[PeerNode]) {}

    fn homes(&self, _id: ChunkId) -> Vec<Box<dyn PeerSource>> {
        let homes = self.0.lock().unwrap().homes.clone();
        homes.iter().map(|(n, d)| self.source(n, *d)).collect()
    }

    fn keeper(&self, _id: ChunkId) -> Option<Box<dyn PeerSource>> {
        let keeper = self.0.lock().unwrap().keeper;
        keeper.map(|(name, does)| self.source(name, does))
    }

    fn search(&self, _key: ChunkKey) -> LocalBoxFuture<'_, Result<Box<dyn PeerSource>, PeerMiss>> {
        let far = self.0.lock().unwrap().far;
        let found = far.map(|name| self.source(name, Does::Has));
        Box::pin(async move { found.ok_or(PeerMiss::Absent) })
    }

    fn is_live(&self, id: &str) -> bool {
        !self.0.lock().unwrap().gone.contains(&id)
    }

    fn sealed(&self, keys: Vec<ChunkKey>) {
        self.0.lock().unwrap().sealed.extend(keys);
    }

    fn settled(&self, keys: &[ChunkKey]) {
        let mut script = self.0.lock().unwrap();
        script.settled.extend(keys);
        script.changed.notify(usize::MAX);
    }

    fn copies(&self, key: ChunkKey) -> usize {
        let script = self.0.lock().unwrap();
        script.copies.get(&key).copied().unwrap_or(script.all_have)
    }

    fn hurry(&self, keys: &[ChunkKey]) {
        self.0.lock().unwrap().hurried.extend(keys);
    }

    fn give(&self, key: ChunkKey) -> LocalBoxFuture<'_, bool> {
        Box::pin(async move {
            let mut script = self.0.lock().unwrap();
            if script.takes {
                script.taken.push(key);
            }
            script.takes
        })
    }

    fn copies_changed(&self) -> EventListener {
        self.0.lock().unwrap().changed.listen()
    }

    fn stats(&self) -> PeersStats {
        PeersStats::default()
    }
}

/// A node with such others, and a file of one chunk that is not here: in the cloud, or nowhere but on other nodes.
async fn with_others(node: &Node, is_in_cloud: bool) -> (Others, Ino, Vec<u8>) {
    with_others_of(node, is_in_cloud, CHUNK - 100).await
}

/// The same with a chunk of so many bytes.
pub async fn with_others_of(node: &Node, is_in_cloud: bool, len: usize) -> (Others, Ino, Vec<u8>) {
    let others = Others::default();
    node.fs.set_peers(Box::new(others.clone()));
    let data = pattern(5, len);
    let ino = node.create("file").await;
    node.write(ino, 0, &data).await.unwrap();
    node.fsync(ino).await.unwrap();
    node.upload().await;
    assert_eq!(node.evict(ino).await, 1);
    let key = node.agent.cloud.borrow().keys().copied().next().unwrap();
    others.0.lock().unwrap().contents.push((key, data.clone()));
    if !is_in_cloud {
        node.agent.cloud.borrow_mut().clear();
    }
    (others, ino, data)
}

/// Reads a file that is not here, with these others: who was asked, and whether the agent was.
fn who_is_asked(is_in_cloud: bool, set: impl FnOnce(&mut Script)) -> (Vec<String>, usize) {
    let dir = tempfile::tempdir().unwrap();
    let agent = Rc::new(Agent::default());
    on_reactor(|| async {
        let node = start(dir.path(), &agent, 1).await;
        let (others, ino, data) = with_others(&node, is_in_cloud).await;
        set(&mut others.0.lock().unwrap());
        let got = node.read(ino, 0, data.len()).await.unwrap();
        assert_same("what was read", &got, &data);
        let slots = || node.arena.free() == node.arena.slots();
        crate::node::until("every slot came back", slots).await;
        let asked = others.asked();
        // It is kept: nobody is asked again.
        let kept = || !node.fs.store().chunks_of(ino).is_empty();
        crate::node::until("it is kept", kept).await;
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
    let dir = tempfile::tempdir().unwrap();
    let agent = Rc::new(Agent::default());
    on_reactor(|| async {
        let node = start(dir.path(), &agent, 1).await;
        let (others, ino, _) = with_others(&node, false).await;
        others.0.lock().unwrap().homes = vec![("a", Does::Absent), ("b", Does::Failed)];
        let since = now();
        assert_eq!(node.read(ino, 0, 100).await, Err(Errno::EIO));
        assert!(since.elapsed() < Duration::from_secs(15));
        assert_eq!(node.fs.stats().peers.peer_absent, 1);
    });
}

fn key_of(ino: u64, version: u64) -> ChunkKey {
    ChunkKey {
        ino: Ino(ino),
        index: 0,
        version: Version(version),
    }
}

/// Gives a node a replica of `len` bytes.
async fn give_of(node: &Node, owner: &str, key: ChunkKey, len: usize) -> Result<(), Errno> {
    let mut buf = IoBuf::alloc(len.next_multiple_of(4096));
    buf[..len].copy_from_slice(&pattern(key.version.0, len));
    soon("put", node.fs.put_for_peer(owner, key, len, buf)).await
}

async fn give(node: &Node, key: ChunkKey, len: usize) -> Result<(), Errno> {
    give_of(node, "other", key, len).await
}

#[test]
fn replicas_stay_until_they_are_released() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Rc::new(Agent::default());
    on_reactor(|| async {
        let node = start(dir.path(), &agent, 1).await;
        let key = key_of(77, 5);
        assert_eq!(node.fs.hold_for_peer("other", key), None);
        give(&node, key, 5000).await.unwrap();
        assert_eq!(node.fs.hold_for_peer("other", key), Some(5000));
        let held = || {
            let stats = node.fs.stats();
            (
                stats.peers.held_chunks,
                stats.peers.held_bytes,
                stats.dirty_chunks,
            )
        };
        assert_eq!(held(), (1, 5000, 0));
        assert_eq!(node.evict(Ino(77)).await, 0, "it is kept");
        let (read, buf) = node.fs.read_for_peer(key, 0, IoBuf::alloc(8192)).await;
        assert_eq!(read, Ok(5000));
        assert_same("a replica", &buf[..5000], &pattern(5, 5000));
        // A later version takes its place, an earlier one does not.
        give(&node, key_of(77, 6), 100).await.unwrap();
        assert_eq!(give(&node, key, 5000).await, Err(Errno::EAGAIN));
        assert_eq!(held(), (1, 100, 0));
        node.fs.release_for_peer("other", key);
        node.fs.release_for_peer("somebody else", key_of(77, 6));
        assert_eq!(node.evict(Ino(77)).await, 0, "neither of them may");
        node.fs.release_for_peer("other", key_of(77, 6));
        assert_eq!(held(), (0, 0, 0));
        assert_eq!(node.evict(Ino(77)).await, 1);
    });
}

#[test]
fn a_replica_harms_nothing_of_this_node() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Rc::new(Agent::default());
    on_reactor(|| async {
        let node = start(dir.path(), &agent, 1).await;
        let data = pattern(1, CHUNK);
        let ino = node.create("own").await;
        node.write(ino, 0, &data).await.unwrap();
        node.fsync(ino).await.unwrap();
        // Whatever version comes, what is not in the cloud stays.
        let own = node.fs.store().chunks_of(ino)[0].key().version.0;
        for version in [own + 1, 1 << 40] {
            let got = give(&node, key_of(ino.0, version), 4096).await;
            assert_eq!(got, Err(Errno::EAGAIN));
        }
        assert_same("own", &node.read(ino, 0, CHUNK).await.unwrap(), &data);
        // And they do not take all the room.
        let mut taken = 0;
        while give(&node, key_of(1 << 20 | taken, 1), 4 << 20)
            .await
            .is_ok()
        {
            taken += 1;
        }
        assert!(
            (1..=3).contains(&taken),
            "{taken} of 4 MiB in a store of 64"
        );
    });
}

/// Has another node write the first chunk of a file, then writes into the middle of it here.
async fn others_write_then_this(node: &Node, ino: Ino) {
    let theirs = pattern(9, CHUNK - 50);
    node.agent.others_write(ino, 0, &theirs);
    node.revoke(ino).await;
    let before = node.agent.fetches.borrow().len();
    node.write(ino, 1000, b"ours").await.unwrap();
    node.flush(ino).await.unwrap();
    assert_eq!(
        node.agent.fetches.borrow().len(),
        before + 1,
        "fetched once"
    );
    let mut want = theirs;
    want[1000..1004].copy_from_slice(b"ours");
    want.extend(vec![0; (node.agent.file(ino).0.size as usize) - want.len()]);
    let got = node.read(ino, 0, CHUNK).await.unwrap();
    assert_same("what both wrote", &got, &want);
    assert_eq!(node.fs.stats().conflict_files, 0);
}

#[test]
fn what_is_not_in_the_cloud_makes_way_for_what_another_node_wrote_since() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Rc::new(Agent::default());
    on_reactor(|| async {
        let node = start(dir.path(), &agent, 1).await;
        node.share().await;
        let ino = node.create("file").await;
        node.write(ino, 0, &pattern(1, CHUNK)).await.unwrap();
        node.flush(ino).await.unwrap();
        assert_eq!(node.fs.stats().dirty_chunks, 1);
        // Not for somebody who only says so, and without a fetch.
        let said = key_of(ino.0, 1 << 60);
        assert_eq!(node.fs.bring_for_peer(said).await, None);
        assert!(agent.fetches.borrow().is_empty());
        assert_eq!(node.fs.stats().dirty_chunks, 1);
        others_write_then_this(&node, ino).await;
        // A reader makes way, too.
        let theirs = pattern(10, CHUNK);
        let key = node.agent.others_write(ino, 0, &theirs);
        node.revoke(ino).await;
        assert_same("read", &node.read(ino, 0, CHUNK).await.unwrap(), &theirs);
        let is_kept = || node.fs.chunk_len(key) == Some(CHUNK);
        crate::node::until("it is kept", is_kept).await;
    });
}

#[test]
fn what_is_kept_for_others_makes_way_for_what_the_file_has() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Rc::new(Agent::default());
    on_reactor(|| async {
        let node = start(dir.path(), &agent, 1).await;
        node.share().await;
        let ino = node.create("file").await;
        node.write(ino, 0, &pattern(1, CHUNK)).await.unwrap();
        node.flush(ino).await.unwrap();
        node.upload().await;
        assert_eq!(node.evict(ino).await, 1);
        let held = key_of(ino.0, 1 << 45);
        give(&node, held, 5000).await.unwrap();
        let said = key_of(ino.0, 1 << 60);
        assert_eq!(node.fs.bring_for_peer(said).await, None);
        assert_eq!(node.fs.hold_for_peer("other", held), Some(5000));
        others_write_then_this(&node, ino).await;
        assert_eq!(node.fs.stats().peers.held_chunks, 0);
    });
}

#[test]
fn of_two_owners_the_one_that_the_layout_names_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Rc::new(Agent::default());
    on_reactor(|| async {
        let node = start(dir.path(), &agent, 1).await;
        let (_others, ino, _) = with_others(&node, true).await;
        let (_, layout) = agent.file(ino);
        let named = key_of(ino.0, layout.runs[0].version.0);
        let before = key_of(ino.0, 1 << 40);
        // Its number is greater, and it is older.
        give_of(&node, "b", before, 5000).await.unwrap();
        give_of(&node, "a", named, 3000).await.unwrap();
        assert_eq!(node.fs.hold_for_peer("b", before), None);
        assert_eq!(node.fs.hold_for_peer("b", named), None, "it is a's");
        assert_eq!(node.fs.hold_for_peer("a", named), Some(3000));
        // What was on its way for long changes nothing.
        let late = give_of(&node, "b", before, 5000).await;
        assert_eq!(late, Err(Errno::EAGAIN));
        assert_eq!(node.fs.hold_for_peer("a", named), Some(3000));
        // Nor where the file is gone, or nobody can be asked.
        let gone = [key_of(77, 5), key_of(77, 6)];
        give_of(&node, "b", gone[0], 100).await.unwrap();
        assert_eq!(give_of(&node, "a", gone[1], 100).await, Err(Errno::EAGAIN));
        assert_eq!(node.fs.hold_for_peer("b", gone[0]), Some(100));
    });
}

#[test]
fn copies_of_a_version_are_needed_until_the_next_one_is_committed() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Rc::new(Agent::default());
    on_reactor(|| async {
        let node = start(dir.path(), &agent, 1).await;
        let others = Others::default();
        node.fs.set_peers(Box::new(others.clone()));
        let told = || {
            let mut script = others.0.lock().unwrap();
            let sealed = std::mem::take(&mut script.sealed);
            (sealed, std::mem::take(&mut script.settled))
        };
        let keys = |ino| -> Vec<ChunkKey> {
            let here = node.fs.store().chunks_of(ino);
            here.iter().map(|b| b.key()).collect()
        };
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
            crate::node::until("it is sealed ahead", is_sealed).await;
        }
        // It is in the store a moment before that is noted.
        let awaits = || node.fs.awaits_commit(keys(ino)[1]);
        crate::node::until("it awaits its commit", awaits).await;
        node.flush(ino).await.unwrap();
        let second = keys(ino);
        let is_asked = || agent.commits.borrow().len() > asked;
        crate::node::until("the commit is asked for", is_asked).await;
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
    let dir = tempfile::tempdir().unwrap();
    let agent = Rc::new(Agent::default());
    on_reactor(|| async {
        let node = start(dir.path(), &agent, 1).await;
        let others = Others::default();
        node.fs.set_peers(Box::new(others.clone()));
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
    let dir = tempfile::tempdir().unwrap();
    let agent = Rc::new(Agent::default());
    on_reactor(|| async {
        let node = start(dir.path(), &agent, 1).await;
        let others = Others::default();
        node.fs.set_peers(Box::new(others.clone()));
        let ino = node.create("file").await;
        node.write(ino, 0, &pattern(1, 3 * CHUNK)).await.unwrap();
        node.fsync(ino).await.unwrap();
        let here: Vec<ChunkKey> = node
            .fs
            .store()
            .chunks_of(ino)
            .iter()
            .map(|b| b.key())
            .collect();
        let mut sealed = std::mem::take(&mut others.0.lock().unwrap().sealed);
        sealed.sort();
        assert_eq!(sealed, here);
        // Written again: the version before needs no copies any more.
        node.write(ino, 0, b"new").await.unwrap();
        node.fsync(ino).await.unwrap();
        let (sealed, settled) = {
            let mut script = others.0.lock().unwrap();
            (
                std::mem::take(&mut script.sealed),
                std::mem::take(&mut script.settled),
            )
        };
        assert_eq!((sealed.len(), settled), (1, vec![here[0]]));
        node.upload().await;
        assert_eq!(others.0.lock().unwrap().settled.len(), 3);
    });
}
