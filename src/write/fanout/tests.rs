//! Peers that follow a script, on a clock that stands still but for their delays.

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Buf as _;
use parking_lot::Mutex;
use tonic::Code;

use super::call::outcome_of_local;
use super::*;
use crate::hashring::{
    Algorithm, Endpoint, HashringMetrics, RingDefaults, RingOptions, SeriesHasher,
};
use crate::model::labels::{TAG_FIELD_1, push_label};
use crate::model::varint::push_varint;
use crate::multi_tsdb::{AppendError, TenantError};
use crate::peer::message::Compression;
use crate::tsdb::wal::WalError;
use crate::wire::grpc::HEAD_BYTES;
use crate::wire::peer_write::PeerWriteRequest;
use crate::wire::refused::RefusedSeries;
use crate::wire::remote_write_v1::{RequestField, RequestFields};
use crate::wire::snappy::SnappyError;
use crate::write::WrittenCounts;
use crate::write::error::{Reason, no_quorum};
use crate::write::quorum::Verdict;

mod simulation;

const TIMEOUT: Duration = Duration::from_secs(5);
/// A delay that no request waits for.
const SILENT: Duration = Duration::from_secs(3600);

/// The smallest step of the clock.
const TICK: Duration = Duration::from_millis(1);

/// A delay of calls that ignore their deadline.
const STUCK: Duration = Duration::MAX;

/// What a node does with all it is sent.
#[derive(Clone, Copy, Debug)]
struct Behaviour {
    delay: Duration,
    outcome: ReplicaOutcome,
}

/// The nodes of a ring.
#[derive(Default)]
struct Nodes {
    behaviours: Mutex<HashMap<String, Behaviour>>,
    /// Those that take series of several replicas in one message.
    merging: Mutex<HashSet<String>>,
    /// By address, the series bodies that are late there.
    late: Mutex<HashMap<String, HashSet<Vec<u8>>>>,
    /// Address, replica as on the wire and tenant of each message that arrived.
    arrived: Mutex<Vec<(String, i64, String)>>,
    /// How often each series body is stored.
    stored: Mutex<BTreeMap<Vec<u8>, usize>>,
    /// Messages that were in two pieces.
    shared_messages: Mutex<usize>,
    /// Requests that this node's storage was given.
    local_writes: Mutex<usize>,
}

impl Nodes {
    fn behaviour(&self, address: &str) -> Behaviour {
        self.behaviours.lock()[address]
    }

    /// Stores what is not late at `address`, and gives the places of what is.
    fn keep<'a>(
        &self,
        address: &str,
        fields: impl Iterator<Item = RequestField<'a>>,
    ) -> RefusedSeries {
        let mut stored = self.stored.lock();
        let late = self.late.lock().get(address).cloned().unwrap_or_default();
        let mut refused = RefusedSeries::default();
        for (place, field) in fields.enumerate() {
            let RequestField::TimeSeries(body) = field else { panic!("no series") };
            match late.contains(body) {
                true => refused.push(place as u32, Reason::OutOfOrder.code()),
                false => *stored.entry(body.to_vec()).or_default() += 1,
            }
        }
        refused
    }
}

impl Forward for Nodes {
    fn protocol(&self) -> Protocol {
        Protocol::Protobuf(Compression::None)
    }

    fn takes_merged(&self, address: &str) -> bool {
        self.merging.lock().contains(address)
    }

    async fn check(&self, _address: &str, _tenant: &str) -> Result<(), ForwardError> {
        Ok(())
    }

