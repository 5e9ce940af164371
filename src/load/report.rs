//! What a run adds up to: counts, latencies, and the summary in both its forms.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use http::StatusCode;
use serde::Serialize;

use super::verify::Verification;

/// Counts of one connection, or of all.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub acknowledged_requests: u64,
    pub acknowledged_samples: u64,
    /// Compressed bytes of the acknowledged bodies.
    pub acknowledged_bytes: u64,
    /// Samples of requests that were refused, or given up.
    pub unacknowledged_samples: u64,
    pub retries: u64,
    /// Attempts without an answer.
    pub transport_errors: u64,
    pub statuses: BTreeMap<u16, u64>,
    /// Of each attempt, from sending to the end of the answer.
    pub latencies: Latencies,
    /// The first complaint of each status, and of the connection.
    pub complaints: BTreeMap<String, String>,
}

impl Tally {
    pub fn count_status(&mut self, status: StatusCode, text: &str) {
        *self.statuses.entry(status.as_u16()).or_default() += 1;
        if !status.is_success() {
            let line = text.lines().next().unwrap_or_default();
            self.complaints
                .entry(status.as_u16().to_string())
                .or_insert_with(|| line.chars().take(300).collect());
        }
    }

    pub fn count_transport_error(&mut self, message: &str) {
        self.transport_errors += 1;
        self.complaints.entry("connection".to_owned()).or_insert_with(|| message.to_owned());
    }

    pub fn merge(&mut self, other: &Tally) {
        self.acknowledged_requests += other.acknowledged_requests;
        self.acknowledged_samples += other.acknowledged_samples;
        self.acknowledged_bytes += other.acknowledged_bytes;
        self.unacknowledged_samples += other.unacknowledged_samples;
        self.retries += other.retries;
        self.transport_errors += other.transport_errors;
        for (status, count) in &other.statuses {
            *self.statuses.entry(*status).or_default() += count;
        }
        self.latencies.merge(&other.latencies);
        for (status, line) in &other.complaints {
            self.complaints.entry(status.clone()).or_insert_with(|| line.clone());
        }
    }
}

/// Latencies in buckets: 32 for each doubling of the microseconds, so 3 % wide at most.
#[derive(Clone, Debug, Default)]
pub struct Latencies {
    buckets: Vec<u64>,
    count: u64,
    max: Duration,
}

const SUB_BUCKETS: u64 = 32;

impl Latencies {
    pub fn record(&mut self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        let bucket = bucket_of(micros);
        if self.buckets.len() <= bucket {
            self.buckets.resize(bucket + 1, 0);
        }
        self.buckets[bucket] += 1;
        self.count += 1;
        self.max = self.max.max(latency);
    }

    pub fn merge(&mut self, other: &Latencies) {
        if self.buckets.len() < other.buckets.len() {
            self.buckets.resize(other.buckets.len(), 0);
        }
        for (bucket, count) in self.buckets.iter_mut().zip(&other.buckets) {
            *bucket += count;
        }
        self.count += other.count;
        self.max = self.max.max(other.max);
    }

    /// The latency that `share` (0 to 1) of the requests did not exceed; zero if there were none.
    pub fn quantile(&self, share: f64) -> Duration {
        let rank = (share * self.count as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Duration::from_micros(last_of_bucket(bucket)).min(self.max);
            }
        }
        self.max
    }

    pub fn max(&self) -> Duration {
        self.max
    }
}

/// Below 32 a bucket is one microsecond; above, the five bits after the leading one choose it.
fn bucket_of(micros: u64) -> usize {
    let doubling = u64::from(micros.max(SUB_BUCKETS).ilog2()) - 5;
    (doubling * SUB_BUCKETS + (micros >> doubling)) as usize
}

fn last_of_bucket(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let doubling = (bucket / SUB_BUCKETS).saturating_sub(1);
    let mantissa = u128::from(bucket - doubling * SUB_BUCKETS + 1);
    u64::try_from((mantissa << doubling) - 1).unwrap_or(u64::MAX)
}

