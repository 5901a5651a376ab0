//! What was lost with the end of the log is made again as it was: the same numbers, the same tree, byte for byte but for the
//! positions of the records.

use super::random::{Step, Walk, step};
use super::*;
use crate::{Changes, Counters, RecordError, restore};
use fastcache_api::COUNTER_BITS;
use proptest::prelude::*;

/// Everything in a state that does not say in which record it was made.
fn without_positions(kv: &MemoryKv) -> Vec<(Vec<u8>, Vec<u8>)> {
    let encode = |key: &[u8], value: Vec<u8>| match key[0] {
        b'a' => {
            let attr: Attr = postcard::from_bytes(&value).unwrap();
            postcard::to_stdvec(&Attr { seq: 0, ..attr }).unwrap()
        }
        b'q' => {
            let mut reply: NsReply = postcard::from_bytes(&value).unwrap();
            reply.log_position = 0;
            reply.touched.iter_mut().for_each(|a| a.seq = 0);
            if let Ok(NsAnswer::Entry(attr) | NsAnswer::Attr(attr)) = &mut reply.result {
                attr.seq = 0;
            }
            postcard::to_stdvec(&reply).unwrap()
        }
        b'm' if key == keys::counters() => {
            let of: Counters = postcard::from_bytes(&value).unwrap();
            let (cookie, garbage, inodes, bytes) = (of.cookie, of.garbage, of.inodes, of.bytes);
            postcard::to_stdvec(&(cookie, garbage, inodes, bytes)).unwrap()
        }
        _ => value,
    };
    let pairs = kv.scan(&[], &[], usize::MAX).unwrap();
    let pairs = pairs.into_iter();
    pairs.map(|(k, v)| (k.clone(), encode(&k, v))).collect()
}

fn applied(
    kv: &MemoryKv,
    lost: &(Record, Origin),
) -> Result<(Record, Changes, NsReply), Box<NsReply>> {
    match restore(kv, &lost.0, lost.1).unwrap() {
        Outcome::Applied(record, changes, reply, _) => Ok((*record, changes, reply)),
        Outcome::Answered(reply) => Err(Box::new(reply)),
    }
}

impl Tree {
    /// Loses what came after so many records, and begins the next epoch. The changes that were lost.
    fn lose_after(&mut self, kv: MemoryKv, records: usize) -> Vec<(Record, Origin)> {
        self.kv = kv;
        self.log.truncate(records);
        let position = self.log.last().map_or(0, |r| r.position);
        self.begin_epoch();
        let mut lost = std::mem::take(&mut self.origins);
        lost.retain(|(record, _)| record.position > position);
        lost
    }

    fn bring(&mut self, lost: &(Record, Origin)) -> Result<NsReply, Box<NsReply>> {
        let (record, changes, reply) = applied(&self.kv, lost)?;
        let bytes = record.encode().unwrap();
        assert_eq!(bytes[0], crate::RECORD_VERSION);
        assert_eq!(Record::decode(&bytes).unwrap(), record);
        assert_eq!(changes, replay(&self.kv, &record).unwrap());
        self.kv.apply(changes);
        self.log.push(record);
        Ok(reply)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn what_was_lost_is_made_again_as_it_was(
        before in proptest::collection::vec(step(), 1..60),
        after in proptest::collection::vec(step(), 1..60),
    ) {
        let mut walk = Walk::new();
        before.into_iter().for_each(|step| walk.walk(step));
        let (kv, records) = (walk.tree.kv.clone(), walk.tree.log.len());
        for step in after.into_iter().filter(|s| !matches!(s, Step::NewEpoch)) {
            walk.walk(step);
        }
        let expected = without_positions(&walk.tree.kv);
        let lost = walk.tree.lose_after(kv, records);
        for one in &lost {
            walk.tree.bring(one).unwrap();
        }
        assert_eq!(without_positions(&walk.tree.kv), expected);
        walk.tree.check();
        // Brought a second time, it is there.
        let done = walk.tree.kv.clone();
        for one in &lost {
            assert!(walk.tree.bring(one).unwrap_err().result.is_ok());
        }
        assert_eq!(walk.tree.kv, done);
    }

    /// Whoever kept a part of it may be gone: what can be made is, and the tree is one.
    #[test]
    fn a_gap_leaves_a_tree(
        before in proptest::collection::vec(step(), 1..60),
        after in proptest::collection::vec((step(), any::<bool>()), 1..60),
    ) {
        let mut walk = Walk::new();
        before.into_iter().for_each(|step| walk.walk(step));
        let (kv, records) = (walk.tree.kv.clone(), walk.tree.log.len());
        let mut is_kept = Vec::new();
        for (step, kept) in after.into_iter().filter(|(s, _)| !matches!(s, Step::NewEpoch)) {
            walk.walk(step);
            is_kept.resize(walk.tree.log.len() - records, kept);
        }
        let lost = walk.tree.lose_after(kv, records);
        for one in lost.iter().zip(is_kept).filter(|(_, kept)| *kept) {
            let before = walk.tree.kv.clone();
            if walk.tree.bring(one.0).is_err() {
                assert_eq!(walk.tree.kv, before);
            }
        }
        walk.tree.check();
        // What is made from now on has numbers of its own.
        let made = walk.tree.make(Ino::ROOT, "new", Kind::File);
        assert_eq!(made.0 >> COUNTER_BITS, walk.tree.epochs);
        walk.tree.check();
    }
}

#[test]
fn numbers_that_no_earlier_epoch_gave_are_refused() {
    let mut t = Tree::new();
    let (kv, records) = (t.kv.clone(), t.log.len());
    t.make(Ino::ROOT, "f", Kind::File);
    let lost = t.lose_after(kv, records);
    let (record, origin) = lost[0].clone();
    let refuse = |t: &Tree, record: &Record, origin: Origin, errno| {
        let reply = applied(&t.kv, &(record.clone(), origin)).unwrap_err();
        assert_eq!(reply.result, Err(errno), "{origin:?}");
    };
    for epoch in [2, 3, u64::MAX] {
        refuse(&t, &record, Origin { epoch, ..origin }, Errno::EINVAL);
    }
    for number in [1 << COUNTER_BITS, (1 << COUNTER_BITS) - 1, u64::MAX] {
        let (ino, version) = (number, number);
        refuse(&t, &record, Origin { ino, ..origin }, Errno::EINVAL);
        refuse(&t, &record, Origin { version, ..origin }, Errno::EINVAL);
    }
    let begin = Record {
        op: NsOp::Begin { file_system: 5 },
        ..record.clone()
    };
    refuse(&t, &begin, origin, Errno::EINVAL);
    t.bring(&lost[0]).unwrap();
    // The same inode number for another file.
    let other = Record {
        id: None,
        op: make(Ino::ROOT, "g", Kind::File),
        ..record
    };
    refuse(&t, &other, origin, Errno::EEXIST);
    t.check();
}

#[test]
fn a_record_with_an_origin_is_damaged_when_it_is_cut() {
    let mut t = Tree::new();
    let (kv, records) = (t.kv.clone(), t.log.len());
    t.make(Ino::ROOT, "f", Kind::File);
    let lost = t.lose_after(kv, records);
    t.bring(&lost[0]).unwrap();
    let bytes = t.log.last().unwrap().encode().unwrap();
    for len in 1..bytes.len() {
        assert!(
            matches!(Record::decode(&bytes[..len]), Err(RecordError::Damaged(_))),
            "{len}"
        );
    }
}
