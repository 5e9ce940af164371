//! How large a request's head may be, and what it counts for.
//!
//! Go's server takes heads of 1 MiB, so ours does. They come before anybody knows from whom, and a
//! map of headers takes several times the bytes of one that is made of very many short ones, so all
//! but usual heads are counted against the node's budget: while they come by their bytes, and then,
//! until their request is answered, by what they take.

use std::net::SocketAddr;
use std::sync::Arc;

use http::request::Parts;

use crate::log::throttle::Throttle;
use crate::metrics::{Counter, Registry};
use crate::write::admission::{Admission, InflightGuard, Overloaded};

/// Usual heads are under 1 KiB; those up to this size are not counted.
pub(crate) const FREE_BYTES: usize = 16 * 1024;

/// What a header takes beside its bytes.
pub(crate) const HEADER_OVERHEAD: usize = 128;

/// More headers do not fit into what they are kept in, which panics from 24,577 on.
pub(crate) const HEADERS_LIMIT: usize = 20_000;

/// Heads of HTTP/2 with more names than this are answered by who reads them, and no service sees
/// them.
pub(crate) const HEADERS_MAP_MAX: usize = 24_576;

/// Heads of HTTP/2 up to this are read, those over the cap included, which so get an answer. It is
/// grpc-go's cap.
pub(crate) const H2_BYTES_MAX: usize = 16 << 20;

/// The largest that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadLimits {
    /// Of the request's line and its headers.
    pub bytes_max: usize,
    /// Headers; at most [`HEADERS_LIMIT`].
    pub headers_max: usize,
}

impl Default for HeadLimits {
    fn default() -> HeadLimits {
        HeadLimits { bytes_max: 1 << 20, headers_max: 10_000 }
    }
}

/// Why a request is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HeadError {
    #[error("the request's head of {bytes} bytes is over the cap of {max}")]
    TooLarge { bytes: usize, max: usize },
    #[error("the request's {headers} headers are over the cap of {max}")]
    TooMany { headers: usize, max: usize },
    /// It was refused by who read it.
    #[error("the request's head is over the cap of {bytes} bytes or of {headers} headers")]
    Unread { bytes: usize, headers: usize },
    #[error("overload: the request's head: {0}")]
    Overloaded(#[from] Overloaded),
}

impl HeadError {
    /// Whether the head has so many headers that they are noted while they come: of that many there
    /// may be an answer that we are not asked for.
    fn is_noted_as_it_comes(&self) -> bool {
        matches!(self, HeadError::TooMany { headers, .. } if *headers > HEADERS_MAP_MAX)
    }
}

/// The heads of one listener's requests.
pub(crate) struct Heads {
    listener: &'static str,
    pub(crate) limits: HeadLimits,
    admission: Arc<Admission>,
    too_large: Counter,
    overloaded: Counter,
    told: Throttle<bool>,
}

/// What a head counts for while it comes.
#[derive(Default)]
pub(crate) struct HeadCharge(Option<InflightGuard>);

impl Heads {
    pub(crate) fn new(
        listener: &'static str,
        limits: HeadLimits,
        admission: Arc<Admission>,
        registry: &Registry,
    ) -> Heads {
        let refused = registry.counter_vec(
            "ringest_request_heads_refused_total",
            "Requests that were refused for their heads: larger than they may be, or than there was \
             room for.",
            &["listener", "reason"],
        );
        Heads {
            listener,
            limits,
            admission,
            too_large: refused.with(&[listener, "too_large"]),
            overloaded: refused.with(&[listener, "overload"]),
            told: Throttle::default(),
        }
    }

    /// Judges a head that is whole, and holds what it takes, if that is much, beginning with what was
    /// held of it while it came. What is refused is counted and told.
    pub(crate) fn admit(
        &self,
        head: &Parts,
        held: Option<InflightGuard>,
    ) -> Result<Option<InflightGuard>, HeadError> {
        self.judge(head, held).inspect_err(|error| {
            if !error.is_noted_as_it_comes() {
                self.note(error, None);
            }
        })
    }

    fn judge(
        &self,
        head: &Parts,
        held: Option<InflightGuard>,
    ) -> Result<Option<InflightGuard>, HeadError> {
        let HeadLimits { bytes_max, headers_max } = self.limits;
        let headers = head.headers.len();
        if headers > headers_max {
            return Err(HeadError::TooMany { headers, max: headers_max });
        }
        let bytes = bytes_of(head);
        if bytes > bytes_max {
            return Err(HeadError::TooLarge { bytes, max: bytes_max });
        }
        let taken = bytes + headers * HEADER_OVERHEAD;
        if taken <= FREE_BYTES {
            return Ok(None);
        }
        let mut held = match held {
            Some(held) => held,
            None => self.admission.admit(0)?,
        };
        held.resize(taken as u64)?;
        Ok(Some(held))
    }

