use std::collections::HashMap;
use std::ffi::OsString;

use std::path::PathBuf;
use std::time::Duration;

use http::HeaderName;

use super::*;
use crate::config::command_line::{Invocation, parse};
use crate::config::flags::{FLAGS, Kind, Support};
use crate::log::{LogFormat, LogLevel};
use crate::tsdb::options::DbOptions;
use crate::tsdb::wal::{Compression, SyncPolicy};

fn config(flags: &[&str]) -> Result<Config, Faults> {
    let words = ["receive"].iter().chain(flags).map(OsString::from);
    match parse(words) {
        Ok(Invocation::Receive(values)) => Config::from_values(&values, "host-1"),
        other => panic!("{flags:?}: {other:?}"),
    }
}

#[test]
fn without_flags_everything_has_its_default() {
    let config = config(&[]).unwrap();
    assert_eq!(config.http.address.to_string(), "0.0.0.0:10902");
    assert_eq!(config.http.grace_period, Duration::from_secs(120));
    assert_eq!(config.grpc.connection_age_max, Some(Duration::from_secs(3600)));
    assert_eq!(config.tenancy.tenants.default_tenant().as_str(), "default-tenant");
    assert_eq!(config.storage.dir, PathBuf::from("./data"));
    assert_eq!(config.storage.labels, [("replica".to_owned(), "host-1".to_owned())]);
    assert!(config.notices.iter().any(|notice| notice.text.contains("replica=\"host-1\"")));

    let (db, default) = (config.storage.db, DbOptions::default());
    assert_eq!(db.block_range, default.block_range);
    assert_eq!(db.wal_compression, default.wal_compression);
    assert_eq!(db.wal_sync, default.wal_sync);
    assert_eq!(db.no_lockfile, default.no_lockfile);
    assert_eq!(db.too_far_in_future, default.too_far_in_future);
    assert_eq!(db.series_max, default.series_max);
}

