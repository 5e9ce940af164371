//! Head

pub mod series;
