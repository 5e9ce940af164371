//! The program as an operator meets it: what it says to a command line, how it starts and stops.

mod arguments;
mod closed_reads;
mod data_directory;
mod kit;
mod load;
mod log_queue;
mod program;
mod start_stop;
mod startup_errors;
#[allow(dead_code, reason = "no suite needs all of what they share")]
#[path = "../support/mod.rs"]
mod support;
