//! Records, and what is made of them.

use super::*;

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
