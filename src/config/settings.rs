//! The values of a command line while they are judged, and what was found so far: all that is wrong
//! is told at once.

use std::time::Duration;

use http::HeaderName;

use crate::config::command_line::Values;
use crate::config::error::ConfigError;

/// Values, and findings about them. What cannot be had from the values is `None`, and an error says
/// why; a struct of settings is made once all of its parts were looked at.
pub(super) struct Settings<'v> {
    pub(super) values: &'v Values,
    pub(super) errors: Vec<ConfigError>,
    pub(super) notices: Vec<Notice>,
}

/// What an operator should know about settings that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub kind: NoticeKind,
    /// Names the flag.
    pub text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoticeKind {
    /// Nothing that was given does anything here, or beside the other flags.
    NoEffect,
    /// What a flag is for does not happen in this version.
    NotYet,
    /// What the operator should change, or know to be meant.
    Warning,
    /// What was taken for what was given, or for what was not.
    Note,
}

impl NoticeKind {
    pub fn as_str(self) -> &'static str {
        match self {
            NoticeKind::NoEffect => "no effect",
            NoticeKind::NotYet => "not yet",
            NoticeKind::Warning => "warning",
            NoticeKind::Note => "note",
        }
    }
}

impl<'v> Settings<'v> {
    pub(super) fn new(values: &'v Values) -> Settings<'v> {
        Settings { values, errors: Vec::new(), notices: Vec::new() }
    }

    /// Keeps what is wrong.
    pub(super) fn check<T, E: Into<ConfigError>>(&mut self, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.errors.push(error.into())).ok()
    }

    /// The value, if what must hold of it does.
    pub(super) fn require<T>(&mut self, holds: bool, value: T, error: ConfigError) -> Option<T> {
        self.check(if holds { Ok(value) } else { Err(error) })
    }

    pub(super) fn notice(&mut self, kind: NoticeKind, text: String) {
        self.notices.push(Notice { kind, text });
    }

    /// A span of time; a negative one is as good as none.
    pub(super) fn duration(&self, flag: &str) -> Duration {
        Duration::from_nanos(u64::try_from(self.values.int(flag)).unwrap_or(0))
    }

    /// A size in bytes or a span in nanoseconds.
    pub(super) fn positive_int(&mut self, flag: &'static str) -> Option<u64> {
        let value = u64::try_from(self.values.int(flag)).ok().filter(|value| *value > 0);
        self.check(value.ok_or(ConfigError::Zero(flag)))
    }

    /// A size in bytes.
    pub(super) fn positive_size(&mut self, flag: &'static str) -> Option<usize> {
        Some(usize::try_from(self.positive_int(flag)?).unwrap_or(usize::MAX))
    }

    pub(super) fn positive_count(&mut self, flag: &'static str) -> Option<usize> {
        let count = usize::try_from(self.values.uint(flag)).unwrap_or(usize::MAX);
        self.require(count > 0, count, ConfigError::Zero(flag))
    }

    pub(super) fn header_name(&mut self, flag: &'static str) -> Option<HeaderName> {
        let value = self.values.text(flag);
        let name = HeaderName::from_bytes(value.as_bytes());
        self.check(name.map_err(|_| ConfigError::HeaderName { flag, value }))
    }
}
