//! A registry of metric families in Prometheus' text format.
//!
//! Our own because the names, types and labels of Thanos' page are the contract (summaries and
//! counters without `_total` among them), which no crate we tried prints as they are.
//!
//! A handle ([`Counter`], [`Gauge`], …) is taken once, in a constructor, and costs one relaxed
//! atomic operation per use. Families are registered once; taking the same labels twice gives the
//! same handle.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

pub mod budgets;
pub mod build;
pub mod process;

/// The tenant label under which the lines of tenants are summed that have none of their own. No
/// tenant's name has a slash.
pub const OTHER_TENANTS: &str = "/other";

/// The label that names a tenant.
pub(crate) const TENANT: &str = "tenant";

/// All families of one process.
#[derive(Clone, Default)]
pub struct Registry {
    families: Arc<Mutex<BTreeMap<String, Arc<Family>>>>,
    tenants: Arc<TenantLines>,
    /// Run before each exposition, to bring gauges up to date.
    collectors: Arc<Mutex<Vec<Collector>>>,
}

type Collector = Box<dyn Fn() + Send + Sync>;

/// The tenants that have lines of their own: whoever comes first, as many as there may be.
struct TenantLines {
    max: usize,
    own: Mutex<HashSet<String>>,
}

impl Default for TenantLines {
    fn default() -> TenantLines {
        TenantLines { max: usize::MAX, own: Mutex::default() }
    }
}

impl TenantLines {
    /// Whether a tenant has lines of its own, which it gets if there is room.
    fn admit(&self, tenant: &str) -> bool {
        let mut own = self.own.lock();
        let is_reserved = tenant.contains('/');
        is_reserved
            || own.contains(tenant)
            || (own.len() < self.max && own.insert(tenant.to_owned()))
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
    Summary,
}

struct Family {
    kind: Kind,
    help: &'static str,
    label_names: Vec<&'static str>,
    /// Upper bounds, without +Inf. Empty but for histograms.
    bounds: Vec<f64>,
    children: Mutex<BTreeMap<Vec<String>, Child>>,
    tenants: Arc<TenantLines>,
    /// Of tenants without lines of their own.
    rest: Mutex<BTreeMap<Vec<String>, Child>>,
}

#[derive(Clone)]
enum Child {
    Value(Arc<AtomicU64>),
    Distribution(Arc<Distribution>),
}

struct Distribution {
    bounds: Vec<f64>,
    /// One per bound and one for +Inf, each counting only its own bucket.
    buckets: Vec<AtomicU64>,
    sum: AtomicU64,
}

/// A float that only rises.
#[derive(Clone)]
pub struct Counter(Arc<AtomicU64>);

/// A float that is set.
#[derive(Clone, Default)]
pub struct Gauge(Arc<AtomicU64>);

/// One that a gauge counts.
pub struct Counted(Gauge);

/// Observations by bucket. Also serves as a summary without quantiles.
#[derive(Clone)]
pub struct Histogram(Arc<Distribution>);

/// A family with labels; `with` gives the handle of one label set.
#[derive(Clone)]
pub struct CounterVec(Arc<Family>);
#[derive(Clone)]
pub struct GaugeVec(Arc<Family>);
#[derive(Clone)]
pub struct HistogramVec(Arc<Family>);

impl Registry {
    pub fn new() -> Registry {
        Registry::default()
    }

    /// One in which so many tenants have lines of their own. Those of the others are summed under
    /// [`OTHER_TENANTS`], gauges too, of which some mean little as a sum.
    pub fn with_tenants_max(max: usize) -> Registry {
        let tenants = Arc::new(TenantLines { max, own: Mutex::default() });
        let registry = Registry { tenants: tenants.clone(), ..Registry::default() };
        let limit = registry.gauge(
            "ringest_metrics_tenants_max",
            "Tenants that have lines of their own on this page; those of others are summed.",
        );
        limit.set(max as f64);
        let used = registry
            .gauge("ringest_metrics_tenants", "Tenants that have lines of their own on this page.");
        registry.on_collect(move || used.set(tenants.own.lock().len() as f64));
        registry
    }

    /// Whether a tenant has lines of its own, which it gets if there is room.
    pub fn has_own_lines(&self, tenant: &str) -> bool {
        self.tenants.admit(tenant)
    }

    pub fn counter(&self, name: &str, help: &'static str) -> Counter {
        self.counter_vec(name, help, &[]).with(&[])
    }

    pub fn gauge(&self, name: &str, help: &'static str) -> Gauge {
        self.gauge_vec(name, help, &[]).with(&[])
    }

