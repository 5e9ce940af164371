use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::door::Door;
use crate::metrics::Registry;
use crate::multi_tsdb::TenantError;
use crate::peer::message::{ForwardMessage, Protocol};
use crate::peer::{ForwardError, Peer, PeerOptions, PeerPool, PeerState};
use crate::wire::capnproto::encode::SeriesTable;
use crate::wire::capnproto::frame::FrameReader;
use crate::wire::capnproto::rpc::{self, Incoming, write_request, writer};
use crate::wire::capnproto::write_request_capnp::writer::write_params;
use crate::write::WriteOutcome;
use crate::write::error::{Reason, Unavailable, WriteError};

/// Long enough for anything that is to succeed.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between attempts.
const PAUSE: Duration = Duration::from_millis(5);

const BUDGET: u64 = 32 << 20;

/// Answers by the tenant's name, and keeps what it was given.
#[derive(Default)]
struct Sink {
    written: Mutex<Vec<(String, Vec<u8>)>>,
    /// Told when a call hangs.
    hangs: Notify,
    /// Lets hanging calls go on.
    go_on: Notify,
}

impl WriteSink for Sink {
    async fn write(
        &self,
        tenant: &TenantId,
        message: Bytes,
        replica: u64,
        _sender: Sender<'_>,
    ) -> Result<WriteOutcome, WriteError> {
        assert!(replica > 0, "what comes in is in its place");
        let mut outcome = WriteOutcome::default();
        match tenant.as_str() {
            "conflict" => outcome.refusals.add(Reason::OutOfOrder, 1, || "{a=\"b\"}".into()),
            // The second of a piece.
            "one" => outcome.refuse(Reason::OutOfOrder, &[1], "{a=\"b\"}".into()),
            "down" => return Err(Unavailable::NotAccepting.into()),
            "opening" => {
                let (tenant, cause) = (tenant.clone(), TenantError::Opening.into());
                return Err(WriteError::TenantNotReady { tenant, cause });
            }
            "hangs" => {
                self.hangs.notify_one();
                self.go_on.notified().await;
            }
            _ => {}
        }
        self.written.lock().push((tenant.to_string(), message.to_vec()));
        Ok(outcome)
    }
}

struct Listening {
    address: SocketAddr,
    sink: Arc<Sink>,
    admission: Arc<Admission>,
    not_understood: Counter,
    draining: CancellationToken,
    serving: JoinHandle<()>,
}

impl Listening {
    async fn start(address: SocketAddr) -> Listening {
        Listening::with(address, true, PATIENCE).await
    }

    async fn with(address: SocketAddr, has_storage: bool, read_timeout: Duration) -> Listening {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let sink = Arc::new(Sink::default());
        let admission = Admission::new(BUDGET);
        let metrics = CapnProtoMetrics::new(&Registry::new());
        let not_understood = metrics.not_understood.clone();
        let options = CapnProtoOptions {
            admission: admission.clone(),
            message_read_timeout: read_timeout,
            grace_period: PATIENCE,
            caps: LabelCaps::default(),
            tasks: TaskTracker::new(),
            metrics,
        };
        let draining = CancellationToken::new();
        let storage = has_storage.then(|| sink.clone());
        let serving =
            tokio::spawn(serve(listener, storage, options, Door::open_wide(), draining.clone()));
        Listening { address, sink, admission, not_understood, draining, serving }
    }

    async fn stop(self) {
        self.draining.cancel();
        tokio::time::timeout(PATIENCE, self.serving).await.unwrap().unwrap();
    }

    fn written(&self) -> Vec<(String, Vec<u8>)> {
        std::mem::take(&mut self.sink.written.lock())
    }
}

fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn pool_of(address: SocketAddr) -> (Arc<PeerPool>, Arc<Peer>) {
    let options = PeerOptions { protocol: Protocol::CapnProto, ..PeerOptions::default() };
    let pool = PeerPool::new(options, &Registry::new());
    let address = address.to_string();
    pool.update([&address[..]]);
    let peer = pool.peer(&address).unwrap();
    (pool, peer)
}

