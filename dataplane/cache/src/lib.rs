//! The file system of a node: metadata cache, read path, write path, single flight, eviction candidates.
