//! The control plane of one node: data-plane client, LRU, persist queue, REST.
