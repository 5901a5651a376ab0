//! What was done to a store, when, and what may therefore be found after a power cut.

use super::super::model::Want;
use super::*;
use std::collections::BTreeMap;

/// What a chunk was, from when on at the earliest, and when its caller was told, in steps of the device.
#[derive(Debug)]
pub(super) struct State {
    pub(super) began: usize,
    pub(super) ended: usize,
    pub(super) what: Option<Want>,
}

/// A SEAL record.
#[derive(Debug)]
pub(super) struct SealInfo {
    pub(super) ino: Ino,
    pub(super) commit: Vec<u8>,
    pub(super) number: u64,
    pub(super) began: usize,
    pub(super) ended: usize,
    /// When its COMMITTED record may have been written.
    pub(super) committed: usize,
    /// The versions that it makes final.
    pub(super) names: Vec<ChunkKey>,
}

/// Everything that was done.
#[derive(Debug, Default)]
pub(super) struct History {
    /// By file and index.
    pub(super) chunks: BTreeMap<(u64, u32), Vec<State>>,
    /// From when on a version may be clean.
    pub(super) cleaned: BTreeMap<ChunkKey, usize>,
    pub(super) seals: Vec<SealInfo>,
    /// Flushes that ended well: when they began and ended.
    pub(super) flushes: Vec<(usize, usize)>,
}

impl History {
    /// What a recovery found is where a session starts.
    pub(super) fn of(snapshot: Snapshot) -> History {
        let mut history = History::default();
        for want in snapshot.chunks {
            if !want.is_dirty {
                history.cleaned.insert(want.key, 0);
            }
            let at = (want.key.ino.0, want.key.index);
            let state = State {
                began: 0,
                ended: 0,
                what: Some(want),
            };
            history.chunks.insert(at, vec![state]);
        }
        history.seals = snapshot
            .seals
            .into_iter()
            .map(|seal| SealInfo {
                ino: seal.ino,
                commit: seal.commit,
                number: seal.number,
                began: 0,
                ended: 0,
                committed: usize::MAX,
                names: Vec::new(),
            })
            .collect();
        history.flushes.push((0, 0));
        history
    }

    /// What a cut after `at` steps may leave, against what was found.
    pub(super) fn check(&self, at: usize, found: &Snapshot) {
        let flushed = self.flushes.iter().filter(|(_, ended)| *ended <= at);
        let flushed = flushed.map(|(began, _)| *began).max();
        let is_safe = |ended: usize| flushed.is_some_and(|f| ended <= f);
        // Of each chunk the latest state that what was found can be.
        let mut reached: BTreeMap<(u64, u32), usize> = BTreeMap::new();
        for (id, states) in &self.chunks {
            let safe = states.iter().rposition(|s| is_safe(s.ended));
            let here = found
                .chunks
                .iter()
                .find(|w| (w.key.ino.0, w.key.index) == *id);
            let is_never = here.is_none() && safe.is_none();
            let is_clean = |key: &ChunkKey| self.cleaned.get(key).is_some_and(|began| *began <= at);
            let n = (0..states.len()).rev().find(|&n| {
                let key = states[n].what.as_ref().map(|w| w.key);
                // A clean chunk whose bytes are gone is dropped: the cloud has it.
                let is_dropped = here.is_none()
                    && safe.is_none_or(|safe| n > safe)
                    && key.as_ref().is_some_and(is_clean);
                states[n].began <= at && (is_dropped || key == here.map(|w| w.key))
            });
            match n {
                Some(n) if safe.is_none_or(|safe| n >= safe) => {
                    reached.insert(*id, n);
                }
                _ if is_never => {}
                _ => {
                    let safe = safe.map(|n| &states[n].what);
                    let safe = safe.and_then(|w| w.as_ref()).map(|w| w.key);
                    let here = here.map(|w| w.key);
                    let all: Vec<_> = states
                        .iter()
                        .map(|s| (s.began, s.ended, s.what.as_ref().map(|w| w.key.version)))
                        .collect();
                    panic!(
                        "chunk {id:?}: {safe:?} was flushed, {here:?} is here; flushed up to {flushed:?} of {all:?}"
                    );
                }
            }
            if let (Some(n), Some(here)) = (n, here)
                && let Some(want) = &states[n].what
            {
                assert!(
                    want.len == here.len && want.image == here.image,
                    "{}: wrong bytes",
                    want.key
                );
                assert!(
                    here.is_dirty || is_clean(&want.key),
                    "{}: nobody uploaded it",
                    want.key
                );
            }
        }
        for want in &found.chunks {
            let id = (want.key.ino.0, want.key.index);
            assert!(
                self.chunks.contains_key(&id),
                "{}: nobody wrote it",
                want.key
            );
        }
        for seal in &self.seals {
            let here = found.seals.iter().find(|s| s.commit == seal.commit);
            let is_due = is_safe(seal.ended) && seal.committed > at;
            assert!(here.is_some() || !is_due, "a seal is lost: {seal:?}");
            let Some(here) = here else { continue };
            assert!(here.ino == seal.ino && seal.began <= at, "{seal:?}");
            for key in &seal.names {
                let id = (key.ino.0, key.index);
                let named = self.chunks[&id]
                    .iter()
                    .position(|s| s.what.as_ref().is_some_and(|w| w.key == *key));
                assert!(
                    reached.get(&id).copied() >= named,
                    "a seal is here without its chunk {key}"
                );
            }
        }
        for seal in &found.seals {
            let is_known = self.seals.iter().any(|s| s.commit == seal.commit);
            assert!(is_known, "nobody sealed {seal:?}");
        }
    }
}
