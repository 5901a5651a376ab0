//! The object store: objects in memory, and what was read of them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How long a read takes that is of this many bytes: as one of a store in the same region, 30 ms to the first byte and 100 MB/s.
fn takes(bytes: usize) -> Duration {
    Duration::from_millis(30 + bytes as u64 / 100_000)
}

/// An object store.
#[derive(Default)]
pub struct Cloud {
    objects: Mutex<HashMap<String, Vec<u8>>>,
    gets: AtomicU64,
    get_bytes: AtomicU64,
}

impl Cloud {
    /// Keeps an object.
    pub fn put(&self, name: String, bytes: Vec<u8>) {
        let mut objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        objects.insert(name, bytes);
    }

    /// An object's bytes, when it is there.
    pub async fn get(&self, name: &str) -> Option<Vec<u8>> {
        let bytes = {
            let objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
            objects.get(name)?.clone()
        };
        self.gets.fetch_add(1, Ordering::Relaxed);
        self.get_bytes
            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
        tokio::time::sleep(takes(bytes.len())).await;
        Some(bytes)
    }

    /// Reads so far, and their bytes.
    pub fn read(&self) -> (u64, u64) {
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        (get(&self.gets), get(&self.get_bytes))
    }
}
