//! What is sent: bodies made before anything is measured.

use std::time::Duration;

use ringest::clock::{Clock, SystemClock};
use ringest::load::{
    BodySource, EncodedOnDemand, Latencies, Order, Pregenerated, Progress, SendError, SendOptions,
    Setup, Shape, Total, Workload, send,
};
use tokio_util::sync::CancellationToken;

use crate::{AnyError, Plan};

/// A workload and its bodies, one source per connection.
pub(crate) struct Scenario {
    workload: Workload,
    rounds: u32,
    bodies: Vec<Pregenerated>,
}

impl Scenario {
    fn make(workload: Workload, rounds: u32) -> Result<Scenario, AnyError> {
        let lanes = workload.lanes();
        let bodies: Result<Vec<_>, SendError> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..workload.connections)
                .map(|connection| {
                    let (workload, lanes) = (&workload, &lanes);
                    scope.spawn(move || Pregenerated::new(workload, lanes, connection, rounds))
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|p| std::panic::resume_unwind(p)))
                .collect()
        });
        Ok(Scenario { bodies: bodies?, workload, rounds })
    }

    /// Samples that are sent.
    pub(crate) fn samples(&self) -> u64 {
        u64::from(self.workload.series_count) * u64::from(self.rounds)
    }

    /// Sends everything, with the connections spread over `write_urls`. Nothing is retried: an
    /// answer other than 2xx fails the measurement.
    pub(crate) fn send(&self, write_urls: &[http::Uri]) -> Result<Total, AnyError> {
        let totals: Result<Vec<Total>, SendError> = std::thread::scope(|scope| {
            let threads: Vec<_> = write_urls
                .iter()
                .enumerate()
                .map(|(i, url)| {
                    let bodies: Vec<_> =
                        self.bodies.iter().skip(i).step_by(write_urls.len()).collect();
                    scope.spawn(move || self.send_bodies(url, &bodies))
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|p| std::panic::resume_unwind(p)))
                .collect()
        });
        let total = totals?.into_iter().reduce(|mut sum, total| {
            sum.tally.merge(&total.tally);
            sum.elapsed = sum.elapsed.max(total.elapsed);
            sum
        });
        let total = total.ok_or("no server to send to")?;
        all_acknowledged(total, self.samples())
    }

    /// Sends the bodies of some connections.
    fn send_bodies(&self, url: &http::Uri, bodies: &[&Pregenerated]) -> Result<Total, SendError> {
        let workload = Workload { connections: bodies.len() as u32, ..self.workload.clone() };
        let options = send_options(url, self.rounds);
        let progress = Progress::default();
        let setup = setup(&workload, &options, &progress);
        send(&setup, |connection| Ok(bodies[connection as usize].clone()))
    }
}

/// Nothing is retried.
fn send_options(write_url: &http::Uri, rounds: u32) -> SendOptions {
    SendOptions {
        write_url: write_url.clone(),
        rate: None,
        rounds: Some(rounds),
        duration: None,
        timeout: Duration::from_secs(60),
        retry_for: Duration::ZERO,
    }
}

fn setup<'s>(
    workload: &'s Workload,
    options: &'s SendOptions,
    progress: &'s Progress,
) -> Setup<'s> {
    Setup {
        workload,
        options,
        acked_file: None,
        keep_acknowledged: false,
        progress,
        stop: CancellationToken::new(),
    }
}

/// An answer other than 2xx fails the measurement.
fn all_acknowledged(total: Total, samples: u64) -> Result<Total, AnyError> {
    let tally = &total.tally;
    if tally.acknowledged_samples == samples && tally.unacknowledged_samples == 0 {
        return Ok(total);
    }
    Err(format!(
        "{} of {samples} samples acknowledged, answers {:?}: {:?}",
        tally.acknowledged_samples, tally.statuses, tally.complaints
    )
    .into())
}

/// The workloads of one node, each beginning in time where the one before it ended.
pub(crate) struct NodeScenarios {
    pub(crate) new: Scenario,
    pub(crate) known: Scenario,
    pub(crate) shuffled: Scenario,
    pub(crate) churn: Scenario,
    /// A request of one series, to see whether the server takes writes.
    pub(crate) probe: Vec<u8>,
}

