//! Bodies in order of their ids, without a copy of the id beside each: 8 bytes a chunk in the live index, where a map with
//! ids would take 24. A lookup reads the ids of the bodies that it passes.

use crate::slots::Body;
use fastcache_types::ChunkId;
use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::ops::{Bound, RangeBounds};

/// What has an id: a body in the tree, or an id to look for.
trait HasId {
    fn id(&self) -> ChunkId;
}

impl HasId for ChunkId {
    fn id(&self) -> ChunkId {
        *self
    }
}

struct ById<B>(B);

impl<B: Body> HasId for ById<B> {
    fn id(&self) -> ChunkId {
        self.0.key().id()
    }
}

impl<'a, B: Body + 'a> Borrow<dyn HasId + 'a> for ById<B> {
    fn borrow(&self) -> &(dyn HasId + 'a) {
        self
    }
}

impl PartialEq for dyn HasId + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.id() == other.id()
    }
}

impl Eq for dyn HasId + '_ {}

impl PartialOrd for dyn HasId + '_ {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for dyn HasId + '_ {
    fn cmp(&self, other: &Self) -> Ordering {
        self.id().cmp(&other.id())
    }
}

impl<B: Body> PartialEq for ById<B> {
    fn eq(&self, other: &Self) -> bool {
        self.id() == other.id()
    }
}

impl<B: Body> Eq for ById<B> {}

impl<B: Body> PartialOrd for ById<B> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<B: Body> Ord for ById<B> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.id().cmp(&other.id())
    }
}

/// A set of bodies with at most one for each id.
pub(crate) struct Bodies<B>(BTreeSet<ById<B>>);

impl<B> Default for Bodies<B> {
    fn default() -> Self {
        Bodies(BTreeSet::new())
    }
}

impl<B: Body> Bodies<B> {
    /// The body of an id.
    pub(crate) fn get(&self, id: &ChunkId) -> Option<&B> {
        self.0.get(id as &dyn HasId).map(|b| &b.0)
    }

    /// Adds a body; answers the one that its id had.
    pub(crate) fn insert(&mut self, body: B) -> Option<B> {
        self.0.replace(ById(body)).map(|b| b.0)
    }

    /// Takes the body of an id out.
    pub(crate) fn remove(&mut self, id: &ChunkId) -> Option<B> {
        self.0.take(id as &dyn HasId).map(|b| b.0)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// All, in order.
    pub(crate) fn values(&self) -> impl ExactSizeIterator<Item = &B> {
        self.0.iter().map(|b| &b.0)
    }

    /// Those of these ids, in order.
    pub(crate) fn range(&self, ids: impl RangeBounds<ChunkId>) -> impl Iterator<Item = &B> {
        fn of<'a>(bound: Bound<&'a ChunkId>) -> Bound<&'a (dyn HasId + 'a)> {
            bound.map(|id| id as &dyn HasId)
        }
        let bounds = (of(ids.start_bound()), of(ids.end_bound()));
        self.0.range::<dyn HasId, _>(bounds).map(|b| &b.0)
    }

    /// All, in order, without the set.
    pub(crate) fn into_values(self) -> impl Iterator<Item = B> {
        self.0.into_iter().map(|b| b.0)
    }
}

/// Of bodies with different ids. In order of them it takes the least RAM: what is inserted one by one leaves nodes of the
/// tree half empty.
impl<B: Body> FromIterator<B> for Bodies<B> {
    fn from_iter<I: IntoIterator<Item = B>>(bodies: I) -> Self {
        Bodies(bodies.into_iter().map(ById).collect())
    }
}
