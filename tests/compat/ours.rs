//! Where our answer is not the recorded one, and why. Only what the recordings' own `accept` does
//! not allow stands here, and each entry is either a betterment that the compatibility page lists
//! or something that is not there yet.

use serde_json::{Value, json};

use crate::suite::Step;

pub(crate) struct Exception {
    pub suite: &'static str,
    pub step: &'static str,
    pub instead: Instead,
    pub reason: &'static str,
}

pub(crate) enum Instead {
    /// Keys of `expect` with other values, in JSON; a `null` takes the key out.
    Expect(&'static str),
    /// The series of these tenants are neither asked for nor expected.
    WithoutTenants(&'static [&'static str]),
}

use Instead::{Expect, WithoutTenants};

const TOLD: &str = "what cannot be stored is told, not dropped in silence";
const EMPTY_VALUES: &str = "a label without a value is left out, and its series is stored";
const NO_PROFILES: &str = "profiles are not served yet";
const ONE_FORMAT: &str = "the metrics page is text whatever is asked for, which HTTP allows";
const LOWEST_TIME: &str = "a sample at the lowest time is refused alone, not everything after it";
const CONTRADICTION: &str =
    "a histogram that contradicts itself is refused by name, not without a word";
const OTHER_WRITES: &str = "it holds what Thanos takes and we need not, and the reverse";

