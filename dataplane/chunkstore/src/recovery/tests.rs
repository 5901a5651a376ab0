//! Goal: nothing that can happen to bytes on the device makes the store return wrong bytes, lose more than it must, or
//! fail to open without saying what to do. Method: bits are flipped in each structure between two sessions.

use super::*;
use crate::device::FILE_NAME;
use crate::tests::{
    MIB, buf, bytes, check, chunk, clean, expect, file, flip, id, key, options, pending, poke,
    reactor, read, session,
};
use crate::{SealChunk, SealData};
use fastcache_types::{Extent, Ino, Version};
use std::path::Path;

/// Seals one chunk of ino 1 in a journal group of its own; answers where that group is, byte of the device.
async fn one(store: &Store, index: u32, version: u64) -> u64 {
    let position = store.inner.journal.lock().head;
    store
        .seal(vec![chunk(key(1, index, version), 5000)], None)
        .await
        .unwrap();
    let (block, _) = Journal::place(store.inner.journal.ring, position);
    u64::from(block) * BLOCK_U64
}

fn open_error(options: StoreOptions) -> StoreError {
    match reactor(async || Store::open(options).await.map(drop)) {
        Ok(()) => panic!("it opened"),
        Err(e) => e,
    }
}

#[test]
fn a_torn_or_damaged_group_ends_the_replay() {
    for at in [0, 5, 20, 40, 60] {
        let dir = tempfile::tempdir().unwrap();
        let second = session(dir.path(), async |store, _| {
            one(&store, 0, 1).await;
            let second = one(&store, 1, 2).await;
            one(&store, 2, 3).await;
            second
        });
        flip(dir.path(), second + at);
        session(dir.path(), async |store, recovered| {
            assert_eq!(recovered.chunks, 1);
            expect(&store, key(1, 0, 1), 5000).await;
            // Written where the damaged group was; the group behind it is still whole on the device.
            assert_eq!(one(&store, 3, 4).await, second);
        });
        session(dir.path(), async |store, recovered| {
            assert_eq!(recovered.chunks, 2);
            expect(&store, key(1, 0, 1), 5000).await;
            expect(&store, key(1, 3, 4), 5000).await;
        });
    }
}

#[test]
fn a_group_that_wraps_around_the_ring_is_whole_or_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let torn = session(dir.path(), async |store, _| {
        let ring = store.inner.journal.ring;
        let mut n = 0;
        while store.inner.journal.lock().head % u64::from(ring.len) != u64::from(ring.len) - 1 {
            n += 1;
            one(&store, 0, n).await;
        }
        // 200 records take two blocks or more: the last of the ring and the first.
        let many = (0..200).map(|i| chunk(key(2, i, 1000), 1)).collect();
        store.seal(many, None).await.unwrap();
        u64::from(ring.start) * BLOCK_U64 + 9
    });
    session(dir.path(), async |store, recovered| {
        assert_eq!(recovered.chunks, 201);
        expect(&store, key(2, 199, 1000), 1).await;
    });
    flip(dir.path(), torn);
    session(dir.path(), async |store, recovered| {
        assert_eq!(recovered.chunks, 1);
        assert!(store.get(id(2, 0)).is_none());
    });
}

#[test]
fn a_flipped_bit_of_a_chunk_is_found_where_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let (data, header) = session(dir.path(), async |store, _| {
        let len = 10 * 4096;
        let a = store
            .seal(vec![chunk(key(1, 0, 1), len)], None)
            .await
            .unwrap();
        let b = store
            .seal(vec![chunk(key(1, 1, 2), len)], None)
            .await
            .unwrap();
        // What is known to be flushed is not verified at the start.
        store.flush().await.unwrap();
        store.seal(vec![], file(9, b"")).await.unwrap();
        let data = a.bodies[0].runs()[0].extent.offset() + 7 * BLOCK_U64 + 100;
        (data, b.bodies[0].header_extent().offset() + 70)
    });
    flip(dir.path(), data);
    flip(dir.path(), header);
    session(dir.path(), async |store, recovered| {
        assert_eq!(recovered.chunks, 2);
        let a = store.get(id(1, 0)).unwrap();
        match read(&store, &a).await {
            Err(StoreError::Checksum { key: k, block }) => {
                assert_eq!((k, block), (key(1, 0, 1), 7))
            }
            other => panic!("{other:?}"),
        }
        // The other blocks are as good as ever.
        let (result, some) = store.read(&a, 0, IoBuf::alloc(7 * BLOCK)).await;
        result.unwrap();
        assert!(some[..] == bytes(1, 10 * 4096)[..7 * BLOCK]);
        let b = store.get(id(1, 1)).unwrap();
        assert!(matches!(
            read(&store, &b).await,
            Err(StoreError::Corrupt { .. })
        ));
        assert_eq!(store.errors().checksum_errors, 2);
        store.remove(&[a.key(), b.key()]).await.unwrap();
    });
    session(dir.path(), async |_, recovered| {
        assert_eq!(recovered.chunks, 0)
    });
}

