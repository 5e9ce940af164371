//! Reads everything back through Prometheus' remote read and compares it bit for bit.
//!
//! A sample that was acknowledged must be there with its value, once in each node that has it. One
//! that was sent without an acknowledgement may be there, but only with its value. Nothing else may
//! be.
//!
//! The nodes of a ring are read together: a sample is there if any of them holds it.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use futures::future::try_join_all;
use futures::stream::{self, StreamExt};
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use serde::Serialize;

use super::acked::{Acknowledged, Round};
use super::protobuf::{
    MalformedAnswer, ReadFormat, ReadSeries, chunked_response, push_labels, read_request,
    read_response,
};
use super::sender::{HttpClient, http_client, root_cause};
use super::workload::{
    Lane, Permutation, STALE_NAN_BITS, TARGET_LABEL, Workload, target_label_value,
};

/// One read asks for at most about so many samples.
const SAMPLES_PER_READ: u64 = 500_000;
const EXAMPLES_MAX: usize = 10;
/// Far more than the samples of one read need, compressed or not.
const ANSWER_BYTES_MAX: usize = 1 << 30;
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// Why a verification could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error("remote read at {url}: {reason}")]
    Unreachable { url: Uri, reason: String },
    #[error("remote read at {url} answered {status}: {text}")]
    Status { url: Uri, status: StatusCode, text: String },
    #[error("remote read answer: {0}")]
    Malformed(#[from] MalformedAnswer),
    #[error("remote read answer is no snappy block: {0}")]
    Snappy(#[from] snap::Error),
    #[error("remote read answer declares {0} bytes")]
    TooLarge(usize),
    #[error("request to {url}: {source}")]
    Request { url: Uri, source: http::Error },
}

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verification {
    /// Acknowledged samples that are there as they were sent, however many nodes hold them.
    pub intact: u64,
    /// The intact samples by the number of nodes that hold them.
    pub intact_by_node_count: BTreeMap<usize, u64>,
    /// Sent, never acknowledged, and stored all the same: allowed.
    pub unacknowledged_stored: u64,
    /// Acknowledged, and not there.
    pub missing: u64,
    /// In some node with another value than the one sent.
    pub different: u64,
    /// Copies beyond the first in one node.
    pub duplicated: u64,
    /// Copies that are there, but were never sent.
    pub unexpected: u64,
    /// A few of the findings.
    pub examples: Vec<String>,
}

impl Verification {
    pub fn is_clean(&self) -> bool {
        self.missing == 0 && self.different == 0 && self.duplicated == 0 && self.unexpected == 0
    }

    fn merge(&mut self, other: Verification) {
        self.intact += other.intact;
        for (node_count, samples) in other.intact_by_node_count {
            *self.intact_by_node_count.entry(node_count).or_default() += samples;
        }
        self.unacknowledged_stored += other.unacknowledged_stored;
        self.missing += other.missing;
        self.different += other.different;
        self.duplicated += other.duplicated;
        self.unexpected += other.unexpected;
        let room = EXAMPLES_MAX.saturating_sub(self.examples.len());
        self.examples.extend(other.examples.into_iter().take(room));
    }

    /// Keeps the text if there are fewer examples than `limit`, and room at all.
    fn example(&mut self, limit: usize, text: impl FnOnce() -> String) {
        if self.examples.len() < limit.min(EXAMPLES_MAX) {
            self.examples.push(text());
        }
    }
}

impl fmt::Display for Verification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row =
            |name: &str, value: u64| writeln!(f, "{name:<22}{}", super::report::grouped(value));
        row("verified intact", self.intact)?;
        if self.intact_by_node_count.keys().any(|&node_count| node_count > 1) {
            for (node_count, &samples) in &self.intact_by_node_count {
                row(&format!("  in {node_count} nodes"), samples)?;
            }
        }
        row("stored, not acked", self.unacknowledged_stored)?;
        row("missing", self.missing)?;
        row("different", self.different)?;
        row("duplicated", self.duplicated)?;
        row("unexpected", self.unexpected)?;
        for example in &self.examples {
            writeln!(f, "  {example}")?;
        }
        Ok(())
    }
}

