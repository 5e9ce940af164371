//! See `targets/write_request_v2.rs`.

#![no_main]

#[path = "../targets/write_request_v2.rs"]
#[allow(dead_code, reason = "seeds are for the replay")]
mod target;

libfuzzer_sys::fuzz_target!(|input: &[u8]| target::run(input));
