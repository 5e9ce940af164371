//! Tells connections that idle from connections that stall.
//!
//! Hyper's own header timeout runs while a kept-alive connection merely waits for its next
//! request, so a limit fit for half-sent heads would close every idle sender. Here the socket and
//! the service of one connection share its phase:
//!
//! ```text
//!           first byte             head complete
//!   Idle ──────────────► Head ──────────────────► Busy
//!     ▲                                             │
//!     └──────────────── response made ──────────────┘
//! ```
//!
//! Each return to `Idle` is a new wait, told from the one before by a count beside the phase.
//! Waiting for bytes is limited by the idle timeout in `Idle`, before the first of all by less, and
//! by the header timeout in `Head`. In `Busy` the request's own limits rule. A connection that turned
//! out to be HTTP/2 stays in `Multiplexed`, where frames come at any time, but each whole.
//!
//! While the listener drains, an idle wait is short, and the next answer says that it is the last. So
//! does one whose request's body was not read.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use http::header::CONNECTION;
use http::{HeaderValue, Request, Version};
use hyper::body::Incoming;
use hyper::service::Service;
use parking_lot::Mutex;
use tower::Service as _;

use crate::door::FIRST_BYTE_TIMEOUT;
use crate::door::heads::{FREE_BYTES, HeadCharge, HeadError, Heads};
use crate::door::stream::{Http2, Watch};
use crate::http::gone::ClientGone;
use crate::http::unread::RequestBody;
use crate::http::{ConnectionLimits, respond};

const IDLE: u32 = 0;
const HEAD: u32 = 1;
const BUSY: u32 = 2;
const MULTIPLEXED: u32 = 3;

/// What the socket and the service share.
#[derive(Default)]
struct Phase {
    /// Phase, whether the listener drains, and count, in one word.
    word: AtomicU32,
    /// What a large head over HTTP/1.1 holds while it comes.
    head: Mutex<HeadCharge>,
}

const PHASE_BITS: u32 = 2;
const DRAINING: u32 = 1 << PHASE_BITS;
const COUNT_SHIFT: u32 = PHASE_BITS + 1;

const fn phase_of(word: u32) -> u32 {
    word & ((1 << PHASE_BITS) - 1)
}

const fn is_draining(word: u32) -> bool {
    word & DRAINING != 0
}

/// Whether no request has come before.
const fn is_first(word: u32) -> bool {
    word >> COUNT_SHIFT == 0
}

impl Phase {
    fn word(&self) -> u32 {
        self.word.load(Ordering::Relaxed)
    }

