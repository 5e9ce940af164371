//! The batches of one tenant that wait for their place in its log.
//!
//! Batches are appended in the order in which they come here, by one of the [`DiskThreads`] at a
//! time. Those that have gathered while it was at the disk go into the log with its next write.
//!
//! While the tenant's log is read, a batch that cannot be judged without is *parked*, and others
//! pass it. When the log is read, those that are parked are the first to be stored, before anything
//! that would have come to the same series.

use std::collections::VecDeque;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use crate::metrics::{Counter, Registry};
use crate::model::tenant::TenantId;
use crate::multi_tsdb::disk_threads::{DiskThreads, Lane};
use crate::tsdb::Db;
use crate::tsdb::head::append::AppendReport;
use crate::tsdb::head::batch::Batch;
use crate::tsdb::wal::WalError;

/// Batches that wait in a lane at most. They hold memory, which the write path's budget bounds
/// long before.
const QUEUED_MAX: usize = 16 * 1024;

/// What goes into the log with one write at most, unless it is one batch: waiters wait for all.
const GROUP_BATCHES_MAX: usize = 32;
const GROUP_SAMPLES_MAX: usize = 64 * 1024;

/// Why a batch was not stored. Nothing of it is, but for [`AppendError::Interrupted`]. A retry may
/// succeed.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    #[error(transparent)]
    Log(#[from] WalError),
    /// This tenant's log does not take them as fast as they come.
    #[error("{QUEUED_MAX} writes wait for the tenant's log")]
    QueueFull,
    /// The logs of many tenants wait for the disk.
    #[error("the disk does not answer")]
    DiskStuck,
    #[error("the storage is closed")]
    Closed,
    /// A mistake of ours; the panic itself was logged.
    #[error("the append was interrupted")]
    Interrupted,
}

/// What all lanes count.
pub(super) struct AppendMetrics {
    waiting: AtomicUsize,
    refused: [Counter; 2],
}

impl AppendMetrics {
    pub(super) fn new(registry: &Registry) -> Arc<AppendMetrics> {
        let refused = registry.counter_vec(
            "ringest_append_refused_total",
            "Writes that were refused since too many wait for the disk: for their tenant's log \
             (queue_full), or because as many logs do as have a thread (disk_stuck).",
            &["reason"],
        );
        let refused = ["queue_full", "disk_stuck"].map(|reason| refused.with(&[reason]));
        Arc::new(AppendMetrics { waiting: AtomicUsize::new(0), refused })
    }

    /// Batches that wait in all lanes, those being written not counted.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}

/// The way into a tenant's log.
pub struct AppendLane(Arc<Inner>);

struct Inner {
    tenant: TenantId,
    db: Arc<Db>,
    threads: Arc<DiskThreads>,
    metrics: Arc<AppendMetrics>,
    state: Mutex<State>,
    /// Tells that nothing waits or is being written.
    drained: Condvar,
}

#[derive(Default)]
struct State {
    /// In order of their numbers.
    queue: VecDeque<Job>,
    /// Those that wait until the log is read, likewise.
    parked: VecDeque<Job>,
    /// Whether it is read, which nobody has seen to yet.
    is_to_resume: bool,
    next_number: u64,
    /// Whether a thread serves the lane or will.
    is_scheduled: bool,
    is_served: bool,
    is_closed: bool,
}

/// A batch on its way into the log.
struct Job {
    number: u64,
    batch: Batch,
    /// What the batch counts for, until it is done with.
    _held: Box<dyn Send>,
    answer: oneshot::Sender<Answer>,
}

/// The batch comes back to be used again.
type Answer = (Result<AppendReport, WalError>, Batch);

impl AppendLane {
    pub(super) fn new(
        tenant: TenantId,
        db: Arc<Db>,
        threads: Arc<DiskThreads>,
        metrics: Arc<AppendMetrics>,
    ) -> AppendLane {
        let (state, drained) = (Mutex::default(), Condvar::new());
        AppendLane(Arc::new(Inner { tenant, db, threads, metrics, state, drained }))
    }

    /// Stores what of the batch can be stored; returns once that is in the log, and leaves the
    /// batch for reuse. `held` is let go of when the batch is done with, whoever still waits.
    ///
    /// When the future is dropped, a batch whose turn has not come is taken out again. One whose
    /// turn has come is stored whole or not at all.
    pub async fn append(
        &self,
        batch: &mut Batch,
        held: impl Send + 'static,
    ) -> Result<AppendReport, AppendError> {
        let (answer, answered) = oneshot::channel();
        let mut waiting = self.0.queue(std::mem::take(batch), Box::new(held), answer)?;
        let answered = answered.await;
        waiting.is_over = true;
        let (result, done) = answered.map_err(|_| AppendError::Interrupted)?;
        *batch = done;
        Ok(result?)
    }

    /// Whether batches wait.
    pub fn has_backlog(&self) -> bool {
        let state = self.0.state.lock();
        !state.queue.is_empty() || !state.parked.is_empty()
    }

