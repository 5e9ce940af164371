//! Bytes to model and back. Generated types stop here.

// Bytes from outside say how long they are; a cast would believe half of it.
#![cfg_attr(not(test), warn(clippy::cast_possible_truncation))]

pub mod capnproto;
pub mod exemplar;
pub mod grpc;
pub mod histogram;
pub mod hpack;
pub mod http2;
pub mod inflate;
pub mod otlp;
pub mod peer_write;
pub mod proto;
pub mod refused;
pub mod remote_write_v1;
pub mod remote_write_v2;
pub mod request_builder;
pub mod shape;
pub mod snappy;
