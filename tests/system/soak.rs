//! Days of a node in a minute: blocks of half a minute, and samples whose time goes faster than the
//! clock until it reaches it. Tenants come, series come and go, blocks get to the bucket and old ones are
//! deleted, and the node is killed at random, as it opens, cuts, ships or deletes. In the end each sample
//! that was acknowledged is in just one place: the head, a block, or a block in the bucket.
//!
//! `RINGEST_SOAK_SECONDS` makes it longer.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ringest::disk::SystemDisk;
use ringest::model::labels::LabelIter;
use ringest::tsdb::block::Block;
use ringest::tsdb::block::chunks::{CHUNKS_DIR, ChunkReader, RawChunk};
use ringest::tsdb::block::ulid::Ulid;
use ringest::tsdb::block::verify::Verified;
use ringest::tsdb::chunkenc::ENCODING_XOR;
use ringest::tsdb::chunkenc::xor::XorIterator;
use ringest::tsdb::file::PageCache;
use ringest::tsdb::index::BlockSeriesRef;

use crate::directories::copy_dir;
use crate::programs::{debian, succeed};
use crate::support::http;
use crate::support::messages::{WriteRequest, write_request};
use crate::support::node::Node;
use crate::support::now;
use crate::support::process::wait_until;
use crate::support::random::{Random, seed};
use crate::support::remote_read::{Stored, name_of};

/// The least that the flag takes; it stands for two hours.
const BLOCK_MS: i64 = 30_000;
/// Blocks of two hours of two days.
const BLOCKS: i64 = 24;
/// How long they take, if nobody says otherwise.
const SECONDS: u64 = 75;
/// A sample of a series, 300 in a block.
const STEP_MS: i64 = 100;
/// Samples of a series in a request at most.
const STEPS_MAX: i64 = 60;
/// Series of a tenant at one time: half of them stay, each of the others is another one after a while.
const SERIES: i64 = 16;
const CHURN_MS: i64 = 20_000;

/// Samples by their series and time.
type Samples = BTreeMap<(String, i64), u64>;

/// Which time samples have: so much faster than the clock that it reaches it in the end.
#[derive(Clone, Copy)]
struct SampleClock {
    begun: Instant,
    length: Duration,
    first: i64,
    end: i64,
}

impl SampleClock {
    fn begin(length: Duration) -> SampleClock {
        let end = now() + length.as_millis() as i64;
        let spanned = BLOCK_MS * BLOCKS * length.as_secs() as i64 / SECONDS as i64;
        SampleClock { begun: Instant::now(), length, first: end - spanned, end }
    }

    /// Which share of the time has gone; 1 in the end.
    fn share(&self) -> f64 {
        (self.begun.elapsed().as_secs_f64() / self.length.as_secs_f64()).min(1.0)
    }

    fn is_over(&self) -> bool {
        self.share() >= 1.0
    }

    fn now(&self) -> i64 {
        self.first + ((self.end - self.first) as f64 * self.share()) as i64
    }
}

/// What was sent for a tenant.
#[derive(Default)]
struct Sent {
    acknowledged: Samples,
    /// Answered otherwise, or not at all: it may be there.
    others: Samples,
}

/// A tenant's sender, until it is told to end.
struct Sender {
    tenant: String,
    address: String,
    clock: SampleClock,
    random: Random,
    /// It begins when this share of the time has gone.
    from: f64,
    sent: Sent,
    /// Time of the newest sample.
    last: i64,
}

