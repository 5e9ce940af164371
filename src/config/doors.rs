//! What clients may take before it is known who they are.

use crate::config::error::ConfigError;
use crate::config::settings::Settings;
use crate::door::HeadLimits;
use crate::door::heads::HEADERS_LIMIT;

/// The same for all listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DoorConfig {
    /// Connections of each listener; `None` for as many as the open files allow.
    pub connections_max: Option<usize>,
    pub heads: HeadLimits,
}

/// Cookies and tokens of proxies make heads of some kilobytes.
const HEAD_BYTES_MIN: usize = 16 << 10;
/// As much as is read of any.
const HEAD_BYTES_LIMIT: usize = 16 << 20;

impl DoorConfig {
    pub(super) fn of(settings: &mut Settings<'_>) -> Option<DoorConfig> {
        let connections_max = settings.values.uint("receive.connections-max");
        let connections_max = usize::try_from(connections_max).unwrap_or(usize::MAX);
        let headers_max = settings.positive_count("receive.head-headers-max").and_then(|max| {
            let has_place = max <= HEADERS_LIMIT;
            settings.require(has_place, max, ConfigError::Headers)
        });
        let bytes_max = settings.positive_size("receive.head-bytes-max").and_then(|max| {
            let is_in_range = (HEAD_BYTES_MIN..=HEAD_BYTES_LIMIT).contains(&max);
            settings.require(is_in_range, max, ConfigError::HeadBytes)
        });
        let heads = HeadLimits { bytes_max: bytes_max?, headers_max: headers_max? };
        Some(DoorConfig { connections_max: Some(connections_max).filter(|max| *max > 0), heads })
    }
}