    pub fn histogram(&self, name: &str, help: &'static str, bounds: &[f64]) -> Histogram {
        self.histogram_vec(name, help, &[], bounds).with(&[])
    }

    pub fn counter_vec(
        &self,
        name: &str,
        help: &'static str,
        labels: &[&'static str],
    ) -> CounterVec {
        CounterVec(self.family(name, Kind::Counter, help, labels, &[]))
    }

    pub fn gauge_vec(&self, name: &str, help: &'static str, labels: &[&'static str]) -> GaugeVec {
        GaugeVec(self.family(name, Kind::Gauge, help, labels, &[]))
    }

    pub fn histogram_vec(
        &self,
        name: &str,
        help: &'static str,
        labels: &[&'static str],
        bounds: &[f64],
    ) -> HistogramVec {
        HistogramVec(self.family(name, Kind::Histogram, help, labels, bounds))
    }

    /// A summary with sum and count only.
    pub fn summary_vec(
        &self,
        name: &str,
        help: &'static str,
        labels: &[&'static str],
    ) -> HistogramVec {
        HistogramVec(self.family(name, Kind::Summary, help, labels, &[]))
    }

    /// Runs `collector` before each exposition.
    pub fn on_collect(&self, collector: impl Fn() + Send + Sync + 'static) {
        self.collectors.lock().push(Box::new(collector));
    }

    /// Drops every child whose label `name` has this value, for example those of a pruned tenant.
    pub fn remove(&self, name: &str, value: &str) {
        for family in self.families.lock().values() {
            if let Some(i) = family.label_names.iter().position(|label| *label == name) {
                family.children.lock().retain(|values, _| values[i] != value);
                family.rest.lock().retain(|values, _| values[i] != value);
            }
        }
        if name == TENANT {
            self.tenants.own.lock().remove(value);
        }
    }

    /// The page: every family that has a child, in order of names.
    pub fn expose(&self) -> String {
        for collector in self.collectors.lock().iter() {
            collector();
        }
        let families = self.families.lock().clone();
        let mut page = String::with_capacity(64 * 1024);
        for (name, family) in &families {
            family.expose(name, &mut page);
        }
        page
    }

    fn family(
        &self,
        name: &str,
        kind: Kind,
        help: &'static str,
        labels: &[&'static str],
        bounds: &[f64],
    ) -> Arc<Family> {
        let mut families = self.families.lock();
        let family = families.entry(name.to_owned()).or_insert_with(|| {
            Arc::new(Family {
                kind,
                help,
                label_names: labels.to_vec(),
                bounds: bounds.to_vec(),
                children: Mutex::default(),
                tenants: self.tenants.clone(),
                rest: Mutex::default(),
            })
        });
        assert!(
            family.kind == kind && family.label_names == labels,
            "metric {name} is registered twice with different types or labels"
        );
        family.clone()
    }
}

impl Family {
    fn child(&self, values: &[&str]) -> Child {
        assert_eq!(values.len(), self.label_names.len(), "one value per label name");
        let tenant = self.tenant_label().and_then(|i| values.get(i));
        let has_own_lines = tenant.is_none_or(|tenant| self.tenants.admit(tenant));
        let values: Vec<String> = values.iter().map(|value| (*value).to_owned()).collect();
        let mut children = if has_own_lines { self.children.lock() } else { self.rest.lock() };
        let child = children.entry(values).or_insert_with(|| match self.kind {
            Kind::Counter | Kind::Gauge => Child::Value(Arc::default()),
            Kind::Histogram | Kind::Summary => Child::Distribution(Arc::new(Distribution {
                bounds: self.bounds.clone(),
                buckets: (0..=self.bounds.len()).map(|_| AtomicU64::new(0)).collect(),
                sum: AtomicU64::new(0f64.to_bits()),
            })),
        });
        child.clone()
    }

    fn tenant_label(&self) -> Option<usize> {
        self.label_names.iter().position(|name| *name == TENANT)
    }

    fn value(&self, values: &[&str]) -> Arc<AtomicU64> {
        match self.child(values) {
            Child::Value(value) => value,
            Child::Distribution(_) => unreachable!("counters and gauges have one value"),
        }
    }

    fn expose(&self, name: &str, page: &mut String) {
        let children = self.children.lock();
        let rest = self.rest.lock();
        if children.is_empty() && rest.is_empty() {
            return;
        }
        let kind = match self.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
            Kind::Summary => "summary",
        };
        let help = self.help.replace('\\', "\\\\").replace('\n', "\\n");
        // Writing to a String cannot fail.
        let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}");
        let sums = self.sums(&rest, &children);
        for (values, child) in children.iter().filter(|(values, _)| !sums.contains_key(*values)) {
            self.expose_child(page, name, values, &Shown::of(child));
        }
        for (values, shown) in &sums {
            self.expose_child(page, name, values, shown);
        }
    }

    /// What tenants without lines of their own amount to, with what is counted for all of them.
    fn sums(
        &self,
        rest: &BTreeMap<Vec<String>, Child>,
        children: &BTreeMap<Vec<String>, Child>,
    ) -> BTreeMap<Vec<String>, Shown> {
        let mut sums: BTreeMap<Vec<String>, Shown> = BTreeMap::new();
        let Some(tenant) = self.tenant_label() else { return sums };
        for (values, child) in rest {
            let mut values = values.clone();
            if let Some(value) = values.get_mut(tenant) {
                OTHER_TENANTS.clone_into(value);
            }
            let shown = Shown::of(child);
            sums.entry(values).and_modify(|sum| sum.add(&shown)).or_insert(shown);
        }
        for (values, sum) in &mut sums {
            if let Some(child) = children.get(values) {
                sum.add(&Shown::of(child));
            }
        }
        sums
    }

    fn expose_child(&self, page: &mut String, name: &str, values: &[String], shown: &Shown) {
        let (buckets, sum) = match shown {
            Shown::Value(value) => return self.line(page, name, "", values, None, *value),
            Shown::Distribution { buckets, sum } => (buckets, *sum),
        };
        let mut count = 0;
        for (i, bucket) in buckets.iter().enumerate() {
            count += bucket;
            if self.kind == Kind::Histogram {
                let bound = self.bounds.get(i).copied().unwrap_or(f64::INFINITY);
                self.line(page, name, "_bucket", values, Some(bound), count as f64);
            }
        }
        self.line(page, name, "_sum", values, None, sum);
        self.line(page, name, "_count", values, None, count as f64);
    }

    fn line(
        &self,
        page: &mut String,
        name: &str,
        suffix: &str,
        values: &[String],
        le: Option<f64>,
        value: f64,
    ) {
        page.push_str(name);
        page.push_str(suffix);
        let mut separator = '{';
        for (label, value) in self.label_names.iter().zip(values) {
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(page, "{separator}{label}=\"{value}\"");
            separator = ',';
        }
        if let Some(le) = le {
            let _ = write!(page, "{separator}le=\"{}\"", Number(le));
            separator = ',';
        }
        if separator == ',' {
            page.push('}');
        }
        let _ = writeln!(page, " {}", Number(value));
    }
}

/// A metric as it was at a moment.
enum Shown {
    Value(f64),
    Distribution { buckets: Vec<u64>, sum: f64 },
}

impl Shown {
    fn of(child: &Child) -> Shown {
        match child {
            Child::Value(value) => Shown::Value(f64::from_bits(value.load(Ordering::Relaxed))),
            Child::Distribution(distribution) => {
                let buckets = distribution.buckets.iter();
                Shown::Distribution {
                    buckets: buckets.map(|bucket| bucket.load(Ordering::Relaxed)).collect(),
                    sum: f64::from_bits(distribution.sum.load(Ordering::Relaxed)),
                }
            }
        }
    }