    /// Takes no more batches, and gives up those that wait for the log to be read.
    pub(super) fn refuse(&self) {
        let mut state = self.0.state.lock();
        state.is_closed = true;
        let parked = std::mem::take(&mut state.parked);
        drop(state);
        self.0.metrics.waiting.fetch_sub(parked.len(), Ordering::Relaxed);
    }

    /// The tenant's log is read: what waited for that is stored, and then all else as ever.
    pub(super) fn resume(&self) {
        let mut state = self.0.state.lock();
        state.is_to_resume = true;
        if !state.is_scheduled {
            state.is_scheduled = true;
            self.0.threads.schedule(self.0.clone());
        }
    }

    /// Waits until the batches that are here are stored.
    pub(super) fn drain(&self) {
        let mut state = self.0.state.lock();
        while state.is_scheduled {
            self.0.drained.wait(&mut state);
        }
    }
}

impl Inner {
    fn queue(
        self: &Arc<Inner>,
        batch: Batch,
        held: Box<dyn Send>,
        answer: oneshot::Sender<Answer>,
    ) -> Result<Waiting<'_>, AppendError> {
        let mut state = self.state.lock();
        if state.is_closed {
            return Err(AppendError::Closed);
        }
        if state.queue.len() + state.parked.len() >= QUEUED_MAX {
            self.metrics.refused[0].inc();
            return Err(AppendError::QueueFull);
        }
        if !state.is_served && self.threads.are_all_stuck() {
            self.metrics.refused[1].inc();
            return Err(AppendError::DiskStuck);
        }
        if !state.is_scheduled {
            state.is_scheduled = true;
            self.threads.schedule(self.clone());
        }
        let number = state.next_number;
        state.next_number += 1;
        state.queue.push_back(Job { number, batch, _held: held, answer });
        self.metrics.waiting.fetch_add(1, Ordering::Relaxed);
        Ok(Waiting { lane: self, number, is_over: false })
    }

    /// The batches of the next write.
    fn next_group(&self) -> Vec<Job> {
        let mut state = self.state.lock();
        state.is_served = true;
        if state.is_to_resume {
            drop(state);
            // Nothing is appended meanwhile: that is done in the lane's turns alone.
            self.db.release_writes();
            state = self.state.lock();
            state.is_to_resume = false;
            // They came before all that is in the queue.
            let mut parked = std::mem::take(&mut state.parked);
            parked.append(&mut state.queue);
            state.queue = parked;
        }
        let mut samples = 0;
        let fits = |(i, job): &(usize, &Job)| {
            samples += job.batch.samples.len();
            *i == 0 || *i < GROUP_BATCHES_MAX && samples <= GROUP_SAMPLES_MAX
        };
        let count = state.queue.iter().enumerate().take_while(fits).count();
        self.metrics.waiting.fetch_sub(count, Ordering::Relaxed);
        state.queue.drain(..count).collect()
    }
}

impl Inner {
    fn park(&self, job: Job) {
        let mut state = self.state.lock();
        if !state.is_closed {
            state.parked.push_back(job);
            self.metrics.waiting.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Lane for Inner {
    fn name(&self) -> &str {
        self.tenant.as_str()
    }

    fn serve(&self) -> bool {
        let jobs = self.next_group();
        let batches: Vec<&Batch> = jobs.iter().map(|job| &job.batch).collect();
        let results = panic::catch_unwind(AssertUnwindSafe(|| self.db.append_group(&batches)));
        let is_sound = results.is_ok();
        // Without a result the waiters learn that by their channels' end.
        for (job, result) in jobs.into_iter().zip(results.unwrap_or_default()) {
            if let Err(WalError::StillRead) = result {
                self.park(job);
                continue;
            }
            let Job { batch, _held: held, answer, .. } = job;
            drop(held);
            // Nobody may wait any more.
            let _ = answer.send((result, batch));
        }
        let mut state = self.state.lock();
        if !is_sound {
            // What the head and the log then have in common is not known. A restart will find out.
            tracing::error!(tenant = %self.tenant, "an append panicked; the tenant takes no more");
            state.is_closed = true;
            let given_up = state.queue.len() + state.parked.len();
            self.metrics.waiting.fetch_sub(given_up, Ordering::Relaxed);
            state.queue.clear();
            state.parked.clear();
        }
        state.is_served = false;
        state.is_scheduled = !state.queue.is_empty() || state.is_to_resume;
        if !state.is_scheduled {
            self.drained.notify_all();
        }
        state.is_scheduled
    }
}

/// Someone waits for a batch. When that one goes away, it is taken out if its turn has not come.
struct Waiting<'l> {
    lane: &'l Inner,
    number: u64,
    is_over: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let mut state = self.lane.state.lock();
        let State { queue, parked, .. } = &mut *state;
        let given_up = [queue, parked].into_iter().find_map(|jobs| {
            let found = jobs.binary_search_by_key(&self.number, |job| job.number);
            found.ok().and_then(|at| jobs.remove(at))
        });
        drop(state);
        if given_up.is_some() {
            self.lane.metrics.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
