//! One request on its way out: each of its batches stored here, or gathered and sent to a peer.

use std::ops::Range;
use std::sync::Arc;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::time::{Instant, timeout_at};

use crate::model::tenant::TenantId;
use crate::peer::ForwardError;
use crate::peer::message::{Compression, Envelope, ForwardMessage, Protocol, TooLong};
use crate::write::Manners;
use crate::write::distribute::{DeflatedGroups, PlacedSeries};
use crate::write::error::{Class, Refusals, ReplicaFailure, WriteError};
use crate::write::fanout::answers::{Answer, Plan, Refused, Shortfall};
use crate::write::fanout::capnproto::InCapnProto;
use crate::write::fanout::{Forward, LocalStore};
use crate::write::heavy::off_thread;
use crate::write::quorum::ReplicaOutcome;

/// One request on its way out, shared by its batches.
pub(super) struct Call {
    pub(super) tenant: TenantId,
    pub(super) series: PlacedSeries,
    /// The same series, where messages can share their deflated bytes.
    pub(super) deflated: Option<DeflatedGroups>,
    /// What goes out over Cap'n Proto, if any does.
    pub(super) in_capnproto: InCapnProto,
    pub(super) plan: Arc<Plan>,
    pub(super) manners: Manners,
    /// The routers that the request has passed, this one included, as messages tell it.
    pub(super) path: Arc<str>,
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
        let groups = self.plan.groups(batches.clone());
        let stored = store.store(&self.tenant, &self.series, &groups, self.manners);
        match timeout_at(self.deadline, stored).await {
            Ok(Ok(outcome)) if outcome.refusals.is_empty() => Answer::stored(batches),
            Ok(Ok(outcome)) => {
                let places = outcome.refused_series;
                let refused = Refused { places, is_whole_request: false };
                Answer {
                    outcome: ReplicaOutcome::Conflict,
                    // Nothing is known of which they are.
                    refused: Some(refused).filter(|refused| !refused.places.is_empty()),
                    refusals: outcome.refusals,
                    shortfall: Some(Shortfall::Refused),
                    ..Answer::stored(batches)
                }
            }
            Ok(Err(error)) => {
                let outcome = outcome_of_local(&error);
                let shortfall = match outcome {
                    ReplicaOutcome::Conflict => Shortfall::Refused,
                    _ => Shortfall::NotReady,
                };
                let failure = ReplicaFailure::Here(Box::new(error));
                Answer::failed(batches, outcome, shortfall, failure)
            }
            Err(_) => {
                let (outcome, shortfall) = (ReplicaOutcome::TimedOut, Shortfall::TimedOut);
                Answer::failed(batches, outcome, shortfall, ReplicaFailure::SlowHere)
            }
        }
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
            return tell(Answer::of_failure(batches, error, false));
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
        let (bytes, of) = (self.series.request_bytes(), batches.clone());
        // The message is the peer's; the request's bytes are let go once it is made.
        let gathered = off_thread(bytes, move || self.gather(of, compression, is_merged)).await;
        let Gathered { message, is_whole_request } = match gathered {
            Ok(gathered) => gathered,
            Err(text) => {
                return Answer::not_made(batches, text);
            }
        };
        let timeout = deadline.saturating_duration_since(Instant::now());
        match forward.forward(address, &message, timeout).await {
            Ok(()) => Answer::stored(batches),
            Err(error) => Answer::of_failure(batches, error, is_whole_request),
        }
    }

    /// One message of these batches.
    fn gather(
        &self,
        batches: Range<usize>,
        compression: Compression,
        is_merged: bool,
    ) -> Result<Gathered, String> {
        let groups = self.plan.groups(batches.clone());
        let (tenant, replica) = (self.tenant.as_str(), self.replica_of(batches));
        let series_count = self.plan.shape.series_count(&groups);
        let envelope = Envelope { tenant, replica, is_merged, series_count };
        self.gather_protobuf(envelope, &groups, compression).map_err(|error| error.to_string())
    }

    /// As on the wire. The lowest of several: while a larger replication factor rolls out, nodes that
    /// have the smaller one take what they took before.
    pub(super) fn replica_of(&self, batches: Range<usize>) -> u64 {
        let batches = self.plan.batches.get(batches).unwrap_or_default();
        batches.iter().map(|batch| u64::from(batch.replica) + 1).min().unwrap_or(0)
    }

    fn gather_protobuf(
        &self,
        envelope: Envelope<'_>,
        groups: &[u32],
        compression: Compression,
    ) -> Result<Gathered, TooLong> {
        let mut is_whole_request = false;
        let message = if let Some(deflated) = &self.deflated {
            let (bytes, chunks) = (deflated.plain_bytes(groups), deflated.chunks(groups));
            ForwardMessage::gather_deflated(envelope, bytes, chunks)?
        } else if compression == Compression::None
            && let Some(series) = self.series.whole(groups)
        {
            is_whole_request = true;
            ForwardMessage::share(envelope, series)?
        } else {
            ForwardMessage::gather(envelope, self.series.fields(groups), compression)?
        };
        let message = message.through(self.path.clone());
        Ok(Gathered { message, is_whole_request })
    }
}

