//! See `targets/head_chunks.rs`.

#![no_main]

#[path = "../targets/head_chunks.rs"]
#[allow(dead_code)]
mod target;

libfuzzer_sys::fuzz_target!(|input: &[u8]| target::run(input));
