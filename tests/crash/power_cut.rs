//! Power cuts, on a disk in memory that forgets what was not synced: a whole storage of several
//! tenants against a model.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use ringest::clock::ManualClock;
use ringest::disk::Disk;
use ringest::disk::faulty::{FailedSync, FaultyDisk};
use ringest::metrics::Registry;
use ringest::model::tenant::TenantId;
use ringest::multi_tsdb::{MultiTsdb, MultiTsdbOptions};
use ringest::tsdb::chunkenc::xor::XorIterator;
use ringest::tsdb::options::DbOptions;
use ringest::tsdb::wal::SyncPolicy;
use ringest::write::Manners;
use ringest::write::admission::Admission;
use ringest::write::label_rules::LabelCaps;
use ringest::write::local::LocalWriter;

use crate::support::messages::WriteRequest;
use crate::support::process::wait_until;
use crate::support::random::{Random, seed};
use crate::support::remote_read::name_of;
use crate::support::same::assert_same;

/// More than are synced one by one, so that the file system is synced for all.
const TENANTS: usize = 8;
const SERIES: usize = 8;
const RUNS: u64 = 60;
const START: i64 = 1_700_000_000_000;

/// Samples by tenant, series and time, values by their bits.
type Model = BTreeMap<(usize, usize, i64), u64>;

struct Storage {
    tenants: Arc<MultiTsdb>,
    writer: LocalWriter,
    clock: ManualClock,
}

fn open(disk: &FaultyDisk, policy: SyncPolicy, clock: i64) -> Storage {
    let options = MultiTsdbOptions {
        dir: PathBuf::from("/data"),
        // Small segments, so that cuts fall between several of them.
        db: DbOptions { wal_sync: policy, wal_segment_bytes: 64 << 10, ..DbOptions::default() },
        labels: Vec::new(),
        tenant_label_name: "tenant_id".into(),
        default_tenant: TenantId::parse(b"default-tenant").unwrap(),
        tenants_max: 100,
        has_periodic_work: false,
        flush_within: None,
        shipping: None,
        rings: None,
    };
    let clock = ManualClock::at(clock);
    let (disk, registry): (Arc<dyn Disk>, _) = (Arc::new(disk.clone()), Registry::new());
    let tenants = MultiTsdb::open(options, disk, Arc::new(clock.clone()), &registry).unwrap();
    wait_until("open", || tenants.is_ready());
    let admission = Admission::new(u64::MAX);
    let writer = LocalWriter::new(tenants.clone(), LabelCaps::default(), policy, admission);
    Storage { tenants, writer, clock }
}

fn tenant(number: usize) -> TenantId {
    TenantId::parse(format!("tenant-{number}").as_bytes()).unwrap()
}

impl Storage {
    fn content(&self) -> Model {
        let mut content = Model::new();
        for number in 0..TENANTS {
            let Some(tenant) = self.tenants.tenant(&tenant(number)) else { continue };
            let querier = tenant.db.querier(i64::MIN, i64::MAX);
            for selected in querier.select(&[]).unwrap() {
                let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
                let labels = selected.labels.iter().map(|(name, value)| (text(name), text(value)));
                let name = name_of(labels);
                let series = (0..SERIES).find(|series| name_of_series(*series) == name).unwrap();
                let mut chunks = Vec::new();
                querier.chunks(&selected, &mut chunks).unwrap();
                for (t, v) in
                    chunks.iter().flat_map(|chunk| XorIterator::new(&chunk.bytes)).flatten()
                {
                    assert_eq!(content.insert((number, series, t), v), None, "stored once");
                }
            }
        }
        content
    }
}

fn labels_of(series: usize) -> [(String, String); 2] {
    [("__name__".into(), "m".into()), ("series".into(), series.to_string())]
}

fn name_of_series(series: usize) -> String {
    name_of(labels_of(series).into_iter())
}

/// What may be found after a restart: all of `certain`, and of the rest only what was `sent`.
fn assert_between(found: &Model, certain: &Model, sent: &Model, context: &str) {
    for (key, value) in certain {
        assert_eq!(found.get(key), Some(value), "{context}: {key:?} is lost");
    }
    for (key, value) in found {
        assert_eq!(sent.get(key), Some(value), "{context}: {key:?} was never sent");
    }
}

/// What a run met: each life's content at its start, and whether each of its writes was answered
/// with success.
type Met = Vec<(Model, Vec<bool>)>;

