//! Goal: a device that refuses to read, to write or to flush loses nothing that the process still has, says that what is
//! new is not safe here, and leaves for the next start what was safe. Method: faults at the seam of the reactor.

use super::*;
use crate::device::FILE_NAME;
use fastcache_reactor::faults::{self, Operation};
use std::ops::Range;
use std::path::PathBuf;

/// The faults of one store; gone when this is dropped.
struct Sick(PathBuf);

impl Sick {
    fn of(dir: &Path) -> Sick {
        Sick(dir.join(FILE_NAME))
    }
    fn fail(&self, operation: Operation, bytes: Range<u64>) {
        faults::inject(&self.0, operation, bytes, libc::EIO, usize::MAX);
    }
    fn heal(&self) {
        faults::clear(&self.0);
    }
}

impl Drop for Sick {
    fn drop(&mut self) {
        self.heal();
    }
}

fn bytes_of(e: Extent) -> Range<u64> {
    e.offset()..e.offset() + e.bytes()
}

#[test]
fn a_read_error_is_an_error_of_that_chunk_alone() {
    let dir = tempfile::tempdir().unwrap();
    let sick = Sick::of(dir.path());
    session(dir.path(), async |store, _| {
        let all = vec![chunk(key(1, 0, 1), 50_000), chunk(key(1, 1, 2), 50_000)];
        let sealed = store.seal(all, None).await.unwrap();
        let bad = sealed.bodies[0].runs()[0].extent;
        sick.fail(Operation::Read, bytes_of(Extent { len: 1, ..bad }));
        let result = read(&store, &sealed.bodies[0]).await;
        assert!(matches!(result, Err(StoreError::Device(_))), "{result:?}");
        expect(&store, key(1, 1, 2), 50_000).await;
        assert_eq!(store.errors().device_errors, 1);
        // The caller drops it; its blocks serve again.
        store.remove(&[key(1, 0, 1)]).await.unwrap();
        sick.heal();
        store
            .seal(vec![chunk(key(1, 0, 3), 50_000)], None)
            .await
            .unwrap();
        expect(&store, key(1, 0, 3), 50_000).await;
    });
}

#[test]
fn a_write_that_the_device_refuses_stays_readable_and_is_said_to_be_volatile() {
    let dir = tempfile::tempdir().unwrap();
    let sick = Sick::of(dir.path());
    session(dir.path(), async |store, _| {
        store
            .seal(vec![chunk(key(1, 0, 1), 5000)], None)
            .await
            .unwrap();
        assert!(!store.is_volatile());
        let region = store.inner.superblock.geometry.data;
        sick.fail(Operation::Write, bytes_of(region));
        // Header and data, in one write and in two, and blocks that are placed by hand.
        for (version, len) in [(2, 5000), (3, 1 << 20)] {
            let sealed = store.seal(vec![chunk(key(2, 0, version), len)], None).await;
            let sealed = sealed.unwrap();
            assert!(store.is_volatile() && store.is_spilled(&sealed.bodies[0]));
            expect(&store, key(2, 0, version), len).await;
        }
        let place = store.allocate(3).unwrap();
        let data = bytes(9, 3 * 4096);
        store.write_blocks(place.start, buf(&data)).await.0.unwrap();
        let (result, back) = store
            .read_blocks(place.start, IoBuf::alloc(3 * BLOCK))
            .await;
        result.unwrap();
        assert!(back[..] == data[..]);
        store.release(place);
        expect(&store, key(1, 0, 1), 5000).await;
        let before = store.health();
        assert!(before.spilled_bytes >= 1 << 20 && !before.is_lost);
        // It is in the cloud: it is evicted, and what is in RAM alone goes with it.
        store.mark_clean(&[key(2, 0, 3)]).await.unwrap();
        store.evict(id(2, 0)).unwrap();
        assert!(!store.is_volatile(), "{:?}", store.health());
        sick.heal();
        store.reclaim().await.unwrap();
        // What was bad is not used again: everything free is taken, and none of it is.
        let bad = store.health().bad_bytes;
        assert!(bad >= 1 << 20);
        let usage = store.usage();
        assert!(usage.quarantined_bytes == bad, "{usage:?}");
        let mut taken = Vec::new();
        while let Some(e) = store.allocate(1) {
            taken.push(e);
        }
        assert_eq!(taken.len() as u64 * 4096, usage.free_bytes);
        assert!(taken.iter().all(|e| e.start != place.start));
        taken.into_iter().for_each(|e| store.release(e));
    });
    session(dir.path(), async |store, recovered| {
        assert_eq!(recovered.chunks, 1);
        expect(&store, key(1, 0, 1), 5000).await;
        assert_eq!(store.usage().quarantined_bytes, 0);
    });
}

#[test]
fn a_passing_write_error_is_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let sick = Sick::of(dir.path());
    session(dir.path(), async |store, _| {
        faults::inject(&sick.0, Operation::Write, 0..u64::MAX, libc::EIO, 1);
        store
            .seal(vec![chunk(key(1, 0, 1), 5000)], None)
            .await
            .unwrap();
        assert!(!store.is_volatile());
        assert_eq!(store.errors().device_errors, 1);
    });
    session(dir.path(), async |store, _| {
        expect(&store, key(1, 0, 1), 5000).await
    });
}

