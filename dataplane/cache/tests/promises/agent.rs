//! A stand-in for the agent and everything behind it: a table of inodes that changes as the coordinator's does, and a
//! map of chunks for the cloud. It outlives the node, so that a test can kill one and start the next.

#[path = "desk.rs"]
mod desk;

use fastcache_api::control::{
    DataAnswer, DataCall, DataEvent, FsyncLevel, LocalChunk, NodeAnswer, NodeCall, ToAgent, Waited,
};
use fastcache_api::{
    Attr, ChunkKey, CloudRef, Commit, DirEntry, Errno, Ino, Layout, NewInode, NsAnswer, NsOp,
    NsReply, NsRequest, OpId, Run, SetAttr, Time, Version,
};
use fastcache_cache::{FileSystem, Link};
use fastcache_chunkstore::crc_all;
use fastcache_reactor::Arena;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

/// A commit as it came: connection, id of the call, request.
pub type SeenCommit = (u64, u64, NsRequest);

/// Which operations wait.
pub type IsHeld = fn(&NsOp) -> bool;

/// The agent. All its state is plain; the tests turn its knobs.
#[derive(Default)]
pub struct Agent {
    table: RefCell<Table>,
    /// Chunks that are in the cloud.
    pub cloud: RefCell<HashMap<ChunkKey, Vec<u8>>>,
    /// Every fetch that was asked for.
    pub fetches: RefCell<Vec<ChunkKey>>,
    /// Every commit that was asked for, answered or not.
    pub commits: RefCell<Vec<SeenCommit>>,
    /// How many names were asked for.
    pub lookups: Cell<usize>,
    /// How many parts of listings were.
    pub listings: Cell<usize>,
    /// Every event.
    pub events: RefCell<Vec<DataEvent>>,
    /// Commits are noted and not answered.
    pub ignores_commits: Cell<bool>,
    /// Fetches wait for `let_fetches_go`.
    pub holds_fetches: Cell<bool>,
    /// Fetched bytes differ from what the checksum says.
    pub damages_fetches: Cell<bool>,
    /// What is not in the cloud may be on another node.
    pub has_peers: Cell<bool>,
    /// The data plane said that it uses nothing any more.
    pub has_left: Cell<bool>,
    /// It does not say that it is there.
    pub stands: Cell<bool>,
    held: RefCell<Vec<(u64, ChunkKey, u32)>>,
    /// Where locks are asked for.
    pub locks: desk::Desk,
    /// Operations that wait for `let_calls_go`.
    pub holds_calls: Cell<Option<IsHeld>>,
    held_calls: RefCell<Vec<(u64, NsRequest)>>,
    /// The next makes fail with these errors.
    pub refuses_makes: RefCell<Vec<Errno>>,
    /// Answers come without a lease: good for one use.
    pub gives_no_lease: Cell<bool>,
    /// How often the lease on writing was asked for.
    pub write_opens: Cell<usize>,
    /// Calls to bring something to the cloud now that are not answered yet.
    pub persists: RefCell<Vec<(u64, Option<Waited>)>>,
    /// An fsync waits for so many copies; `None`: for none.
    pub copies: Cell<Option<u32>>,
    /// Fsyncs that were answered without the cloud.
    pub fsyncs: Cell<u64>,
    /// Those that wait for the cloud.
    pub cloud_fsyncs: RefCell<Vec<u64>>,
}

#[derive(Default)]
struct Table {
    files: HashMap<Ino, (Attr, Layout)>,
    names: HashMap<Vec<u8>, Ino>,
    answered: HashMap<OpId, NsReply>,
    next_version: u64,
    others_version: u64,
    seq: u64,
}