/// One life after another on one disk, with power cuts and kills between them. Nothing happens by
/// itself meanwhile, so that the seed is all there is to know.
async fn run(policy: SyncPolicy, random: &mut Random) -> Met {
    let mut met = Met::new();
    let mut disk = FaultyDisk::new();
    // Answered with success, and all that was ever sent: what got no answer may be stored or not.
    let (mut acknowledged, mut sent) = (Model::new(), Model::new());
    let mut t = START;
    for life in 0..6 {
        let storage = open(&disk, policy, t);
        let found = storage.content();
        assert_between(&found, &acknowledged, &sent, &format!("{policy:?}, life {life}"));
        met.push((found.clone(), Vec::new()));
        // Whatever a restart finds is on the medium: it is what those are told that send it again.
        acknowledged = found.clone();
        // What was durable at the last look.
        let mut durable = found;
        let syncs_fail_in = random.below(120);
        let writes = 20 + random.below(100);
        for write in 0..writes {
            if write == syncs_fail_in {
                let how = [FailedSync::KeepsBytes, FailedSync::DropsBytes][random.below(2)];
                disk.fail_syncs(1 + random.below(3) as u64, how);
            }
            if random.below(60) == 0 {
                let kind =
                    [std::io::ErrorKind::StorageFull, std::io::ErrorKind::Other][random.below(2)];
                disk.fail_operation(random.below(4) as u64, kind, random.below(3000));
            }
            t += 1 + random.below(5000) as i64;
            storage.clock.set(t);
            let number = random.below(TENANTS);
            let (mut request, mut samples) = (WriteRequest::default(), Vec::new());
            for series in 0..SERIES {
                if random.below(3) == 0 {
                    continue;
                }
                let value = f64::from_bits(random.next() >> 2);
                let labels = labels_of(series);
                let labels = labels.each_ref().map(|(name, value)| (&name[..], &value[..]));
                request = request.with(&labels, &[(t, value)]);
                samples.push(((number, series, t), value.to_bits()));
            }
            sent.extend(samples.iter().copied());
            let result = storage.writer.write(&tenant(number), &request.0, Manners::Thanos).await;
            met[life].1.push(result.is_ok());
            match result {
                Ok(outcome) if outcome.refusals.is_empty() => acknowledged.extend(samples),
                Ok(outcome) => panic!("refused: {}", outcome.refusals),
                // Whatever the error, it is one that invites a retry; the samples may be stored.
                Err(_) => {}
            }
            if policy != SyncPolicy::Always && random.below(10) == 0 {
                let content = storage.content();
                storage.tenants.sync();
                let open = storage.tenants.tenants();
                if !open.iter().any(|tenant| tenant.db.sync_handle().is_dirty()) {
                    durable = content;
                }
            }
        }
        let is_power_cut = random.below(3) > 0;
        let open = storage.tenants.tenants();
        // What a failed sync has dropped is in this process alone.
        let has_dropped = open.iter().any(|tenant| tenant.db.sync_handle().needs_rewrite());
        drop(open);
        let stopped = if is_power_cut { disk.after_power_cut() } else { disk.after_kill() };
        drop(storage);
        if policy != SyncPolicy::Always && (is_power_cut || has_dropped) {
            acknowledged = durable;
        }
        disk = stopped;
    }
    met
}

#[tokio::test]
async fn with_always_no_acknowledged_sample_is_lost() {
    let seed = seed();
    for i in 0..RUNS {
        drop(run(SyncPolicy::Always, &mut Random(seed.wrapping_add(i))).await);
    }
}

#[tokio::test]
async fn with_interval_what_was_synced_is_kept() {
    let seed = seed();
    for i in 0..RUNS {
        drop(run(SyncPolicy::Interval, &mut Random(seed.wrapping_add(i))).await);
    }
}

/// A failure could not be played again otherwise.
#[tokio::test]
async fn a_seed_determines_the_run() {
    let seed = seed();
    for policy in [SyncPolicy::Always, SyncPolicy::Interval] {
        let played = run(policy, &mut Random(seed)).await;
        let again = run(policy, &mut Random(seed)).await;
        assert_eq!(played.len(), again.len(), "lives, {policy:?}");
        for (life, (played, again)) in played.iter().zip(&again).enumerate() {
            let context = format!("life {life}, {policy:?}");
            assert_same(&context, &again.0, &played.0);
            assert_eq!(again.1, played.1, "{context}");
        }
    }
}
