//! Real senders write, real readers read back.

use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::programs::{Prometheus, debian, start_node};
use crate::support::node::DEFAULT_TENANT;
use crate::support::ports;
use crate::support::process::{Ends, Process, wait_for, wait_until};
use crate::support::remote_read::{self, STALE};

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// A node_exporter with next to nothing to export, on `address`.
fn start_target(address: &str, log: &Path) -> Process {
    let mut command = debian("prometheus-node-exporter", "prometheus-node-exporter");
    command
        .arg(format!("--web.listen-address={address}"))
        .args(["--collector.disable-defaults", "--collector.loadavg"])
        .args(["--collector.uname", "--web.disable-exporter-metrics"]);
    Process::start("node_exporter", &mut command, log, Ends::WhenTold)
}

#[test]
fn prometheus_reads_back_what_prometheus_wrote() {
    let root = tempfile::tempdir().unwrap();
    let ringest = start_node(root.path(), &[]);
    let target = format!("127.0.0.1:{}", ports::free(1)[0]);
    let exporter = start_target(&target, &root.path().join("exporter.log"));
    let writer = Prometheus::start(
        &root.path().join("writer"),
        &format!(
            "global: {{scrape_interval: 1s}}\n\
             scrape_configs:\n\
             - job_name: node\n  static_configs: [{{targets: ['{target}']}}]\n\
             - job_name: ringest\n  static_configs: [{{targets: ['{}']}}]\n\
             remote_write:\n\
             - url: http://{}/api/v1/receive\n  queue_config: {{batch_send_deadline: 1s}}\n",
            ringest.http, ringest.remote_write,
        ),
        &[],
    );
    let reader = Prometheus::start(
        &root.path().join("reader"),
        &format!(
            "global: {{}}\n\
             remote_read:\n\
             - url: http://{}/api/v1/read\n  read_recent: true\n  filter_external_labels: false\n",
            ringest.http,
        ),
        &[],
    );

    let scrapes = "sum(count_over_time(up[5m]))";
    wait_until("a few scrapes of both targets are read back", || {
        let result = reader.query(scrapes, now()).unwrap_or_default();
        let count = result.first().and_then(|series| series["value"][1].as_str()?.parse().ok());
        count.is_some_and(|count: u32| count >= 6)
    });
    let alive = now();
    drop(exporter);
    wait_until("the dead target's series are stale in what is read back", || {
        let at = now();
        let found = |query: &str| reader.query(query, at).map_or(usize::MAX, |found| found.len());
        found("node_load1") == 0 && found("up{job=\"node\"} == 0") == 1
    });

    for query in ["{job=\"node\"}[5m]", "{job=\"ringest\"}[5m]", "up", "rate(node_load1[1m])"] {
        let written = writer.query(query, alive).expect("an answer of the writer");
        assert!(!written.is_empty(), "{query} finds nothing");
        // The last samples before `alive` may be on their way still.
        let mut read = Vec::new();
        let is_same = wait_for(|| {
            read = reader.query(query, alive)?;
            (read == written).then_some(())
        });
        let differing = written.iter().zip(&read).find(|(written, read)| written != read);
        assert_eq!(read.len(), written.len(), "series of {query}, {differing:#?}");
        assert!(is_same.is_some(), "{query}: written and read: {differing:#?}");
    }
    let own = reader.query("thanos_build_info", alive).expect("an answer of the reader");
    assert_eq!(own.len(), 1, "our own metrics: {own:?}");

    let of_target = remote_read::read(&ringest.http, None, "node_.+");
    assert!(of_target.len() > 3, "{of_target:?}");
    for (labels, samples) in &of_target {
        assert_eq!(samples.last().map(|sample| sample.1), Some(STALE), "{labels:?}");
    }
}

#[test]
fn vmagent_writes_for_a_tenant_and_only_that_tenant_reads_it() {
    let root = tempfile::tempdir().unwrap();
    let ringest = start_node(root.path(), &[]);
    let config = root.path().join("vmagent.yml");
    let text = format!(
        "global: {{scrape_interval: 1s}}\n\
         scrape_configs:\n\
         - job_name: ringest\n  static_configs: [{{targets: ['{}']}}]\n",
        ringest.http,
    );
    fs::write(&config, text).unwrap();
    let address = format!("127.0.0.1:{}", ports::free(1)[0]);
    let mut command = debian("vmagent", "victoria-metrics");
    command
        .arg(format!("-httpListenAddr={address}"))
        .arg(format!("-promscrape.config={}", config.display()))
        .arg(format!("-remoteWrite.url=http://{}/api/v1/receive", ringest.remote_write))
        .arg("-remoteWrite.headers=THANOS-TENANT: team-a")
        .arg(format!("-remoteWrite.tmpDataPath={}", root.path().join("vmagent").display()));
    let vmagent =
        Process::start("vmagent", &mut command, &root.path().join("vmagent.log"), Ends::WhenTold);

    let mut content = remote_read::Content::new();
    let arrived = wait_for(|| {
        content = remote_read::read(&ringest.http, Some("team-a"), "up|thanos_build_info");
        let is_up = |samples: &remote_read::Samples| {
            samples.len() >= 3 && samples.iter().all(|sample| sample.1 == 1f64.to_bits())
        };
        (content.len() == 2 && content.values().all(is_up)).then_some(())
    });
    assert!(arrived.is_some(), "{content:?}\n{}", vmagent.log());
    for labels in content.keys() {
        assert!(labels.contains(&("job".to_owned(), "ringest".to_owned())), "{labels:?}");
    }

    assert!(ringest.data.join("team-a").join("wal").is_dir());
    for other in [None, Some("team-b"), Some(DEFAULT_TENANT)] {
        assert_eq!(remote_read::read(&ringest.http, other, ".+"), [].into(), "{other:?}");
    }
    // Reading makes no directories.
    assert!(!ringest.data.join("team-b").exists());
    let page = ringest.get("/metrics").text();
    let series = "prometheus_tsdb_head_series{tenant=\"team-a\"}";
    assert!(page.contains(series), "{series} is not in {page}");
}
