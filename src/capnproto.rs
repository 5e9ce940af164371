//! The Cap'n Proto listener: writes of peers that replicate with
//! `--receive.replication-protocol=capnproto`.
//!
//! Plain TCP whatever the TLS flags say, as in Thanos. A request carries no replica number and is
//! always already placed: it is stored here and never sent on, and a node without storage answers
//! that it is unavailable. Memory is taken as bytes arrive, never because they were announced, and
//! counted against the node's in-flight budget; what does not fit is passed over and answered.

mod connection;
pub mod respond;

use std::io;
use std::mem::Discriminant;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use capnp::Word;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::capnproto::connection::{CALLS_MAX, Connection};
use crate::door::accept::Accepted;
use crate::door::{Door, FIRST_BYTE_TIMEOUT};
use crate::log::throttle::Throttle;
use crate::metrics::{Counter, Gauge, Registry, budgets};
use crate::model::tenant::TenantId;
use crate::wire::capnproto::decode::{Piece, Position, RequestError, SeriesCaps, next_piece};
use crate::wire::capnproto::frame::Message;
use crate::wire::refused::RefusedSeries;
use crate::wire::snappy::BufferPool;
use crate::write::admission::{Admission, Overloaded, share};
use crate::write::decode::example_of;
use crate::write::error::{Reason, WriteError};
use crate::write::heavy;
use crate::write::label_rules::LabelCaps;
use crate::write::peer_writes::{PeerOrigin, PeerWriteError, not_understood, rank};
use crate::write::sink::{Sender, WriteSink};

/// Series of a large message are written out so many bytes at a time. Those of a usual one are a
/// piece, too, which is done where it was read.
const PIECE_BYTES: usize = 4 << 20;

