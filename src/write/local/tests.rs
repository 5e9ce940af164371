//! Writes while the disk hangs or fails: all on one thread, which serves everything else as well.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::pin;

use futures::FutureExt as _;
use futures::future::{BoxFuture, join_all};
use futures::stream::{FuturesUnordered, StreamExt as _};

use super::*;
use crate::clock::ManualClock;
use crate::disk::Disk;
use crate::disk::faulty::{FailedSync, FaultyDisk};
use crate::metrics::Registry;
use crate::model::labels::push_label;
use crate::model::varint::push_varint;
use crate::multi_tsdb::MultiTsdbOptions;
use crate::tsdb::chunkenc::xor::XorIterator;
use crate::tsdb::options::DbOptions;

const NOW: i64 = 1_700_000_000_000;

struct Node {
    disk: FaultyDisk,
    tenants: Arc<MultiTsdb>,
    writer: Arc<LocalWriter>,
    admission: Arc<Admission>,
}

impl Node {
    fn open(disk: FaultyDisk) -> Node {
        // No sync comes between the writes that are counted.
        Node::open_with(disk, SyncPolicy::Segment)
    }

    fn open_with(disk: FaultyDisk, sync: SyncPolicy) -> Node {
        Node::open_with_budget(disk, sync, 1 << 20)
    }

    fn open_with_budget(disk: FaultyDisk, sync: SyncPolicy, budget: u64) -> Node {
        let options = MultiTsdbOptions {
            dir: PathBuf::from("/data"),
            db: DbOptions { wal_sync: sync, ..DbOptions::default() },
            labels: Vec::new(),
            tenant_label_name: "tenant_id".into(),
            default_tenant: tenant("default-tenant"),
            tenants_max: 1000,
            has_periodic_work: true,
            flush_within: None,
            shipping: None,
            rings: None,
        };
        let clock = Arc::new(ManualClock::at(NOW));
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        let tenants = MultiTsdb::open(options, shared, clock, &Registry::new()).unwrap();
        while !tenants.is_ready() {
            std::thread::yield_now();
        }
        let admission = Admission::new(budget);
        let caps = LabelCaps::default();
        let writer = LocalWriter::new(tenants.clone(), caps, sync, admission.clone());
        Node { disk, tenants, writer: Arc::new(writer), admission }
    }

    /// One sample of one series.
    async fn write(&self, of: &str, series: &str, t: i64) -> Result<WriteOutcome, WriteError> {
        let request = request(series, NOW + t);
        let outcome = self.writer.write(&tenant(of), &request, Manners::Thanos).await?;
        assert_eq!(outcome.refusals.total() + outcome.samples_stored, 1);
        Ok(outcome)
    }

    async fn store(&self, of: &str, series: &str, t: i64) {
        let outcome = self.write(of, series, t).await.unwrap();
        assert_eq!(outcome.samples_stored, 1, "{series} at {t}: {}", outcome.refusals);
    }

    /// Waits until so many writes and syncs hang, without holding this thread.
    async fn wait_stalled(&self, count: usize) {
        let disk = self.disk.clone();
        tokio::task::spawn_blocking(move || disk.wait_stalled(count)).await.unwrap();
    }

    /// A write that hangs in the disk of a tenant, as the only one of that tenant.
    async fn hang<'n>(&'n self, of: &'n str) -> BoxFuture<'n, ()> {
        self.store(of, "before", 0).await;
        self.disk.stall(&dir_of(of));
        let mut hanging = self.store(of, "hangs", 0).boxed();
        assert!(hanging.as_mut().now_or_never().is_none());
        self.wait_stalled(1).await;
        hanging
    }

    /// Series and times of a tenant, in order.
    fn content(&self, of: &str) -> Vec<(String, i64)> {
        let tenant = self.tenants.tenant(&tenant(of)).unwrap();
        let querier = tenant.db.querier(i64::MIN, i64::MAX);
        let mut content = Vec::new();
        for series in querier.select(&[]).unwrap() {
            let (_, name) = series.labels.iter().next().unwrap();
            let name = String::from_utf8(name.to_vec()).unwrap();
            let mut chunks = Vec::new();
            querier.chunks(&series, &mut chunks).unwrap();
            let samples = chunks.iter().flat_map(|chunk| XorIterator::new(&chunk.bytes)).flatten();
            content.extend(samples.map(|(t, _)| (name.clone(), t - NOW)));
        }
        content.sort();
        content
    }

