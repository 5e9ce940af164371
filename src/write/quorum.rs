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
//! Series that have the same replicas are counted together, as a group. A group is taken apart when a
//! replica refuses some of its series and stores the others.
//!
//! Nothing here waits or sends; the caller records answers as they come and asks for the verdict.

use std::collections::HashMap;

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

/// A series by its group and its place among the group's series.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SeriesPosition {
    pub group: u32,
    pub member: u32,
}

/// The answers for all series of one request.
#[derive(Debug)]
pub struct QuorumLedger {
    quorum: WriteQuorum,
    /// By group.
    tallies: Vec<Tally>,
    /// The tallies of the series of groups that were taken apart. They count, the group's no more.
    parts: HashMap<u32, Box<[Tally]>>,
    /// Groups, and series of groups that were taken apart.
    undecided: usize,
    /// The worst verdict of the series that are decided.
    worst: Verdict,
}

impl QuorumLedger {
    /// For a request whose series are in `group_count` groups, each sent to all replicas of
    /// `quorum`.
    pub fn new(group_count: usize, quorum: WriteQuorum) -> QuorumLedger {
        QuorumLedger {
            quorum,
            tallies: vec![Tally::default(); group_count],
            parts: HashMap::new(),
            undecided: group_count,
            worst: Verdict::Success,
        }
    }

    /// Notes what one replica made of all series of these groups. Each replica of a series is
    /// recorded at most once; answers for decided series are let go.
    pub fn record(&mut self, groups: impl IntoIterator<Item = u32>, outcome: ReplicaOutcome) {
        for group in groups {
            self.record_group(group, outcome);
        }
    }

    /// Notes that one replica stored the series of these groups but for those that are `refused`,
    /// in order. `group_len` tells how many series a group has.
    pub fn record_partial(
        &mut self,
        groups: impl IntoIterator<Item = u32>,
        refused: &[SeriesPosition],
        group_len: impl Fn(u32) -> usize,
    ) {
        debug_assert!(refused.is_sorted(), "the refused are found by halving");
        for group in groups {
            let start = refused.partition_point(|series| series.group < group);
            let len = refused[start..].partition_point(|series| series.group == group);
            let of_group = &refused[start..start + len];
            let series_count = group_len(group);
            match len {
                0 => self.record_group(group, ReplicaOutcome::Stored),
                len if len == series_count => self.record_group(group, ReplicaOutcome::Conflict),
                _ => self.record_parts(group, series_count, of_group),
            }
        }
    }

    fn record_group(&mut self, group: u32, outcome: ReplicaOutcome) {
        if let Some(parts) = self.parts.get_mut(&group) {
            for tally in parts {
                note(tally, outcome, self.quorum, &mut self.undecided, &mut self.worst);
            }
            return;
        }
        let Some(tally) = self.tallies.get_mut(group as usize) else {
            debug_assert!(false, "group {group} is not in the request");
            return;
        };
        note(tally, outcome, self.quorum, &mut self.undecided, &mut self.worst);
    }

    fn record_parts(&mut self, group: u32, series_count: usize, refused: &[SeriesPosition]) {
        let Some(whole) = self.tallies.get(group as usize).copied() else {
            debug_assert!(false, "group {group} is not in the request");
            return;
        };
        let parts = self.parts.entry(group).or_insert_with(|| {
            if whole.verdict(self.quorum).is_none() {
                self.undecided += series_count.saturating_sub(1);
            }
            vec![whole; series_count].into()
        });
        let mut refused = refused.iter().map(|series| series.member as usize).peekable();
        for (member, tally) in parts.iter_mut().enumerate() {
            let outcome = match refused.next_if_eq(&member) {
                Some(_) => ReplicaOutcome::Conflict,
                None => ReplicaOutcome::Stored,
            };
            note(tally, outcome, self.quorum, &mut self.undecided, &mut self.worst);
        }
    }

    /// The verdict of one series, once it is fixed.
    pub fn series_verdict(&self, series: SeriesPosition) -> Option<Verdict> {
        let tally = match self.parts.get(&series.group) {
            Some(parts) => parts.get(series.member as usize),
            None => self.tallies.get(series.group as usize),
        };
        tally?.verdict(self.quorum)
    }

