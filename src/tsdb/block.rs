//! A block: the samples of a span of time that do not change any more, in a directory of its own.
//!
//! ```text
//! <ULID>/meta.json        what it holds and was made from
//!        index            series, and what finds them
//!        chunks/000001    chunks one after another, in segments
//!        tombstones       what was deleted of it since
//! ```
//!
//! One that is being made is `<ULID>.tmp-for-creation` until it is whole and on the medium, one that is
//! being deleted `<ULID>.tmp-for-deletion`; neither is read.

pub mod chunks;
pub mod meta;
pub mod tombstones;
pub mod ulid;
pub mod writer;

#[cfg(test)]
pub(crate) mod tests;
