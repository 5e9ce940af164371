//! One request to all its replicas: starts a task per endpoint, and returns as soon as the verdict
//! over their [answers] is fixed.
//!
//! Thanos' nodes want a call for each replica of their series, and three nodes with three copies
//! nine calls. Where nobody asks which replica a series is (here, and at a peer that says so) all
//! batches of an endpoint are one write.
//!
//! A verdict answers the client and cancels nothing. Every task goes on until it is answered or its
//! deadline has come: good series that share a batch with bad ones would be a copy short for ever
//! otherwise. So a slow replica holds nobody, and what it holds is counted: until a batch has been
//! gathered into its message the request's bytes are held against the node's in-flight budget, from
//! then on the message against the peer's, and a message that shares the request's bytes against
//! both.
//!
//! A known weakness: since a slow replica is not waited for, the sender's next request can overtake
//! the last one there. The replica then refuses the earlier samples of a series as out of order, and
//! they stay a copy short.

mod answers;
mod call;
mod capnproto;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::hashring::{CurrentHashring, Endpoint, Hashring};
use crate::log::throttle::Throttle;
use crate::metrics::{Counter, Registry};
use crate::model::router_path::{InstanceId, Loop, RouterPath};
use crate::model::tenant::TenantId;
use crate::peer::copies::CopyCounts;
use crate::peer::message::{Compression, ForwardMessage, Protocol};
use crate::peer::{ForwardError, PeerPool};
use crate::write::admission::Admission;
use crate::write::distribute::{
    DeflatedGroups, DistributeError, Placed, PlacedSeries, Replicas, Unplaced, distribute,
};
use crate::write::error::{Invalid, TooLarge, Unavailable, WriteError};
use crate::write::fanout::answers::{Answer, Answers, CopiesMissing, Plan};
use crate::write::fanout::call::Call;
use crate::write::fanout::capnproto::InCapnProto;
use crate::write::heavy::off_thread;
use crate::write::label_rules::LabelCaps;
use crate::write::local::LocalWriter;
use crate::write::peer_writes::PeerOrigin;
use crate::write::quorum::{QuorumLedger, ReplicaOutcome, WriteQuorum};
use crate::write::sink::{Sender, WriteSink};
use crate::write::{Manners, WriteOutcome};

/// Writes of peers that a node which only routes hands on at a time: what is left of a loop through
/// nodes that do not tell which routers a write has passed.
const PLACED_AGAIN_MAX: usize = 64;

/// A caller is answered so long before its deadline.
const CALLER_MARGIN: Duration = Duration::from_millis(100);

/// A longer deadline is none.
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// How messages reach peers.
pub trait Forward: Send + Sync + 'static {
    fn protocol(&self) -> Protocol;

    /// Whether the peer at `address` takes its series in one message, whichever replicas they are.
    fn takes_merged(&self, address: &str) -> bool;

    /// Tells beforehand that a message for `tenant` would not be sent to the peer at `address`.
    fn check(
        &self,
        address: &str,
        tenant: &str,
    ) -> impl Future<Output = Result<(), ForwardError>> + Send;

    /// Sends `message` to the peer at `address` and waits for its answer, `timeout` at most.
    fn forward(
        &self,
        address: &str,
        message: &ForwardMessage,
        timeout: Duration,
    ) -> impl Future<Output = Result<(), ForwardError>> + Send;
}

impl Forward for PeerPool {
    fn protocol(&self) -> Protocol {
        self.options().protocol
    }

    fn takes_merged(&self, address: &str) -> bool {
        self.peer(address).is_some_and(|peer| peer.takes_merged())
    }

    async fn check(&self, address: &str, tenant: &str) -> Result<(), ForwardError> {
        self.peer(address).ok_or_else(|| gone(address))?.check(tenant).await
    }

    async fn forward(
        &self,
        address: &str,
        message: &ForwardMessage,
        timeout: Duration,
    ) -> Result<(), ForwardError> {
        self.peer(address).ok_or_else(|| gone(address))?.remote_write(message, timeout).await
    }
}

/// The ring has changed since the request took its snapshot.
fn gone(address: &str) -> ForwardError {
    ForwardError::Unreachable { peer: address.into(), detail: "it has left the ring".into() }
}

