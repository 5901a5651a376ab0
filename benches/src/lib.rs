//! Benches, one file a layer; each is a program that asks nothing and prints a table.
//!
//! | program | what it measures |
//! |---|---|
//! | `embedded-store` | fjall against redb: group commit and reopening (docs/adr/0003-embedded-store.md) |
//! | `eviction` | hit rates of eviction policies (docs/adr/0009-eviction.md) |
