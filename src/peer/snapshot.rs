//! What an operator sees of a peer.

use std::sync::Arc;
use std::time::Duration;

use crate::model::Timestamp;
use crate::peer::error::ForwardError;
use crate::peer::told_ring::RingWord;

/// What an operator sees of a peer.
#[derive(Clone, Debug)]
pub struct PeerSnapshot {
    pub address: Arc<str>,
    /// Where it is called.
    pub dialled: Arc<str>,
    pub state: PeerState,
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

/// Whether a peer would be called now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerState {
    Open,
    Shut,
    Probation,
    /// No connection can be had.
    Unreachable(Arc<str>),
}

impl PeerState {
    pub fn as_str(&self) -> &'static str {
        match self {
            PeerState::Open => "open",
            PeerState::Shut => "shut",
            PeerState::Probation => "probation",
            PeerState::Unreachable(_) => "unreachable",
        }
    }
}
