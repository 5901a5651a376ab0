//! What a listing of the bucket says about the history: which snapshot to begin with, which segments follow it, where
//! it ends, what may go. Pure.
//!
//! A writer that was overtaken (a higher epoch exists) may still have written an object afterwards, which nobody was
//! told of. The successor's first segment says where its own history begins: objects of lower epochs from there on
//! are void.

use super::format::{Name, SegmentName, SnapshotName, parse_name};
use std::collections::BTreeMap;

/// Everything under the root of the history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Epochs, ascending.
    pub epochs: Vec<u64>,
    segments: Vec<SegmentName>,
    /// Whole snapshots.
    snapshots: Vec<SnapshotName>,
    /// Every object of a snapshot, whole or not.
    snapshot_objects: Vec<(SnapshotName, String)>,
}

/// How to get the state back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chain {
    pub snapshot: Option<SnapshotName>,
    /// Those that follow, without a gap.
    pub segments: Vec<SegmentName>,
    /// The last record.
    pub end: u64,
    /// Segments lie behind a gap: the first record that is missing, and the first that is there again.
    pub gap: Option<(u64, u64)>,
}

impl Shape {
    pub(crate) fn of(keys: Vec<String>) -> Shape {
        let mut shape = Shape::default();
        for key in keys {
            match parse_name(&key) {
                Some(Name::Epoch(epoch)) => shape.epochs.push(epoch),
                Some(Name::Segment(name)) if name.first <= name.last => shape.segments.push(name),
                Some(Name::Manifest(name)) => {
                    shape.snapshots.push(name);
                    shape.snapshot_objects.push((name, key));
                }
                Some(Name::Part(name)) => shape.snapshot_objects.push((name, key)),
                _ => tracing::debug!(target: "history", key, "not an object of the history"),
            }
        }
        shape.epochs.sort_unstable();
        shape.segments.sort_unstable();
        shape.snapshots.sort_unstable();
        shape
    }

    /// Whether there is nothing at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.epochs.is_empty() && self.segments.is_empty() && self.snapshot_objects.is_empty()
    }

    /// For each epoch, where the history of a later one begins: from there on it is void.
    fn overtaken(&self) -> impl Fn(u64) -> u64 + use<> {
        let mut begins: BTreeMap<u64, u64> = BTreeMap::new();
        for segment in &self.segments {
            let first = begins.entry(segment.epoch).or_insert(segment.first);
            *first = segment.first.min(*first);
        }
        move |epoch| {
            let later = begins.range(epoch + 1..).map(|(_, first)| *first);
            later.min().unwrap_or(u64::MAX)
        }
    }

    /// Snapshots that are part of the history, by position.
    pub(crate) fn snapshots(&self) -> Vec<SnapshotName> {
        let overtaken = self.overtaken();
        let is_valid = |s: &&SnapshotName| s.position < overtaken(s.epoch);
        self.snapshots.iter().filter(is_valid).copied().collect()
    }

    /// Segments that are part of the history, by position.
    fn segments(&self) -> Vec<SegmentName> {
        let overtaken = self.overtaken();
        let is_valid = |s: &&SegmentName| s.first < overtaken(s.epoch);
        self.segments.iter().filter(is_valid).copied().collect()
    }

    /// The whole history, from the last snapshot on.
    pub(crate) fn chain(&self) -> Chain {
        self.chain_from(self.snapshots().last().copied())
    }

    /// The history from a snapshot, or from the first record on.
    pub(crate) fn chain_from(&self, snapshot: Option<SnapshotName>) -> Chain {
        let mut chain = Chain {
            snapshot,
            end: snapshot.map_or(0, |s| s.position),
            ..Chain::default()
        };
        for segment in self.segments() {
            if segment.last <= chain.end {
                continue;
            }
            if segment.first > chain.end + 1 {
                chain.gap = Some((chain.end + 1, segment.first));
                break;
            }
            chain.end = segment.last;
            chain.segments.push(segment);
        }
        chain
    }

    /// Whether an epoch wrote records behind `position`.
    pub(crate) fn has_beyond(&self, epoch: u64, position: u64) -> bool {
        let is_beyond = |s: &SegmentName| s.epoch >= epoch && s.last > position;
        self.segments.iter().any(is_beyond)
            || self
                .snapshots
                .iter()
                .any(|s| s.epoch >= epoch && s.position > position)
    }

    /// What is not needed any more, with `keep` snapshots left: older snapshots and what was left of some that were
    /// never finished, the segments before the oldest that stays, what is void, and all epochs but the last few.
    /// `current` is the epoch that asks: only it may have a snapshot under way, and it asks when it has none.
    pub(crate) fn expendable(&self, keep: usize, current: u64) -> Vec<String> {
        /// Epochs that stay, for people who ask who wrote when.
        const EPOCHS_KEPT: usize = 8;
        let snapshots = self.snapshots();
        let kept = &snapshots[snapshots.len().saturating_sub(keep)..];
        let mut out: Vec<String> = self
            .snapshot_objects
            .iter()
            .filter(|(name, _)| name.epoch <= current && !kept.contains(name))
            .map(|(_, key)| key.clone())
            .collect();
        if let Some(oldest) = kept.first().filter(|_| kept.len() >= keep) {
            let valid = self.segments();
            let is_old = |s: &&SegmentName| {
                s.last <= oldest.position || (s.epoch < current && !valid.contains(s))
            };
            out.extend(self.segments.iter().filter(is_old).map(|s| s.key()));
        }
        let old = self.epochs.len().saturating_sub(EPOCHS_KEPT);
        let epochs = self.epochs.iter().take(old);
        out.extend(
            epochs
                .filter(|e| **e < current)
                .map(|e| super::format::epoch_name(*e)),
        );
        out
    }
}
