//! Flags whose function is missing, or that have none here: refused, or told.

use std::path::PathBuf;

use crate::config::command_line::Value;
use crate::config::error::ConfigError;
use crate::config::flags::{CONTENT_PAIRS, ContentPair, FLAGS, Flag, Kind, Support, named};
use crate::config::grammar;
use crate::config::settings::{NoticeKind, Settings};

pub(super) fn judge(settings: &mut Settings<'_>) {
    for flag in FLAGS.iter().filter(|flag| settings.values.is_given(flag)) {
        judge_flag(settings, flag);
    }
    let is_not_yet = |pair: &&ContentPair| named(pair.name).support == Support::NotYet;
    for pair in CONTENT_PAIRS.iter().filter(is_not_yet) {
        judge_content(settings, pair);
    }
    let ratio = settings.values.float("auto-gomemlimit.ratio");
    if !(ratio > 0.0 && ratio <= 1.0) {
        settings.errors.push(ConfigError::MemoryLimitRatio);
    }
    if settings.values.int("receive.lazy-retrieval-max-buffered-responses") <= 0 {
        settings.errors.push(ConfigError::BufferedResponses);
    }
    judge_features(settings);
}

fn judge_flag(settings: &mut Settings<'_>, flag: &'static Flag) {
    let name = flag.name;
    // What stands in the file counts, or what is given in its place.
    let is_of_pair = CONTENT_PAIRS.iter().any(|pair| name == pair.name || name == pair.file);
    match flag.support {
        Support::Implemented => {}
        _ if is_of_pair => {}
        Support::NotYet => refuse(settings, flag),
        Support::Awaited(instead) => {
            let text = format!("--{name} is accepted but does nothing yet: {instead}");
            settings.notice(NoticeKind::NotYet, text);
        }
        Support::NoMeaning(why) => {
            let text = format!("--{name} is accepted but does nothing here: {why}");
            settings.notice(NoticeKind::NoEffect, text);
        }
    }
}

/// Refuses a value that would ask for what this version does not do.
fn refuse(settings: &mut Settings<'_>, flag: &'static Flag) {
    if asks_for_nothing(settings, flag) {
        return;
    }
    let reason = match flag.kind {
        Kind::Switch if flag.default == "true" => "it cannot be switched off".to_owned(),
        Kind::Switch => "it cannot be switched on".to_owned(),
        _ if flag.default.is_empty() => "it cannot be set".to_owned(),
        _ => format!("it can only be {}", flag.default),
    };
    settings.errors.push(ConfigError::NotSupported { flag: flag.name, reason });
}

fn asks_for_nothing(settings: &Settings<'_>, flag: &Flag) -> bool {
    if flag.repeatable {
        return settings.values.texts(flag.name).iter().all(String::is_empty);
    }
    let value = settings.values.value(flag);
    // Where the default 0 means off, so does anything below it.
    let is_off = flag.default == "0" && matches!(value, Value::Int(number) if number <= 0);
    is_off || value == flag.default_value()
}

/// A configuration that is given inline or as a file, under the flag that was written.
pub(super) struct Content {
    pub(super) flag: &'static str,
    pub(super) text: String,
}

fn judge_content(settings: &mut Settings<'_>, pair: &'static ContentPair) {
    let content = load_content(settings, pair);
    let Some(Content { flag, text }) = settings.check(content) else { return };
    if text.is_empty() {
        return;
    }
    let reason = "the configuration is not empty".to_owned();
    settings.errors.push(ConfigError::NotSupported { flag, reason });
}

/// Its `$(VARIABLE)`s expanded; empty when neither was given.
#[expect(clippy::disallowed_methods, reason = "before anything is started")]
pub(super) fn load_content(
    settings: &Settings<'_>,
    pair: &'static ContentPair,
) -> Result<Content, ConfigError> {
    let inline = settings.values.text(pair.name);
    let path = PathBuf::from(settings.values.text(pair.file));
    let (flag, text) = match (inline.is_empty(), path.as_os_str().is_empty()) {
        (false, false) => return Err(ConfigError::BothOfPair(pair.name)),
        (_, true) => (pair.name, inline),
        (true, false) => match std::fs::read_to_string(&path) {
            Ok(text) => (pair.file, text),
            Err(source) => return Err(ConfigError::ContentFile { flag: pair.file, path, source }),
        },
    };
    let text = grammar::expand_variables(&text, |name| std::env::var(name).ok())
        .map_err(|variable| ConfigError::UnsetVariable { flag, variable })?;
    Ok(Content { flag, text })
}

/// Thanos knows one feature and ignores the names of others.
fn judge_features(settings: &mut Settings<'_>) {
    for feature in settings.values.texts("enable-feature") {
        if feature == "metric-names-filter" {
            let text = format!("--enable-feature: the feature {feature} does not exist yet");
            settings.notice(NoticeKind::NotYet, text);
        } else if !feature.is_empty() {
            let text = format!("--enable-feature: no feature is called {feature:?}");
            settings.notice(NoticeKind::NoEffect, text);
        }
    }
}