#[test]
fn settings_arrive_where_they_are_used() {
    let config = config(&[
        "--http-grace-period=0",
        "--grpc-grace-period=-1h",
        "--grpc-server-max-connection-age=0s",
        "--tsdb.path=/d",
        "--label=a=\"1\"",
        "--label=b=`2`",
        "--no-tsdb.wal-compression",
        "--tsdb.wal-sync=always",
        "--tsdb.no-lockfile",
        "--tsdb.min-block-duration=1h",
        "--tsdb.too-far-in-future.time-window=5m",
        "--receive.tenant-header=X-Tenant",
        "--receive.label-bytes-max=1KB",
        "--receive.body-read-timeout=1.5s",
        "--no-receive.otlp-enable-target-info",
        "--receive.otlp-promote-resource-attributes=b,c",
        "--receive.otlp-promote-resource-attributes=a",
        "--receive.otlp-decoded-bytes-max=1MB",
        "--log.level=debug",
        "--log.format=json",
        "--debug.name=n",
    ])
    .unwrap();
    assert_eq!(config.http.grace_period, Duration::ZERO);
    assert_eq!(config.grpc.grace_period, Duration::ZERO);
    assert_eq!(config.grpc.connection_age_max, None);
    let labels = [("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())];
    assert_eq!(config.storage.labels, labels);
    assert_eq!(config.storage.dir, PathBuf::from("/d"));
    assert_eq!(config.storage.db.wal_compression, Compression::None);
    assert_eq!(config.storage.db.wal_sync, SyncPolicy::Always);
    assert!(config.storage.db.no_lockfile);
    assert_eq!(config.storage.db.block_range, 3_600_000);
    assert_eq!(config.storage.db.too_far_in_future, Duration::from_secs(300));
    assert_eq!(*config.tenancy.tenants.header(), HeaderName::from_static("x-tenant"));
    assert_eq!(config.remote_write.label_bytes_max, 1024);
    assert_eq!(config.query_inflight_bytes_max, 512 << 20);
    assert_eq!(config.remote_write.body_read_timeout, Duration::from_millis(1500));
    let otlp = config.remote_write.otlp;
    // Commas are part of a name.
    let promoted = ["b,c", "a"].map(str::to_owned);
    assert_eq!(otlp.settings, crate::wire::otlp::Settings::new(false, promoted));
    assert_eq!(otlp.decoded_bytes_max, 1 << 20);
    assert_eq!(config.log.level, LogLevel::Debug);
    assert_eq!(config.log.format, LogFormat::Json);
    assert_eq!(config.log.debug_name.as_deref(), Some("n"));
    assert!(config.notices.is_empty(), "{:?}", config.notices);
}

#[test]
fn what_is_not_there_yet_is_refused_by_name_unless_it_asks_for_nothing() {
    for flag in FLAGS.iter().filter(|flag| flag.support == Support::NotYet) {
        let other = match flag.kind {
            Kind::Switch if flag.default == "true" => format!("--no-{}", flag.name),
            Kind::Switch => format!("--{}", flag.name),
            Kind::Choice(choices) => {
                let other = choices.iter().find(|choice| **choice != flag.default).unwrap();
                format!("--{}={other}", flag.name)
            }
            Kind::Int | Kind::Uint => format!("--{}=77", flag.name),
            Kind::DurationModel | Kind::DurationGo => format!("--{}=77s", flag.name),
            Kind::Bytes => format!("--{}=77MB", flag.name),
            _ => format!("--{}=x:77", flag.name),
        };
        let error = config(&[&other]).map(|_| ()).unwrap_err().to_string();
        let refused = error.contains("not supported by this version")
            || error.ends_with("loading file: no such file or directory: x:77");
        assert!(refused && error.contains(&format!("--{}", flag.name)), "{other}: {error}");
        if flag.kind != Kind::Switch {
            let default = format!("--{}={}", flag.name, flag.default);
            assert!(config(&[&default]).is_ok(), "{default}");
        }
    }
    for off in ["--tsdb.max-exemplars=-5", "--store.limits.request-series=0"] {
        assert!(config(&[off]).is_ok(), "{off}");
    }
}

#[test]
fn a_service_config_says_what_of_it_does_nothing() {
    let json =
        r#"{"loadBalancingPolicy":"round_robin","methodConfig":[{"name":[{}],"timeout":"1s"}]}"#;
    let flag = format!("--receive.grpc-service-config={json}");
    let delay = "--receive.artificial-max-delay=3s";
    let config = config(&["--label=a=\"b\"", &flag, delay]).unwrap();
    assert_eq!(config.ring.method.timeout, Some(Duration::from_secs(1)));
    assert_eq!(config.ring.artificial_delay_max, Duration::from_secs(3));
    let notice = "--receive.grpc-service-config: loadBalancingPolicy does nothing here";
    let notice = Notice { kind: NoticeKind::NoEffect, text: notice.to_owned() };
    assert_eq!(config.notices, [notice]);
}

#[test]
fn what_is_awaited_is_taken_and_mentioned_whatever_its_value() {
    let flags = [
        "--matcher-cache-size=100",
        "--tsdb.memory-snapshot-on-shutdown",
        "--enable-feature=metric-names-filter",
    ];
    let notices = config(&[&flags[..], &["--label=a=\"b\""]].concat()).unwrap().notices;
    assert_eq!(notices.len(), flags.len(), "{notices:?}");
    for flag in flags {
        let name = flag.split('=').next().unwrap();
        let of_flag = notices.iter().find(|notice| notice.text.starts_with(name));
        assert_eq!(of_flag.map(|notice| notice.kind), Some(NoticeKind::NotYet), "{notices:?}");
    }
}

#[test]
fn what_has_no_meaning_is_taken_and_mentioned() {
    let config = config(&["--enable-auto-gomemlimit", "--enable-feature=nope", "--label=a=\"b\""]);
    let notices = config.unwrap().notices;
    assert_eq!(notices.len(), 2, "{notices:?}");
    for (notice, words) in notices.iter().zip(["--enable-auto-gomemlimit", "nope"]) {
        assert!(notice.text.contains(words), "{notices:?}");
        assert_eq!(notice.kind, NoticeKind::NoEffect, "{notices:?}");
    }
}

#[test]
fn all_that_cannot_work_is_found_at_once() {
    let faults = config(&[
        "--http-address=a",
        "--grpc-address=b",
        "--label=foo",
        "--label=bar",
        "--receive.tenants-max=0",
        "--receive.request-bytes-max=0B",
        "--receive.default-tenant-id=..",
        "--receive.replication-factor=256",
        "--receive.hashrings={",
        "--grpc-server-tls-cert=c",
        "--enable-auto-gomemlimit",
    ]);
    let faults = faults.map(|_| ()).unwrap_err();
    assert_eq!(faults.errors.len(), 10, "{faults}");
    assert_eq!(faults.notices.len(), 1, "{:?}", faults.notices);
}

#[test]
fn settings_that_cannot_work_are_refused_by_name() {
    let cases = [
        ("--http-address=127.0.0.1", "--http-address: address 127.0.0.1: missing port in address"),
        ("--http-address=127.0.0.1:99999", "invalid port"),
        ("--grpc-address=127.0.0.1:nosuch", "unknown port"),
        ("--remote-write.address=::1:80", "too many colons"),
        ("--tsdb.path=", "no such file or directory"),
        ("--label=foo", "unrecognized label"),
        ("--receive.tenant-label-name=", "unsupported format for tenant label name"),
        ("--receive.default-tenant-id=..", "--receive.default-tenant-id"),
        ("--receive.default-tenant-id=a/b", "--receive.default-tenant-id"),
        ("--receive.tenant-header=a b", "--receive.tenant-header"),
        ("--receive.replica-header=", "--receive.replica-header"),
        ("--tsdb.min-block-duration=0s", "--tsdb.min-block-duration"),
        ("--auto-gomemlimit.ratio=0", "failed to configure Go runtime memory limits"),
        ("--auto-gomemlimit.ratio=nan", "failed to configure Go runtime memory limits"),
        ("--auto-gomemlimit.ratio=1.1", "failed to configure Go runtime memory limits"),
        ("--receive.lazy-retrieval-max-buffered-responses=0", "must be > 0"),
        ("--receive.capnproto-address=nowhere", "missing port in address"),
        ("--receive.tenants-max=0", "--receive.tenants-max must be above 0"),
        ("--receive.decoded-bytes-max=-1MB", "--receive.decoded-bytes-max must be above 0"),
        ("--receive.inflight-bytes-max=1MB", "--receive.inflight-bytes-max must leave room"),
    ];
    for (flag, part) in cases {
        let error = config(&[flag]).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(part), "{flag}: {error}");
        assert!(!error.contains('\n'), "{flag}: {error}");
    }
}

#[test]
fn content_comes_inline_or_from_a_file_with_variables_expanded() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cfg");
    std::fs::write(&path, "").unwrap();
    let from_file = format!("--objstore.config-file={}", path.display());
    assert!(config(&[&from_file]).is_ok());
    let error = |flags: &[&str]| config(flags).map(|_| ()).unwrap_err().to_string();
    assert!(error(&[&from_file, "--objstore.config=a: b"]).ends_with("flags set."));
    let unset = error(&["--objstore.config=a: $(RINGEST_IS_NOT_SET)"]);
    assert!(unset.contains("unset environment variable \"RINGEST_IS_NOT_SET\""), "{unset}");
    assert!(error(&["--tracing.config=a: b"]).contains("not supported"));
    let directory = format!("--tracing.config-file={}", dir.path().display());
    assert!(error(&[&directory]).contains("is a directory"), "{}", error(&[&directory]));
    // By the name that was written.
    std::fs::write(&path, "type: S3").unwrap();
    let from_tracing = format!("--tracing.config-file={}", path.display());
    assert!(error(&[&from_tracing]).starts_with("--tracing.config-file is not supported"));
    let no_endpoint = "--objstore.config-file: create S3 client: no s3 endpoint in config file";
    assert_eq!(error(&[&from_file]), no_endpoint);
}

