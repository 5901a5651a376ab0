//! Other nodes, which do what a script says, and a file that they may have.

use crate::node::{CHUNK, Node, pattern};
use event_listener::{Event, EventListener};
use fastcache_api::control::{PeerNode, PeersStats};
use fastcache_api::{ChunkId, ChunkKey, Ino};
use fastcache_cache::{PeerMiss, PeerSource, PeerTier};
use fastcache_reactor::{IoBuf, sleep};
use futures_util::future::LocalBoxFuture;
use std::collections::HashMap;
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
    pub far: Option<&'static str>,
    pub contents: Vec<(ChunkKey, Vec<u8>)>,
    /// Who was asked, in order.
    asked: Vec<String>,
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

impl Other {
    /// It is asked, and that is noted.
    fn hears(&self, what: String) {
        self.others.0.lock().unwrap().asked.push(what);
    }

    /// The bytes of a chunk that it was asked for, as it does.
    async fn answer(&self, key: ChunkKey) -> Result<Vec<u8>, PeerMiss> {
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
                Ok(bytes.clone())
            }
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
        self.hears(format!("{} brings", self.name));
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
        self.hears(format!("{} for {} at {offset}", self.name, buf.len()));
        Box::pin(async move {
            let bytes = self.answer(key).await?;
            let end = bytes.len().min(offset + buf.len());
            buf.fill(0);
            buf[..end - offset].copy_from_slice(&bytes[offset..end]);
            Ok(buf)
        })
    }

    fn fetch(
        &self,
        key: ChunkKey,
        expected: usize,
        mut buf: IoBuf,
    ) -> LocalBoxFuture<'_, Result<(IoBuf, usize), PeerMiss>> {
        self.hears(self.name.to_owned());
        Box::pin(async move {
            let bytes = self.answer(key).await?;
            assert_eq!(expected, bytes.len());
            // What was in the buffer must not matter.
            buf.fill(0xdd);
            buf[..bytes.len()].copy_from_slice(&bytes);
            Ok((buf, bytes.len()))
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

    /// A node with such others.
    pub fn around(node: &Node) -> Others {
        let others = Others::default();
        node.fs.set_peers(Box::new(others.clone()));
        others
    }

    /// Versions that are to be copied, and those that are not any more, since the last call.
    pub fn told(&self) -> (Vec<ChunkKey>, Vec<ChunkKey>) {
        let mut script = self.0.lock().unwrap();
        let sealed = std::mem::take(&mut script.sealed);
        (sealed, std::mem::take(&mut script.settled))
    }

    /// Who was asked since the last call.
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
pub async fn with_others(node: &Node, is_in_cloud: bool) -> (Others, Ino, Vec<u8>) {
    with_others_of(node, is_in_cloud, CHUNK - 100).await
}

/// The same with a chunk of so many bytes.
pub async fn with_others_of(node: &Node, is_in_cloud: bool, len: usize) -> (Others, Ino, Vec<u8>) {
    let others = Others::around(node);
    let data = pattern(5, len);
    let ino = node.cold_file("file", &data).await;
    let key = node.agent.cloud.borrow().keys().copied().next().unwrap();
    others.0.lock().unwrap().contents.push((key, data.clone()));
    if !is_in_cloud {
        node.agent.cloud.borrow_mut().clear();
    }
    (others, ino, data)
}
