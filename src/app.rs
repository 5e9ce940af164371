//! The receiver as a whole: what it is built from, and the order in which that starts and stops.
//!
//! Start: read certificates, bind every port (a taken one is known at once), lock the data directory,
//! begin to open what is in it, serve. Writes are taken tenant by tenant as their storage opens; the
//! node is ready when all of it is, and as long as the data directory can be used.
//!
//! Stop, on SIGTERM or SIGINT: not ready, no new connections; those that are open are served until
//! they can be closed between requests, within the grace periods; forwards under way end; then the
//! log is synced and closed. The head stays on disk as its log.

pub mod check;
mod listeners;
mod ring;
mod servers;
mod tls;

use std::convert::Infallible;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::FlockOperation;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::SystemClock;
use crate::config::{Config, Mode, Notice, NoticeKind, ShippingConfig, StorageConfig};
use crate::disk::{Disk, SystemDisk};
use crate::error::{chain, io_cause};
use crate::hashring::CurrentHashring;
use crate::metrics::{Registry, process};
use crate::model::router_path::InstanceId;
use crate::multi_tsdb::{MultiTsdb, MultiTsdbOptions, StartError, data_dir};
use crate::objstore::counted::Counted;
use crate::objstore::{self, OpenBucketError};
use crate::shipper::ShippingOptions;
use crate::tls::TlsError;
use crate::write::admission::Admission;
use listeners::{BindError, Listeners};
use tls::Tls;

