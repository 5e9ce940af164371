//! Threads for what is done from time to time.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use crate::multi_tsdb::MultiTsdb;

/// As of `nice(1)`: against a thread of the usual priority a tenth of a processor.
const BACKGROUND_NICENESS: i32 = 10;

/// A thread that does something at an interval, ended by dropping this.
pub(super) struct Periodic {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Periodic {
    pub(super) fn start(
        name: &str,
        every: Duration,
        tenants: &Arc<MultiTsdb>,
        work: fn(&MultiTsdb),
    ) -> Periodic {
        Periodic::start_after(name, every, tenants, work, || ())
    }

    /// The same for work that has time: whatever else there is to do comes first.
    pub(super) fn start_in_background(
        name: &str,
        every: Duration,
        tenants: &Arc<MultiTsdb>,
        work: fn(&MultiTsdb),
    ) -> Periodic {
        Periodic::start_after(name, every, tenants, work, || {
            // Of this thread alone, on Linux. Without it the work is done all the same.
            let _ = rustix::process::setpriority_process(None, BACKGROUND_NICENESS);
        })
    }

    fn start_after(
        name: &str,
        every: Duration,
        tenants: &Arc<MultiTsdb>,
        work: fn(&MultiTsdb),
        before: fn(),
    ) -> Periodic {
        let (stop, stopped) = mpsc::channel();
        let tenants = Arc::downgrade(tenants);
        let run = move || {
            before();
            run(every, &tenants, work, &stopped);
        };
        match thread::Builder::new().name(name.to_owned()).spawn(run) {
            Ok(thread) => Periodic { stop: Some(stop), thread: Some(thread) },
            // A process that cannot have one more thread cannot serve.
            Err(err) => panic!("starting the {name} thread: {err}"),
        }
    }
}

impl Drop for Periodic {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != thread::current().id()
        {
            // Its panic was reported by the panic hook.
            let _ = thread.join();
        }
    }
}

fn run(
    every: Duration,
    tenants: &Weak<MultiTsdb>,
    work: fn(&MultiTsdb),
    stopped: &mpsc::Receiver<()>,
) {
    while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(every) {
        let Some(tenants) = tenants.upgrade() else { return };
        work(&tenants);
    }
}
