//! Goal: a power cut leaves what a flush covered, and of the rest only what was written, sector by sector.

use super::*;

fn write(number: u64, offset: u64, byte: u8) -> Step {
    let bytes = vec![byte; 2 * SECTOR].into();
    Step::Write {
        number,
        offset,
        bytes,
    }
}

fn bytes(medium: &Medium) -> [u8; 4 * SECTOR] {
    let mut out = [0; 4 * SECTOR];
    medium.read(0, &mut out);
    out
}

#[test]
fn a_cut_leaves_what_was_flushed_and_some_of_the_rest() {
    let mut contents = Contents::new(Medium::new(10_000));
    for step in [write(1, 0, 1), Step::Written(1), Step::Flush(2)] {
        contents.step(&step);
    }
    // Began after the flush, so that it is not covered; the third has not even ended.
    for step in [
        write(3, SECTOR as u64, 3),
        Step::Written(3),
        Step::Flushed(2),
        write(4, SECTOR as u64, 4),
    ] {
        contents.step(&step);
    }
    let sectors = |all: [u8; 4 * SECTOR]| -> Vec<u8> {
        all.chunks(SECTOR)
            .map(|sector| {
                assert!(sector.iter().all(|&b| b == sector[0]), "half a sector");
                sector[0]
            })
            .collect()
    };
    assert_eq!(sectors(bytes(contents.now())), [1, 3, 3, 0]);
    let mut x = 1u64;
    let mut pick = |n: u64| {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (x >> 33) % n
    };
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..200 {
        for loss in Loss::EACH {
            let left = sectors(bytes(&contents.cut(loss, &mut pick)));
            match loss {
                Loss::All => assert_eq!(left, [1, 1, 0, 0]),
                Loss::None => assert_eq!(left, [1, 4, 4, 0]),
                Loss::Writes | Loss::One | Loss::Side => assert!(
                    [[1, 1, 0, 0], [1, 3, 3, 0], [1, 4, 4, 0]]
                        .contains(&left[..].try_into().unwrap())
                ),
                Loss::Tail | Loss::Sectors => {}
            }
            assert!(left[0] == 1 && [1, 3, 4].contains(&left[1]));
            assert!([0, 3, 4].contains(&left[2]) && left[3] == 0);
            seen.insert(left);
        }
    }
    assert_eq!(seen.len(), 9, "every mixture: {seen:?}");
}

#[test]
fn a_write_that_failed_is_there_or_not_until_another_is_durable_in_its_place() {
    let mut contents = Contents::new(Medium::new(10_000));
    // Two sectors from the first on; then one of them is written again, well.
    for step in [
        write(1, 0, 1),
        Step::Failed(1),
        write(2, SECTOR as u64, 2),
        Step::Written(2),
    ] {
        contents.step(&step);
    }
    let sectors = |loss| {
        let left = bytes(&contents.cut(loss, |_| 0));
        [left[0], left[SECTOR], left[2 * SECTOR]]
    };
    assert_eq!(bytes(contents.now())[0], 0, "readers do not see it");
    assert_eq!(sectors(Loss::None), [1, 2, 2]);
    assert_eq!(sectors(Loss::One), [0, 2, 2], "the first is lost");
    for step in [Step::Flush(3), Step::Flushed(3)] {
        contents.step(&step);
    }
    let sectors = |loss| {
        let left = bytes(&contents.cut(loss, |_| 0));
        [left[0], left[SECTOR], left[2 * SECTOR]]
    };
    // Of the failed one only what nothing else took the place of may still come.
    assert_eq!(sectors(Loss::None), [1, 2, 2]);
    assert_eq!(sectors(Loss::All), [0, 2, 2]);
    // One that failed while the other was under way may be the later one.
    let mut contents = Contents::new(Medium::new(10_000));
    for step in [
        write(1, 0, 1),
        write(2, 0, 2),
        Step::Failed(1),
        Step::Written(2),
        Step::Flush(3),
        Step::Flushed(3),
    ] {
        contents.step(&step);
    }
    assert_eq!(bytes(&contents.cut(Loss::None, |_| 0))[0], 1);
    assert_eq!(bytes(&contents.cut(Loss::All, |_| 0))[0], 2);
}

#[test]
fn a_medium_is_zeros_and_shares_what_is_not_changed() {
    let mut one = Medium::new(3 * PAGE as u64);
    one.write(PAGE as u64 - 2, &[1, 2, 3, 4]);
    let two = one.clone();
    one.write(PAGE as u64, &[9]);
    let mut out = [7; 6];
    one.read(PAGE as u64 - 3, &mut out);
    assert_eq!(out, [0, 1, 2, 9, 4, 0]);
    two.read(PAGE as u64 - 3, &mut out);
    assert_eq!(out, [0, 1, 2, 3, 4, 0]);
    // Past its end.
    one.write(3 * PAGE as u64 - 1, &[5, 6]);
    let mut out = [7; 2];
    one.read(3 * PAGE as u64 - 1, &mut out);
    assert_eq!(out, [5, 0]);
}