impl Sender {
    fn run(mut self, is_over: &AtomicBool) -> (String, Sent) {
        while !is_over.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(20 + self.random.below(60) as u64));
            if self.clock.share() >= self.from {
                self.send();
            }
        }
        (self.tenant, self.sent)
    }

    fn send(&mut self) {
        let newest = self.clock.now() / STEP_MS * STEP_MS;
        let first = (self.last + STEP_MS).max(newest - (STEPS_MAX - 1) * STEP_MS);
        let (mut request, mut samples) = (WriteRequest::default(), Samples::new());
        for i in 0..SERIES {
            let mut of_labels: BTreeMap<String, Vec<(i64, f64)>> = BTreeMap::new();
            for t in (first..=newest).step_by(STEP_MS as usize) {
                let generation = if i % 2 == 0 { 0 } else { (t + i * 1000) / CHURN_MS };
                // Seldom the same as before, and always told by series and time.
                let v = (t % 86_400_000) as f64 / 7.0 + i as f64;
                of_labels.entry(generation.to_string()).or_default().push((t, v));
            }
            for (generation, of) in of_labels {
                let i = i.to_string();
                let labels = [("__name__", "soak"), ("generation", &*generation), ("i", &*i)];
                request = request.with(&labels, &of);
                let name = name_of(labels.map(|(n, v)| (n.to_owned(), v.to_owned())).into_iter());
                samples.extend(of.iter().map(|(t, v)| ((name.clone(), *t), v.to_bits())));
            }
        }
        if samples.is_empty() {
            return;
        }
        self.last = newest;
        let message = write_request(self.tenant.as_bytes(), &request.compressed());
        // A sender does not know what became of a request without an answer, and sends it again.
        for _ in 0..1 + self.random.below(4) {
            let answer = http::exchange(&self.address, &message);
            match answer.map(|answer| (answer.status, answer.text())) {
                Some((200, _)) => return self.sent.acknowledged.extend(samples),
                // What was stored before the node ended may have been cut since.
                Some((409 | 503, _)) | None => {}
                Some((status, text)) => panic!("{}: {status}: {text}", self.tenant),
            }
            thread::sleep(Duration::from_millis(150));
        }
        self.sent.others.extend(samples);
    }
}

/// Reads a block as a whole.
fn read_block(dir: &Path) -> Stored {
    let block = Block::open(&SystemDisk, dir, PageCache::new(1 << 20)).unwrap();
    let verified = block.verify().unwrap();
    assert!(matches!(verified, Verified::Whole { .. }), "{}", dir.display());
    let chunks = ChunkReader::open(&SystemDisk, &dir.join(CHUNKS_DIR)).unwrap();
    let mut reader = block.index().series();
    let mut stored = Stored::new();
    for series in block.index().all_postings().unwrap() {
        reader.read(BlockSeriesRef(series)).unwrap();
        let of_series = reader.chunks().to_vec();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let labels = LabelIter::of_canonical(reader.key().unwrap());
        let samples = stored.entry(name_of(labels.map(|(n, v)| (text(n), text(v))))).or_default();
        for chunk in of_series {
            let mut raw = RawChunk::default();
            chunks.read(chunk.chunk, &mut raw).unwrap();
            assert_eq!(raw.encoding, ENCODING_XOR);
            for sample in XorIterator::new(&raw.bytes) {
                let (t, v) = sample.unwrap();
                assert!(samples.insert(t, v).is_none(), "{}: twice at {t}", dir.display());
                assert!(block.meta().min_time <= t && t < block.meta().max_time);
            }
        }
    }
    stored
}

/// The blocks in a directory.
fn blocks_in(dir: &Path) -> BTreeSet<Ulid> {
    let Ok(entries) = fs::read_dir(dir) else { return BTreeSet::new() };
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name();
    entries.filter_map(|entry| name(entry).to_str()?.parse().ok()).collect()
}

/// The blocks of a tenant that are whole in the bucket.
fn shipped(bucket: &Path, tenant: &str) -> BTreeSet<Ulid> {
    let is_of_tenant = |block: &Ulid| {
        let meta = fs::read(bucket.join(block.to_string()).join("meta.json"));
        let Ok(meta) = meta else { return false };
        let meta: serde_json::Value = serde_json::from_slice(&meta).unwrap();
        meta["thanos"]["labels"]["tenant_id"] == tenant
    };
    blocks_in(bucket).into_iter().filter(is_of_tenant).collect()
}

