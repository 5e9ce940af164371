//! Writes the tenants' full chunks to files, and cuts their heads into blocks, one after another: from
//! time to time as Thanos does, and all of them at the end.

use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::error::chain;
use crate::hashring::CurrentHashring;
use crate::model::stop;
use crate::multi_tsdb::{MultiTsdb, Tenant};
use crate::tsdb::cut::CutError;
use crate::tsdb::error::WriteError;

/// When a tenant is looked at again after its cut failed, at first; then after twice as long.
const RETRY: Duration = Duration::from_secs(60);

/// How often it is looked whether a tenant's turn has come.
pub(super) fn look_every(range: Duration) -> Duration {
    (range / 100).clamp(Duration::from_millis(100), Duration::from_secs(5))
}

/// A tenant's turns.
pub(super) struct CutTurns(Mutex<Turns>);

struct Turns {
    next: Instant,
    /// The rings have changed, and most series are written elsewhere from now on: what is settled is
    /// cut, from this time on.
    moved: Option<Instant>,
    /// Turns that failed since the last good one.
    failed: u32,
    /// Full chunks could not be written when it was tried last.
    keeps_chunks: bool,
    opened: Instant,
    /// Since when each look has found that nothing of the tenant is kept any longer.
    outlived_since: Option<Instant>,
}

impl CutTurns {
    /// The first turn comes within a tenth of the range, so that those of many tenants do not come
    /// together.
    pub(super) fn new(range: Duration) -> CutTurns {
        let share = f64::from(getrandom::u32().unwrap_or(0)) / f64::from(u32::MAX);
        let next = Instant::now() + (range / 10).mul_f64(share);
        CutTurns(Mutex::new(Turns {
            next,
            moved: None,
            failed: 0,
            keeps_chunks: false,
            opened: Instant::now(),
            outlived_since: None,
        }))
    }

    fn has_come(&self) -> bool {
        self.0.lock().next <= Instant::now()
    }

    fn moves(&self, wait: Duration) {
        self.0.lock().moved = Some(Instant::now() + wait);
    }

    fn take_move(&self) -> bool {
        let now = Instant::now();
        self.0.lock().moved.take_if(|from| *from <= now).is_some()
    }

    pub(super) fn opened(&self) -> Instant {
        self.0.lock().opened
    }

    /// Whether the last turn failed.
    pub(super) fn has_failed(&self) -> bool {
        self.0.lock().failed > 0
    }

    /// Notes what a look found, and gives the first look since which it was so.
    pub(super) fn outlived_since(&self, found: Option<Instant>) -> Option<Instant> {
        let mut turns = self.0.lock();
        turns.outlived_since = found.map(|now| turns.outlived_since.unwrap_or(now));
        turns.outlived_since
    }

    /// Tells once that full chunks cannot be written.
    fn note_writing(&self, tenant: &Tenant, written: Result<(), WriteError>) {
        let keeps_chunks = written.is_err();
        let kept_before = std::mem::replace(&mut self.0.lock().keeps_chunks, keeps_chunks);
        let tenant = &tenant.id;
        match written {
            Err(err) if !kept_before => {
                let err = chain(&err);
                tracing::error!(%tenant, err, "full chunks cannot be written and stay in memory");
            }
            Ok(()) if kept_before => tracing::info!(%tenant, "full chunks are written again"),
            _ => {}
        }
    }

    fn end(&self, range: Duration, is_good: bool) {
        let mut turns = self.0.lock();
        turns.failed = if is_good { 0 } else { turns.failed + 1 };
        let wait = match turns.failed {
            0 => range,
            failed => range.min(RETRY * (1 << (failed - 1).min(16))),
        };
        turns.next = Instant::now() + wait;
    }
}

