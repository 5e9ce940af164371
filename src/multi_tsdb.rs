//! Tenant to [`Db`]: opened at start or by the tenant's first write.
//!
//! At start the lock of every tenant's directory is taken at once, so that a second process ends
//! with a clear error; the logs are replayed in the background, and each tenant serves as soon as
//! its own is, and takes writes before that where a look at the log tells enough ([`opening`]). A
//! tenant that cannot be opened is quarantined: its writes are 503, it is tried again from time to
//! time, and nobody else notices.

mod append_lane;
mod cutter;
pub mod data_dir;
mod disk_threads;
mod found;
mod loading;
mod merger;
mod opening;
mod periodic;
mod pruning;
mod reopening;
mod syncer;
mod tenant;

use std::cell::LazyCell;
use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::sync::{Semaphore, watch};

use crate::clock::Clock;
use crate::disk::Disk;
use crate::error::chain;
use crate::hashring::{CurrentHashring, Hashring};
use crate::metrics::{Counter, Gauge, Registry};
use crate::model::fingerprint::Fingerprinter;
use crate::model::stop::{self, Stop, StopOnDrop};
use crate::model::tenant::TenantId;
use crate::multi_tsdb::append_lane::AppendMetrics;
pub use crate::multi_tsdb::append_lane::{AppendError, AppendLane};
use crate::multi_tsdb::data_dir::DataDir;
use crate::multi_tsdb::disk_threads::{DiskThreads, DiskThreadsOptions};
use crate::multi_tsdb::found::find_tenants;
pub use crate::multi_tsdb::loading::StartStatus;
use crate::multi_tsdb::periodic::Periodic;
use crate::multi_tsdb::tenant::{ExternalLabels, OpenTenant};
pub use crate::multi_tsdb::tenant::{LabelSet, Tenant};
use crate::shipper::{self, ShippedTenant, Shipping, ShippingOptions};
use crate::tsdb::block::ulid::Ulid;
use crate::tsdb::env::Env;
use crate::tsdb::loading::Loading;
use crate::tsdb::options::DbOptions;
use crate::tsdb::wal::SyncPolicy;
use crate::tsdb::{Db, OpenError};

/// What all tenants share.
pub struct MultiTsdbOptions {
    /// `--tsdb.path`
    pub dir: PathBuf,
    pub db: DbOptions,
    /// `--label`s, name and value, in the order given.
    pub labels: Vec<(String, String)>,
    /// `--receive.tenant-label-name`
    pub tenant_label_name: String,
    /// Rings may give the tenants they name further labels.
    pub rings: Option<CurrentHashring>,
    /// `--receive.default-tenant-id`: its directory is made at start.
    pub default_tenant: TenantId,
    /// Tenants beyond this are refused.
    pub tenants_max: usize,
    /// Whether logs are synced, quarantined tenants tried again and the data directory looked at
    /// from time to time; else only when somebody calls for it.
    pub has_periodic_work: bool,
    /// `--tsdb.flush-on-shutdown`: how long heads are cut into blocks at the end, if at all.
    pub flush_within: Option<Duration>,
    /// Where blocks are shipped to; `None` where they stay.
    pub shipping: Option<ShippingOptions>,
}

/// Logs replayed side by side at start; each replay uses up to three threads.
const REPLAYS_TOGETHER: usize = 2;

/// Threads that write as many tenants' logs, at most: each may hang in the disk.
const APPEND_THREADS_MAX: usize = 64;

/// Threads that sync as many tenants' logs, at most, and while none hangs.
const SYNC_THREADS_MAX: usize = 64;
const SYNC_THREADS: usize = 2;

/// Tenants made at the same time: a disk that hangs must not take all of the runtime's threads for
/// blocking work.
const MADE_TOGETHER: usize = 32;

/// What is not in the bucket by then is uploaded after the next start.
const LAST_UPLOADS_MAX: Duration = Duration::from_secs(60);

/// How often a quarantined tenant is tried again.
const QUARANTINE_RETRY: Duration = Duration::from_secs(15);

