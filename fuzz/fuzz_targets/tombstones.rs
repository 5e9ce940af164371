//! See `targets/tombstones.rs`.

#![no_main]

#[path = "../targets/tombstones.rs"]
#[allow(dead_code)]
mod target;

libfuzzer_sys::fuzz_target!(|input: &[u8]| target::run(input));
