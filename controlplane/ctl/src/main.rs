//! fastcache-ctl
fn main() {}
