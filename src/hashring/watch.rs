//! Follows the hashrings file however it is changed: in place, by rename, by the swap of
//! Kubernetes' `..data` symlink, deleted and restored.
//!
//! The *directory* is watched, since a watch on the file stays with what the name pointed to
//! before. Any event there leads to a read, and unchanged content to nothing. The file is also read
//! every refresh interval, for file systems that tell nothing.

mod directory;
mod metrics;
mod view;

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::hashring::file::{self, HashringsError};
use crate::hashring::watch::directory::{Follower, directory_of};
use crate::hashring::watch::metrics::FileMetrics;
use crate::hashring::watch::view::Asked;
use crate::hashring::{CurrentHashring, Hashring, HashringMetrics, OutOfReach, RingDefaults};
use crate::metrics::Registry;
use crate::model::Timestamp;

pub use crate::hashring::watch::view::{FileStatus, FileView, HeldRings, TakeHeld};

/// A file that is rewritten in place is empty, or half there, for a moment: bad content is read
/// again this many times before anyone complains.
const SETTLE_READS: u32 = 5;
/// Time between those reads. All of them together stay below a second.
const SETTLE_DELAY: Duration = Duration::from_millis(100);

/// How often a directory that cannot be watched, because it is not there yet, is tried again.
const WATCH_RETRY_DELAY: Duration = Duration::from_secs(1);

/// The shortest time between two reads without an event.
const REFRESH_INTERVAL_MIN: Duration = Duration::from_millis(10);

/// How often held rings are looked at: soon after a member of theirs is reached they are taken.
const HELD_LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Holding for less is what a change of all members takes.
const HELD_TOLD_AFTER: Duration = Duration::from_secs(10);

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
    /// A new snapshot is held back.
    Held,
}

/// When new rings of the file are held back, and for how long.
pub struct HoldRules {
    /// Zero for never.
    pub longest: Duration,
    pub reason: Box<HoldReason>,
}

/// Tells why the second rings had better not take the place of the first now.
pub type HoldReason = dyn Fn(&Hashring, &Hashring) -> Option<OutOfReach> + Send + Sync;

impl HoldRules {
    /// As in Thanos: whatever the file says is in force at once.
    pub fn never() -> HoldRules {
        HoldRules { longest: Duration::ZERO, reason: Box::new(|_, _| None) }
    }
}

/// Rings that were read, and what is to be known of their content.
struct Candidate {
    hashring: Arc<Hashring>,
    content_hash: [u8; 32],
    config_hash: u64,
    controller_hash: u64,
}

/// A candidate that is held back.
struct Held {
    candidate: Candidate,
    /// Since when, this one and those right before it.
    since: Instant,
    is_told: bool,
}