/// How and where to read.
#[derive(Clone, Debug)]
pub struct VerifyOptions {
    /// One for each node that holds part of the samples.
    pub read_urls: Vec<Uri>,
    pub format: ReadFormat,
    /// Reads in flight at once at each node.
    pub concurrency: usize,
}

/// Reads back every round that is known and compares all of it.
pub async fn verify(
    workload: &Workload,
    acknowledged: &Acknowledged,
    options: &VerifyOptions,
) -> Result<Verification, VerifyError> {
    let lanes = workload.lanes();
    let client = http_client();
    let windows = lanes.iter().enumerate().flat_map(|(index, lane)| {
        let rounds: Vec<(u32, &Round)> = acknowledged.rounds(index).collect();
        windows(workload, lane, &rounds)
    });
    let mut found = Verification::default();
    let mut reads = stream::iter(windows)
        .map(|window| {
            let client = &client;
            async move { window.verify(client, options).await }
        })
        .buffer_unordered(options.concurrency.max(1));
    while let Some(window) = reads.next().await {
        found.merge(window?);
    }
    Ok(found)
}

/// Some rounds of one target: what one read asks for.
struct Window<'a> {
    workload: &'a Workload,
    lane: &'a Lane,
    /// The target's place in its lane.
    target: u32,
    rounds: Vec<(u32, &'a Round)>,
}

fn windows<'a>(
    workload: &'a Workload,
    lane: &'a Lane,
    rounds: &[(u32, &'a Round)],
) -> Vec<Window<'a>> {
    let samples_per_round =
        u64::from(lane.series_per_request) * u64::from(workload.samples_per_series);
    let rounds_per_read = (SAMPLES_PER_READ / samples_per_round).max(1) as usize;
    let mut windows = Vec::new();
    for target in 0..lane.request_count {
        for rounds in rounds.chunks(rounds_per_read) {
            windows.push(Window { workload, lane, target, rounds: rounds.to_vec() });
        }
    }
    windows
}

/// A sample that may be in the answers.
struct Expected {
    timestamp: i64,
    bits: u64,
    acknowledged: bool,
}

/// A sample in the answer of a node.
#[derive(Clone, Copy, Debug)]
struct StoredSample {
    timestamp: i64,
    bits: u64,
    /// Index into [`VerifyOptions::read_urls`].
    node: usize,
}

/// The samples of several answers by the encoded labels of their series.
type StoredSeries = HashMap<Vec<u8>, Vec<StoredSample>>;