/// What series are stored with on this node.
pub trait LocalStore: WriteSink {
    /// Stores these groups of `series`.
    fn store(
        &self,
        tenant: &TenantId,
        series: &PlacedSeries,
        groups: &[u32],
        manners: Manners,
    ) -> impl Future<Output = Result<WriteOutcome, WriteError>> + Send;
}

impl LocalStore for LocalWriter {
    async fn store(
        &self,
        tenant: &TenantId,
        series: &PlacedSeries,
        groups: &[u32],
        manners: Manners,
    ) -> Result<WriteOutcome, WriteError> {
        self.write_placed(tenant, series, groups, manners).await
    }
}

/// This node's own place in the ring.
pub struct LocalNode<L> {
    /// `--receive.local-endpoint`: as the ring names it.
    pub endpoint: String,
    pub store: Arc<L>,
}

impl<L> Clone for LocalNode<L> {
    fn clone(&self) -> LocalNode<L> {
        LocalNode { endpoint: self.endpoint.clone(), store: self.store.clone() }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct FanoutOptions {
    /// What this process is called among routers.
    pub instance: InstanceId,
    /// `--receive.replication-factor`
    pub replication_factor: u8,
    /// `--receive-forward-timeout`
    pub forward_timeout: Duration,
    pub caps: LabelCaps,
}

/// Writes requests to the nodes that their series belong to.
pub struct Fanout<F, L> {
    options: FanoutOptions,
    ring: CurrentHashring,
    forward: Arc<F>,
    /// None on a node that only routes.
    local: Option<LocalNode<L>>,
    /// Calls under way, those of answered requests included.
    tasks: TaskTracker,
    /// The budget of the node, which the request's bytes are counted against already.
    admission: Arc<Admission>,
    metrics: FanoutMetrics,
    copies: CopiesMissing,
    /// For writes of peers that are placed again here.
    places: Semaphore,
    misplaced_told: Throttle<()>,
}

/// A request whose series have their places, and those deflated.
type PlacedAndDeflated = (Placed, Option<DeflatedGroups>);

/// One request on its way in.
struct Incoming<'a> {
    tenant: &'a TenantId,
    request: Bytes,
    /// As on the wire: counted from 1, 0 for a request that is not replicated yet.
    replica: u64,
    sender: Sender<'a>,
}

impl Incoming<'_> {
    /// The routers that it will have passed, this one included.
    fn path_through(&self, router: InstanceId) -> Result<RouterPath, Loop> {
        match self.sender {
            Sender::Client(_) => RouterPath::default().through(router),
            Sender::Peer(origin) => origin.path.clone().through(router),
        }
    }

    /// When its caller gives it up, if that was told.
    fn deadline(&self) -> Option<Instant> {
        match self.sender {
            Sender::Client(_) => None,
            Sender::Peer(origin) => origin.deadline,
        }
    }
}

impl<F: Forward, L: LocalStore> Fanout<F, L> {
    pub fn new(
        options: FanoutOptions,
        ring: CurrentHashring,
        forward: Arc<F>,
        local: Option<LocalNode<L>>,
        tasks: TaskTracker,
        admission: Arc<Admission>,
        registry: &Registry,
    ) -> Fanout<F, L> {
        let (metrics, copies) = (FanoutMetrics::new(registry), CopiesMissing::new(registry));
        let places = Semaphore::new(PLACED_AGAIN_MAX);
        let misplaced_told = Throttle::default();
        Fanout {
            options,
            ring,
            forward,
            local,
            tasks,
            admission,
            metrics,
            copies,
            places,
            misplaced_told,
        }
    }

