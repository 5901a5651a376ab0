//! The list of metrics and the table in docs/operations.md are the same; a scrape is what Prometheus can read.

use super::all;
use super::requests::fuse_durations;
use super::rising::risen;
use fastcache_api::control::{LATENCY_BOUNDS_US, Latency};
use std::collections::BTreeMap;

/// In the documentation, behind the table of the node's metrics.
const OF_THE_COORDINATOR: &str = "The coordinator has a `/metrics` of its own";

#[test]
fn the_documentation_lists_what_there_is() {
    let doc = include_str!("../../../../docs/operations.md");
    // Behind it is the coordinator's.
    let (doc, _) = doc.split_once(OF_THE_COORDINATOR).unwrap();
    let documented: BTreeMap<&str, (String, String)> = doc
        .lines()
        .filter(|l| l.starts_with("| `fastcache_"))
        .map(|l| {
            let cells: Vec<&str> = l.trim_matches('|').split('|').map(str::trim).collect();
            let plain = |s: &str| s.replace('`', "");
            (
                cells[0].trim_matches('`'),
                (plain(cells[1]), plain(cells[2])),
            )
        })
        .collect();
    let there: BTreeMap<&str, (String, String)> = all()
        .map(|m| {
            let kind = format!("{:?}", m.kind).to_lowercase();
            (m.name, (kind, m.label.to_owned()))
        })
        .collect();
    assert_eq!(documented, there);
}

#[test]
fn what_the_data_plane_counts_only_rises() {
    let key = "test/rises";
    assert_eq!(risen(key, 5), (5, 5));
    assert_eq!(risen(key, 9), (4, 9));
    // It was started again.
    assert_eq!(risen(key, 2), (2, 11));
}

#[test]
fn histograms_of_the_data_plane_are_cumulative() {
    let mut buckets = vec![0; LATENCY_BOUNDS_US.len() + 1];
    (buckets[0], buckets[2]) = (3, 4);
    let mut text = String::new();
    fuse_durations(
        &mut text,
        &[Latency {
            operation: "test".to_owned(),
            buckets,
            sum_us: 1500,
        }],
    );
    for line in [
        "_bucket{operation=\"test\",le=\"0.000025\"} 3",
        "_bucket{operation=\"test\",le=\"0.0001\"} 7",
        "_bucket{operation=\"test\",le=\"+Inf\"} 7",
        "_sum{operation=\"test\"} 0.0015",
        "_count{operation=\"test\"} 7",
    ] {
        assert!(text.contains(line), "{line} in\n{text}");
    }
}
