//! Tenants in memory, for tests: among them the data set of the recorded suites.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Sender;

use bytes::Bytes;
use prost::Message as _;
use serde_json::Value;
use thin_vec::ThinVec;

use crate::metrics::Registry;
use crate::model::Timestamp;
use crate::model::matcher::Matcher;
use crate::model::pairs::SeriesLabels;
use crate::model::pairs::tests::series_labels;
use crate::model::stop;
use crate::model::tenant::TenantId;
use crate::multi_tsdb::{TenantError, UnavailableTenant};
use crate::store::error::QueryError;
use crate::store::source::{ReadTenant, SeriesReader, TenantSource, Tenants};
use crate::tsdb::chunk_set::ChunkSet;
use crate::tsdb::chunkenc::ENCODING_XOR;
use crate::tsdb::chunkenc::xor::XorState;
use crate::tsdb::error::{Corruption, ReadError};
use crate::tsdb::exemplars::Exemplars;
use crate::tsdb::querier::{ChunkData, SelectedSeries};
use crate::wire::proto::prometheus::QueryResult;

pub(crate) type Labels<'a> = &'a [(&'a str, &'a str)];

#[derive(Default)]
pub(crate) struct FakeSource {
    pub(crate) tenants: Vec<Arc<FakeTenant>>,
    pub(crate) unavailable: Vec<UnavailableTenant>,
}

impl FakeSource {
    pub(crate) fn of(tenants: Vec<Arc<FakeTenant>>) -> FakeSource {
        FakeSource { tenants, unavailable: Vec::new() }
    }

    /// With a tenant more, whose log is being replayed.
    pub(crate) fn with_opening(mut self, id: &str, external: Labels<'_>) -> FakeSource {
        let FakeTenant { id, external, .. } = FakeTenant::new(id, external);
        let (external_labels, reason) = (Arc::new(external), TenantError::Opening);
        self.unavailable.push(UnavailableTenant { id, external_labels, reason });
        self
    }
}

pub(crate) struct FakeTenant {
    id: TenantId,
    external: Vec<(Vec<u8>, Vec<u8>)>,
    series: Vec<(SeriesLabels, Vec<ChunkData>)>,
    /// Series whose chunks were [gathered](SeriesReader::gather).
    pub(crate) chunk_reads: AtomicUsize,
    exemplars: Exemplars,
    /// Whether every read fails, as that of a damaged block.
    fails: bool,
    /// Is told when a selection begins and when it ends, which it does not before it is asked to.
    working: Option<Sender<Work>>,
}

/// What is told of a selection that goes on and on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    Begun,
    Stopped,
}

impl FakeTenant {
    pub(crate) fn new(id: &str, external: Labels<'_>) -> FakeTenant {
        let owned = |text: &str| text.as_bytes().to_vec();
        FakeTenant {
            id: TenantId::parse(id.as_bytes()).unwrap(),
            external: external.iter().map(|(n, v)| (owned(n), owned(v))).collect(),
            series: Vec::new(),
            chunk_reads: AtomicUsize::new(0),
            exemplars: Exemplars::new(0, 0, &Registry::new(), id),
            fails: false,
            working: None,
        }
    }

    /// One that cannot be read.
    pub(crate) fn failing(id: &str, external: Labels<'_>) -> FakeTenant {
        FakeTenant {
            fails: true,
            ..FakeTenant::new(id, external).with(&[("a", "b")], &[(0, 1.0)], 1)
        }
    }

    /// One whose selections go on until they are asked to stop.
    pub(crate) fn working(id: &str, told: Sender<Work>) -> FakeTenant {
        FakeTenant { working: Some(told), ..FakeTenant::new(id, &[]) }
    }

    /// Adds a series, `chunk_len` samples a chunk.
    pub(crate) fn with(self, labels: Labels<'_>, samples: &[(i64, f64)], chunk_len: usize) -> Self {
        self.with_chunks(labels, samples.chunks(chunk_len).map(chunk).collect())
    }

    /// Adds a series of these chunks.
    pub(crate) fn with_chunks(mut self, labels: Labels<'_>, chunks: Vec<ChunkData>) -> Self {
        self.series.push((key(labels), chunks));
        self
    }
}

pub(crate) fn key(labels: Labels<'_>) -> SeriesLabels {
    series_labels(labels.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())))
}

pub(crate) fn chunk(samples: &[(i64, f64)]) -> ChunkData {
    let mut state = XorState::default();
    let mut bytes = ThinVec::new();
    for (t, v) in samples {
        state.append(&mut bytes, *t, v.to_bits());
    }
    ChunkData {
        mint: samples.first().unwrap().0,
        maxt: samples.last().unwrap().0,
        encoding: ENCODING_XOR,
        bytes: state.snapshot(&bytes),
    }
}