const SHUFFLED_ROUNDS: u32 = 3;
/// Two minutes of sample time, so a tenth of the series is replaced.
const CHURN_ROUNDS: u32 = 8;
const CHURN_PERCENT: f64 = 5.0;

impl NodeScenarios {
    pub(crate) fn make(
        series_count: u32,
        known_rounds: u32,
        connections: u32,
    ) -> Result<NodeScenarios, AnyError> {
        let rounds = 1 + known_rounds + SHUFFLED_ROUNDS + CHURN_ROUNDS;
        let new = workload(series_count, connections, rounds)?;
        let known = Workload { start: new.synthetic_base(1), ..new.clone() };
        let shuffled = Workload {
            start: known.synthetic_base(known_rounds),
            order: Order::Shuffled,
            ..new.clone()
        };
        let churn = Workload {
            start: shuffled.synthetic_base(SHUFFLED_ROUNDS),
            churn_percent: CHURN_PERCENT,
            ..new.clone()
        };
        Ok(NodeScenarios {
            probe: probe(&new)?,
            new: Scenario::make(new, 1)?,
            known: Scenario::make(known, known_rounds)?,
            shuffled: Scenario::make(shuffled, SHUFFLED_ROUNDS)?,
            churn: Scenario::make(churn, CHURN_ROUNDS)?,
        })
    }
}

/// The workload that fills a head. Its bodies are made while it is sent: they are too many to keep.
pub(crate) struct LifeScenario {
    workload: Workload,
    rounds: u32,
    pub(crate) probe: Vec<u8>,
    /// One that comes behind all samples, and is not too old for a head that has them.
    pub(crate) late_probe: Vec<u8>,
}

impl LifeScenario {
    pub(crate) fn new(
        series_count: u32,
        rounds: u32,
        connections: u32,
    ) -> Result<LifeScenario, AnyError> {
        let workload = workload(series_count, connections, rounds)?;
        let behind = Workload { start: workload.synthetic_base(rounds), ..workload.clone() };
        Ok(LifeScenario { probe: probe(&workload)?, late_probe: probe(&behind)?, workload, rounds })
    }

    pub(crate) fn samples(&self) -> u64 {
        u64::from(self.workload.series_count) * u64::from(self.rounds)
    }

    pub(crate) fn send(&self, write_url: &http::Uri) -> Result<Total, AnyError> {
        send_on_demand(&self.workload, &send_options(write_url, self.rounds))
    }
}

/// Whether more is to be sent; asked often.
pub(crate) type GoOn<'g> = dyn FnMut() -> bool + Send + 'g;

/// A head that fills one block, and known series at a steady pace from there on.
pub(crate) struct CompanyScenario {
    workload: Workload,
    rounds: u32,
    rate: f64,
    new_series: Workload,
    pub(crate) probe: Vec<u8>,
}

impl CompanyScenario {
    /// Waits for a time from which on the third turn of a node is the first with something to cut: the
    /// first is within a tenth of a range, and its oldest sample must be older than one and a half.
    pub(crate) fn begin(plan: &Plan) -> Result<CompanyScenario, AnyError> {
        let range = i64::from(plan.company_range) * 1000;
        while SystemClock.now() % range > range / 3 {
            std::thread::sleep(Duration::from_millis(100));
        }
        let mut workload = workload(plan.life_series, plan.connections, 1)?;
        workload.start = SystemClock.now() / range * range;
        workload.step = range / i64::from(plan.life_rounds);
        let new_series = Workload {
            shape: Shape::Avalanche,
            labels_per_series: 4,
            series_count: plan.company_new_series,
            series_per_request: plan.company_new_series,
            connections: 1,
            tenants: vec!["other".to_owned()],
            ..workload.clone()
        };
        new_series.check()?;
        Ok(CompanyScenario {
            probe: probe(&workload)?,
            workload,
            rounds: plan.life_rounds,
            rate: plan.company_rate.into(),
            new_series,
        })
    }

    /// Fills a head, as fast as it goes.
    pub(crate) fn fill(&self, write_url: &http::Uri) -> Result<PacedSender, AnyError> {
        send_on_demand(&self.workload, &send_options(write_url, self.rounds))?;
        let start = self.workload.synthetic_base(self.rounds);
        // From then on sample time goes about as fast as the clock.
        let step = f64::from(self.workload.series_count) / self.rate * 1e3;
        let workload = Workload { start, step: (step as i64).max(1), ..self.workload.clone() };
        Ok(PacedSender { write_url: write_url.clone(), workload, rate: self.rate })
    }

