//! What becomes of an answer that nobody takes: the lookups and opens it told are given back.

use super::Handlers;
use crate::opcode::Opcode;
use crate::reply::{OUT_HEADER, Reply};
use crate::wire::{Dirent, EntryOut, InHeader};
use fastcache_api::Ino;
use zerocopy::FromBytes;

impl Handlers {
    /// Takes back what the answer to a request has counted, because the kernel does not get it.
    pub(crate) async fn take_back(&self, header: &InHeader, reply: Reply) {
        let (Reply::Bytes(bytes) | Reply::BytesAndMore(bytes)) = reply else {
            return;
        };
        let body = bytes.get(OUT_HEADER..).unwrap_or_default();
        match Opcode::from_number(header.opcode) {
            Some(Opcode::Lookup) => {
                if let Ok((entry, _)) = EntryOut::read_from_prefix(body) {
                    self.forget_told(&entry);
                }
            }
            Some(Opcode::Readdirplus) => {
                for entry in told(body) {
                    self.forget_told(&entry);
                }
            }
            Some(Opcode::Open) => {
                if let Err(error) = self.fs.release(Ino(header.nodeid), 0).await {
                    tracing::warn!(target: "fuse", ino = header.nodeid, %error, "an open that was given up could not be closed");
                }
            }
            _ => {}
        }
    }

    fn forget_told(&self, entry: &EntryOut) {
        if entry.nodeid != 0 {
            self.fs.forget(Ino(entry.nodeid), 1);
        }
    }
}

/// The entries of a READDIRPLUS that count as looked up.
fn told(mut listing: &[u8]) -> impl Iterator<Item = EntryOut> {
    std::iter::from_fn(move || {
        let (entry, rest) = EntryOut::read_from_prefix(listing).ok()?;
        let (head, _) = Dirent::read_from_prefix(rest).ok()?;
        let len = (size_of::<Dirent>() + head.namelen as usize).next_multiple_of(8);
        listing = rest.get(len..).unwrap_or_default();
        Some(entry)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reply::{ListedEntry, Listing};
    use fastcache_api::Kind;

    #[test]
    fn every_entry_of_a_listing_is_found_again() {
        let mut listing = Listing::new(4096);
        for (ino, name) in [(7, "a"), (0, ".."), (9, "a longer name")] {
            let listed = ListedEntry {
                ino: Ino(ino),
                kind: Kind::File,
                cookie: ino,
                name: name.as_bytes(),
            };
            let entry = EntryOut {
                nodeid: ino,
                ..EntryOut::default()
            };
            assert!(listing.push(&listed, Some(&entry)));
        }
        let Reply::Bytes(bytes) = listing.into_reply() else {
            panic!("a listing")
        };
        let found: Vec<u64> = told(&bytes[OUT_HEADER..]).map(|e| e.nodeid).collect();
        assert_eq!(found, [7, 0, 9]);
        assert_eq!(told(b"short").count(), 0);
    }
}
