//! See `targets/block_meta.rs`.

#![no_main]

#[path = "../targets/block_meta.rs"]
#[allow(dead_code)]
mod target;

libfuzzer_sys::fuzz_target!(|input: &[u8]| target::run(input));
