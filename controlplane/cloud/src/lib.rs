//! The object store tier: S3, Azure Blob, or a directory.