    fn add(&mut self, other: &Shown) {
        match (self, other) {
            (Shown::Value(value), Shown::Value(more)) => *value += more,
            (
                Shown::Distribution { buckets, sum },
                Shown::Distribution { buckets: more, sum: more_sum },
            ) => {
                buckets.iter_mut().zip(more).for_each(|(bucket, more)| *bucket += more);
                *sum += more_sum;
            }
            // A family is of one kind.
            _ => {}
        }
    }
}

/// A float as Prometheus' text format writes it.
struct Number(f64);

impl std::fmt::Display for Number {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0 == f64::INFINITY {
            f.write_str("+Inf")
        } else if self.0 == f64::NEG_INFINITY {
            f.write_str("-Inf")
        } else {
            write!(f, "{}", self.0)
        }
    }
}

fn add_float(cell: &AtomicU64, delta: f64) {
    let add = |bits| Some((f64::from_bits(bits) + delta).to_bits());
    // The closure always gives a value, so this cannot fail.
    let _ = cell.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
}

impl Counter {
    pub fn inc(&self) {
        self.add(1);
    }

    pub fn add(&self, count: u64) {
        if count > 0 {
            add_float(&self.0, count as f64);
        }
    }

    /// For counters of seconds.
    pub fn add_duration(&self, duration: Duration) {
        add_float(&self.0, duration.as_secs_f64());
    }

    pub fn value(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }
}

impl Gauge {
    pub fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Ordering::Relaxed);
    }

    pub fn add(&self, delta: f64) {
        add_float(&self.0, delta);
    }

    pub fn value(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }

    /// Adds one until the guard is dropped.
    pub fn count(&self) -> Counted {
        self.add(1.0);
        Counted(self.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.add(-1.0);
    }
}

