//! A body on its way into memory: how large it may be, how slow, and how its buffer grows.

use std::time::Duration;

use axum::body::Body;
use http_body_util::BodyExt as _;

use crate::http::respond::RequestError;
use crate::write::admission::InflightGuard;
use crate::write::error::{Invalid, TooLarge, Unavailable, WriteError};

/// A body's buffer grows from here, doubling up to its declared length, so that a declaration
/// alone takes no more than this.
const BODY_STEP_BYTES: u64 = 64 * 1024;

/// What a request counts for at least: its head, its task, its answer.
pub(super) const REQUEST_BYTES_MIN: u64 = 4 * 1024;

/// How large a request may be, and how slow.
#[derive(Clone, Copy, Debug)]
pub struct RequestLimits {
    /// Of one body as sent.
    pub request_bytes_max: u64,
    /// Of one body inflated.
    pub decoded_bytes_max: u64,
    /// Of all requests in flight, bodies as sent and inflated together.
    pub inflight_bytes_max: u64,
    /// From a request's head to its body's last byte.
    pub body_read_timeout: Duration,
}

impl Default for RequestLimits {
    /// Thanos has no caps. The largest bodies that senders make by themselves are vmagent's, 32 MiB
    /// inflated; ours allow eight times that. The budget lets two of the largest be in flight, or
    /// 500 of the usual ones. Prometheus gives a request up after 30 seconds, so nobody is waiting
    /// for the answer to a body that takes longer.
    fn default() -> RequestLimits {
        RequestLimits {
            request_bytes_max: 64 << 20,
            decoded_bytes_max: 256 << 20,
            inflight_bytes_max: 640 << 20,
            body_read_timeout: Duration::from_secs(30),
        }
    }
}

impl RequestLimits {
    /// A body must fit the whole budget too, or it would be told to come again for ever.
    pub(super) fn body_bytes_max(&self) -> u64 {
        self.request_bytes_max.min(self.inflight_bytes_max.saturating_sub(REQUEST_BYTES_MIN))
    }

    /// What a body of `block_bytes` may inflate to, which must fit beside it.
    pub(super) fn inflated_bytes_max(&self, block_bytes: u64) -> u64 {
        let room = self.inflight_bytes_max.saturating_sub(REQUEST_BYTES_MIN + block_bytes);
        self.decoded_bytes_max.min(room)
    }

    /// Collects a body into `block`. What the buffer holds is held in `inflight`, too.
    pub(super) async fn read(
        &self,
        mut body: Body,
        declared: Option<u64>,
        block: &mut Vec<u8>,
        inflight: &mut InflightGuard,
    ) -> Result<(), RequestError> {
        let body_bytes_max = self.body_bytes_max();
        let body_read_timeout = self.body_read_timeout;
        block.clear();
        let read = async {
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|error| WriteError::from(Invalid::Body(error.into())))?;
                // Trailers say nothing about a write.
                let Ok(chunk) = frame.into_data() else { continue };
                let len = block.len() as u64 + chunk.len() as u64;
                if len > body_bytes_max {
                    let too_large = TooLarge::Read { bytes: len, max: body_bytes_max };
                    return Err(WriteError::from(too_large));
                }
                inflight.resize(REQUEST_BYTES_MIN + len).map_err(WriteError::from)?;
                reserve(block, chunk.len(), declared);
                block.extend_from_slice(&chunk);
            }
            Ok(())
        };
        match tokio::time::timeout(body_read_timeout, read).await {
            Ok(result) => Ok(result?),
            Err(_) => Err(WriteError::from(Unavailable::SlowBody(body_read_timeout)).into()),
        }
    }
}

/// Doubles the buffer, but not beyond what the body declares.
fn reserve(block: &mut Vec<u8>, more: usize, declared: Option<u64>) {
    if block.capacity() - block.len() >= more {
        return;
    }
    let doubled = (block.len() as u64).max(BODY_STEP_BYTES);
    let missing = declared.unwrap_or(u64::MAX).saturating_sub(block.len() as u64);
    let step = usize::try_from(doubled.min(missing)).unwrap_or(more);
    block.reserve_exact(step.max(more));
}
