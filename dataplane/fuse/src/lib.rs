//! The kernel's FUSE protocol: wire structures, transports, one file per group of operations.