    /// What the next process finds after a kill.
    fn after_kill(&self) -> Node {
        Node::open(self.disk.after_kill())
    }
}

fn tenant(name: &str) -> TenantId {
    TenantId::parse(name.as_bytes()).unwrap()
}

fn dir_of(tenant: &str) -> PathBuf {
    Path::new("/data").join(tenant)
}

fn request(series: &str, t: i64) -> Vec<u8> {
    let mut fields = Vec::new();
    push_label(&mut fields, 0x0a, b"__name__", series.as_bytes());
    let mut sample = vec![0x09];
    sample.extend_from_slice(&1.0f64.to_le_bytes());
    sample.push(0x10);
    push_varint(&mut sample, t as u64);
    fields.extend_from_slice(&[0x12, sample.len() as u8]);
    fields.extend_from_slice(&sample);
    let mut request = vec![0x0a];
    push_varint(&mut request, fields.len() as u64);
    request.extend_from_slice(&fields);
    request
}

fn named(content: &[(&str, i64)]) -> Vec<(String, i64)> {
    content.iter().map(|(series, t)| ((*series).to_owned(), *t)).collect()
}

/// Polls it once: it goes as far as it can.
fn begin(write: &mut (impl Future + Unpin)) {
    assert!(pin!(write).now_or_never().is_none());
}

#[tokio::test]
async fn a_hanging_disk_holds_neither_the_thread_nor_other_tenants() {
    let node = Node::open(FaultyDisk::new());
    node.store("healthy", "a", 0).await;
    let hanging = node.hang("stuck").await;
    // Many more of the same than there are threads.
    let mut more: Vec<_> = (0..200).map(|i| node.store("stuck", "more", i).boxed()).collect();
    more.iter_mut().for_each(begin);
    for t in 1..50 {
        node.store("healthy", "a", t).await;
    }
    node.store("new", "a", 0).await;
    // What is stored can be read, the tenant's that hangs included.
    assert_eq!(node.content("stuck"), named(&[("before", 0)]));

    node.disk.release(&dir_of("stuck"));
    hanging.await;
    join_all(more).await;
    assert_eq!(node.content("stuck").len(), 202);
    assert_eq!(node.after_kill().content("stuck"), node.content("stuck"));
}

#[tokio::test]
async fn as_many_tenants_hang_as_there_are_threads_and_the_next_is_refused_at_once() {
    const THREADS_MAX: usize = 64;
    let node = Node::open(FaultyDisk::new());
    let names: Vec<String> = (0..THREADS_MAX).map(|i| format!("tenant-{i}")).collect();
    for name in names.iter().map(String::as_str).chain(["last"]) {
        node.store(name, "before", 0).await;
    }
    names.iter().for_each(|name| node.disk.stall(&dir_of(name)));
    let mut hanging: Vec<_> =
        names[1..].iter().map(|name| node.store(name, "hangs", 0).boxed()).collect();
    hanging.iter_mut().for_each(begin);
    node.wait_stalled(THREADS_MAX - 1).await;
    node.store("last", "a", 0).await;

    let mut hanging_too = node.store(&names[0], "hangs", 0).boxed();
    begin(&mut hanging_too);
    node.wait_stalled(THREADS_MAX).await;
    // Writes wait until it is found out that there is no thread for them.
    let mut t = 1;
    let refused = loop {
        tokio::select! {
            biased;
            written = node.write("last", "a", t) => match written {
                Err(refused) => break refused,
                Ok(_) => t += 1,
            },
            () = tokio::time::sleep(Duration::from_millis(5)) => {}
        }
    };
    assert!(matches!(refused, WriteError::Unavailable(_)), "{refused}");

    names.iter().for_each(|name| node.disk.release(&dir_of(name)));
    join_all(hanging).await;
    hanging_too.await;
    node.store("last", "a", t + 1).await;
    for name in &names {
        assert_eq!(node.content(name), named(&[("before", 0), ("hangs", 0)]));
    }
}

