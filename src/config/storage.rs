//! Where and how data is kept.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::error::ConfigError;
use crate::config::grammar;
use crate::config::settings::{NoticeKind, Settings};
use crate::tsdb::options::DbOptions;
use crate::tsdb::retention::Retention;
use crate::tsdb::wal::{Compression, SyncPolicy};

/// Where and how data is kept.
#[derive(Clone, Debug)]
pub struct StorageConfig {
    pub dir: PathBuf,
    /// External labels, name and value, in the order given.
    pub labels: Vec<(String, String)>,
    pub db: DbOptions,
    /// How long heads are cut into blocks at the end; `None` if they are not.
    pub flush_within: Option<Duration>,
}

/// Blocks are merged up to a tenth of the time that they are kept, as in Prometheus, and never up to
/// more than this.
const MERGED_MAX: Duration = Duration::from_secs(31 * 24 * 60 * 60);
/// Shorter ranges have blocks by the thousand; Thanos ends with a panic on them.
const BLOCK_DURATION_MIN: Duration = Duration::from_secs(30);

impl StorageConfig {
    /// `hostname` becomes the external label when there is none.
    pub(super) fn of(settings: &mut Settings<'_>, hostname: &str) -> Option<StorageConfig> {
        let dir = PathBuf::from(settings.values.text("tsdb.path"));
        let has_dir = !dir.as_os_str().is_empty();
        let dir = settings.require(has_dir, dir, ConfigError::NoDataDirectory);
        let labels = labels(settings, hostname);
        let db = db_options(settings);
        let flush_within = settings.duration("tsdb.flush-timeout");
        let flush_within = settings.values.switch("tsdb.flush-on-shutdown").then_some(flush_within);
        Some(StorageConfig { dir: dir?, labels: labels?, db: db?, flush_within })
    }
}

fn labels(settings: &mut Settings<'_>, hostname: &str) -> Option<Vec<(String, String)>> {
    let given = settings.values.texts("label");
    let labels: Vec<_> = given.iter().map(|label| settings.check(grammar::label(label))).collect();
    if labels.is_empty() {
        let text = format!("no --label was given, so the external label is replica={hostname:?}");
        settings.notice(NoticeKind::Note, text);
        return Some(vec![("replica".to_owned(), hostname.to_owned())]);
    }
    labels.into_iter().collect()
}

fn db_options(settings: &mut Settings<'_>) -> Option<DbOptions> {
    // Of two that are too short one is told, as they are mostly set to one value.
    let names = ["tsdb.min-block-duration", "tsdb.max-block-duration"];
    let [block_range, cut_range] = names.map(|name| settings.duration(name));
    let short = names.into_iter().find(|name| settings.duration(name) < BLOCK_DURATION_MIN);
    let are_long_enough = short.is_none();
    let error = ConfigError::BlockDuration(short.unwrap_or_default());
    let ranges = settings.require(are_long_enough, [block_range, cut_range], error);
    let series_max = settings.positive_count("tsdb.head-series-max");
    let values = settings.values;
    let millis = |range: Duration| i64::try_from(range.as_millis()).unwrap_or(i64::MAX);
    let bytes_max = u64::try_from(settings.values.int("tsdb.max-retention-bytes")).ok();
    let retention = Retention {
        age_max: Some(millis(settings.duration("tsdb.retention"))).filter(|age| *age > 0),
        bytes_max: bytes_max.filter(|bytes| *bytes > 0),
    };
    let merged_max =
        match (settings.duration("tsdb.max-compacted-block-duration"), retention.age_max) {
            (Duration::ZERO, Some(age_max)) => (age_max / 10).min(millis(MERGED_MAX)),
            (Duration::ZERO, None) => millis(MERGED_MAX),
            (given, _) => millis(given),
        };
    let [block_range, cut_range] = ranges?.map(millis);
    Some(DbOptions {
        block_range,
        cut_range,
        merged_max,
        is_merged_max_given: settings.duration("tsdb.max-compacted-block-duration")
            > Duration::ZERO,
        retention,
        wal_compression: match values.switch("tsdb.wal-compression") {
            true => Compression::Snappy,
            false => Compression::None,
        },
        wal_sync: match values.text("tsdb.wal-sync").as_str() {
            "always" => SyncPolicy::Always,
            "segment" => SyncPolicy::Segment,
            _ => SyncPolicy::Interval,
        },
        wal_by_coverage: values.switch("tsdb.wal-truncate-by-head-chunks"),
        no_lockfile: values.switch("tsdb.no-lockfile"),
        too_far_in_future: settings.duration("tsdb.too-far-in-future.time-window"),
        series_max: series_max?,
        exemplars_max: usize::try_from(values.int("tsdb.max-exemplars")).unwrap_or(0),
        ..DbOptions::default()
    })
}
