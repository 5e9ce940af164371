//! Writes that arrive from peers: decoded, the replica number checked, each tenant's series stored.
//!
//! A peer's write has been through relabelling, the gate and the request limits where it entered
//! the ring, so none of these apply here.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::time::Instant;

use crate::metrics::{Counter, Registry};
use crate::model::router_path::RouterPath;
use crate::model::tenant::{TenantId, TenantNameError};
use crate::wire::peer_write::{MergedWriteRequest, PeerWriteRequest, TenantPart};
use crate::wire::refused::RefusedSeries;
use crate::wire::remote_write_v1::DecodeError;
use crate::write::WriteOutcome;
use crate::write::error::{Class, Refusals, WriteError};
use crate::write::heavy::in_place;
use crate::write::sink::{Sender, WriteSink};

/// Tenants of one request that are written at the same time.
const TENANTS_AT_ONCE: usize = 16;

/// How a peer's write came here.
#[derive(Clone, Debug, Default)]
pub struct PeerOrigin {
    /// Routers of ours that it has passed.
    pub path: RouterPath,
    /// When its caller gives it up, if that was told.
    pub deadline: Option<Instant>,
    /// The caller is of our own software.
    pub is_of_ours: bool,
}

/// Why a peer's write was not stored, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum PeerWriteError {
    /// The bytes are no request.
    #[error("{0}")]
    Malformed(#[from] DecodeError),
    /// Fields that we do not know and no series: most likely the form of a newer release.
    #[error("no series could be read, but field {field}, which this release does not know")]
    NotUnderstood { field: u32 },
    /// Most likely the replication factors of the two nodes differ, while a change rolls out.
    #[error("replica {replica} is above the replication factor of {factor}")]
    BadReplica { replica: u64, factor: u64 },
    #[error("tenant: {0}")]
    TenantName(#[from] TenantNameError),
    #[error("{0}")]
    Write(#[from] WriteError),
    /// Some series or samples were refused for good; the others are stored.
    #[error("tenant {tenant}: {refusals}")]
    Refused { tenant: TenantId, refusals: Box<Refusals>, series: RefusedSeries },
}

impl PeerWriteError {
    /// An error if anything was refused.
    pub fn of_refusals(tenant: TenantId, outcome: WriteOutcome) -> Result<(), PeerWriteError> {
        if outcome.refusals.is_empty() {
            return Ok(());
        }
        let WriteOutcome { refusals, refused_series: series, .. } = outcome;
        Err(PeerWriteError::Refused { tenant, refusals: Box::new(refusals), series })
    }
}

/// Counts writes of peers that were refused, since nothing in them can be read.
pub fn not_understood(registry: &Registry) -> Counter {
    registry.counter(
        "ringest_peer_writes_not_understood_total",
        "Writes of peers that were refused, since they had no series that this release can read, but \
         fields that it does not know.",
    )
}

/// Takes the requests of peers apart.
pub struct PeerWrites<S> {
    sink: Arc<S>,
    /// `None` where the replica number is not looked at: on a node that only ingests and on one
    /// that only routes.
    replication_factor: Option<u64>,
}

/// What was seen of a tenant's part, whatever became of it.
#[derive(Default)]
struct Seen {
    has_series: bool,
    /// The first field that we do not know.
    unknown: Option<u32>,
}

impl<S: WriteSink> PeerWrites<S> {
    pub fn new(sink: Arc<S>, replication_factor: Option<u64>) -> PeerWrites<S> {
        PeerWrites { sink, replication_factor }
    }

    /// Stores a `thanos.WriteRequest`. Everything that can be stored is; of several failures the
    /// worst is told.
    pub async fn write(&self, message: Bytes, origin: &PeerOrigin) -> Result<(), PeerWriteError> {
        let request = in_place(message.len(), || PeerWriteRequest::parse(&message)).await?;
        // A negative number is as good as a huge one.
        let replica = request.replica as u64;
        self.check_replica(replica)?;
        // Side by side, or one that waits takes the time of the others.
        let mut tenants = request.tenants().fuse();
        let mut writes = FuturesUnordered::new();
        let mut worst = None;
        let (mut has_series, mut unknown) = (false, request.unknown);
        loop {
            while writes.len() < TENANTS_AT_ONCE
                && let Some(part) = tenants.next()
            {
                writes.push(self.write_part(&message, part, replica, origin));
            }
            let Some((seen, written)) = writes.next().await else { break };
            has_series |= seen.has_series;
            unknown = unknown.or(seen.unknown);
            worst = worst.into_iter().chain(written.err()).max_by_key(rank);
        }
        match (worst, unknown) {
            (Some(worst), _) => Err(worst),
            (None, Some(field)) if !has_series => Err(PeerWriteError::NotUnderstood { field }),
            (None, _) => Ok(()),
        }
    }

    /// Stores a merged request, see [`MergedWriteRequest`].
    pub async fn write_merged(
        &self,
        message: Bytes,
        origin: &PeerOrigin,
    ) -> Result<(), PeerWriteError> {
        let request = MergedWriteRequest::parse(&message)?;
        let MergedWriteRequest { replica, tenant, series } = request;
        self.check_replica(replica)?;
        if let Some(field) = request.unread()? {
            return Err(PeerWriteError::NotUnderstood { field });
        }
        if series.is_empty() {
            return Ok(());
        }
        self.store(tenant, message.slice_ref(series), replica, origin).await
    }

    fn check_replica(&self, replica: u64) -> Result<(), PeerWriteError> {
        match self.replication_factor.filter(|factor| replica > *factor) {
            Some(factor) => Err(PeerWriteError::BadReplica { replica, factor }),
            None => Ok(()),
        }
    }

    async fn write_part(
        &self,
        message: &Bytes,
        part: Result<TenantPart<'_>, DecodeError>,
        replica: u64,
        origin: &PeerOrigin,
    ) -> (Seen, Result<(), PeerWriteError>) {
        let read = match part {
            Ok(part) => in_place(part.message.len(), || part.read()).await,
            Err(error) => Err(error),
        };
        let series = match read {
            Ok(series) => series,
            Err(error) => return (Seen::default(), Err(error.into())),
        };
        let seen = Seen { has_series: series.has_series, unknown: series.unknown };
        if !series.has_series {
            return (seen, Ok(()));
        }
        let stored = self.store(series.tenant, message.slice_ref(series.message), replica, origin);
        (seen, stored.await)
    }

    async fn store(
        &self,
        tenant: &[u8],
        series: Bytes,
        replica: u64,
        origin: &PeerOrigin,
    ) -> Result<(), PeerWriteError> {
        let tenant = TenantId::parse(tenant)?;
        let outcome = self.sink.write(&tenant, series, replica, Sender::Peer(origin)).await?;
        PeerWriteError::of_refusals(tenant, outcome)
    }
}

/// Which of two failures is told. What a retry may cure goes before what it cannot, since a peer
/// that hears of a final refusal does not send the request again.
pub(crate) fn rank(error: &PeerWriteError) -> u8 {
    match error {
        PeerWriteError::Refused { .. } => 0,
        PeerWriteError::TenantName(_)
        | PeerWriteError::BadReplica { .. }
        | PeerWriteError::Malformed(_)
        | PeerWriteError::NotUnderstood { .. } => 1,
        PeerWriteError::Write(error) => match error.class() {
            Class::TooLarge => 0,
            Class::Malformed | Class::Misnamed => 1,
            Class::TenantNotReady | Class::Misplaced => 2,
            Class::Unavailable => 3,
        },
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;
    use crate::multi_tsdb::TenantError;
    use crate::write::error::{Reason, Unavailable};

    /// Answers by the tenant's name, and keeps what it was given.
    #[derive(Default)]
    struct Sink(Mutex<Vec<(String, Vec<u8>, u64)>>);

    impl WriteSink for Sink {
        async fn write(
            &self,
            tenant: &TenantId,
            message: Bytes,
            replica: u64,
            _sender: Sender<'_>,
        ) -> Result<WriteOutcome, WriteError> {
            self.0.lock().push((tenant.to_string(), message.to_vec(), replica));
            let mut outcome = WriteOutcome::default();
            match tenant.as_str() {
                "conflict" => outcome.refusals.add(Reason::OutOfOrder, 1, String::new),
                "opening" => {
                    let (tenant, cause) = (tenant.clone(), TenantError::Opening.into());
                    return Err(WriteError::TenantNotReady { tenant, cause });
                }
                "down" => return Err(Unavailable::NotAccepting.into()),
                _ => {}
            }
            Ok(outcome)
        }
    }

    fn tuples(tenants: &[&str]) -> Vec<u8> {
        let tuple = |tenant: &&str| {
            let len = tenant.len() as u8;
            [&[0x22, len + 5, 0x0a, 1, b's', 0x12, len], tenant.as_bytes()].concat()
        };
        tenants.iter().flat_map(tuple).collect()
    }

    async fn write(tenants: &[&str]) -> (Result<(), u8>, usize) {
        let sink = Arc::new(Sink::default());
        let writes = PeerWrites::new(sink.clone(), None);
        let result = writes.write(tuples(tenants).into(), &PeerOrigin::default()).await;
        let written = sink.0.lock().len();
        (result.map_err(|error| rank(&error)), written)
    }

    #[tokio::test]
    async fn every_tenant_is_written_and_the_worst_failure_told() {
        assert_eq!(write(&["a", "b"]).await, (Ok(()), 2));
        assert_eq!(write(&["conflict", "b"]).await, (Err(0), 2));
        for order in [["conflict", "down", "opening"], ["down", "opening", "conflict"]] {
            assert_eq!(write(&order).await, (Err(3), 3), "{order:?}");
        }
        assert_eq!(write(&["opening", "..", "conflict"]).await, (Err(2), 2));
        assert_eq!(write(&["conflict", "..", "a"]).await, (Err(1), 2));
    }

    #[tokio::test]
    async fn a_replica_number_is_judged_where_there_is_a_ring() {
        let request = |replica: u8| [&[0x18, replica][..], &tuples(&["a"])].concat();
        let sink = Arc::new(Sink::default());
        let with_ring = PeerWrites::new(sink.clone(), Some(3));
        with_ring.write(request(3).into(), &PeerOrigin::default()).await.unwrap();
        with_ring.write(request(0).into(), &PeerOrigin::default()).await.unwrap();
        let refused = with_ring.write(request(4).into(), &PeerOrigin::default()).await;
        let expected = PeerWriteError::BadReplica { replica: 4, factor: 3 };
        assert_eq!(refused.unwrap_err().to_string(), expected.to_string());
        PeerWrites::new(sink.clone(), None)
            .write(request(4).into(), &PeerOrigin::default())
            .await
            .unwrap();
        let replicas: Vec<_> = sink.0.lock().iter().map(|written| written.2).collect();
        assert_eq!(replicas, [3, 0, 4]);
    }

    #[tokio::test]
    async fn merged_series_are_stored_under_their_tenant() {
        let sink = Arc::new(Sink::default());
        let writes = PeerWrites::new(sink.clone(), Some(3));
        let message = |replica: u8, tenant: &str, series: &[u8]| {
            let name = [&[0x12, tenant.len() as u8], tenant.as_bytes()].concat();
            Bytes::from([&[0x18, replica], &name[..], series].concat())
        };
        writes
            .write_merged(message(3, "a", b"\x0a\x01s\x0a\x01t"), &PeerOrigin::default())
            .await
            .unwrap();
        writes.write_merged(message(3, "..", b""), &PeerOrigin::default()).await.unwrap();
        let stored = [("a".to_owned(), b"\x0a\x01s\x0a\x01t".to_vec(), 3)];
        assert_eq!(*sink.0.lock(), stored);
        let refused = writes
            .write_merged(message(4, "a", b"\x0a\x01s"), &PeerOrigin::default())
            .await
            .unwrap_err();
        assert!(matches!(refused, PeerWriteError::BadReplica { replica: 4, factor: 3 }));
        for (tenant, expected) in [("..", 1), ("conflict", 0), ("down", 3)] {
            let refused =
                writes.write_merged(message(1, tenant, b"\x0a\x01s"), &PeerOrigin::default()).await;
            assert_eq!(rank(&refused.unwrap_err()), expected, "{tenant}");
        }
    }

    #[tokio::test]
    async fn what_may_be_a_newer_form_is_not_answered_as_stored() {
        let sink = Arc::new(Sink::default());
        let writes = PeerWrites::new(sink.clone(), None);
        for (newer, number) in [
            (&b"\x18\x01\x2a\x05\x0a\x01s\x12\x00"[..], 5),
            (b"\x12\x01a\x32\x01x", 6),
            (b"\x22\x06\x12\x01a\x1a\x01x", 3),
        ] {
            let refused =
                writes.write(Bytes::from_static(newer), &PeerOrigin::default()).await.unwrap_err();
            assert!(
                matches!(refused, PeerWriteError::NotUnderstood { field } if field == number),
                "{refused}"
            );
        }
        let merged = Bytes::from_static(b"\x18\x01\x12\x01a\x2a\x01x");
        let refused = writes.write_merged(merged, &PeerOrigin::default()).await.unwrap_err();
        assert!(matches!(refused, PeerWriteError::NotUnderstood { field: 5 }), "{refused}");
        assert!(sink.0.lock().is_empty());
        // Beside series they are skipped.
        writes
            .write(Bytes::from_static(b"\x12\x01a\x0a\x01s\x2a\x01x"), &PeerOrigin::default())
            .await
            .unwrap();
        assert_eq!(sink.0.lock().len(), 1);
    }

    #[tokio::test]
    async fn nothing_is_asked_of_a_tenant_without_series() {
        let sink = Arc::new(Sink::default());
        let writes = PeerWrites::new(sink.clone(), None);
        for request in [&b""[..], b"\x12\x02..", b"\x22\x04\x12\x02.."] {
            writes.write(Bytes::from_static(request), &PeerOrigin::default()).await.unwrap();
        }
        assert!(sink.0.lock().is_empty());
    }
}
