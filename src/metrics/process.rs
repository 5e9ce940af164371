//! What the kernel says about this process, under the names that Prometheus' client libraries use,
//! and the build.

#![cfg_attr(not(test), expect(clippy::disallowed_methods, reason = "the kernel's own files"))]

use std::fs;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::{Resource, getrlimit};

use crate::log;
use crate::metrics::build::{BRANCH, REVISION};
use crate::metrics::{Counter, Gauge, Registry};

/// Keeps `process_*` and `thanos_build_info` on the page. What `/proc` does not tell (on a system
/// without it) keeps its last value.
pub fn register(registry: &Registry) {
    let labels = ["branch", "goarch", "goos", "goversion", "revision", "tags", "version"];
    let build = registry.gauge_vec(
        "thanos_build_info",
        "What this program was built from; the value is always 1.",
        &labels,
    );
    let (os, version) = (std::env::consts::OS, env!("CARGO_PKG_VERSION"));
    build.with(&[BRANCH, go_arch(), os, "", REVISION, "", version]).set(1.0);

    let process = ProcessMetrics::new(registry);
    registry.on_collect(move || process.collect());
    show_dropped_lines(registry);
}

/// The log cannot tell by itself that nobody reads it.
fn show_dropped_lines(registry: &Registry) {
    let shown = registry.counter(
        "ringest_log_lines_dropped_total",
        "Log lines that were dropped since standard error or the journal did not take them.",
    );
    let counted = Mutex::new(0);
    registry.on_collect(move || {
        let (mut counted, dropped) = (counted.lock(), log::dropped_lines());
        shown.add(dropped.saturating_sub(*counted));
        *counted = dropped;
    });
}

/// The architecture as Go calls it, which is what dashboards know.
fn go_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

struct ProcessMetrics {
    cpu: Counter,
    received: Counter,
    transmitted: Counter,
    resident: Gauge,
    virtual_memory: Gauge,
    virtual_memory_max: Gauge,
    open_fds: Gauge,
    max_fds: Gauge,
    /// What the counters, which only take increases, have counted.
    counted: Mutex<Totals>,
}

/// Totals that the kernel keeps.
#[derive(Clone, Copy, Default)]
struct Totals {
    cpu: Duration,
    /// Bytes of the process's network namespace.
    received: u64,
    transmitted: u64,
}

impl ProcessMetrics {
    fn new(registry: &Registry) -> ProcessMetrics {
        let gauge = |name, help| registry.gauge(name, help);
        let counter = |name, help| registry.counter(name, help);
        let started = gauge("process_start_time_seconds", "Start of the process, Unix time.");
        if let Some(start) = start_time_seconds(&read("/proc/self/stat"), &read("/proc/stat")) {
            started.set(start);
        }
        ProcessMetrics {
            cpu: counter("process_cpu_seconds_total", "User and system CPU time."),
            received: counter(
                "process_network_receive_bytes_total",
                "Bytes received over the network, by all of the network namespace.",
            ),
            transmitted: counter(
                "process_network_transmit_bytes_total",
                "Bytes sent over the network, by all of the network namespace.",
            ),
            resident: gauge("process_resident_memory_bytes", "Resident memory."),
            virtual_memory: gauge("process_virtual_memory_bytes", "Virtual memory."),
            virtual_memory_max: gauge(
                "process_virtual_memory_max_bytes",
                "Virtual memory that the process may have, -1 for no limit.",
            ),
            open_fds: gauge("process_open_fds", "Open file descriptors."),
            max_fds: gauge("process_max_fds", "File descriptors that the process may have open."),
            counted: Mutex::default(),
        }
    }

    fn collect(&self) {
        self.count(Totals::now());
        if let Some((virtual_pages, resident_pages)) = memory_pages(&read("/proc/self/statm")) {
            let page_bytes = rustix::param::page_size() as f64;
            self.virtual_memory.set(virtual_pages as f64 * page_bytes);
            self.resident.set(resident_pages as f64 * page_bytes);
        }
        if let Ok(entries) = fs::read_dir("/proc/self/fd") {
            // One of them is the descriptor that lists them.
            self.open_fds.set(entries.count().saturating_sub(1) as f64);
        }
        let limit = |resource| getrlimit(resource).current.map_or(-1.0, |limit| limit as f64);
        self.max_fds.set(limit(Resource::Nofile));
        self.virtual_memory_max.set(limit(Resource::As));
    }

