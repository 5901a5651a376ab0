//! fastcache-data
fn main() {}