/// All tenants of this node.
pub struct MultiTsdb {
    options: MultiTsdbOptions,
    env: Env,
    tenants: RwLock<HashMap<TenantId, Entry>>,
    /// Tenants found at start that neither take writes nor are quarantined yet.
    unopened: AtomicUsize,
    data_dir: DataDir,
    is_closed: AtomicBool,
    /// What all appends run on.
    append_threads: Arc<DiskThreads>,
    append_metrics: Arc<AppendMetrics>,
    sync_threads: Arc<DiskThreads>,
    /// Places for those that make tenants.
    makers: Arc<Semaphore>,
    quarantined: Gauge,
    open_retries: Counter,
    refused: Counter,
    /// The threads for what is done from time to time; none once closed.
    periodic: Mutex<Vec<Periodic>>,
    /// By which long work in the background learns that it is to end, and who tells it.
    background: Stop,
    /// The rings at the last look.
    seen_rings: Mutex<Option<Arc<Hashring>>>,
    end_background: Mutex<Option<StopOnDrop>>,
    /// None where blocks stay where they are.
    shipping: OnceLock<Shipping>,
}

#[derive(Clone)]
enum Entry {
    Open(Arc<Tenant>),
    /// Its log is being replayed, and it takes writes.
    Loading(Arc<LoadingTenant>),
    /// Its log is looked at or being replayed.
    Opening(Arc<Opening>),
    /// Its first write is making it, or it is being pruned; the receiver tells when that is done.
    Creating(watch::Receiver<()>),
    Quarantined(Arc<Quarantine>),
}

/// A tenant that is being opened.
struct Opening {
    external_labels: ExternalLabels,
    loading: Arc<Loading>,
}

/// A tenant that takes writes, and that nothing else is done with until its log is read.
struct LoadingTenant {
    tenant: Arc<Tenant>,
    loading: Arc<Loading>,
}

/// A tenant that could not be opened.
struct Quarantine {
    reason: String,
    external_labels: ExternalLabels,
}

/// The tenants there are at one moment, each in order of their names.
pub struct AllTenants {
    pub open: Vec<Arc<Tenant>>,
    /// Those that have data which cannot be read now.
    pub unavailable: Vec<UnavailableTenant>,
}

/// A tenant that has data which cannot be read now.
#[derive(Clone, Debug)]
pub struct UnavailableTenant {
    pub id: TenantId,
    /// As an open one has them.
    pub external_labels: Arc<LabelSet>,
    pub reason: TenantError,
}

/// Why a tenant cannot be written or read now. A retry may succeed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TenantError {
    #[error("its log is being replayed")]
    Opening,
    #[error("quarantined: {0}")]
    Quarantined(String),
    #[error("it could not be made: {0}")]
    NotMade(String),
    #[error("this node has as many tenants as it may have")]
    TooMany,
    #[error("the storage is closed")]
    Closed,
}

/// Why the storage as a whole cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Locked(OpenError),
    #[error("{}: {source}", dir.display())]
    Io { dir: PathBuf, source: io::Error },
    /// The owner, the mode or the mount keeps us out of all there is.
    #[error("none of the tenants' directories can be used: {}", chain(.0))]
    Denied(OpenError),
    #[error("starting threads: {0}")]
    Threads(#[source] io::Error),
}