#[test]
fn blocks_are_shipped_by_nodes_that_have_some() {
    const BUCKET: &str = "--objstore.config={type: FILESYSTEM, config: {directory: /b}, prefix: p}";
    let how = [
        "--hash-func=SHA256",
        "--shipper.upload-concurrency=4",
        "--shipper.allow-out-of-order-uploads",
        "--shipper.skip-corrupted-blocks",
    ];
    let shipping = config(&[&[BUCKET], &how[..]].concat()).unwrap().shipping.unwrap();
    assert_eq!((shipping.flag, shipping.bucket.prefix.as_str()), ("objstore.config", "p"));
    let shipper = shipping.shipper;
    assert!(shipper.has_hashes && shipper.goes_on_after_damage && shipper.goes_on_after_failure);
    assert_eq!(shipper.files_at_once, 4);
    let shipping = config(&[BUCKET, "--shipper.upload-concurrency=-1"]).unwrap().shipping;
    assert_eq!(shipping.unwrap().shipper, crate::shipper::ShipperOptions::default());

    let without = config(&how).unwrap();
    assert!(without.shipping.is_none());
    let told = |name: &str| {
        let text = format!("--{name} does nothing: blocks are not shipped from here");
        without.notices.iter().any(|notice| notice.text == text)
    };
    assert!(told("hash-func") && told("shipper.skip-corrupted-blocks"));
    // One that only routes does not look at what it is given.
    const RING: &str = r#"--receive.hashrings=[{"endpoints":["a:1","b:1"]}]"#;
    let floppy = "--objstore.config=type: FLOPPY";
    assert!(config(&[RING, floppy]).unwrap().shipping.is_none());
    assert!(config(&[floppy]).is_err());
    let idle = "--objstore.config={type: S3, config: {endpoint: h, list_objects_version: v2}}";
    let notices = config(&[idle]).unwrap().notices;
    let told = "--objstore.config: what is given does nothing here: list_objects_version: ";
    assert!(notices.iter().any(|notice| notice.text.starts_with(told)), "{notices:?}");
}