impl Agent {
    /// Serves `link` as its connection number `connection`, until the next one takes its place.
    pub fn attach(self: &Rc<Self>, link: &Link, arena: &Arena, connection: u64) {
        link.attach(0, connection);
        let (agent, link, arena) = (Rc::clone(self), link.clone(), arena.clone());
        fastcache_reactor::spawn(async move {
            while let Some(messages) = link.outgoing(0, connection, 64).await {
                for message in messages {
                    agent.take(&link, &arena, connection, message);
                }
            }
        })
        .detach();
    }

    pub fn take(&self, link: &Link, arena: &Arena, connection: u64, message: ToAgent) {
        match message {
            ToAgent::Call(id, NodeCall::Ns(request)) => {
                if matches!(request.op, NsOp::Lookup { .. }) {
                    self.lookups.set(self.lookups.get() + 1);
                }
                if matches!(request.op, NsOp::Readdir { .. }) {
                    self.listings.set(self.listings.get() + 1);
                }
                if matches!(request.op, NsOp::Commit(_)) {
                    self.commits
                        .borrow_mut()
                        .push((connection, id, request.clone()));
                    if self.ignores_commits.get() {
                        return;
                    }
                }
                if self
                    .holds_calls
                    .get()
                    .is_some_and(|is_held| is_held(&request.op))
                {
                    self.held_calls.borrow_mut().push((id, request));
                    return;
                }
                self.answer(link, id, request);
            }
            ToAgent::Call(id, NodeCall::Fetch { key, slot }) => {
                self.fetches.borrow_mut().push(key);
                if self.holds_fetches.get() {
                    self.held.borrow_mut().push((id, key, slot));
                } else {
                    self.fetch(link, arena, id, key, slot);
                }
            }
            ToAgent::Call(
                id,
                NodeCall::Fsync {
                    is_cloud: false, ..
                },
            ) => {
                self.fsyncs.set(self.fsyncs.get() + 1);
                let level = FsyncLevel::Local;
                let answer = match self.copies.get() {
                    Some(copies) => NodeAnswer::Copies { copies },
                    None => NodeAnswer::Synced { level },
                };
                link.answered(0, id, Ok(answer));
            }
            ToAgent::Call(id, NodeCall::Fsync { .. }) => self.cloud_fsyncs.borrow_mut().push(id),
            ToAgent::Call(id, NodeCall::Persist { waited, .. }) => {
                self.persists.borrow_mut().push((id, waited));
            }
            ToAgent::Call(id, NodeCall::Ping) => {
                if !self.stands.get() {
                    link.answered(0, id, Ok(NodeAnswer::Done));
                }
            }
            ToAgent::Call(id, NodeCall::Left) => {
                self.has_left.set(true);
                link.answered(0, id, Ok(NodeAnswer::Done));
            }
            ToAgent::Call(id, NodeCall::Lock(op)) => self.locks.take(link, id, op),
            ToAgent::Call(id, NodeCall::State { .. }) => {
                link.answered(0, id, Ok(NodeAnswer::State("persisted".to_owned())));
            }
            ToAgent::Answer(..) => {
                panic!("the tests ask through FileSystem::serve, not through the link")
            }
            ToAgent::Event(event) => self.events.borrow_mut().push(event),
        }
    }

    fn answer(&self, link: &Link, id: u64, request: NsRequest) {
        if matches!(request.op, NsOp::Open { write: true, .. }) {
            self.write_opens.set(self.write_opens.get() + 1);
        }
        let is_make = matches!(request.op, NsOp::Make { .. });
        let refused = is_make.then(|| self.refuses_makes.borrow_mut().pop());
        let of_table = |result| NsReply {
            result,
            touched: Vec::new(),
            log_position: 0,
            lease_ms: None,
        };
        let mut reply = match (refused.flatten(), &request.op) {
            (Some(errno), _) => of_table(Err(errno)),
            (None, NsOp::CloudRefs { ino, .. }) => of_table(Ok(self.cloud_refs(*ino))),
            (None, _) => self.table.borrow_mut().answer(request),
        };
        if self.gives_no_lease.get() {
            reply.lease_ms = Some(0);
        }
        link.answered(0, id, Ok(NodeAnswer::Ns(reply)));
    }