impl TenantSource for FakeSource {
    fn tenants(&self) -> Tenants {
        let open = self.tenants.iter();
        let open = open.map(|tenant| Arc::new(tenant.clone()) as Arc<dyn ReadTenant>).collect();
        Tenants { open, unavailable: self.unavailable.clone() }
    }

    fn tenant(&self, id: &TenantId) -> Result<Option<Arc<dyn ReadTenant>>, QueryError> {
        if let Some(tenant) = self.unavailable.iter().find(|tenant| tenant.id == *id) {
            let (tenant, reason) = (id.clone(), tenant.reason.clone());
            return Err(QueryError::Unavailable { tenant, reason });
        }
        let tenant = self.tenants.iter().find(|tenant| tenant.id == *id);
        Ok(tenant.map(|tenant| Arc::new(tenant.clone()) as Arc<dyn ReadTenant>))
    }

    fn is_ready(&self) -> bool {
        self.unavailable.is_empty()
    }
}

impl ReadTenant for Arc<FakeTenant> {
    fn name(&self) -> &str {
        self.id.as_str()
    }

    fn external_labels(&self) -> &[(Vec<u8>, Vec<u8>)] {
        &self.external
    }

    fn time_range(&self) -> Option<(Timestamp, Timestamp)> {
        let chunks = || self.series.iter().flat_map(|(_, chunks)| chunks);
        Some((chunks().map(|c| c.mint).min()?, chunks().map(|c| c.maxt).max()?))
    }

    fn head_time_range(&self) -> Option<(Timestamp, Timestamp)> {
        self.time_range()
    }

    fn exemplars(&self) -> &Exemplars {
        &self.exemplars
    }

    fn head_reader(&self) -> Box<dyn SeriesReader> {
        self.reader(i64::MIN, i64::MAX)
    }

    fn reader(&self, mint: Timestamp, maxt: Timestamp) -> Box<dyn SeriesReader> {
        Box::new(FakeReader { tenant: self.clone(), mint, maxt })
    }
}

struct FakeReader {
    tenant: Arc<FakeTenant>,
    mint: i64,
    maxt: i64,
}

impl FakeReader {
    fn overlaps(&self, chunk: &ChunkData) -> bool {
        chunk.mint <= self.maxt && self.mint <= chunk.maxt
    }

    fn fail(&self) -> Result<(), ReadError> {
        match self.tenant.fails {
            true => {
                Err(Corruption { file: "/block/index".into(), offset: 7, what: "a series" }.into())
            }
            false => Ok(()),
        }
    }

    fn matching(
        &self,
        matchers: &[Matcher],
    ) -> impl Iterator<Item = &(SeriesLabels, Vec<ChunkData>)> {
        self.tenant.series.iter().filter(|(key, _)| {
            matchers.iter().all(|matcher| {
                let value = key.iter().find(|(name, _)| *name == matcher.name);
                matcher.matches(value.map_or(&[], |(_, value)| value))
            })
        })
    }
}

impl SeriesReader for FakeReader {
    fn select(&self, matchers: &[Matcher]) -> Result<Vec<SelectedSeries>, ReadError> {
        self.fail()?;
        if let Some(told) = &self.tenant.working {
            told.send(Work::Begun).unwrap();
            while !stop::is_asked() {
                std::thread::yield_now();
            }
            told.send(Work::Stopped).unwrap();
        }
        let matching = self
            .matching(matchers)
            .filter(|(_, chunks)| chunks.iter().any(|chunk| self.overlaps(chunk)));
        Ok(matching.map(|(key, _)| SelectedSeries::of_head(key.clone(), 0)).collect())
    }

    fn gather(
        &self,
        series: &mut dyn Iterator<Item = &SelectedSeries>,
        bytes: usize,
        chunks: &mut ChunkSet,
    ) -> Result<(), ReadError> {
        for series in series {
            self.tenant.chunk_reads.fetch_add(1, Ordering::Relaxed);
            let (_, all) =
                self.tenant.series.iter().find(|(key, _)| *key == series.labels).unwrap();
            for chunk in all.iter().filter(|chunk| self.overlaps(chunk)) {
                chunks.push(chunk.mint, chunk.maxt, chunk.encoding, &chunk.bytes);
            }
            chunks.end_series();
            if chunks.bytes() >= bytes {
                break;
            }
        }
        Ok(())
    }

    fn label_names(&self, matchers: &[Matcher]) -> Result<Vec<Vec<u8>>, ReadError> {
        self.fail()?;
        let labels = self.matching(matchers).flat_map(|(key, _)| key.iter());
        let names: BTreeSet<_> = labels.map(|(name, _)| name.to_vec()).collect();
        Ok(names.into_iter().collect())
    }