    async fn forward(
        &self,
        address: &str,
        message: &ForwardMessage,
        timeout: Duration,
    ) -> Result<(), ForwardError> {
        let mut body = message.body();
        *self.shared_messages.lock() += usize::from(body.last_ref().has_remaining());
        let bytes = body.copy_to_bytes(body.remaining());
        assert!(!message.is_merged() || self.takes_merged(address), "{address} takes no such");
        let request = PeerWriteRequest::parse(&bytes[HEAD_BYTES..]).unwrap();
        for tenant in request.tenants() {
            let series = tenant.unwrap().read().unwrap();
            let tenant = String::from_utf8(series.tenant.to_vec()).unwrap();
            self.arrived.lock().push((address.to_owned(), request.replica, tenant));
        }
        let Behaviour { delay, outcome } = self.behaviour(address);
        let peer: Arc<str> = address.into();
        if delay == STUCK {
            std::future::pending().await
        }
        if delay >= timeout {
            tokio::time::sleep(timeout).await;
            return Err(ForwardError::TimedOut { peer });
        }
        tokio::time::sleep(delay).await;
        let detail = String::from("script");
        match outcome {
            ReplicaOutcome::Stored => {
                for tenant in request.tenants() {
                    let fields = RequestFields::of_peer(tenant.unwrap().message);
                    let refused = self.keep(address, fields.map(Result::unwrap));
                    if !refused.is_empty() {
                        // Only for a merged message is that told.
                        let refused = Some(refused).filter(|_| message.is_merged());
                        return Err(ForwardError::Conflict { peer, detail, refused });
                    }
                }
                Ok(())
            }
            ReplicaOutcome::Conflict => Err(ForwardError::Conflict { peer, detail, refused: None }),
            ReplicaOutcome::Unavailable => Err(ForwardError::Unavailable { peer, detail }),
            ReplicaOutcome::TimedOut => Err(ForwardError::TimedOut { peer }),
            // A peer tells no difference between the two.
            ReplicaOutcome::NotReady | ReplicaOutcome::Failed => {
                Err(ForwardError::Failed { peer, code: Code::Internal, detail })
            }
        }
    }
}

/// The storage of one of the nodes.
struct Local {
    nodes: Arc<Nodes>,
    endpoint: String,
}

impl Local {
    async fn act(&self, tenant: &TenantId) -> Result<WriteOutcome, WriteError> {
        let Behaviour { delay, outcome } = self.nodes.behaviour(&self.endpoint);
        tokio::time::sleep(delay).await;
        let mut written = WriteOutcome::default();
        match outcome {
            ReplicaOutcome::Stored => {}
            ReplicaOutcome::Conflict => {
                written.refusals.add(Reason::OutOfOrder, 1, || "{a=\"late\"}".into());
            }
            ReplicaOutcome::NotReady => {
                let cause = TenantError::Opening.into();
                return Err(WriteError::TenantNotReady { tenant: tenant.clone(), cause });
            }
            ReplicaOutcome::Unavailable => return Err(Unavailable::NotAccepting.into()),
            ReplicaOutcome::Failed => {
                return Err(no_quorum(0, 0));
            }
            ReplicaOutcome::TimedOut => std::future::pending().await,
        }
        Ok(written)
    }
}

impl LocalStore for Local {
    async fn store(
        &self,
        tenant: &TenantId,
        series: &PlacedSeries,
        groups: &[u32],
        _manners: Manners,
    ) -> Result<WriteOutcome, WriteError> {
        *self.nodes.local_writes.lock() += 1;
        let mut written = self.act(tenant).await?;
        if written.refusals.is_empty() {
            let fields = series.fields(groups).flat_map(RequestFields::of_peer);
            written.refused_series = self.nodes.keep(&self.endpoint, fields.map(Result::unwrap));
            let count = written.refused_series.len() as u64;
            if count > 0 {
                written.refusals.add(Reason::OutOfOrder, count, || "{a=\"late\"}".into());
            }
        }
        Ok(written)
    }
}

impl WriteSink for Local {
    async fn write(
        &self,
        tenant: &TenantId,
        message: Bytes,
        _replica: u64,
        sender: Sender<'_>,
    ) -> Result<WriteOutcome, WriteError> {
        assert!(matches!(sender, Sender::Peer(_)), "of a client's request it has a part");
        let written = self.act(tenant).await?;
        self.nodes.keep(&self.endpoint, RequestFields::of_peer(&message).map(Result::unwrap));
        Ok(written)
    }
}

struct Ring {
    nodes: Arc<Nodes>,
    hashring: CurrentHashring,
    fanout: Fanout<Nodes, Local>,
    tasks: TaskTracker,
    registry: Registry,
}

fn address(i: usize) -> String {
    format!("node-{i}:10901")
}

/// A ring of as many nodes as there are behaviours; the first of them is this node, if `is_member`.
fn ring(behaviours: &[Behaviour], factor: u8, algorithm: Algorithm, is_member: bool) -> Ring {
    let each: Vec<usize> = (0..behaviours.len()).collect();
    ring_of(&each, behaviours, factor, algorithm, is_member)
}