#[test]
fn an_empty_tenant_header_leaves_the_one_of_thanos() {
    let config = config(&["--receive.tenant-header="]).unwrap();
    assert_eq!(*config.tenancy.tenants.header(), HeaderName::from_static("thanos-tenant"));
}

#[test]
fn addresses_are_written_as_in_go() {
    let parsed = |text| ListenAddress::parse(text).unwrap().to_string();
    assert_eq!(parsed(""), ":0");
    assert_eq!(parsed(":80"), ":80");
    assert_eq!(parsed("[::1]:80"), "[::1]:80");
    assert_eq!(parsed("localhost:"), "localhost:0");
    let any = ListenAddress::parse(":80").unwrap().resolve().unwrap();
    assert_eq!(any, ["[::]:80".parse().unwrap(), "0.0.0.0:80".parse().unwrap()]);
}

/// Thanos' own table of flags, as recorded from its program.
#[test]
fn every_flag_of_thanos_is_there_with_its_grammar_and_default() {
    let recorded = include_str!("../../tests/data/flags/flags.tsv");
    let mut lines = recorded.lines().filter(|line| !line.starts_with('#'));
    let columns: Vec<&str> = lines.next().unwrap().split('\t').collect();
    let mut names = Vec::new();
    for line in lines {
        let row: HashMap<&str, &str> = columns.iter().copied().zip(line.split('\t')).collect();
        let name = row["flag"];
        let flag = flags::find(name).unwrap_or_else(|| panic!("--{name} is missing"));
        names.push(name);
        assert!(!flag.own, "--{name}");
        assert_eq!(flag.hidden, row["hidden"] == "yes", "--{name} hidden");
        assert_eq!(flag.repeatable, row["repeatable"] == "yes", "--{name} repeatable");
        assert_eq!(flag.kind == Kind::Switch, row["boolean"] == "yes", "--{name} boolean");
        let scope = if flag.scope == flags::Scope::Global { "global" } else { "receive" };
        assert_eq!(scope, row["scope"], "--{name} scope");
        let kind = match flag.kind {
            Kind::Switch => "bool",
            Kind::Text => "string",
            Kind::Path => "path",
            Kind::Content => "content",
            Kind::Address => "host:port",
            Kind::Label => "label",
            Kind::Int => "int64",
            Kind::Uint => "uint64",
            Kind::Float => "float",
            Kind::Bytes => "bytes-base2",
            Kind::DurationModel => "duration-model",
            Kind::DurationGo => "duration-go",
            Kind::Choice(_) => "enum",
            Kind::Check => unreachable!("it is ours"),
        };
        assert_eq!(kind, row["kind"], "--{name} kind");
        if let Kind::Choice(choices) = flag.kind {
            let recorded: Vec<&str> =
                row["values"].split('|').map(|value| value.trim_matches('"')).collect();
            assert_eq!(choices, recorded, "--{name} values");
        }
        let default = match row["default"] {
            "-" | "\"\"" | "[\"\"]" => "",
            default => default,
        };
        assert_eq!(flag.default, default, "--{name} default");
        if row["env_expansion"].starts_with('$') && flag.kind == Kind::Content {
            let pair = flags::CONTENT_PAIRS.iter().find(|pair| pair.name == name);
            let pair = pair.unwrap_or_else(|| panic!("--{name} is half of a pair"));
            assert_eq!(row["exclusive_with"], pair.file);
        }
    }
    let ours_alone = FLAGS.iter().filter(|flag| !flag.own && !names.contains(&flag.name)).count();
    assert_eq!(ours_alone, 0, "a flag that Thanos does not have is not marked as ours");
}