/// Reads the file, builds its rings and puts them in force.
pub struct HashringsFile {
    path: PathBuf,
    defaults: RingDefaults,
    clock: Arc<dyn Clock>,
    metrics: FileMetrics,
    hashring_metrics: HashringMetrics,
    current: CurrentHashring,
    status: watch::Sender<FileStatus>,
    asked: Arc<Asked>,
    hold: HoldRules,
    held: Option<Held>,
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
        hold: HoldRules,
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
            status: watch::Sender::default(),
            asked: Arc::default(),
            hold,
            held: None,
            content_hash: None,
            names: HashSet::new(),
        }
    }

    /// A view of the file that stays up to date.
    pub fn view(&self) -> FileView {
        FileView { status: self.status.subscribe(), asked: self.asked.clone() }
    }

    /// Reads the file and, if its content is new and can be parsed, puts its rings in force or
    /// holds them back. Says nothing of an error; that is for [`HashringsFile::complain`].
    pub fn load(&mut self) -> Result<Loaded, LoadError> {
        self.metrics.refreshes.inc();
        let content = read_capped(&self.path)?;
        let content_hash: [u8; 32] = Sha256::digest(&content).into();
        if self.content_hash == Some(content_hash) {
            // Perhaps back from a bad content, or one that was held: neither was ever in force.
            self.recover("hashrings file is good again, and as it was");
            self.withdraw();
            return Ok(Loaded::Unchanged);
        }
        if self.held.as_ref().is_some_and(|held| held.candidate.content_hash == content_hash) {
            self.recover("hashrings file is good again, and still held back");
            return Ok(self.look_at_held());
        }
        let rings = file::parse(&content)?;
        self.recover("hashrings file is good again");
        let in_force = self.current.load();
        let hashring =
            Hashring::build(rings, self.defaults, in_force.as_deref(), &self.hashring_metrics);
        let candidate = Candidate {
            hashring: Arc::new(hashring),
            content_hash,
            config_hash: file::config_hash(&content),
            controller_hash: file::controller_hash(&content),
        };
        match self.reason_to_hold(&candidate) {
            Some(reason) => {
                self.hold(candidate, reason);
                Ok(Loaded::Held)
            }
            None => {
                self.take(candidate);
                Ok(Loaded::Changed)
            }
        }
    }

    /// Nothing holds back the first rings, or nodes that wait for one another would never start.
    fn reason_to_hold(&self, candidate: &Candidate) -> Option<OutOfReach> {
        if self.hold.longest.is_zero() {
            return None;
        }
        (self.hold.reason)(&*self.current.load()?, &candidate.hashring)
    }

    /// Holds a candidate back. One that takes another's place has only the time that is left, or a
    /// file that changes again and again would never be taken.
    fn hold(&mut self, candidate: Candidate, reason: OutOfReach) {
        let now = Instant::now();
        let since = self.held.as_ref().map_or(now, |held| held.since);
        tracing::info!(
            component = "receive",
            path = %self.path.display(),
            hash = candidate.config_hash,
            ringHash = %candidate.hashring.hash(),
            %reason,
            "hashrings file is held back"
        );
        let spent = now.saturating_duration_since(since);
        let held_since = self.clock.now().saturating_sub(millis(spent));
        self.current.announce(candidate.hashring.clone());
        let held = HeldRings {
            hashring: candidate.hashring.clone(),
            config_hash: candidate.config_hash,
            since: held_since,
            until: held_since.saturating_add(millis(self.hold.longest)),
            reason,
        };
        self.metrics.held.set(1.0);
        self.metrics.held_since_seconds.set(held_since as f64 / 1000.0);
        self.status.send_modify(|status| status.held = Some(held));
        let is_told = self.held.as_ref().is_some_and(|held| held.is_told);
        self.held = Some(Held { candidate, since, is_told });
    }

    /// Puts the held rings in force if nothing speaks against it any more, if they have been held
    /// for too long, or if somebody has asked for it.
    fn look_at_held(&mut self) -> Loaded {
        let Some(held) = self.held.take() else { return Loaded::Unchanged };
        let (waited, longest) = (held.since.elapsed(), self.hold.longest);
        let hash = held.candidate.hashring.hash();
        let is_asked = self.asked.rings.lock().take_if(|asked| *asked == hash).is_some();
        let (path, config_hash) = (self.path.display(), held.candidate.config_hash);
        match self.reason_to_hold(&held.candidate) {
            None => tracing::info!(
                component = "receive",
                %path,
                hash = config_hash,
                "held hashrings file is taken: a replica set reaches its quorum"
            ),
            Some(reason) if is_asked => tracing::warn!(
                component = "receive",
                %path,
                hash = config_hash,
                %reason,
                "held hashrings file is taken on request"
            ),
            Some(reason) if waited >= longest => tracing::warn!(
                component = "receive",
                %path,
                hash = config_hash,
                %reason,
                "held hashrings file is taken after {longest:?}"
            ),
            Some(reason) => {
                let is_long = waited >= HELD_TOLD_AFTER;
                if is_long && !held.is_told {
                    tracing::error!(
                        component = "receive",
                        %path,
                        hash = config_hash,
                        err = %reason,
                        "hashrings file is held back, the hashring before it stays; it is taken \
                         when a replica set reaches its quorum, after {longest:?}, or by POST \
                         /api/v1/ring/take"
                    );
                }
                self.status.send_if_modified(|status| {
                    let shown = status.held.as_mut().filter(|shown| shown.reason != reason);
                    shown.map(|shown| shown.reason = reason).is_some()
                });
                self.held = Some(Held { is_told: held.is_told || is_long, ..held });
                return Loaded::Held;
            }
        }
        self.take(held.candidate);
        Loaded::Changed
    }

    /// The file says again what is in force.
    fn withdraw(&mut self) {
        let Some(held) = self.held.take() else { return };
        self.current.withdraw();
        self.end_hold();
        tracing::info!(
            component = "receive",
            path = %self.path.display(),
            hash = held.candidate.config_hash,
            "held hashrings file was withdrawn, and as it was before"
        );
    }

    fn end_hold(&self) {
        // The same rings may be held again.
        *self.asked.rings.lock() = None;
        self.metrics.held.set(0.0);
        self.metrics.held_since_seconds.set(0.0);
        self.status.send_if_modified(|status| status.held.take().is_some());
    }

    /// Puts the rings in force.
    fn take(&mut self, candidate: Candidate) {
        self.held = None;
        self.content_hash = Some(candidate.content_hash);
        self.count_success(&candidate);
        let before = self.current.load();
        self.current.replace(candidate.hashring.clone());
        self.end_hold();
        self.tell_success(&candidate, before.as_deref());
    }

    fn count_success(&mut self, candidate: &Candidate) {
        let metrics = &self.metrics;
        metrics.changes.inc();
        metrics.config_hash.set(candidate.config_hash as f64);
        metrics.controller_hash.set(candidate.controller_hash as f64);
        metrics.last_success_seconds.set(self.clock.now() as f64 / 1000.0);
        // A ring that is gone has no nodes, rather than those it had.
        for name in self.names.drain() {
            for family in [&metrics.nodes, &metrics.tenants, &metrics.warnings] {
                family.with(&[&name]).set(0.0);
            }
        }
        for ring in candidate.hashring.rings() {
            metrics.nodes.with(&[ring.name]).set(ring.options.endpoints.len() as f64);
            metrics.tenants.with(&[ring.name]).set(ring.options.tenants.len() as f64);
            metrics.warnings.with(&[ring.name]).set(0.0);
            self.names.insert(ring.name.to_owned());
        }
        for warning in candidate.hashring.warnings() {
            metrics.warnings.with(&[&warning.hashring]).add(1.0);
        }
    }

    /// Only now that it is true.
    fn tell_success(&self, candidate: &Candidate, before: Option<&Hashring>) {
        self.status.send_modify(|status| {
            status.config_hash = Some(candidate.config_hash);
            status.loaded_at = Some(self.clock.now());
        });
        tracing::info!(
            component = "receive",
            path = %self.path.display(),
            hash = candidate.config_hash,
            ringHash = %candidate.hashring.hash(),
            "hashrings file is taken"
        );
        log_rings(&candidate.hashring, before);
    }

    /// The content that was read last is good. If there was an error, its end is told.
    fn recover(&self, how: &'static str) {
        self.metrics.last_successful.set(1.0);
        if self.status.send_if_modified(|status| status.last_error.take().is_some()) {
            tracing::info!(component = "receive", path = %self.path.display(), "{how}");
        }
    }

    /// Counts and logs an error that has settled. The rings in force stay.
    pub fn complain(&self, error: &LoadError) {
        self.metrics.errors.inc();
        self.metrics.last_successful.set(0.0);
        let message = error.to_string();
        let is_news = self.status.send_if_modified(|status| {
            status.last_error.replace(message.clone()).as_ref() != Some(&message)
        });
        let path = self.path.display();
        if is_news {
            tracing::error!(
                component = "receive",
                err = %error,
                %path,
                "failed to load configuration file, the last good hashring stays"
            );
        } else {
            tracing::debug!(component = "receive", err = %error, %path, "hashring file still refused");
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
            let until = Instant::now() + wait;
            let Some(file_again) = wait_for_change(file, until, &follower.changed, &stop).await
            else {
                return;
            };
            file = file_again;
        }
    }
}

