//! What an operator sees of a peer.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::model::Timestamp;
use crate::peer::Peer;
use crate::peer::breaker::State;
use crate::peer::error::ForwardError;
use crate::peer::health::UNANSWERED_MAX;
use crate::peer::link::Link;
use crate::peer::told_ring::RingWord;

/// What an operator sees of a peer.
#[derive(Clone, Debug)]
pub struct PeerSnapshot {
    pub address: Arc<str>,
    /// Where it is called.
    pub dialled: Arc<str>,
    pub state: PeerState,
    /// For how long it has been that.
    pub state_for: Duration,
    /// For how long it has not been [`PeerState::Open`]; None if it is.
    pub unavailable_for: Option<Duration>,
    /// For how long calls have been waiting and none has been answered.
    pub unanswered_for: Option<Duration>,
    /// For how long there have been only errors for answers.
    pub failing_for: Option<Duration>,
    /// Tenants that are backed off alone.
    pub tenants_shut: usize,
    /// There is a connection to it.
    pub is_connected: bool,
    /// Which rings its last answer named.
    pub ring: Option<RingWord>,
    pub inflight_requests: u64,
    /// What they hold, see [`crate::peer::inflight`].
    pub inflight_bytes: u64,
    /// For how long the oldest of them has been waiting for its answer.
    pub lag: Duration,
    pub last_error: Option<ForwardError>,
    pub last_error_at: Option<Timestamp>,
}

impl Peer {
    /// The peer as it is now.
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

/// Whether a peer would be called now, and answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerState {
    /// It would and it does, as far as is known.
    Open,
    /// Calls are under way, and none has been answered for too long.
    Silent,
    Shut,
    /// One call would be made to see.
    Probation,
    /// There is no connection at the moment.
    Dialling,
    /// No connection can be had.
    Unreachable(Arc<str>),
}

impl PeerState {
    pub fn as_str(&self) -> &'static str {
        match self {
            PeerState::Open => "open",
            PeerState::Silent => "silent",
            PeerState::Shut => "shut",
            PeerState::Probation => "probation",
            PeerState::Dialling => "dialling",
            PeerState::Unreachable(_) => "unreachable",
        }
    }
}

/// What the parts of a peer say, each for itself.
pub(super) struct Seen {
    pub(super) link: Link,
    pub(super) link_since: Instant,
    pub(super) breaker: State,
    /// None if it has always been open.
    pub(super) breaker_since: Option<Instant>,
    pub(super) unanswered_for: Option<Duration>,
    /// When the last silence that was too long ended.
    pub(super) answering_since: Option<Instant>,
}

impl Seen {
    pub(super) fn state(&self, now: Instant) -> PeerState {
        match (&self.link, self.breaker) {
            (Link::Down { reason, .. }, _) => PeerState::Unreachable(reason.clone()),
            (_, State::Shut { until, .. }) if now < until => PeerState::Shut,
            (Link::Dialling, _) => PeerState::Dialling,
            // The next call is on trial, or one is.
            (Link::Up(_), State::Shut { .. } | State::Probation { .. }) => PeerState::Probation,
            (Link::Up(_), State::Open) if self.silence().is_some() => PeerState::Silent,
            (Link::Up(_), State::Open) => PeerState::Open,
        }
    }

    pub(super) fn is_connected(&self) -> bool {
        matches!(self.link, Link::Up(_))
    }

    pub(super) fn state_for(&self, now: Instant) -> Duration {
        let since_breaker = self.breaker_since.map(|since| now.saturating_duration_since(since));
        let since_link = now.saturating_duration_since(self.link_since);
        let lasts = match self.state(now) {
            PeerState::Unreachable(_) | PeerState::Dialling => Some(since_link),
            PeerState::Shut | PeerState::Probation => since_breaker,
            PeerState::Silent => self.silence(),
            // The last trouble of any kind.
            PeerState::Open => {
                let since = self.answering_since.map(|at| now.saturating_duration_since(at));
                [Some(since_link), since_breaker, since].into_iter().flatten().min()
            }
        };
        lasts.unwrap_or(since_link)
    }

    /// The oldest of the troubles there are.
    pub(super) fn unavailable_for(&self, now: Instant) -> Option<Duration> {
        let elapsed = |since: Instant| now.saturating_duration_since(since);
        let no_link = !matches!(self.link, Link::Up(_));
        let not_open = self.breaker != State::Open;
        let troubles = [
            no_link.then(|| elapsed(self.link_since)),
            self.breaker_since.filter(|_| not_open).map(elapsed),
            self.silence(),
        ];
        troubles.into_iter().flatten().max()
    }

    /// One that is too long.
    fn silence(&self) -> Option<Duration> {
        self.unanswered_for.filter(|silence| *silence >= UNANSWERED_MAX)
    }
}
