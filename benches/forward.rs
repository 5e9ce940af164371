//! One forward of 2,000 series: gathered from ranges of the request, deflated, and at the other end
//! inflated and taken apart. `cargo bench --bench forward`

mod common;

use std::hint::black_box;

use common::{REQUEST_SERIES, label_fields, request};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringest::peer::message::{Compression, ForwardMessage, TenantBatch};
use ringest::wire::grpc::deflate_snappy;
use ringest::wire::peer_write::PeerWriteRequest;
use ringest::wire::reader::split_len_prefixed;
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
        let batch = TenantBatch { tenant: "default-tenant", series: series.iter().copied() };
        ForwardMessage::gather(1, &[batch], compression).expect("below the cap")
    };
    let message = gather(Compression::None);
    let plain = &message.bytes()[ringest::wire::grpc::HEAD_BYTES..];
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
                .map(|tenant| tenant.expect("a good request").tenant.len())
                .sum::<usize>()
        });
    });
    group.finish();
}

criterion_group!(benches, forward);
criterion_main!(benches);