    fn label_values(&self, name: &[u8], matchers: &[Matcher]) -> Result<Vec<Vec<u8>>, ReadError> {
        self.fail()?;
        let labels = self.matching(matchers).flat_map(|(key, _)| key.iter());
        let values = labels.filter(|(other, _)| *other == name);
        let values: BTreeSet<_> = values.map(|(_, value)| value.to_vec()).collect();
        Ok(values.into_iter().collect())
    }
}

/// A recorded suite.
pub(crate) fn suite(name: &str) -> Vec<Value> {
    let path = format!("{}/tests/data/store/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let suite: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    suite["steps"].as_array().unwrap().clone()
}

/// The data set of the recorded suites. Where chunks begin and end, and histograms, are taken from
/// the recorded answer to a query for everything.
pub(crate) fn recorded_data_set() -> FakeSource {
    let steps = suite("store-series");
    let everything = steps.iter().find(|step| step["id"] == "all").unwrap();
    let recorded = everything["expect"]["replies"].as_array().unwrap();
    let mut tenants = vec![recorded_tenant("default-tenant")];
    for step in steps.iter().filter(|step| step["kind"] == "http") {
        let name = step["headers"].as_array().unwrap().last().unwrap()[1].as_str().unwrap();
        let inflated =
            snap::raw::Decoder::new().decompress_vec(&base64(&step["body_b64"])).unwrap();
        // A write request and a query's result are the same on the wire.
        let written = QueryResult::decode(&inflated[..]).unwrap();
        let index = tenants.iter().position(|tenant| tenant.id.as_str() == name);
        let index = index.unwrap_or_else(|| {
            tenants.push(recorded_tenant(name));
            tenants.len() - 1
        });
        for series in written.timeseries {
            let labels = series.labels.iter();
            let key = series_labels(labels.map(|label| (&label.name[..], &label.value[..])));
            let chunks = recorded_chunks(recorded, name, &key).unwrap_or_else(|| {
                let samples: Vec<_> =
                    series.samples.iter().map(|sample| (sample.timestamp, sample.value)).collect();
                vec![chunk(&samples)]
            });
            tenants[index].series.push((key, chunks));
        }
    }
    tenants.sort_by(|a, b| a.id.cmp(&b.id));
    FakeSource::of(tenants.into_iter().map(Arc::new).collect())
}

fn recorded_tenant(name: &str) -> FakeTenant {
    FakeTenant::new(name, &[("replica", "r0"), ("tenant_id", name), ("zone", "eu")])
}

fn recorded_chunks(replies: &[Value], tenant: &str, key: &SeriesLabels) -> Option<Vec<ChunkData>> {
    let stored: Vec<_> = key.iter().filter(|(name, _)| !is_external(name)).collect();
    let series = replies.iter().map(|reply| &reply["series"]).find(|series| {
        let labels = series["labels"].as_array().unwrap();
        let text = |label: &Value, part: &str| label[part].as_str().unwrap().as_bytes().to_vec();
        let is_tenants = |label: &Value| label["name"] == "tenant_id" && label["value"] == tenant;
        let rest: Vec<_> = labels
            .iter()
            .map(|label| (text(label, "name"), text(label, "value")))
            .filter(|(name, _)| !is_external(name))
            .collect();
        labels.iter().any(is_tenants)
            && rest.iter().map(|(n, v)| (&n[..], &v[..])).eq(stored.iter().copied())
    })?;
    let chunks = series["chunks"].as_array()?.iter().map(|chunk| ChunkData {
        mint: chunk["min_time"].as_i64().unwrap(),
        maxt: chunk["max_time"].as_i64().unwrap(),
        encoding: 1 + chunk_type(&chunk["raw"]) as u8,
        bytes: base64(&chunk["raw"]["data"]).to_vec().into(),
    });
    Some(chunks.collect())
}

fn is_external(name: &[u8]) -> bool {
    [&b"replica"[..], b"tenant_id", b"zone"].contains(&name)
}

pub(crate) fn chunk_type(raw: &Value) -> i32 {
    match raw["type"].as_str() {
        None => 0,
        Some("HISTOGRAM") => 1,
        Some("FLOAT_HISTOGRAM") => 2,
        Some(other) => panic!("chunk type {other}"),
    }
}

pub(crate) fn base64(text: &Value) -> Bytes {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bytes = Vec::new();
    let (mut bits, mut count) = (0u32, 0);
    for byte in text.as_str().unwrap().trim_end_matches('=').bytes() {
        let six = ALPHABET.iter().position(|other| *other == byte).unwrap();
        (bits, count) = (bits << 6 | six as u32, count + 6);
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    bytes.into()
}
