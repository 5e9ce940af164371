//! Settings that live in files of their own.

pub mod hashrings;
