//! One forward of 2,000 series: gathered from ranges of the request, deflated, and at the other end
//! inflated and taken apart; over Cap'n Proto taken apart once for all peers, gathered and packed,
//! and at the other end unpacked and written out. `cargo bench --bench forward`

mod common;

use std::hint::black_box;

use common::{REQUEST_SERIES, label_fields, request};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringest::model::varint::split_len_prefixed;
use ringest::peer::message::{Compression, Envelope, ForwardMessage};
use ringest::wire::capnproto::decode::{Position, SeriesCaps, next_piece};
use ringest::wire::capnproto::encode::{EncodedWrite, SeriesTable};
use ringest::wire::capnproto::frame::{FrameReader, Message};
use ringest::wire::capnproto::packed::Unpacker;
use ringest::wire::capnproto::rpc;
use ringest::wire::grpc::deflate_snappy;
use ringest::wire::peer_write::{PeerWriteRequest, TenantPart};
use ringest::wire::snappy::framed;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The series of a request with their tags.
fn series_of(mut request: &[u8]) -> Vec<&[u8]> {
    let mut series = Vec::new();
    while let Some((_tag, body)) = request.split_first() {
        let (_, rest) = split_len_prefixed(body).expect("a good request");
        series.push(&request[..request.len() - rest.len()]);
        request = rest;
    }
    series
}

fn forward(criterion: &mut Criterion) {
    // Every third series of a larger request, as a ring of three hands them out.
    let labels: Vec<Vec<u8>> = (0..3 * REQUEST_SERIES).map(label_fields).collect();
    let request = request(labels.iter().enumerate(), 1_700_000_000_000);
    let series: Vec<&[u8]> = series_of(&request).into_iter().step_by(3).collect();
    let gather = |compression| {
        let envelope =
            Envelope { tenant: "default-tenant", replica: 1, is_merged: false, series_count: 0 };
        let fields = series.iter().copied();
        ForwardMessage::gather(envelope, fields, compression).expect("below the cap")
    };
    let body = gather(Compression::None).body();
    let plain = &body.first_ref()[ringest::wire::grpc::HEAD_BYTES..];
    let mut deflated = Vec::new();
    deflate_snappy([plain], &mut deflated);

    let mut group = criterion.benchmark_group("forward");
    group.throughput(Throughput::Elements(REQUEST_SERIES as u64));
    for (name, compression) in
        [("gather/none", Compression::None), ("gather/snappy", Compression::Snappy)]
    {
        group.bench_function(name, |bencher| bencher.iter(|| gather(compression)));
    }
    group.bench_function("inflate", |bencher| {
        let mut buffer = Vec::new();
        bencher.iter(|| {
            let len = framed::inflated_len(&deflated, 1 << 30).expect("a good stream");
            framed::inflate(&deflated, len, &mut buffer).expect("a good stream").len()
        });
    });
    group.bench_function("take apart", |bencher| {
        bencher.iter(|| {
            let request = PeerWriteRequest::parse(black_box(plain)).expect("a good request");
            request
                .tenants()
                .map(|part| part.and_then(TenantPart::read).expect("a good request").tenant.len())
                .sum::<usize>()
        });
    });
    group.finish();
}

fn capnproto(criterion: &mut Criterion) {
    // One request, to a ring of three with three copies: nine messages of a third of the series.
    let labels: Vec<Vec<u8>> = (0..REQUEST_SERIES).map(label_fields).collect();
    let request = request(labels.iter().enumerate(), 1_700_000_000_000);
    let table = || SeriesTable::new([&request[..]]).expect("a good request");
    let taken_apart = table();
    let third: Vec<u32> = (0..REQUEST_SERIES as u32).step_by(3).collect();
    let all: Vec<u32> = (0..REQUEST_SERIES as u32).collect();

    let mut group = criterion.benchmark_group("capnproto");
    group.throughput(Throughput::Elements(REQUEST_SERIES as u64));
    group.bench_function("take apart", |bencher| bencher.iter(table));
    group.bench_function("gather/all", |bencher| {
        bencher.iter(|| taken_apart.encode("default-tenant", &all).expect("below the cap"));
    });
    group.bench_function("write out", |bencher| {
        let message = call(&taken_apart.encode("default-tenant", &all).expect("below the cap"));
        let caps = SeriesCaps { labels_max: 1000, bytes_max: 64 << 10 };
        let mut out = Vec::new();
        bencher.iter(|| {
            out.clear();
            let mut position = Position::default();
            next_piece(&message, &mut position, caps, 4 << 20, &mut out).expect("a good request");
            out.len()
        });
    });
    group.bench_function("unpack", |bencher| {
        let encoded = taken_apart.encode("default-tenant", &all).expect("below the cap");
        let mut out = vec![0; encoded.words as usize * 8];
        bencher.iter(|| Unpacker::default().unpack(&mut &encoded.packed[..], &mut out));
    });
    group.throughput(Throughput::Elements(third.len() as u64));
    group.bench_function("gather/third", |bencher| {
        bencher.iter(|| taken_apart.encode("default-tenant", &third).expect("below the cap"));
    });
    group.finish();
}

/// A call as it is taken off a connection.
fn call(encoded: &EncodedWrite) -> Message {
    let packed = [rpc::call_head(1, 0, encoded.words), encoded.packed.clone()].concat();
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let mut reader = FrameReader::new(&packed[..]);
        let table = reader.read_table().await.expect("a message");
        let mut words = Vec::new();
        reader.read_words(&mut words, table.words()).await.expect("a message");
        Message::new(table, words)
    })
}

criterion_group!(benches, forward, capnproto);
criterion_main!(benches);
