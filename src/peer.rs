//! The other nodes of the ring, as this one sees them: one [`Peer`] per endpoint, made and dropped
//! with the ring.
//!
//! A peer that fails costs its own series their copy and nobody else anything. Every call has a
//! deadline; the bytes under way to one peer are bounded, and what does not fit is refused, not
//! queued; a peer that cannot be reached, says it is unavailable or answers nothing in time is left
//! alone for a while ([`breaker`]).

mod admitted;
pub mod agreement;
pub mod breaker;
pub mod capnproto;
pub mod client;
pub mod copies;
pub mod dial;
mod error;
mod exchange;
pub mod health;
mod inflight;
pub mod link;
pub mod message;
pub mod metrics;
mod notices;
mod options;
mod pool;
pub mod resolve;
pub mod service_config;
mod snapshot;
pub mod socket;
pub mod tls;
pub mod told_ring;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::time::Instant;
use tonic::Code;

use crate::clock::{Clock as _, SystemClock};
use crate::model::Timestamp;
use crate::model::router_path::InstanceId;
use crate::peer::breaker::{Blamed, Breaker, Ended};
use crate::peer::dial::Dialler;
use crate::peer::health::Health;
use crate::peer::inflight::{Budget, Inflight};
use crate::peer::link::{LinkKeeper, LinkOptions, Quiet};
use crate::peer::message::{ForwardMessage, Protocol};
use crate::peer::metrics::{PeerMetrics, PoolMetrics};
use crate::peer::service_config::MethodConfig;
use crate::peer::tls::ClientTls;
use crate::peer::told_ring::ToldRing;

pub use crate::peer::error::{ForwardError, NotSent};
pub use crate::peer::inflight::Bound;
pub use crate::peer::options::PeerOptions;
pub use crate::peer::pool::{PeerAddress, PeerPool};
pub use crate::peer::snapshot::{PeerSnapshot, PeerState};

/// The peer that `--receive.artificial-max-delay` delays.
const DELAYED_PEER: u64 = 2;

/// A longer deadline is none.
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Another node.
pub struct Peer {
    address: Arc<str>,
    dialled: Arc<str>,
    method: MethodConfig,
    artificial_delay_max: Duration,
    metrics: PeerMetrics,
    protocol: Protocol,
    link: LinkKeeper,
    link_options: LinkOptions,
    /// For what Cap'n Proto has no place for; dialled when there is such a message.
    protobuf_link: OnceLock<LinkKeeper>,
    /// See [`PeerOptions::tls`].
    tls: Option<Arc<ClientTls>>,
    inflight: Inflight,
    breaker: Mutex<Breaker>,
    /// Told when a call has ended, which may have been the one on trial.
    trial_ended: Notify,
    health: Mutex<Health>,
    quiet: Arc<Quiet>,
    last_error: Mutex<Option<(ForwardError, Timestamp)>>,
    told_ring: ToldRing,
    /// This process.
    instance: Option<InstanceId>,
    /// The log has it that the peer is this process.
    is_us_told: AtomicBool,
}

