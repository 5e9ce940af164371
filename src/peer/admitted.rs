//! Calls that the breaker has let pass, and that tell it how they end.

use tokio::time::{Instant, timeout_at};

use crate::peer::breaker::{Admitted, Blamed, Ended, Refused};
use crate::peer::error::ForwardError;
use crate::peer::message::ForwardMessage;
use crate::peer::{Peer, jitter};

impl Peer {
    /// Asks the breaker. A call that comes while another is on trial waits a moment for its end: a
    /// request makes several calls to a peer that is back, and all but the first would fail.
    pub(super) async fn begin<'a>(
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
}

/// A call under way, which the breaker hears of when it ends, and be it by being dropped.
pub(super) struct Call<'a> {
    peer: &'a Peer,
    message: &'a ForwardMessage,
    admitted: Option<Admitted>,
}

impl Call<'_> {
    /// `used` is the number of the connection that it was made over, if any.
    pub(super) fn end(&mut self, ended: Ended, used: Option<u64>) -> Blamed {
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
