//! Bytes to model and back. Generated types stop here.

pub mod proto;
pub mod reader;
