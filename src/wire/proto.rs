//! Messages and services generated from `proto/`. They are used in `wire`, `store`, `grpc` and
//! `http::read`; other layers speak the model.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated"
)]

/// Thanos' StoreAPI.
pub mod thanos {
    tonic::include_proto!("thanos");

    /// Thanos' Info API.
    pub mod info {
        tonic::include_proto!("thanos.info");
    }
}

/// Prometheus' remote read.
pub mod prometheus {
    tonic::include_proto!("prometheus");
}