    fn cloud_refs(&self, ino: Ino) -> NsAnswer {
        let cloud = self.cloud.borrow();
        let of_file = cloud.iter().filter(|(key, _)| key.ino == ino);
        let refs = of_file.map(|(key, bytes)| {
            let at = CloudRef {
                object: key.to_string(),
                offset: 0,
                len: bytes.len() as u32,
                crc32c: crc_all(bytes),
                etag: None,
            };
            (key.index, key.version, at)
        });
        NsAnswer::CloudRefs(refs.collect())
    }

    /// How many operations are held.
    pub fn held_calls(&self) -> usize {
        self.held_calls.borrow().len()
    }

    /// Answers the operations that were held, and holds no more.
    pub fn let_calls_go(&self, link: &Link) {
        self.holds_calls.set(None);
        for (id, request) in self.held_calls.take() {
            self.answer(link, id, request);
        }
    }

    /// Answers the listings that were held; what else is held stays so.
    pub fn let_listings_go(&self, link: &Link) {
        let is_listing = |held: &(u64, NsRequest)| matches!(held.1.op, NsOp::Readdir { .. });
        let (go, stay) = self.held_calls.take().into_iter().partition(is_listing);
        self.held_calls.replace(stay);
        let go: Vec<(u64, NsRequest)> = go;
        for (id, request) in go {
            self.answer(link, id, request);
        }
    }

    fn fetch(&self, link: &Link, arena: &Arena, id: u64, key: ChunkKey, slot: u32) {
        let Some(bytes) = self.cloud.borrow().get(&key).cloned() else {
            let is_lost = match self.has_peers.get() {
                true => Errno::ENOENT,
                false => Errno::EIO,
            };
            link.answered(0, id, Err(is_lost));
            return;
        };
        let mut sent = bytes.clone();
        if self.damages_fetches.get() {
            let middle = sent.len() / 2;
            sent[middle] ^= 1;
        }
        let at = u64::from(slot) * arena.slot_bytes() as u64;
        assert_eq!(
            rustix::io::pwrite(arena.fd(), &sent, at).unwrap(),
            sent.len()
        );
        let (len, crc32c) = (bytes.len() as u32, crc_all(&bytes));
        link.answered(0, id, Ok(NodeAnswer::Fetched { len, crc32c }));
    }

    /// Answers the fetches that were held, and holds no more.
    pub fn let_fetches_go(&self, link: &Link, arena: &Arena) {
        self.holds_fetches.set(false);
        self.answer_held(link, arena);
    }

    /// Answers the fetches that were held.
    pub fn answer_held(&self, link: &Link, arena: &Arena) {
        for (id, key, slot) in self.held.take() {
            self.fetch(link, arena, id, key, slot);
        }
    }

    /// Answers those who wait for the cloud.
    pub fn let_persists_go(&self, link: &Link, answer: Result<(), Errno>) {
        for (id, _) in self.persists.take() {
            link.answered(0, id, answer.map(|()| NodeAnswer::Done));
        }
    }

    /// Tells those who wait for the cloud that it takes longer, and to bring this along.
    pub fn let_fsyncs_go(&self, link: &Link, answer: Result<NodeAnswer, Errno>) {
        for id in self.cloud_fsyncs.take() {
            link.answered(0, id, answer.clone());
        }
    }

    pub fn let_persists_wait(&self, link: &Link, waited: Waited) {
        for (id, _) in self.persists.take() {
            let has_moved = true;
            link.answered(0, id, Ok(NodeAnswer::Waiting { waited, has_moved }));
        }
    }

    /// Attributes and layout as the coordinator has them.
    pub fn file(&self, ino: Ino) -> (Attr, Layout) {
        self.table.borrow().files[&ino].clone()
    }