#[test]
fn the_usage_lists_every_flag_that_is_not_hidden() {
    let short = usage::receive(usage::Extent::WithoutHidden);
    let long = usage::receive(usage::Extent::Whole);
    for flag in FLAGS {
        let name =
            format!("{}{}", if flag.kind == Kind::Switch { "--[no-]" } else { "--" }, flag.name);
        let ends = |text: &str| {
            text.lines().any(|line| {
                line.split_once(&name).is_some_and(|(_, rest)| !rest.starts_with(['-', '.']))
            })
        };
        assert_eq!(ends(&short), !flag.hidden, "{name}");
        assert!(ends(&long), "{name}");
    }
    assert!(short.lines().all(|line| line.chars().count() <= 80), "{short}");
}

#[test]
fn the_mode_follows_from_rings_and_local_endpoint() {
    const INLINE: &str = r#"--receive.hashrings=[{"endpoints":["a:1","b:1"]}]"#;
    const LOCAL: &str = "--receive.local-endpoint=a:1";
    let mode = |flags: &[&str]| config(flags).unwrap().ring.mode();
    assert_eq!(mode(&[]), Mode::IngestorOnly);
    assert_eq!(mode(&[LOCAL]), Mode::IngestorOnly);
    assert_eq!(mode(&[INLINE]), Mode::RouterOnly);
    assert_eq!(mode(&[INLINE, LOCAL]), Mode::RouterIngestor);
    assert_eq!(mode(&["--receive.hashrings-file=/f"]), Mode::RouterOnly);
    assert_eq!(mode(&["--receive.hashrings-file=/f", LOCAL]), Mode::RouterIngestor);
    assert_eq!(mode(&["--receive.hashrings=null", LOCAL]), Mode::RouterIngestor);
    let both = config(&["--receive.hashrings-file=/f", INLINE]).unwrap().ring.source;
    assert!(matches!(both, RingSource::File { .. }), "the file wins");
}