    /// Places a request and hands it to all its replicas.
    async fn fan_out(&self, incoming: Incoming<'_>) -> Result<WriteOutcome, WriteError> {
        let (replicas, quorum) = self.replicas_of(incoming.replica)?;
        let path = incoming.path_through(self.options.instance);
        let path = path.inspect_err(|_| self.metrics.loops.inc())?;
        let deadline = Instant::now() + self.options.forward_timeout.min(TIMEOUT_MAX);
        // Its caller is to have our answer before it gives up.
        let of_caller = incoming.deadline().map(|at| at - CALLER_MARGIN);
        let deadline = of_caller.map_or(deadline, |of_caller| of_caller.min(deadline));
        let hashring = self.ring.load().ok_or(WriteError::NoHashring)?;
        let bytes = incoming.request.len();
        let place = self.placing(&incoming, &hashring, replicas)?;
        let (placed, deflated) = off_thread(bytes, place).await?;
        // All series of a group have the same replicas, and so mostly the same answers.
        let ledger = QuorumLedger::new(placed.series().group_count(), quorum);
        let (series, batches, outcome) = placed.into_parts();
        let plan = Arc::new(Plan { batches: batches.into(), shape: series.shape().clone() });
        let call = Call {
            tenant: incoming.tenant.clone(),
            deflated,
            series,
            in_capnproto: InCapnProto::default(),
            plan: plan.clone(),
            manners: incoming.sender.manners(),
            path: path.to_string().into(),
            deadline,
            is_replicated: quorum == WriteQuorum::REPLICATED && incoming.replica > 0,
        };
        let answers = Arc::new(Answers::new(plan, ledger, self.copies.clone()));
        self.start(call, &answers, &hashring);
        answers.outcome(outcome, deadline).await
    }

    /// Another router took this node for one that stores.
    fn tell_misplaced(&self, tenant: &TenantId) {
        if let Some(suppressed) = self.misplaced_told.pass(()) {
            tracing::warn!(
                component = "receive-handler",
                tenant = %tenant,
                suppressed,
                "a peer has placed series on this node, which only routes: is \
                 --receive.local-endpoint missing here?"
            );
        }
    }

    fn is_here(&self, endpoint: &Endpoint) -> bool {
        self.local.as_ref().is_some_and(|local| endpoint.has_address(&local.endpoint))
    }

    /// Which replicas a request is for. A node that only routes does not look at the number.
    fn replicas_of(&self, replica: u64) -> Result<(Replicas, WriteQuorum), WriteError> {
        let factor = self.options.replication_factor;
        if replica == 0 || self.local.is_none() {
            return Ok((Replicas::All(factor), WriteQuorum::of(usize::from(factor))));
        }
        match u8::try_from(replica - 1).ok().filter(|replica| *replica < factor) {
            Some(replica) => Ok((Replicas::One(replica), WriteQuorum::REPLICATED)),
            None => Err(WriteError::BadReplica { replica, factor: u64::from(factor) }),
        }
    }

    /// The work of giving the request's series their places, and of deflating what goes to several
    /// peers, if that is worth it.
    fn placing(
        &self,
        incoming: &Incoming<'_>,
        hashring: &Arc<Hashring>,
        replicas: Replicas,
    ) -> Result<impl FnOnce() -> Result<PlacedAndDeflated, WriteError> + Send + use<F, L>, WriteError>
    {
        let (tenant, hashring) = (incoming.tenant.clone(), hashring.clone());
        let is_of_peer = matches!(incoming.sender, Sender::Peer(_));
        let (request, manners) = (incoming.request.clone(), incoming.sender.manners());
        let caps = self.options.caps;
        let inflight = self.admission.admit(0)?;
        let asked_for = match replicas {
            Replicas::All(count) => usize::from(count),
            Replicas::One(replica) => usize::from(replica) + 1,
        };
        let is_deflated = self.forward.protocol() == Protocol::Protobuf(Compression::Snappy)
            && matches!(replicas, Replicas::All(2..));
        Ok(move || {
            let tenant = tenant.as_str();
            let ring = hashring.ring_of(tenant).map_err(WriteError::Placement)?;
            ring.require_replicas(asked_for).map_err(WriteError::Placement)?;
            let unplaced = Unplaced { request, is_of_peer, tenant, manners, caps, inflight };
            let placed = distribute(unplaced, &ring, hashring.endpoints().len(), replicas)
                .map_err(not_placed)?;
            let deflated = is_deflated.then(|| DeflatedGroups::of(placed.series())).flatten();
            Ok((placed, deflated))
        })
    }

