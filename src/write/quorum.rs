//! The ledger of a replicated write: what each series' replicas answered, when a series is decided
//! and what the request as a whole is told.
//!
//! A series
//! - succeeds once its quorum of replicas stored it;
//! - is a conflict once so many replicas refused it for good that the quorum is out of reach;
//! - is to be retried once neither can happen any more, whatever the others answer, since a retry
//!   may find replicas that were out of order this time.
//!
//! The three exclude each other, so the order of the answers does not matter, and a series is
//! decided at the first answer that leaves one of them only. The request is told the worst of its
//! series, where "retry" is worse than "conflict": a sender drops a whole batch on a conflict, but
//! sends it again otherwise.
//!
//! Nothing here waits or sends; the caller records answers as they come and asks for the verdict.

/// The largest replication factor that a ledger can count.
pub const REPLICATION_FACTOR_MAX: usize = u8::MAX as usize;

/// What one replica made of the series that it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaOutcome {
    Stored,
    /// Refused for good; sending it again changes nothing.
    Conflict,
    /// This tenant cannot be written there now.
    NotReady,
    /// The peer takes no writes, cannot be reached or is in its back-off time.
    Unavailable,
    /// Any other failure to store: internal, a commit, a bad replica number.
    Failed,
    /// No answer within the deadline.
    TimedOut,
}

/// What a series, or a whole request, comes to. Ordered from best to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    Success,
    /// Refused for good.
    Conflict,
    /// To be retried: too many replicas were not ready.
    NotReady,
    /// To be retried: too many replicas did not store it for other reasons.
    Unavailable,
}

/// How many answers decide a series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteQuorum {
    /// Replicas that are asked.
    replicas: u8,
    /// Replicas that have to store a series.
    successes: u8,
    /// Conflicts after which no quorum can be had.
    conflicts: u8,
}

impl WriteQuorum {
    /// For a request that already is one replica: its one answer is the verdict.
    pub const REPLICATED: WriteQuorum = WriteQuorum { replicas: 1, successes: 1, conflicts: 1 };

    /// For a request that is not replicated yet. The factor is at least 1 and at most
    /// [`REPLICATION_FACTOR_MAX`], which is checked where flags are read.
    pub fn of(replication_factor: usize) -> WriteQuorum {
        assert!(
            (1..=REPLICATION_FACTOR_MAX).contains(&replication_factor),
            "replication factor {replication_factor} is out of range"
        );
        let replicas = replication_factor as u8;
        let successes = match replicas {
            // The majority of two would be both: one node down, and nothing could be written.
            1 | 2 => 1,
            _ => replicas / 2 + 1,
        };
        WriteQuorum { replicas, successes, conflicts: replicas - successes + 1 }
    }

    pub fn replicas(self) -> usize {
        usize::from(self.replicas)
    }

    /// Replicas that have to store a series.
    pub fn successes(self) -> usize {
        usize::from(self.successes)
    }

    /// Conflicts that decide a series, whatever the others answer.
    pub fn conflicts(self) -> usize {
        usize::from(self.conflicts)
    }
}

/// Answers so far for one series.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    stored: u8,
    conflicts: u8,
    not_ready: u8,
    /// Unavailable, failed or timed out.
    unavailable: u8,
}

impl Tally {
    fn answers(self) -> u8 {
        self.stored + self.conflicts + self.not_ready + self.unavailable
    }

    fn add(&mut self, outcome: ReplicaOutcome) {
        let count = match outcome {
            ReplicaOutcome::Stored => &mut self.stored,
            ReplicaOutcome::Conflict => &mut self.conflicts,
            ReplicaOutcome::NotReady => &mut self.not_ready,
            ReplicaOutcome::Unavailable | ReplicaOutcome::Failed | ReplicaOutcome::TimedOut => {
                &mut self.unavailable
            }
        };
        *count += 1;
    }

    /// The verdict, once it is fixed.
    fn verdict(self, quorum: WriteQuorum) -> Option<Verdict> {
        let missing = quorum.replicas - self.answers();
        if self.stored >= quorum.successes {
            Some(Verdict::Success)
        } else if self.conflicts >= quorum.conflicts {
            Some(Verdict::Conflict)
        } else if self.stored + missing >= quorum.successes
            || self.conflicts + missing >= quorum.conflicts
        {
            None
        } else {
            Some(self.retryable())
        }
    }

    fn retryable(self) -> Verdict {
        if self.not_ready > 0 && self.unavailable == 0 {
            Verdict::NotReady
        } else {
            Verdict::Unavailable
        }
    }
}

/// The answers for all series of one request.
#[derive(Debug)]
pub struct QuorumLedger {
    quorum: WriteQuorum,
    /// By position of the series in the request.
    tallies: Vec<Tally>,
    undecided: usize,
    /// The worst verdict of the series that are decided.
    worst: Verdict,
}

impl QuorumLedger {
    /// For a request of `series_count` series, each sent to all replicas of `quorum`.
    pub fn new(series_count: usize, quorum: WriteQuorum) -> QuorumLedger {
        QuorumLedger {
            quorum,
            tallies: vec![Tally::default(); series_count],
            undecided: series_count,
            worst: Verdict::Success,
        }
    }