impl Window<'_> {
    async fn verify(
        &self,
        client: &HttpClient,
        options: &VerifyOptions,
    ) -> Result<Verification, VerifyError> {
        let reads = options.read_urls.iter().map(|url| self.read(client, url, options.format));
        let mut stored = StoredSeries::new();
        for (node, answer) in try_join_all(reads).await?.into_iter().enumerate() {
            self.collect(node, answer, &mut stored);
        }
        let mut found = Verification::default();
        for (labels, expected) in self.expected() {
            let samples = stored.remove(&labels.encoded).unwrap_or_default();
            compare(&labels.text, &expected, samples, &options.read_urls, &mut found);
        }
        for (labels, samples) in stored {
            if !samples.is_empty() {
                found.unexpected += samples.len() as u64;
                found.example(EXAMPLES_MAX, || {
                    format!(
                        "unexpected: {} samples of a series that was not sent: {:?}",
                        samples.len(),
                        String::from_utf8_lossy(&labels)
                    )
                });
            }
        }
        Ok(found)
    }

    /// Times of the first and the last sample, both included.
    fn time_range(&self) -> (i64, i64) {
        let first = self.rounds.first().map_or(0, |(_, round)| round.base);
        let last = self.rounds.last().map_or(0, |(_, round)| {
            self.workload.timestamp(round.base, self.workload.samples_per_series - 1)
        });
        (first, last)
    }

    async fn read(
        &self,
        client: &HttpClient,
        url: &Uri,
        format: ReadFormat,
    ) -> Result<Vec<ReadSeries>, VerifyError> {
        let (mint, maxt) = self.time_range();
        let instance = target_label_value(self.lane.first_target + self.target);
        let body = read_request(mint, maxt, TARGET_LABEL, &instance, format);
        let body = snap::raw::Encoder::new().compress_vec(&body)?;
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(url.clone())
            .header(header::CONTENT_TYPE, "application/x-protobuf")
            .header(header::CONTENT_ENCODING, "snappy")
            .header("X-Prometheus-Remote-Read-Version", "0.1.0");
        if let Some(tenant) = &self.lane.tenant {
            request = request.header(self.workload.tenant_header.as_str(), tenant);
        }
        let request = request
            .body(Full::new(Bytes::from(body)))
            .map_err(|source| VerifyError::Request { url: url.clone(), source })?;
        let answer = tokio::time::timeout(READ_TIMEOUT, async {
            let response = client.request(request).await.map_err(|error| root_cause(&error))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
                .collect()
                .await
                .map_err(|error| error.to_string())?;
            Ok((status, body.to_bytes()))
        });
        let (status, bytes) = answer
            .await
            .unwrap_or_else(|_elapsed| Err("no answer within a minute".to_owned()))
            .map_err(|reason| VerifyError::Unreachable { url: url.clone(), reason })?;
        if !status.is_success() {
            let text = String::from_utf8_lossy(&bytes).chars().take(300).collect();
            return Err(VerifyError::Status { url: url.clone(), status, text });
        }
        Ok(match format {
            ReadFormat::Samples => {
                let len = snap::raw::decompress_len(&bytes)?;
                if len > ANSWER_BYTES_MAX {
                    return Err(VerifyError::TooLarge(len));
                }
                #[expect(clippy::disallowed_methods, reason = "its length was judged")]
                let inflated = snap::raw::Decoder::new().decompress_vec(&bytes)?;
                read_response(&inflated)?
            }
            ReadFormat::StreamedXorChunks => chunked_response(&bytes)?,
        })
    }

    /// Adds a node's samples within the asked range; chunks may reach beyond it. Labels that the
    /// workload does not use are the server's external ones and left out.
    fn collect(&self, node: usize, answer: Vec<ReadSeries>, stored: &mut StoredSeries) {
        let (mint, maxt) = self.time_range();
        let names: Vec<Vec<u8>> =
            self.workload.labels(0, 0, 0).into_iter().map(|(name, _)| name.into_bytes()).collect();
        for series in answer {
            let mut labels: Vec<_> = series
                .labels
                .iter()
                .filter(|(name, _)| names.contains(name))
                .map(|(name, value)| {
                    (
                        String::from_utf8_lossy(name).into_owned(),
                        String::from_utf8_lossy(value).into_owned(),
                    )
                })
                .collect();
            labels.sort_unstable();
            let in_range = series
                .samples
                .into_iter()
                .filter(|(timestamp, _)| (mint..=maxt).contains(timestamp))
                .map(|(timestamp, bits)| StoredSample { timestamp, bits, node });
            stored.entry(encoded(&labels)).or_default().extend(in_range);
        }
    }

    /// Every series of the window, one entry for each of its generations, and its samples.
    fn expected(&self) -> Vec<(SeriesLabels, Vec<Expected>)> {
        let permutations: Vec<_> = self
            .rounds
            .iter()
            .map(|(number, _)| Permutation::new(self.workload.order, self.lane, *number))
            .collect();
        let mut all = Vec::new();
        for index in self.lane.positions(self.target) {
            let series = self.lane.series.start + index;
            let (target, place) = self.lane.place(index);
            let mut generations: Vec<(u32, Vec<Expected>)> = Vec::new();
            for ((number, round), permutation) in self.rounds.iter().zip(&permutations) {
                let request = permutation.position_of(index) / self.lane.series_per_request;
                if !round.was_sent(request) {
                    continue;
                }
                let acknowledged = round.was_acknowledged(request);
                let samples = (0..self.workload.samples_per_series).map(|k| Expected {
                    timestamp: self.workload.timestamp(round.base, k),
                    bits: self.workload.value_bits(series, place, *number, k),
                    acknowledged,
                });
                let generation = self.workload.generation(series, round.base);
                match generations.last_mut() {
                    Some((last, expected)) if *last == generation => expected.extend(samples),
                    _ => generations.push((generation, samples.collect())),
                }
            }
            for (generation, expected) in generations {
                let labels = self.workload.labels(target, place, generation);
                all.push((SeriesLabels::new(&labels), expected));
            }
        }
        all
    }
}