    /// What is said of a head that was refused by who read it.
    pub(crate) fn unread(&self) -> HeadError {
        let HeadLimits { bytes_max, headers_max } = self.limits;
        HeadError::Unread { bytes: bytes_max, headers: headers_max }
    }

    /// Counts and tells what was refused.
    pub(crate) fn note(&self, error: &HeadError, client: Option<SocketAddr>) {
        let is_overload = matches!(error, HeadError::Overloaded(_));
        let counter = if is_overload { &self.overloaded } else { &self.too_large };
        counter.inc();
        if let Some(suppressed) = self.told.pass(is_overload) {
            let client = client.map(|client| client.to_string());
            tracing::warn!(listener = self.listener, client, err = %error, suppressed, "request refused");
        }
    }
}

/// As it is written in HTTP/1.1.
fn bytes_of(head: &Parts) -> usize {
    const OF_LINE: usize = 12;
    const OF_HEADER: usize = 4;
    let uri = &head.uri;
    let target = uri.path_and_query().map_or(0, |target| target.as_str().len());
    let headers = head.headers.iter();
    let headers = headers.map(|(name, value)| name.as_str().len() + value.len() + OF_HEADER);
    head.method.as_str().len() + target + OF_LINE + headers.sum::<usize>()
}

impl HeadCharge {
    /// Holds what `bytes` of a head take, in doubling steps as buffers grow.
    pub(crate) fn hold(&mut self, heads: &Heads, bytes: usize) -> Result<(), Overloaded> {
        if bytes <= FREE_BYTES {
            return Ok(());
        }
        let bytes = (bytes as u64).next_power_of_two();
        match &mut self.0 {
            Some(held) if held.bytes() >= bytes => Ok(()),
            Some(held) => held.resize(bytes),
            None => {
                self.0 = Some(heads.admission.admit(bytes)?);
                Ok(())
            }
        }
    }

    /// Hands over what is held.
    pub(crate) fn take(&mut self) -> Option<InflightGuard> {
        self.0.take()
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, Request};

    use super::*;

    fn head(headers: usize, value_bytes: usize) -> Parts {
        let mut head = Request::new(()).into_parts().0;
        for i in 0..headers {
            let name = HeaderName::try_from(format!("h{i:05}")).unwrap();
            head.headers.insert(name, "x".repeat(value_bytes).parse().unwrap());
        }
        head
    }

    #[test]
    fn a_head_is_judged_by_bytes_and_by_headers_and_held_if_it_is_large() {
        let (registry, admission) = (Registry::new(), Admission::new(2 << 20));
        let limits = HeadLimits { bytes_max: 1 << 20, headers_max: 10_000 };
        let heads = Heads::new("a", limits, admission.clone(), &registry);
        let refused = |headers, bytes| heads.admit(&head(headers, bytes), None).err();
        assert!(heads.admit(&head(20, 200), None).unwrap().is_none());
        assert_eq!(admission.inflight_bytes(), 0);
        let mut charge = HeadCharge::default();
        charge.hold(&heads, 1 << 20).unwrap();
        charge.hold(&heads, 2 << 20).unwrap();
        let held = heads.admit(&head(10_000, 10), charge.take()).unwrap().unwrap();
        assert_eq!(admission.inflight_bytes(), held.bytes());
        assert!(admission.inflight_bytes() > 10_000 * 128);
        assert_eq!(refused(10_001, 1), Some(HeadError::TooMany { headers: 10_001, max: 10_000 }));
        assert!(matches!(refused(1, 1 << 20), Some(HeadError::TooLarge { .. })));
        assert!(matches!(refused(10_000, 10), Some(HeadError::Overloaded(_))));
        drop(held);
        assert_eq!(admission.inflight_bytes(), 0);
        let page = registry.expose();
        for line in [
            "ringest_request_heads_refused_total{listener=\"a\",reason=\"overload\"} 1",
            "ringest_request_heads_refused_total{listener=\"a\",reason=\"too_large\"} 2",
        ] {
            assert!(page.lines().any(|shown| shown == line), "{line}\n{page}");
        }
    }

    #[test]
    fn a_head_that_comes_is_held_by_steps() {
        let admission = Admission::new(100 << 10);
        let heads = Heads::new("a", HeadLimits::default(), admission.clone(), &Registry::new());
        let mut charge = HeadCharge::default();
        for (bytes, held) in [(16 << 10, 0), (17 << 10, 32 << 10), (32 << 10, 32 << 10)] {
            charge.hold(&heads, bytes).unwrap();
            assert_eq!(admission.inflight_bytes(), held);
        }
        charge.hold(&heads, 60 << 10).unwrap();
        assert!(charge.hold(&heads, 65 << 10).is_err());
        drop(charge.take());
        assert_eq!(admission.inflight_bytes(), 0);
    }
}
