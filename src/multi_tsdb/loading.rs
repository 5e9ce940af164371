//! How far the tenants' opening at start has come: in the log each second, on the page of metrics, and
//! in what the node says while it is not ready.

use std::sync::Arc;
use std::time::Duration;

use crate::metrics::Registry;
use crate::model::tenant::TenantId;
use crate::multi_tsdb::{Entry, MultiTsdb};
use crate::tsdb::loading::{Loading, LoadingStatus};

/// How often it is told in the log.
pub(super) const TELL_EVERY: Duration = Duration::from_secs(1);

/// How far all tenants together have come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StartStatus {
    /// Tenants that are not open yet.
    pub tenants_left: usize,
    /// Of the tenants whose logs are being read now: how much there is, and how much was read.
    pub segments: u64,
    pub segments_read: u64,
    pub log_bytes: u64,
    pub log_bytes_read: u64,
    pub series: u64,
    pub samples: u64,
    /// Seconds until the last of these is read, if they go on like this.
    pub seconds_left: Option<u64>,
}

impl StartStatus {
    fn add(&mut self, status: &LoadingStatus) {
        self.segments += status.segments;
        self.segments_read += status.segments_read;
        self.log_bytes += status.bytes;
        self.log_bytes_read += status.bytes_read;
        self.series += status.series;
        self.samples += status.samples;
        let left = status.left().map(|left| left.as_secs());
        self.seconds_left = self.seconds_left.max(left);
    }
}

impl std::fmt::Display for StartStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let StartStatus { tenants_left, segments, segments_read, series, samples, .. } = self;
        write!(f, "{tenants_left} tenants are being opened")?;
        if *segments > 0 {
            let [read, of] = [self.log_bytes_read, self.log_bytes].map(|bytes| bytes >> 20);
            write!(
                f,
                "; logs being read: {segments_read} of {segments} segments, {read} of {of} MiB, \
                 {series} series, {samples} samples"
            )?;
        }
        self.seconds_left.map_or(Ok(()), |left| write!(f, ", {left} s left"))
    }
}

impl Entry {
    /// How far the log is read, if it is being read.
    fn loading(&self) -> Option<&Loading> {
        match self {
            Entry::Opening(opening) => Some(&opening.loading),
            Entry::Loading(loading) => Some(&loading.loading),
            Entry::Open(_) | Entry::Creating(_) | Entry::Quarantined(_) => None,
        }
    }
}

impl MultiTsdb {
    /// How far the opening has come; `None` once all tenants that were found are open or quarantined.
    pub fn start_status(&self) -> Option<StartStatus> {
        let mut status = StartStatus::default();
        for loading in self.tenants.read().values().filter_map(Entry::loading) {
            status.tenants_left += 1;
            loading.status().iter().for_each(|one| status.add(one));
        }
        (status.tenants_left > 0).then_some(status)
    }

    /// A line for each log that is being read.
    pub(super) fn tell_loading(&self) {
        let loading: Vec<_> = {
            let tenants = self.tenants.read();
            let loading =
                |(id, entry): (&TenantId, &Entry)| Some((id.clone(), entry.loading()?.status()?));
            tenants.iter().filter_map(loading).collect()
        };
        for (tenant, status) in loading {
            let LoadingStatus { segments, segments_read, series, samples, .. } = status;
            let (rate, left) = (status.rate(), status.left());
            tracing::info!(
                %tenant, segments_read, segments, series, samples, rate, ?left,
                "reading the log"
            );
        }
    }

    pub(super) fn show_loading(self: &Arc<Self>, registry: &Registry) {
        let [left, bytes, read] = [
            ("ringest_tenants_opening", "Tenants found at start that are not open yet."),
            (
                "ringest_opening_log_bytes",
                "Bytes of the logs that are being read at start, checkpoints not counted.",
            ),
            ("ringest_opening_log_bytes_read", "How many of these were read."),
        ]
        .map(|(name, help)| registry.gauge(name, help));
        let tenants = Arc::downgrade(self);
        registry.on_collect(move || {
            let Some(tenants) = tenants.upgrade() else { return };
            let status = tenants.start_status().unwrap_or_default();
            left.set(status.tenants_left as f64);
            bytes.set(status.log_bytes as f64);
            read.set(status.log_bytes_read as f64);
        });
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::multi_tsdb::tests::{Storage, disk_with};

    #[test]
    fn a_start_says_what_is_left_of_it() {
        let disk = disk_with(&["a", "b"]);
        disk.stall(Path::new("/data/a/wal"));
        let storage = Storage::start_without_waiting(&disk);
        disk.wait_stalled(1);
        let status = storage.tenants.start_status().unwrap();
        assert!((1..=3).contains(&status.tenants_left), "{status:?}");
        let told = status.to_string();
        assert!(told.ends_with(" tenants are being opened"), "{told}");
        disk.release(Path::new("/data/a/wal"));
        storage.wait_opened();
        assert_eq!(storage.tenants.start_status(), None);
        assert!(storage.shows("ringest_tenants_opening 0"));
        let status = StartStatus {
            tenants_left: 2,
            segments: 40,
            segments_read: 10,
            log_bytes: 5 << 30,
            log_bytes_read: 1 << 30,
            series: 7,
            samples: 900,
            seconds_left: Some(12),
        };
        let told = "2 tenants are being opened; logs being read: 10 of 40 segments, 1024 of 5120 \
                    MiB, 7 series, 900 samples, 12 s left";
        assert_eq!(status.to_string(), told);
    }
}
