//! One request on its way out: each of its batches stored here, or gathered and sent to a peer.

use std::sync::{Arc, OnceLock};

use tokio::time::{Instant, timeout_at};

use crate::model::tenant::TenantId;
use crate::peer::ForwardError;
use crate::peer::message::{Compression, ForwardMessage, Protocol, TenantBatch};
use crate::wire::capnproto::encode::SeriesTable;
use crate::wire::remote_write_v1::DecodeError;
use crate::write::Manners;
use crate::write::distribute::{Batch, DeflatedGroups, PlacedSeries};
use crate::write::error::{Refusals, WriteError};
use crate::write::fanout::{Forward, LocalStore};
use crate::write::quorum::ReplicaOutcome;

/// One request on its way out, shared by its batches.
pub(super) struct Call {
    pub(super) tenant: TenantId,
    pub(super) series: PlacedSeries,
    /// The same series, where messages can share their deflated bytes.
    pub(super) deflated: Option<DeflatedGroups>,
    /// The series taken apart, if any goes out over Cap'n Proto.
    pub(super) table: OnceLock<Result<SeriesTable, DecodeError>>,
    pub(super) batches: Arc<[Batch]>,
    pub(super) manners: Manners,
    pub(super) deadline: Instant,
    pub(super) is_replicated: bool,
}

impl Call {
    /// Stores a batch on this node.
    pub(super) async fn store<L: LocalStore>(self: Arc<Call>, batch: usize, store: &L) -> Answer {
        let groups = self.batches.get(batch).map_or(&[][..], |batch| &batch.groups);
        let stored = store.store(&self.tenant, &self.series, groups, self.manners);
        let (outcome, refusals, failure) = match timeout_at(self.deadline, stored).await {
            Ok(Ok(outcome)) if outcome.refusals.is_empty() => {
                (ReplicaOutcome::Stored, outcome.refusals, None)
            }
            Ok(Ok(outcome)) => (ReplicaOutcome::Conflict, outcome.refusals, None),
            Ok(Err(error)) => {
                let text = format!("this node: {error}");
                (outcome_of_local(&error), Refusals::default(), Some(text))
            }
            Err(_) => {
                let text = "this node did not store it in time".to_owned();
                (ReplicaOutcome::TimedOut, Refusals::default(), Some(text))
            }
        };
        Answer { batch, outcome, refusals, failure, was_sent: true }
    }

    /// Sends a batch to the peer at `address`.
    pub(super) async fn forward<F: Forward>(
        self: Arc<Call>,
        batch: usize,
        forward: &F,
        address: &str,
    ) -> Answer {
        let deadline = self.deadline;
        // Gathering is most of the work.
        if let Err(error) = forward.check(address, self.tenant.as_str()).await {
            return Answer::of_failure(batch, &error);
        }
        let message = self.gather(batch, forward.protocol());
        // The message is the peer's; the request's bytes are let go.
        drop(self);
        let message = match message {
            Ok(message) => message,
            Err(text) => return Answer::told(batch, ReplicaOutcome::Failed, Some(text)),
        };
        let timeout = deadline.saturating_duration_since(Instant::now());
        match forward.forward(address, &message, timeout).await {
            Ok(()) => Answer::told(batch, ReplicaOutcome::Stored, None),
            Err(error) => Answer::of_failure(batch, &error),
        }
    }

    pub(super) fn table(&self) -> &Result<SeriesTable, DecodeError> {
        self.table.get_or_init(|| SeriesTable::new(self.series.all_fields()))
    }

    fn gather(&self, batch: usize, protocol: Protocol) -> Result<ForwardMessage, String> {
        let Some(batch) = self.batches.get(batch) else {
            return Err("no such batch".to_owned());
        };
        match protocol {
            Protocol::Protobuf(compression) => self.gather_protobuf(batch, compression),
            Protocol::CapnProto => {
                let table = self.table().as_ref().map_err(ToString::to_string)?;
                let numbers: Vec<u32> = self.series.numbers(&batch.groups).collect();
                ForwardMessage::gather_capnproto(self.tenant.as_str(), table, &numbers)
                    .map_err(|error| error.to_string())
            }
        }
    }

    fn gather_protobuf(
        &self,
        batch: &Batch,
        compression: Compression,
    ) -> Result<ForwardMessage, String> {
        if let Some(deflated) = &self.deflated {
            return ForwardMessage::gather_deflated(
                u64::from(batch.replica) + 1,
                self.tenant.as_str(),
                deflated.plain_bytes(&batch.groups),
                deflated.chunks(&batch.groups),
            )
            .map_err(|error| error.to_string());
        }
        let series = self.series.fields(&batch.groups);
        let tenants = [TenantBatch { tenant: self.tenant.as_str(), series }];
        ForwardMessage::gather(u64::from(batch.replica) + 1, &tenants, compression)
            .map_err(|error| error.to_string())
    }
}

/// What became of one batch.
pub(super) struct Answer {
    /// Which one.
    pub(super) batch: usize,
    pub(super) outcome: ReplicaOutcome,
    /// What this node's storage refused.
    pub(super) refusals: Refusals,
    /// In words, if it is no success.
    pub(super) failure: Option<String>,
    /// False if the replica was not even asked.
    pub(super) was_sent: bool,
}

impl Answer {
    fn told(batch: usize, outcome: ReplicaOutcome, failure: Option<String>) -> Answer {
        Answer { batch, outcome, refusals: Refusals::default(), failure, was_sent: true }
    }

    fn of_failure(batch: usize, error: &ForwardError) -> Answer {
        let was_sent = error.not_sent().is_none();
        Answer { was_sent, ..Answer::told(batch, outcome_of_peer(error), Some(error.to_string())) }
    }
}

pub(super) fn outcome_of_local(error: &WriteError) -> ReplicaOutcome {
    match error {
        WriteError::TenantNotReady { .. } => ReplicaOutcome::NotReady,
        WriteError::Unavailable(_) => ReplicaOutcome::Unavailable,
        // No retry could store it.
        WriteError::Invalid { .. } | WriteError::TooLarge { .. } => ReplicaOutcome::Conflict,
        WriteError::TenantName(_)
        | WriteError::BadReplica { .. }
        | WriteError::NoHashring
        | WriteError::Placement(_)
        | WriteError::NoQuorum { .. } => ReplicaOutcome::Failed,
    }
}

fn outcome_of_peer(error: &ForwardError) -> ReplicaOutcome {
    match error {
        ForwardError::Conflict { .. } => ReplicaOutcome::Conflict,
        ForwardError::Unavailable { .. }
        | ForwardError::Unreachable { .. }
        | ForwardError::BackedOff { .. }
        | ForwardError::Full { .. } => ReplicaOutcome::Unavailable,
        ForwardError::TimedOut { .. } => ReplicaOutcome::TimedOut,
        ForwardError::BadReplica { .. } | ForwardError::Failed { .. } => ReplicaOutcome::Failed,
    }
}