/// A ring that lists these of the nodes.
fn ring_of(
    listed: &[usize],
    behaviours: &[Behaviour],
    factor: u8,
    algorithm: Algorithm,
    is_member: bool,
) -> Ring {
    let endpoints = listed.iter().map(|i| Endpoint::at(&address(*i))).collect();
    let options = RingOptions { endpoints, ..RingOptions::default() };
    let defaults = RingDefaults { algorithm, replication_factor: usize::from(factor) };
    let registry = Registry::new();
    let metrics = HashringMetrics::new(&registry);
    let hashring = CurrentHashring::fixed(Hashring::build(vec![options], defaults, None, &metrics));
    let nodes = Arc::new(Nodes::default());
    for (i, behaviour) in behaviours.iter().enumerate() {
        nodes.behaviours.lock().insert(address(i), *behaviour);
    }
    let endpoint = address(0);
    let store = Arc::new(Local { nodes: nodes.clone(), endpoint: endpoint.clone() });
    let local = is_member.then_some(LocalNode { endpoint, store });
    let options = FanoutOptions {
        instance: InstanceId::random().unwrap(),
        replication_factor: factor,
        forward_timeout: TIMEOUT,
        caps: LabelCaps::default(),
    };
    let tasks = TaskTracker::new();
    let (current, peers) = (hashring.clone(), nodes.clone());
    let fanout = {
        let admission = Admission::new(u64::MAX);
        Fanout::new(options, current, peers, local, tasks.clone(), admission, &registry)
    };
    Ring { nodes, hashring, fanout, tasks, registry }
}

impl Ring {
    async fn write(&self, request: &[u8], replica: u64) -> Result<WriteOutcome, WriteError> {
        let request = Bytes::copy_from_slice(request);
        self.fanout.write(&tenant(), request, replica, Sender::Client(Manners::Thanos)).await
    }

    async fn write_of_peer(
        &self,
        message: Bytes,
        replica: u64,
    ) -> Result<WriteOutcome, WriteError> {
        let origin = PeerOrigin::default();
        self.fanout.write(&tenant(), message, replica, Sender::Peer(&origin)).await
    }

    /// Addresses of the nodes that series `i` of a request belongs to, by the ring alone.
    fn replicas_of(&self, i: usize) -> Vec<String> {
        let snapshot = self.hashring.load().unwrap();
        let places = snapshot.ring_of("team").unwrap();
        let instance = i.to_string();
        let labels: [(&[u8], &[u8]); 2] =
            [(b"__name__", b"up"), (b"instance", instance.as_bytes())];
        let hash = SeriesHasher::for_tenant(b"team").hash(labels);
        let endpoints = places.replicas_of(hash).into_iter();
        endpoints.map(|endpoint| snapshot.endpoint(endpoint).address.to_string()).collect()
    }

