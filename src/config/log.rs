//! What is logged, and how.

use crate::config::command_line::Values;
use crate::log::{LogConfig, LogFormat, LogLevel};

impl LogConfig {
    /// Cannot fail, so that everything else can be logged.
    pub fn from_values(values: &Values) -> LogConfig {
        let level = match values.text("log.level").as_str() {
            "error" => LogLevel::Error,
            "warn" => LogLevel::Warn,
            "debug" => LogLevel::Debug,
            _ => LogLevel::Info,
        };
        let format = match values.text("log.format").as_str() {
            "json" => LogFormat::Json,
            "journald" => LogFormat::Journald,
            _ => LogFormat::Logfmt,
        };
        let debug_name = Some(values.text("debug.name")).filter(|name| !name.is_empty());
        LogConfig { level, format, debug_name }
    }
}