#[test]
fn one_good_superblock_repairs_the_other_and_two_bad_ones_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    session(dir.path(), async |store, _| one(&store, 0, 1).await);
    for copy in COPIES {
        let at = u64::from(copy) * BLOCK_U64;
        flip(dir.path(), at + 20);
        session(dir.path(), async |store, _| {
            expect(&store, key(1, 0, 1), 5000).await
        });
    }
    // Both are whole again, so that each alone is enough.
    flip(dir.path(), 20);
    session(dir.path(), async |store, _| {
        expect(&store, key(1, 0, 1), 5000).await
    });
    for copy in COPIES {
        flip(dir.path(), u64::from(copy) * BLOCK_U64 + 20);
    }
    let error = open_error(options(dir.path(), 64));
    assert!(matches!(error, StoreError::Damaged) && error.to_string().contains("--format --force"));
    let format = StoreOptions {
        format: true,
        ..options(dir.path(), 64)
    };
    assert!(matches!(open_error(format.clone()), StoreError::Damaged));
    let force = StoreOptions {
        force: true,
        ..format
    };
    reactor(async || Store::open(force).await.map(drop)).unwrap();
    session(dir.path(), async |_, recovered| {
        assert_eq!(recovered.chunks, 0)
    });
}

#[test]
fn other_peoples_data_is_not_erased_without_force() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("device");
    let mut image = vec![0; 20 << 20];
    image[0x438..0x43A].copy_from_slice(&[0x53, 0xEF]);
    std::fs::write(&path, &image).unwrap();
    let plain = options(&path, 20);
    for (format, force) in [(false, false), (true, false), (false, true)] {
        let error = open_error(StoreOptions {
            format,
            force,
            ..plain.clone()
        });
        assert!(matches!(error, StoreError::Foreign { signature } if signature.contains("ext4")));
        assert!(std::fs::read(&path).unwrap() == image);
    }
    let both = StoreOptions {
        format: true,
        force: true,
        ..plain.clone()
    };
    reactor(async || {
        let (store, _) = Store::open(both).await.unwrap();
        one(&store, 0, 1).await;
    });
    reactor(async || {
        let (store, _) = Store::open(plain).await.unwrap();
        expect(&store, key(1, 0, 1), 5000).await;
    });
}

#[test]
fn a_store_is_formatted_only_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    session(dir.path(), async |store, _| one(&store, 0, 1).await);
    let file = dir.path().join(FILE_NAME);
    assert_eq!(std::fs::metadata(&file).unwrap().len(), 64 * MIB);
    // The capacity of what is there counts, not the one asked for.
    reactor(async || {
        let (store, recovered) = Store::open(options(&file, 32)).await.unwrap();
        assert_eq!(recovered.chunks, 1);
        assert!(store.usage().capacity_bytes > 50 * MIB);
    });
    let format = StoreOptions {
        format: true,
        ..options(dir.path(), 32)
    };
    reactor(async || {
        let (store, recovered) = Store::open(format).await.unwrap();
        assert_eq!(recovered.chunks, 0);
        assert!(store.usage().capacity_bytes < 32 * MIB);
        one(&store, 0, 9).await;
    });
    assert_eq!(std::fs::metadata(&file).unwrap().len(), 32 * MIB);
    // Nothing of the old store's journal, which is partly still there, is taken for the new one's.
    reactor(async || {
        let (_, recovered) = Store::open(options(dir.path(), 32)).await.unwrap();
        assert_eq!(recovered.chunks, 1);
    });
    let cut = std::fs::OpenOptions::new().write(true).open(&file).unwrap();
    cut.set_len(20 << 20).unwrap();
    assert!(matches!(
        open_error(options(dir.path(), 32)),
        StoreError::CutShort { .. }
    ));
    let small = options(&dir.path().join("small"), 1);
    assert!(matches!(open_error(small), StoreError::TooSmall { .. }));
    let nowhere = options(&dir.path().join("no/such/dir"), 32);
    assert!(matches!(open_error(nowhere), StoreError::Open { .. }));
}

