//! Many small worlds against the rule itself.

use super::*;

/// How one simulated write must end, and when.
fn expected(
    ring: &Ring,
    behaviours: &[Behaviour],
    factor: u8,
    series_count: usize,
) -> (Verdict, Duration) {
    let index = |replica: String| (0..behaviours.len()).find(|i| address(*i) == replica).unwrap();
    let series: Vec<Vec<usize>> =
        (0..series_count).map(|i| ring.replicas_of(i).into_iter().map(index).collect()).collect();
    let mut times: Vec<Duration> = behaviours.iter().map(|b| b.delay.min(TIMEOUT)).collect();
    times.sort();
    // After each answer: counted from scratch, series by series.
    for time in times {
        let verdicts: Vec<Option<Verdict>> =
            series.iter().map(|replicas| verdict_by(replicas, behaviours, factor, time)).collect();
        if verdicts.contains(&Some(Verdict::Unavailable)) {
            return (Verdict::Unavailable, time);
        }
        if verdicts.iter().all(Option::is_some) {
            return (verdicts.into_iter().flatten().max().unwrap_or(Verdict::Success), time);
        }
    }
    unreachable!("all have answered by their deadline");
}

/// The rule itself: what a series whose replicas are at these nodes comes to by `time`.
fn verdict_by(
    replicas: &[usize],
    behaviours: &[Behaviour],
    factor: u8,
    time: Duration,
) -> Option<Verdict> {
    let majority = if factor <= 2 { 1 } else { usize::from(factor) / 2 + 1 };
    let enough_conflicts = usize::from(factor) - majority + 1;
    let (mut stored, mut conflicts, mut missing) = (0, 0, 0);
    for node in replicas {
        let Behaviour { delay, outcome } = behaviours[*node];
        let outcome = if delay >= TIMEOUT { ReplicaOutcome::TimedOut } else { outcome };
        match outcome {
            _ if delay.min(TIMEOUT) > time => missing += 1,
            ReplicaOutcome::Stored => stored += 1,
            ReplicaOutcome::Conflict => conflicts += 1,
            _ => {}
        }
    }
    if stored >= majority {
        Some(Verdict::Success)
    } else if conflicts >= enough_conflicts {
        Some(Verdict::Conflict)
    } else if stored + missing >= majority || conflicts + missing >= enough_conflicts {
        None
    } else {
        Some(Verdict::Unavailable)
    }
}

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// Many small worlds: rings, delays, outcomes and partitions by chance.
#[tokio::test(start_paused = true)]
async fn whatever_peers_do_the_answer_is_the_rules_and_comes_when_it_is_fixed() {
    let seed = std::env::var("RINGEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| getrandom::u64().unwrap());
    println!("RINGEST_SEED={seed}");
    let mut dice = Dice(seed);
    for world in 0..400 {
        let factor: u8 = dice.below(5) as u8 + 1;
        let node_count = usize::from(factor) + dice.below(9 - u64::from(factor)) as usize;
        let series_count = dice.below(30) as usize;
        let is_member = dice.chance(50);
        let algorithm = if dice.chance(50) { Algorithm::Ketama } else { Algorithm::Hashmod };
        let failing = dice.below(100);
        let behaviours: Vec<Behaviour> = (0..node_count)
            .map(|_| {
                let is_partitioned = dice.chance(failing / 3);
                let delay = match is_partitioned {
                    true => SILENT,
                    false => Duration::from_millis(1 + dice.below(6000)),
                };
                // Of an answer that comes with the deadline no rule says which is first.
                let delay = if delay == TIMEOUT { delay + TICK } else { delay };
                let outcome = match dice.chance(failing) {
                    false => STORED,
                    true => [
                        ReplicaOutcome::Conflict,
                        ReplicaOutcome::Conflict,
                        ReplicaOutcome::Unavailable,
                        ReplicaOutcome::Failed,
                    ][dice.below(4) as usize],
                };
                Behaviour { delay, outcome }
            })
            .collect();
        let ring = ring(&behaviours, factor, algorithm, is_member);
        let merging = (0..node_count).filter(|_| dice.chance(50)).map(address);
        *ring.nodes.merging.lock() = merging.collect();
        let begun = Instant::now();
        let result = ring.write(&request(series_count), 0).await;
        let elapsed = begun.elapsed();
        let told = match &result {
            Ok(outcome) if outcome.refusals.is_empty() => Verdict::Success,
            Ok(_) => Verdict::Conflict,
            Err(WriteError::NoQuorum { .. }) => Verdict::Unavailable,
            Err(error) => panic!("world {world}: {error}"),
        };
        let context = format!("seed {seed}, world {world}: factor {factor}, {behaviours:?}");
        if told == Verdict::Success {
            let majority = WriteQuorum::of(usize::from(factor)).successes();
            let stored = ring.nodes.stored.lock();
            let copies = |i| stored.get(&body(i)).copied().unwrap_or(0);
            assert!((0..series_count).all(|i| copies(i) >= majority), "{context}");
        }
        if series_count > 0 {
            let (verdict, time) = expected(&ring, &behaviours, factor, series_count);
            assert_eq!(told, verdict, "{context}");
            assert_eq!(elapsed, time, "{context}");
        }
        // The answer has cancelled nothing: whoever can store has stored.
        ring.finish().await;
        let copies: usize = ring.nodes.stored.lock().values().sum();
        let stores = |replica: &String| {
            let behaviour = ring.nodes.behaviour(replica);
            behaviour.outcome == STORED && behaviour.delay < TIMEOUT
        };
        let replicas = (0..series_count).flat_map(|i| ring.replicas_of(i));
        let expected_copies = replicas.filter(stores).count();
        assert_eq!(copies, expected_copies, "{context}");
    }
}
