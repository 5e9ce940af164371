//! The program as an operator meets it: what it says to a command line, how it starts and stops.

#[path = "../support/certificates.rs"]
mod certificates;
mod closed_reads;
mod data_directory;
#[path = "../support/http.rs"]
mod http;
mod load;
mod log_queue;
#[path = "../support/process.rs"]
mod process;
mod program;
mod start_stop;
mod startup_errors;
