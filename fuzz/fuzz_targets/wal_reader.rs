//! See `targets/wal_reader.rs`.

#![no_main]

#[path = "../targets/wal_reader.rs"]
#[allow(dead_code, reason = "seeds are for the replay")]
mod target;

libfuzzer_sys::fuzz_target!(|input: &[u8]| target::run(input));