    /// Starts a task for each endpoint, which tells its answers.
    fn start(&self, call: Call, answers: &Arc<Answers>, hashring: &Hashring) {
        let call = Arc::new(call);
        let mut end = 0;
        for of_endpoint in call.plan.batches.chunk_by(|a, b| a.endpoint == b.endpoint) {
            let batches = end..end + of_endpoint.len();
            end = batches.end;
            let endpoint = hashring.endpoint(of_endpoint[0].endpoint);
            let local = self.local.clone().filter(|_| self.is_here(endpoint));
            let (call, answers) = (call.clone(), answers.clone());
            let (metrics, is_replicated) = (self.metrics.clone(), call.is_replicated);
            let worker: Arc<str> = endpoint.address.as_str().into();
            match local {
                Some(local) => {
                    self.tasks.spawn(async move {
                        let answer = call.store(batches, &*local.store).await;
                        metrics.count(&answer, true, is_replicated);
                        answers.record(&worker, answer);
                    });
                }
                None => {
                    let forward = self.forward.clone();
                    self.tasks.spawn(async move {
                        let tell = |answer| {
                            metrics.count(&answer, false, is_replicated);
                            answers.record(&worker, answer);
                        };
                        call.forward(batches, &*forward, &worker, tell).await;
                    });
                }
            }
        }
    }
}

impl<F: Forward, L: LocalStore> WriteSink for Fanout<F, L> {
    async fn write(
        &self,
        tenant: &TenantId,
        request: Bytes,
        replica: u64,
        sender: Sender<'_>,
    ) -> Result<WriteOutcome, WriteError> {
        match sender {
            Sender::Client(_) => self.fan_out(Incoming { tenant, request, replica, sender }).await,
            Sender::Peer(origin) => self.write_of_peer(tenant, request, replica, origin).await,
        }
    }
}

impl<F: Forward, L: LocalStore> Fanout<F, L> {
    /// A series that a peer has placed here is stored here, whatever our own ring says, or two
    /// nodes with different rings would send it to each other for ever. A node that only routes
    /// has no other choice than to place it again.
    async fn write_of_peer(
        &self,
        tenant: &TenantId,
        request: Bytes,
        replica: u64,
        origin: &PeerOrigin,
    ) -> Result<WriteOutcome, WriteError> {
        let sender = Sender::Peer(origin);
        if let Some(local) = self.local.as_ref().filter(|_| replica > 0) {
            let result = local.store.write(tenant, request, replica, sender).await;
            let is_stored = result.as_ref().is_ok_and(|outcome| outcome.refusals.is_empty());
            // Thanos counts it like a forward to itself.
            self.metrics.copies.count_forward(is_stored);
            return result;
        }
        if replica > 0 && origin.is_of_ours {
            self.tell_misplaced(tenant);
        }
        let full = |_| Unavailable::Placing(PLACED_AGAIN_MAX);
        let _place = self.places.try_acquire().map_err(full)?;
        self.fan_out(Incoming { tenant, request, replica: 0, sender }).await
    }
}

fn not_placed(error: DistributeError) -> WriteError {
    match error {
        DistributeError::Overloaded(error) => error.into(),
        DistributeError::Decode(error) => Invalid::Decode(error).into(),
        DistributeError::TooLong(_) | DistributeError::OverBudget { .. } => {
            TooLarge::Placed(error).into()
        }
    }
}

#[derive(Clone)]
struct FanoutMetrics {
    loops: Counter,
    copies: CopyCounts,
}

impl FanoutMetrics {
    fn new(registry: &Registry) -> FanoutMetrics {
        FanoutMetrics {
            loops: registry.counter(
                "ringest_forward_loops_total",
                "Writes of peers that were refused, since they had passed this node before, or too \
                 many routers.",
            ),
            copies: CopyCounts::new(registry),
        }
    }

    /// A peer's conflict counts as neither, one of this node as an error, and what was not sent is
    /// not counted, as in Thanos.
    fn count(&self, answer: &Answer, is_local: bool, is_replicated: bool) {
        let is_success = match answer.outcome {
            ReplicaOutcome::Stored => true,
            ReplicaOutcome::Conflict if !is_local => return,
            _ if !answer.was_sent => return,
            _ => false,
        };
        // Calls to peers are counted where they are made.
        if is_local {
            self.copies.count_forward(is_success);
        }
        if !is_replicated {
            self.copies.count_replications(is_success, answer.batches.len() as u64);
        }
    }
}

#[cfg(test)]
mod tests;
