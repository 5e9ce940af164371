//! What the log has of a peer: that it is out, refuses writes or does not answer, and that it is back.

use std::sync::atomic::Ordering;
use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;

use crate::model::router_path::InstanceId;
use crate::peer::Peer;
use crate::peer::breaker::State;
use crate::peer::error::ForwardError;
use crate::peer::health::Said;
use crate::wire::grpc::INSTANCE;

/// A shorter back-off is not logged.
const TOLD_BACKOFF_MIN: Duration = Duration::from_millis(800);

impl Peer {
    /// Logs that the peer is out, and that it is back. A back-off that an answer ends soon is no
    /// news, nor is one of a peer that is known not to answer.
    pub(super) fn tell(&self, result: &Result<(), ForwardError>) {
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
    pub(super) fn tell_unanswered(&self) {
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

    /// Takes note of what the peer says of itself.
    pub(super) fn hear(&self, headers: &HeaderMap) {
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
}

/// A length of time for people.
fn in_words(time: Duration) -> String {
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    humantime::format_duration(Duration::from_millis(millis)).to_string()
}