impl Histogram {
    pub fn observe(&self, value: f64) {
        let distribution = &*self.0;
        let bucket = distribution.bounds.partition_point(|bound| *bound < value);
        distribution.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        add_float(&distribution.sum, value);
    }

    pub fn count(&self) -> u64 {
        self.0.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).sum()
    }
}

impl CounterVec {
    pub fn with(&self, values: &[&str]) -> Counter {
        Counter(self.0.value(values))
    }
}

impl GaugeVec {
    pub fn with(&self, values: &[&str]) -> Gauge {
        Gauge(self.0.value(values))
    }
}

impl HistogramVec {
    pub fn with(&self, values: &[&str]) -> Histogram {
        match self.0.child(values) {
            Child::Distribution(distribution) => Histogram(distribution),
            Child::Value(_) => unreachable!("histograms and summaries are distributions"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_prometheus_text_format() {
        let registry = Registry::new();
        registry.counter("a_total", "A.").add(2);
        registry.gauge_vec("b", "B \\ \n.", &["tenant"]).with(&["x\"y"]).set(-1.5);
        let seconds =
            registry.histogram_vec("c_seconds", "C.", &["code"], &[0.1, 1.0]).with(&["200"]);
        seconds.observe(0.1);
        seconds.observe(5.0);
        registry.summary_vec("d", "D.", &[]).with(&[]).observe(3.0);
        registry.gauge_vec("never_used", "N.", &["x"]);
        let expected = "\
# HELP a_total A.
# TYPE a_total counter
a_total 2
# HELP b B \\\\ \\n.
# TYPE b gauge
b{tenant=\"x\\\"y\"} -1.5
# HELP c_seconds C.
# TYPE c_seconds histogram
c_seconds_bucket{code=\"200\",le=\"0.1\"} 1
c_seconds_bucket{code=\"200\",le=\"1\"} 1
c_seconds_bucket{code=\"200\",le=\"+Inf\"} 2
c_seconds_sum{code=\"200\"} 5.1
c_seconds_count{code=\"200\"} 2
# HELP d D.
# TYPE d summary
d_sum 3
d_count 1
";
        assert_eq!(registry.expose(), expected);
        registry.remove("tenant", "x\"y");
        assert!(!registry.expose().contains("tenant"));
    }

    #[test]
    fn tenants_beyond_the_cap_are_summed() {
        let registry = Registry::with_tenants_max(2);
        let requests = registry.counter_vec("requests", "R.", &["code", "tenant"]);
        let seconds = registry.histogram_vec("seconds", "S.", &["tenant"], &[1.0]);
        for (i, tenant) in ["b", "a", "c", "d", OTHER_TENANTS, "/unknown"].iter().enumerate() {
            requests.with(&["200", tenant]).add(1 << i);
            seconds.with(&[tenant]).observe(i as f64);
        }
        requests.with(&["503", "d"]).inc();
        let lines = |page: &str, name: &str| -> Vec<String> {
            page.lines().filter(|line| line.starts_with(name)).map(str::to_owned).collect()
        };
        let page = registry.expose();
        let expected = [
            "requests{code=\"200\",tenant=\"/unknown\"} 32",
            "requests{code=\"200\",tenant=\"a\"} 2",
            "requests{code=\"200\",tenant=\"b\"} 1",
            "requests{code=\"200\",tenant=\"/other\"} 28",
            "requests{code=\"503\",tenant=\"/other\"} 1",
        ];
        assert_eq!(lines(&page, "requests{"), expected);
        assert_eq!(
            lines(&page, "seconds_sum{tenant=\"/other\"}"),
            ["seconds_sum{tenant=\"/other\"} 9"]
        );
        assert_eq!(
            lines(&page, "seconds_count{tenant=\"/other\"}"),
            ["seconds_count{tenant=\"/other\"} 3"]
        );
        assert_eq!(
            lines(&page, "ringest_metrics_tenants"),
            ["ringest_metrics_tenants 2", "ringest_metrics_tenants_max 2",]
        );
        // One that goes makes room for one that comes.
        registry.remove("tenant", "a");
        assert!(registry.has_own_lines("e") && !registry.has_own_lines("f"));
    }

    #[test]
    fn the_same_labels_are_the_same_metric() {
        let registry = Registry::new();
        registry.counter_vec("n", "N.", &["l"]).with(&["1"]).inc();
        let again = registry.counter_vec("n", "N.", &["l"]).with(&["1"]);
        again.inc();
        assert_eq!(again.value(), 2.0);
    }
}