impl MultiTsdb {
    /// Takes the locks of the tenants found under the data directory and starts opening them in
    /// the background.
    pub fn open(
        mut options: MultiTsdbOptions,
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        registry: &Registry,
    ) -> Result<Arc<MultiTsdb>, StartError> {
        let found = find_tenants(&options, &*disk, registry)?;
        let shipping = options.shipping.take();
        let cores = thread::available_parallelism().map_or(1, |cores| cores.get());
        let append_threads = DiskThreads::start(DiskThreadsOptions {
            name: "append",
            threads_usual: cores.clamp(2, APPEND_THREADS_MAX),
            threads_max: APPEND_THREADS_MAX,
        });
        let append_threads = Arc::new(append_threads.map_err(StartError::Threads)?);
        let sync_threads = DiskThreads::start(DiskThreadsOptions {
            name: "sync",
            threads_usual: SYNC_THREADS,
            threads_max: SYNC_THREADS_MAX,
        });
        let append_metrics = AppendMetrics::new(registry);
        show_appends(registry, &append_threads, &append_metrics);
        let opening = |id| {
            let external_labels = ExternalLabels::new(&options, id);
            Entry::Opening(Arc::new(Opening { external_labels, loading: Arc::default() }))
        };
        let entries = found.iter().map(|found| (found.id.clone(), opening(&found.id))).collect();
        let data_dir = DataDir::new(options.dir.clone(), registry);
        let (end_background, background) = stop::pair();
        let tenants = Arc::new(MultiTsdb {
            options,
            env: Env::new(disk, clock, registry.clone()),
            tenants: RwLock::new(entries),
            unopened: AtomicUsize::new(found.len()),
            data_dir,
            is_closed: AtomicBool::new(false),
            append_threads,
            append_metrics,
            sync_threads: Arc::new(sync_threads.map_err(StartError::Threads)?),
            makers: Arc::new(Semaphore::new(MADE_TOGETHER)),
            quarantined: registry.gauge(
                "ringest_tenants_quarantined",
                "Tenants whose data could not be opened and that are not served.",
            ),
            open_retries: registry.counter(
                "ringest_tenant_open_retries_total",
                "Attempts to open a quarantined tenant again.",
            ),
            refused: registry.counter(
                "ringest_tenants_refused_total",
                "Writes that were refused since their tenant would have been one too many.",
            ),
            periodic: Mutex::default(),
            background,
            seen_rings: Mutex::default(),
            end_background: Mutex::new(Some(end_background)),
            shipping: OnceLock::new(),
        });
        tenants.show(registry);
        tenants.show_loading(registry);
        // Before anything is deleted that would have to be shipped.
        if let Some(shipping) = shipping {
            tenants.start_shipping(shipping).map_err(StartError::Threads)?;
        }
        if tenants.options.has_periodic_work {
            tenants.start_periodic_work();
        }
        tenants.open_found(found);
        Ok(tenants)
    }

    /// Ships the blocks of all tenants from now on, as they open.
    fn start_shipping(self: &Arc<Self>, options: ShippingOptions) -> io::Result<()> {
        let tenants = Arc::downgrade(self);
        let open = move || tenants.upgrade().map_or_else(Vec::new, |tenants| tenants.shipped());
        let Env { disk, clock, registry, .. } = self.env.clone();
        let shipping = Shipping::start(options, disk, clock, &registry, open)?;
        let _ = self.shipping.set(shipping);
        Ok(())
    }

    /// Which of a tenant's blocks may be deleted: where they are shipped, those that are in the
    /// bucket.
    fn may_go(&self, id: &TenantId) -> impl Fn(Ulid) -> bool {
        let is_shipped = self.shipping.get().is_some();
        let shipped = LazyCell::new(|| shipper::shipped(&*self.env.disk, &self.dir_of(id)));
        move |ulid| !is_shipped || shipped.contains(&ulid)
    }

    /// What is shipped now: the open tenants, with their labels of the moment.
    fn shipped(self: &Arc<Self>) -> Vec<ShippedTenant> {
        let shipped = |tenant: Arc<Tenant>| {
            let (id, dir) = (tenant.id.clone(), self.dir_of(&tenant.id));
            let db = OpenTenant { tenants: Arc::downgrade(self), id: id.clone() };
            ShippedTenant { id, dir, db: Arc::new(db) }
        };
        self.tenants().into_iter().map(shipped).collect()
    }

    fn start_periodic_work(self: &Arc<Self>) {
        let sync = match self.options.db.wal_sync {
            SyncPolicy::Interval | SyncPolicy::Always => syncer::sync_dirty,
            SyncPolicy::Segment => syncer::mend_failed,
        };
        // Opening a tenant again may take long, during which the logs are synced all the same.
        let works = [
            ("tenant-retry", QUARANTINE_RETRY, MultiTsdb::retry_quarantined as fn(&MultiTsdb)),
            ("wal-sync", syncer::SYNC_EVERY, sync),
            ("data-directory", data_dir::LOOK_EVERY, MultiTsdb::look_at_data_dir),
            ("loading", loading::TELL_EVERY, MultiTsdb::tell_loading),
        ];
        let works = works.map(|(name, every, work)| Periodic::start(name, every, self, work));
        self.periodic.lock().extend(works);
        let every = cutter::look_every(self.cut_range());
        let cutter = Periodic::start_in_background("cut", every, self, MultiTsdb::cut_heads);
        let merger = Periodic::start_in_background("merge", every, self, MultiTsdb::merge_blocks);
        self.periodic.lock().extend([cutter, merger]);
    }

