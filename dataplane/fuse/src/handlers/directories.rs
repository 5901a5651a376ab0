//! OPENDIR, READDIR, READDIRPLUS.

use super::Handlers;
use crate::reply::{ListedEntry, Listing, Reply, entry_out};
use crate::wire::{EntryOut, OpenOut, ReadIn};
use fastcache_api::{DirEntry, Errno, Ino, Kind};
use fastcache_cache::Grant;
use zerocopy::FromZeros;

/// Where a listing goes on after `.`.
const COOKIE_DOT: u64 = 1;
/// Where a listing goes on after `..`; entries of the file system have larger cookies.
const COOKIE_DOTDOT: u64 = 2;
/// Longest part of a listing answered at once, bytes, whatever the kernel has room for.
const LISTING_MAX: usize = 128 << 10;
/// Most entries asked of the file system at once.
const ENTRIES_MAX: usize = 1024;

impl Handlers {
    pub(super) async fn opendir(&self, ino: Ino) -> Reply {
        match self.fs.opendir(ino).await {
            Ok(fh) => Reply::of(&OpenOut {
                fh,
                open_flags: 0,
                backing_id: 0,
            }),
            Err(e) => Reply::Error(e),
        }
    }

    pub(super) async fn readdir(&self, ino: Ino, args: ReadIn, plus: bool) -> Reply {
        let size = (args.size as usize).min(LISTING_MAX);
        let mut listing = Listing::new(size);
        let mut count = 0;
        // A folder that was removed while it was open has no parent any more: it names itself.
        let parent = match args.offset {
            ..COOKIE_DOTDOT => self.fs.parent_of(ino).await.unwrap_or(ino),
            _ => ino,
        };
        // With node id 0 in front, a READDIRPLUS counts no lookup for these two.
        let dots = [
            (COOKIE_DOT, b".".as_slice(), ino),
            (COOKIE_DOTDOT, b"..", parent),
        ];
        for (cookie, name, ino) in dots {
            if args.offset < cookie {
                let dot = ListedEntry {
                    ino,
                    kind: Kind::Dir,
                    cookie,
                    name,
                };
                let head = plus.then(EntryOut::new_zeroed);
                if !listing.push(&dot, head.as_ref()) {
                    return finish(listing, count, false);
                }
                count += 1;
            }
        }
        let after = args.offset.max(COOKIE_DOTDOT);
        let max = Listing::capacity(size, plus).clamp(1, ENTRIES_MAX);
        let max = u32::try_from(max).unwrap_or(u32::MAX);
        let page = match self.fs.readdir(ino, after, max, plus).await {
            Ok(page) => page,
            // What is listed already is answered; the error comes again with the next request.
            Err(_) if count > 0 => return finish(listing, count, false),
            Err(e) => return Reply::Error(e),
        };
        for entry in page.entries.iter() {
            if !self.list(&mut listing, ino, entry, plus.then_some(page.grant)) {
                return finish(listing, count, false);
            }
            count += 1;
        }
        // A page is no less than what fits, or all there is: what would come next is left to the next request.
        finish(listing, count, page.is_end || page.entries.is_empty())
    }

    /// Adds an entry; false when it does not fit.
    fn list(
        &self,
        listing: &mut Listing,
        parent: Ino,
        entry: &DirEntry,
        plus: Option<Grant>,
    ) -> bool {
        let listed = ListedEntry::from(entry);
        let Some(grant) = plus else {
            return listing.push(&listed, None);
        };
        if !listing.fits(&listed, true) {
            return false;
        }
        // Only what is told the kernel counts as looked up.
        let entry = entry.attr.as_ref();
        let entry = entry.and_then(|attr| self.fs.remember(parent, attr, grant));
        let head = entry.map_or_else(EntryOut::new_zeroed, |entry| {
            entry_out(&entry.attr, entry.entry_valid, entry.attr_valid)
        });
        listing.push(&listed, Some(&head))
    }
}

/// The listing, or EINVAL where the kernel left no room for a single entry: an empty answer would mean the end.
fn finish(listing: Listing, count: usize, is_end: bool) -> Reply {
    if count == 0 && !is_end {
        Reply::Error(Errno::EINVAL)
    } else {
        listing.into_reply()
    }
}
