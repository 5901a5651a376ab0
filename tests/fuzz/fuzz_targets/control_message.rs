#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fastcache_fuzz::control_message(input));