/// In how many places each sample is.
#[derive(Default)]
struct Places(BTreeMap<(String, i64), (u64, usize)>);

impl Places {
    fn add(&mut self, stored: Stored) {
        for (name, samples) in stored {
            for (t, v) in samples {
                let place = self.0.entry((name.clone(), t)).or_insert((v, 0));
                assert_eq!(place.0, v, "{name} at {t} has two values");
                place.1 += 1;
            }
        }
    }

    /// Each of what was acknowledged is in one, and nothing is in several or was never sent.
    fn judge(&self, what: &str, sent: &Sent) {
        let lost: Vec<_> =
            sent.acknowledged.keys().filter(|sample| !self.0.contains_key(*sample)).collect();
        assert!(lost.is_empty(), "{what}: {} are lost, as {:?}", lost.len(), lost.first());
        for (sample, (v, count)) in &self.0 {
            assert_eq!(*count, 1, "{what}: {sample:?} is in {count} places");
            let known = sent.acknowledged.get(sample).or_else(|| sent.others.get(sample));
            assert_eq!(known, Some(v), "{what}: {sample:?}");
        }
    }
}

/// The flags of the node: what runs in the background runs often.
fn node(root: &Path, bucket: &Path, random: &mut Random) -> Node {
    let bucket = format!("{{type: FILESYSTEM, config: {{directory: {:?}}}}}", bucket.display());
    let mut node = Node::new(root, "data")
        .with_arg(&format!("--objstore.config={bucket}"))
        .with_arg("--tsdb.min-block-duration=30s")
        .with_arg("--tsdb.max-block-duration=30s")
        .with_arg("--tsdb.retention=4m")
        .with_arg(["--tsdb.wal-sync=interval", "--tsdb.wal-sync=always"][random.below(2)]);
    if random.below(2) == 0 {
        node = node.with_arg("--tsdb.wal-truncate-by-head-chunks");
    }
    node
}

/// Ends the node at random times and in random ways, until the time is over.
fn live(node: &mut Node, clock: &SampleClock, random: &mut Random) {
    while !clock.is_over() {
        let until = Instant::now() + Duration::from_millis(500 + random.below(8000) as u64);
        while Instant::now() < until && !clock.is_over() {
            thread::sleep(Duration::from_millis(20));
        }
        match random.below(8) {
            0 => node.stop(),
            _ => node.kill(),
        }
        // As it opens, too.
        while random.below(3) == 0 {
            node.launch();
            thread::sleep(Duration::from_millis(random.below(400) as u64));
            node.kill();
        }
        node.start();
    }
}

/// What a node serves of a directory, that cuts, ships and deletes nothing meanwhile.
fn served(root: &Path, data: &Path, tenants: &[&str]) -> Vec<Stored> {
    copy_dir(data, &root.join("copy"));
    let mut node = Node::new(root, "copy").with_arg("--tsdb.retention=0s");
    node = node.with_arg("--tsdb.max-compacted-block-duration=30s");
    node.start();
    let stored = tenants.iter().map(|tenant| node.read(tenant)).collect();
    node.kill();
    stored
}

/// What promtool finds in the blocks of a tenant in the bucket.
fn judge_by_promtool(root: &Path, bucket: &Path, tenant: &str, samples: usize) {
    let dir = root.join("for-promtool").join(tenant);
    for block in shipped(bucket, tenant) {
        let name = block.to_string();
        fs::create_dir_all(&dir).unwrap();
        copy_dir(&bucket.join(&name), &dir.join(&name));
    }
    // `dump` opens the log, too.
    fs::create_dir(dir.join("wal")).unwrap();
    let promtool =
        |command: &str| succeed(debian("promtool", "prometheus").args(["tsdb", command]).arg(&dir));
    let list = promtool("list");
    // Of each block: name, times, duration, samples.
    let count = |block: &str| block.split_whitespace().nth(4)?.parse::<usize>().ok();
    assert_eq!(list.lines().skip(1).filter_map(count).sum::<usize>(), samples, "{list}");
    let dumped = promtool("dump").lines().filter(|line| line.starts_with('{')).count();
    assert_eq!(dumped, samples);
    let analysis = promtool("analyze");
    assert!(analysis.contains("Series: "), "{analysis}");
}