/// The end of a run, for people and for programs.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    pub seconds: f64,
    pub requests: u64,
    pub samples: u64,
    pub unacknowledged_samples: u64,
    pub samples_per_second: f64,
    pub megabytes_per_second: f64,
    /// User and system time of this process per acknowledged sample.
    pub sender_cpu_nanoseconds_per_sample: f64,
    pub retries: u64,
    pub connection_errors: u64,
    pub statuses: BTreeMap<u16, u64>,
    pub latency_ms: LatencySummary,
    pub complaints: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verification: Option<Verification>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct LatencySummary {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub max: f64,
}

impl Summary {
    /// `cpu` is what this process used meanwhile.
    pub fn new(tally: &Tally, elapsed: Duration, cpu: Duration) -> Summary {
        let seconds = elapsed.as_secs_f64().max(1e-9);
        let ms = |latency: Duration| latency.as_secs_f64() * 1e3;
        Summary {
            seconds,
            requests: tally.acknowledged_requests,
            samples: tally.acknowledged_samples,
            unacknowledged_samples: tally.unacknowledged_samples,
            samples_per_second: tally.acknowledged_samples as f64 / seconds,
            megabytes_per_second: tally.acknowledged_bytes as f64 / 1e6 / seconds,
            sender_cpu_nanoseconds_per_sample: cpu.as_nanos() as f64
                / tally.acknowledged_samples.max(1) as f64,
            retries: tally.retries,
            connection_errors: tally.transport_errors,
            statuses: tally.statuses.clone(),
            latency_ms: LatencySummary {
                p50: ms(tally.latencies.quantile(0.5)),
                p90: ms(tally.latencies.quantile(0.9)),
                p99: ms(tally.latencies.quantile(0.99)),
                max: ms(tally.latencies.max()),
            },
            complaints: tally.complaints.clone(),
            verification: None,
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |name: &str, value: String| writeln!(f, "{name:<22}{value}");
        row("duration", format!("{:.2} s", self.seconds))?;
        row("requests acknowledged", grouped(self.requests))?;
        row("samples acknowledged", grouped(self.samples))?;
        row("samples refused", grouped(self.unacknowledged_samples))?;
        row("samples/s", grouped(self.samples_per_second as u64))?;
        row("MB/s", format!("{:.2}", self.megabytes_per_second))?;
        row("sender CPU", format!("{:.0} ns a sample", self.sender_cpu_nanoseconds_per_sample))?;
        let statuses: Vec<_> =
            self.statuses.iter().map(|(code, n)| format!("{code} × {}", grouped(*n))).collect();
        row("status codes", statuses.join(", "))?;
        row("retries", grouped(self.retries))?;
        row("connection errors", grouped(self.connection_errors))?;
        let LatencySummary { p50, p90, p99, max } = self.latency_ms;
        row(
            "latency",
            format!("p50 {p50:.2} ms, p90 {p90:.2} ms, p99 {p99:.2} ms, max {max:.2} ms"),
        )?;
        for (of, line) in &self.complaints {
            row(&format!("first {of}"), line.clone())?;
        }
        match &self.verification {
            Some(verification) => write!(f, "{verification}"),
            None => Ok(()),
        }
    }
}

/// A number with its thousands set apart.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_a_bucket_of_the_truth() {
        let mut latencies = Latencies::default();
        for micros in 1..=100_000 {
            latencies.record(Duration::from_micros(micros));
        }
        for (share, truth) in [(0.5, 50_000.0), (0.9, 90_000.0), (0.99, 99_000.0), (1.0, 100_000.0)]
        {
            let measured = latencies.quantile(share).as_micros() as f64;
            assert!((truth..truth * 1.035).contains(&measured), "{share}: {measured}");
        }
        assert_eq!(Latencies::default().quantile(0.99), Duration::ZERO);
    }

    #[test]
    fn buckets_are_in_order_and_hold_what_falls_in_them() {
        for micros in (0..5_000).chain([u64::MAX / 3, u64::MAX]) {
            let bucket = bucket_of(micros);
            assert!(last_of_bucket(bucket) >= micros, "{micros}");
            assert!(bucket == 0 || last_of_bucket(bucket - 1) < micros, "{micros}");
        }
    }

    #[test]
    fn numbers_are_grouped() {
        let shown: Vec<_> = [0, 999, 1_000, 12_345_678].map(grouped).into();
        assert_eq!(shown, ["0", "999", "1,000", "12,345,678"]);
    }
}
