//! What a matcher with thousands of terms costs over a label's values: what a query with it pays
//! before it reads a series. `docs/matchers.md` has Prometheus' figures beside these.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ringest::model::matcher::{MatchOp, Matcher};

/// Values and terms: few with `--test`, which CI uses.
fn sizes() -> (usize, usize) {
    match std::env::args().any(|arg| arg == "--test") {
        true => (100, 100),
        false => (10_000, 3_000),
    }
}

/// Terms that no value matches, so that all of them are looked for in each.
fn pattern(term: impl Fn(&str) -> String) -> String {
    let (_, count) = sizes();
    let terms: Vec<String> = (0..count).map(|i| term(&format!("absent-{i}"))).collect();
    terms.join("|")
}

fn patterns() -> Vec<(&'static str, String)> {
    vec![
        ("x", pattern(str::to_owned)),
        ("x.*", pattern(|x| format!("{x}.*"))),
        (".*x", pattern(|x| format!(".*{x}"))),
        (".*x.*", pattern(|x| format!(".*{x}.*"))),
        ("x.+y", pattern(|x| format!("instance.+{x}"))),
        (".*x.*y.*", pattern(|x| format!(".*instance.*{x}.*"))),
        (".*x.*, one x[0-9]+", pattern(|x| format!(".*{x}.*")) + "|absent[0-9]+"),
        (r"\pL{500}", r"\pL{500}".to_owned()),
    ]
}

fn matchers(c: &mut Criterion) {
    let (value_count, term_count) = sizes();
    let values: Vec<String> =
        (0..value_count).map(|i| format!("instance-{i}.eu-west-1.example")).collect();
    let mut group = c.benchmark_group(format!("matchers/{term_count} terms"));
    group.sample_size(10);
    for (name, pattern) in patterns() {
        let compile = || Matcher::new(MatchOp::Regex, b"instance", pattern.as_bytes());
        let matcher = compile().expect("a pattern");
        group.throughput(Throughput::Elements(value_count as u64));
        group.bench_function(BenchmarkId::new("match", name), |b| {
            b.iter(|| {
                let is_match = |value: &&String| matcher.matches(black_box(value.as_bytes()));
                values.iter().filter(is_match).count()
            });
        });
        group.bench_function(BenchmarkId::new("compile", name), |b| b.iter(compile));
    }
    group.finish();
}

criterion_group!(benches, matchers);
criterion_main!(benches);
