//! See `targets/chunk_segment.rs`.

#![no_main]

#[path = "../targets/chunk_segment.rs"]
#[allow(dead_code)]
mod target;

libfuzzer_sys::fuzz_target!(|input: &[u8]| target::run(input));
