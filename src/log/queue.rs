//! Log lines on their way out: nobody waits for who reads them.
//!
//! A pipe that is not read, a slow disk behind a redirection, or a stuck journal holds up one thread
//! of ours. What does not fit in the queue meanwhile is dropped and counted.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::time::Instant;

/// Bytes of lines that wait: some ten thousand of them, as of a node that opens as many tenants.
const QUEUED_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What takes the lines.
pub(super) type Sink = Box<dyn FnMut(&[u8]) -> io::Result<()> + Send>;

/// Lines in order, and the thread that gives them to a sink.
pub(super) struct LineQueue(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Tells the thread of a line.
    filled: Condvar,
    /// Tells who flushes that there is none any more.
    emptied: Condvar,
}

#[derive(Default)]
struct State {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Whether the thread is giving a line to the sink.
    is_writing: bool,
    dropped: u64,
}

impl LineQueue {
    pub(super) fn start(sink: Sink) -> io::Result<LineQueue> {
        let shared = Arc::new(Shared::default());
        let queue = LineQueue(shared.clone());
        thread::Builder::new().name("log".to_owned()).spawn(move || shared.write(sink))?;
        Ok(queue)
    }

    /// Puts a line in the queue. Never waits.
    pub(super) fn push(&self, line: Vec<u8>) {
        let mut state = self.0.state.lock();
        if state.bytes + line.len() > QUEUED_BYTES_MAX {
            state.dropped += 1;
            return;
        }
        state.bytes += line.len();
        state.lines.push_back(line);
        drop(state);
        self.0.filled.notify_one();
    }

    /// Lines that did not fit, or that the sink did not take.
    pub(super) fn dropped(&self) -> u64 {
        self.0.state.lock().dropped
    }

    /// Waits until the sink has all lines, but no longer than this; whether it has.
    pub(super) fn flush(&self, patience: Duration) -> bool {
        let until = (Instant::now() + patience).into_std();
        let mut state = self.0.state.lock();
        while state.is_writing || !state.lines.is_empty() {
            if self.0.emptied.wait_until(&mut state, until).timed_out() {
                return false;
            }
        }
        true
    }
}

impl Shared {
    /// What the thread does.
    fn write(&self, mut sink: Sink) {
        let (mut told, mut is_taken) = (0, true);
        let mut state = self.state.lock();
        loop {
            let Some(line) = state.lines.pop_front() else {
                self.emptied.notify_all();
                let dropped = state.dropped;
                // Of one that cannot be told either nothing is said until something else is taken.
                if dropped > told && is_taken {
                    drop(state);
                    let count = dropped - told;
                    tracing::warn!(count, "log lines were dropped, as nobody took them");
                    told = dropped;
                    state = self.state.lock();
                    continue;
                }
                self.filled.wait(&mut state);
                continue;
            };
            state.bytes -= line.len();
            state.is_writing = true;
            drop(state);
            is_taken = sink(&line).is_ok();
            drop(line);
            state = self.state.lock();
            state.is_writing = false;
            state.dropped += u64::from(!is_taken);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// More than any test waits for.
    const LONG: Duration = Duration::from_secs(120);

    #[test]
    fn lines_come_out_in_their_order_and_a_flush_waits_for_the_last() {
        let taken = Arc::new(Mutex::new(Vec::new()));
        let sink = taken.clone();
        let queue = LineQueue::start(Box::new(move |line| {
            sink.lock().push(line.to_vec());
            Ok(())
        }))
        .unwrap();
        let lines: Vec<_> = (0..1000).map(|i| format!("{i}\n").into_bytes()).collect();
        lines.iter().for_each(|line| queue.push(line.clone()));
        assert!(queue.flush(LONG));
        assert_eq!(*taken.lock(), lines);
        assert_eq!(queue.dropped(), 0);
    }

    #[test]
    fn what_does_not_fit_is_dropped_and_counted_and_nobody_waits() {
        let (begun, begins) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let taken = Arc::new(Mutex::new(Vec::new()));
        let sink = taken.clone();
        let queue = LineQueue::start(Box::new(move |line| {
            begun.send(()).unwrap();
            let _ = released.recv();
            sink.lock().push(line[0]);
            Ok(())
        }))
        .unwrap();
        let line = |byte: u8| vec![byte; QUEUED_BYTES_MAX / 4];
        queue.push(line(0));
        // That one is with the sink, and its place is free.
        begins.recv().unwrap();
        (1..8).for_each(|byte| queue.push(line(byte)));
        assert_eq!(queue.dropped(), 3);
        assert!(!queue.flush(Duration::ZERO));
        drop(release);
        assert!(queue.flush(LONG));
        assert_eq!(*taken.lock(), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_line_that_is_not_taken_counts_as_dropped() {
        let queue = LineQueue::start(Box::new(|_| Err(io::ErrorKind::BrokenPipe.into()))).unwrap();
        (0..3).for_each(|_| queue.push(b"line\n".to_vec()));
        assert!(queue.flush(LONG));
        assert_eq!(queue.dropped(), 3);
    }
}