    /// Makes all logs durable now; those that cannot be are told. Blocks on the disk.
    pub fn sync(&self) {
        syncer::sync_dirty_here(self);
    }

    fn look_at_data_dir(&self) {
        self.data_dir.look(&*self.env.disk);
    }

    /// Shows on the page how many tenants and series there are and may be.
    fn show(self: &Arc<Self>, registry: &Registry) {
        let limit =
            registry.gauge("ringest_tenants_max", "Tenants there may be: --receive.tenants-max.");
        limit.set(self.options.tenants_max as f64);
        let limit = registry.gauge(
            "ringest_head_series_max",
            "Series that each tenant's head may have: --tsdb.head-series-max.",
        );
        limit.set(self.options.db.series_max as f64);
        let used =
            registry.gauge("ringest_tenants", "Tenants there are, quarantined ones included.");
        let tenants = Arc::downgrade(self);
        registry.on_collect(move || {
            if let Some(tenants) = tenants.upgrade() {
                used.set(tenants.tenants.read().len() as f64);
            }
        });
    }

    /// Whether exemplars are stored, not counted and dropped.
    pub fn keeps_exemplars(&self) -> bool {
        self.options.db.exemplars_max > 0
    }

    /// Whether every tenant found at start takes writes or is quarantined, and the storage as a
    /// whole can be used.
    pub fn is_ready(&self) -> bool {
        self.why_not_ready().is_none()
    }