#[test]
fn a_second_user_is_told_that_the_store_is_busy() {
    let dir = tempfile::tempdir().unwrap();
    session(dir.path(), async |_store, _| {
        let second = Store::open(options(dir.path(), 64)).await;
        assert!(matches!(second.map(drop), Err(StoreError::Busy)));
    });
    session(dir.path(), async |_, _| ());
}

/// Four checkpoints and records behind each; answers the areas, the newest one's first.
fn checkpointed(dir: &Path) -> [u64; 2] {
    session(dir, async |store, _| {
        let mut version = 0;
        for round in 0..4 {
            for index in 0..20 {
                version += 1;
                one(&store, index + round * 10, version).await;
            }
            store.close().await.unwrap();
        }
        store.mark_clean(&[key(1, 49, 80)]).await.unwrap();
        store.remove(&[key(1, 48, 79)]).await.unwrap();
        let newest = store.inner.journal.lock().newest.area;
        let areas = store.inner.superblock.geometry.checkpoints;
        [areas[newest], areas[1 - newest]].map(|e| e.offset())
    })
}

async fn is_as_checkpointed(store: &Store, recovered: &Recovered) {
    assert_eq!(recovered.chunks, 49);
    for index in 0..48 {
        let round = (index / 10).min(3);
        expect(
            store,
            key(1, index, u64::from(round * 20 + index - round * 10) + 1),
            5000,
        )
        .await;
    }
}

#[test]
fn a_damaged_checkpoint_is_replaced_by_the_older_one_and_its_journal() {
    for at in [8, 4096, 4096 + 300] {
        let dir = tempfile::tempdir().unwrap();
        let [newest, _] = checkpointed(dir.path());
        flip(dir.path(), newest + at);
        session(dir.path(), async |store, recovered| {
            is_as_checkpointed(&store, &recovered).await;
            assert!(!store.get(id(1, 49)).unwrap().is_dirty());
            assert!(store.get(id(1, 48)).is_none());
            store.close().await.unwrap();
        });
        session(dir.path(), async |store, recovered| {
            is_as_checkpointed(&store, &recovered).await
        });
    }
}

#[test]
fn without_checkpoints_the_headers_are_scanned() {
    let dir = tempfile::tempdir().unwrap();
    let areas = checkpointed(dir.path());
    for at in areas {
        flip(dir.path(), at + 8);
    }
    for _ in 0..2 {
        session(dir.path(), async |store, recovered| {
            // What was removed is found again, and what was clean is dirty: harmless, as the agent knows.
            assert_eq!(recovered.chunks, 50);
            let recovered = Recovered {
                chunks: 49,
                ..recovered
            };
            is_as_checkpointed(&store, &recovered).await;
            expect(&store, key(1, 49, 80), 5000).await;
        });
    }
}

#[test]
fn a_checkpoint_whose_journal_is_overwritten_is_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let [newest, _] = checkpointed(dir.path());
    // A group of a later lap where the older checkpoint's journal begins.
    let (block, store_id, ring) = session(dir.path(), async |store, _| {
        let journal = &store.inner.journal;
        (journal.lock().tail, journal.store, journal.ring)
    });
    let (first, _) = Journal::place(ring, block);
    let mut group = vec![0; BLOCK];
    crate::journal::encode_group(
        &mut group,
        store_id,
        block + u64::from(ring.len),
        1,
        std::iter::empty(),
    );
    poke(dir.path(), u64::from(first) * BLOCK_U64, |b| {
        b.copy_from_slice(&group[..64])
    });
    flip(dir.path(), newest + 8);
    session(dir.path(), async |_, recovered| {
        assert_eq!(recovered.chunks, 50)
    });
}