#[tokio::test]
async fn what_waits_goes_into_the_log_in_its_order_with_one_write() {
    let node = Node::open(FaultyDisk::new());
    let hanging = node.hang("a").await;
    let mut waiting: Vec<_> = ["x", "y", "z"].map(|s| node.store("a", s, 1).boxed()).into();
    // Of one series: out of order if they changed places.
    waiting.extend((2..6).map(|t| node.store("a", "x", t).boxed()));
    waiting.iter_mut().for_each(begin);
    let before = node.disk.operations();
    node.disk.release(&dir_of("a"));
    // Awaited from the last one: the order of waiting is not that of storing.
    join_all(waiting.into_iter().rev()).await;
    hanging.await;
    // The one that hung; three series at once; and x again, which must see what is stored of it. New
    // series are named a second time.
    assert_eq!(node.disk.operations() - before, 2 + 2 + 4);
    assert_eq!(node.after_kill().content("a"), node.content("a"));
}

#[tokio::test]
async fn a_failed_write_answers_all_that_went_with_it_and_leaves_no_trace() {
    let node = Node::open(FaultyDisk::new());
    let hanging = node.hang("a").await;
    let mut waiting: Vec<_> =
        ["x", "before", "z"].map(|series| node.write("a", series, 1).boxed()).into();
    waiting.iter_mut().for_each(begin);
    // Behind the one that hangs and the second copy of what names it.
    node.disk.fail_operation(2, std::io::ErrorKind::StorageFull, 11);
    node.disk.release(&dir_of("a"));
    hanging.await;
    for written in join_all(waiting).await {
        assert!(matches!(written, Err(WriteError::Unavailable(_))), "{written:?}");
    }
    let stored = named(&[("before", 0), ("hangs", 0)]);
    assert_eq!(node.content("a"), stored);
    assert_eq!(node.after_kill().content("a"), stored);
    for series in ["x", "before", "z"] {
        node.store("a", series, 1).await;
    }
    assert_eq!(node.after_kill().content("a"), node.content("a"));
}

