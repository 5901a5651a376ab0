//! Indexed storage that reuses places: the operation table and the task registry. Indexes are dense and stay valid
//! until removed; every reuse of a place gets a new generation.

/// Values at stable indexes; removal is O(1) and the place is reused first.
pub(crate) struct Slab<T> {
    places: Vec<Place<T>>,
    /// First free place, or `NONE`.
    free: u32,
    len: usize,
}

struct Place<T> {
    generation: u32,
    content: Content<T>,
}

enum Content<T> {
    Full(T),
    Free { next: u32 },
}

const NONE: u32 = u32::MAX;

/// Index and generation of one value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Key {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

impl<T> Slab<T> {
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Slab {
            places: Vec::with_capacity(capacity),
            free: NONE,
            len: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn insert(&mut self, value: T) -> Key {
        self.len += 1;
        if self.free != NONE {
            let index = self.free;
            let place = &mut self.places[index as usize];
            let Content::Free { next } = place.content else {
                unreachable!("the free list names a full place: {index}");
            };
            self.free = next;
            place.content = Content::Full(value);
            return Key {
                index,
                generation: place.generation,
            };
        }
        let index = u32::try_from(self.places.len()).unwrap_or(NONE);
        assert!(index != NONE, "slab is full");
        self.places.push(Place {
            generation: 0,
            content: Content::Full(value),
        });
        Key {
            index,
            generation: 0,
        }
    }

    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        match self.places.get_mut(key.index as usize) {
            Some(Place {
                generation,
                content: Content::Full(value),
            }) if *generation == key.generation => Some(value),
            _ => None,
        }
    }

    pub(crate) fn remove(&mut self, key: Key) -> Option<T> {
        let place = self.places.get_mut(key.index as usize)?;
        if place.generation != key.generation || matches!(place.content, Content::Free { .. }) {
            return None;
        }
        let content = std::mem::replace(&mut place.content, Content::Free { next: self.free });
        place.generation = place.generation.wrapping_add(1);
        self.free = key.index;
        self.len -= 1;
        match content {
            Content::Full(value) => Some(value),
            Content::Free { .. } => None,
        }
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.places
            .iter_mut()
            .filter_map(|place| match &mut place.content {
                Content::Full(value) => Some(value),
                Content::Free { .. } => None,
            })
    }
}