    /// One request of another tenant, of series that it did not have.
    pub(crate) fn send_new_series(&self, write_url: &http::Uri) -> Result<(), AnyError> {
        send_on_demand(&self.new_series, &send_options(write_url, 1)).map(|_| ())
    }
}

/// Known series, each round later than the one before.
pub(crate) struct PacedSender {
    write_url: http::Uri,
    workload: Workload,
    rate: f64,
}

impl PacedSender {
    /// The latencies of what was sent while `go_on` said so.
    pub(crate) fn send_while(&mut self, go_on: &mut GoOn<'_>) -> Result<Latencies, AnyError> {
        const BETWEEN_LOOKS: Duration = Duration::from_millis(10);
        let lanes = self.workload.lanes();
        let options =
            SendOptions { rate: Some(self.rate), rounds: None, ..send_options(&self.write_url, 0) };
        let progress = Progress::default();
        let setup = setup(&self.workload, &options, &progress);
        let stop = setup.stop.clone();
        let total = std::thread::scope(|scope| {
            scope.spawn(move || {
                while go_on() {
                    std::thread::sleep(BETWEEN_LOOKS);
                }
                stop.cancel();
            });
            send(&setup, |connection| Ok(EncodedOnDemand::new(&self.workload, &lanes, connection)))
        })?;
        let sent = total.tally.acknowledged_samples;
        // Connections are not all in the same round.
        let rounds = sent / u64::from(self.workload.series_count) + 2;
        self.workload.start = self.workload.synthetic_base(rounds as u32);
        Ok(all_acknowledged(total, sent)?.tally.latencies)
    }
}

fn send_on_demand(workload: &Workload, options: &SendOptions) -> Result<Total, AnyError> {
    let lanes = workload.lanes();
    let progress = Progress::default();
    let setup = setup(workload, options, &progress);
    let total = send(&setup, |connection| Ok(EncodedOnDemand::new(workload, &lanes, connection)))?;
    let rounds = u64::from(options.rounds.unwrap_or(0));
    all_acknowledged(total, u64::from(workload.series_count) * rounds)
}

/// The workloads of a ring.
pub(crate) struct RingScenarios {
    pub(crate) new: Scenario,
    pub(crate) known: Scenario,
    /// The same in requests of as many series as a router puts in a message of one replica.
    pub(crate) known_in_small_requests: Scenario,
    pub(crate) probe: Vec<u8>,
}

impl RingScenarios {
    pub(crate) fn make(
        series_count: u32,
        known_rounds: u32,
        connections: u32,
        nodes: u32,
    ) -> Result<RingScenarios, AnyError> {
        let new = workload(series_count, connections, 1 + known_rounds)?;
        let known = Workload { start: new.synthetic_base(1), ..new.clone() };
        // A node is each replica of an equal part of the series.
        let small = Workload {
            series_per_request: new.series_per_request.div_ceil(nodes),
            ..known.clone()
        };
        Ok(RingScenarios {
            probe: probe(&new)?,
            new: Scenario::make(new, 1)?,
            known: Scenario::make(known, known_rounds)?,
            known_in_small_requests: Scenario::make(small, known_rounds)?,
        })
    }
}

/// Begins so long ago that the last of `rounds` is now.
fn workload(series_count: u32, connections: u32, rounds: u32) -> Result<Workload, AnyError> {
    let mut workload = Workload::new(SystemClock.now());
    workload.series_count = series_count;
    workload.connections = connections;
    workload.start -= workload.round_span() * i64::from(rounds);
    workload.check()?;
    Ok(workload)
}

fn probe(workload: &Workload) -> Result<Vec<u8>, AnyError> {
    let probe =
        Workload { shape: Shape::Avalanche, series_count: 1, connections: 1, ..workload.clone() };
    let lanes = probe.lanes();
    let mut bodies = EncodedOnDemand::new(&probe, &lanes, 0);
    let body = bodies.next(0, probe.start)?.ok_or("the probe has no series")?;
    Ok(body.body.bytes.to_vec())
}
