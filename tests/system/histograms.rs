//! Native histograms that a Prometheus scrapes and sends: what is read back is what it has itself,
//! from the head, after a kill, from a block, and when a Prometheus opens our directory.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use ringest::model::varint::zigzag;

use crate::directories::{NO_TARGETS, copy_dir};
use crate::programs::{Prometheus, start_node};
use crate::support::messages::push_varint;
use crate::support::node::{DEFAULT_TENANT, Node};
use crate::support::process::{wait_for, wait_until};
use crate::support::remote_read::{self, Content, STALE};
use crate::support::same::assert_same;

/// Metrics of the target.
const NAMES: &str = "latency_seconds|queue_length";

/// A target whose answers are protobuf, as only that format has native histograms.
struct Target {
    address: String,
    is_stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Target {
    fn start() -> Target {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let is_stopped = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let is_stopped = is_stopped.clone();
            move || {
                for (scrape, stream) in (0..).zip(listener.incoming()) {
                    if is_stopped.load(Ordering::SeqCst) {
                        return;
                    }
                    // Who goes away meanwhile is none of our business.
                    let _ = answer(stream.unwrap(), scrape);
                }
            }
        });
        Target { address, is_stopped, thread: Some(thread) }
    }

    /// Nobody listens any more.
    fn stop(mut self) {
        self.is_stopped.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(&self.address);
        self.thread.take().unwrap().join().unwrap();
    }
}

fn answer(mut stream: TcpStream, scrape: u64) -> std::io::Result<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let body = [
        family("latency_seconds", 4, &histogram(scrape)),
        family("queue_length", 1, &{
            let mut gauge = vec![0x09];
            gauge.extend_from_slice(&(scrape as f64).to_le_bytes());
            field(2, &gauge)
        }),
    ]
    .concat();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.google.protobuf; \
         proto=io.prometheus.client.MetricFamily; encoding=delimited\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    )?;
    stream.write_all(&body)
}

fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut field = vec![number << 3 | 2];
    push_varint(&mut field, bytes.len() as u64);
    field.extend_from_slice(bytes);
    field
}

fn number(number: u8, value: u64) -> Vec<u8> {
    let mut field = vec![number << 3];
    push_varint(&mut field, value);
    field
}

fn double(number: u8, value: f64) -> Vec<u8> {
    [&[number << 3 | 1][..], &value.to_le_bytes()].concat()
}

/// `io.prometheus.client.MetricFamily` of one metric, behind its length.
fn family(name: &str, kind: u64, metric: &[u8]) -> Vec<u8> {
    let family = [field(1, name.as_bytes()), number(3, kind), field(4, metric)].concat();
    let mut delimited = Vec::new();
    push_varint(&mut delimited, family.len() as u64);
    delimited.extend(family);
    delimited
}

/// The metric of a histogram: its counts rise, buckets come, and once all begins anew.
fn histogram(scrape: u64) -> Vec<u8> {
    let age = scrape % 25;
    let counts: Vec<u64> = (0..2 + age / 4).map(|bucket| (age + 1) * (bucket + 1)).collect();
    let mut before = 0;
    let mut deltas = Vec::new();
    for count in &counts {
        push_varint(&mut deltas, zigzag(*count as i64 - before));
        before = *count as i64;
    }
    let span = [number(1, zigzag(-2)), number(2, counts.len() as u64)].concat();
    let below = [number(1, zigzag(1)), number(2, 1)].concat();
    let all = counts.iter().sum::<u64>() + age + 1;
    let histogram = [
        number(1, all),
        double(2, all as f64 * 0.25),
        number(5, zigzag(3)),
        double(6, 1.0 / 1024.0),
        number(7, 1),
        field(9, &below),
        field(10, &{
            let mut delta = Vec::new();
            push_varint(&mut delta, zigzag(age as i64));
            delta
        }),
        field(12, &span),
        field(13, &deltas),
    ]
    .concat();
    field(7, &histogram)
}

/// By chunks: a Prometheus of this version leaves histograms out of samples.
fn scraped(address: &str) -> Content {
    remote_read::read_chunks(address, NAMES)
}

/// What our own node has, by chunks and by samples.
fn served(node: &Node) -> Content {
    let content = scraped(&node.http);
    assert_same("by samples and by chunks", &remote_read::read(&node.http, None, NAMES), &content);
    content
}

fn histogram_count(content: &Content) -> usize {
    let named = |labels: &[(String, String)]| labels.iter().any(|(_, v)| v == "latency_seconds");
    content.iter().filter(|(labels, _)| named(labels)).map(|(_, samples)| samples.len()).sum()
}

#[test]
fn histograms_are_read_back_wherever_they_lie() {
    let root = tempfile::tempdir().unwrap();
    let mut ringest = start_node(root.path(), &[]);
    let target = Target::start();
    let writer = Prometheus::start(
        &root.path().join("writer"),
        &format!(
            "global: {{scrape_interval: 100ms, scrape_timeout: 100ms}}\n\
             scrape_configs:\n\
             - job_name: target\n  static_configs: [{{targets: ['{}']}}]\n\
             remote_write:\n\
             - url: http://{}/api/v1/receive\n  send_native_histograms: true\n\
             \x20 queue_config: {{batch_send_deadline: 1s}}\n",
            target.address, ringest.remote_write,
        ),
        &["--enable-feature=native-histograms"],
    );
    wait_until("some histograms, over a reset", || histogram_count(&scraped(&ringest.http)) > 60);
    target.stop();
    wait_until("markers end both series", || {
        let is_ended = |samples: &remote_read::Samples| {
            samples.last().is_some_and(|(_, value)| *value == STALE)
        };
        let content = scraped(&ringest.http);
        content.len() == 2 && content.values().all(is_ended)
    });
    let written = scraped(writer.address());
    assert!(histogram_count(&written) > 60);
    // What was scraped last may be on its way still.
    let _ = wait_for(|| (scraped(&ringest.http) == written).then_some(()));
    assert_same("what is read back", &served(&ringest), &written);
    writer.stop();

    let dir = ringest.data.join(DEFAULT_TENANT);
    let opens_in_prometheus = |what: &str| {
        let copy = root.path().join(format!("copy-{what}"));
        copy_dir(&dir, &copy);
        let flags = ["--enable-feature=native-histograms"];
        let prometheus = Prometheus::start(&copy, NO_TARGETS, &flags);
        assert_eq!(prometheus.complaints(), [""; 0], "{what}");
        assert_same(what, &scraped(prometheus.address()), &written);
        prometheus.stop();
    };
    ringest.kill();
    opens_in_prometheus("log");
    ringest.start();
    assert_same("what we serve after a kill", &served(&ringest), &written);
    // At its end the head goes into a block.
    ringest.stop();
    let is_block = |entry: fs::DirEntry| entry.path().join("index").is_file();
    assert!(fs::read_dir(&dir).unwrap().map(Result::unwrap).any(is_block), "a block was cut");
    opens_in_prometheus("block");
    ringest.start();
    assert_same("what we serve of a block", &served(&ringest), &written);
    ringest.stop();
}