    /// Somebody else cuts a file off, and this node is not told.
    pub fn others_truncate(&self, ino: Ino, size: u64) {
        let mut table = self.table.borrow_mut();
        table.seq += 1;
        table.next_version += 1;
        let (seq, version) = (table.seq, Version(table.next_version));
        let (attr, layout) = table.file(ino).unwrap();
        layout.truncate(size, attr.chunk_size);
        (attr.size, attr.layout_version, attr.seq) = (size, version, seq);
    }

    /// Another node writes a file of one chunk anew, from its begin: the chunk's key. This node is not told, and the cloud does not have it.
    pub fn others_write_anew(&self, ino: Ino, len: usize) -> ChunkKey {
        let mut table = self.table.borrow_mut();
        table.seq += 1;
        table.next_version += 1;
        let (seq, version) = (table.seq, Version(table.next_version));
        let (attr, layout) = table.file(ino).unwrap();
        let run = Run {
            first: 0,
            count: 1,
            version,
            valid: len as u32,
        };
        layout.truncate(0, attr.chunk_size);
        layout.lay(&[run], attr.chunk_size);
        (attr.size, attr.layout_version, attr.seq) = (len as u64, version, seq);
        ChunkKey {
            ino,
            index: 0,
            version,
        }
    }

    /// Somebody else writes a chunk anew, which is in the cloud then, and this node is not told.
    pub fn others_write(&self, ino: Ino, index: u32, bytes: &[u8]) -> ChunkKey {
        let mut table = self.table.borrow_mut();
        table.seq += 1;
        // Of the versions that others have.
        table.others_version += 1;
        let (seq, version) = (table.seq, Version((1 << 50) + table.others_version));
        let (attr, layout) = table.file(ino).unwrap();
        let run = Run {
            first: index,
            count: 1,
            version,
            valid: bytes.len() as u32,
        };
        layout.lay(&[run], attr.chunk_size);
        let end = u64::from(index) * u64::from(attr.chunk_size) + bytes.len() as u64;
        attr.size = attr.size.max(end);
        (attr.layout_version, attr.seq) = (version, seq);
        let key = ChunkKey {
            ino,
            index,
            version,
        };
        self.cloud.borrow_mut().insert(key, bytes.to_vec());
        key
    }

    /// Every name there is.
    pub fn names(&self) -> Vec<String> {
        let table = self.table.borrow();
        let names = table.names.keys();
        let mut names: Vec<String> = names
            .map(|name| String::from_utf8_lossy(name).into_owned())
            .collect();
        names.sort();
        names
    }

    /// Copies every dirty chunk in the store to the cloud, verified on the way. The store does not know yet.
    pub async fn copy_dirty(&self, fs: &FileSystem, arena: &Arena) -> Vec<ChunkKey> {
        let mut copied = Vec::new();
        for chunk in inventory(fs).await.into_iter().filter(|c| c.is_dirty) {
            let key = chunk.key;
            let (slot, len, crc32c) = match fs
                .serve(DataCall::ReadChunk {
                    key,
                    is_patient: false,
                })
                .await
            {
                Ok(DataAnswer::Slot { slot, len, crc32c }) => (slot, len, crc32c),
                // A newer version took its place meanwhile.
                Err(Errno::ENOENT) => continue,
                other => panic!("ReadChunk of {key}: {other:?}"),
            };
            let mut bytes = vec![0; len as usize];
            let at = u64::from(slot) * arena.slot_bytes() as u64;
            assert_eq!(
                rustix::io::pread(arena.fd(), &mut bytes, at).unwrap(),
                bytes.len()
            );
            fs.release_slot(slot);
            assert_eq!(crc_all(&bytes), crc32c, "checksum of {key} in the slot");
            let before = self.cloud.borrow_mut().insert(key, bytes.clone());
            assert!(before.is_none_or(|b| b == bytes), "{key} changed");
            copied.push(key);
        }
        copied
    }

