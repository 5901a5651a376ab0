//! Goal: the parts add up to the budget whatever it is, none is below what it needs, and what is too little is refused
//! with what would do.

use super::*;

const GIB: u64 = 1 << 30;

fn needs() -> Needs {
    Needs {
        wanted_bytes: None,
        checksums_bytes: None,
        cores: 2,
        is_uring: false,
        has_peers: false,
        capacity_bytes: 10 * GIB,
        machine_bytes: 4 * GIB,
    }
}

fn with(wanted_bytes: u64, of: Needs) -> Result<Budget> {
    divide(&Needs {
        wanted_bytes: Some(wanted_bytes),
        ..of
    })
}

/// The least, as the refusal says it, bytes.
fn least(of: Needs) -> u64 {
    let said = with(1, of).unwrap_err().to_string();
    let (before, _) = said.split_once(" MiB is the least").unwrap();
    let number = before.rsplit(' ').next().unwrap();
    number.parse::<u64>().unwrap() * MIB
}

fn check(budget: &Budget) {
    let limits = &budget.limits;
    let fixed = budget.buffers + budget.requests + budget.shared + budget.peers + budget.process;
    assert_eq!(
        fixed + budget.entries + limits.tables_bytes,
        budget.total,
        "{budget:?}"
    );
    let bounded = budget.index + limits.inodes_bytes + limits.writes_bytes;
    assert!(
        bounded + CHECKSUMS_LEAST <= limits.tables_bytes,
        "{budget:?}"
    );
    assert!(limits.chunks * CHUNK_BYTES <= budget.index);
    assert!(limits.inodes_bytes >= INODES_LEAST && limits.writes_bytes >= WRITES_LEAST);
}

#[test]
fn the_parts_add_up() {
    for cores in [1, 2, 64] {
        for is_uring in [false, true] {
            for capacity_bytes in [64 * MIB, 10 * GIB, 16 << 40] {
                let of = Needs {
                    cores,
                    is_uring,
                    has_peers: is_uring,
                    capacity_bytes,
                    ..needs()
                };
                check(&divide(&of).unwrap());
                let least = least(of);
                assert!(with(least - MIB, of).is_err());
                for more in [0, 1, MIB, 300 * MIB, 100 * GIB] {
                    let budget = with(least + more, of).unwrap();
                    assert_eq!(budget.total, least + more);
                    check(&budget);
                    assert!(budget.limits.chunks >= capacity_bytes / CHUNK_SIZE);
                }
            }
        }
    }
}

#[test]
fn a_refusal_says_what_would_do() {
    let said = with(100 * MIB, needs()).unwrap_err().to_string();
    assert!(said.starts_with("--memory 100 MiB is too little"), "{said}");
    assert!(
        said.contains("2 processors and a store of 10240 MiB"),
        "{said}"
    );
    assert!(said.contains("--cores"), "{said}");
}

#[test]
fn without_a_word_it_is_a_part_of_the_machine_or_what_is_needed() {
    let large = Needs {
        machine_bytes: 64 * GIB,
        ..needs()
    };
    assert_eq!(divide(&large).unwrap().total, 8 * GIB);
    let rounded = least(needs());
    let small = divide(&needs()).unwrap().total;
    assert!(small <= rounded + BEYOND_LEAST && small > rounded + BEYOND_LEAST - MIB);
    // Over io_uring there are as many further entries as without a budget.
    let uring = Needs {
        is_uring: true,
        ..large
    };
    assert_eq!(divide(&uring).unwrap().entries, 8 * GIB);
}

#[test]
fn other_nodes_take_their_part() {
    let of = Needs {
        has_peers: true,
        ..needs()
    };
    let (alone, with_peers) = (divide(&needs()).unwrap(), divide(&of).unwrap());
    assert_eq!(alone.peers, 0);
    assert!(with_peers.peers >= 2 * 16 * MIB);
    let more = least(of) - least(needs());
    assert!(more.abs_diff(with_peers.peers) <= MIB);
}

#[test]
fn the_index_takes_no_more_than_the_store_can_need() {
    let budget = with(64 * GIB, needs()).unwrap();
    assert_eq!(budget.limits.chunks, 10 * GIB / CHUNK_LEAST);
    assert!(budget.limits.checksums_most_bytes > 32 * GIB);
}

#[test]
fn checksums_can_be_bounded_alone() {
    let of = Needs {
        checksums_bytes: Some(128 << 10),
        ..needs()
    };
    let limits = divide(&of).unwrap().limits;
    assert_eq!(limits.checksums_most_bytes, 128 << 10);
    assert_eq!(limits.checksums_least_bytes, 128 << 10);
}

#[test]
fn proc_counts_in_kib() {
    let text = "Name:\tx\nVmRSS:\t   1234 kB\nRssAnon:\t 1 kB\n";
    assert_eq!(in_kib(text, "VmRSS:"), Some(1234 << 10));
    assert_eq!(in_kib(text, "VmHWM:"), None);
    assert!(resident().unwrap() > MIB);
    assert!(of_machine().unwrap() > 64 * MIB);
}
