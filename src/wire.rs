//! Bytes to model and back. Generated types stop here.

pub mod capnproto;
pub mod grpc;
pub mod http2;
pub mod peer_write;
pub mod proto;
pub mod refused;
pub mod remote_write_v1;
pub mod shape;
pub mod snappy;