#[test]
fn rings_that_cannot_be_are_refused_at_start() {
    for (flag, words) in [
        ("--receive.hashrings=[]", "it has no hashrings"),
        ("--receive.hashrings={", "not parsable"),
        ("--receive.hashrings=null", "--receive.local-endpoint is needed"),
        ("--receive.replication-factor=256", "--receive.replication-factor must be at most 255"),
    ] {
        let error = config(&[flag]).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(words), "{flag}: {error}");
    }
    let ring = config(&["--receive.replication-factor=0"]).unwrap().ring;
    assert_eq!(ring.replication_factor, 1);
    assert_eq!(ring.forward_timeout, Duration::from_secs(5));
    assert_eq!(ring.hold, Duration::from_secs(120));
    assert!(config(&["--receive.ring-hold=0s"]).unwrap().ring.hold.is_zero());
}

#[test]
fn what_reads_is_closed_where_certificates_are_asked_for() {
    const CERTIFICATE: [&str; 4] = [
        "--grpc-server-tls-cert=c",
        "--grpc-server-tls-key=k",
        "--remote-write.server-tls-cert=c",
        "--remote-write.server-tls-key=k",
    ];
    let with = |flags: &[&str]| config(&[&CERTIFICATE, flags].concat()).unwrap();
    let warnings = |config: &Config| {
        let is_warning = |notice: &&Notice| notice.kind == NoticeKind::Warning;
        let warnings = config.notices.iter().filter(is_warning);
        warnings.map(|notice| notice.text.clone()).collect::<Vec<_>>()
    };
    let plain = with(&[]);
    assert_eq!((plain.http.reads_closed_by, warnings(&plain).len()), (None, 0));
    assert!(plain.capnproto_address.is_some());

    let write = with(&["--remote-write.server-tls-client-ca=a"]);
    assert_eq!(write.http.reads_closed_by, Some("remote-write.server-tls-client-ca"));
    assert_eq!(warnings(&write).len(), 1, "{:?}", write.notices);

    let grpc = with(&["--grpc-server-tls-client-ca=a"]);
    assert_eq!(grpc.http.reads_closed_by, Some("grpc-server-tls-client-ca"));
    let [reads, capnproto] = &warnings(&grpc)[..] else { panic!("{:?}", grpc.notices) };
    assert!(reads.contains("403") && reads.contains("--http.open-reads"), "{reads}");
    assert!(capnproto.contains("0.0.0.0:19391"), "{capnproto}");
    assert!(capnproto.contains("--no-receive.capnproto"), "{capnproto}");

    let open =
        with(&["--grpc-server-tls-client-ca=a", "--http.open-reads", "--no-receive.capnproto"]);
    assert_eq!(open.http.reads_closed_by, None);
    assert!(open.capnproto_address.is_none());
    let [reads] = &warnings(&open)[..] else { panic!("{:?}", open.notices) };
    assert!(reads.starts_with("--http.open-reads"), "{reads}");
}

#[test]
fn blocks_are_merged_up_to_a_tenth_of_what_is_kept() {
    const DAY: i64 = 24 * 60 * 60 * 1000;
    for (args, merged_max) in [
        (&[][..], 3 * DAY / 2),
        (&["--tsdb.retention=100d"], 10 * DAY),
        (&["--tsdb.retention=2y"], 31 * DAY),
        (&["--tsdb.retention=0d"], 31 * DAY),
        (&["--tsdb.max-compacted-block-duration=45d"], 45 * DAY),
    ] {
        let label = ["--label=a=\"b\""];
        let config = config(&[&label, args].concat()).unwrap();
        assert_eq!(config.storage.db.merged_max, merged_max, "{args:?}");
    }
}
