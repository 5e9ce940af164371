//! See `targets/capnproto.rs`.

#![no_main]

#[path = "../targets/capnproto.rs"]
#[allow(dead_code, reason = "seeds are for the replay")]
mod target;

libfuzzer_sys::fuzz_target!(|input: &[u8]| target::run(input));