/// Why the receiver did not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    #[error("starting threads: {0}")]
    Runtime(#[source] io::Error),
    #[error("watching for signals: {0}")]
    Signals(#[source] io::Error),
    #[error("drawing this process' name: {0}")]
    Random(#[source] getrandom::Error),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error("--{flag}: {}", chain(source))]
    Bucket { flag: &'static str, source: OpenBucketError },
    #[error("--tsdb.path={}: {}", path.display(), io_cause(source))]
    DataDirectory { path: PathBuf, source: io::Error },
    #[error("--tsdb.path={}: another process holds the lock on this data directory", .0.display())]
    DataDirectoryLocked(PathBuf),
    #[error("--tsdb.path: {0}")]
    Storage(#[source] StartError),
    #[error("{service}: {source}")]
    Serve { service: &'static str, source: io::Error },
    /// A task of ours panicked.
    #[error("{0}")]
    Panicked(#[from] JoinError),
}

/// How often storage and rings are asked whether they are there, until they are.
const READY_POLL_INTERVAL: Duration = Duration::from_millis(50);

/// How often they are asked whether they still are.
const READY_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Runs the receiver until a signal stops it.
pub fn run(config: Config) -> Result<(), AppError> {
    // One worker for each core that this process may use.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(AppError::Runtime)?;
    runtime.block_on(async {
        let mut stop = StopSignals::watch().map_err(AppError::Signals)?;
        App::start(config).await?.run(&mut stop).await
    })
}

/// What a node consists of.
struct Node {
    /// What this process is called among nodes.
    instance: InstanceId,
    storage: Option<Arc<MultiTsdb>>,
    ring: Option<ring::RingParts>,
    /// What goes on after a request was answered: forwards to slow replicas.
    tasks: TaskTracker,
    /// The budget that all writes are counted against.
    admission: Arc<Admission>,
}

/// The receiver, started.
struct App {
    /// None on a node that only routes.
    storage: Option<Arc<MultiTsdb>>,
    /// None on a node without any.
    rings: Option<CurrentHashring>,
    /// Cancelled when no new work is to be taken.
    draining: CancellationToken,
    /// The listeners. Once draining, each ends by itself within its grace period.
    servers: JoinSet<Result<(), AppError>>,
    /// Forwards that go on after their requests were answered, each for so long at most.
    tasks: TaskTracker,
    forward_timeout: Duration,
    /// Held until everything else is gone.
    _data_lock: Option<File>,
}

impl App {
    async fn start(config: Config) -> Result<App, AppError> {
        let registry = Registry::with_tenants_max(config.http.metrics_tenants_max);
        let tls = Tls::load(&config, &registry)?;
        let disk: Arc<dyn Disk> = Arc::new(SystemDisk);
        let shipping = config.shipping.as_ref();
        let shipping =
            shipping.map(|shipping| open_bucket(shipping, &disk, &registry)).transpose()?;
        let listeners = Listeners::bind(&config).await?;
        let mode = config.ring.mode();
        let has_storage = mode != Mode::RouterOnly;
        let data_lock = if has_storage { lock_data_directory(&config.storage)? } else { None };
        tracing::info!(mode = mode.as_str(), "starting receive");
        for Notice { kind, text } in &config.notices {
            match kind {
                NoticeKind::NoEffect | NoticeKind::NotYet | NoticeKind::Warning => {
                    tracing::warn!("{text}");
                }
                NoticeKind::Note => tracing::info!("{text}"),
            }
        }
        let files_max = raise_open_files();
        process::register(&registry);
        let draining = CancellationToken::new();
        let instance = InstanceId::random().map_err(AppError::Random)?;
        let ring = ring::start(&config.ring, instance, tls.peers.clone(), &registry, &draining);
        let rings = ring.as_ref().map(|ring| ring.current.clone());
        let storage = has_storage
            .then(|| open_storage(&config, rings.clone(), disk, shipping, &registry))
            .transpose()?;
        let tasks = TaskTracker::new();
        let admission = Admission::new(config.remote_write.inflight_bytes_max);
        let tasks_of_node = tasks.clone();
        let node =
            Node { instance, storage: storage.clone(), ring, tasks: tasks_of_node, admission };
        let servers =
            servers::spawn(listeners, tls, &config, &registry, node, files_max, &draining);
        let forward_timeout = config.ring.forward_timeout;
        Ok(App { storage, rings, draining, servers, tasks, forward_timeout, _data_lock: data_lock })
    }

    async fn run(mut self, stop: &mut StopSignals) -> Result<(), AppError> {
        let stopped = tokio::select! {
            signal = serve_until(self.storage.as_deref(), self.rings.as_ref(), stop) => {
                tracing::info!(signal, "caught a signal, stopping");
                Ok(())
            }
            // None of them ends before it is told to, unless it failed.
            Some(ended) = self.servers.join_next() => flatten(ended),
        };
        self.draining.cancel();
        tracing::warn!(status = "not-ready", reason = "stopping", "probe status changed");
        let drained = self.drain().await;
        if let Some(storage) = self.storage.take() {
            let closed = tokio::task::spawn_blocking(move || storage.close()).await;
            tracing::info!("storage is synced and closed");
            return stopped.and(drained).and(closed.map_err(AppError::from));
        }
        stopped.and(drained)
    }

    /// Waits for the listeners, all of which are draining at the same time.
    async fn drain(&mut self) -> Result<(), AppError> {
        let mut result = Ok(());
        while let Some(ended) = self.servers.join_next().await {
            result = result.and(flatten(ended));
        }
        self.tasks.close();
        if tokio::time::timeout(self.forward_timeout, self.tasks.wait()).await.is_err() {
            tracing::warn!(forwards = self.tasks.len(), "gave up forwards that did not end");
        }
        result
    }
}

fn flatten(ended: Result<Result<(), AppError>, JoinError>) -> Result<(), AppError> {
    ended.unwrap_or_else(|panicked| Err(panicked.into()))
}

/// Tells whether the node is ready, and returns the name of the signal that came.
async fn serve_until(
    storage: Option<&MultiTsdb>,
    rings: Option<&CurrentHashring>,
    stop: &mut StopSignals,
) -> &'static str {
    tokio::select! {
        never = report_readiness(storage, rings) => match never {},
        signal = stop.next() => signal,
    }
}

/// Tells when the node is ready, and when it no longer is.
async fn report_readiness(
    storage: Option<&MultiTsdb>,
    rings: Option<&CurrentHashring>,
) -> Infallible {
    let why_not_ready = || match rings {
        Some(rings) if rings.load().is_none() => Some("there is no hashring"),
        _ => storage.and_then(MultiTsdb::why_not_ready),
    };
    let mut was_ready = false;
    loop {
        let reason = why_not_ready();
        match reason {
            None if !was_ready => tracing::info!(status = "ready", "probe status changed"),
            Some(reason) if was_ready => {
                tracing::warn!(status = "not-ready", reason, "probe status changed");
            }
            _ => {}
        }
        was_ready = reason.is_none();
        let pause = if was_ready { READY_CHECK_INTERVAL } else { READY_POLL_INTERVAL };
        tokio::time::sleep(pause).await;
    }
}

/// Lets the process have as many open files as it may, as Go's runtime does: each connection and
/// each tenant's log takes one, and the default is a few for the sake of `select`. How many it may.
fn raise_open_files() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(err = %error, "cannot raise the limit of open files");
    }
    // None is no limit.
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Reads the files that the bucket's options name, and asks nobody.
fn open_bucket(
    shipping: &ShippingConfig,
    disk: &Arc<dyn Disk>,
    registry: &Registry,
) -> Result<ShippingOptions, AppError> {
    let bucket = objstore::open(&shipping.bucket, disk, registry)
        .map_err(|source| AppError::Bucket { flag: shipping.flag, source })?;
    let bucket = Arc::new(Counted::new(bucket, Arc::new(SystemClock), registry));
    Ok(ShippingOptions { bucket, shipper: shipping.shipper })
}

fn open_storage(
    config: &Config,
    rings: Option<CurrentHashring>,
    disk: Arc<dyn Disk>,
    shipping: Option<ShippingOptions>,
    registry: &Registry,
) -> Result<Arc<MultiTsdb>, AppError> {
    let options = MultiTsdbOptions {
        dir: config.storage.dir.clone(),
        db: config.storage.db.clone(),
        labels: config.storage.labels.clone(),
        tenant_label_name: config.tenancy.tenant_label_name.clone(),
        rings,
        default_tenant: config.tenancy.tenants.default_tenant().clone(),
        tenants_max: config.tenancy.tenants_max,
        has_periodic_work: true,
        flush_within: config.storage.flush_within,
        shipping,
    };
    if options.shipping.is_none() {
        tracing::info!("no bucket is configured, so blocks are not shipped");
    }
    MultiTsdb::open(options, disk, Arc::new(SystemClock), registry).map_err(AppError::Storage)
}

/// Makes the data directory, keeps other processes of ours out of it, and tries whether it can be
/// used.
///
/// The lock is on the directory itself: a file in it would be in the way of a tenant of its name.
/// Prometheus and Thanos do not know it; they lock each tenant's directory, and so does our
/// storage.
fn lock_data_directory(storage: &StorageConfig) -> Result<Option<File>, AppError> {
    let dir = &storage.dir;
    let directory = open_directory(dir).map_err(|source| directory_error(dir, source))?;
    let lock = if storage.db.no_lockfile { None } else { lock_directory(dir, directory)? };
    data_dir::try_out(&SystemDisk, dir).map_err(|source| directory_error(dir, source))?;
    Ok(lock)
}

fn lock_directory(dir: &Path, directory: File) -> Result<Option<File>, AppError> {
    match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(directory)),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(AppError::DataDirectoryLocked(dir.to_owned())),
        Err(error) => {
            // Some network file systems have no such locks.
            tracing::warn!(err = %error, "cannot lock the data directory");
            Ok(None)
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "before anything is served")]
fn open_directory(dir: &Path) -> io::Result<File> {
    if let Err(error) = fs::DirBuilder::new().recursive(true).mode(0o755).create(dir) {
        // What stands there is no directory.
        let is_file = error.kind() == io::ErrorKind::AlreadyExists;
        return Err(if is_file { io::ErrorKind::NotADirectory.into() } else { error });
    }
    File::open(dir)
}

fn directory_error(dir: &Path, source: io::Error) -> AppError {
    let path = dir.to_owned();
    match source.kind() {
        io::ErrorKind::WouldBlock => AppError::DataDirectoryLocked(path),
        _ => AppError::DataDirectory { path, source },
    }
}

/// The signals that end the process, and the one that is only noted.
struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl StopSignals {
    fn watch() -> io::Result<StopSignals> {
        Ok(StopSignals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for a signal to stop and returns its name.
    async fn next(&mut self) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "terminated",
                _ = self.interrupt.recv() => return "interrupt",
                _ = self.hangup.recv() => {
                    tracing::info!(signal = "hangup", "nothing is reloaded by a signal");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tsdb::options::DbOptions;

    fn storage(dir: PathBuf, no_lockfile: bool) -> StorageConfig {
        let db = DbOptions { no_lockfile, ..DbOptions::default() };
        StorageConfig { dir, labels: Vec::new(), db, flush_within: None }
    }

    #[test]
    fn one_process_at_a_time_has_the_data_directory() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("a/b");
        let first = lock_data_directory(&storage(data.clone(), false)).unwrap();
        assert!(first.is_some());
        let second = lock_data_directory(&storage(data.clone(), false));
        assert!(matches!(second, Err(AppError::DataDirectoryLocked(_))));
        assert!(lock_data_directory(&storage(data.clone(), true)).unwrap().is_none());
        drop(first);
        assert!(lock_data_directory(&storage(data, false)).unwrap().is_some());
    }

    #[test]
    fn a_file_in_the_place_of_the_data_directory_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        fs::write(&file, "").unwrap();
        for path in [file.clone(), file.join("data")] {
            let error = lock_data_directory(&storage(path, false)).unwrap_err().to_string();
            assert!(error.starts_with("--tsdb.path="), "{error}");
            assert!(error.ends_with(": not a directory"), "{error}");
        }
    }
}
