//! The other nodes of the ring, as this one sees them: one [`Peer`] per endpoint, made and dropped
//! with the ring.
//!
//! A peer that fails costs its own series their copy and nobody else anything. Every call has a
//! deadline; the bytes under way to one peer are bounded, and what does not fit is refused, not
//! queued; a peer that cannot be reached, says it is unavailable or answers nothing in time is left
//! alone for a while ([`breaker`]).

pub mod agreement;
pub mod breaker;
pub mod capnproto;
pub mod client;
pub mod dial;
mod error;
pub mod health;
mod inflight;
pub mod link;
pub mod message;
pub mod metrics;
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

use http::HeaderMap;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout_at};
use tonic::Code;

use crate::clock::{Clock as _, SystemClock};
use crate::model::Timestamp;
use crate::model::router_path::InstanceId;
use crate::peer::breaker::{Admitted, Blamed, Breaker, Ended, Refused, State};
use crate::peer::client::CallFailure;
use crate::peer::dial::Dialler;
use crate::peer::health::{Health, Said, UNANSWERED_MAX, Waited};
use crate::peer::inflight::{Budget, Inflight};
use crate::peer::link::{LinkKeeper, LinkOptions, Quiet, Transport};
use crate::peer::message::{Compression, Form, ForwardMessage, Protocol};
use crate::peer::metrics::{PeerMetrics, PoolMetrics};
use crate::peer::service_config::MethodConfig;
use crate::peer::snapshot::Seen;
use crate::peer::tls::ClientTls;
use crate::peer::told_ring::ToldRing;
use crate::wire::grpc::INSTANCE;

pub use crate::peer::error::{ForwardError, NotSent};
pub use crate::peer::inflight::Bound;
pub use crate::peer::pool::{PeerAddress, PeerPool};
pub use crate::peer::snapshot::{PeerSnapshot, PeerState};

/// What forwards under way to all peers may hold: some thousand requests of 2,000 series.
pub const INFLIGHT_BYTES_MAX_DEFAULT: u64 = 256 << 20;

/// Calls that may be under way to one peer.
pub const CALLS_MAX_DEFAULT: usize = 1024;

/// Connections tried for one call. Another is tried only where the peer cannot have seen the call.
const ATTEMPTS_MAX: u32 = 3;

/// A shorter back-off is not logged.
const TOLD_BACKOFF_MIN: Duration = Duration::from_millis(800);

/// The peer that `--receive.artificial-max-delay` delays, and for how long at least.
const DELAYED_PEER: u64 = 2;
const ARTIFICIAL_DELAY_MIN: Duration = Duration::from_secs(1);

/// A connection is replaced after about so long, so that load spreads over what has come to stand
/// behind its name.
const CONNECTION_AGE_MAX_DEFAULT: Duration = Duration::from_secs(30 * 60);

/// A longer deadline is none.
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// How peers are treated.
#[derive(Clone, Debug)]
pub struct PeerOptions {
    /// `--receive.replication-protocol`, `--receive.grpc-compression`
    pub protocol: Protocol,
    /// `--receive-forward-max-backoff`
    pub backoff_max: Duration,
    /// `--receive.forward.inflight-bytes-max`: what forwards under way to all peers hold. A single
    /// larger message may go alone.
    pub inflight_bytes_max: u64,
    /// `--receive.forward.calls-max`: to one peer.
    pub calls_max: usize,
    /// What this process is called, by which a peer is known that is none.
    pub instance: Option<InstanceId>,
    /// `None` for plain text. Cap'n Proto is always plain, but what it has no place for is not sent
    /// over it.
    pub tls: Option<Arc<ClientTls>>,
    /// How connections are treated.
    pub link: LinkOptions,
    /// `--receive.grpc-service-config`
    pub method: MethodConfig,
    /// `--receive.artificial-max-delay`: forwards to the second peer wait for a random time, up to
    /// this and at least a second, so that tests meet a slow one.
    pub artificial_delay_max: Duration,
}