    /// Brings every dirty chunk in the store to the cloud and marks it clean.
    pub async fn upload(&self, fs: &FileSystem, arena: &Arena) {
        let keys = self.copy_dirty(fs, arena).await;
        fs.serve(DataCall::MarkClean { keys }).await.unwrap();
    }

    /// Whether the store said that it sealed or promoted a chunk of this file.
    pub fn heard_of(&self, ino: Ino) -> bool {
        let is_of = |c: &LocalChunk| c.key.ino == ino;
        let events = self.events.borrow();
        events
            .iter()
            .any(|e| matches!(e, DataEvent::Stored(chunks) if chunks.iter().any(is_of)))
    }
}

/// Every chunk in the store.
pub async fn inventory(fs: &FileSystem) -> Vec<LocalChunk> {
    let mut all = Vec::new();
    let mut from = None;
    loop {
        match fs.serve(DataCall::Inventory { from }).await {
            Ok(DataAnswer::Inventory { chunks, next }) => {
                all.extend(chunks);
                if next.is_none() {
                    return all;
                }
                from = next;
            }
            other => panic!("Inventory: {other:?}"),
        }
    }
}

impl Table {
    fn answer(&mut self, request: NsRequest) -> NsReply {
        assert_eq!(
            request.id.is_some(),
            request.op.is_change(),
            "{:?}",
            request.op
        );
        if let Some(reply) = request.id.and_then(|id| self.answered.get(&id)) {
            return reply.clone();
        }
        let result = self.apply(request.op, request.now);
        let touched = match &result {
            Ok(NsAnswer::Attr(a) | NsAnswer::Entry(a)) if request.id.is_some() => vec![a.clone()],
            _ => Vec::new(),
        };
        let reply = NsReply {
            result,
            touched,
            log_position: if request.id.is_some() { self.seq } else { 0 },
            lease_ms: None,
        };
        if let Some(id) = request.id {
            self.answered.insert(id, reply.clone());
        }
        reply
    }

    fn apply(&mut self, op: NsOp, now: Time) -> Result<NsAnswer, Errno> {
        self.seq += 1;
        let seq = self.seq;
        match op {
            NsOp::GetAttr { ino } => Ok(NsAnswer::Attr(self.file(ino)?.0.clone())),
            NsOp::Open { ino, .. } => {
                let (attr, layout) = self.file(ino)?.clone();
                Ok(NsAnswer::Opened { attr, layout })
            }
            NsOp::Lookup { name, .. } => {
                let ino = *self.names.get(&name).ok_or(Errno::ENOENT)?;
                Ok(NsAnswer::Entry(self.file(ino)?.0.clone()))
            }
            NsOp::Readdir {
                after, max, plus, ..
            } => Ok(self.list(after, max as usize, plus)),
            NsOp::PathOf { ino } => {
                let found = self.names.iter().find(|(_, named)| **named == ino);
                let (name, _) = found.ok_or(Errno::ENOENT)?;
                Ok(NsAnswer::Bytes([&b"/"[..], name].concat()))
            }
            NsOp::Make {
                at: Some((_, name)),
                ..
            } if self.names.contains_key(&name) => Err(Errno::EEXIST),
            NsOp::Make { at, new } => Ok(NsAnswer::Entry(self.make(at, &new, now))),
            NsOp::SetAttr { ino, set } => {
                let attr = &mut self.file(ino)?.0;
                set_attr(attr, set, now);
                attr.seq = seq;
                Ok(NsAnswer::Attr(attr.clone()))
            }
            NsOp::Commit(commit) => {
                let (attr, layout) = self.file(commit.ino)?;
                commit_to(attr, layout, &commit, seq)?;
                Ok(NsAnswer::Attr(attr.clone()))
            }
            NsOp::AllocVersions { count } => {
                let first = Version(self.next_version + 1);
                self.next_version += u64::from(count);
                Ok(NsAnswer::Versions { first, count })
            }
            NsOp::Rename { name, new_name, .. } => {
                let ino = self.names.remove(&name).ok_or(Errno::ENOENT)?;
                self.names.insert(new_name, ino);
                Ok(NsAnswer::Done)
            }
            NsOp::Link { ino, name, .. } => {
                self.names.insert(name, ino);
                Ok(NsAnswer::Entry(self.file(ino)?.0.clone()))
            }
            NsOp::Unlink { name, .. } => {
                self.names.remove(&name).ok_or(Errno::ENOENT)?;
                Ok(NsAnswer::Done)
            }
            NsOp::ListXattr { .. } => Ok(NsAnswer::Names(Vec::new())),
            NsOp::Reap { .. } | NsOp::ReapAllBut { .. } => Ok(NsAnswer::Done),
            other => panic!("the tests need no {other:?}"),
        }
    }