#[test]
fn of_two_chunks_with_the_same_block_the_later_stays() {
    let region = Extent {
        start: 100,
        len: 1000,
    };
    let put = |index: u32, header: u32, start: u32, len: u32| Record::Put {
        facts: crate::body::BodyFacts {
            key: key(1, index, u64::from(index) + 1),
            len: len * 4096,
            is_dirty: true,
            is_kept: false,
            header,
            runs: crate::body::Runs::from_slice(&[crate::BlockRun {
                first: 0,
                extent: Extent { start, len },
            }]),
        },
        is_pending: false,
        is_spilled: false,
    };
    let mut replay = Replay::new();
    for record in [
        put(0, 100, 101, 50),
        put(1, 200, 201, 5),
        put(2, 300, 130, 2),
        put(3, 400, 1099, 2),
        put(4, 500, 205, 9),
    ] {
        replay.load(record);
    }
    let rebuilt = replay.finish(region);
    let mut kept: Vec<u32> = rebuilt.bodies.iter().map(|f| f.key.index).collect();
    kept.sort_unstable();
    assert_eq!(kept, [2, 4]);
    assert_eq!(rebuilt.dropped.len(), 3);
    assert!(rebuilt.owned.is_sorted());
    Space::new(region, &rebuilt.owned).check(&rebuilt.owned);
}

#[test]
fn replaying_on_top_of_a_snapshot_that_saw_more_changes_nothing() {
    // Every prefix of a history as the snapshot, every earlier point as the start of the replay.
    let put = |version: u64, is_pending: bool| Record::Put {
        facts: crate::body::BodyFacts {
            key: key(1, 0, version),
            len: 1,
            is_dirty: true,
            is_kept: false,
            header: 100 + u32::try_from(version).unwrap(),
            runs: Default::default(),
        },
        is_pending,
        is_spilled: false,
    };
    let seal = |number| Record::Seal {
        ino: Ino(1),
        number,
        commit: vec![1],
    };
    let history = [
        put(1, false),
        Record::Clean(key(1, 0, 1)),
        put(2, true),
        put(3, true),
        Record::Clean(key(1, 0, 3)),
        seal(1),
        put(4, true),
        Record::Remove(key(1, 0, 4)),
        put(5, true),
        Record::Committed { number: 1 },
        seal(2),
        put(6, false),
        Record::Remove(key(1, 0, 6)),
        put(7, true),
    ];
    let play = |replay: &mut Replay, from: usize, to: usize| {
        for (n, record) in (from as u64..).zip(&history[from..to]) {
            replay.apply(Record::Ticket(n + 1));
            replay.apply(record.clone());
        }
    };
    let at = |n: usize| {
        let mut replay = Replay::new();
        play(&mut replay, 0, n);
        replay
    };
    let state = |r: &mut Replay| {
        let facts = |b: &crate::replay::Replayed| b.clone().into_facts();
        (
            r.of(Ino(1)).current.values().map(facts).collect::<Vec<_>>(),
            r.of(Ino(1))
                .pending
                .values()
                .map(|p| p.as_ref().map(facts))
                .collect::<Vec<_>>(),
            r.seals.clone(),
        )
    };
    let stripe = Some(u16::try_from(Index::stripe_of(Ino(1))).unwrap());
    for end in 0..=history.len() {
        for chunks in 0..=end {
            for seals in 0..=chunks {
                for start in 0..=seals {
                    // As a checkpoint writes it: SEAL records, then, later, chunks.
                    let mut got = Replay::new();
                    got.load(Record::Mark {
                        stripe: None,
                        ticket: seals as u64,
                    });
                    for (number, p) in at(seals).seals {
                        got.load(Record::Seal {
                            ino: p.ino,
                            number,
                            commit: p.commit,
                        });
                    }
                    got.load(Record::Mark {
                        stripe,
                        ticket: chunks as u64,
                    });
                    let seen = std::mem::take(at(chunks).of(Ino(1)));
                    for body in seen.current.into_values() {
                        let pending = seen.pending.get(&body.facts.key.id());
                        if let Some(Some(prior)) = pending {
                            let facts = prior.clone().into_facts();
                            got.load(Record::Put {
                                facts,
                                is_pending: false,
                                is_spilled: false,
                            });
                        }
                        let is_pending = pending.is_some();
                        got.load(Record::Put {
                            facts: body.into_facts(),
                            is_pending,
                            is_spilled: false,
                        });
                    }
                    play(&mut got, start, end);
                    assert_eq!(
                        state(&mut got),
                        state(&mut at(end)),
                        "{start} {seals} {chunks} {end}"
                    );
                }
            }
        }
    }
}