    fn count(&self, totals: Totals) {
        let mut counted = self.counted.lock();
        self.cpu.add_duration(totals.cpu.saturating_sub(counted.cpu));
        self.received.add(totals.received.saturating_sub(counted.received));
        self.transmitted.add(totals.transmitted.saturating_sub(counted.transmitted));
        *counted = Totals {
            cpu: totals.cpu.max(counted.cpu),
            received: totals.received.max(counted.received),
            transmitted: totals.transmitted.max(counted.transmitted),
        };
    }
}

impl Totals {
    fn now() -> Totals {
        let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        let netstat = read("/proc/self/net/netstat");
        Totals {
            cpu: Duration::try_from(cpu).unwrap_or_default(),
            received: netstat_value(&netstat, "IpExt:", "InOctets").unwrap_or_default(),
            transmitted: netstat_value(&netstat, "IpExt:", "OutOctets").unwrap_or_default(),
        }
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Virtual and resident pages, the first two numbers of `statm`.
fn memory_pages(statm: &str) -> Option<(u64, u64)> {
    let mut numbers = statm.split_whitespace();
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Boot time of the machine plus the process's start, the 22nd field of its `stat`, in ticks.
fn start_time_seconds(process_stat: &str, machine_stat: &str) -> Option<f64> {
    // The second field is the program's name in brackets, which may hold anything.
    let (_, fields) = process_stat.rsplit_once(')')?;
    let ticks: f64 = fields.split_whitespace().nth(19)?.parse().ok()?;
    let boot = machine_stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    let boot: f64 = boot.trim().parse().ok()?;
    Some(boot + ticks / rustix::param::clock_ticks_per_second() as f64)
}

/// A value of `netstat`, where a line of names stands above a line of values.
fn netstat_value(netstat: &str, protocol: &str, name: &str) -> Option<u64> {
    let mut lines = netstat.lines().filter(|line| line.starts_with(protocol));
    let (names, values) = (lines.next()?, lines.next()?);
    let position = names.split_whitespace().position(|column| column == name)?;
    values.split_whitespace().nth(position)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_read_by_field() {
        let stat = format!("7 (a ) b) S {} 250 0", "0 ".repeat(18).trim());
        let start = start_time_seconds(&stat, "cpu 1\nbtime 1000\n");
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        assert_eq!(start, Some(1000.0 + 250.0 / ticks));
        assert_eq!(start_time_seconds("", ""), None);
        assert_eq!(memory_pages("3 2 1"), Some((3, 2)));
        assert_eq!(memory_pages("x"), None);
        let netstat = "TcpExt: InOctets\nTcpExt: 1\nIpExt: A InOctets\nIpExt: 5 6\n";
        assert_eq!(netstat_value(netstat, "IpExt:", "InOctets"), Some(6));
        assert_eq!(netstat_value(netstat, "IpExt:", "OutOctets"), None);
    }

    #[test]
    fn counters_follow_totals_and_never_fall() {
        let registry = Registry::new();
        let metrics = ProcessMetrics::new(&registry);
        for received in [10, 25, 5] {
            metrics.count(Totals { received, ..Totals::default() });
        }
        assert_eq!(metrics.received.value(), 25.0);
    }

    #[test]
    fn the_page_tells_of_this_process() {
        let registry = Registry::new();
        register(&registry);
        let page = registry.expose();
        let value = |name: &str| -> f64 {
            let line = page.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap();
            line.rsplit(' ').next().unwrap().parse().unwrap()
        };
        assert!(value("process_cpu_seconds_total") > 0.0);
        assert!(value("process_resident_memory_bytes") > 4096.0);
        assert!(value("process_open_fds") > 0.0);
        assert!(value("process_max_fds") >= value("process_open_fds"));
        assert!(value("process_start_time_seconds") > 1e9);
        assert!(page.contains("thanos_build_info{branch="), "{page}");
    }
}
