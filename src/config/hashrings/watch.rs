//! Follows the hashrings file however it is changed: in place, by rename, by the swap of
//! Kubernetes' `..data` symlink, deleted and restored.
//!
//! The *directory* is watched, since a watch on the file stays with what the name pointed to
//! before. Any event there leads to a read, and unchanged content to nothing. The file is also read
//! every refresh interval, for file systems that tell nothing.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use notify::event::ModifyKind;
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::config::hashrings::{self, HashringsError};
use crate::hashring::{CurrentHashring, Hashring, HashringMetrics, RingDefaults};
use crate::metrics::{Counter, Gauge, GaugeVec, Registry};
use crate::model::Timestamp;

/// A file that is rewritten in place is empty, or half there, for a moment: bad content is read
/// again this many times before anyone complains.
const SETTLE_READS: u32 = 5;
/// Time between those reads. All of them together stay below a second.
const SETTLE_DELAY: Duration = Duration::from_millis(100);

/// How often a directory that cannot be watched, because it is not there yet, is tried again.
const WATCH_RETRY_DELAY: Duration = Duration::from_secs(1);

/// The shortest time between two reads without an event.
const REFRESH_INTERVAL_MIN: Duration = Duration::from_millis(10);

/// A larger file is no hashrings file. A ConfigMap holds at most 1 MiB.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Why the file could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("failed to read configuration file: {0}")]
    Read(#[from] io::Error),
    #[error("failed to read configuration file: it is larger than {FILE_BYTES_MAX} bytes")]
    TooLarge,
    #[error(transparent)]
    Refused(#[from] HashringsError),
}

/// What a read of the file came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loaded {
    /// A new snapshot is in force.
    Changed,
    Unchanged,
}

/// The state of the file, for people.
#[derive(Clone, Debug, Default)]
pub struct FileStatus {
    /// Of the content in force, as in `thanos_receive_config_hash`.
    pub config_hash: Option<u64>,
    /// When that content was taken.
    pub loaded_at: Option<Timestamp>,
    /// What is wrong with the content that was read last, if anything.
    pub last_error: Option<String>,
}

/// Reads the file, builds its rings and puts them in force.
pub struct HashringsFile {
    path: PathBuf,
    defaults: RingDefaults,
    clock: Arc<dyn Clock>,
    metrics: FileMetrics,
    hashring_metrics: HashringMetrics,
    current: CurrentHashring,
    status: Arc<Mutex<FileStatus>>,
    /// SHA-256 of the content in force.
    content_hash: Option<[u8; 32]>,
    /// Names of the rings that have metrics.
    names: HashSet<String>,
}

impl HashringsFile {
    /// Nothing is read yet.
    pub fn new(
        path: PathBuf,
        defaults: RingDefaults,
        current: CurrentHashring,
        clock: Arc<dyn Clock>,
        registry: &Registry,
    ) -> HashringsFile {
        HashringsFile {
            path,
            defaults,
            clock,
            metrics: FileMetrics::new(registry),
            hashring_metrics: HashringMetrics::new(registry),
            current,
            status: Arc::default(),
            content_hash: None,
            names: HashSet::new(),
        }
    }

    /// A view of the state of the file that stays up to date.
    pub fn status(&self) -> Arc<Mutex<FileStatus>> {
        self.status.clone()
    }

    /// Reads the file and, if its content is new and can be parsed, puts its rings in force. Says
    /// nothing of an error; that is for [`HashringsFile::complain`].
    pub fn load(&mut self) -> Result<Loaded, LoadError> {
        self.metrics.refreshes.inc();
        let content = read_capped(&self.path)?;
        let content_hash: [u8; 32] = Sha256::digest(&content).into();
        if self.content_hash == Some(content_hash) {
            // Perhaps back from a bad content, which never was in force.
            self.metrics.last_successful.set(1.0);
            self.status.lock().last_error = None;
            return Ok(Loaded::Unchanged);
        }
        let rings = hashrings::parse(&content)?;
        let previous = self.current.load();
        let hashring =
            Hashring::build(rings, self.defaults, previous.as_deref(), &self.hashring_metrics);
        self.content_hash = Some(content_hash);
        let config_hash = hashrings::config_hash(&content);
        self.count_success(&content, config_hash, &hashring);
        self.current.replace(hashring);
        self.tell_success(config_hash);
        Ok(Loaded::Changed)
    }

