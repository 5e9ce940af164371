//! When tenants' blocks are shipped: every half minute, several tenants at a time, each by itself.
//! Whose round fails waits longer before the next one; the others do not notice.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::disk::Disk;
use crate::metrics::Registry;
use crate::model::tenant::TenantId;
use crate::objstore::Bucket;
use crate::shipper::{ShipError, ShippedDb, Shipper, ShipperEnv, ShipperMetrics, ShipperOptions};

/// As in Thanos.
const ROUND_EVERY: Duration = Duration::from_secs(30);
/// Between a failed round and the next, at most.
const PAUSE_MAX: Duration = Duration::from_secs(5 * 60);
/// How often it is looked whose turn it is.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How often it is looked whether a round has ended that the last one waits for.
const END_POLL: Duration = Duration::from_millis(50);
/// Tenants whose rounds are under way.
const ROUNDS_TOGETHER: usize = 8;
/// Threads that may wait for the disk.
const DISK_THREADS_MAX: usize = 32;

/// What is shipped, and where to.
pub struct ShippingOptions {
    pub bucket: Arc<dyn Bucket>,
    pub shipper: ShipperOptions,
}

/// A tenant that is open now.
pub struct ShippedTenant {
    pub id: TenantId,
    pub dir: PathBuf,
    pub db: Arc<dyn ShippedDb>,
}

/// Ships the blocks of all tenants, on threads of its own: what is signed and hashed does not hold up
/// those who serve sockets.
pub struct Shipping {
    inner: Arc<Inner>,
    /// None once it has ended.
    runtime: Mutex<Option<Runtime>>,
}

struct Inner {
    env: ShipperEnv,
    /// Which tenants are open.
    open: Box<dyn Fn() -> Vec<ShippedTenant> + Send + Sync>,
    registry: Registry,
    tenants: Mutex<HashMap<TenantId, Arc<Turns>>>,
    places: Semaphore,
    /// No round begins any more but the last ones.
    ending: CancellationToken,
}

/// A tenant's turns.
struct Turns {
    shipper: Shipper,
    is_under_way: AtomicBool,
    next: Mutex<Next>,
}

struct Next {
    at: Instant,
    failures: u32,
}

impl Next {
    /// Notes how a round ended.
    fn ended(&mut self, is_failure: bool, now: Instant) {
        self.failures = if is_failure { self.failures.saturating_add(1) } else { 0 };
        let factor = 1 << self.failures.saturating_sub(1).min(8);
        self.at = now + (ROUND_EVERY * factor).min(PAUSE_MAX);
    }
}

impl Shipping {
    /// `tenants` tells which are open.
    pub fn start(
        options: ShippingOptions,
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        registry: &Registry,
        tenants: impl Fn() -> Vec<ShippedTenant> + Send + Sync + 'static,
    ) -> io::Result<Shipping> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(DISK_THREADS_MAX)
            .thread_name("ship")
            .enable_all()
            .build()?;
        let ShippingOptions { bucket, shipper: options } = options;
        let inner = Arc::new(Inner {
            env: ShipperEnv { disk, clock, bucket, options },
            open: Box::new(tenants),
            registry: registry.clone(),
            tenants: Mutex::default(),
            places: Semaphore::new(ROUNDS_TOGETHER),
            ending: CancellationToken::new(),
        });
        runtime.spawn(inner.clone().run());
        Ok(Shipping { inner, runtime: Mutex::new(Some(runtime)) })
    }

    /// Ends the rounds under way, then gives each tenant a last one, for so long at most. Blocks.
    pub fn finish(&self, within: Duration) {
        let Some(runtime) = self.runtime.lock().take() else { return };
        self.inner.ending.cancel();
        tracing::info!("uploading the final cut block before exiting");
        let last = self.inner.clone().last_rounds();
        match runtime.block_on(async { tokio::time::timeout(within, last).await }) {
            Ok((uploaded, 0)) => tracing::info!(uploaded, "the final cut block was uploaded"),
            Ok((uploaded, failed)) => {
                let message = "the final upload failed; it goes on with the next start";
                tracing::error!(uploaded, tenants = failed, "{message}");
            }
            Err(_) => {
                let message = "the final upload took too long; it goes on with the next start";
                tracing::error!(?within, "{message}");
            }
        }
        // A thread may hang in the disk.
        runtime.shutdown_background();
    }
}

