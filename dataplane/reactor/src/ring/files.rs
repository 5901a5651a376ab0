//! The ring's registered files: saves the reference counting of the file for every operation on a disk.
//!
//! A place holds its disk only while operations use it, so that dropping the last [`crate::Disk`] closes the
//! descriptor. The kernel's own reference to the file stays until the place is used for another disk.

use std::sync::{Arc, Weak};

use io_uring::Submitter;

use crate::disk::FileDevice;

/// Most registered files of a ring; disks beyond it are used by descriptor.
const PLACES: usize = 64;

pub(super) struct FileTable {
    places: Vec<Place>,
    /// The kernel takes registrations.
    is_usable: bool,
}

struct Place {
    device_id: u64,
    device: Weak<FileDevice>,
    /// Operations that use the place, and the disk they keep open.
    users: u32,
    keep: Option<Arc<FileDevice>>,
}

impl FileTable {
    pub(super) fn new(ring: &Submitter<'_>) -> FileTable {
        let places = u32::try_from(PLACES).unwrap_or(0);
        let result = ring.register_files_sparse(places);
        if let Err(error) = &result {
            tracing::warn!(%error, "files cannot be registered with the ring");
        }
        FileTable {
            places: Vec::new(),
            is_usable: result.is_ok(),
        }
    }

    /// The place of the disk, for one operation. None if it has none and gets none.
    pub(super) fn acquire(
        &mut self,
        ring: &Submitter<'_>,
        device: &Arc<FileDevice>,
    ) -> Option<u32> {
        let found = self
            .places
            .iter()
            .position(|place| place.device_id == device.id());
        let index = match found {
            Some(index) => index,
            None => self.register(ring, device)?,
        };
        let place = &mut self.places[index];
        if place.users == 0 {
            place.keep = Some(device.clone());
        }
        place.users += 1;
        u32::try_from(index).ok()
    }

    fn register(&mut self, ring: &Submitter<'_>, device: &Arc<FileDevice>) -> Option<usize> {
        if !self.is_usable {
            return None;
        }
        let unused = |place: &Place| place.users == 0 && place.device.strong_count() == 0;
        let index = match self.places.iter().position(unused) {
            Some(index) => index,
            None if self.places.len() < PLACES => self.places.len(),
            None => return None,
        };
        let offset = u32::try_from(index).ok()?;
        let descriptors = [device.as_raw_fd()];
        if let Err(error) = ring.register_files_update(offset, &descriptors) {
            tracing::warn!(%error, "a file cannot be registered with the ring");
            self.is_usable = false;
            return None;
        }
        let place = Place {
            device_id: device.id(),
            device: Arc::downgrade(device),
            users: 0,
            keep: None,
        };
        match self.places.get_mut(index) {
            Some(old) => *old = place,
            None => self.places.push(place),
        }
        Some(index)
    }

    /// One operation less uses the place.
    pub(super) fn release(&mut self, index: u32) {
        let place = &mut self.places[index as usize];
        assert!(
            place.users > 0,
            "registered file {index} released too often"
        );
        place.users -= 1;
        if place.users == 0 {
            place.keep = None;
        }
    }
}