    fn count_success(&mut self, content: &[u8], config_hash: u64, hashring: &Hashring) {
        let metrics = &self.metrics;
        metrics.changes.inc();
        metrics.config_hash.set(config_hash as f64);
        metrics.controller_hash.set(hashrings::controller_hash(content) as f64);
        metrics.last_successful.set(1.0);
        metrics.last_success_seconds.set(self.clock.now() as f64 / 1000.0);
        // A ring that is gone has no nodes, rather than those it had.
        for name in self.names.drain() {
            for family in [&metrics.nodes, &metrics.tenants, &metrics.warnings] {
                family.with(&[&name]).set(0.0);
            }
        }
        for ring in hashring.rings() {
            metrics.nodes.with(&[ring.name]).set(ring.options.endpoints.len() as f64);
            metrics.tenants.with(&[ring.name]).set(ring.options.tenants.len() as f64);
            metrics.warnings.with(&[ring.name]).set(0.0);
            self.names.insert(ring.name.to_owned());
        }
        for warning in hashring.warnings() {
            metrics.warnings.with(&[&warning.hashring]).add(1.0);
            tracing::warn!(
                component = "receive",
                hashring = %warning.hashring,
                err = %warning.kind,
                "hashring has a flaw"
            );
        }
    }

    /// Only now that it is true.
    fn tell_success(&self, config_hash: u64) {
        *self.status.lock() = FileStatus {
            config_hash: Some(config_hash),
            loaded_at: Some(self.clock.now()),
            last_error: None,
        };
        tracing::info!(
            component = "receive",
            path = %self.path.display(),
            hash = config_hash,
            "hashring configuration is in force"
        );
    }

    /// Counts and logs an error that has settled. The rings in force stay.
    pub fn complain(&self, error: &LoadError) {
        self.metrics.errors.inc();
        self.metrics.last_successful.set(0.0);
        let message = error.to_string();
        let mut status = self.status.lock();
        let is_known = status.last_error.as_ref() == Some(&message);
        status.last_error = Some(message);
        drop(status);
        let path = self.path.display();
        if is_known {
            tracing::debug!(component = "receive", err = %error, %path, "hashring file still refused");
        } else {
            tracing::error!(
                component = "receive",
                err = %error,
                %path,
                "failed to load configuration file, the last good hashring stays"
            );
        }
    }

    /// Follows the file until told to stop. The first read happens at once, after the watch is set,
    /// so that no change falls between the two. An interval of nothing is taken for the shortest.
    pub async fn follow(self, refresh_interval: Duration, stop: CancellationToken) {
        let mut follower = Follower {
            directory: directory_of(&self.path),
            watch_errors: self.metrics.errors.clone(),
            changed: Arc::new(Notify::new()),
            watcher: None,
        };
        let mut file = self;
        while !stop.is_cancelled() {
            follower.ensure_watch();
            let Some(file_again) = load_settled(file, &follower.changed).await else { return };
            file = file_again;
            // Asked only now: the directory may have gone while its file was read.
            let wait = if follower.is_watching() {
                refresh_interval.max(REFRESH_INTERVAL_MIN)
            } else {
                WATCH_RETRY_DELAY
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(wait) => {}
                () = follower.changed.notified() => {}
            }
        }
    }
}

/// Reads until the content is good, or stays bad. None if the runtime is going down, or
/// reading has panicked.
async fn load_settled(mut file: HashringsFile, changed: &Notify) -> Option<HashringsFile> {
    for read in 1.. {
        // Reading blocks, and building large rings takes a while.
        let task = tokio::task::spawn_blocking(move || {
            let result = file.load();
            (file, result)
        });
        let ended = task.await.inspect_err(|error| {
            tracing::error!(component = "receive", err = %error, "hashrings file is not followed");
        });
        let (returned, result) = ended.ok()?;
        file = returned;
        let Err(error) = result else { break };
        if read == SETTLE_READS {
            file.complain(&error);
            break;
        }
        tokio::select! {
            () = tokio::time::sleep(SETTLE_DELAY) => {}
            () = changed.notified() => tokio::time::sleep(SETTLE_DELAY / 10).await,
        }
    }
    Some(file)
}

/// The watch on the directory.
struct Follower {
    directory: PathBuf,
    watch_errors: Counter,
    /// Something happened in the directory. Many events are one.
    changed: Arc<Notify>,
    /// None while there is no directory to watch.
    watcher: Option<DirectoryWatch>,
}