/// Series with one label of `bytes` bytes.
fn series(count: usize, bytes: usize) -> Vec<u8> {
    let mut fields = Vec::new();
    for i in 0..count {
        let mut message = Vec::new();
        let value = format!("{i:0bytes$}");
        crate::model::labels::push_label(&mut message, 0x0a, b"a", value.as_bytes());
        fields.push(0x0a);
        crate::model::varint::push_varint(&mut fields, message.len() as u64);
        fields.extend_from_slice(&message);
    }
    fields
}

fn message_of(tenant: &str, series: &[u8]) -> ForwardMessage {
    let table = SeriesTable::new([series]).unwrap();
    let numbers: Vec<u32> = (0..table.len() as u32).collect();
    ForwardMessage::gather_capnproto(tenant, &table, &numbers).unwrap()
}

fn to(tenant: &str) -> ForwardMessage {
    message_of(tenant, &series(1, 3))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn series_arrive_as_they_are() {
    let server = Listening::start(any_port()).await;
    let (pool, peer) = pool_of(server.address);
    for (count, bytes) in [(0, 1), (1, 1), (2000, 100), (3, 60_000)] {
        let series = series(count, bytes);
        peer.remote_write(&message_of("a", &series), PATIENCE).await.unwrap();
        let written = server.written();
        let expected: &[_] = if count == 0 { &[] } else { &[("a".to_owned(), series)] };
        assert!(written == expected, "{count} series of {bytes} bytes");
    }
    // A request that takes several pieces.
    let series = series(200, 60_000);
    peer.remote_write(&message_of("a", &series), PATIENCE).await.unwrap();
    let written = server.written();
    assert!(written.len() > 1);
    let all: Vec<u8> = written.into_iter().flat_map(|(_, piece)| piece).collect();
    assert!(all == series);
    assert_eq!(pool.snapshot()[0].state, PeerState::Open);
    assert_eq!(pool.snapshot()[0].inflight_bytes, 0);
    server.stop().await;
}

#[tokio::test]
async fn large_messages_are_written_out_elsewhere() {
    let server = Listening::start(any_port()).await;
    let (_pool, peer) = pool_of(server.address);
    let places = heavy::take_all_places().await;
    let message = message_of("large", &series(2000, 1000));
    let large = peer.remote_write(&message, PATIENCE);
    let usual = async {
        while server.admission.inflight_bytes() < 2000 * 1000 {
            tokio::task::yield_now().await;
        }
        peer.remote_write(&message_of("usual", &series(2000, 100)), PATIENCE).await.unwrap();
        let written = server.written();
        assert!(written.iter().all(|(tenant, _)| tenant == "usual") && written.len() == 1);
        drop(places);
    };
    let (large, ()) = tokio::join!(large, usual);
    large.unwrap();
    assert_eq!(server.written()[0].0, "large");
    server.stop().await;
}

#[tokio::test]
async fn every_answer_has_its_meaning() {
    let server = Listening::start(any_port()).await;
    let (pool, peer) = pool_of(server.address);
    let write = async |tenant: &str| peer.remote_write(&to(tenant), PATIENCE).await.unwrap_err();
    let conflict = write("conflict").await;
    let says_why = |error: &ForwardError| error.to_string().contains("out of order");
    assert!(matches!(conflict, ForwardError::Conflict { .. }) && says_why(&conflict));
    for tenant in ["", ".", "..", "a/b"] {
        let refused = write(tenant).await;
        assert!(matches!(refused, ForwardError::BadReplica { .. }), "{tenant}: {refused}");
    }
    // One tenant's trouble is not the node's.
    let opening = write("opening").await;
    assert!(matches!(opening, ForwardError::TenantNotReady { .. }), "{opening}");
    assert!(matches!(write("opening").await, ForwardError::BackedOff { .. }));
    assert_eq!(pool.snapshot()[0].state, PeerState::Open);
    let down = write("down").await;
    let says_why = |detail: &str| detail.contains("not accepting");
    assert!(matches!(&down, ForwardError::Unavailable { detail, .. } if says_why(detail)));
    assert!(matches!(write("a").await, ForwardError::BackedOff { .. }));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_names_the_refused_series() {
    let server = Listening::start(any_port()).await;
    let (_pool, peer) = pool_of(server.address);
    let refused = async |message: ForwardMessage| match peer.remote_write(&message, PATIENCE).await
    {
        Err(ForwardError::Conflict { refused, .. }) => {
            refused.map(|refused| refused.iter().collect::<Vec<_>>())
        }
        other => panic!("{other:?}"),
    };
    assert!(!peer.takes_merged());
    let code = Reason::OutOfOrder.code();
    assert_eq!(refused(message_of("one", &series(3, 10))).await, Some(vec![(1, code)]));
    assert!(peer.takes_merged());
    // Three pieces of 4 MiB and some.
    let places = refused(message_of("one", &series(200, 60_000))).await.unwrap();
    assert_eq!(places, [(1, code), (71, code), (141, code)]);
    // Where they are not known, none is named.
    assert_eq!(refused(to("conflict")).await, None);
    server.stop().await;
}

/// A call that asks to write this, packed.
fn call_to_write(fill: impl FnOnce(write_request::Builder<'_>)) -> Vec<u8> {
    use capnp_rpc::rpc_capnp::message;
    let mut builder = capnp::message::Builder::new_default();
    let mut call = builder.init_root::<message::Builder<'_>>().init_call();
    call.set_question_id(1);
    call.set_interface_id(<writer::Client as capnp::traits::HasTypeId>::TYPE_ID);
    call.reborrow().get_target().unwrap().set_imported_cap(0);
    fill(call.init_params().get_content().init_as::<write_params::Builder<'_>>().init_wr());
    let mut packed = Vec::new();
    capnp::serialize_packed::write_message(&mut packed, &builder).unwrap();
    packed
}

#[tokio::test]
async fn a_histogram_whose_bounds_were_lost_is_a_conflict() {
    let server = Listening::start(any_port()).await;
    let call = call_to_write(|mut request| {
        let mut symbols = request.reborrow().init_symbols();
        symbols.set_data(b"ab");
        symbols.set_offsets(&[1, 2]).unwrap();
        request.set_tenant("t");
        let mut list = request.init_time_series(3);
        for i in 0..3 {
            let mut series = list.reborrow().get(i);
            { series.reborrow().init_labels(1).get(0) }.set_value(1);
            let mut histograms = series.init_histograms(1);
            histograms.reborrow().get(0).set_schema(if i == 1 { -53 } else { 3 });
        }
    });
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(&call).await.unwrap();
    let mut reader = FrameReader::new(tokio::io::BufReader::new(stream));
    let answer = rpc::written(&next_message(&mut reader).await).unwrap();
    assert_eq!(answer.error, rpc::WriteError::AlreadyExists, "{answer:?}");
    assert!(answer.said.contains("{a=\"b\"}"), "{answer:?}");
    let refused = RefusedSeries::decode(&answer.refused.unwrap(), 3).unwrap();
    let expected = [(1, Reason::CustomBoundsLost.code())];
    assert!(refused.iter().eq(expected), "{refused:?}");
    // It is not stored without them.
    let labels = b"\x0a\x06\x0a\x01a\x12\x01b";
    let written = server.written().remove(0).1;
    let (without, with) = ([&[0x0a, 8][..], labels].concat(), b"\x22\x02\x20\x06");
    assert_eq!(written.windows(with.len()).filter(|part| part == with).count(), 2);
    assert_eq!(written.windows(without.len()).filter(|part| *part == without).count(), 1);
    server.stop().await;
}

#[tokio::test]
async fn a_node_without_storage_is_unavailable() {
    let server = Listening::with(any_port(), false, PATIENCE).await;
    let (_pool, peer) = pool_of(server.address);
    // One that fits what is read first, and one that is passed over.
    for count in [1, 2000] {
        let message = message_of("a", &series(count, 100));
        let refused = loop {
            match peer.remote_write(&message, PATIENCE).await.unwrap_err() {
                ForwardError::BackedOff { .. } => tokio::time::sleep(PAUSE).await,
                other => break other,
            }
        };
        assert!(matches!(refused, ForwardError::Unavailable { .. }), "{refused}");
    }
    server.stop().await;
}

#[tokio::test]
async fn calls_go_side_by_side_and_may_be_given_up() {
    let server = Listening::start(any_port()).await;
    let (pool, peer) = pool_of(server.address);
    let hanging = peer.clone();
    let hanging = tokio::spawn(async move { hanging.remote_write(&to("hangs"), PATIENCE).await });
    server.sink.hangs.notified().await;
    peer.remote_write(&to("a"), PATIENCE).await.unwrap();
    // Its deadline passes, with nothing else under way.
    tokio::time::pause();
    tokio::time::advance(PATIENCE).await;
    tokio::time::resume();
    let hanging = hanging.await.unwrap();
    assert!(matches!(hanging, Err(ForwardError::TimedOut { .. })), "{hanging:?}");
    peer.remote_write(&to("a"), PATIENCE).await.unwrap();
    assert_eq!(pool.snapshot()[0].state, PeerState::Open);
    // What was given up is stored all the same, and holds the end.
    assert_eq!(server.written().len(), 2);
    server.sink.go_on.notify_one();
    let (sink, admission) = (server.sink.clone(), server.admission.clone());
    server.stop().await;
    assert_eq!(sink.written.lock()[0].0, "hangs");
    assert_eq!(admission.inflight_bytes(), 0);
}

#[tokio::test]
async fn a_peer_that_comes_back_is_used_again() {
    // Nobody else gets the port meanwhile.
    let held = TcpSocket::new_v4().unwrap();
    held.set_reuseaddr(true).unwrap();
    held.bind(any_port()).unwrap();
    let address = held.local_addr().unwrap();
    let server = Listening::start(address).await;
    let (pool, peer) = pool_of(address);
    peer.remote_write(&to("a"), PATIENCE).await.unwrap();
    server.stop().await;
    let server = Listening::start(address).await;
    let begun = tokio::time::Instant::now();
    while let Err(error) = peer.remote_write(&to("a"), PATIENCE).await {
        assert!(begun.elapsed() < PATIENCE, "{error}");
        tokio::time::sleep(PAUSE).await;
    }
    assert_eq!(server.written().len(), 1);
    assert_eq!(pool.snapshot()[0].state, PeerState::Open);
    server.stop().await;
}

#[tokio::test]
async fn a_call_under_way_is_finished_before_the_end() {
    let server = Listening::start(any_port()).await;
    let (_pool, peer) = pool_of(server.address);
    let message = to("hangs");
    let call = peer.remote_write(&message, PATIENCE);
    let stopping = async {
        server.sink.hangs.notified().await;
        server.draining.cancel();
        server.sink.go_on.notify_one();
    };
    let (call, ()) = tokio::join!(call, stopping);
    call.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn calls_are_taken_while_others_hold_the_connection_open() {
    let server = Listening::start(any_port()).await;
    let (_pool, peer) = pool_of(server.address);
    let message = to("hangs");
    let call = peer.remote_write(&message, PATIENCE);
    let stopping = async {
        server.sink.hangs.notified().await;
        server.draining.cancel();
        let refused = async { while TcpStream::connect(server.address).await.is_ok() {} };
        tokio::time::timeout(PATIENCE, refused).await.unwrap();
        peer.remote_write(&to("a"), PATIENCE).await.unwrap();
        server.sink.go_on.notify_one();
    };
    let (call, ()) = tokio::join!(call, stopping);
    call.unwrap();
    let sink = server.sink.clone();
    server.stop().await;
    assert_eq!(sink.written.lock().len(), 2);
}

#[tokio::test]
async fn a_connection_that_is_always_busy_is_closed_all_the_same() {
    let server = Listening::start(any_port()).await;
    let (_pool, peer) = pool_of(server.address);
    let begin = || {
        let peer = peer.clone();
        tokio::spawn(async move { peer.remote_write(&to("hangs"), PATIENCE).await })
    };
    let mut under_way = begin();
    server.sink.hangs.notified().await;
    server.draining.cancel();
    // Each is ended by the beginning of the next.
    let unread = loop {
        let next = begin();
        let is_read = tokio::time::timeout(PATIENCE / 10, server.sink.hangs.notified());
        if is_read.await.is_err() {
            break next;
        }
        server.sink.go_on.notify_one();
        std::mem::replace(&mut under_way, next).await.unwrap().unwrap();
    };
    server.sink.go_on.notify_one();
    under_way.await.unwrap().unwrap();
    unread.await.unwrap().unwrap_err();
    server.stop().await;
}

#[tokio::test]
async fn what_does_not_fit_is_passed_over_and_answered() {
    let server = Listening::start(any_port()).await;
    let (_pool, peer) = pool_of(server.address);
    let large = message_of("a", &series(2000, 1000));
    let held = server.admission.admit(BUDGET - (1 << 20)).unwrap();
    let refused = peer.remote_write(&large, PATIENCE).await.unwrap_err();
    assert!(matches!(refused, ForwardError::Unavailable { .. }), "{refused}");
    assert!(refused.to_string().contains("overload"), "{refused}");
    drop(held);
    // One that never fits is not the node's fault, and the connection goes on.
    let larger = message_of("a", &series(600, 60_000));
    let too_long = loop {
        match peer.remote_write(&larger, PATIENCE).await.unwrap_err() {
            ForwardError::BackedOff { .. } => tokio::time::sleep(PAUSE).await,
            other => break other,
        }
    };
    assert!(matches!(too_long, ForwardError::BadReplica { .. }), "{too_long}");
    peer.remote_write(&large, PATIENCE).await.unwrap();
    assert_eq!(server.admission.inflight_bytes(), 0);
    server.stop().await;
}

#[tokio::test]
async fn a_short_message_does_not_become_a_long_one() {
    let server = Listening::start(any_port()).await;
    let (_pool, peer) = pool_of(server.address);
    // Each series names the same long symbol.
    let mut fields = Vec::new();
    for _ in 0..1000 {
        fields.extend_from_slice(&series(1, 60_000));
    }
    let message = message_of("a", &fields);
    assert!(message.body_bytes() < 200_000);
    let refused = peer.remote_write(&message, PATIENCE).await.unwrap_err();
    assert!(refused.to_string().contains("without its symbols"), "{refused}");
    assert_eq!(server.admission.inflight_bytes(), 0);
    server.stop().await;
}

async fn next_message(reader: &mut FrameReader<tokio::io::BufReader<TcpStream>>) -> Message {
    let table = reader.read_table().await.unwrap();
    let mut words = Vec::new();
    reader.read_words(&mut words, table.words()).await.unwrap();
    Message::new(table, words)
}

/// Sends bytes and reads what comes back until the end of the connection.
async fn exchange(address: SocketAddr, bytes: &[u8]) -> Vec<Incoming> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut reader = FrameReader::new(tokio::io::BufReader::new(stream));
    let mut answers = Vec::new();
    while reader.wait().await.unwrap_or(false) {
        let table = reader.read_table().await.unwrap();
        let mut words = Vec::new();
        reader.read_words(&mut words, table.words()).await.unwrap();
        answers.push(rpc::read(&Message::new(table, words)).unwrap());
    }
    answers
}

#[tokio::test]
async fn what_thanos_sends_is_stored() {
    let server = Listening::start(any_port()).await;
    let sent = include_bytes!("../../tests/data/capnproto/router-sends.bin");
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(sent).await.unwrap();
    let mut reader = FrameReader::new(tokio::io::BufReader::new(stream));
    for _ in 0..2 {
        let table = reader.read_table().await.unwrap();
        let mut words = Vec::new();
        reader.read_words(&mut words, table.words()).await.unwrap();
        let answer = rpc::read(&Message::new(table, words)).unwrap();
        assert!(matches!(answer, Incoming::Return { .. }), "{answer:?}");
    }
    let time = b"\x80\xd0\x95\xff\xbc\x31";
    let value = |value: f64| value.to_le_bytes();
    let sample = |v: f64| [&b"\x12\x10\x09"[..], &value(v), b"\x10", time].concat();
    let exemplar =
        [&b"\x1a\x1e\x0a\x0c\x0a\x05trace\x12\x03abc\x11"[..], &value(2.5), b"\x18", time].concat();
    let histogram = [
        &b"\x22\x23\x08\x03\x19"[..],
        &value(3.5),
        b"\x29",
        &value(0.001),
        b"\x5a\x02\x10\x02\x62\x02\x02\x02\x78",
        time,
    ]
    .concat();
    let series = |name: &str, job: &str, rest: &[u8]| {
        let mut message = Vec::new();
        for (name, value) in [("__name__", name), ("job", job)] {
            let (name, value) = (name.as_bytes(), value.as_bytes());
            crate::model::labels::push_label(&mut message, 0x0a, name, value);
        }
        message.extend_from_slice(rest);
        [&[0x0a, message.len() as u8], &message[..]].concat()
    };
    let expected = [
        series("m", "a", &[sample(1.0), exemplar].concat()),
        series("m", "b", &sample(2.5)),
        series("h", "b", &histogram),
    ];
    // The recorded router lets go of the answer at once; it is stored before the end all the same.
    let sink = server.sink.clone();
    server.stop().await;
    assert_eq!(*sink.written.lock(), [("rec".to_owned(), expected.concat())]);
}

#[tokio::test]
async fn what_is_not_understood_is_refused_and_counted() {
    let server = Listening::start(any_port()).await;
    let (pool, peer) = pool_of(server.address);
    // A request of no series, whose words are changed to those of a later schema: the tenant's name
    // stands where that has something else.
    let mut later = rpc::call_head(1, 0, 5);
    let position = later.len() - 2;
    // Five pointers in the packed pointer to the request.
    assert_eq!(&later[position..], [0x40, 3]);
    later[position + 1] = 5;
    crate::wire::capnproto::packed::pack(&[0, 0, 0, 0, 1 | 2 << 32], &mut later);
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(&[rpc::bootstrap(0), later].concat()).await.unwrap();
    let mut reader = FrameReader::new(tokio::io::BufReader::new(stream));
    next_message(&mut reader).await;
    let answer = rpc::written(&next_message(&mut reader).await).unwrap();
    // Thanos sends it again, and does not back the node off.
    assert_eq!(answer.error, rpc::WriteError::InvalidArgument, "{answer:?}");
    assert!(answer.said.contains("does not know"), "{answer:?}");
    assert_eq!(server.not_understood.value(), 1.0);
    peer.remote_write(&message_of("a", &[]), PATIENCE).await.unwrap();
    assert_eq!(server.not_understood.value(), 1.0);
    drop(pool);
    server.stop().await;
}

#[tokio::test]
async fn what_is_no_call_to_the_writer_is_told_so() {
    let server = Listening::start(any_port()).await;
    let answer = |question| Incoming::Return { question, needs_finish: true };
    // A call on what a bootstrap will be answered with, and one on nothing.
    let mut call = rpc::call_head(2, 9, 4);
    crate::wire::capnproto::packed::pack(&[0; 4], &mut call);
    let sent = [rpc::bootstrap(1), call, rpc::finish(1)].concat();
    assert_eq!(exchange(server.address, &sent).await, [answer(1), answer(2)]);
    // Bytes of HTTP, and a message that is cut short.
    for sent in [&b"POST / HTTP/1.1\r\nHost: a\r\n\r\n"[..], b"\x10\x01"] {
        let answers = exchange(server.address, sent).await;
        assert!(answers.iter().all(|answer| matches!(answer, Incoming::Abort(_))), "{answers:?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_half_sent_message_is_not_waited_for() {
    let server = Listening::with(any_port(), true, Duration::from_millis(100)).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"\x10").await.unwrap();
    let mut reader = FrameReader::new(tokio::io::BufReader::new(stream));
    let told = tokio::time::timeout(PATIENCE, reader.read_table()).await.unwrap();
    assert!(told.is_ok(), "why the connection is closed");
    server.stop().await;
}

/// Time is that of the test: it goes on when nobody has anything else to do.
#[tokio::test(start_paused = true)]
async fn a_peer_that_says_nothing_is_not_kept() {
    use tokio::io::AsyncReadExt as _;

    let node = Listening::start(any_port()).await;
    let mut silent = TcpStream::connect(node.address).await.unwrap();
    let mut answer = Vec::new();
    silent.read_to_end(&mut answer).await.unwrap();
    let mut half = TcpStream::connect(node.address).await.unwrap();
    half.write_all(&[0, 0, 0]).await.unwrap();
    half.read_to_end(&mut answer).await.unwrap();
}
