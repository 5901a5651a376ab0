//! Registry, namespace log and leases of a cluster.
