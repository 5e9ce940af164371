//! Threads that wait for the disk, so that nobody else has to.
//!
//! Work comes in *lanes*, one a tenant. A lane is served by one thread at a time, a piece each turn,
//! and the lanes that have something to do wait for their turns in one queue.
//!
//! While the disk is quick, a thread for each core serves them all. A turn that takes long is taken
//! for one that is stuck in the disk, and another thread takes up the others' lanes, so that a
//! tenant whose disk hangs costs a thread and not the other tenants' writes. When as many are stuck
//! as there may be, it is for the lanes to refuse what they would get.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::time::Instant;

/// Work that is done piece by piece, by one thread at a time.
pub(super) trait Lane: Send + Sync + 'static {
    /// Whose work it is, for the log.
    fn name(&self) -> &str;

    /// Does the next piece. Whether there is more: then its next turn comes by itself, otherwise
    /// with [`DiskThreads::schedule`].
    fn serve(&self) -> bool;
}

#[derive(Clone, Copy, Debug)]
pub(super) struct DiskThreadsOptions {
    /// What the threads are called, with a number.
    pub(super) name: &'static str,
    /// Threads while none is stuck.
    pub(super) threads_usual: usize,
    /// Threads at most.
    pub(super) threads_max: usize,
}

/// A turn longer than this is stuck: the disk, or some megabytes of a request.
const STUCK_AFTER: Duration = Duration::from_millis(20);
/// How often lanes are looked after that wait while every thread is at work.
const WATCH_CLOSELY: Duration = Duration::from_millis(10);
/// How often turns are looked at otherwise.
const WATCH: Duration = Duration::from_secs(1);
/// A turn longer than this is told.
const TOLD_AFTER: Duration = Duration::from_secs(2);
/// Threads beyond the usual ones end when they had nothing to do for so long.
const KEPT_IDLE: Duration = Duration::from_secs(10);

/// The threads. They end when this is dropped and all lanes have nothing more to do.
pub(super) struct DiskThreads(Arc<Shared>);

struct Shared {
    options: DiskThreadsOptions,
    all_are_stuck: AtomicBool,
    state: Mutex<State>,
    /// Tells an idle thread of a lane.
    work: Condvar,
    /// Tells the watching thread of lanes that no idle thread is there for.
    piled: Condvar,
    /// Tells who waits for the end of a thread.
    ended: Condvar,
}

#[derive(Default)]
struct State {
    /// Lanes that wait for a turn.
    ready: VecDeque<Arc<dyn Lane>>,
    turns: Vec<Turn>,
    threads: usize,
    /// Threads started so far.
    started: usize,
    /// Threads that wait for work and that nobody has called yet.
    idle: usize,
    /// Calls that no thread has heard yet.
    called: usize,
    is_watched_closely: bool,
    is_closed: bool,
}

/// A lane being served.
struct Turn {
    thread: usize,
    since: Instant,
    lane: Arc<dyn Lane>,
    is_told: bool,
}

/// How the threads are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DiskThreadsStatus {
    pub(super) threads: usize,
    /// Those whose turn takes long.
    pub(super) stuck: usize,
}

impl DiskThreads {
    pub(super) fn start(options: DiskThreadsOptions) -> io::Result<DiskThreads> {
        let threads = DiskThreads(Arc::new(Shared {
            options,
            all_are_stuck: AtomicBool::new(false),
            state: Mutex::default(),
            work: Condvar::new(),
            piled: Condvar::new(),
            ended: Condvar::new(),
        }));
        let shared = threads.0.clone();
        let name = format!("{}-watch", options.name);
        thread::Builder::new().name(name).spawn(move || shared.watch())?;
        let mut state = threads.0.state.lock();
        for _ in 0..options.threads_usual {
            threads.0.start_thread(&mut state)?;
        }
        drop(state);
        Ok(threads)
    }

    /// Gives a lane a turn that is not in the queue and not being served.
    pub(super) fn schedule(&self, lane: Arc<dyn Lane>) {
        self.0.schedule(lane);
    }

    /// Whether as many threads as there may be are stuck in the disk, and lanes wait.
    pub(super) fn are_all_stuck(&self) -> bool {
        self.0.all_are_stuck.load(Ordering::Relaxed)
    }

    pub(super) fn status(&self) -> DiskThreadsStatus {
        let state = self.0.state.lock();
        DiskThreadsStatus { threads: state.threads, stuck: state.stuck(Instant::now()) }
    }

    /// Lets every lane come to its end, and then waits for that of the threads.
    pub(super) fn close(&self) {
        let mut state = self.0.state.lock();
        self.0.close(&mut state);
        while state.threads > 0 {
            self.0.ended.wait(&mut state);
        }
    }
}

impl Drop for DiskThreads {
    fn drop(&mut self) {
        self.0.close(&mut self.0.state.lock());
    }
}

