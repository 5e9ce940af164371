//! Cap'n Proto replication: the messages of Thanos' schema, `proto/write_request.capnp`, and as
//! much of Cap'n Proto's RPC protocol as one call needs.
//!
//! ```text
//! stream   packed words, no framing of its own
//! message  segment table, then segments; the first begins with the root pointer
//! root     rpc.capnp's Message: bootstrap, call, return, finish, ...
//! call     params: WriteRequest { symbols, timeSeries, tenant }, or data: [tenant's series]
//! series   labels as pairs of symbol numbers, samples, histograms, exemplars
//! ```
//!
//! Messages are read with the capnp crate, which checks every pointer. Those with series in them are
//! written by hand, word by word: they are the router's work.

#![cfg_attr(
    not(test),
    expect(
        clippy::cast_possible_truncation,
        reason = "words are taken apart; lengths are below those of messages, which `encode` caps"
    )
)]

pub mod decode;
pub mod encode;
pub mod frame;
mod histogram;
pub mod packed;
pub mod rpc;

/// Generated from `proto/write_request.capnp`, which says how.
#[rustfmt::skip]
#[allow(
    missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::pedantic,
    clippy::allow_attributes_without_reason, clippy::unwrap_used, reason = "generated"
)]
pub mod write_request_capnp;
