//! What a listing means.

use crate::history::format::{Name, SegmentName, SnapshotName, parse_name};
use crate::history::shape::Shape;

fn segment(first: u64, last: u64, epoch: u64) -> String {
    SegmentName { first, last, epoch }.key()
}

fn snapshot(position: u64, epoch: u64) -> [String; 2] {
    let name = SnapshotName { position, epoch };
    [name.part(0), name.manifest()]
}

fn shape(keys: impl IntoIterator<Item = String>) -> Shape {
    Shape::of(keys.into_iter().collect())
}

#[test]
fn names_are_read_as_they_are_written() {
    let name = SegmentName {
        first: 1,
        last: 0xff,
        epoch: 0x2a,
    };
    assert_eq!(
        name.key(),
        "history/log/0000000000000001-00000000000000ff-00002a"
    );
    assert_eq!(parse_name(&name.key()), Some(Name::Segment(name)));
    let name = SnapshotName {
        position: 16,
        epoch: 3,
    };
    assert_eq!(
        name.part(10),
        "history/snapshots/0000000000000010-000003/00000a"
    );
    assert_eq!(parse_name(&name.part(10)), Some(Name::Part(name)));
    assert_eq!(parse_name(&name.manifest()), Some(Name::Manifest(name)));
    assert_eq!(parse_name("history/epochs/000007"), Some(Name::Epoch(7)));
    for other in [
        "history",
        "history/",
        "history/epochs/x",
        "history/log/1-2",
        "history/snapshots/1-2/manifest/3",
        "chunks/1/0-1",
    ] {
        assert_eq!(parse_name(other), None, "{other}");
    }
}

#[test]
fn a_chain_ends_at_a_gap() {
    let s = shape([segment(1, 5, 1), segment(6, 9, 1), segment(11, 12, 1)]);
    let chain = s.chain();
    assert_eq!((chain.end, chain.gap), (9, Some((10, 11))));
    let with = shape(
        [segment(6, 9, 1), segment(10, 12, 1)]
            .into_iter()
            .chain(snapshot(7, 1)),
    );
    let chain = with.chain();
    assert_eq!((chain.end, chain.gap), (12, None));
    assert_eq!(
        chain.segments.len(),
        2,
        "the first one overlaps the snapshot"
    );
    // A snapshot without its manifest is none.
    let [part, _] = snapshot(7, 1);
    assert_eq!(shape([part, segment(8, 9, 1)]).chain().end, 0);
}

#[test]
fn what_an_overtaken_writer_left_is_void() {
    let keys = [segment(1, 5, 1), segment(6, 9, 1), segment(6, 7, 1001)];
    let mut all = keys.to_vec();
    all.extend(snapshot(9, 1));
    all.push(segment(10, 20, 1));
    let s = shape(all);
    let chain = s.chain();
    assert_eq!((chain.snapshot, chain.end, chain.gap), (None, 7, None));
    assert_eq!(chain.segments.last().unwrap().epoch, 1001);
    // Once the successor has what it needs, the void goes, too.
    let mut all = keys.to_vec();
    all.extend(snapshot(9, 1));
    all.extend(snapshot(6, 1001));
    all.extend(snapshot(7, 1001));
    all.extend(snapshot(20, 1002));
    let gone = shape(all).expendable(2, 1001);
    assert!(gone.contains(&segment(6, 9, 1)) && gone.contains(&segment(1, 5, 1)));
    assert!(snapshot(9, 1).iter().all(|o| gone.contains(o)));
    assert!(snapshot(20, 1002).iter().all(|o| !gone.contains(o)));
}

#[test]
fn pruning_keeps_what_the_kept_snapshots_need() {
    let mut all = vec![segment(1, 10, 1), segment(11, 20, 1), segment(21, 30, 1)];
    all.extend(snapshot(10, 1));
    assert!(shape(all.clone()).expendable(2, 1).is_empty());
    all.extend(snapshot(15, 1));
    assert_eq!(shape(all.clone()).expendable(2, 1), [segment(1, 10, 1)]);
    all.extend(snapshot(25, 1));
    let gone = shape(all.clone()).expendable(2, 1);
    assert!(gone.contains(&segment(1, 10, 1)) && !gone.contains(&segment(11, 20, 1)));
    assert!(snapshot(10, 1).iter().all(|o| gone.contains(o)));
    let left: Vec<String> = all.into_iter().filter(|k| !gone.contains(k)).collect();
    let s = shape(left);
    for snapshot in s.snapshots() {
        assert_eq!(s.chain_from(Some(snapshot)).end, 30);
    }
}
