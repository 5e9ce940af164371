//! The one way from a door into the write path.

use std::future::Future;

use bytes::Bytes;

use crate::model::tenant::TenantId;
use crate::write::error::WriteError;
use crate::write::peer_writes::PeerOrigin;
use crate::write::{Manners, WriteOutcome};

/// Who sends a write, and what is known of it.
#[derive(Clone, Copy, Debug)]
pub enum Sender<'a> {
    /// A client, over HTTP: the bytes are an inflated `prometheus.WriteRequest`.
    Client(Manners),
    /// A node of the ring. The series are in field 1 of its message, see
    /// [`RequestFields::of_peer`](crate::wire::remote_write_v1::RequestFields::of_peer).
    Peer(&'a PeerOrigin),
}

impl Sender<'_> {
    /// Whose rules the request is judged by.
    pub fn manners(self) -> Manners {
        match self {
            Sender::Client(manners) => manners,
            Sender::Peer(_) => Manners::Thanos,
        }
    }
}

/// Where the series of a request go: into this node's storage, or to the nodes they belong to.
pub trait WriteSink: Send + Sync + 'static {
    /// Decodes and stores `request`. `replica` is as on the wire: counted from 1, 0 for series that
    /// nobody has placed yet. The future is dropped when the sender goes away; what it has stored by
    /// then stays stored.
    fn write(
        &self,
        tenant: &TenantId,
        request: Bytes,
        replica: u64,
        sender: Sender<'_>,
    ) -> impl Future<Output = Result<WriteOutcome, WriteError>> + Send;
}