    /// Ends an idle wait; in the other phases a byte changes nothing.
    fn see_byte(&self) {
        let word = self.word();
        if phase_of(word) == IDLE {
            let head = word - IDLE + HEAD;
            // Fails if the service was called meanwhile.
            let _ = self.word.compare_exchange(word, head, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    fn begin(&self, phase: u32) {
        let word = self.word();
        self.word.store(word - phase_of(word) + phase, Ordering::Relaxed);
    }

    fn begin_idle(&self) {
        let word = self.word();
        let count = (word >> COUNT_SHIFT).wrapping_add(1);
        self.word.store(count << COUNT_SHIFT | word & DRAINING | IDLE, Ordering::Relaxed);
    }
}

/// How far a connection is, for those who end it.
#[derive(Clone)]
pub(super) struct Progress(Arc<Phase>);

impl Progress {
    /// From now on each answer is the last. A wait that is under way begins anew.
    pub(super) fn drain(&self) {
        self.0.word.fetch_or(DRAINING, Ordering::Relaxed);
    }

    /// Which head is coming, if one is.
    pub(super) fn head(&self) -> Option<u32> {
        let word = self.0.word();
        (phase_of(word) == HEAD).then_some(word >> COUNT_SHIFT)
    }

    /// Whether a request is being answered, over HTTP/1.1.
    pub(super) fn is_answering(&self) -> bool {
        phase_of(self.0.word()) == BUSY
    }

    /// Whether it has turned out to be HTTP/2.
    pub(super) fn is_multiplexed(&self) -> bool {
        phase_of(self.0.word()) == MULTIPLEXED
    }
}

/// Watches the bytes of one connection.
pub(super) struct HttpWatch {
    phase: Arc<Phase>,
    limits: ConnectionLimits,
    heads: Arc<Heads>,
    protocol: Protocol,
}

enum Protocol {
    /// As long as the bytes could be those of HTTP/2, they are looked at as such.
    Http2(Http2),
    /// The phase in which a head comes, and how many bytes of it have.
    Http1 { head: u32, bytes: usize },
}

/// The service of one connection.
pub(super) struct WatchedService {
    router: Router,
    phase: Arc<Phase>,
    heads: Arc<Heads>,
    /// Of the request that is served now. HTTP/2, where they are many, ends each stream by itself.
    body: RequestBody,
    gone: ClientGone,
}

/// What shares the phase of a connection.
pub(super) fn watch(
    limits: ConnectionLimits,
    router: Router,
    heads: Arc<Heads>,
    gone: ClientGone,
) -> (HttpWatch, WatchedService, Progress) {
    let phase = Arc::new(Phase::default());
    let body = RequestBody::default();
    let service = WatchedService { router, phase: phase.clone(), heads: heads.clone(), body, gone };
    let progress = Progress(phase.clone());
    let protocol = Protocol::Http2(Http2::default());
    (HttpWatch { phase, limits, heads, protocol }, service, progress)
}

impl HttpWatch {
    /// How long the next byte may take in a phase; `None` when it is not for us to say.
    fn limit(&self, word: u32) -> Option<Duration> {
        match phase_of(word) {
            IDLE if is_draining(word) => Some(self.limits.drain_idle_timeout),
            IDLE if is_first(word) => Some(FIRST_BYTE_TIMEOUT),
            IDLE => Some(self.limits.idle_timeout),
            HEAD => Some(self.limits.header_read_timeout),
            _ => None,
        }
    }
}

impl Watch for HttpWatch {
    /// A connection keeps as much memory as it once read ahead, and a reader that gets all it asked
    /// for asks for twice as much next.
    const READ_BYTES_MAX: usize = 16 * 1024 - 1;

    fn see(&mut self, bytes: &[u8]) -> Result<(), HeadError> {
        self.phase.see_byte();
        if let Protocol::Http2(http2) = &mut self.protocol {
            if http2.see(bytes, &self.heads)? {
                return Ok(());
            }
            self.protocol = Protocol::Http1 { head: IDLE, bytes: 0 };
        }
        let word = self.phase.word();
        let Protocol::Http1 { head, bytes: head_bytes } = &mut self.protocol else {
            return Ok(());
        };
        if phase_of(word) != HEAD {
            return Ok(());
        }
        if *head != word {
            (*head, *head_bytes) = (word, 0);
        }
        *head_bytes += bytes.len();
        if *head_bytes <= FREE_BYTES {
            return Ok(());
        }
        Ok(self.phase.head.lock().hold(&self.heads, *head_bytes)?)
    }

    fn wait(&self) -> Option<(u64, Duration)> {
        /// Apart from the phases' numbers.
        const PARTIAL: u64 = 1 << 32;
        let word = self.phase.word();
        match &self.protocol {
            Protocol::Http2(http2) if http2.is_certain() && phase_of(word) == MULTIPLEXED => {
                let number = u64::from(http2.partial()?);
                Some((PARTIAL | number, self.limits.header_read_timeout))
            }
            _ => self.limit(word).map(|limit| (u64::from(word), limit)),
        }
    }

    fn refusal(&self) -> &'static [u8] {
        match self.protocol {
            Protocol::Http1 { .. } => respond::HEAD_OVERLOAD,
            Protocol::Http2(_) => b"",
        }
    }
}

impl Service<Request<Incoming>> for WatchedService {
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let is_http2 = request.version() == Version::HTTP_2;
        self.phase.begin(if is_http2 { MULTIPLEXED } else { BUSY });
        let (mut head, body) = request.into_parts();
        let held = self.phase.head.lock().take();
        let admitted = self.heads.admit(&head, held);
        let mut router = self.router.clone();
        if is_http2 {
            // A router is always ready, so there is no readiness to wait for.
            return match admitted {
                Ok(None) => Box::pin(router.call(Request::from_parts(head, Body::new(body)))),
                Ok(held) => Box::pin(async move {
                    let response = router.call(Request::from_parts(head, Body::new(body))).await;
                    drop(held);
                    response
                }),
                Err(error) => Box::pin(async move { Ok(respond::head_refused(&error)) }),
            };
        }
        head.extensions.insert(self.gone.clone());
        let lent = self.body.lend(&head, body);
        let (phase, body) = (self.phase.clone(), self.body.clone());
        Box::pin(async move {
            // What a large head has left behind in buffers is freed with the connection.
            let is_large = !matches!(admitted, Ok(None));
            let mut response = match admitted {
                Ok(held) => {
                    let response = router.call(Request::from_parts(head, lent)).await;
                    drop(held);
                    response
                }
                Err(error) => {
                    drop(lent);
                    Ok(respond::head_refused(&error))
                }
            };
            let is_read = body.pass_over().await;
            if (is_large || !is_read || is_draining(phase.word()))
                && let Ok(response) = &mut response
            {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            phase.begin_idle();
            response
        })
    }
}