/// Tells which rings are in force from now on that were not before, and what is odd about them.
pub fn log_rings(hashring: &Hashring, before: Option<&Hashring>) {
    for change in hashring.changes_since(before) {
        tracing::info!(component = "receive", "{change}");
    }
    for warning in hashring.warnings() {
        tracing::warn!(
            component = "receive",
            hashring = %warning.hashring,
            err = %warning.kind,
            "hashring has a flaw"
        );
    }
}

fn millis(duration: Duration) -> Timestamp {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Waits until the file is to be read again, and looks at the rings that it holds back meanwhile.
/// None if the runtime is going down, or looking has panicked.
async fn wait_for_change(
    mut file: HashringsFile,
    until: Instant,
    changed: &Notify,
    stop: &CancellationToken,
) -> Option<HashringsFile> {
    let asked = file.asked.clone();
    loop {
        let is_held = file.held.is_some();
        tokio::select! {
            () = stop.cancelled() => return Some(file),
            () = tokio::time::sleep_until(until) => return Some(file),
            () = changed.notified() => return Some(file),
            () = asked.told.notified(), if is_held => {}
            () = tokio::time::sleep(HELD_LOOK_INTERVAL), if is_held => {}
        }
        (file, _) = off_the_runtime(file, HashringsFile::look_at_held).await?;
    }
}

/// Reading blocks, and building large rings takes a while.
async fn off_the_runtime<T: Send + 'static>(
    mut file: HashringsFile,
    work: impl FnOnce(&mut HashringsFile) -> T + Send + 'static,
) -> Option<(HashringsFile, T)> {
    let task = tokio::task::spawn_blocking(move || {
        let result = work(&mut file);
        (file, result)
    });
    let ended = task.await.inspect_err(|error| {
        tracing::error!(component = "receive", err = %error, "hashrings file is not followed");
    });
    ended.ok()
}

/// Reads until the content is good, or stays bad. None if the runtime is going down, or
/// reading has panicked.
async fn load_settled(mut file: HashringsFile, changed: &Notify) -> Option<HashringsFile> {
    for read in 1.. {
        let result;
        (file, result) = off_the_runtime(file, HashringsFile::load).await?;
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

/// Reads a hashrings file, which has a greatest size.
#[expect(clippy::disallowed_methods, reason = "on the watch's own thread")]
pub fn read_capped(path: &Path) -> Result<Vec<u8>, LoadError> {
    let mut content = Vec::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut content)?;
    if content.len() as u64 > FILE_BYTES_MAX { Err(LoadError::TooLarge) } else { Ok(content) }
}

#[cfg(test)]
mod tests;