#[test]
fn each_acknowledged_sample_of_two_days_is_in_one_place() {
    let length = match std::env::var("RINGEST_SOAK_SECONDS") {
        Ok(seconds) => Duration::from_secs(seconds.parse().expect("a number of seconds")),
        Err(_) => Duration::from_secs(SECONDS),
    };
    let mut random = Random(seed());
    let root = tempfile::tempdir().unwrap();
    let bucket = root.path().join("bucket");
    let mut node = node(root.path(), &bucket, &mut random);
    node.start();
    let clock = SampleClock::begin(length);
    let is_over = Arc::new(AtomicBool::new(false));
    let tenants = ["first", "second", "late"];
    let senders = tenants.map(|tenant| {
        let sender = Sender {
            tenant: tenant.to_owned(),
            address: node.remote_write.clone(),
            clock,
            random: Random(random.next()),
            from: if tenant == "late" { 0.5 } else { 0.0 },
            sent: Sent::default(),
            last: clock.first,
        };
        let is_over = is_over.clone();
        thread::spawn(move || sender.run(&is_over))
    });
    live(&mut node, &clock, &mut random);
    is_over.store(true, Ordering::Relaxed);
    let sent = senders.map(|sender| sender.join().unwrap());
    node.kill();

    let stored = served(root.path(), &node.data, &tenants);
    for ((tenant, sent), stored) in sent.iter().zip(stored) {
        assert!(sent.acknowledged.len() > 10_000, "{tenant}: {}", sent.acknowledged.len());
        let (local, shipped) = (blocks_in(&node.data.join(tenant)), shipped(&bucket, tenant));
        let mut places = Places::default();
        let mut of_head = stored;
        for block in &local {
            let stored = read_block(&node.data.join(tenant).join(block.to_string()));
            for (name, samples) in &stored {
                let served = of_head.get_mut(name).unwrap_or_else(|| panic!("{name} is served"));
                for t in samples.keys() {
                    assert!(served.remove(t).is_some(), "{tenant}: {name} at {t} is served");
                }
            }
            places.add(stored);
        }
        for block in shipped.difference(&local) {
            places.add(read_block(&bucket.join(block.to_string())));
        }
        places.add(of_head);
        places.judge(&format!("{tenant}, killed"), sent);
    }

    // The last one has time to bring everything to the bucket, and old blocks go.
    node.start();
    let has_gone = |tenant: &str| {
        shipped(&bucket, tenant).difference(&blocks_in(&node.data.join(tenant))).count() > 0
    };
    wait_until("old blocks have gone", || ["first", "second"].into_iter().all(has_gone));
    node.stop();
    for (tenant, sent) in &sent {
        let shipped = shipped(&bucket, tenant);
        let local = blocks_in(&node.data.join(tenant));
        assert!(local.is_subset(&shipped), "{tenant}: {local:?}, {shipped:?}");
        let mut places = Places::default();
        shipped.iter().for_each(|block| places.add(read_block(&bucket.join(block.to_string()))));
        places.judge(&format!("{tenant}, shipped"), sent);
        // In some of their ranges the node may have been down.
        let least = BLOCKS / if tenant == "late" { 4 } else { 2 };
        assert!(shipped.len() as i64 >= least, "{tenant}: {} blocks", shipped.len());
        judge_by_promtool(root.path(), &bucket, tenant, places.0.len());
    }
    let counted = sent.iter().map(|(_, sent)| (sent.acknowledged.len(), sent.others.len()));
    println!("acknowledged, and otherwise: {:?}", counted.collect::<Vec<_>>());
}