    /// What keeps the storage from being ready.
    pub fn why_not_ready(&self) -> Option<&'static str> {
        if self.unopened.load(Ordering::Acquire) > 0 {
            return Some("tenants are being opened");
        }
        if !self.data_dir.is_usable() {
            return Some("the data directory cannot be used");
        }
        let tenants = self.tenants.read();
        let is_served = |entry: &Entry| !matches!(entry, Entry::Quarantined(_));
        // The default tenant at least is there until the end.
        let none_is_served = !tenants.is_empty() && !tenants.values().any(is_served);
        none_is_served.then_some("no tenant could be opened")
    }

    /// The open tenants, in order of their names.
    pub fn tenants(&self) -> Vec<Arc<Tenant>> {
        let mut open: Vec<_> = self.tenants.read().values().filter_map(Entry::open).collect();
        open.sort_by(|a, b| a.id.cmp(&b.id));
        open
    }

    /// The tenants that take writes, in order of their names: open or not yet.
    fn written_tenants(&self) -> Vec<Arc<Tenant>> {
        let mut written: Vec<_> =
            self.tenants.read().values().filter_map(Entry::takes_writes).collect();
        written.sort_by(|a, b| a.id.cmp(&b.id));
        written
    }

    /// The open tenants, and those that cannot be read though they have data.
    pub fn all_tenants(&self) -> AllTenants {
        let (mut open, mut unavailable) = (Vec::new(), Vec::new());
        for (id, entry) in &*self.tenants.read() {
            match entry {
                Entry::Open(tenant) => open.push(tenant.clone()),
                Entry::Loading(loading) => {
                    let labels = &loading.tenant.external_labels;
                    unavailable.push(unavailable_tenant(id, labels, TenantError::Opening));
                }
                Entry::Opening(opening) => {
                    let labels = &opening.external_labels;
                    unavailable.push(unavailable_tenant(id, labels, TenantError::Opening));
                }
                Entry::Quarantined(quarantine) => {
                    let Quarantine { external_labels, .. } = &**quarantine;
                    unavailable.push(unavailable_tenant(id, external_labels, quarantine.error()));
                }
                // Nothing of it was acknowledged yet, or nothing is kept any longer.
                Entry::Creating(_) => {}
            }
        }
        open.sort_by(|a, b| a.id.cmp(&b.id));
        unavailable.sort_by(|a, b| a.id.cmp(&b.id));
        AllTenants { open, unavailable }
    }

    /// The tenant if it is open.
    pub fn tenant(&self, id: &TenantId) -> Option<Arc<Tenant>> {
        self.tenants.read().get(id)?.open()
    }

    /// The tenant to read; `None` if there is none.
    pub fn find_to_read(&self, id: &TenantId) -> Result<Option<Arc<Tenant>>, TenantError> {
        match self.tenants.read().get(id) {
            Some(Entry::Open(tenant)) => Ok(Some(tenant.clone())),
            Some(Entry::Opening(_) | Entry::Loading(_)) => Err(TenantError::Opening),
            Some(Entry::Quarantined(quarantine)) => Err(quarantine.error()),
            Some(Entry::Creating(_)) | None => Ok(None),
        }
    }

    /// The tenant to write to; `None` if there is none yet.
    pub fn find(&self, id: &TenantId) -> Result<Option<Arc<Tenant>>, TenantError> {
        match self.tenants.read().get(id) {
            Some(Entry::Open(tenant)) => Ok(Some(tenant.clone())),
            Some(Entry::Loading(loading)) => Ok(Some(loading.tenant.clone())),
            Some(Entry::Opening(_)) => Err(TenantError::Opening),
            Some(Entry::Quarantined(quarantine)) => Err(quarantine.error()),
            Some(Entry::Creating(_)) | None => Ok(None),
        }
    }

    /// The tenant, made if need be. Several first writes at once make it once.
    pub async fn create(self: &Arc<Self>, id: &TenantId) -> Result<Arc<Tenant>, TenantError> {
        loop {
            let being_made = match self.tenants.read().get(id) {
                Some(Entry::Creating(created)) => Some(created.clone()),
                _ => None,
            };
            if let Some(created) = being_made {
                wait_made(created).await;
                continue;
            }
            // Before the claim, which a request that goes away would leave behind. It is never
            // closed.
            let Ok(place) = self.makers.clone().acquire_owned().await else {
                return Err(TenantError::Closed);
            };
            match self.claim(id)? {
                Claim::Open(tenant) => return Ok(tenant),
                Claim::Wait(created) => {
                    drop(place);
                    wait_made(created).await;
                }
                Claim::Ours(done) => {
                    let (tenants, id) = (self.clone(), id.clone());
                    let make = move || {
                        let _place = place;
                        tenants.make(&id, done)
                    };
                    let made = tokio::task::spawn_blocking(make).await;
                    return made.unwrap_or_else(|err| Err(TenantError::NotMade(err.to_string())));
                }
            }
        }
    }

    /// Stores the writes that wait, then flushes, syncs and closes every tenant. Writes that come
    /// later fail.
    pub fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
        drop(self.end_background.lock().take());
        let periodic = std::mem::take(&mut *self.periodic.lock());
        // Waits for those that are at work.
        drop(periodic);
        // Those whose logs are still being read, too.
        let tenants = self.written_tenants();
        // One tenant's disk may be slow, and all have stopped taking writes before.
        tenants.iter().for_each(|tenant| tenant.appends.refuse());
        tenants.iter().for_each(|tenant| tenant.appends.drain());
        if let Some(within) = self.options.flush_within {
            self.flush_heads(within);
        }
        for tenant in &tenants {
            if let Err(err) = tenant.db.close() {
                tracing::error!(tenant = %tenant.id, %err, "closing the log failed");
            }
        }
        if let Some(shipping) = self.shipping.get() {
            shipping.finish(LAST_UPLOADS_MAX);
        }
        self.append_threads.close();
        self.sync_threads.close();
        // Their locks are files, and others wait for this one meanwhile.
        let closed = std::mem::take(&mut *self.tenants.write());
        drop(closed);
    }

    fn claim(&self, id: &TenantId) -> Result<Claim, TenantError> {
        if self.is_closed.load(Ordering::Acquire) {
            return Err(TenantError::Closed);
        }
        let mut tenants = self.tenants.write();
        match tenants.get(id) {
            Some(Entry::Open(tenant)) => Ok(Claim::Open(tenant.clone())),
            Some(Entry::Loading(loading)) => Ok(Claim::Open(loading.tenant.clone())),
            Some(Entry::Creating(created)) => Ok(Claim::Wait(created.clone())),
            Some(Entry::Opening(_)) => Err(TenantError::Opening),
            Some(Entry::Quarantined(quarantine)) => Err(quarantine.error()),
            None if tenants.len() >= self.options.tenants_max => {
                self.refused.inc();
                Err(TenantError::TooMany)
            }
            None => {
                let (done, created) = watch::channel(());
                tenants.insert(id.clone(), Entry::Creating(created));
                Ok(Claim::Ours(done))
            }
        }
    }

    /// Opens a tenant that this process has claimed; whoever waits learns by `done`.
    fn make(&self, id: &TenantId, done: watch::Sender<()>) -> Result<Arc<Tenant>, TenantError> {
        let claim = ClaimGuard { tenants: self, id, done: Some(done) };
        let dir = self.dir_of(id);
        let opened = Db::lock(&*self.env.disk, &dir, &self.options.db)
            .and_then(|lock| self.open_new(id, lock));
        let opened = opened.map_err(|err| {
            let err = chain(&err);
            tracing::error!(tenant = %id, err, "making the tenant failed");
            TenantError::NotMade(err)
        });
        // Nothing below waits for the disk: writes of other tenants wait for this lock, on threads
        // that serve sockets.
        let mut tenants = self.tenants.write();
        let result = match &opened {
            Ok(_) if self.is_closed.load(Ordering::Acquire) => {
                tenants.remove(id);
                Err(TenantError::Closed)
            }
            Ok(tenant) => {
                tenants.insert(id.clone(), Entry::Open(tenant.clone()));
                Ok(tenant.clone())
            }
            Err(_) => {
                // The next write tries again.
                tenants.remove(id);
                opened.clone()
            }
        };
        drop(tenants);
        drop(claim);
        result
    }

    fn dir_of(&self, id: &TenantId) -> PathBuf {
        self.options.dir.join(id.as_str())
    }

    /// What decodes requests for tenants that do not exist yet hashes keys with.
    pub fn fingerprinter(&self) -> &Fingerprinter {
        &self.env.fingerprinter
    }
}

