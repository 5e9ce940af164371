//! A message to the peer and its answer back, over whichever connection there is.

use std::time::Duration;

use http::HeaderMap;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout_at};
use tonic::Code;

use crate::peer::client::{self, CallFailure};
use crate::peer::dial::Dialler;
use crate::peer::error::ForwardError;
use crate::peer::health::{UNANSWERED_MAX, Waited};
use crate::peer::link::{LinkKeeper, Transport};
use crate::peer::message::{Form, ForwardMessage, Protocol};
use crate::peer::{Peer, jitter};

/// Connections tried for one call. Another is tried only where the peer cannot have seen the call.
const ATTEMPTS_MAX: u32 = 3;

/// How long the peer that is delayed is delayed at least.
const ARTIFICIAL_DELAY_MIN: Duration = Duration::from_secs(1);

impl Peer {
    /// Makes a peer slow that is to be.
    pub(super) async fn delay(&self, deadline: Instant) -> Result<(), ForwardError> {
        if self.artificial_delay_max.is_zero() {
            return Ok(());
        }
        let delay = self.artificial_delay_max.mul_f64(jitter()).max(ARTIFICIAL_DELAY_MIN);
        timeout_at(deadline, tokio::time::sleep(delay))
            .await
            .map_err(|_| ForwardError::TimedOut { peer: self.address.clone() })
    }

    /// Calls, and calls again if the service config says so.
    pub(super) async fn exchange_until_final(
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

    /// The connection that takes such a message. Under its name a peer always takes gRPC.
    pub(super) fn link_for(&self, message: &ForwardMessage) -> &LinkKeeper {
        match (self.protocol, message.form()) {
            (Protocol::CapnProto, Form::Protobuf(_)) => self.protobuf_link.get_or_init(|| {
                let dialler = Dialler::Grpc(self.tls.clone());
                let (options, quiet) = (self.link_options, self.quiet.clone());
                LinkKeeper::start(self.address.clone(), dialler, options, quiet)
            }),
            _ => &self.link,
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