#[test]
fn records_come_back_as_they_were_and_garbage_is_refused() {
    let facts = crate::body::BodyFacts {
        key: key(u64::MAX, 77, 0x0123_4567_89AB_CDEF),
        len: 4 << 20,
        is_dirty: true,
        is_kept: false,
        header: 12_345,
        runs: crate::body::Runs::from_slice(&[
            crate::BlockRun {
                first: 0,
                extent: Extent {
                    start: 9,
                    len: 1000,
                },
            },
            crate::BlockRun {
                first: 1010,
                extent: Extent {
                    start: 5000,
                    len: 14,
                },
            },
        ]),
    };
    let records = [
        Record::Put {
            facts,
            is_pending: true,
            is_spilled: false,
        },
        Record::Seal {
            ino: Ino(3),
            number: 9,
            commit: b"commit".to_vec(),
        },
        Record::Committed { number: 8 },
        Record::Clean(key(1, 2, 3)),
        Record::Remove(key(4, 5, 6)),
        Record::Ticket(1 << 50),
        Record::Flushed(1 << 51),
        Record::Mark {
            stripe: None,
            ticket: 5,
        },
        Record::Mark {
            stripe: Some(255),
            ticket: 6,
        },
    ];
    let mut all = Vec::new();
    records.iter().for_each(|r| r.encode(&mut all));
    let mut g = crate::wire::Get::new(&all);
    for record in &records {
        assert_eq!(Record::decode(&mut g).as_ref(), Some(record));
    }
    assert!(g.rest.is_empty());
    for cut in 0..all.len() {
        let mut g = crate::wire::Get::new(&all[..cut]);
        while Record::decode(&mut g).is_some() {}
        Replay::new().apply_all(crate::replay::decode_all(&all[..cut]));
    }
    assert!(Record::decode(&mut crate::wire::Get::new(&[99; 64])).is_none());
}

#[test]
fn checkpoints_of_many_chunks_span_segments_and_carry_pending_ones() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(dir.path(), 512);
    let count = 30_000u32;
    reactor(async || {
        let (store, _) = Store::open(options.clone()).await.unwrap();
        store
            .seal(vec![chunk(key(1, 0, 1), 10)], file(1, b"first"))
            .await
            .unwrap();
        for from in (0..count).step_by(5000) {
            // Files by the hundred, so that every stripe has some.
            let many = (from..from + 5000)
                .map(|n| clean(key(u64::from(n % 700) + 10, n, 7), 1))
                .collect();
            store.seal(many, None).await.unwrap();
        }
        store
            .seal(vec![pending(key(1, 0, 2), 20)], None)
            .await
            .unwrap();
        store.close().await.unwrap();
        assert!(store.inner.journal.lock().newest.sequence > 1);
        // Still pending behind the checkpoint: this makes it real.
        store.seal(vec![], file(1, b"second")).await.unwrap();
    });
    reactor(async || {
        let (store, recovered) = Store::open(options.clone()).await.unwrap();
        assert_eq!(recovered.chunks, u64::from(count) + 1);
        assert_eq!(recovered.pending.len(), 2);
        expect(&store, key(1, 0, 2), 20).await;
        expect(&store, key(u64::from(29_999u32 % 700) + 10, 29_999, 7), 1).await;
        check(&store, &[]);
    });
}

#[test]
fn versions_never_repeat_a_cached_checksum() {
    // Same key, evicted and fetched again in another shape: the checksums of the first body must not be used.
    let dir = tempfile::tempdir().unwrap();
    session(dir.path(), async |store, _| {
        let sealed = store
            .seal(vec![clean(key(1, 0, 1), 8192)], None)
            .await
            .unwrap();
        drop(sealed);
        store.evict(id(1, 0)).unwrap();
        store.reclaim().await.unwrap();
        let image = [vec![0; 4096], bytes(9, 4096)].concat();
        let e = store.allocate(1).unwrap();
        store
            .write_blocks(e.start, buf(&image[4096..]))
            .await
            .0
            .unwrap();
        let runs = vec![crate::BlockRun {
            first: 1,
            extent: e,
        }];
        let crcs = vec![0, crate::crc_block(&image[4096..])];
        let again = SealChunk {
            key: crate::tests::key(1, 0, Version(1).0),
            len: 8192,
            is_dirty: false,
            is_kept: false,
            is_pending: false,
            data: SealData::Placed { runs, crcs },
        };
        let body = store
            .seal(vec![again], None)
            .await
            .unwrap()
            .bodies
            .remove(0);
        assert!(read(&store, &body).await.unwrap() == image);
    });
}
