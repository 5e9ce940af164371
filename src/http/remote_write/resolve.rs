//! A request of remote write 2.0 on its way into the form of 1.0: how much memory that may take,
//! and on which thread.

use bytes::Bytes;

use crate::http::remote_write::RequestLimits;
use crate::http::remote_write::body::REQUEST_BYTES_MIN;
use crate::wire::remote_write_v2::{ResolveError, Resolved, resolve};
use crate::wire::snappy::{BufferPool, PooledBuffer};
use crate::write::admission::{InflightGuard, Overloaded, share};
use crate::write::error::{Invalid, TooLarge, WriteError};
use crate::write::heavy;

/// A small request may stand for a large one, which is not made on a thread that serves sockets. It
/// is begun there, since hardly any is so: what is longer is made elsewhere from the start.
const RESOLVED_HERE_MAX: u64 = heavy::LARGE_BYTES as u64;

/// A request of 2.0.
pub(super) struct Symbolic {
    pub(super) inflated: PooledBuffer,
    /// So many of it are the request.
    pub(super) bytes: usize,
    /// Holds those.
    pub(super) inflight: InflightGuard,
}

enum NotResolved {
    Request(ResolveError),
    Overloaded(Overloaded),
}

impl From<ResolveError> for NotResolved {
    fn from(error: ResolveError) -> NotResolved {
        NotResolved::Request(error)
    }
}

impl Symbolic {
    /// The request in the form of 1.0, and how many of its series have metadata.
    pub(super) async fn resolve(
        mut self,
        buffers: &BufferPool,
        limits: &RequestLimits,
    ) -> Result<(Bytes, u64), WriteError> {
        let max = limits.inflated_bytes_max(self.bytes as u64);
        let mut buffer = buffers.take();
        if self.bytes <= heavy::LARGE_BYTES {
            let resolved = self.resolve_into(&mut buffer, max.min(RESOLVED_HERE_MAX));
            let is_larger = matches!(resolved, Err(NotResolved::Request(ResolveError::TooLong(_))))
                && max > RESOLVED_HERE_MAX;
            if !is_larger {
                return self.finish(buffer, resolved);
            }
        }
        let work = move || {
            let resolved = self.resolve_into(&mut buffer, max);
            self.finish(buffer, resolved)
        };
        heavy::off_thread(usize::MAX, work).await
    }

    fn resolve_into(
        &mut self,
        buffer: &mut PooledBuffer,
        max: u64,
    ) -> Result<Resolved, NotResolved> {
        let request = self.inflated.as_slice().get(..self.bytes).unwrap_or_default();
        let (inflight, bytes) = (&mut self.inflight, REQUEST_BYTES_MIN + self.bytes as u64);
        resolve(request, buffer.as_mut_vec(), max, |more| {
            inflight.resize(bytes.saturating_add(more)).map_err(NotResolved::Overloaded)
        })
    }

    fn finish(
        self,
        buffer: PooledBuffer,
        resolved: Result<Resolved, NotResolved>,
    ) -> Result<(Bytes, u64), WriteError> {
        let Symbolic { mut inflight, .. } = self;
        let Resolved { len, metadata } = match resolved {
            Ok(resolved) => resolved,
            Err(NotResolved::Request(ResolveError::Malformed(error))) => {
                return Err(Invalid::Decode(error).into());
            }
            Err(NotResolved::Request(ResolveError::TooLong(error))) => {
                return Err(TooLarge::Resolved(error).into());
            }
            Err(NotResolved::Overloaded(over)) => {
                return Err(WriteError::no_room(inflight.bytes(), over));
            }
        };
        // What it was made from is let go.
        inflight.resize_in_any_case(REQUEST_BYTES_MIN + len as u64);
        Ok((share(buffer, 0..len, inflight), metadata))
    }
}
