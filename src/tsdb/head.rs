//! The head: what a database holds in memory.

pub mod postings;