struct DirectoryWatch {
    /// Ends the watch when dropped.
    _watcher: RecommendedWatcher,
    /// The directory itself went away, and with it the watch.
    is_gone: Arc<AtomicBool>,
}

impl Follower {
    fn is_watching(&self) -> bool {
        self.watcher.as_ref().is_some_and(|watch| !watch.is_gone.load(Ordering::Relaxed))
    }

    fn ensure_watch(&mut self) {
        if !self.is_watching() {
            // The read that follows tells what is wrong with the path.
            self.watcher = self.watch().ok();
        }
    }

    fn watch(&self) -> notify::Result<DirectoryWatch> {
        let is_gone = Arc::new(AtomicBool::new(false));
        let changed = self.changed.clone();
        let errors = self.watch_errors.clone();
        let directory = self.directory.clone();
        let gone = is_gone.clone();
        let on_event = move |event: notify::Result<Event>| {
            match event {
                // Reading the file is an event too.
                Ok(Event { kind: EventKind::Access(_), .. }) => return,
                Ok(event) => {
                    let is_end = matches!(
                        event.kind,
                        EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_))
                    );
                    if is_end && event.paths.contains(&directory) {
                        gone.store(true, Ordering::Relaxed);
                    }
                }
                Err(error) => {
                    errors.inc();
                    tracing::error!(component = "receive", err = %error, "error watching file");
                }
            }
            changed.notify_one();
        };
        let mut watcher = notify::recommended_watcher(on_event)?;
        watcher.watch(&self.directory, RecursiveMode::NonRecursive)?;
        Ok(DirectoryWatch { _watcher: watcher, is_gone })
    }
}

/// Absolute, as events tell it.
fn directory_of(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn read_capped(path: &Path) -> Result<Vec<u8>, LoadError> {
    let mut content = Vec::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut content)?;
    if content.len() as u64 > FILE_BYTES_MAX { Err(LoadError::TooLarge) } else { Ok(content) }
}

struct FileMetrics {
    config_hash: Gauge,
    controller_hash: Gauge,
    last_successful: Gauge,
    last_success_seconds: Gauge,
    changes: Counter,
    errors: Counter,
    refreshes: Counter,
    nodes: GaugeVec,
    tenants: GaugeVec,
    warnings: GaugeVec,
}