/// A message, and whether its series stand in the order of the request rather than group by group.
struct Gathered {
    message: ForwardMessage,
    is_whole_request: bool,
}

impl Answer {
    pub(super) fn stored(batches: Range<usize>) -> Answer {
        Answer {
            batches,
            outcome: ReplicaOutcome::Stored,
            refused: None,
            refusals: Refusals::default(),
            failure: None,
            shortfall: None,
            was_sent: true,
        }
    }

    pub(super) fn failed(
        batches: Range<usize>,
        outcome: ReplicaOutcome,
        shortfall: Shortfall,
        failure: ReplicaFailure,
    ) -> Answer {
        let (shortfall, failure) = (Some(shortfall), Some(failure));
        Answer { outcome, shortfall, failure, ..Answer::stored(batches) }
    }

    pub(super) fn of_failure(
        batches: Range<usize>,
        mut error: ForwardError,
        is_whole_request: bool,
    ) -> Answer {
        let was_sent = error.not_sent().is_none();
        let (outcome, shortfall) = outcome_of_peer(&error);
        let refused = match &mut error {
            ForwardError::Conflict { refused, .. } => refused.take(),
            _ => None,
        };
        let refused = refused.map(|places| Refused { places, is_whole_request });
        Answer { was_sent, refused, ..Answer::failed(batches, outcome, shortfall, error.into()) }
    }

    /// The message could not be made.
    pub(super) fn not_made(batches: Range<usize>, text: String) -> Answer {
        let (outcome, shortfall) = (ReplicaOutcome::Failed, Shortfall::Refused);
        Answer::failed(batches, outcome, shortfall, ReplicaFailure::NotMade(text))
    }
}

pub(super) fn outcome_of_local(error: &WriteError) -> ReplicaOutcome {
    match error.class() {
        Class::TenantNotReady => ReplicaOutcome::NotReady,
        Class::Unavailable => ReplicaOutcome::Unavailable,
        // No retry could store it.
        Class::Malformed | Class::TooLarge => ReplicaOutcome::Conflict,
        Class::Misnamed | Class::Misplaced => ReplicaOutcome::Failed,
    }
}

fn outcome_of_peer(error: &ForwardError) -> (ReplicaOutcome, Shortfall) {
    use ReplicaOutcome::{Conflict, Failed, TimedOut, Unavailable};
    match error {
        ForwardError::Conflict { .. } => (Conflict, Shortfall::Refused),
        ForwardError::Unavailable { .. } => (Unavailable, Shortfall::NotReady),
        ForwardError::Unreachable { .. } => (Unavailable, Shortfall::Unreachable),
        ForwardError::BackedOff { .. } => (Unavailable, Shortfall::BackedOff),
        ForwardError::Full { .. } => (Unavailable, Shortfall::Full),
        ForwardError::TimedOut { .. } => (TimedOut, Shortfall::TimedOut),
        ForwardError::TenantNotReady { .. } => (ReplicaOutcome::NotReady, Shortfall::NotReady),
        ForwardError::BadReplica { .. } | ForwardError::Failed { .. } => {
            (Failed, Shortfall::NotReady)
        }
    }
}