impl Default for PeerOptions {
    fn default() -> PeerOptions {
        PeerOptions {
            protocol: Protocol::Protobuf(Compression::Snappy),
            backoff_max: Duration::from_secs(5),
            inflight_bytes_max: INFLIGHT_BYTES_MAX_DEFAULT,
            calls_max: CALLS_MAX_DEFAULT,
            instance: None,
            tls: None,
            link: LinkOptions {
                user_timeout: socket::user_timeout(Duration::ZERO),
                age_max: CONNECTION_AGE_MAX_DEFAULT,
                resolve: resolve::resolve,
            },
            method: MethodConfig::default(),
            artificial_delay_max: Duration::ZERO,
        }
    }
}

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

    /// The connection that takes such a message. Under its name a peer always takes gRPC.
    fn link_for(&self, message: &ForwardMessage) -> &LinkKeeper {
        match (self.protocol, message.form()) {
            (Protocol::CapnProto, Form::Protobuf(_)) => self.protobuf_link.get_or_init(|| {
                let dialler = Dialler::Grpc(self.tls.clone());
                let (options, quiet) = (self.link_options, self.quiet.clone());
                LinkKeeper::start(self.address.clone(), dialler, options, quiet)
            }),
            _ => &self.link,
        }
    }

    /// Logs that the peer is out, and that it is back. A back-off that an answer ends soon is no
    /// news, nor is one of a peer that is known not to answer.
    fn tell(&self, result: &Result<(), ForwardError>) {
        let now = Instant::now();
        let state = self.breaker.lock().state();
        let mut health = self.health.lock();
        match (state, result) {
            (State::Shut { backoff, .. }, Err(error))
                if backoff.duration() >= TOLD_BACKOFF_MIN
                    && !self.quiet.has_left.load(Ordering::Relaxed)
                    && health.tell_out(now) =>
            {
                tracing::warn!(peer = %self.address, err = %error, "peer is backed off");
            }
            (
                State::Open,
                Ok(())
                | Err(
                    ForwardError::Conflict { .. }
                    | ForwardError::BadReplica { .. }
                    | ForwardError::TenantNotReady { .. }
                    | ForwardError::Failed { .. },
                ),
            ) => {
                if let Some(lasted) = health.tell_back(now) {
                    self.quiet.is_known_silent.store(false, Ordering::Relaxed);
                    let after = in_words(lasted);
                    tracing::info!(peer = %self.address, after, "peer answers again");
                }
            }
            _ => {}
        }
        let said = match result {
            Ok(()) | Err(ForwardError::Conflict { .. }) => Said::Done,
            Err(ForwardError::BadReplica { .. } | ForwardError::Failed { .. }) => Said::Failed,
            Err(_) => return,
        };
        match (health.note(said, now), result) {
            (Some((Said::Failed, lasts)), Err(error)) => {
                let lasts = in_words(lasts);
                tracing::warn!(peer = %self.address, err = %error, lasts, "peer refuses all writes");
            }
            (Some((Said::Done, lasted)), _) => {
                let after = in_words(lasted);
                tracing::info!(peer = %self.address, after, "peer takes writes again");
            }
            _ => {}
        }
    }

    /// Logs that calls under way have had no answer for too long.
    fn tell_unanswered(&self) {
        let now = Instant::now();
        let mut health = self.health.lock();
        let Some(silence) = health.unanswered_for(now).filter(|_| health.is_unanswered(now)) else {
            return;
        };
        self.quiet.is_known_silent.store(true, Ordering::Relaxed);
        if !self.quiet.has_left.load(Ordering::Relaxed) && health.tell_out(now - silence) {
            tracing::warn!(
                peer = %self.address,
                unanswered_for = in_words(silence),
                "peer does not answer"
            );
        }
    }

    /// Asks the breaker. A call that comes while another is on trial waits a moment for its end: a
    /// request makes several calls to a peer that is back, and all but the first would fail.
    async fn begin<'a>(
        &'a self,
        message: &'a ForwardMessage,
        deadline: Instant,
    ) -> Result<Call<'a>, ForwardError> {
        loop {
            let now = Instant::now();
            let mut trial_ended = std::pin::pin!(self.trial_ended.notified());
            // From here on no end is missed.
            trial_ended.as_mut().enable();
            let admitted = self.see_return(now).admit([message.tenant()], now);
            match admitted {
                Ok(admitted) => return Ok(Call { peer: self, message, admitted: Some(admitted) }),
                // By then it is taken for shut.
                Err(Refused::PeerOnTrial { until }) if now < deadline => {
                    let _ = timeout_at(until.min(deadline), trial_ended).await;
                }
                Err(Refused::PeerOnTrial { .. } | Refused::PeerShut | Refused::TenantShut) => {
                    return Err(ForwardError::BackedOff { peer: self.address.clone() });
                }
            }
        }
    }

    /// Makes a peer slow that is to be.
    async fn delay(&self, deadline: Instant) -> Result<(), ForwardError> {
        if self.artificial_delay_max.is_zero() {
            return Ok(());
        }
        let delay = self.artificial_delay_max.mul_f64(jitter()).max(ARTIFICIAL_DELAY_MIN);
        timeout_at(deadline, tokio::time::sleep(delay))
            .await
            .map_err(|_| ForwardError::TimedOut { peer: self.address.clone() })
    }

    /// Calls, and calls again if the service config says so.
    async fn exchange_until_final(
        &self,
        message: &ForwardMessage,
        deadline: Instant,
        used: &mut Option<u64>,
    ) -> Result<(), ForwardError> {
        let mut attempt = 1;
        loop {
            let mut used_now = None;
            let result = self.exchange(message, deadline, &mut used_now).await;
            *used = used_now.or(*used);
            let (Err(error), Some(retry)) = (&result, &self.method.retry) else { return result };
            let Some(pause) = retry.pause(error.code(), attempt, jitter()) else { return result };
            if timeout_at(deadline, tokio::time::sleep(pause)).await.is_err() {
                return result;
            }
            attempt += 1;
        }
    }

    /// Calls over the connection there is. `used` is told its number.
    async fn exchange(
        &self,
        message: &ForwardMessage,
        deadline: Instant,
        used: &mut Option<u64>,
    ) -> Result<(), ForwardError> {
        let timed_out = |_| ForwardError::TimedOut { peer: self.address.clone() };
        let begun = Instant::now();
        let link = self.link_for(message);
        let mut attempt = 1;
        loop {
            let connection = timeout_at(deadline, link.connection(*used)).await;
            let connection = connection.map_err(timed_out)?;
            let mut connection = connection.map_err(|reason| match *used {
                None => self.unreachable(&reason),
                // It was closed under the call, and no other can be had.
                Some(_) => {
                    let detail = reason.to_string();
                    ForwardError::Unavailable { peer: self.address.clone(), detail }
                }
            })?;
            *used = Some(connection.number);
            self.metrics.observe_delay(begun.elapsed());
            let is_grpc = matches!(connection.transport, Transport::Grpc { .. });
            let counted = is_grpc.then(|| self.metrics.begin());
            let left = deadline.saturating_duration_since(Instant::now());
            let waiting = Waiting::begin(self);
            let hear = |headers: &HeaderMap| self.hear(headers);
            let told = &self.told_ring;
            let call = client::call(&mut connection, message, left, told, hear);
            let result = self.wait_for(call, deadline).await;
            let (waited, code) = match &result {
                Ok(Ok(()) | Err(CallFailure::Refused(..))) => (Waited::Answered, Code::Ok),
                Ok(Err(CallFailure::Status(code, _))) => (Waited::Answered, *code),
                Ok(Err(CallFailure::TenantNotReady(_))) => (Waited::Answered, Code::Internal),
                Ok(Err(CallFailure::Broken(_) | CallFailure::NotSent)) => {
                    (Waited::GivenUp, Code::Unavailable)
                }
                Err(_) => (Waited::TimedOut, Code::DeadlineExceeded),
            };
            waiting.end(waited);
            if let Some(counted) = counted {
                counted.end(code);
            }
            match result.map_err(timed_out)? {
                Err(CallFailure::NotSent) if attempt < ATTEMPTS_MAX => {
                    attempt += 1;
                    link.leave(connection.number);
                }
                result => return result.map_err(|failure| self.judge(failure)),
            }
        }
    }

    /// Takes note of what the peer says of itself.
    fn hear(&self, headers: &HeaderMap) {
        let instance = headers.get(INSTANCE).and_then(|instance| instance.to_str().ok());
        let Some(instance) = instance.and_then(InstanceId::parse) else { return };
        let is_us = self.instance == Some(instance);
        if is_us && !self.is_us_told.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                peer = %self.address,
                "this member of the hashring is this node itself, which then needs \
                 --receive.local-endpoint to say so"
            );
        }
    }

    /// Waits for an answer, and says so if none of those that are waited for comes.
    async fn wait_for<T>(
        &self,
        call: impl Future<Output = T>,
        deadline: Instant,
    ) -> Result<T, Elapsed> {
        let mut call = std::pin::pin!(call);
        loop {
            let later = Instant::now() + UNANSWERED_MAX;
            let until = self.health.lock().unanswered_at().map_or(later, |at| at.max(later));
            match timeout_at(until.min(deadline), &mut call).await {
                Ok(answer) => return Ok(answer),
                Err(elapsed) if until >= deadline => return Err(elapsed),
                Err(_) => self.tell_unanswered(),
            }
        }
    }

    fn judge(&self, failure: CallFailure) -> ForwardError {
        let peer = self.address.clone();
        match failure {
            CallFailure::Status(code, detail) => match code {
                Code::AlreadyExists => ForwardError::Conflict { peer, detail, refused: None },
                Code::InvalidArgument => ForwardError::BadReplica { peer, detail },
                Code::Unavailable => ForwardError::Unavailable { peer, detail },
                // We have cancelled nothing: a time-out of the peer's own, as tonic tells it.
                Code::DeadlineExceeded | Code::Cancelled => ForwardError::TimedOut { peer },
                code => ForwardError::Failed { peer, code, detail },
            },
            CallFailure::Refused(series, detail) => {
                ForwardError::Conflict { peer, detail, refused: Some(series) }
            }
            CallFailure::TenantNotReady(detail) => ForwardError::TenantNotReady { peer, detail },
            failure @ (CallFailure::Broken(_) | CallFailure::NotSent) => {
                ForwardError::Unavailable { peer, detail: failure.to_string() }
            }
        }
    }

    pub fn snapshot(&self) -> PeerSnapshot {
        let now = Instant::now();
        let inflight = self.inflight.seen(now);
        let (breaker, breaker_since, tenants_shut) = {
            let breaker = self.see_return(now);
            (breaker.state(), breaker.since(), breaker.tenants_shut(now))
        };
        let (unanswered_for, answering_since, failing_for) = {
            let health = self.health.lock();
            (health.unanswered_for(now), health.answering_since(), health.failing_for(now))
        };
        let seen = Seen {
            link: self.link.state(),
            link_since: self.link.since(),
            breaker,
            breaker_since,
            unanswered_for,
            answering_since,
        };
        let (last_error, last_error_at) = self.last_error.lock().clone().unzip();
        PeerSnapshot {
            address: self.address.clone(),
            dialled: self.dialled.clone(),
            state: seen.state(now),
            state_for: seen.state_for(now),
            unavailable_for: seen.unavailable_for(now),
            unanswered_for,
            failing_for,
            tenants_shut,
            is_connected: seen.is_connected(),
            ring: self.told_ring.last(),
            inflight_requests: inflight.calls,
            inflight_bytes: inflight.bytes,
            lag: inflight.oldest,
            last_error,
            last_error_at,
        }
    }
}