impl FileMetrics {
    fn new(registry: &Registry) -> FileMetrics {
        FileMetrics {
            config_hash: registry.gauge(
                "thanos_receive_config_hash",
                "SHA-256 of the hashrings file in force, its first 6 bytes.",
            ),
            controller_hash: registry.gauge(
                "ringest_hashrings_controller_hash",
                "MD5 of the hashrings file in force, its first 6 bytes: what \
                 thanos_receive_controller_configmap_hash shows for the same file.",
            ),
            last_successful: registry.gauge(
                "thanos_receive_config_last_reload_successful",
                "Whether the hashrings file could be taken when it was read last.",
            ),
            last_success_seconds: registry.gauge(
                "thanos_receive_config_last_reload_success_timestamp_seconds",
                "When the hashrings file in force was taken.",
            ),
            changes: registry.counter(
                "thanos_receive_hashrings_file_changes_total",
                "Contents of the hashrings file that were taken.",
            ),
            errors: registry.counter(
                "thanos_receive_hashrings_file_errors_total",
                "Contents of the hashrings file that were refused, and errors watching it.",
            ),
            refreshes: registry.counter(
                "thanos_receive_hashrings_file_refreshes_total",
                "Reads of the hashrings file.",
            ),
            nodes: registry.gauge_vec(
                "thanos_receive_hashring_nodes",
                "Nodes of each hashring in the file.",
                &["name"],
            ),
            tenants: registry.gauge_vec(
                "thanos_receive_hashring_tenants",
                "Tenants that each hashring in the file lists.",
                &["name"],
            ),
            warnings: registry.gauge_vec(
                "ringest_hashring_warnings",
                "Flaws of each hashring in the file that was taken all the same.",
                &["name"],
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::clock::ManualClock;
    use crate::hashring::{Algorithm, Endpoint};

    /// A hashrings file that is followed, and what its readers see.
    struct Fixture {
        directory: tempfile::TempDir,
        current: CurrentHashring,
        status: Arc<Mutex<FileStatus>>,
        registry: Registry,
        stop: CancellationToken,
        task: Option<tokio::task::JoinHandle<()>>,
    }

    fn ring(endpoint: &str) -> String {
        format!(r#"[{{"hashring":"h","endpoints":["{endpoint}"]}}]"#)
    }

    impl Fixture {
        /// `arrange` prepares the directory; the file is `rings/hashrings.json` in it.
        fn follow(arrange: impl FnOnce(&Path)) -> Fixture {
            let directory = tempfile::tempdir().unwrap();
            arrange(directory.path());
            let path = directory.path().join("rings/hashrings.json");
            let current = CurrentHashring::none_yet();
            let registry = Registry::new();
            let defaults = RingDefaults { algorithm: Algorithm::Ketama, replication_factor: 1 };
            let clock = Arc::new(ManualClock::at(7_500));
            let file = HashringsFile::new(path, defaults, current.clone(), clock, &registry);
            let status = file.status();
            let stop = CancellationToken::new();
            // The interval is too long to play a part.
            let task = tokio::spawn(file.follow(Duration::from_secs(3600), stop.clone()));
            Fixture { directory, current, status, registry, stop, task: Some(task) }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().join("rings").join(name)
        }

        /// Waits until the ring consists of `endpoint`. The test runner's own limit is the only
        /// one: a lost event hangs here.
        async fn wait_for(&self, endpoint: &str) {
            let is_there = |hashring: &Option<Arc<Hashring>>| {
                let wanted = [Endpoint::at(endpoint)];
                hashring.as_ref().is_some_and(|hashring| hashring.endpoints() == wanted)
            };
            self.current.subscribe().wait_for(is_there).await.unwrap();
        }

        async fn wait_for_error(&self, part: &str) {
            let has_error =
                |status: &FileStatus| status.last_error.as_ref().is_some_and(|e| e.contains(part));
            self.wait_until(has_error).await;
        }

        async fn wait_until(&self, holds: impl Fn(&FileStatus) -> bool) {
            while !holds(&self.status.lock()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }

        fn metric(&self, line_start: &str) -> Option<String> {
            let page = self.registry.expose();
            let line = page.lines().find_map(|line| line.strip_prefix(line_start))?;
            Some(line.trim().to_owned())
        }

        async fn end(mut self) {
            self.stop.cancel();
            self.task.take().unwrap().await.unwrap();
        }
    }

    fn with_file(content: &str) -> impl FnOnce(&Path) {
        move |directory| {
            fs::create_dir(directory.join("rings")).unwrap();
            fs::write(directory.join("rings/hashrings.json"), content).unwrap();
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_change_in_place_by_rename_or_by_restoring_is_seen() {
        let fixture = Fixture::follow(with_file(&ring("a:1")));
        fixture.wait_for("a:1").await;
        fs::write(fixture.path("hashrings.json"), ring("b:1")).unwrap();
        fixture.wait_for("b:1").await;
        fs::write(fixture.path("new"), ring("c:1")).unwrap();
        fs::rename(fixture.path("new"), fixture.path("hashrings.json")).unwrap();
        fixture.wait_for("c:1").await;
        fs::write(fixture.path("hashrings.json"), ring("d:1")).unwrap();
        fixture.wait_for("d:1").await;
        fs::remove_file(fixture.path("hashrings.json")).unwrap();
        fixture.wait_for_error("No such file").await;
        fs::write(fixture.path("hashrings.json"), ring("e:1")).unwrap();
        fixture.wait_for("e:1").await;
        fixture.end().await;
    }

    /// What the kubelet does to a mounted ConfigMap.
    fn swap_data(rings: &Path, version: &str, content: &str) {
        fs::create_dir_all(rings.join(version)).unwrap();
        fs::write(rings.join(version).join("hashrings.json"), content).unwrap();
        symlink(version, rings.join("..data_tmp")).unwrap();
        fs::rename(rings.join("..data_tmp"), rings.join("..data")).unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn every_swap_of_the_data_symlink_is_seen() {
        let fixture = Fixture::follow(|directory| {
            let rings = directory.join("rings");
            swap_data(&rings, "..0", &ring("n0:1"));
            symlink("..data/hashrings.json", rings.join("hashrings.json")).unwrap();
        });
        fixture.wait_for("n0:1").await;
        for i in 1..6 {
            let rings = fixture.directory.path().join("rings");
            swap_data(&rings, &format!("..{i}"), &ring(&format!("n{i}:1")));
            fs::remove_dir_all(rings.join(format!("..{}", i - 1))).unwrap();
            fixture.wait_for(&format!("n{i}:1")).await;
        }
        fixture.end().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_file_and_directory_that_come_late_are_found() {
        let fixture = Fixture::follow(|_| {});
        fixture.wait_for_error("No such file").await;
        assert!(fixture.current.load().is_none());
        fs::create_dir(fixture.directory.path().join("rings")).unwrap();
        fs::write(fixture.path("hashrings.json"), ring("a:1")).unwrap();
        fixture.wait_for("a:1").await;
        // The directory goes and comes back.
        fs::remove_dir_all(fixture.directory.path().join("rings")).unwrap();
        fixture.wait_for_error("No such file").await;
        fs::create_dir(fixture.directory.path().join("rings")).unwrap();
        fs::write(fixture.path("hashrings.json"), ring("b:1")).unwrap();
        fixture.wait_for("b:1").await;
        fixture.end().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_bad_file_keeps_the_last_good_ring_and_is_told() {
        let fixture = Fixture::follow(with_file(&ring("a:1")));
        fixture.wait_for("a:1").await;
        let good_hash = fixture.metric("thanos_receive_config_hash").unwrap();
        for (content, part) in [
            ("[]", "is empty"),
            ("", "line 1"),
            ("[\n{\"endpoints\": 7}]", "line 2, [0].endpoints"),
        ] {
            fs::write(fixture.path("hashrings.json"), content).unwrap();
            fixture.wait_for_error(part).await;
            let hashring = fixture.current.load().unwrap();
            assert_eq!(hashring.endpoints(), [Endpoint::at("a:1")]);
        }
        let metric = |name| fixture.metric(name).unwrap();
        assert_eq!(metric("thanos_receive_config_last_reload_successful"), "0");
        // A late event for the same content may lead to one more complaint.
        let errors: u32 = metric("thanos_receive_hashrings_file_errors_total").parse().unwrap();
        assert!(errors >= 3, "{errors}");
        assert_eq!(metric("thanos_receive_hashrings_file_changes_total"), "1");
        assert_eq!(metric("thanos_receive_config_hash"), good_hash);
        assert_eq!(metric("thanos_receive_config_last_reload_success_timestamp_seconds"), "7.5");
        fs::write(fixture.path("hashrings.json"), ring("b:1")).unwrap();
        fixture.wait_for("b:1").await;
        assert_eq!(fixture.metric("thanos_receive_config_last_reload_successful").unwrap(), "1");
        fixture.wait_until(|status| status.last_error.is_none()).await;
        fixture.end().await;
    }

    #[test]
    fn the_same_content_is_taken_once_and_rings_have_metrics() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("h.json");
        let registry = Registry::new();
        let current = CurrentHashring::none_yet();
        let defaults = RingDefaults { algorithm: Algorithm::Ketama, replication_factor: 1 };
        let clock = Arc::new(ManualClock::at(0));
        let mut file =
            HashringsFile::new(path.clone(), defaults, current.clone(), clock, &registry);
        let content = r#"[{"hashring":"x","tenants":["t"],"endpoints":["a:1","a:1"]}]"#;
        fs::write(&path, content).unwrap();
        assert_eq!(file.load().unwrap(), Loaded::Changed);
        let first = current.load().unwrap();
        assert_eq!(file.load().unwrap(), Loaded::Unchanged);
        assert!(Arc::ptr_eq(&first, &current.load().unwrap()));
        fs::write(&path, "nonsense").unwrap();
        let error = file.load().unwrap_err();
        file.complain(&error);
        fs::write(&path, content).unwrap();
        assert_eq!(file.load().unwrap(), Loaded::Unchanged);
        let page = registry.expose();
        for line in [
            "thanos_receive_hashrings_file_refreshes_total 4",
            "thanos_receive_hashrings_file_changes_total 1",
            "thanos_receive_hashrings_file_errors_total 1",
            "thanos_receive_config_last_reload_successful 1",
            "thanos_receive_hashring_nodes{name=\"x\"} 2",
            "thanos_receive_hashring_tenants{name=\"x\"} 1",
            "ringest_hashring_warnings{name=\"x\"} 1",
        ] {
            assert!(page.lines().any(|l| l == line), "{line} in {page}");
        }
        fs::write(&path, ring("b:1")).unwrap();
        assert_eq!(file.load().unwrap(), Loaded::Changed);
        let page = registry.expose();
        assert!(page.contains("thanos_receive_hashring_nodes{name=\"x\"} 0"));
        assert!(page.contains("thanos_receive_hashring_nodes{name=\"h\"} 1"));
    }
}
