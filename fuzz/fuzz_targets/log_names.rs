//! See `targets/log_names.rs`.

#![no_main]

#[path = "../targets/log_names.rs"]
#[allow(dead_code, reason = "seeds are for the replay")]
mod target;

libfuzzer_sys::fuzz_target!(|input: &[u8]| target::run(input));
