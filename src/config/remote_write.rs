//! Remote write over HTTP.

use std::time::Duration;

use crate::config::error::ConfigError;
use crate::config::listen::ListenAddress;
use crate::config::settings::Settings;
use crate::config::tls;
use crate::http::remote_write::OtlpOptions;
use crate::tls::server::ServerTlsOptions;
use crate::wire::otlp::Settings as OtlpSettings;

/// Remote write over HTTP, and what one request may cost.
#[derive(Clone, Debug)]
pub struct RemoteWriteConfig {
    pub address: ListenAddress,
    /// `None` for plain text.
    pub tls: Option<ServerTlsOptions>,
    /// Size of a body as sent, in bytes.
    pub request_bytes_max: u64,
    /// Size of a body when decompressed, in bytes.
    pub decoded_bytes_max: u64,
    /// Bytes of all requests being served, decompressed ones included.
    ///
    /// Invariant: room for one request of the greatest size.
    pub inflight_bytes_max: u64,
    /// Time that a client has to send a body.
    pub body_read_timeout: Duration,
    /// What series are made of OTLP.
    pub otlp: OtlpOptions,
    pub series_labels_max: usize,
    /// Bytes of names and values of a series' labels together.
    pub label_bytes_max: usize,
}

impl RemoteWriteConfig {
    pub(super) fn of(settings: &mut Settings<'_>) -> Option<RemoteWriteConfig> {
        let address = ListenAddress::of(settings, "remote-write.address");
        let tls = tls::REMOTE_WRITE_SERVER.options(settings);
        let request_bytes_max = settings.positive_int("receive.request-bytes-max");
        let decoded_bytes_max = settings.positive_int("receive.decoded-bytes-max");
        let inflight_bytes_max = settings.positive_int("receive.inflight-bytes-max");
        let body_read_timeout = settings.positive_int("receive.body-read-timeout");
        let promoted = settings.values.texts("receive.otlp-promote-resource-attributes");
        let otlp_decoded_bytes_max = settings.positive_int("receive.otlp-decoded-bytes-max");
        let otlp_settings =
            OtlpSettings::new(settings.values.switch("receive.otlp-enable-target-info"), promoted);
        let series_labels_max = settings.positive_count("receive.series-labels-max");
        let label_bytes_max = settings.positive_size("receive.label-bytes-max");
        let config = RemoteWriteConfig {
            address: address?,
            tls: tls?,
            request_bytes_max: request_bytes_max?,
            decoded_bytes_max: decoded_bytes_max?,
            inflight_bytes_max: inflight_bytes_max?,
            body_read_timeout: Duration::from_nanos(body_read_timeout?),
            otlp: OtlpOptions {
                settings: otlp_settings,
                decoded_bytes_max: otlp_decoded_bytes_max?,
            },
            series_labels_max: series_labels_max?,
            label_bytes_max: label_bytes_max?,
        };
        let largest = config.request_bytes_max.saturating_add(config.decoded_bytes_max);
        let has_room = config.inflight_bytes_max >= largest;
        settings.require(has_room, config, ConfigError::InflightBytes(largest))
    }
}