struct SeriesLabels {
    encoded: Vec<u8>,
    /// The labels that tell it from its neighbours, as a selector.
    text: String,
}

impl SeriesLabels {
    fn new(labels: &[(String, String)]) -> SeriesLabels {
        let text: Vec<_> = labels.iter().map(|(n, v)| format!("{n}={v:?}")).collect();
        SeriesLabels { encoded: encoded(labels), text: format!("{{{}}}", text.join(",")) }
    }
}

fn encoded(labels: &[(String, String)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    push_labels(&mut bytes, labels);
    bytes
}

/// Walks two lists in time order: what may be stored, and what the nodes hold.
fn compare(
    series: &str,
    expected: &[Expected],
    mut stored: Vec<StoredSample>,
    nodes: &[Uri],
    found: &mut Verification,
) {
    // One example of a series is enough.
    let limit = found.examples.len() + 1;
    // Stable, so that a node's samples of one time stay in the order of its answer.
    stored.sort_by_key(|sample| (sample.timestamp, sample.node));
    let mut stored = stored.into_iter().peekable();
    for sample in expected {
        while let Some(copy) = stored.next_if(|copy| copy.timestamp < sample.timestamp) {
            found.unexpected += 1;
            found.example(limit, || format!("unexpected: {series} {}", copy.shown(nodes)));
        }
        let mut node_count = 0;
        let mut last_node = None;
        let mut differs = false;
        while let Some(copy) = stored.next_if(|copy| copy.timestamp == sample.timestamp) {
            if last_node == Some(copy.node) {
                found.duplicated += 1;
                found.example(limit, || format!("duplicated: {series} {}", copy.shown(nodes)));
                continue;
            }
            last_node = Some(copy.node);
            node_count += 1;
            if copy.bits != sample.bits {
                differs = true;
                found.example(limit, || {
                    let sent = shown(sample.timestamp, sample.bits);
                    format!("different: {series} sent {sent}, stored {}", copy.shown(nodes))
                });
            }
        }
        match (node_count, sample.acknowledged) {
            (0, false) => {}
            (0, true) => {
                found.missing += 1;
                found.example(limit, || {
                    format!("missing: {series} {}", shown(sample.timestamp, sample.bits))
                });
            }
            _ if differs => found.different += 1,
            (_, false) => found.unacknowledged_stored += 1,
            (_, true) => {
                found.intact += 1;
                *found.intact_by_node_count.entry(node_count).or_default() += 1;
            }
        }
    }
    for copy in stored {
        found.unexpected += 1;
        found.example(limit, || format!("unexpected: {series} {}", copy.shown(nodes)));
    }
}

impl StoredSample {
    /// With the node that holds it, if it can be more than one.
    fn shown(&self, nodes: &[Uri]) -> String {
        let sample = shown(self.timestamp, self.bits);
        match nodes.get(self.node).and_then(Uri::authority) {
            Some(node) if nodes.len() > 1 => format!("{sample} at {node}"),
            _ => sample,
        }
    }
}

fn shown(timestamp: i64, bits: u64) -> String {
    if bits == STALE_NAN_BITS {
        return format!("stale @{timestamp}");
    }
    format!("{} ({bits:016x}) @{timestamp}", f64::from_bits(bits))
}