const fn not_found(suite: &'static str, step: &'static str, reason: &'static str) -> Exception {
    let instead = Expect(r#"{"status": 404, "headers": {}, "found": null}"#);
    Exception { suite, step, instead, reason }
}

const fn text_metrics(step: &'static str, found: &'static str) -> Exception {
    Exception { suite: "ops-port", step, instead: Expect(found), reason: ONE_FORMAT }
}

const OTHER_VERSION: &str = "a body of which nothing is understood is not answered as stored";

const fn told(step: &'static str) -> Exception {
    let instead = Expect(r#"{"status": 409, "headers": {}, "body": null}"#);
    Exception { suite: "otlp", step, instead, reason: TOLD }
}

const fn without_empty(
    suite: &'static str,
    step: &'static str,
    instead: &'static str,
) -> Exception {
    Exception { suite, step, instead: Expect(instead), reason: EMPTY_VALUES }
}

const NO_STATUS: &str = "TSDB statistics are not served over HTTP yet";
const NO_GO: &str = "there is no Go runtime to tell of";

/// What probes of all interfaces find of Go and the status page. The steps of a
/// round of probes have a prefix.
macro_rules! probes {
    ($($suite:literal $prefix:literal),*) => {
        &[$(
            Exception {
                suite: $suite,
                step: concat!($prefix, "metrics"),
                instead: Expect(r#"{"found": false}"#),
                reason: NO_GO,
            },
            not_found($suite, concat!($prefix, "status"), NO_STATUS),
            not_found($suite, concat!($prefix, "status-all"), NO_STATUS),
        )*]
    };
}

pub(crate) const PROBES: &[Exception] = probes!(
    "mode-ingestor" "",
    "mode-router" "",
    "mode-routeringestor" "",
    "not-ready-ingestor" "before/",
    "not-ready-ingestor" "after/",
    "not-ready-routeringestor" "before/",
    "not-ready-routeringestor" "after/"
);

const TENANT_FIRST: &str = "a tenant's name is judged before its series are read";
const OPENING: &str = "a tenant that is opening is refused at once, and does not back off the node";
const OWN_DIRECTORIES: &str =
    "a tenant is made by its first sample, and no name makes a directory elsewhere";

const OWN_NAMES: &str = "Thanos makes a log of this name in the data directory itself for a write \
                         without a tenant, so no tenant may have it";

pub(crate) const EXCEPTIONS: &[Exception] = &[
    Exception {
        suite: "rw1-tenant-header",
        step: "wal",
        instead: Expect(r#"{"status": 400, "body": null}"#),
        reason: OWN_NAMES,
    },
    Exception {
        suite: "rw1-tenant-header",
        step: "all",
        instead: WithoutTenants(&["wal"]),
        reason: OWN_NAMES,
    },
    Exception {
        suite: "tls-write-no-ca",
        step: "plain-http",
        instead: Expect(
            r#"{"status": null, "headers": null, "body": null, "closed": "by an alert"}"#,
        ),
        reason: "a sender drops what is answered with 400, and tries again when it is closed",
    },
    Exception {
        suite: "not-ready-ingestor",
        step: "before/grpc-write-stuck",
        instead: Expect(r#"{"code": 13, "closed": null}"#),
        reason: OPENING,
    },
    Exception {
        suite: "grpc-write-routeringestor",
        step: "invalid-histogram",
        instead: Expect(r#"{"code": 6, "replies": []}"#),
        reason: CONTRADICTION,
    },
    Exception {
        suite: "grpc-write-routeringestor",
        step: "bad-series-in-tuple",
        instead: Expect(r#"{"code": 3, "headers": {}}"#),
        reason: TENANT_FIRST,
    },
    Exception {
        suite: "grpc-write-routeringestor",
        step: "dirs",
        instead: Expect(
            r#"{"files": ["a/", "b/", "c/", "default-tenant/", "e/", "h/", "k/", "l/", "n/",
                          "snap/", "unk/"]}"#,
        ),
        reason: OWN_DIRECTORIES,
    },
    Exception {
        suite: "grpc-write-ingestor",
        step: "invalid-histogram",
        instead: Expect(r#"{"code": 6, "replies": []}"#),
        reason: CONTRADICTION,
    },
    Exception {
        suite: "grpc-write-ingestor",
        step: "bad-series-in-tuple",
        instead: Expect(r#"{"code": 3, "headers": {}}"#),
        reason: TENANT_FIRST,
    },
    Exception {
        suite: "grpc-write-ingestor",
        step: "dirs",
        instead: Expect(
            r#"{"files": ["a/", "b/", "big/", "c/", "default-tenant/", "e/", "gz/", "h/", "k/",
                          "l/", "n/", "snap/", "unk/"]}"#,
        ),
        reason: OWN_DIRECTORIES,
    },
    Exception {
        suite: "rw1-transport",
        step: "pb-group",
        instead: Expect(r#"{"status": 400, "headers": {}, "body": null}"#),
        reason: OTHER_VERSION,
    },
    Exception {
        suite: "rw1-samples",
        step: "min-int64/1",
        instead: Expect(r#"{"status": 200, "headers": {}, "body": ""}"#),
        reason: LOWEST_TIME,
    },
    Exception {
        suite: "rw1-samples",
        step: "min-int64/read",
        instead: Expect(
            r#"{"series": [{
                "labels": [["__name__", "n"], ["replica", "r0"], ["tenant_id", "min-int64"]],
                "chunks": [{"type": "XOR", "points": [[1700000000000, 2.0]]}]
            }]}"#,
        ),
        reason: LOWEST_TIME,
    },
    Exception {
        suite: "rw1-transport",
        step: "everything",
        instead: WithoutTenants(&[
            "t-snappy-copy-offset-zero",
            "t-path-0",
            "t-version-2.0.0-spaced-type",
        ]),
        reason: OTHER_WRITES,
    },
    Exception {
        suite: "rw1-transport",
        step: "path-8",
        instead: Expect(r#"{"status": 400, "headers": {}, "body": null}"#),
        reason: "OTLP is served where exporters send it, too, and the body is none",
    },
    told("gauge-unsorted-times"),
    told("gauge-duplicate-points"),
    told("exp-histogram-count-mismatch"),
    told("two-resources-same-job"),
    without_empty("otlp", "resource-08", r#"{"status": 200, "headers": {}, "body": ""}"#),
    without_empty(
        "otlp",
        "resource-08/read",
        r#"{"series": [{
            "labels": [["__name__", "g"], ["replica", "r0"], ["tenant_id", "resource-08"]],
            "chunks": [{"type": "XOR", "points": [[1700000000000, 1.0]]}]
        }]}"#,
    ),
    without_empty("otlp-promote", "empty", r#"{"status": 200, "headers": {}, "body": ""}"#),
    without_empty(
        "otlp-promote",
        "empty/read",
        r#"{"series": [
            {"labels": [["__name__", "g"], ["job", "x"], ["replica", "r0"],
                        ["service_name", "x"], ["tenant_id", "empty"]],
             "chunks": [{"type": "XOR", "points": [[1700000000000, 1.0]]}]},
            {"labels": [["__name__", "target_info"], ["job", "x"], ["replica", "r0"],
                        ["tenant_id", "empty"]],
             "chunks": [{"type": "XOR", "points": [[1700000000000, 1.0]]}]}
        ]}"#,
    ),
    Exception {
        suite: "rw2",
        step: "type-09",
        instead: Expect(r#"{"status": 400, "headers": {}, "body": null}"#),
        reason: OTHER_VERSION,
    },
    not_found("ops-port", "get-09", NO_PROFILES),
    not_found("ops-port", "get-10", NO_PROFILES),
    not_found("ops-port", "profile-00", NO_PROFILES),
    not_found("ops-port", "profile-01", NO_PROFILES),
    not_found("ops-port", "profile-02", NO_PROFILES),
    not_found("ops-port", "profile-03", NO_PROFILES),
    not_found("ops-port", "profile-04", NO_PROFILES),
    not_found("ops-port", "profile-05", NO_PROFILES),
    not_found("ops-port", "profile-06", NO_PROFILES),
    not_found("ops-port", "profile-07", NO_PROFILES),
    not_found("ops-port", "profile-08", NO_PROFILES),
    not_found("ops-port", "profile-09", NO_PROFILES),
    not_found("ops-port", "profile-10", NO_PROFILES),
    not_found("ops-port", "profile-11", NO_PROFILES),
    not_found("ops-port", "profile-12", NO_PROFILES),
    not_found("ops-port", "profile-13", NO_PROFILES),
    text_metrics("metrics-accept-1", r##"{"headers": {}, "found": false}"##),
    text_metrics("metrics-accept-2", r#"{"headers": {}}"#),
    text_metrics("metrics-gzip", r#"{"headers": {}}"#),
];

/// Whether only we have such a file, in tenants' directories.
pub(crate) fn is_own_file(path: &str) -> bool {
    path.ends_with("/ringest.names")
}

/// Makes of a recorded step what we expect of ourselves.
pub(crate) fn apply(suite: &str, step: &mut Step) {
    if matches!(suite, "grpc-write-ingestor" | "grpc-write-routeringestor")
        && let Some(series) = step.0.pointer_mut("/expect/series").and_then(Value::as_array_mut)
    {
        // A tenant that is refused here, as HTTP refuses it.
        let refused = json!(["tenant_id", "x/y"]);
        series.retain(|series| {
            !series["labels"].as_array().is_some_and(|labels| labels.contains(&refused))
        });
    }
    let Some(exception) = known_exception(suite, step) else { return };
    match exception.instead {
        WithoutTenants(tenants) => {
            for tenant in tenants {
                let matcher = json!({"type": "NEQ", "name": "tenant_id", "value": tenant});
                step.0["matchers"].as_array_mut().expect("matchers").push(matcher);
                let label = json!(["tenant_id", tenant]);
                let is_other =
                    |series: &Value| !series["labels"].as_array().expect("labels").contains(&label);
                let expected = step.0["expect"]["series"].as_array_mut();
                expected.expect("series of a series step").retain(is_other);
            }
        }
        Expect(other) => {
            let other: Value = serde_json::from_str(other).expect("JSON of an exception");
            for (key, value) in other.as_object().expect("keys of expect") {
                let expect = step.0["expect"].as_object_mut().expect("expect is an object");
                match value {
                    Value::Null => expect.shift_remove(key),
                    value => expect.insert(key.clone(), value.clone()),
                };
            }
        }
    }
}

/// The reason why a step's answer is not the recorded one, for a failure's report.
pub(crate) fn reason(suite: &str, step: &Step) -> Option<&'static str> {
    known_exception(suite, step).map(|exception| exception.reason)
}

fn known_exception(suite: &str, step: &Step) -> Option<&'static Exception> {
    let mut all = EXCEPTIONS.iter().chain(PROBES);
    all.find(|known| known.suite == suite && known.step == step.id())
}
