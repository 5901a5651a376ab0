//! Listings: asked for in parts, and ahead of who reads them; and whole directories that are asked for because many of their
//! names are looked up.

use crate::entries::{Ask, Listed, Told};
use crate::lease::Moment;
use crate::link::expect_answer;
use crate::{DirPage, FileSystem, Result, lock};
use fastcache_api::{Attr, Ino, NsAnswer, NsOp};

/// Entries whose attributes are taken in before others of this core have their turn.
const TAKEN_IN_ONCE: usize = 128;
/// Most entries that the coordinator answers at once.
const ANSWER_MAX: usize = 4096;

/// Whoever waits for a part hears of it, whatever comes of asking.
struct Asking<'a> {
    fs: &'a FileSystem,
    ino: Ino,
    ask: &'a Ask,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if self.ask.number != 0 {
            self.fs.inner.entries.came(self.ino, self.ask);
        }
    }
}

impl FileSystem {
    /// Opens a directory.
    pub async fn opendir(&self, _ino: Ino) -> Result<u64> {
        Ok(0)
    }

    /// Entries of a directory after cookie `after`, at most `max`.
    pub async fn readdir(&self, ino: Ino, after: u64, max: u32, plus: bool) -> Result<DirPage> {
        let max = (max as usize).clamp(1, ANSWER_MAX);
        let entries = &self.inner.entries;
        let ask = loop {
            let arrived = entries.arrived.listen();
            let asked = self.inner.lease.ask();
            let has_room = !plus || self.has_room_for_inodes();
            match entries.list(&self.inner.lease, ino, after, max, plus, has_room) {
                Listed::Known(mut entries, mut is_end, ahead) => {
                    if let Some(ahead) = ahead {
                        let fs = self.clone();
                        fastcache_reactor::spawn(async move {
                            // Whoever comes for it asks again.
                            let _ = fs.ask_for(ino, &ahead).await;
                        })
                        .detach();
                    }
                    if plus && !entries.is_empty() {
                        let now = self.inner.lease.now();
                        for entry in &mut entries {
                            entry.attr = self.known_attr(entry.ino, now);
                        }
                        let known = entries.iter().take_while(|e| e.attr.is_some()).count();
                        is_end &= known == entries.len();
                        entries.truncate(known);
                    }
                    if is_end || !entries.is_empty() {
                        return Ok(DirPage {
                            entries,
                            is_end,
                            grant: asked.answered(None),
                        });
                    }
                    // The attributes were revoked, or had no room.
                    break Ask {
                        number: 0,
                        after,
                        max,
                        is_plus: plus,
                    };
                }
                Listed::Asked => arrived.await,
                Listed::Ask(ask) => break ask,
            }
        };
        let mut page = self.ask_for(ino, &ask).await?.0;
        if page.entries.len() > max {
            page.entries.truncate(max);
            page.is_end = false;
        }
        Ok(page)
    }

    /// Asks for a part of a listing; what it tells is kept when it may be. The part, and whether it is kept.
    async fn ask_for(&self, ino: Ino, ask: &Ask) -> Result<(DirPage, bool)> {
        let _asking = Asking { fs: self, ino, ask };
        let lease = &self.inner.lease;
        let asked = lease.ask();
        let op = NsOp::Readdir {
            ino,
            after: ask.after,
            max: u32::try_from(ask.max).unwrap_or(u32::MAX),
            plus: ask.is_plus,
        };
        let reply = self.inner.link.ns(op).await?;
        let grant = asked.answered(reply.lease_ms);
        let (entries, is_end) =
            expect_answer!(reply, NsAnswer::Dir { entries, is_end } => (entries, is_end))?;
        let mut is_kept = false;
        if ask.number != 0 && lease.holds_names(grant, ino) != 0 {
            // Before the names: whoever finds one looks for them.
            for some in entries.chunks(TAKEN_IN_ONCE) {
                if ask.is_plus && !self.has_room_for_inodes() {
                    break;
                }
                let now = lease.now();
                for attr in some.iter().filter_map(|entry| entry.attr.as_ref()) {
                    // What was removed here meanwhile is not to come back.
                    if lease.holds_names_at(grant, ino, now) == 0
                        || lease.holds_at(grant, attr.ino, now) == 0
                    {
                        continue;
                    }
                    let inode = self.inner.inodes.get_or_insert(attr.ino);
                    self.take_in_at(attr.ino, &mut lock(&inode.state), attr, grant, now);
                }
                fastcache_reactor::yield_now().await;
            }
            let told = Told {
                entries: &entries,
                is_end,
            };
            is_kept = self.inner.entries.keep(lease, grant, ino, ask, &told);
        }
        let page = DirPage {
            entries,
            is_end,
            grant,
        };
        Ok((page, is_kept))
    }

    /// Asks for a directory beside the lookups that want it, as far as they pay for it.
    pub(crate) fn fill(&self, ino: Ino, ask: Ask) {
        let fs = self.clone();
        fastcache_reactor::spawn(async move {
            let mut next = Some(ask);
            while let Some(ask) = next {
                let came = fs.ask_for(ino, &ask).await;
                let has_room = came.is_ok() && fs.has_room_for_inodes();
                next = fs.inner.entries.filled(ino, &ask, has_room);
            }
        })
        .detach();
    }

    /// Attributes that may be used now, when they are known.
    fn known_attr(&self, ino: Ino, now: Moment) -> Option<Attr> {
        let inode = self.inner.inodes.get(ino)?;
        let state = lock(&inode.state);
        match self.is_trusted_at(&state, now) {
            true => state.told(),
            false => None,
        }
    }

    /// The folder that a folder is in; the root is in itself.
    pub async fn parent_of(&self, ino: Ino) -> Result<Ino> {
        let name = b"..".to_vec();
        let reply = self
            .inner
            .link
            .ns(NsOp::Lookup { parent: ino, name })
            .await?;
        expect_answer!(reply, NsAnswer::Entry(a) => a.ino)
    }

    /// Puts a directory's entries on stable storage.
    pub async fn fsyncdir(&self, ino: Ino) -> Result<()> {
        self.reach_level(ino, fastcache_reactor::now()).await
    }
}
