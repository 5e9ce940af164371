//! Directories that other programs wrote, opened as a whole database: what a query finds, what a
//! second opening finds, and what is there after more was written and the process was killed.
//! `tests/data/tsdb/README.md` says where they come from.

mod damaged;
mod database;
#[path = "../support/histograms.rs"]
mod histograms;
mod recorded;
mod whole;
