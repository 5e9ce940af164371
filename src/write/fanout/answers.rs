//! What the replicas of one request have answered so far, and what comes of it.
//!
//! The [`Ledger`] is told each answer once and makes the outcome; the request only waits for it, by
//! [`Answers`]. Answers go on coming when the client has had its own: they are counted to the last,
//! since a copy that falls short of an acknowledged series is told nowhere else.

use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::log::throttle::Throttle;
use crate::metrics::{CounterVec, Registry};
use crate::wire::refused::RefusedSeries;
use crate::write::distribute::{Batch, Shape};
use crate::write::error::{Refusals, ReplicaFailure, WriteError};
use crate::write::quorum::{QuorumLedger, ReplicaOutcome, SeriesPosition, Verdict};
use crate::write::{WriteOutcome, WrittenCounts};

/// Failures of replicas that an answer names.
const FAILURES_TOLD_MAX: usize = 4;

/// Where a request's series go, without their bytes.
pub(super) struct Plan {
    /// One per endpoint and replica, in order of endpoints.
    pub(super) batches: Box<[Batch]>,
    pub(super) shape: Arc<Shape>,
}

/// What became of some batches of an endpoint, which were one write.
pub(super) struct Answer {
    /// Which ones.
    pub(super) batches: Range<usize>,
    pub(super) outcome: ReplicaOutcome,
    /// Of a conflict, the series that were refused, while the others are stored. None where that is
    /// not known: then it is all of them.
    pub(super) refused: Option<Refused>,
    /// What this node's storage refused.
    pub(super) refusals: Refusals,
    /// If it is no success.
    pub(super) failure: Option<ReplicaFailure>,
    /// Why copies are missing, if they are.
    pub(super) shortfall: Option<Shortfall>,
    /// False if the replica was not even asked.
    pub(super) was_sent: bool,
}

/// Refused series by their places in the message.
pub(super) struct Refused {
    pub(super) places: RefusedSeries,
    /// The message had all of the request's series in their order; else group by group.
    pub(super) is_whole_request: bool,
}

/// Why a replica does not have what it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Shortfall {
    Refused,
    BackedOff,
    Full,
    TimedOut,
    Unreachable,
    NotReady,
}

impl Shortfall {
    fn as_str(self) -> &'static str {
        match self {
            Shortfall::Refused => "refused",
            Shortfall::BackedOff => "backed off",
            Shortfall::Full => "full",
            Shortfall::TimedOut => "timed out",
            Shortfall::Unreachable => "unreachable",
            Shortfall::NotReady => "not ready",
        }
    }
}

impl Plan {
    /// The groups of these batches, which are of one endpoint; rising.
    pub(super) fn groups(&self, batches: Range<usize>) -> std::borrow::Cow<'_, [u32]> {
        match self.batches.get(batches).unwrap_or_default() {
            [one] => (&one.groups).into(),
            several => {
                let mut groups: Vec<u32> =
                    several.iter().flat_map(|batch| &batch.groups).copied().collect();
                // A run for each replica; a request's order holds within all of them.
                groups.sort();
                // An endpoint that the ring has twice is several replicas of a series.
                groups.dedup();
                groups.into()
            }
        }
    }

    fn positions(&self, batches: Range<usize>, refused: &Refused) -> Vec<SeriesPosition> {
        let places = refused.places.iter().map(|(place, _)| place);
        match refused.is_whole_request {
            true => self.shape.positions_in_request(places),
            false => self.shape.positions(&self.groups(batches), places),
        }
    }
}

/// The answers to one request, for the tasks that bring them and the one that waits.
pub(super) struct Answers {
    ledger: Mutex<Ledger>,
    /// Told once the verdict is fixed.
    decided: Notify,
}

/// What the answers so far come to. Nothing here waits.
struct Ledger {
    plan: Arc<Plan>,
    copies: CopiesMissing,
    quorum: QuorumLedger,
    /// Batches whose answer is still to come.
    outstanding: usize,
    /// What the sender was told, or will be: whether it considers the request done.
    is_final: bool,
    failures: Vec<ReplicaFailure>,
    conflicts: Vec<ReplicaFailure>,
    refusals: Refusals,
    short: Vec<Short>,
}