/// A call that takes longer has been given up by any client.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Idle buffers kept, as for gRPC.
const POOLED_BUFFERS_MAX: usize = 64;
const POOLED_BYTES_MAX: usize = 64 << 20;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("this node has no storage")]
    NoStorage,
    #[error("message of {bytes} bytes is over the cap of {max}")]
    TooLong { bytes: u64, max: u64 },
    #[error("overload: {0}")]
    Overloaded(#[from] Overloaded),
    #[error("request: {0}")]
    Request(#[from] RequestError),
    #[error("request is longer than {max} bytes without its symbols")]
    Expanded { max: u64 },
    #[error("not stored within {CALL_TIMEOUT:?}")]
    Slow,
    #[error(transparent)]
    Write(#[from] PeerWriteError),
}

/// How the listener behaves.
pub struct CapnProtoOptions {
    /// The budget that writes over HTTP and gRPC are counted against, too.
    pub admission: Arc<Admission>,
    /// From a message's first byte to its last.
    pub message_read_timeout: Duration,
    /// `--grpc-grace-period`: calls under way get this long after the shutdown signal.
    pub grace_period: Duration,
    pub caps: LabelCaps,
    /// Writes under way, those included whose callers have gone.
    pub tasks: TaskTracker,
    pub metrics: CapnProtoMetrics,
}

/// What the listener measures.
pub struct CapnProtoMetrics {
    registry: Registry,
    /// Writes in which nothing can be read.
    not_understood: Counter,
    calls: Gauge,
    /// Times that a connection had as many calls under way as it may have.
    calls_waited: Counter,
}

impl CapnProtoMetrics {
    pub fn new(registry: &Registry) -> CapnProtoMetrics {
        const LISTENER: &str = "capnproto";
        budgets::show_calls_max(registry, LISTENER, CALLS_MAX);
        CapnProtoMetrics {
            registry: registry.clone(),
            not_understood: not_understood(registry),
            calls: registry.gauge(
                "ringest_capnproto_calls_under_way",
                "Calls of peers over Cap'n Proto under way.",
            ),
            calls_waited: registry.counter(
                "ringest_capnproto_calls_waited_total",
                "Calls that were not begun at once, since their connection had as many under way as \
                 it may have.",
            ),
        }
    }
}

/// What connections share.
struct Server<S> {
    options: CapnProtoOptions,
    /// None on a node that only routes.
    sink: Option<Arc<S>>,
    words: WordPool,
    pieces: BufferPool,
    told: Throttle<Told>,
}

/// What is told at warn level.
#[derive(PartialEq, Eq, Hash)]
enum Told {
    NotUnderstood,
    Write(Discriminant<WriteError>),
}

/// Serves until `draining`; then takes no more connections, closes each that is open between calls,
/// for which it has the grace period, and cuts what is left.
pub async fn serve<S: WriteSink>(
    listener: TcpListener,
    sink: Option<Arc<S>>,
    options: CapnProtoOptions,
    door: Door,
    draining: CancellationToken,
) {
    let grace = options.grace_period;
    let registry = &options.metrics.registry;
    let words = WordPool::default().shown(registry, "capnproto_words");
    let pieces = BufferPool::new(POOLED_BUFFERS_MAX, POOLED_BYTES_MAX);
    let pieces = pieces.shown(registry, "capnproto_pieces");
    let server = Arc::new(Server { options, sink, words, pieces, told: Throttle::default() });
    let connections = TaskTracker::new();
    let cut = CancellationToken::new();
    let serve = |Accepted { stream, peer, place }| {
        let connection = Connection::new(server.clone(), stream, peer, draining.clone());
        let cut = cut.clone();
        connections.spawn(async move {
            tokio::select! {
                () = connection.run() => {}
                () = cut.cancelled() => {}
            }
            drop(place);
        });
    };
    loop {
        tokio::select! {
            biased;
            () = draining.cancelled() => break,
            accepted = door.accept(&listener) => serve(accepted),
        }
    }
    door.accept_rest(listener).into_iter().for_each(serve);
    connections.close();
    if timeout(grace, connections.wait()).await.is_err() {
        cut.cancel();
        connections.wait().await;
    }
}

impl<S: WriteSink> Server<S> {
    /// Whether a call may be made at all.
    fn check(&self) -> Result<&Arc<S>, CallError> {
        self.sink.as_ref().ok_or(CallError::NoStorage)
    }

    /// What a peer sent wrongly is told to those who debug, here as there.
    fn note_failure(&self, error: &CallError, peer: SocketAddr) {
        let told = match error {
            CallError::Request(RequestError::NotUnderstood) => {
                self.options.metrics.not_understood.inc();
                Some(Told::NotUnderstood)
            }
            CallError::Write(PeerWriteError::Write(cause)) if cause.is_ours() => {
                Some(Told::Write(std::mem::discriminant(cause)))
            }
            _ => None,
        };
        let suppressed = told.and_then(|told| self.told.pass(told));
        match suppressed {
            Some(suppressed) => {
                tracing::warn!(%peer, err = %error, suppressed, "write of a peer failed")
            }
            None => tracing::debug!(%peer, err = %error, "write of a peer failed"),
        }
    }

    /// Stores the series of a call to write. Everything that can be stored is; of several failures
    /// the worst is told.
    async fn write(&self, message: &Arc<Message>) -> Result<(), CallError> {
        let sink = self.check()?;
        let written = self.write_pieces(sink, message);
        timeout(CALL_TIMEOUT, written).await.map_err(|_| CallError::Slow)?
    }

    async fn write_pieces(&self, sink: &Arc<S>, message: &Arc<Message>) -> Result<(), CallError> {
        let LabelCaps { labels_max, bytes_max } = self.options.caps;
        let caps = SeriesCaps { labels_max, bytes_max };
        // As much as the same request could have over gRPC.
        let max = self.options.admission.bytes_max();
        // A short message that names long symbols often makes many pieces, written out here.
        let message_bytes = message.bytes();
        let is_large = message_bytes > heavy::LARGE_BYTES;
        let piece_bytes = if is_large { PIECE_BYTES } else { heavy::LARGE_BYTES };
        let mut position = Position::default();
        let mut written = Written::default();
        loop {
            let mut buffer = self.pieces.take();
            buffer.as_mut_vec().clear();
            let message = message.clone();
            let write_out = move || {
                let out = buffer.as_mut_vec();
                let piece = next_piece(&message, &mut position, caps, piece_bytes, out);
                (piece, position, buffer)
            };
            let (piece, next_position, buffer) = heavy::off_thread(message_bytes, write_out).await;
            position = next_position;
            let Some(piece) = piece? else { return written.into_result() };
            let bytes = buffer.as_slice().len();
            written.bytes += bytes as u64;
            if written.bytes > max {
                return Err(CallError::Expanded { max });
            }
            // Until here it is one piece for each place or thread that is not counted.
            let held = self.options.admission.admit(bytes as u64)?;
            let series = share(buffer, 0..bytes, held);
            let result = self.write_piece(&**sink, &piece, series).await;
            written.add(piece.series_count, result);
            // Tenants without end must not hold a thread, nor put off the time-out.
            tokio::task::yield_now().await;
        }
    }

    async fn write_piece(
        &self,
        sink: &S,
        piece: &Piece,
        series: Bytes,
    ) -> Result<(), PeerWriteError> {
        /// Any number but 0 says that the series are in their place.
        const PLACED: u64 = 1;
        let tenant = TenantId::parse(&piece.tenant)?;
        let example = piece.without_bounds.first().map(|place| example_of(&series, *place));
        let origin = PeerOrigin::default();
        let mut outcome = sink.write(&tenant, series, PLACED, Sender::Peer(&origin)).await?;
        if let Some(example) = example {
            outcome.refuse(Reason::CustomBoundsLost, &piece.without_bounds, example);
        }
        PeerWriteError::of_refusals(tenant, outcome)
    }
}

/// What has become of a request's pieces so far.
#[derive(Default)]
struct Written {
    bytes: u64,
    series: u32,
    worst: Option<PeerWriteError>,
    /// Of all pieces.
    refused: RefusedSeries,
    /// A piece was refused in part, and it is not known which of its series.
    has_unnamed: bool,
}

impl Written {
    fn add(&mut self, series_count: u32, result: Result<(), PeerWriteError>) {
        let before = self.series;
        self.series = self.series.saturating_add(series_count);
        let Err(error) = result else { return };
        if let PeerWriteError::Refused { series, .. } = &error {
            self.has_unnamed |= series.is_empty();
            for (place, reason) in series.iter() {
                self.refused.push(before.saturating_add(place), reason);
            }
        }
        self.worst = self.worst.take().into_iter().chain([error]).max_by_key(rank);
    }

    fn into_result(self) -> Result<(), CallError> {
        let told = if self.has_unnamed { RefusedSeries::default() } else { self.refused };
        match self.worst {
            None => Ok(()),
            Some(PeerWriteError::Refused { tenant, refusals, .. }) => {
                Err(PeerWriteError::Refused { tenant, refusals, series: told }.into())
            }
            Some(error) => Err(error.into()),
        }
    }
}

/// Buffers of words that are used again.
#[derive(Clone, Default)]
struct WordPool(Arc<Mutex<KeptWords>>);

#[derive(Default)]
struct KeptWords {
    buffers: Vec<Vec<Word>>,
    /// Invariant: the sum of the buffers' capacities.
    words: usize,
}

impl WordPool {
    /// Shows on the page what is kept.
    fn shown(self, registry: &Registry, name: &'static str) -> WordPool {
        let kept = self.0.clone();
        let bytes = move || kept.lock().words * size_of::<Word>();
        budgets::show_pool(registry, name, POOLED_BYTES_MAX, bytes);
        self
    }

    /// An empty buffer.
    fn take(&self) -> Vec<Word> {
        let mut kept = self.0.lock();
        let buffer = kept.buffers.pop().unwrap_or_default();
        kept.words -= buffer.capacity();
        buffer
    }

    fn put_back(&self, mut buffer: Vec<Word>) {
        buffer.clear();
        let mut kept = self.0.lock();
        let words = kept.words.saturating_add(buffer.capacity());
        if kept.buffers.len() < POOLED_BUFFERS_MAX && words <= POOLED_BYTES_MAX / 8 {
            kept.words = words;
            kept.buffers.push(buffer);
        }
    }
}

/// Why a connection was closed by us.
#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Frame(#[from] crate::wire::capnproto::frame::FrameError),
    #[error("message: {0}")]
    Message(#[from] capnp::Error),
    #[error("nothing came within {FIRST_BYTE_TIMEOUT:?}")]
    Silent,
    #[error("message did not arrive within {0:?}")]
    Slow(Duration),
    #[error("question {0} is asked while it is under way")]
    QuestionInUse(u32),
    #[error("more than {0} answers are kept")]
    TooManyAnswers(usize),
    #[error("answers are not read")]
    AnswersNotRead,
}

#[cfg(test)]
mod tests;