async fn wait_made(mut created: watch::Receiver<()>) {
    // An error means that the maker is done or gone; the entry is settled either way.
    let _ = created.changed().await;
}

/// Gives a claimed tenant up if making it panics, and then tells who waits.
struct ClaimGuard<'a> {
    tenants: &'a MultiTsdb,
    id: &'a TenantId,
    done: Option<watch::Sender<()>>,
}

impl Drop for ClaimGuard<'_> {
    fn drop(&mut self) {
        let mut tenants = self.tenants.tenants.write();
        if let Some(Entry::Creating(_)) = tenants.get(self.id) {
            tenants.remove(self.id);
        }
        drop(self.done.take());
    }
}

enum Claim {
    Open(Arc<Tenant>),
    Wait(watch::Receiver<()>),
    Ours(watch::Sender<()>),
}

impl Entry {
    fn open(&self) -> Option<Arc<Tenant>> {
        match self {
            Entry::Open(tenant) => Some(tenant.clone()),
            _ => None,
        }
    }

    fn takes_writes(&self) -> Option<Arc<Tenant>> {
        match self {
            Entry::Open(tenant) => Some(tenant.clone()),
            Entry::Loading(loading) => Some(loading.tenant.clone()),
            _ => None,
        }
    }
}

impl Quarantine {
    fn error(&self) -> TenantError {
        TenantError::Quarantined(self.reason.clone())
    }
}

fn unavailable_tenant(
    id: &TenantId,
    external_labels: &ExternalLabels,
    reason: TenantError,
) -> UnavailableTenant {
    let external_labels = external_labels.under_current_ring(id);
    UnavailableTenant { id: id.clone(), external_labels, reason }
}

/// Shows how the writes get to the disk.
fn show_appends(registry: &Registry, threads: &Arc<DiskThreads>, metrics: &Arc<AppendMetrics>) {
    let waiting = registry.gauge(
        "ringest_append_waiting_requests",
        "Writes that wait for their place in their tenant's log.",
    );
    let running =
        registry.gauge("ringest_append_threads", "Threads that take writes to the tenants' logs.");
    let stuck = registry.gauge(
        "ringest_append_threads_stuck",
        "Those among them whose write has taken longer than 20 ms: each is one tenant's.",
    );
    let (threads, metrics) = (Arc::downgrade(threads), Arc::downgrade(metrics));
    registry.on_collect(move || {
        let (Some(threads), Some(metrics)) = (threads.upgrade(), metrics.upgrade()) else { return };
        let status = threads.status();
        waiting.set(metrics.waiting() as f64);
        running.set(status.threads as f64);
        stuck.set(status.stuck as f64);
    });
}

#[cfg(test)]
pub(crate) mod tests;
