//! What a change touches, what a read reveals, and how a revocation says it.

use fastcache_api::{Attr, Ino, NsAnswer, NsOp, NsReply, grpc};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// A revocation as it travels. What each means: [`Revocation`](crate::remote::Revocation).
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct What {
    pub inos: Vec<Ino>,
    pub entries: Vec<(Ino, Vec<u8>)>,
    pub touched: Vec<Attr>,
    pub hand_over: Vec<Ino>,
    pub orphans: Vec<Ino>,
}

impl What {
    /// For a node's watch stream. What cannot be encoded is everything.
    pub(crate) fn into_revocation(self) -> grpc::Revocation {
        match postcard::to_stdvec(&self) {
            Ok(what) => grpc::Revocation {
                what,
                ..Default::default()
            },
            Err(error) => {
                tracing::error!(target: "leases", %error, "a revocation cannot be encoded: forgetting everything instead");
                grpc::Revocation {
                    everything: true,
                    ..Default::default()
                }
            }
        }
    }
}

/// What a change touched.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Effect {
    inos: Vec<Ino>,
    entries: Vec<(Ino, Vec<u8>)>,
}

impl Effect {
    /// Of a change and its reply; nothing when it was refused.
    pub(crate) fn of(op: &NsOp, reply: &NsReply) -> Effect {
        let Ok(answer) = &reply.result else {
            return Effect::default();
        };
        let mut effect = Effect::default();
        effect.inos.extend(reply.touched.iter().map(|a| a.ino));
        if let NsAnswer::Unlinked { ino, .. } = answer {
            effect.inos.push(*ino);
        }
        match op {
            NsOp::Make {
                at: Some((parent, name)),
                ..
            }
            | NsOp::Unlink { parent, name }
            | NsOp::Rmdir { parent, name }
            | NsOp::Link { parent, name, .. }
            | NsOp::LinkReplace { parent, name, .. }
            | NsOp::LinkReplaceIf { parent, name, .. }
            | NsOp::UnlinkIf { parent, name, .. } => {
                effect.entries.push((*parent, name.clone()));
            }
            NsOp::Rename {
                parent,
                name,
                new_parent,
                new_name,
                ..
            } => {
                effect.entries.push((*parent, name.clone()));
                effect.entries.push((*new_parent, new_name.clone()));
            }
            NsOp::Reap { inos } => effect.inos.extend(inos),
            _ => {}
        }
        effect.inos.sort_unstable();
        effect.inos.dedup();
        effect
    }

    /// The inodes whose leases cover it.
    pub(crate) fn covered(&self) -> Vec<Ino> {
        let mut all = self.inos.clone();
        all.extend(self.entries.iter().map(|(dir, _)| *dir));
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The part that concerns a holder of these leases.
    pub(crate) fn told_to(&self, held: &HashSet<Ino>, touched: &[Attr]) -> What {
        let inos = self.inos.iter().filter(|i| held.contains(i));
        let entries = self.entries.iter().filter(|(dir, _)| held.contains(dir));
        let touched = touched.iter().filter(|a| held.contains(&a.ino));
        What {
            inos: inos.copied().collect(),
            entries: entries.cloned().collect(),
            touched: touched.cloned().collect(),
            ..What::default()
        }
    }
}

/// The inodes of which a read tells something that may be cached.
pub(crate) fn revealed(op: &NsOp, reply: &NsReply) -> Vec<Ino> {
    let mut inos = Vec::new();
    match op {
        NsOp::Lookup { parent, .. } => inos.push(*parent),
        NsOp::GetAttr { ino }
        | NsOp::Open { ino, .. }
        | NsOp::Readlink { ino }
        | NsOp::Readdir { ino, .. }
        | NsOp::GetXattr { ino, .. }
        | NsOp::ListXattr { ino } => inos.push(*ino),
        _ => {}
    }
    match &reply.result {
        Ok(NsAnswer::Entry(attr) | NsAnswer::Attr(attr) | NsAnswer::Opened { attr, .. }) => {
            inos.push(attr.ino);
        }
        Ok(NsAnswer::Dir { entries, .. }) => {
            inos.extend(entries.iter().filter(|e| e.attr.is_some()).map(|e| e.ino));
        }
        _ => {}
    }
    inos.sort_unstable();
    inos.dedup();
    inos
}

/// Whether a read's answer is something that is cached under a lease.
pub(crate) fn is_cached(op: &NsOp) -> bool {
    matches!(
        op,
        NsOp::Lookup { .. }
            | NsOp::GetAttr { .. }
            | NsOp::Open { .. }
            | NsOp::Readlink { .. }
            | NsOp::Readdir { .. }
            | NsOp::GetXattr { .. }
            | NsOp::ListXattr { .. }
            | NsOp::Resolve { .. }
    )
}
