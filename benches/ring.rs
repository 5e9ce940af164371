//! What placing a series costs: its hash, its section, and all its replicas.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ringest::hashring::{
    Algorithm, Endpoint, Hashring, HashringMetrics, Ring, RingDefaults, RingOptions, SeriesHasher,
    ShardingOptions,
};
use ringest::metrics::Registry;

/// Requests carry about this many series.
const SERIES_COUNT: usize = 2000;
const NODE_COUNTS: [usize; 4] = [3, 10, 30, 100];

type Labels = Vec<(Vec<u8>, Vec<u8>)>;

/// Series of 13 labels and about 385 bytes, as load generators send them.
fn series() -> Vec<Labels> {
    let label = |name: &str, value: String| (name.as_bytes().to_vec(), value.into_bytes());
    let series = |i: usize| {
        let mut labels = vec![label("__name__", format!("avalanche_metric_mmmmm_0_{}", i % 100))];
        labels.push(label("cycle_id", "0".into()));
        for key in 0..10 {
            labels.push(label(&format!("label_key_kkkkk_{key}"), format!("label_val_vvvvv_{key}")));
        }
        labels.push(label("series_id", i.to_string()));
        labels
    };
    (0..SERIES_COUNT).map(series).collect()
}

fn borrowed(labels: &Labels) -> impl Iterator<Item = (&[u8], &[u8])> {
    labels.iter().map(|(name, value)| (name.as_slice(), value.as_slice()))
}

fn options(node_count: usize, zoned: bool, shard_size: i64) -> RingOptions {
    let endpoint = |i: usize| {
        let endpoint = Endpoint::at(&format!("receive-{i}.receive.monitoring.svc:10901"));
        let az = if zoned { format!("az-{}", i % 3) } else { String::new() };
        Endpoint { az, ..endpoint }
    };
    RingOptions {
        endpoints: (0..node_count).map(endpoint).collect(),
        sharding: ShardingOptions { shard_size, ..ShardingOptions::default() },
        ..RingOptions::default()
    }
}

fn build(options: RingOptions, algorithm: Algorithm) -> Hashring {
    let metrics = HashringMetrics::new(&Registry::new());
    let defaults = RingDefaults { algorithm, replication_factor: 3 };
    Hashring::build(vec![options], defaults, None, &metrics)
}

fn hash(c: &mut Criterion) {
    let series = series();
    let mut group = c.benchmark_group("ring/hash");
    group.throughput(Throughput::Elements(SERIES_COUNT as u64));
    group.bench_function("13 labels", |b| {
        let mut hasher = SeriesHasher::for_tenant(b"default-tenant");
        b.iter(|| {
            series.iter().fold(0, |sum, labels| sum ^ hasher.hash(borrowed(black_box(labels))))
        });
    });
    group.finish();
}

/// One request: the tenant's ring, then section and replicas of every hash.
fn place(c: &mut Criterion) {
    let mut hasher = SeriesHasher::for_tenant(b"default-tenant");
    let hashes: Vec<_> = series().iter().map(|labels| hasher.hash(borrowed(labels))).collect();
    let mut group = c.benchmark_group("ring/place");
    group.throughput(Throughput::Elements(SERIES_COUNT as u64));
    for node_count in NODE_COUNTS {
        let rings = [
            ("hashmod", build(options(node_count, false, 0), Algorithm::Hashmod)),
            ("ketama", build(options(node_count, false, 0), Algorithm::Ketama)),
            ("ketama in zones", build(options(node_count, true, 0), Algorithm::Ketama)),
            ("shuffle shard", build(options(node_count, false, 3), Algorithm::Ketama)),
        ];
        for (name, hashring) in &rings {
            group.bench_with_input(BenchmarkId::new(*name, node_count), hashring, |b, hashring| {
                b.iter(|| {
                    let Ok(ring) = hashring.ring_of("default-tenant") else { return 0 };
                    place_all(&ring, &hashes)
                });
            });
        }
    }
    group.finish();
}

fn place_all(ring: &Ring, hashes: &[u64]) -> u64 {
    let placed = ring.place(black_box(hashes));
    placed.sets.iter().fold(0, |sum, set| {
        let replicas = placed.table.set(*set).iter();
        replicas.fold(sum, |sum, endpoint| sum + u64::from(endpoint.0))
    })
}

/// Requests of more tenants than the cache holds, one after the other, beside those of one tenant,
/// and beside a ring that is built for each request.
fn shards(c: &mut Criterion) {
    const NODE_COUNT: usize = 100;
    const TENANT_COUNT: usize = 10_000;
    let mut hasher = SeriesHasher::for_tenant(b"default-tenant");
    let hashes: Vec<_> = series().iter().map(|labels| hasher.hash(borrowed(labels))).collect();
    let tenants: Vec<_> = (0..TENANT_COUNT).map(|i| format!("tenant-{i}")).collect();
    let mut group = c.benchmark_group("ring/shard");
    for shard_size in [3, 10, 50] {
        let hashring = build(options(NODE_COUNT, false, shard_size), Algorithm::Ketama);
        for series_count in [10, SERIES_COUNT] {
            let hashes = &hashes[..series_count];
            let mut bench = |name: &str, tenants: &[String]| {
                let mut turns = tenants.iter().cycle();
                let id =
                    BenchmarkId::new(name, format!("{shard_size} nodes, {series_count} series"));
                group.bench_function(id, |b| {
                    b.iter(|| {
                        let ring = turns.next().map(|tenant| hashring.ring_of(tenant));
                        let Some(Ok(ring)) = ring else { return 0 };
                        place_all(&ring, hashes)
                    });
                });
            };
            bench("many tenants", &tenants);
            bench("one tenant", &tenants[..1]);
        }
        let alone = options(shard_size as usize, false, 0);
        group.bench_function(BenchmarkId::new("ring built", shard_size), |b| {
            b.iter(|| build(alone.clone(), Algorithm::Ketama));
        });
    }
    group.finish();
}

/// What a change of the file costs.
fn build_rings(c: &mut Criterion) {
    let mut group = c.benchmark_group("ring/build");
    group.sample_size(10);
    for node_count in NODE_COUNTS {
        for (name, zoned) in [("ketama", false), ("ketama in zones", true)] {
            let options = options(node_count, zoned, 0);
            group.bench_with_input(BenchmarkId::new(name, node_count), &options, |b, options| {
                b.iter(|| build(options.clone(), Algorithm::Ketama));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, hash, place, shards, build_rings);
criterion_main!(benches);