    /// Notes what one replica made of these series, given by their positions in the request. Each
    /// replica of a series is recorded at most once; answers for decided series are let go.
    pub fn record(&mut self, series: impl IntoIterator<Item = u32>, outcome: ReplicaOutcome) {
        for series in series {
            let Some(tally) = self.tallies.get_mut(series as usize) else {
                debug_assert!(false, "series {series} is not in the request");
                continue;
            };
            if tally.verdict(self.quorum).is_some() {
                continue;
            }
            tally.add(outcome);
            if let Some(verdict) = tally.verdict(self.quorum) {
                self.undecided -= 1;
                self.worst = self.worst.max(verdict);
            }
        }
    }

    /// The verdict of one series, once it is fixed.
    #[cfg(test)]
    fn series_verdict(&self, series: u32) -> Option<Verdict> {
        self.tallies.get(series as usize)?.verdict(self.quorum)
    }

    /// The verdict over all series, once it is fixed: when each is decided, or one has come to the
    /// worst there is.
    pub fn verdict(&self) -> Option<Verdict> {
        let is_fixed = self.undecided == 0 || self.worst == Verdict::Unavailable;
        is_fixed.then_some(self.worst)
    }

    /// The verdict if no answer comes any more: what is undecided may succeed when sent again.
    pub fn verdict_at_deadline(&self) -> Verdict {
        self.verdict().unwrap_or(Verdict::Unavailable)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn recorded() -> Value {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/ring/quorum.json");
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    /// What a replica's recorded outcome is to the ledger.
    fn outcome(name: &str) -> ReplicaOutcome {
        match name {
            "ok" | "local_ok" => ReplicaOutcome::Stored,
            "conflict"
            | "local_duplicate"
            | "local_out_of_bounds"
            | "local_out_of_order"
            | "local_too_old"
            | "local_commit_out_of_order" => ReplicaOutcome::Conflict,
            "local_not_ready" | "local_storage_not_set" => ReplicaOutcome::NotReady,
            "unavailable" | "backing_off" => ReplicaOutcome::Unavailable,
            "silent" => ReplicaOutcome::TimedOut,
            "aborted"
            | "bad_replica"
            | "canceled"
            | "deadline"
            | "failed_precondition"
            | "internal"
            | "resource_exhausted"
            | "unimplemented"
            | "unknown"
            | "local_appender_error"
            | "local_commit_error"
            | "local_out_of_order_and_commit_error"
            | "local_tenant_error"
            | "local_unknown_append_error" => ReplicaOutcome::Failed,
            other => panic!("unknown outcome {other}"),
        }
    }

    fn http_and_grpc(verdict: Verdict) -> (u64, &'static str) {
        match verdict {
            Verdict::Success => (200, "OK"),
            Verdict::Conflict => (409, "AlreadyExists"),
            Verdict::NotReady | Verdict::Unavailable => (503, "Unavailable"),
        }
    }

    fn check(case: &Value, verdict: Verdict) {
        let (http, grpc) = http_and_grpc(verdict);
        let expected = |key: &str| match &case["ours"][key] {
            Value::Null => case[key].clone(),
            ours => ours.clone(),
        };
        let allows = |expected: Value, answer: Value| match expected.as_array() {
            Some(any) => any.contains(&answer),
            None => expected == answer,
        };
        assert!(allows(expected("http"), http.into()), "{verdict:?} for {case}");
        // Over gRPC a write that names its replica is stored here and never comes to a ledger.
        if case["wire_replica"].is_null() {
            assert!(allows(expected("grpc"), grpc.into()), "{verdict:?} for {case}");
        }
    }

    fn quorum_of(case: &Value) -> WriteQuorum {
        let is_replicated = case["wire_replica"].as_u64().unwrap_or(0) > 0;
        if is_replicated && case["mode"] != "RouterOnly" {
            WriteQuorum::REPLICATED
        } else {
            WriteQuorum::of(case["rf"].as_u64().unwrap() as usize)
        }
    }

    /// Calls `visit` with every order of `items` (Heap's algorithm).
    fn permute<T: Clone>(items: &mut [T], len: usize, visit: &mut impl FnMut(&[T])) {
        if len <= 1 {
            return visit(items);
        }
        for i in 0..len {
            permute(items, len - 1, visit);
            items.swap(if len.is_multiple_of(2) { i } else { 0 }, len - 1);
        }
    }

    #[test]
    fn thresholds_are_those_of_thanos() {
        for case in recorded()["thresholds"].as_array().unwrap() {
            let quorum = WriteQuorum::of(case["rf"].as_u64().unwrap() as usize);
            assert_eq!(quorum.successes() as u64, case["quorum"].as_u64().unwrap(), "{case}");
            let deciding = case["failures_that_decide"].as_u64().unwrap();
            assert_eq!(quorum.conflicts() as u64, deciding, "{case}");
        }
    }

    #[test]
    fn one_series_is_told_the_recorded_verdict_whatever_the_order_of_answers() {
        for case in recorded()["one_series"].as_array().unwrap() {
            let names = case["arrivals"].as_array().unwrap();
            let mut answers: Vec<_> = names.iter().map(|a| outcome(a.as_str().unwrap())).collect();
            let len = answers.len();
            permute(&mut answers, len, &mut |answers| {
                let mut ledger = QuorumLedger::new(1, quorum_of(case));
                for answer in answers {
                    ledger.record([0], *answer);
                }
                check(case, ledger.verdict().expect("all have answered"));
                // A silent replica never answers at all.
                let mut ledger = QuorumLedger::new(1, quorum_of(case));
                for answer in answers.iter().filter(|a| **a != ReplicaOutcome::TimedOut) {
                    ledger.record([0], *answer);
                }
                check(case, ledger.verdict_at_deadline());
            });
        }
    }

    #[test]
    fn requests_are_told_the_recorded_verdict_whatever_the_order_of_answers() {
        for case in recorded()["requests"].as_array().unwrap() {
            let series_count = case["series"].as_u64().unwrap() as usize;
            let answers = case["answers"].as_array().unwrap();
            // Each rotation, forwards and backwards: every answer comes first and last once.
            for start in 0..answers.len() {
                for backwards in [false, true] {
                    let mut order: Vec<_> =
                        answers[start..].iter().chain(&answers[..start]).collect();
                    if backwards {
                        order.reverse();
                    }
                    let mut ledger = QuorumLedger::new(series_count, quorum_of(case));
                    for answer in order {
                        let series = answer["series"].as_array().unwrap();
                        let series = series.iter().map(|i| i.as_u64().unwrap() as u32);
                        ledger.record(series, outcome(answer["outcome"].as_str().unwrap()));
                    }
                    check(case, ledger.verdict_at_deadline());
                }
            }
        }
    }

    #[test]
    fn a_slow_last_replica_holds_nobody() {
        use ReplicaOutcome::{Conflict, NotReady, Stored, Unavailable};
        let cases = [
            (3, vec![Stored, Stored], Verdict::Success),
            (3, vec![Conflict, Conflict], Verdict::Conflict),
            (3, vec![Unavailable, NotReady], Verdict::Unavailable),
            (3, vec![NotReady, NotReady], Verdict::NotReady),
            (2, vec![Stored], Verdict::Success),
            (5, vec![Unavailable, Stored, Unavailable, Unavailable], Verdict::Unavailable),
            (4, vec![Conflict, Stored, Conflict], Verdict::Conflict),
        ];
        for (factor, answers, expected) in cases {
            let mut ledger = QuorumLedger::new(1, WriteQuorum::of(factor));
            for (i, answer) in answers.iter().enumerate() {
                assert_eq!(ledger.verdict(), None, "{factor}: {answers:?} before answer {i}");
                ledger.record([0], *answer);
            }
            assert_eq!(ledger.verdict(), Some(expected), "{factor}: {answers:?}");
        }
    }

    #[test]
    fn retry_is_worse_than_conflict() {
        let mut ledger = QuorumLedger::new(3, WriteQuorum::of(1));
        ledger.record([0], ReplicaOutcome::Stored);
        ledger.record([1], ReplicaOutcome::NotReady);
        ledger.record([2], ReplicaOutcome::Conflict);
        assert_eq!(ledger.verdict(), Some(Verdict::NotReady));
        assert_eq!(ledger.series_verdict(2), Some(Verdict::Conflict));
    }

    #[test]
    fn a_request_without_series_succeeds() {
        assert_eq!(QuorumLedger::new(0, WriteQuorum::of(3)).verdict(), Some(Verdict::Success));
    }

    fn any_outcome() -> impl Strategy<Value = ReplicaOutcome> {
        prop::sample::select(vec![
            ReplicaOutcome::Stored,
            ReplicaOutcome::Conflict,
            ReplicaOutcome::NotReady,
            ReplicaOutcome::Unavailable,
            ReplicaOutcome::Failed,
            ReplicaOutcome::TimedOut,
        ])
    }

    proptest! {
        /// What is decided early is what counting all answers at the end would say.
        #[test]
        fn early_and_late_verdicts_agree(
            (factor, answers) in (1usize..=7).prop_flat_map(|factor| {
                (Just(factor), prop::collection::vec(any_outcome(), factor))
            })
        ) {
            let quorum = WriteQuorum::of(factor);
            let count = |wanted| answers.iter().filter(|answer| **answer == wanted).count();
            let expected = if count(ReplicaOutcome::Stored) >= quorum.successes() {
                (200, "OK")
            } else if count(ReplicaOutcome::Conflict) >= quorum.conflicts() {
                (409, "AlreadyExists")
            } else {
                (503, "Unavailable")
            };
            let mut ledger = QuorumLedger::new(1, quorum);
            let mut first = None;
            for answer in &answers {
                ledger.record([0], *answer);
                first = first.or(ledger.verdict());
            }
            prop_assert_eq!(first.map(http_and_grpc), Some(expected));
            prop_assert_eq!(first, ledger.verdict());
        }
    }
}
