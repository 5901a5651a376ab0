#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fastcache_fuzz::peer_frame(input));