#[test]
fn a_journal_that_cannot_be_written_is_lost_and_the_store_goes_on_in_ram() {
    let dir = tempfile::tempdir().unwrap();
    let sick = Sick::of(dir.path());
    reactor(async || {
        let (store, _) = Store::open(options(dir.path(), 64)).await.unwrap();
        let dirty = vec![chunk(key(1, 0, 1), 5000), chunk(key(1, 1, 2), 1 << 20)];
        store.seal(dirty, file(1, b"safe")).await.unwrap();
        store
            .seal(vec![clean(key(2, 0, 3), 1 << 20)], None)
            .await
            .unwrap();
        store.flush().await.unwrap();
        sick.fail(
            Operation::Write,
            bytes_of(store.inner.superblock.geometry.journal),
        );
        store
            .seal(vec![chunk(key(3, 0, 4), 5000)], file(3, b"new"))
            .await
            .unwrap();
        assert!(store.is_volatile() && store.health().is_lost);
        assert!(matches!(store.flush().await, Err(StoreError::Sick)));
        expect(&store, key(3, 0, 4), 5000).await;
        // The device heals, and nothing is promised again before a restart.
        sick.heal();
        // Everything is replaced, uploaded and evicted, many times the store: what was dirty keeps its place.
        let held = store.inner.kept.lock().unwrap().clone();
        assert_eq!(held.len(), 3);
        store
            .seal(vec![chunk(key(1, 0, 5), 5000)], None)
            .await
            .unwrap();
        store
            .mark_clean(&[key(1, 1, 2), key(3, 0, 4)])
            .await
            .unwrap();
        store.evict(id(1, 1)).unwrap();
        store.evict(id(2, 0)).unwrap();
        for version in 100..250 {
            let sealed = store
                .seal(vec![clean(key(4, 0, version), 1 << 20)], None)
                .await;
            let id = sealed.unwrap().bodies[0].key().id();
            store.evict(id).unwrap();
            let _ = store.reclaim().await;
        }
        check(&store, &held);
    });
    session(dir.path(), async |store, recovered| {
        assert_eq!(recovered.pending.len(), 1);
        assert_eq!(recovered.pending[0].commit, b"safe");
        // What was acknowledged before is here; what came later is in the cloud or was refused.
        expect(&store, key(1, 0, 1), 5000).await;
        expect(&store, key(1, 1, 2), 1 << 20).await;
        assert!(store.get(id(3, 0)).is_none());
        // What was clean was overwritten: that is seen, and the cloud has it.
        assert!(store.get(id(2, 0)).is_none());
    });
}

#[test]
fn a_flush_that_fails_is_not_believed_later() {
    let dir = tempfile::tempdir().unwrap();
    let sick = Sick::of(dir.path());
    reactor(async || {
        let (store, _) = Store::open(options(dir.path(), 64)).await.unwrap();
        store
            .seal(vec![chunk(key(1, 0, 1), 5000)], None)
            .await
            .unwrap();
        faults::inject(&sick.0, Operation::Sync, 0..1, libc::EIO, 1);
        assert!(matches!(store.flush().await, Err(StoreError::Device(_))));
        assert!(matches!(store.flush().await, Err(StoreError::Sick)));
        assert!(store.is_volatile());
        expect(&store, key(1, 0, 1), 5000).await;
        assert!(store.close().await.is_err());
    });
}

#[test]
fn a_device_that_is_read_only_or_dead_at_start_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let sick = Sick::of(dir.path());
    session(dir.path(), async |store, _| {
        store
            .seal(vec![chunk(key(1, 0, 1), 5000)], None)
            .await
            .unwrap();
    });
    for (operation, range) in [
        (Operation::Write, 0..u64::MAX),
        (Operation::Read, 0..1),
        (Operation::Sync, 0..1),
    ] {
        sick.fail(operation, range);
        let opened = reactor(async || Store::open(options(dir.path(), 64)).await.map(drop));
        let error = opened.unwrap_err().to_string();
        assert!(error.contains("SMART"), "{operation:?}: {error}");
        sick.heal();
    }
    session(dir.path(), async |store, _| {
        expect(&store, key(1, 0, 1), 5000).await
    });
}

#[test]
fn more_than_ram_takes_waits_for_uploads() {
    let dir = tempfile::tempdir().unwrap();
    let sick = Sick::of(dir.path());
    session_of(dir.path(), 256, async |store, _| {
        sick.fail(
            Operation::Write,
            bytes_of(store.inner.superblock.geometry.data),
        );
        let uploader = {
            let store = store.clone();
            fastcache_reactor::spawn(async move {
                // What is dirty is uploaded and evicted, a little later.
                let mut uploaded = 0;
                while uploaded < 30 {
                    fastcache_reactor::sleep(std::time::Duration::from_millis(5)).await;
                    for body in store.inventory(0).0 {
                        store.mark_clean(&[body.key()]).await.unwrap();
                        store.evict(body.key().id()).unwrap();
                        uploaded += 1;
                    }
                }
            })
        };
        for n in 0..30 {
            store
                .seal(vec![chunk(key(5, n, 50), 4 << 20)], None)
                .await
                .unwrap();
            assert!(store.health().spilled_bytes <= 64 << 20);
        }
        uploader.await;
        assert!(!store.is_volatile());
    });
}
