//! The write path without the network: decode and look-up, then append with its log, per sample or
//! per series. `cargo bench --bench write_path`

mod common;

use std::time::{Duration, Instant};

use common::{
    BenchDb, REQUEST_SERIES, decode, label_fields, open, open_in, requests, series_count, shuffle,
    write,
};
use ringest::tsdb::Db;
use ringest::tsdb::head::batch::Batch;
use ringest::tsdb::options::DbOptions;
use ringest::wire::remote_write_v2::{ResolveError, resolve};
use ringest::wire::snappy;
use rustix::time::{ClockId, clock_gettime};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const START: i64 = 1_700_000_000_000;
const STEP: i64 = 15_000;
const ROUNDS: i64 = 11;

fn main() {
    let count = series_count();
    let labels: Vec<Vec<u8>> = (0..count).map(label_fields).collect();
    let text: usize = labels.iter().map(Vec::len).sum();
    println!("{count} series of 12 labels, {} bytes of label fields each", text / count);

    let BenchDb { db, dir } = open(&DbOptions::default());
    let mut batch = Batch::default();
    let before = resident_bytes();
    let first = requests(&labels, START);
    let resident_with_requests = resident_bytes();
    report(
        "new series: decode, make, log, append",
        count,
        time(|| {
            first.iter().for_each(|request| write(&db, request, &mut batch));
        }),
    );
    let after_first = resident_bytes() - resident_with_requests;
    drop(first);

    let mut decoding = Duration::ZERO;
    let mut appending = Duration::ZERO;
    for round in 1..ROUNDS {
        for request in requests(&labels, START + round * STEP) {
            decoding += time(|| decode(&db, &request, &mut batch));
            appending += time(|| {
                db.append(&batch).expect("the disk has room");
            });
        }
    }
    let samples = count * (ROUNDS as usize - 1);
    report("known series, sender's order: decode and look up", samples, decoding);
    report("known series, sender's order: check, log, append", samples, appending);

    compare_versions(&db, &labels, &mut batch);

    let resident = resident_bytes().saturating_sub(before) as usize;
    println!("{:>8} bytes resident a series after one sample each", after_first as usize / count);
    println!("{:>8} bytes resident a series after {ROUNDS} samples each", resident / count);
    let logged = log_bytes(dir.path());
    println!("{:>8.1} bytes of log a sample", logged as f64 / (count * ROUNDS as usize) as f64);

    let mut order: Vec<(usize, &Vec<u8>)> = labels.iter().enumerate().collect();
    shuffle(&mut order);
    let shuffled: Vec<Vec<u8>> = order
        .chunks(REQUEST_SERIES)
        .map(|part| common::request(part.iter().copied(), START + ROUNDS * STEP))
        .collect();
    let (mut decoding, mut appending) = (Duration::ZERO, Duration::ZERO);
    for request in &shuffled {
        decoding += time(|| decode(&db, request, &mut batch));
        appending += time(|| {
            db.append(&batch).expect("the disk has room");
        });
    }
    report("known series, shuffled: decode and look up", count, decoding);
    report("known series, shuffled: check, log, append", count, appending);
    drop(shuffled);

    db.close().expect("the log closes");
    drop(db);
    let samples = count * (ROUNDS as usize + 1);
    let (started, cpu_before) = (Instant::now(), cpu_time(ClockId::ProcessCPUTime));
    let db = open_in(dir.path(), &DbOptions::default());
    let elapsed = started.elapsed();
    assert_eq!(db.series_count(), count);
    let cpu = cpu_time(ClockId::ProcessCPUTime) - cpu_before;
    report("replay, all threads", samples, cpu);
    println!("{:>8.2} s of CPU for the whole replay", cpu.as_secs_f64());
    println!("{:>8.2} s by the clock, with three threads", elapsed.as_secs_f64());
}

/// From the compressed body to the batch, in both versions of remote write. Nothing is stored.
fn compare_versions(db: &Db, labels: &[Vec<u8>], batch: &mut Batch) {
    let numbered: Vec<_> = labels.iter().enumerate().collect();
    let t = START + ROUNDS * STEP;
    let (mut v1, mut resolving, mut v2) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    let (mut buffer, mut resolved_buffer) = (Vec::new(), Vec::new());
    let mut bytes = [0; 4];
    for part in numbered.chunks(REQUEST_SERIES) {
        let bodies =
            [common::request(part.iter().copied(), t), common::request_v2(part.iter().copied(), t)];
        let blocks = bodies.each_ref().map(|body| snappy::deflate(body).expect("below 4 GiB"));
        let lens = [bodies[0].len(), bodies[1].len(), blocks[0].len(), blocks[1].len()];
        bytes.iter_mut().zip(lens).for_each(|(sum, len)| *sum += len);
        v1 += time(|| {
            let request = snappy::inflate(&blocks[0], bodies[0].len(), &mut buffer).expect("ours");
            decode(db, request, batch);
        });
        v2 += time(|| {
            let request = snappy::inflate(&blocks[1], bodies[1].len(), &mut buffer).expect("ours");
            resolving += time(|| {
                let all = |_| Ok::<_, ResolveError>(());
                let resolved = resolve(request, &mut resolved_buffer, u64::MAX, all);
                assert_eq!(resolved.expect("a good request").len, bodies[0].len());
            });
            decode(db, &resolved_buffer[..bodies[0].len()], batch);
        });
        assert_eq!(resolved_buffer[..bodies[0].len()], bodies[0]);
    }
    let each = bytes.map(|bytes| bytes / labels.len());
    let [v1_bytes, v2_bytes, v1_block, v2_block] = each;
    report("known series, 1.0: inflate, decode and look up", labels.len(), v1);
    report("known series, 2.0: inflate, resolve, decode and look up", labels.len(), v2);
    report("                   of these, resolve", labels.len(), resolving);
    println!("{v1_bytes:>8} bytes a series in 1.0, {v1_block} compressed");
    println!("{v2_bytes:>8} bytes a series in 2.0, {v2_block} compressed");
}

/// CPU time of this thread, the kernel's for it included: other load on the machine hardly shows.
fn time(work: impl FnOnce()) -> Duration {
    let started = cpu_time(ClockId::ThreadCPUTime);
    work();
    cpu_time(ClockId::ThreadCPUTime) - started
}

fn cpu_time(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn report(what: &str, count: usize, elapsed: Duration) {
    println!("{:>8.1} ns  {what}", elapsed.as_nanos() as f64 / count as f64);
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * 4096
}

fn log_bytes(dir: &std::path::Path) -> u64 {
    let segments = std::fs::read_dir(dir.join("wal")).expect("the log's directory");
    segments.map(|segment| segment.expect("a segment").metadata().expect("its size").len()).sum()
}