    /// Waits for what goes on behind the answer.
    async fn finish(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

fn tenant() -> TenantId {
    TenantId::parse(b"team").unwrap()
}

fn body(i: usize) -> Vec<u8> {
    let mut body = Vec::new();
    push_label(&mut body, TAG_FIELD_1, b"__name__", b"up");
    push_label(&mut body, TAG_FIELD_1, b"instance", i.to_string().as_bytes());
    body.extend_from_slice(&[0x12, 2, 0x10, 7]);
    body
}

fn request(series_count: usize) -> Vec<u8> {
    let mut request = Vec::new();
    for i in 0..series_count {
        let body = body(i);
        request.push(0x0a);
        push_varint(&mut request, body.len() as u64);
        request.extend_from_slice(&body);
    }
    request
}

fn after(millis: u64, outcome: ReplicaOutcome) -> Behaviour {
    Behaviour { delay: Duration::from_millis(millis), outcome }
}

const STORED: ReplicaOutcome = ReplicaOutcome::Stored;

#[tokio::test(start_paused = true)]
async fn a_slow_third_replica_does_not_hold_the_client_and_still_gets_its_copy() {
    let mut behaviours = [after(10, STORED), after(20, STORED), after(4000, STORED)];
    for is_member in [false, true] {
        behaviours.rotate_left(1);
        let ring = ring(&behaviours, 3, Algorithm::Ketama, is_member);
        let begun = Instant::now();
        let outcome = ring.write(&request(20), 0).await.unwrap();
        assert_eq!(begun.elapsed(), Duration::from_millis(20));
        assert_eq!((outcome.series, outcome.samples_stored), (20, 20));
        assert_eq!(outcome.written, WrittenCounts { samples: 20, ..WrittenCounts::default() });
        ring.finish().await;
        assert!(ring.nodes.stored.lock().values().all(|copies| *copies == 3));
        let text = ring.registry.expose();
        assert!(text.contains("thanos_receive_replications_total{result=\"error\"} 0"), "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn each_series_has_a_verdict_of_its_own() {
    for is_member in [false, true] {
        let mut behaviours = [after(1, STORED); 3];
        let play = async |behaviours: &[Behaviour]| {
            let ring = ring(behaviours, 3, Algorithm::Ketama, is_member);
            ring.nodes.merging.lock().extend((0..3).map(address));
            // Node 1 has newer samples of one series, node 2 of another.
            ring.nodes.late.lock().insert(address(1), [body(3)].into());
            ring.nodes.late.lock().insert(address(2), [body(7)].into());
            let outcome = ring.write(&request(20), 0).await;
            ring.finish().await;
            (outcome, ring)
        };
        let (outcome, ring) = play(&behaviours).await;
        assert!(outcome.unwrap().refusals.is_empty(), "each is stored on two of three");
        let copies: usize = ring.nodes.stored.lock().values().sum();
        assert_eq!(copies, 58);
        assert_eq!(missing(&ring, 1, "refused"), Some(1.0));
        assert_eq!(missing(&ring, 2, "refused"), Some(1.0));
        assert_eq!(missing(&ring, 0, "refused"), None);
        // With the third one down each has one copy, and the sender is to come again. What it will
        // send again is not missing.
        behaviours[0] = after(1, ReplicaOutcome::Unavailable);
        let (outcome, ring) = play(&behaviours).await;
        let Err(WriteError::NoQuorum { written, .. }) = outcome else { panic!("{outcome:?}") };
        assert!(written.samples <= 18, "{written:?}");
        assert_eq!(missing(&ring, 1, "refused"), None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_series_that_is_late_everywhere_is_a_conflict_and_the_others_are_stored() {
    let ring = ring(&[after(1, STORED); 3], 3, Algorithm::Ketama, true);
    ring.nodes.merging.lock().extend((0..3).map(address));
    (0..3).for_each(|i| drop(ring.nodes.late.lock().insert(address(i), [body(3)].into())));
    let outcome = ring.write(&request(20), 0).await.unwrap();
    assert!(!outcome.refusals.is_empty());
    assert_eq!(outcome.written, WrittenCounts { samples: 19, ..WrittenCounts::default() });
    ring.finish().await;
    assert_eq!(ring.nodes.stored.lock().len(), 19);
    // Nobody has it, so no copy of it is missing.
    assert_eq!((0..3).find_map(|i| missing(&ring, i, "refused")), None);
}

#[tokio::test(start_paused = true)]
async fn copies_that_fall_short_of_an_acknowledged_request_are_counted_to_the_last() {
    let cases = [
        (after(1, ReplicaOutcome::Unavailable), "not ready"),
        (after(1, ReplicaOutcome::Failed), "not ready"),
        (after(1, ReplicaOutcome::Conflict), "refused"),
        (Behaviour { delay: SILENT, outcome: STORED }, "timed out"),
    ];
    for (behaviour, reason) in cases {
        for at in 0..3 {
            let mut behaviours = [after(10, STORED); 3];
            behaviours[at] = behaviour;
            let ring = ring(&behaviours, 3, Algorithm::Ketama, true);
            ring.write(&request(20), 0).await.unwrap();
            ring.finish().await;
            assert_eq!(missing(&ring, at, reason), Some(20.0), "{reason} at {at}");
        }
    }
}

/// `ringest_copies_missing_samples_total` of a node.
fn missing(ring: &Ring, node: usize, reason: &str) -> Option<f64> {
    let worker = address(node);
    let head = "ringest_copies_missing_samples_total{";
    let text = ring.registry.expose();
    let line = text.lines().find(|line| {
        line.starts_with(head)
            && line.contains(&format!("worker=\"{worker}\""))
            && line.contains(&format!("reason=\"{reason}\""))
    })?;
    line.rsplit_once(' ')?.1.parse().ok()
}

#[tokio::test(start_paused = true)]
async fn this_node_stores_whatever_replicas_it_has_at_once() {
    let ring = ring(&[after(1, STORED); 3], 3, Algorithm::Ketama, true);
    ring.write(&request(60), 0).await.unwrap();
    ring.finish().await;
    assert!(ring.nodes.stored.lock().values().all(|copies| *copies == 3));
    assert_eq!(*ring.nodes.local_writes.lock(), 1);
    // Peers are told of each replica.
    let mut arrived: Vec<_> =
        ring.nodes.arrived.lock().iter().map(|(to, replica, _)| (to.clone(), *replica)).collect();
    arrived.sort();
    let expected = [1, 2].map(|node| [1, 2, 3].map(|replica| (address(node), replica)));
    assert_eq!(arrived, expected.concat());
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_takes_merged_messages_gets_one() {
    let ring = ring(&[after(1, STORED); 4], 3, Algorithm::Ketama, false);
    ring.nodes.merging.lock().extend([address(0), address(2)]);
    ring.write(&request(60), 0).await.unwrap();
    ring.finish().await;
    let stored = ring.nodes.stored.lock();
    assert_eq!(stored.len(), 60);
    assert!(stored.values().all(|copies| *copies == 3));
    // Its number is the lowest of its series'.
    let mut arrived: Vec<_> =
        ring.nodes.arrived.lock().iter().map(|(to, replica, _)| (to.clone(), *replica)).collect();
    arrived.sort();
    let expected = [(0, 1), (1, 1), (1, 2), (1, 3), (2, 1), (3, 1), (3, 2), (3, 3)];
    assert_eq!(arrived, expected.map(|(node, replica)| (address(node), replica)));
    let text = ring.registry.expose();
    assert!(text.contains("thanos_receive_replications_total{result=\"success\"} 12"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_is_listed_twice_is_sent_its_own_series_once() {
    for is_merging in [false, true] {
        let behaviours = [after(1, STORED); 2];
        let ring = ring_of(&[0, 0, 1, 1], &behaviours, 2, Algorithm::Hashmod, false);
        if is_merging {
            ring.nodes.merging.lock().extend([address(0), address(1)]);
        }
        ring.write(&request(60), 0).await.unwrap();
        ring.finish().await;
        for (i, copies) in (0..60).map(|i| (i, ring.nodes.stored.lock()[&body(i)])) {
            let mut replicas = ring.replicas_of(i);
            if is_merging {
                replicas.dedup();
            }
            assert_eq!(copies, replicas.len(), "series {i}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_of_all_series_shares_the_requests_bytes() {
    let ring = ring(&[after(1, STORED); 3], 3, Algorithm::Ketama, false);
    ring.nodes.merging.lock().extend([address(0), address(1)]);
    // What is no series lies before, between and behind them.
    let metadata = [0x1a, 2, 0x08, 1];
    let (all, some) = (request(60), request(20));
    for request in [all.clone(), [&metadata, &all[..], &metadata].concat()] {
        ring.write(&request, 0).await.unwrap();
    }
    let between = [&some, &metadata[..], &all[some.len()..]].concat();
    ring.write(&between, 0).await.unwrap();
    ring.finish().await;
    {
        let stored = ring.nodes.stored.lock();
        assert_eq!(stored.len(), 60);
        assert!(stored.values().all(|copies| *copies == 9));
    }
    // Two nodes that were sent the request's own bytes, twice.
    assert_eq!(*ring.nodes.shared_messages.lock(), 4);

    // They would keep alive what goes nowhere.
    let mut help = vec![0x22];
    push_varint(&mut help, all.len() as u64);
    help.resize(help.len() + all.len(), b'h');
    let mut metadata = vec![0x1a];
    push_varint(&mut metadata, help.len() as u64);
    metadata.extend(help);
    ring.write(&[&all[..], &metadata].concat(), 0).await.unwrap();
    ring.tasks.wait().await;
    assert_eq!(*ring.nodes.shared_messages.lock(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_goes_away_cancels_nothing() {
    let behaviours = [after(100, STORED), after(200, STORED), after(300, STORED)];
    let ring = ring(&behaviours, 3, Algorithm::Ketama, true);
    let gone = tokio::time::timeout(Duration::from_millis(50), ring.write(&request(9), 0)).await;
    assert!(gone.is_err());
    assert!(ring.nodes.stored.lock().is_empty(), "no node has answered yet");
    ring.finish().await;
    let stored = ring.nodes.stored.lock();
    assert_eq!(stored.values().copied().collect::<Vec<_>>(), [3; 9]);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_does_not_end_holds_no_client_beyond_the_deadline() {
    let stuck = Behaviour { delay: STUCK, outcome: STORED };
    let ring = ring(&[after(10, STORED), stuck, stuck], 3, Algorithm::Ketama, false);
    let begun = Instant::now();
    let refused = ring.write(&request(5), 0).await.unwrap_err();
    assert!(matches!(refused, WriteError::NoQuorum { .. }), "{refused}");
    assert_eq!(begun.elapsed(), TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn what_this_node_refused_is_told_with_its_example() {
    let behaviours = [after(1, ReplicaOutcome::Conflict), after(2, ReplicaOutcome::Conflict)];
    let ring = ring(&behaviours, 2, Algorithm::Ketama, true);
    let outcome = ring.write(&request(5), 0).await.unwrap();
    let text = outcome.refusals.to_string();
    assert!(text.contains("({a=\"late\"})"), "{text}");
    assert!(text.contains("peer node-1:10901: conflict: script"), "{text}");
}

#[test]
fn what_no_retry_could_store_here_is_a_refusal_for_good() {
    let long = AppendError::Log(WalError::RecordTooLong { bytes: 2 << 30 });
    let too_large = TooLarge::Record { tenant: tenant(), cause: long };
    assert_eq!(outcome_of_local(&too_large.into()), ReplicaOutcome::Conflict);
    let over_budget = not_placed(DistributeError::OverBudget { bytes: 2, max: 1 });
    assert_eq!(outcome_of_local(&over_budget), ReplicaOutcome::Conflict);
    let invalid = Invalid::Snappy(SnappyError::Corrupt);
    assert_eq!(outcome_of_local(&invalid.into()), ReplicaOutcome::Conflict);
    let unavailable = Unavailable::NotAccepting;
    assert_eq!(outcome_of_local(&unavailable.into()), ReplicaOutcome::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn a_replica_number_is_one_copy_on_a_member_and_nothing_on_a_router() {
    let behaviours = [after(1, STORED); 3];
    let member = ring(&behaviours, 3, Algorithm::Ketama, true);
    member.write(&request(10), 2).await.unwrap();
    member.finish().await;
    assert!(member.nodes.stored.lock().values().all(|copies| *copies == 1));
    assert!(member.nodes.arrived.lock().iter().all(|(_, replica, _)| *replica == 2));
    let text = member.registry.expose();
    assert!(text.contains("thanos_receive_replications_total{result=\"success\"} 0"), "{text}");
    let refused = member.write(&request(1), 4).await.unwrap_err();
    assert!(matches!(refused, WriteError::BadReplica { replica: 4, factor: 3 }), "{refused}");

    let router = ring(&behaviours, 3, Algorithm::Ketama, false);
    router.write(&request(10), 9).await.unwrap();
    router.finish().await;
    assert!(router.nodes.stored.lock().values().all(|copies| *copies == 3));
}

#[tokio::test(start_paused = true)]
async fn what_a_peer_has_placed_here_is_stored_here() {
    let behaviours = [after(1, STORED); 5];
    let member = ring(&behaviours, 3, Algorithm::Ketama, true);
    let message = Bytes::from(request(10));
    member.write_of_peer(message.clone(), 3).await.unwrap();
    assert_eq!(member.nodes.arrived.lock().len(), 0, "nothing is sent on");
    assert_eq!(member.nodes.stored.lock().len(), 10);
    // One that nobody has placed is.
    member.write_of_peer(message.clone(), 0).await.unwrap();
    member.finish().await;
    assert_eq!(member.nodes.stored.lock().values().sum::<usize>(), 10 + 30);

    let router = ring(&behaviours, 3, Algorithm::Ketama, false);
    router.write_of_peer(message, 2).await.unwrap();
    router.finish().await;
    assert_eq!(router.nodes.stored.lock().values().sum::<usize>(), 30);
}

#[tokio::test(start_paused = true)]
async fn without_a_ring_or_a_place_in_it_a_retry_is_asked_for() {
    let mut none = ring(&[after(1, STORED)], 1, Algorithm::Ketama, false);
    none.fanout.ring = CurrentHashring::none_yet();
    assert!(matches!(none.write(&request(1), 0).await, Err(WriteError::NoHashring)));
    let few = ring(&[after(1, STORED); 2], 3, Algorithm::Hashmod, false);
    assert!(matches!(few.write(&request(1), 0).await, Err(WriteError::Placement(_))));
    let few = ring(&[after(1, STORED); 2], 3, Algorithm::Ketama, false);
    assert!(matches!(few.write(&request(1), 0).await, Err(WriteError::Placement(_))));
}