impl Shared {
    fn schedule(&self, lane: Arc<dyn Lane>) {
        let mut state = self.state.lock();
        state.ready.push_back(lane);
        if state.idle > 0 {
            state.idle -= 1;
            state.called += 1;
            drop(state);
            self.work.notify_one();
        } else if !state.is_watched_closely {
            state.is_watched_closely = true;
            drop(state);
            self.piled.notify_one();
        }
    }

    fn close(&self, state: &mut State) {
        state.is_closed = true;
        self.work.notify_all();
        self.piled.notify_one();
    }

    fn start_thread(self: &Arc<Shared>, state: &mut State) -> io::Result<()> {
        let (shared, number) = (self.clone(), state.started);
        let name = format!("{}-{number}", self.options.name);
        thread::Builder::new().name(name).spawn(move || shared.run(number))?;
        state.started += 1;
        state.threads += 1;
        Ok(())
    }

    /// What each thread does.
    fn run(&self, thread: usize) {
        let mut state = self.state.lock();
        loop {
            if let Some(lane) = state.ready.pop_front() {
                let turn =
                    Turn { thread, since: Instant::now(), lane: lane.clone(), is_told: false };
                state.turns.push(turn);
                drop(state);
                let has_more = lane.serve();
                state = self.state.lock();
                self.all_are_stuck.store(false, Ordering::Relaxed);
                let turn = state.end_turn(thread);
                if has_more {
                    state.ready.push_back(lane.clone());
                }
                drop(state);
                if let Some(turn) = turn.filter(|turn| turn.is_told) {
                    let seconds = turn.since.elapsed().as_secs_f64();
                    let threads = self.options.name;
                    tracing::info!(tenant = lane.name(), threads, seconds, "the disk goes on");
                }
                // Nobody else may have it any more, and its end takes locks and the disk.
                drop(lane);
                state = self.state.lock();
                continue;
            }
            if state.is_closed {
                break;
            }
            state.idle += 1;
            let waited = self.work.wait_for(&mut state, KEPT_IDLE);
            if state.called > 0 {
                state.called -= 1;
                continue;
            }
            state.idle -= 1;
            let at_work = state.threads - state.stuck(Instant::now());
            if waited.timed_out() && at_work > self.options.threads_usual {
                break;
            }
        }
        state.threads -= 1;
        self.ended.notify_all();
        self.piled.notify_one();
    }

    /// Starts threads in the place of those that are stuck, and tells of turns that take long.
    fn watch(self: &Arc<Shared>) {
        let mut state = self.state.lock();
        while !(state.is_closed && state.threads == 0) {
            state.is_watched_closely = state.is_piled();
            let patience = if state.is_watched_closely { WATCH_CLOSELY } else { WATCH };
            self.piled.wait_for(&mut state, patience);
            let now = Instant::now();
            let grown = if state.is_piled() { self.grow(&mut state, now) } else { Ok(()) };
            let stalled = state.take_untold(now);
            if grown.is_ok() && stalled.is_empty() {
                continue;
            }
            drop(state);
            let threads = self.options.name;
            if let Err(err) = grown {
                tracing::error!(%err, threads, "starting a thread for the disk failed");
            }
            for lane in stalled {
                tracing::warn!(tenant = lane.name(), threads, "waiting for the disk takes long");
            }
            state = self.state.lock();
        }
    }

    fn grow(self: &Arc<Shared>, state: &mut State, now: Instant) -> io::Result<()> {
        let DiskThreadsOptions { threads_usual, threads_max, .. } = self.options;
        let at_work = state.threads - state.stuck(now);
        let wanted = threads_usual.saturating_sub(at_work).min(state.ready.len());
        let started = wanted.min(threads_max.saturating_sub(state.threads));
        let result = (0..started).try_for_each(|_| self.start_thread(state));
        let all_are_stuck = state.threads == state.stuck(now);
        self.all_are_stuck.store(all_are_stuck, Ordering::Relaxed);
        result
    }
}

impl State {
    /// Whether lanes wait that no thread is on its way to.
    fn is_piled(&self) -> bool {
        self.ready.len() > self.called
    }

    fn stuck(&self, now: Instant) -> usize {
        let is_stuck = |turn: &&Turn| now.saturating_duration_since(turn.since) > STUCK_AFTER;
        self.turns.iter().filter(is_stuck).count()
    }

    fn end_turn(&mut self, thread: usize) -> Option<Turn> {
        let at = self.turns.iter().position(|turn| turn.thread == thread)?;
        Some(self.turns.swap_remove(at))
    }

    /// Lanes whose turn takes long, each turn once.
    fn take_untold(&mut self, now: Instant) -> Vec<Arc<dyn Lane>> {
        let takes_long = |turn: &&mut Turn| {
            !turn.is_told && now.saturating_duration_since(turn.since) > TOLD_AFTER
        };
        let tell = |turn: &mut Turn| {
            turn.is_told = true;
            turn.lane.clone()
        };
        self.turns.iter_mut().filter(takes_long).map(tell).collect()
    }
}
