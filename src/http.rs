//! HTTP endpoints.

pub mod read;
