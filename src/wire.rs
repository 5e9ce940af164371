//! Bytes to model and back. Generated types stop here.

pub mod reader;
pub mod snappy;
