//! One request on its way out: each of its batches stored here, or gathered and sent to a peer.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::time::{Instant, timeout_at};

use crate::model::tenant::TenantId;
use crate::peer::ForwardError;
use crate::peer::message::{Compression, Envelope, ForwardMessage, Protocol, TooLong};
use crate::write::Manners;
use crate::write::distribute::{Batch, DeflatedGroups, PlacedSeries};
use crate::write::error::{Refusals, WriteError};
use crate::write::fanout::capnproto::InCapnProto;
use crate::write::fanout::{Forward, LocalStore};
use crate::write::quorum::ReplicaOutcome;

/// One request on its way out, shared by its batches.
pub(super) struct Call {
    pub(super) tenant: TenantId,
    pub(super) series: PlacedSeries,
    /// The same series, where messages can share their deflated bytes.
    pub(super) deflated: Option<DeflatedGroups>,
    /// What goes out over Cap'n Proto, if any does.
    pub(super) in_capnproto: InCapnProto,
    pub(super) batches: Arc<[Batch]>,
    pub(super) manners: Manners,
    pub(super) deadline: Instant,
    pub(super) is_replicated: bool,
}

impl Call {
    /// Stores these batches on this node, which asks nobody which replica a series is.
    pub(super) async fn store<L: LocalStore>(
        self: Arc<Call>,
        batches: Range<usize>,
        store: &L,
    ) -> Answer {
        let groups = self.groups(batches.clone());
        let stored = store.store(&self.tenant, &self.series, &groups, self.manners);
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
        Answer { batches, outcome, refusals, failure, was_sent: true }
    }

    /// Sends these batches to the peer at `address`, in one message if it takes them so, and tells
    /// each answer as it comes.
    pub(super) async fn forward<F: Forward>(
        self: Arc<Call>,
        batches: Range<usize>,
        forward: &F,
        address: &str,
        mut tell: impl FnMut(Answer),
    ) {
        // Gathering is most of the work.
        if let Err(error) = forward.check(address, self.tenant.as_str()).await {
            return tell(Answer::of_failure(batches, &error));
        }
        let is_merged = forward.takes_merged(address);
        let batches_each = if is_merged { batches.len().max(1) } else { 1 };
        let mut calls: FuturesUnordered<_> = batches
            .step_by(batches_each)
            .map(|start| {
                self.clone().send(start..start + batches_each, is_merged, forward, address)
            })
            .collect();
        // Each holds the request until its message is made.
        drop(self);
        while let Some(answer) = calls.next().await {
            tell(answer);
        }
    }

    /// Sends these batches in one message.
    async fn send<F: Forward>(
        self: Arc<Call>,
        batches: Range<usize>,
        is_merged: bool,
        forward: &F,
        address: &str,
    ) -> Answer {
        let compression = match forward.protocol() {
            Protocol::Protobuf(compression) => compression,
            Protocol::CapnProto => {
                return self.send_in_capnproto(batches, forward, address).await;
            }
        };
        let deadline = self.deadline;
        let message = self.gather(batches.clone(), compression, is_merged);
        // The message is the peer's; the request's bytes are let go.
        drop(self);
        let message = match message {
            Ok(message) => message,
            Err(text) => return Answer::told(batches, ReplicaOutcome::Failed, Some(text)),
        };
        let timeout = deadline.saturating_duration_since(Instant::now());
        match forward.forward(address, &message, timeout).await {
            Ok(()) => Answer::told(batches, ReplicaOutcome::Stored, None),
            Err(error) => Answer::of_failure(batches, &error),
        }
    }

    /// The groups of these batches, which are of one endpoint.
    pub(super) fn groups(&self, batches: Range<usize>) -> Cow<'_, [u32]> {
        match self.batches.get(batches).unwrap_or_default() {
            [one] => Cow::Borrowed(&one.groups),
            several => {
                let mut groups: Vec<u32> =
                    several.iter().flat_map(|batch| &batch.groups).copied().collect();
                // A run for each replica; a request's order holds within all of them.
                groups.sort();
                // An endpoint that the ring has twice is several replicas of a series.
                groups.dedup();
                Cow::Owned(groups)
            }
        }
    }

    /// One message of these batches.
    fn gather(
        &self,
        batches: Range<usize>,
        compression: Compression,
        is_merged: bool,
    ) -> Result<ForwardMessage, String> {
        let groups = self.groups(batches.clone());
        let (tenant, replica) = (self.tenant.as_str(), self.replica_of(batches));
        let envelope = Envelope { tenant, replica, is_merged };
        self.gather_protobuf(envelope, &groups, compression).map_err(|error| error.to_string())
    }

    /// As on the wire. The lowest of several: while a larger replication factor rolls out, nodes that
    /// have the smaller one take what they took before.
    pub(super) fn replica_of(&self, batches: Range<usize>) -> u64 {
        let batches = self.batches.get(batches).unwrap_or_default();
        batches.iter().map(|batch| u64::from(batch.replica) + 1).min().unwrap_or(0)
    }

    fn gather_protobuf(
        &self,
        envelope: Envelope<'_>,
        groups: &[u32],
        compression: Compression,
    ) -> Result<ForwardMessage, TooLong> {
        if let Some(deflated) = &self.deflated {
            let (bytes, chunks) = (deflated.plain_bytes(groups), deflated.chunks(groups));
            return ForwardMessage::gather_deflated(envelope, bytes, chunks);
        }
        if envelope.is_merged
            && compression == Compression::None
            && let Some(series) = self.series.whole(groups)
        {
            return ForwardMessage::share(envelope.tenant, envelope.replica, series);
        }
        ForwardMessage::gather(envelope, self.series.fields(groups), compression)
    }
}

/// What became of some batches, which were one write.
pub(super) struct Answer {
    /// Which ones.
    pub(super) batches: Range<usize>,
    pub(super) outcome: ReplicaOutcome,
    /// What this node's storage refused.
    pub(super) refusals: Refusals,
    /// In words, if it is no success.
    pub(super) failure: Option<String>,
    /// False if the replica was not even asked.
    pub(super) was_sent: bool,
}

impl Answer {
    pub(super) fn told(
        batches: Range<usize>,
        outcome: ReplicaOutcome,
        failure: Option<String>,
    ) -> Answer {
        Answer { batches, outcome, refusals: Refusals::default(), failure, was_sent: true }
    }

    pub(super) fn of_failure(batches: Range<usize>, error: &ForwardError) -> Answer {
        let was_sent = error.not_sent().is_none();
        let told = Answer::told(batches, outcome_of_peer(error), Some(error.to_string()));
        Answer { was_sent, ..told }
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