impl Peer {
    /// `number` counts the peers of a pool from 1.
    fn start(
        address: PeerAddress<'_>,
        number: u64,
        options: &PeerOptions,
        budget: Arc<Budget>,
        metrics: &PoolMetrics,
    ) -> Peer {
        let (address, dialled): (Arc<str>, Arc<str>) =
            (address.name.into(), address.dialled.into());
        let dialler = match options.protocol {
            Protocol::Protobuf(_) => Dialler::Grpc(options.tls.clone()),
            Protocol::CapnProto => Dialler::CapnProto,
        };
        let quiet = Arc::<Quiet>::default();
        Peer {
            method: options.method,
            artificial_delay_max: match number {
                DELAYED_PEER => options.artificial_delay_max,
                _ => Duration::ZERO,
            },
            metrics: metrics.peer(&address),
            protocol: options.protocol,
            link: LinkKeeper::start(dialled.clone(), dialler, options.link, quiet.clone()),
            link_options: options.link,
            protobuf_link: OnceLock::new(),
            tls: options.tls.clone(),
            inflight: Inflight::new(budget),
            breaker: Mutex::new(Breaker::new(options.backoff_max)),
            trial_ended: Notify::new(),
            health: Mutex::default(),
            quiet,
            last_error: Mutex::default(),
            told_ring: ToldRing::default(),
            instance: options.instance,
            is_us_told: AtomicBool::new(false),
            address,
            dialled,
        }
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// Whether the ring has it no more, and its connections are kept for a while only. Then it is
    /// all right that it goes away.
    pub(super) fn set_has_left(&self, has_left: bool) {
        self.quiet.has_left.store(has_left, Ordering::Relaxed);
    }

    /// Sends `message` and waits for the peer's verdict, `timeout` at most. A call that is dropped
    /// is given up, and counts neither for nor against the peer.
    pub async fn remote_write(
        &self,
        message: &ForwardMessage,
        timeout: Duration,
    ) -> Result<(), ForwardError> {
        let result = self.try_remote_write(message, timeout).await;
        match &result {
            Ok(()) => self.metrics.count_forward(true),
            // Neither a success nor a fault of the peer; Thanos counts it as neither.
            Err(ForwardError::Conflict { .. }) => {}
            Err(error) => self.note(error),
        }
        result
    }

    /// Whether it takes series of several replicas in one message. Where messages have a limit they
    /// are not made longer.
    pub fn takes_merged(&self) -> bool {
        self.method.request_bytes_max.is_none() && self.link.takes_merged()
    }

    /// Tells beforehand that a message for `tenant` would not be sent, so that none need be made.
    pub async fn check(&self, tenant: &str) -> Result<(), ForwardError> {
        let checked = self.check_open(tenant);
        let checked = match checked {
            Ok(()) => self.link.check_reachable().await.map_err(|reason| self.unreachable(&reason)),
            refused => refused,
        };
        checked.inspect_err(|error| self.note(error))
    }

    fn check_open(&self, tenant: &str) -> Result<(), ForwardError> {
        let peer = || self.address.clone();
        self.inflight.check().map_err(|bound| ForwardError::Full { peer: peer(), bound })?;
        let now = Instant::now();
        match self.see_return(now).is_shut_to(tenant, now) {
            true => Err(ForwardError::BackedOff { peer: peer() }),
            false => Ok(()),
        }
    }

    /// Lets the breaker, and whoever looks at it, know of a connection that came up.
    fn see_return(&self, now: Instant) -> MutexGuard<'_, Breaker> {
        let mut breaker = self.breaker.lock();
        if breaker.see_return(self.link.returned(), now) {
            self.health.lock().forgive(now);
        }
        breaker
    }

    fn unreachable(&self, reason: &str) -> ForwardError {
        ForwardError::Unreachable { peer: self.address.clone(), detail: reason.to_owned() }
    }

    /// Counts a failure, and keeps it for whoever asks. What is told of calls that were not made is
    /// the cause that came before.
    fn note(&self, error: &ForwardError) {
        match error.not_sent() {
            None => self.metrics.count_forward(false),
            Some(reason) => self.metrics.count_not_sent(reason),
        }
        if !matches!(error.not_sent(), Some(NotSent::BackedOff | NotSent::Full)) {
            *self.last_error.lock() = Some((error.clone(), SystemClock.now()));
        }
    }

    async fn try_remote_write(
        &self,
        message: &ForwardMessage,
        timeout: Duration,
    ) -> Result<(), ForwardError> {
        let bytes = message.body_bytes() as u64;
        let full = |bound| ForwardError::Full { peer: self.address.clone(), bound };
        let _held = self.inflight.take(bytes).map_err(full)?;
        if let Some(max) = self.method.request_bytes_max.filter(|max| bytes > *max) {
            let detail = format!("trying to send message larger than max ({bytes} vs. {max})");
            let code = Code::ResourceExhausted;
            return Err(ForwardError::Failed { peer: self.address.clone(), code, detail });
        }
        let timeout = self.method.timeout.map_or(timeout, |max| max.min(timeout));
        let deadline = Instant::now() + timeout.min(TIMEOUT_MAX);
        self.delay(deadline).await?;
        let mut call = self.begin(message, deadline).await?;
        let mut used = None;
        let result = self.exchange_until_final(message, deadline, &mut used).await;
        let ended = match &result {
            // Nothing was asked of the peer. The keeper of the link tries on by itself, and the peer
            // is used as soon as it is back.
            Err(ForwardError::Unreachable { .. }) => Ended::Cancelled,
            Err(ForwardError::Unavailable { .. }) => Ended::Unavailable,
            Err(ForwardError::TimedOut { .. }) => Ended::TimedOut,
            Err(ForwardError::TenantNotReady { .. }) => Ended::TenantNotReady,
            _ => Ended::Answered,
        };
        let blamed = call.end(ended, used);
        self.tell(&result);
        if let (Ended::TimedOut, Blamed::Peer, Some(number)) = (ended, blamed, used) {
            // It may be the connection that is dead, and the peer under a new address.
            self.link_for(message).leave(number);
        }
        result
    }
}

/// From 0 to 1, at random.
fn jitter() -> f64 {
    // Without a source of randomness peers are tried together, which works as well.
    getrandom::u32().map_or(1.0, |random| f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests;
