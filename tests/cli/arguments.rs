//! Lists of arguments as public manifests, charts, operators and guides have them: those whose
//! functions there are are taken, with their buckets.

use std::collections::BTreeMap;
use std::fs;

use ringest::config::Config;
use ringest::config::command_line::{Invocation, parse};
use ringest::disk::{Disk, SystemDisk};
use ringest::metrics::Registry;
use ringest::objstore;
use serde::Deserialize;

const RECORDED: &str = include_str!("../data/flags/arguments.json");

#[derive(Deserialize)]
struct Recorded {
    /// Content by name.
    files: BTreeMap<String, String>,
    lists: Vec<List>,
}

#[derive(Deserialize)]
struct List {
    id: String,
    args: Vec<String>,
}

/// Flags that lists are refused for, since what they ask for is still to come.
const STILL_TO_COME: [&str; 8] = [
    "receive.limits-config",
    "receive.relabel-config",
    "receive.split-tenant-label-name",
    "store.limits.request-samples",
    "store.limits.request-series",
    "tracing.config",
    "tsdb.max-exemplars",
    "tsdb.out-of-order.time-window",
];

#[test]
fn what_manifests_say_of_buckets_is_taken() {
    let recorded: Recorded = serde_json::from_str(RECORDED).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in &recorded.files {
        fs::write(dir.path().join(name), content).unwrap();
    }
    let (mut with_bucket, mut refused) = (0, 0);
    for List { id, args } in &recorded.lists {
        let place = |arg: &String| {
            arg.replace("@D@", dir.path().to_str().unwrap()).replace("@IP@", "127.0.0.1")
        };
        let words = ["receive".to_owned()].into_iter().chain(args.iter().map(place));
        let Ok(Invocation::Receive(values)) = parse(words.map(Into::into)) else {
            panic!("{id}: not understood");
        };
        match Config::from_values(&values, "host-1") {
            Ok(config) => {
                let Some(shipping) = config.shipping else { continue };
                with_bucket += 1;
                let disk: std::sync::Arc<dyn Disk> = std::sync::Arc::new(SystemDisk);
                let bucket = objstore::open(&shipping.bucket, &disk, &Registry::new()).unwrap();
                assert_eq!(bucket.name(), "thanos", "{id}");
            }
            Err(faults) => {
                refused += 1;
                for error in &faults.errors {
                    let error = error.to_string();
                    let known = STILL_TO_COME.iter().any(|flag| {
                        error.starts_with(&format!("--{flag} is not supported by this version"))
                            || error.starts_with(&format!("--{flag}-file is not supported"))
                    });
                    assert!(known, "{id}: {error}");
                }
            }
        }
    }
    // A list whose function comes moves from the one to the other.
    assert!(with_bucket >= 10 && with_bucket + refused <= recorded.lists.len(), "{with_bucket}");
}