/// Copies that are missing on one node if their series were acknowledged.
struct Short {
    worker: Arc<str>,
    reason: Shortfall,
    batches: Range<usize>,
    /// Of the series of these batches, those concerned; all of them if None.
    series: Option<Vec<SeriesPosition>>,
}

impl Answers {
    pub(super) fn new(plan: Arc<Plan>, quorum: QuorumLedger, copies: CopiesMissing) -> Answers {
        let ledger = Mutex::new(Ledger::new(plan, quorum, copies));
        Answers { ledger, decided: Notify::new() }
    }

    /// Takes note of what `worker` made of some batches.
    pub(super) fn record(&self, worker: &Arc<str>, answer: Answer) {
        let mut ledger = self.ledger.lock();
        ledger.record(worker, answer);
        if ledger.is_decided() {
            self.decided.notify_one();
        }
    }

    /// Waits until the verdict is fixed, and says what the sender is told. `held` is what the
    /// request held.
    pub(super) async fn outcome(
        &self,
        held: WriteOutcome,
        deadline: Instant,
    ) -> Result<WriteOutcome, WriteError> {
        while !self.ledger.lock().is_decided() {
            // Every task ends by the deadline, but one that hangs must not hold the client.
            if timeout_at(deadline, self.decided.notified()).await.is_err() {
                break;
            }
        }
        self.ledger.lock().take_outcome(held)
    }
}

impl Ledger {
    fn new(plan: Arc<Plan>, quorum: QuorumLedger, copies: CopiesMissing) -> Ledger {
        Ledger {
            outstanding: plan.batches.len(),
            plan,
            copies,
            quorum,
            is_final: false,
            failures: Vec::new(),
            conflicts: Vec::new(),
            refusals: Refusals::default(),
            short: Vec::new(),
        }
    }

    fn is_decided(&self) -> bool {
        self.quorum.verdict().is_some()
    }

    fn record(&mut self, worker: &Arc<str>, answer: Answer) {
        let Plan { batches, shape } = &*self.plan;
        let refused = answer.refused.as_ref();
        let refused = refused.map(|refused| self.plan.positions(answer.batches.clone(), refused));
        for batch in batches.get(answer.batches.clone()).unwrap_or_default() {
            let groups = batch.groups.iter().copied();
            match &refused {
                Some(refused) => {
                    self.quorum.record_partial(groups, refused, |group| shape.group_len(group));
                }
                None => self.quorum.record(groups, answer.outcome),
            }
        }
        if let Some(failure) = answer.failure {
            let told = match answer.outcome {
                ReplicaOutcome::Conflict => &mut self.conflicts,
                _ => &mut self.failures,
            };
            note(told, failure);
        }
        self.refusals.merge(answer.refusals);
        self.outstanding = self.outstanding.saturating_sub(answer.batches.len());
        if let Some(reason) = answer.shortfall {
            let (worker, batches) = (worker.clone(), answer.batches);
            self.short.push(Short { worker, reason, batches, series: refused });
        }
        if self.outstanding == 0 {
            self.count_missing();
        }
    }

    /// What the sender is told by now, once.
    fn take_outcome(&mut self, mut held: WriteOutcome) -> Result<WriteOutcome, WriteError> {
        match self.quorum.verdict_at_deadline() {
            Verdict::Success => {
                self.acknowledge();
                Ok(held)
            }
            Verdict::Conflict => {
                let refusals = std::mem::take(&mut self.refusals);
                held.samples_stored = held.samples_stored.saturating_sub(refusals.total());
                held.written = self.written();
                held.refusals.merge(refusals);
                let said = self.conflicts.drain(..);
                said.for_each(|said| held.refusals.add_replica(said.to_string()));
                self.acknowledge();
                Ok(held)
            }
            Verdict::NotReady | Verdict::Unavailable => {
                let mut failures = std::mem::take(&mut self.failures);
                if !self.is_decided() {
                    failures.push(ReplicaFailure::Silent);
                }
                let samples = held.samples_stored + held.refusals.total();
                let written = self.written();
                Err(WriteError::NoQuorum { failures, series: held.series, samples, written })
            }
        }
    }