#[tokio::test]
async fn who_goes_away_takes_what_waits_and_its_bytes_along() {
    let node = Node::open(FaultyDisk::new());
    let hanging = node.hang("a").await;
    let held = node.admission.inflight_bytes();
    assert!(held > 0, "what hangs is counted");
    let mut given_up = node.store("a", "given-up", 1).boxed();
    let mut kept = node.store("a", "kept", 1).boxed();
    begin(&mut given_up);
    begin(&mut kept);
    assert!(node.admission.inflight_bytes() > 2 * held);
    drop(given_up);
    assert!(node.admission.inflight_bytes() < 3 * held);
    // What has begun is stored whole, and counted until it is.
    drop(hanging);
    assert!(node.admission.inflight_bytes() > held);
    node.disk.release(&dir_of("a"));
    kept.await;
    assert_eq!(node.content("a"), named(&[("before", 0), ("hangs", 0), ("kept", 1)]));
    while node.admission.inflight_bytes() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn what_waits_is_bounded_by_the_budget() {
    let node = Node::open(FaultyDisk::new());
    let hanging = node.hang("a").await;
    let mut waiting = Vec::new();
    let refused = loop {
        let mut write = node.write("a", "x", waiting.len() as i64).boxed();
        match write.as_mut().now_or_never() {
            Some(written) => break written.unwrap_err(),
            None => waiting.push(write),
        }
        assert!(node.admission.inflight_bytes() <= node.admission.bytes_max());
    };
    assert!(matches!(refused, WriteError::Unavailable(_)), "{refused}");
    // Other tenants' do not wait, and are let in.
    node.store("b", "x", 0).await;
    node.disk.release(&dir_of("a"));
    hanging.await;
    let count = waiting.len();
    assert!(count > 100);
    for written in join_all(waiting).await {
        written.unwrap();
    }
    assert_eq!(node.content("a").len(), 2 + count);
    assert_eq!(node.admission.inflight_bytes(), 0);
}

const LARGE_SAMPLES: usize = 20_000;

/// A request of one series with so many samples: 360 KB, and more in a batch.
fn large_request(series: &str) -> Vec<u8> {
    let mut fields = Vec::new();
    push_label(&mut fields, 0x0a, b"__name__", series.as_bytes());
    for t in 0..LARGE_SAMPLES {
        let mut sample = vec![0x09];
        sample.extend_from_slice(&1.0f64.to_le_bytes());
        sample.push(0x10);
        push_varint(&mut sample, NOW as u64 + t as u64);
        fields.extend_from_slice(&[0x12, sample.len() as u8]);
        fields.extend_from_slice(&sample);
    }
    let mut request = vec![0x0a];
    push_varint(&mut request, fields.len() as u64);
    request.extend_from_slice(&fields);
    request
}

#[tokio::test]
async fn a_batch_takes_no_memory_that_the_budget_has_not() {
    let node = Node::open_with_budget(FaultyDisk::new(), SyncPolicy::Segment, 8 << 20);
    let (tenant, request) = (tenant("a"), large_request("a"));
    let write = || node.writer.write(&tenant, &request, Manners::Thanos);
    let room = 300 << 10;
    let others = node.admission.hold(node.admission.bytes_max() - room);
    let refused = write().await.unwrap_err();
    let overload = matches!(refused, WriteError::Unavailable(Unavailable::Overload(_)));
    assert!(overload, "{refused}");
    assert_eq!(node.admission.inflight_bytes(), others.bytes());
    let taken = node.writer.batches.lock().pop().unwrap().allocated_bytes();
    assert!(taken < room as usize, "{taken} bytes of {room}");
    // Usual ones pass.
    node.store("a", "b", 0).await;
    drop(others);
    assert_eq!(write().await.unwrap().samples_stored, LARGE_SAMPLES as u64);
    assert_eq!(node.admission.inflight_bytes(), 0);
}

#[tokio::test]
async fn a_batch_that_no_retry_could_store_is_too_large() {
    let node = Node::open_with_budget(FaultyDisk::new(), SyncPolicy::Segment, 1 << 20);
    let request = large_request("a");
    assert!(request.len() < 1 << 20);
    let refused = node.writer.write(&tenant("a"), &request, Manners::Thanos).await.unwrap_err();
    let too_large = matches!(refused, WriteError::TooLarge(TooLarge::Decoded { .. }));
    assert!(too_large, "{refused}");
    assert_eq!(node.admission.inflight_bytes(), 0);
}

/// On their way into a log that hangs, and to the medium.
#[tokio::test]
async fn many_large_requests_stay_under_the_budget() {
    for sync in [SyncPolicy::Segment, SyncPolicy::Always] {
        let node = Node::open_with_budget(FaultyDisk::new(), sync, 16 << 20);
        node.store("a", "before", 0).await;
        node.disk.stall(&dir_of("a"));
        let mut waiting = Vec::new();
        let names: Vec<_> = (0..100).map(|i| format!("series-{i}")).collect();
        let write = |name: &str| {
            let (node, request) = (&node, large_request(name));
            async move { node.writer.write(&tenant("a"), &request, Manners::Thanos).await }.boxed()
        };
        let refused = loop {
            let mut written = write(&names[waiting.len()]);
            match written.as_mut().now_or_never() {
                Some(refused) => break refused.unwrap_err(),
                None => waiting.push(written),
            }
            let inflight = node.admission.inflight_bytes();
            let least = waiting.len() * LARGE_SAMPLES * (24 + LOGGED_SAMPLE_BYTES);
            assert!(inflight >= least as u64, "{inflight} bytes for {}", waiting.len());
            assert!(inflight <= node.admission.bytes_max());
        };
        assert!(matches!(refused, WriteError::Unavailable(_)), "{refused}");
        assert!(waiting.len() > 3);
        node.disk.release(&dir_of("a"));
        for written in join_all(waiting).await {
            assert_eq!(written.unwrap().samples_stored, LARGE_SAMPLES as u64);
        }
        assert_eq!(node.admission.inflight_bytes(), 0);
        write("again").await.unwrap();
    }
}

/// It may wait for a sync when the log has let go of it.
#[tokio::test]
async fn a_batch_counts_until_its_request_is_done_with_it() {
    let node = Node::open_with_budget(FaultyDisk::new(), SyncPolicy::Segment, 16 << 20);
    let (tenant, request) = (tenant("a"), large_request("a"));
    node.store("a", "before", 0).await;
    let mut write = node.writer.write(&tenant, &request, Manners::Thanos).boxed();
    begin(&mut write);
    node.store("a", "behind", 0).await;
    assert_eq!(node.content("a").len(), LARGE_SAMPLES + 2);
    assert!(node.admission.inflight_bytes() >= (LARGE_SAMPLES * 24) as u64);
    assert_eq!(write.await.unwrap().samples_stored, LARGE_SAMPLES as u64);
    assert_eq!(node.admission.inflight_bytes(), 0);
}

#[tokio::test]
async fn a_lane_has_a_last_place() {
    let node = Node::open(FaultyDisk::new());
    let hanging = node.hang("a").await;
    let tenant = node.tenants.tenant(&tenant("a")).unwrap();
    let append = || async {
        let mut batch = Batch::default();
        tenant.appends.append(&mut batch, ()).await
    };
    let mut waiting = FuturesUnordered::new();
    let refused = loop {
        let mut append = Box::pin(append());
        match append.as_mut().now_or_never() {
            Some(refused) => break refused.unwrap_err(),
            None => waiting.push(append),
        }
    };
    assert!(matches!(refused, AppendError::QueueFull), "{refused}");
    let error = not_appended(&tenant.id, refused);
    assert!(matches!(error, WriteError::TenantNotReady { .. }), "one tenant's trouble");
    node.disk.release(&dir_of("a"));
    hanging.await;
    while let Some(appended) = waiting.next().await {
        appended.unwrap();
    }
}

#[tokio::test]
async fn closing_stores_what_waits_and_takes_no_more() {
    let node = Node::open(FaultyDisk::new());
    let hanging = node.hang("a").await;
    let mut waiting: Vec<_> = (0..5).map(|t| node.store("a", "x", t).boxed()).collect();
    waiting.iter_mut().for_each(begin);
    let tenants = node.tenants.clone();
    let closed = tokio::task::spawn_blocking(move || tenants.close());
    let refused = loop {
        let mut late = node.write("a", "late", 0).boxed();
        if let Some(written) = late.as_mut().now_or_never() {
            break written.unwrap_err();
        }
        drop(late);
        tokio::task::yield_now().await;
    };
    assert!(matches!(refused, WriteError::Unavailable(_)), "{refused}");
    assert!(!closed.is_finished());
    node.disk.release(&dir_of("a"));
    hanging.await;
    join_all(waiting).await;
    closed.await.unwrap();
    assert_eq!(node.after_kill().content("a").len(), 2 + 5);
}

#[tokio::test]
async fn a_disk_that_hangs_before_a_sync_holds_no_thread_either() {
    let node = Node::open_with(FaultyDisk::new(), SyncPolicy::Always);
    node.store("healthy", "a", 0).await;
    node.store("stuck", "a", 0).await;
    node.disk.stall(&dir_of("stuck"));
    let mut writes: Vec<_> = (1..9).map(|t| node.store("stuck", "a", t).boxed()).collect();
    writes.iter_mut().for_each(begin);
    node.wait_stalled(1).await;
    for t in 1..9 {
        node.store("healthy", "a", t).await;
    }
    node.disk.release(&dir_of("stuck"));
    join_all(writes).await;
    let synced = Node::open(node.disk.after_power_cut());
    assert_eq!(synced.content("stuck").len(), 9);
}

#[tokio::test]
async fn a_log_that_hangs_does_not_keep_the_others_from_being_synced() {
    let node = Node::open_with(FaultyDisk::new(), SyncPolicy::Interval);
    // It comes first in the order in which they are looked at.
    let hanging = node.hang("a-stuck").await;
    node.store("b", "a", 0).await;
    let others = node.tenants.tenant(&tenant("b")).unwrap();
    let log = others.db.sync_handle();
    while log.written_position() != Some(log.synced_position()) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(Node::open(node.disk.after_power_cut()).content("b").len(), 1);
    node.disk.release(&dir_of("a-stuck"));
    hanging.await;
}

#[tokio::test]
async fn tenants_whose_making_hangs_leave_threads_for_other_work() {
    /// What a runtime has of them for blocking work.
    const THREADS: usize = 512;
    let node = Node::open(FaultyDisk::new());
    node.disk.stall(Path::new("/data"));
    let names: Vec<String> = (0..THREADS + 1).map(|i| format!("new-{i}")).collect();
    let mut writes: Vec<_> = names.iter().map(|name| node.store(name, "a", 0).boxed()).collect();
    writes.iter_mut().for_each(begin);
    // Work of others has a thread all the same.
    tokio::task::spawn_blocking(|| ()).await.unwrap();
    // One that goes away leaves nothing that later ones would wait for.
    drop(writes.pop());
    node.disk.release(Path::new("/data"));
    join_all(writes).await;
    node.store(names.last().unwrap(), "a", 1).await;
}

#[tokio::test]
async fn an_answer_means_what_the_policy_promises() {
    for (policy, kept) in [(SyncPolicy::Always, 1), (SyncPolicy::Segment, 0)] {
        let node = Node::open_with(FaultyDisk::new(), policy);
        node.store("a", "x", 0).await;
        let synced = Node::open(node.disk.after_power_cut());
        let found = synced.tenants.tenant(&tenant("a")).map_or(0, |_| synced.content("a").len());
        assert_eq!(found, kept, "{policy:?}");
        assert_eq!(node.after_kill().content("a").len(), 1, "{policy:?}");
    }
}

#[tokio::test]
async fn a_write_whose_sync_failed_is_to_come_again() {
    let node = Node::open_with(FaultyDisk::new(), SyncPolicy::Always);
    node.store("a", "x", 0).await;
    node.disk.fail_syncs(2, FailedSync::DropsBytes);
    let failed = node.write("a", "x", 1).await.unwrap_err();
    assert!(matches!(failed, WriteError::Unavailable(_)), "{failed}");
    // Until what was lost is written again.
    while node.write("a", "x", 1).await.is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let synced = Node::open(node.disk.after_power_cut());
    assert_eq!(synced.content("a"), named(&[("x", 0), ("x", 1)]));
}

#[tokio::test]
async fn a_request_without_samples_makes_no_tenant() {
    let node = Node::open(FaultyDisk::new());
    let outcome = node.writer.write(&tenant("new"), &[], Manners::Thanos).await.unwrap();
    assert_eq!((outcome.samples_stored, outcome.refusals.total()), (0, 0));
    assert!(node.tenants.tenant(&tenant("new")).is_none());
    node.writer.write(&tenant("new"), b"\xff", Manners::Thanos).await.unwrap_err();
    assert!(node.tenants.tenant(&tenant("new")).is_none());
    node.store("new", "x", 0).await;
    assert!(node.tenants.tenant(&tenant("new")).is_some());
}

#[tokio::test]
async fn after_the_end_of_the_storage_the_node_as_a_whole_takes_nothing() {
    let node = Node::open(FaultyDisk::new());
    node.store("a", "x", 0).await;
    let tenants = node.tenants.clone();
    tokio::task::spawn_blocking(move || tenants.close()).await.unwrap();
    for of in ["a", "new"] {
        let refused = node.write(of, "x", 1).await.unwrap_err();
        assert!(matches!(refused, WriteError::Unavailable(_)), "{refused}");
    }
}