/// A call under way, which the breaker hears of when it ends, and be it by being dropped.
struct Call<'a> {
    peer: &'a Peer,
    message: &'a ForwardMessage,
    admitted: Option<Admitted>,
}

impl Call<'_> {
    /// `used` is the number of the connection that it was made over, if any.
    fn end(&mut self, ended: Ended, used: Option<u64>) -> Blamed {
        let Some(admitted) = self.admitted.take() else { return Blamed::Nobody };
        let tenant = self.message.tenant();
        let blamed = {
            let mut breaker = self.peer.breaker.lock();
            used.into_iter().for_each(|number| breaker.see_used(number));
            breaker.end(admitted, ended, [tenant], Instant::now(), jitter())
        };
        self.peer.trial_ended.notify_waiters();
        blamed
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.end(Ended::Cancelled, None);
    }
}

/// The wait for one answer, and be it given up by being dropped.
struct Waiting<'a>(&'a Peer, Waited);

impl Waiting<'_> {
    fn begin(peer: &Peer) -> Waiting<'_> {
        peer.health.lock().begin(Instant::now());
        Waiting(peer, Waited::GivenUp)
    }

    fn end(mut self, waited: Waited) {
        self.1 = waited;
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.health.lock().end(self.1, Instant::now());
    }
}

/// A length of time for people.
fn in_words(time: Duration) -> String {
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    humantime::format_duration(Duration::from_millis(millis)).to_string()
}

/// From 0 to 1, at random.
fn jitter() -> f64 {
    // Without a source of randomness peers are tried together, which works as well.
    getrandom::u32().map_or(1.0, |random| f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests;
