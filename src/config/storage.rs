//! Where and how data is kept.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::error::ConfigError;
use crate::config::grammar;
use crate::config::settings::{NoticeKind, Settings};
use crate::tsdb::options::DbOptions;
use crate::tsdb::wal::{Compression, SyncPolicy};

/// Where and how data is kept.
#[derive(Clone, Debug)]
pub struct StorageConfig {
    pub dir: PathBuf,
    /// External labels, name and value, in the order given.
    pub labels: Vec<(String, String)>,
    pub db: DbOptions,
}

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
        Some(StorageConfig { dir: dir?, labels: labels?, db: db? })
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
    let block_range = settings.duration("tsdb.min-block-duration");
    let is_long_enough = block_range >= BLOCK_DURATION_MIN;
    let block_range = settings.require(is_long_enough, block_range, ConfigError::BlockDuration);
    let series_max = settings.positive_count("tsdb.head-series-max");
    let values = settings.values;
    Some(DbOptions {
        block_range: i64::try_from(block_range?.as_millis()).unwrap_or(i64::MAX),
        wal_compression: match values.switch("tsdb.wal-compression") {
            true => Compression::Snappy,
            false => Compression::None,
        },
        wal_sync: match values.text("tsdb.wal-sync").as_str() {
            "always" => SyncPolicy::Always,
            "segment" => SyncPolicy::Segment,
            _ => SyncPolicy::Interval,
        },
        no_lockfile: values.switch("tsdb.no-lockfile"),
        too_far_in_future: settings.duration("tsdb.too-far-in-future.time-window"),
        series_max: series_max?,
        ..DbOptions::default()
    })
}