    /// What the series hold of which a quorum has answered that it is stored.
    fn written(&self) -> WrittenCounts {
        let mut written = WrittenCounts::default();
        for group in 0..self.plan.shape.group_count() as u32 {
            written += self.stored_in(group);
        }
        written
    }

    /// The same of one group.
    fn stored_in(&self, group: u32) -> WrittenCounts {
        let shape = &self.plan.shape;
        let mut stored = WrittenCounts::default();
        if self.quorum.is_whole(group) {
            if self.is_stored(SeriesPosition { group, member: 0 }) {
                stored = shape.held_in(group);
            }
            return stored;
        }
        for member in 0..shape.group_len(group) as u32 {
            let position = SeriesPosition { group, member };
            if self.is_stored(position) {
                stored += shape.held_at(position);
            }
        }
        stored
    }

    fn is_stored(&self, series: SeriesPosition) -> bool {
        self.quorum.series_verdict(series) == Some(Verdict::Success)
    }

    /// The sender does not come again: what falls short now stays so.
    fn acknowledge(&mut self) {
        self.is_final = true;
        if self.outstanding == 0 {
            self.count_missing();
        }
    }

    /// Counts copies that are missing of series that were acknowledged, once all answers are there.
    fn count_missing(&mut self) {
        if !self.is_final {
            return;
        }
        let short = std::mem::take(&mut self.short);
        let shape = &self.plan.shape;
        for Short { worker, reason, batches, series } in short {
            let mut missing = WrittenCounts::default();
            match series {
                Some(series) => {
                    let stored = series.into_iter().filter(|position| self.is_stored(*position));
                    stored.for_each(|position| missing += shape.held_at(position));
                }
                None => {
                    let batches = self.plan.batches.get(batches).unwrap_or_default();
                    let groups = batches.iter().flat_map(|batch| &batch.groups);
                    groups.for_each(|group| missing += self.stored_in(*group));
                }
            }
            self.copies.count(&worker, reason, missing.samples + missing.histograms);
        }
    }
}

/// Keeps a failure to be told, unless there are enough. A node tells the same of each of its
/// replicas.
fn note(told: &mut Vec<ReplicaFailure>, failure: ReplicaFailure) {
    if told.len() >= FAILURES_TOLD_MAX {
        return;
    }
    let text = failure.to_string();
    if told.iter().all(|other| other.to_string() != text) {
        told.push(failure);
    }
}

/// `ringest_copies_missing_samples_total`, and a line now and then.
#[derive(Clone)]
pub(super) struct CopiesMissing(Arc<CopiesMissingInner>);

struct CopiesMissingInner {
    samples: CounterVec,
    told: Throttle<(Arc<str>, Shortfall)>,
}

impl CopiesMissing {
    pub(super) fn new(registry: &Registry) -> CopiesMissing {
        let samples = registry.counter_vec(
            "ringest_copies_missing_samples_total",
            "Samples that were acknowledged and of which this node does not have its copy: exact for \
             nodes that tell which series they refused, else at most so many.",
            &["worker", "reason"],
        );
        CopiesMissing(Arc::new(CopiesMissingInner { samples, told: Throttle::default() }))
    }

    fn count(&self, worker: &Arc<str>, reason: Shortfall, samples: u64) {
        if samples == 0 {
            return;
        }
        self.0.samples.with(&[worker, reason.as_str()]).add(samples);
        if let Some(suppressed) = self.0.told.pass((worker.clone(), reason)) {
            tracing::warn!(
                component = "receive-handler",
                worker = %worker,
                reason = reason.as_str(),
                samples,
                suppressed,
                "a node is short of copies of acknowledged samples"
            );
        }
    }
}
