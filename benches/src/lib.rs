//! Benches, one file a layer; each is a program that asks nothing and prints a table.
//!
//! | program | what it measures |
//! |---|---|
//! | `embedded-store` | fjall against redb: group commit and reopening (docs/adr/2026-11-20-embedded-store.md) |
