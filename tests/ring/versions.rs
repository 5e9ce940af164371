//! What comes in another form than remote write 1.0 goes to the ring's nodes as all else does, and its
//! senders are told what a quorum has.

use crate::node::Ring;
use crate::support::http::{Answer, Request};
use crate::support::messages::{SymbolicRequest, SymbolicSeries};
use crate::support::node::{DEFAULT_TENANT, Node};
use crate::support::now;

const PATH: &str = "/api/v1/receive";
const SERIES: usize = 50;

/// `up{instance="i"}` with a sample and an exemplar.
fn series(i: usize, t: i64, v: f64) -> SymbolicSeries {
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    SymbolicSeries {
        labels: vec![pair("__name__", "up"), pair("instance", &format!("{i:02}"))],
        samples: vec![(t, v, t - 1000)],
        exemplars: vec![(vec![pair("trace_id", "abc")], t, v)],
        metadata: Some((2, "help".into(), "unit".into())),
        ..SymbolicSeries::default()
    }
}

fn send(node: &Node, all: impl Iterator<Item = SymbolicSeries>) -> Answer {
    let request = all.fold(SymbolicRequest::default(), |request, series| request.with(&series));
    node.ask(&node.remote_write, &request.posted_to(PATH))
}

/// Samples and exemplars that an answer says were written.
fn written(answer: &Answer) -> [u64; 2] {
    ["samples", "exemplars"].map(|kind| {
        let name = format!("x-prometheus-remote-write-{kind}-written");
        answer.header(&name).expect("a count").parse().expect("a number")
    })
}

#[test]
fn a_sender_of_2_0_is_told_what_a_quorum_has() {
    let Ring { nodes, .. } = Ring::start(3, 3);
    let (t, router) = (now(), &nodes[0]);

    let answer = send(router, (0..SERIES).map(|i| series(i, t, 1.0)));
    assert_eq!((answer.status, written(&answer)), (200, [50, 50]), "{}", answer.text());
    for node in &nodes {
        node.wait_until("all copies", |node| node.read(DEFAULT_TENANT).len() == SERIES);
    }

    // Three of the series differ from what is there, on all nodes.
    let at = |i: usize| if i < 3 { t } else { t + 1000 };
    let answer = send(router, (0..SERIES).map(|i| series(i, at(i), 2.0)));
    assert_eq!((answer.status, written(&answer)), (409, [47, 47]), "{}", answer.text());
    for node in &nodes {
        let count = |node: &Node| {
            node.read(DEFAULT_TENANT).values().map(|samples| samples.len()).sum::<usize>()
        };
        node.wait_until("what is in order", |node| count(node) == SERIES + 47);
    }

    // Without a quorum nothing counts as written, wherever it is.
    nodes[1].kill();
    nodes[2].kill();
    let answer = send(router, (0..SERIES).map(|i| series(i, t + 2000, 3.0)));
    answer.assert_come_again();
    assert_eq!(written(&answer), [0, 0]);
}

#[test]
fn otlp_reaches_every_copy() {
    let Ring { nodes, .. } = Ring::start(3, 3);
    let t = now();
    let point = |i: usize| {
        format!(
            "{{\"timeUnixNano\": \"{t}000000\", \"asInt\": {i}, \"attributes\": [{{\"key\": \"i\", \
             \"value\": {{\"intValue\": {i}}}}}]}}"
        )
    };
    let points = (0..SERIES).map(point).collect::<Vec<_>>().join(",");
    let body = format!(
        "{{\"resourceMetrics\": [{{\"scopeMetrics\": [{{\"metrics\": [{{\"name\": \"g\", \"gauge\": \
         {{\"dataPoints\": [{points}]}}}}]}}]}}]}}"
    );
    let request = Request::new("POST", "/api/v1/otlp").header("Content-Type", "application/json");
    let answer = nodes[0].ask(&nodes[0].remote_write, &request.body(body));
    assert_eq!(answer.status, 200, "{}", answer.text());
    for node in &nodes {
        node.wait_until("all copies", |node| node.read(DEFAULT_TENANT).len() == SERIES);
    }
}
