//! What can go wrong in the chunk store, and what the reader of the message can do about it.

use fastcache_types::ChunkKey;

/// An error of the chunk store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No space for this now. The caller evicts clean chunks, calls `reclaim` and tries again.
    #[error("the chunk store is full: evict clean chunks, or give it a larger device")]
    Full,
    /// The path cannot be opened or made.
    #[error("cannot open the chunk store at {}: {error}; check the path, its permissions and its space", path.display())]
    Open {
        /// The path.
        path: std::path::PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The device takes no writes.
    #[error(
        "the device of the chunk store, {}, is read-only: make it writable (blockdev --setrw, or mount its file system read-write), or choose another --nvme", path.display()
    )]
    ReadOnly {
        /// The path.
        path: std::path::PathBuf,
    },
    /// The file cannot be made as large as it was asked for.
    #[error(
        "the chunk store cannot be made at {}: its file system has {free} bytes free, --nvme-capacity asks for {wanted}; lower --nvme-capacity or choose another --nvme", path.display()
    )]
    NoSpace {
        /// The path.
        path: std::path::PathBuf,
        /// Bytes of the file system that are free.
        free: u64,
        /// Bytes asked for.
        wanted: u64,
    },
    /// The device failed. Counted; the caller treats a read as a miss.
    #[error(
        "the device of the chunk store failed: {0}; check its cabling, its SMART log and the kernel log"
    )]
    Device(#[from] std::io::Error),
    /// Something of the store's own on the device is not what was written there. A chunk: treat it as a miss and
    /// remove it.
    #[error("{what} is corrupt ({at})")]
    Corrupt {
        /// What it is.
        what: &'static str,
        /// Where it is.
        at: String,
    },
    /// A block of a chunk does not have the checksum it was written with. Treat it as a miss and remove the chunk.
    #[error("block {block} of chunk {key} does not match its checksum")]
    Checksum {
        /// The chunk.
        key: ChunkKey,
        /// The block of the chunk.
        block: u32,
    },
    /// The device carries something else.
    #[error(
        "the device carries {signature}, not a fastcache store: choose another device, or pass --format --force to erase it"
    )]
    Foreign {
        /// What was found.
        signature: &'static str,
    },
    /// Both superblocks are unreadable.
    #[error(
        "both superblocks of this fastcache store are damaged: restore the device from a copy, or pass --format --force to erase it (chunks that are not yet in the cloud are lost)"
    )]
    Damaged,
    /// Written by another version of fastcache.
    #[error(
        "the store has disk format {found}, this program knows {supported}: run the version that wrote it, or pass --format to erase it"
    )]
    Version {
        /// On the device.
        found: u32,
        /// Known here.
        supported: u32,
    },
    /// The two superblocks belong to two stores.
    #[error(
        "the superblocks are those of two different stores (uuid {} and {}): something copied parts of another store over this one; restore the device from a copy, or pass --format --force to erase it (chunks that are not yet in the cloud are lost)",
        hex(first),
        hex(second)
    )]
    TwoStores {
        /// Of the first copy.
        first: [u8; 16],
        /// Of the second.
        second: [u8; 16],
    },
    /// The index was to be made anew, and the superblock is of another store than the checkpoints.
    #[error(
        "the superblock is of another store than what is behind it: something wrote it over this one; restore the first 128 KiB of the device from a copy, or pass --format to make an empty store (chunks that are not yet in the cloud are lost)"
    )]
    OtherStore,
    /// The device or file is shorter than the store on it.
    #[error(
        "the store has {need} bytes, its device only {have}: the file or partition was cut short, or is another one; restore its size or its contents, or pass --format to make an empty store (chunks that are not yet in the cloud are lost)"
    )]
    CutShort {
        /// Its size, bytes.
        have: u64,
        /// Of the store, bytes.
        need: u64,
    },
    /// The device or file is too small.
    #[error(
        "the device has {have} bytes, the chunk store needs {need}: choose a larger one or raise --nvme-capacity"
    )]
    TooSmall {
        /// Its size, bytes.
        have: u64,
        /// Wanted, bytes.
        need: u64,
    },
    /// The device is larger than block numbers can name.
    #[error(
        "the device has {have} bytes, the chunk store can use at most {most}: make a smaller partition, or lower --nvme-capacity"
    )]
    TooLarge {
        /// Its size, bytes.
        have: u64,
        /// The most, bytes.
        most: u64,
    },
    /// Another process holds the store.
    #[error(
        "another process is using this chunk store: stop the other fastcache-data, or give this one another --nvme"
    )]
    Busy,
    /// A SEAL record's commit is longer than the journal takes.
    #[error(
        "a commit of {bytes} bytes is too long for the journal (at most {most}): seal the file in smaller steps"
    )]
    CommitTooLong {
        /// Its length.
        bytes: usize,
        /// The most.
        most: usize,
    },
    /// An earlier write to the journal failed, so that nothing can be made durable here any more.
    #[error(
        "the chunk store's journal could not be written: what is new is safe in the cloud alone; replace the device and restart"
    )]
    Sick,
    /// The caller broke the rules of the call; nothing was changed.
    #[error("wrong use of the chunk store: {0}")]
    Invalid(&'static str),
}

fn hex(uuid: &[u8; 16]) -> String {
    uuid.iter().map(|b| format!("{b:02x}")).collect()
}
