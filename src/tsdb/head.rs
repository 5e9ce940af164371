//! The head of one tenant.

pub mod postings;
pub mod series;
