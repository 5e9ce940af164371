//! The program as an operator meets it: what it says to a command line, how it starts and stops.

mod program;
mod start_stop;
mod startup_errors;