impl MultiTsdb {
    /// Cuts what is due, lets heads drop what was cut, and deletes what is kept no longer.
    pub(super) fn cut_heads(&self) {
        let tenants = self.tenants();
        if self.has_moved_by_hashmod() {
            tenants.iter().for_each(|tenant| tenant.cuts.moves(Duration::ZERO));
        }
        for tenant in tenants {
            if self.background.is_asked() {
                return;
            }
            let see_to = || self.background.clone().run(|| self.see_to(&tenant));
            if panic::catch_unwind(AssertUnwindSafe(see_to)).is_err() {
                // A mistake of ours is to cost its own tenant a turn, not all of them every other.
                tracing::error!(tenant = %tenant.id, "looking after a tenant's storage panicked");
                tenant.cuts.end(self.cut_range(), false);
            }
        }
    }

    fn see_to(&self, tenant: &Arc<Tenant>) {
        let range = self.cut_range();
        tenant.cuts.note_writing(tenant, tenant.db.write_full_chunks().map(drop));
        if tenant.cuts.take_move() {
            let cut = tenant.db.cut_settled();
            if cut.is_err() {
                tenant.cuts.moves(RETRY);
            }
            if !self.take(tenant, cut) {
                return;
            }
        }
        if tenant.cuts.has_come() {
            let cut = tenant.db.cut_due();
            tenant.cuts.end(range, cut.is_ok());
            if !self.take(tenant, cut) {
                return;
            }
        }
        // A reader may have kept the head from it before.
        tenant.db.drop_cut();
        if let Err(err) = tenant.db.drop_expired(self.may_go(&tenant.id)) {
            let (tenant, err) = (&tenant.id, chain(&err));
            tracing::error!(%tenant, err, "an old block cannot be deleted");
        }
        self.prune_if_outlived(tenant);
    }

    /// Tells of a cut. Whether the tenant is the same as before.
    fn take(&self, tenant: &Arc<Tenant>, cut: Result<usize, CutError>) -> bool {
        let is_damaged = cut.as_ref().is_err_and(CutError::is_of_head_chunks);
        tell(tenant, cut);
        if is_damaged {
            // It would fail for ever. What the log has of it is there afterwards.
            tracing::warn!(tenant = %tenant.id, "opening a tenant again for a damaged head chunk");
            self.reopen(tenant);
        }
        !is_damaged
    }

    /// Whether the rings have changed since the last look so that nearly all series are others'.
    fn has_moved_by_hashmod(&self) -> bool {
        let Some(now) = self.options.rings.as_ref().and_then(CurrentHashring::load) else {
            return false;
        };
        let before = self.seen_rings.lock().replace(now.clone());
        before
            .is_some_and(|before| !Arc::ptr_eq(&before, &now) && now.has_moved_by_hashmod(&before))
    }

    pub(super) fn cut_range(&self) -> Duration {
        Duration::from_millis(u64::try_from(self.options.db.cut_range).unwrap_or(u64::MAX))
    }

    /// Cuts all of the heads, as far as the time reaches; what is left stays in the logs. The tenants
    /// take no more writes.
    pub(super) fn flush_heads(&self, within: Duration) {
        let tenants = self.tenants();
        let count = tenants.len();
        tracing::info!(tenants = count, "flushing the heads into blocks");
        let (deadline, stop) = stop::pair();
        let (done, is_done) = mpsc::channel::<()>();
        thread::scope(|scope| {
            scope.spawn(move || {
                if let Err(RecvTimeoutError::Timeout) = is_done.recv_timeout(within) {
                    drop(deadline);
                }
            });
            for (i, tenant) in (1..).zip(&tenants) {
                let cut = stop.clone().run(|| tenant.db.flush());
                let is_interrupted = matches!(cut, Err(CutError::Interrupted));
                tell(tenant, cut);
                if is_interrupted {
                    let left = count - i + 1;
                    tracing::warn!(left, "no time is left to flush heads; the logs keep them");
                    break;
                }
                tracing::info!(tenant = %tenant.id, done = i, of = count, "head flushed");
            }
            drop(done);
        });
    }
}

fn tell(tenant: &Tenant, cut: Result<usize, CutError>) {
    match cut {
        Ok(0) | Err(CutError::Interrupted) => {}
        Ok(blocks) => tracing::info!(tenant = %tenant.id, blocks, "the head was cut into blocks"),
        Err(err) => {
            let err = chain(&err);
            tracing::error!(tenant = %tenant.id, err, "cutting the head failed; it will be tried again");
        }
    }
}