impl Drop for Shipping {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.lock().take() {
            runtime.shutdown_background();
        }
    }
}

impl Inner {
    async fn run(self: Arc<Self>) {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut rounds = JoinSet::new();
        loop {
            tokio::select! {
                _ = self.ending.cancelled() => break,
                _ = looks.tick() => {}
            }
            self.note_open();
            while rounds.try_join_next().is_some() {}
            let turns: Vec<_> = self.tenants.lock().values().cloned().collect();
            for turn in turns.into_iter().filter(|turn| turn.begins(Instant::now())) {
                rounds.spawn(self.clone().round(turn));
            }
        }
        // Dropped here they would be aborted; the last rounds wait for them.
        rounds.detach_all();
    }

    /// Notes which tenants there are.
    fn note_open(&self) {
        let open = (self.open)();
        let mut tenants = self.tenants.lock();
        let ids: HashSet<TenantId> = open.iter().map(|tenant| tenant.id.clone()).collect();
        tenants.retain(|id, turns| ids.contains(id) || turns.is_under_way.load(Ordering::Acquire));
        for ShippedTenant { id, dir, db } in open {
            tenants.entry(id.clone()).or_insert_with(|| {
                let metrics = ShipperMetrics::new(&self.registry, id.as_str());
                let (tenant, env) = (id.as_str().to_owned(), self.env.clone());
                let shipper = Shipper::new(tenant, dir, db, env, metrics);
                let next = Mutex::new(Next { at: Instant::now(), failures: 0 });
                Arc::new(Turns { shipper, is_under_way: AtomicBool::new(false), next })
            });
        }
    }

    async fn round(self: Arc<Self>, turns: Arc<Turns>) -> Result<usize, ShipError> {
        let _under_way = UnderWay(&turns);
        // It is never closed.
        let _place = self.places.acquire().await.ok();
        let tenant = &turns.shipper.tenant;
        let shipped = turns.shipper.ship().await;
        turns.next.lock().ended(shipped.is_err(), Instant::now());
        match &shipped {
            Ok(shipped) => {
                let blocks_count = shipped.uploaded;
                tracing::debug!(tenant, blocks_count, "uploaded blocks for tenant");
            }
            Err(err) => tracing::error!(tenant, %err, "periodic upload failed"),
        }
        shipped.map(|shipped| shipped.uploaded)
    }

    /// Gives each tenant one more round, and counts the blocks uploaded and the tenants that failed.
    async fn last_rounds(self: Arc<Self>) -> (usize, usize) {
        // Some may have been opened since the last look.
        self.note_open();
        let turns: Vec<_> = self.tenants.lock().values().cloned().collect();
        let mut rounds = JoinSet::new();
        for turn in turns {
            let inner = self.clone();
            rounds.spawn(async move {
                // One that is under way may have begun before the last block was cut.
                while turn.is_under_way.swap(true, Ordering::AcqRel) {
                    tokio::time::sleep(END_POLL).await;
                }
                inner.round(turn).await
            });
        }
        let (mut uploaded, mut failed) = (0, 0);
        while let Some(round) = rounds.join_next().await {
            match round {
                Ok(Ok(blocks)) => uploaded += blocks,
                _ => failed += 1,
            }
        }
        (uploaded, failed)
    }
}

impl Turns {
    /// Begins a round if it is time, and none is under way.
    fn begins(&self, now: Instant) -> bool {
        self.next.lock().at <= now && !self.is_under_way.swap(true, Ordering::AcqRel)
    }
}

struct UnderWay<'t>(&'t Turns);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.is_under_way.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_rounds_come_further_and_further_apart() {
        let now = Instant::now();
        let mut next = Next { at: now, failures: 0 };
        let mut pauses = Vec::new();
        for is_failure in [false, true, true, true, true, true, true, false, true] {
            next.ended(is_failure, now);
            pauses.push((next.at - now).as_secs());
        }
        assert_eq!(pauses, [30, 30, 60, 120, 240, 300, 300, 30, 30]);
    }
}