    /// A part of a listing, in the order of the names.
    fn list(&self, after: u64, max: usize, plus: bool) -> NsAnswer {
        let mut names: Vec<(&Vec<u8>, &Ino)> = self.names.iter().collect();
        names.sort();
        let entry = |(at, (name, ino)): (usize, (&Vec<u8>, &Ino))| {
            let attr = &self.files[ino].0;
            DirEntry {
                name: name.clone(),
                ino: *ino,
                kind: attr.kind,
                cookie: at as u64 + 3,
                attr: plus.then(|| attr.clone()),
            }
        };
        let rest = names.into_iter().enumerate().map(entry);
        let mut rest: Vec<DirEntry> = rest.filter(|e| e.cookie > after).collect();
        let is_end = rest.len() <= max;
        rest.truncate(max);
        NsAnswer::Dir {
            entries: rest,
            is_end,
        }
    }

    fn file(&mut self, ino: Ino) -> Result<&mut (Attr, Layout), Errno> {
        self.files.get_mut(&ino).ok_or(Errno::ENOENT)
    }

    fn make(&mut self, at: Option<(Ino, Vec<u8>)>, new: &NewInode, now: Time) -> Attr {
        let ino = Ino(1000 + self.files.len() as u64);
        let attr = Attr {
            ino,
            kind: new.kind,
            mode: new.mode,
            nlink: 1,
            uid: new.cred.uid,
            gid: new.cred.gid,
            rdev: 0,
            size: 0,
            allocated: 0,
            atime: now,
            mtime: now,
            ctime: now,
            chunk_size: new.chunk_size,
            layout_version: Version::NONE,
            seq: self.seq,
        };
        self.files.insert(ino, (attr.clone(), Layout::default()));
        if let Some((_, name)) = at {
            self.names.insert(name, ino);
        }
        attr
    }
}

fn set_attr(attr: &mut Attr, set: SetAttr, now: Time) {
    attr.mode = set.mode.unwrap_or(attr.mode);
    attr.uid = set.uid.unwrap_or(attr.uid);
    attr.gid = set.gid.unwrap_or(attr.gid);
    attr.atime = set.atime.unwrap_or(attr.atime);
    attr.mtime = set.mtime.unwrap_or(attr.mtime);
    attr.ctime = set.ctime.unwrap_or(now);
}

/// A commit, as the namespace engine of the control plane does it.
fn commit_to(attr: &mut Attr, layout: &mut Layout, commit: &Commit, seq: u64) -> Result<(), Errno> {
    if attr.layout_version == commit.version {
        return Ok(());
    }
    if attr.layout_version != commit.base {
        return Err(Errno::ESTALE);
    }
    for run in &commit.runs {
        assert!(run.count > 0 && run.valid <= attr.chunk_size, "{run:?}");
    }
    if let Some(size) = commit.truncate {
        layout.truncate(size, attr.chunk_size);
    }
    layout.lay(&commit.runs, attr.chunk_size);
    attr.allocated = layout.allocated(attr.chunk_size);
    attr.size = commit.size;
    attr.mtime = commit.mtime;
    attr.layout_version = commit.version;
    attr.seq = seq;
    Ok(())
}
