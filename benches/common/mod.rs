//! Requests that look like a fleet's: twelve labels, about 289 bytes of label text a series, a third
//! of the values zero.

#![allow(dead_code, reason = "not every bench needs it")]

use std::collections::HashMap;
use std::sync::Arc;

use ringest::clock::SystemClock;
use ringest::disk::SystemDisk;
use ringest::metrics::Registry;
use ringest::model::labels::{LabelIter, push_label};
use ringest::model::varint::push_varint;
use ringest::tsdb::Db;
use ringest::tsdb::env::Env;
use ringest::tsdb::head::batch::Batch;
use ringest::tsdb::options::DbOptions;
use ringest::write::Manners;
use ringest::write::decode::{DecodeOptions, decode_request};

/// Series in a request, as senders batch by default.
pub(crate) const REQUEST_SERIES: usize = 2_000;

/// Series of a run: small with `--test`, which CI uses, else far beyond the caches.
pub(crate) fn series_count() -> usize {
    match std::env::args().any(|arg| arg == "--test") {
        true => 4_000,
        false => 1_000_000,
    }
}

/// The label fields of series number `i`.
pub(crate) fn label_fields(i: usize) -> Vec<u8> {
    let mut fields = Vec::with_capacity(400);
    let pod = format!(
        "ingest-gateway-{:016x}-{:05x}",
        ((i / 40) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15),
        i / 40
    );
    let labels: [(&str, String); 12] = [
        ("__name__", format!("http_server_request_duration_seconds_{:03}", i % 40)),
        ("cluster", "eu-central-1-production".into()),
        ("container", "ingest-gateway".into()),
        ("endpoint", "http-metrics".into()),
        ("instance", format!("10.{}.{}.{}:8080", i / 40 % 200, i / 8000 % 200, i / 1_600_000)),
        ("job", "platform/ingest-gateway".into()),
        ("le", format!("{}", i % 7)),
        ("method", ["GET", "POST", "PUT"][i % 3].into()),
        ("namespace", format!("platform-{:02}", i % 16)),
        ("node", format!("ip-10-{}-{}.compute.internal", i / 400 % 256, i / 100_000)),
        ("pod", pod),
        ("status_code", ["200", "404", "500"][i % 3].into()),
    ];
    for (name, value) in &labels {
        push_label(&mut fields, 0x0a, name.as_bytes(), value.as_bytes());
    }
    fields
}

/// The inflated request of these series at time `t`.
pub(crate) fn request<'a>(
    labels: impl IntoIterator<Item = (usize, &'a Vec<u8>)>,
    t: i64,
) -> Vec<u8> {
    let mut request = Vec::new();
    for (i, labels) in labels {
        let mut sample = Vec::new();
        if !i.is_multiple_of(3) {
            sample.push(0x09);
            sample.extend_from_slice(&((i as f64) + (t % 1_000_000) as f64 / 8.0).to_le_bytes());
        }
        sample.push(0x10);
        push_varint(&mut sample, t as u64);
        request.push(0x0a);
        push_varint(&mut request, (labels.len() + 2 + sample.len()) as u64);
        request.extend_from_slice(labels);
        request.push(0x12);
        request.push(sample.len() as u8);
        request.extend_from_slice(&sample);
    }
    request
}

/// The same request in version 2.0: texts stand once in a table of symbols.
pub(crate) fn request_v2<'a>(
    labels: impl IntoIterator<Item = (usize, &'a Vec<u8>)>,
    t: i64,
) -> Vec<u8> {
    let mut numbers: HashMap<&[u8], u64> = HashMap::from([(&b""[..], 0)]);
    let (mut request, mut series) = (vec![0x22, 0], Vec::new());
    for (i, labels) in labels {
        let mut refs = Vec::new();
        for text in LabelIter::of_canonical(labels).flat_map(|(name, value)| [name, value]) {
            let next = numbers.len() as u64;
            let number = *numbers.entry(text).or_insert_with(|| {
                request.push(0x22);
                push_varint(&mut request, text.len() as u64);
                request.extend_from_slice(text);
                next
            });
            push_varint(&mut refs, number);
        }
        let mut sample = Vec::new();
        if !i.is_multiple_of(3) {
            sample.push(0x09);
            sample.extend_from_slice(&((i as f64) + (t % 1_000_000) as f64 / 8.0).to_le_bytes());
        }
        sample.push(0x10);
        push_varint(&mut sample, t as u64);
        series.push(0x2a);
        push_varint(&mut series, (refs.len() + 2 + sample.len() + 2) as u64);
        series.push(0x0a);
        series.push(refs.len() as u8);
        series.extend_from_slice(&refs);
        series.push(0x12);
        series.push(sample.len() as u8);
        series.extend_from_slice(&sample);
    }
    request.extend_from_slice(&series);
    request
}

/// Requests over all series, in order.
pub(crate) fn requests(labels: &[Vec<u8>], t: i64) -> Vec<Vec<u8>> {
    let numbered: Vec<_> = labels.iter().enumerate().collect();
    numbered.chunks(REQUEST_SERIES).map(|part| request(part.iter().copied(), t)).collect()
}

/// The order of a sender that shuffles: a fixed pseudo-random permutation.
pub(crate) fn shuffle<T>(items: &mut [T]) {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    for i in (1..items.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        items.swap(i, (state % (i as u64 + 1)) as usize);
    }
}

pub(crate) struct BenchDb {
    pub(crate) db: Arc<Db>,
    pub(crate) dir: tempfile::TempDir,
}

pub(crate) fn open(options: &DbOptions) -> BenchDb {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let db = open_in(dir.path(), options);
    BenchDb { db, dir }
}

pub(crate) fn open_in(dir: &std::path::Path, options: &DbOptions) -> Arc<Db> {
    let lock = Db::lock(&SystemDisk, dir, options).expect("the lock");
    let env = Env::new(Arc::new(SystemDisk), Arc::new(SystemClock), Registry::new());
    Db::open(dir, lock, options.clone(), &env, "bench").expect("opens").db
}

/// Decodes a request against what the database knows.
pub(crate) fn decode(db: &Db, request: &[u8], batch: &mut Batch) {
    batch.clear();
    decode_request(request, &db.lookup(batch), DecodeOptions::new(Manners::Thanos), batch)
        .expect("a good request");
}

/// Decodes and stores.
pub(crate) fn write(db: &Db, request: &[u8], batch: &mut Batch) {
    decode(db, request, batch);
    let report = db.append(batch).expect("the disk has room");
    assert_eq!(report.stored as usize, batch.samples.len());
}