    /// Whether all series of the group have the same verdict, because it was never taken apart.
    pub fn is_whole(&self, group: u32) -> bool {
        !self.parts.contains_key(&group)
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

/// Counts an answer, unless the verdict is fixed already.
fn note(
    tally: &mut Tally,
    outcome: ReplicaOutcome,
    quorum: WriteQuorum,
    undecided: &mut usize,
    worst: &mut Verdict,
) {
    if tally.verdict(quorum).is_some() {
        return;
    }
    debug_assert!(tally.answers() < quorum.replicas, "a replica answered twice");
    tally.add(outcome);
    if let Some(verdict) = tally.verdict(quorum) {
        *undecided -= 1;
        *worst = (*worst).max(verdict);
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
        assert_eq!(
            ledger.series_verdict(SeriesPosition { group: 2, member: 0 }),
            Some(Verdict::Conflict)
        );
    }

    #[test]
    fn series_of_a_group_are_told_apart_once_a_replica_does() {
        // Two series with the same replicas: one refuses the first, another the second.
        let at = |member| SeriesPosition { group: 0, member };
        let mut ledger = QuorumLedger::new(1, WriteQuorum::of(3));
        ledger.record_partial([0], &[at(0)], |_| 2);
        assert!(!ledger.is_whole(0));
        ledger.record_partial([0], &[at(1)], |_| 2);
        assert_eq!(ledger.verdict(), None);
        ledger.record([0], ReplicaOutcome::Stored);
        assert_eq!(ledger.verdict(), Some(Verdict::Success));
        // Each has one copy, and the third node is down: the sender is to come again.
        let mut ledger = QuorumLedger::new(1, WriteQuorum::of(3));
        ledger.record([0], ReplicaOutcome::Unavailable);
        ledger.record_partial([0], &[at(0)], |_| 2);
        ledger.record_partial([0], &[at(1)], |_| 2);
        assert_eq!(ledger.verdict(), Some(Verdict::Unavailable));
        // Refused by all.
        let mut ledger = QuorumLedger::new(2, WriteQuorum::of(3));
        for _ in 0..3 {
            ledger.record_partial([0, 1], &[at(1)], |_| 2);
        }
        assert_eq!(ledger.verdict(), Some(Verdict::Conflict));
        assert_eq!(ledger.series_verdict(at(0)), Some(Verdict::Success));
        assert_eq!(ledger.series_verdict(at(1)), Some(Verdict::Conflict));
        assert!(ledger.is_whole(1));
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

        /// Groups taken apart say what a ledger of single series says.
        #[test]
        fn groups_and_single_series_agree(
            (factor, answers) in (1usize..=4).prop_flat_map(|factor| {
                let refused = prop::collection::btree_set((0u32..3, 0u32..4), 0..6);
                let answer = (any_outcome(), prop::option::of(refused));
                (Just(factor), prop::collection::vec(answer, factor))
            })
        ) {
            let quorum = WriteQuorum::of(factor);
            let (mut grouped, mut single) =
                (QuorumLedger::new(3, quorum), QuorumLedger::new(12, quorum));
            for (outcome, refused) in answers {
                let Some(refused) = refused else {
                    grouped.record(0..3, outcome);
                    single.record(0..12, outcome);
                    continue;
                };
                let at = |&(group, member)| SeriesPosition { group, member };
                grouped.record_partial(0..3, &refused.iter().map(at).collect::<Vec<_>>(), |_| 4);
                for series in 0..12 {
                    let outcome = match refused.contains(&(series / 4, series % 4)) {
                        true => ReplicaOutcome::Conflict,
                        false => ReplicaOutcome::Stored,
                    };
                    single.record([series], outcome);
                }
            }
            prop_assert_eq!(grouped.verdict(), single.verdict());
            for series in 0..12 {
                let at = SeriesPosition { group: series / 4, member: series % 4 };
                let alone = SeriesPosition { group: series, member: 0 };
                prop_assert_eq!(grouped.series_verdict(at), single.series_verdict(alone));
            }
        }
    }
}
