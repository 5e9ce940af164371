//! Words of a command line to flags and values, by the rules of the library that Thanos uses
//! (kingpin), which are not those of any argument parser we know: a switch never takes a value,
//! names are never abbreviated, nothing but the marked flags may be repeated, a value given as a
//! word of its own must not start with `-`, and `@file` stands for the lines of that file.

use std::collections::{HashMap, VecDeque};
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::config::flags::{self, Flag, Kind, Scope};
use crate::config::grammar::{self, ValueError};
use crate::config::usage::{self, Extent};
use crate::metrics::build::{BRANCH, REVISION};

/// `@file` words taken from one command line. A file that names itself would never end.
const ARGUMENT_FILES_MAX: usize = 64;

/// A command line that cannot be understood, or a value that its flag does not take.
#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    #[error("unknown long flag '--{0}'")]
    UnknownLongFlag(String),
    #[error("unknown short flag '-{0}'")]
    UnknownShortFlag(char),
    #[error("unexpected {0}")]
    UnexpectedWord(String),
    #[error("unexpected {value}: '--{flag}' takes no value, use --{flag} or --no-{flag}")]
    UnexpectedValue { flag: &'static str, value: String },
    #[error("expected argument for flag '--{0}'")]
    MissingValue(&'static str),
    #[error("expected command but got {0:?}")]
    UnknownCommand(String),
    #[error("argument {0:?} is not valid UTF-8")]
    NotUtf8(OsString),
    #[error("failed to open arguments file {path:?}: {source}")]
    ArgumentFile { path: PathBuf, source: io::Error },
    #[error("more than {ARGUMENT_FILES_MAX} arguments files, the last is {0:?}")]
    TooManyArgumentFiles(PathBuf),
    #[error("flag '--{0}' cannot be repeated")]
    Repeated(&'static str),
    #[error("--{flag}: {source}")]
    Value { flag: &'static str, source: ValueError },
}

impl UsageError {
    /// Whether the words were understood and only a value is wrong; the usage helps then.
    pub fn wants_usage(&self) -> bool {
        matches!(self, UsageError::Repeated(_) | UsageError::Value { .. })
    }

    /// 1 when the words are not understood, 2 when a value is wrong, as in Thanos.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(if self.wants_usage() { 2 } else { 1 })
    }
}

/// What the words ask for.
#[derive(Debug)]
pub enum Invocation {
    Receive(Values),
    /// To be printed to standard output; nothing else is to be done.
    Print(String),
}

/// A checked value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Switch(bool),
    Text(String),
    /// Also sizes in bytes, and durations in nanoseconds.
    Int(i64),
    Uint(u64),
    Float(f64),
}

/// Values by flag, with the table's defaults for flags that were not given.
#[derive(Debug, Default)]
pub struct Values {
    given: HashMap<&'static str, Vec<Value>>,
}

impl Values {
    pub fn is_given(&self, flag: &Flag) -> bool {
        self.given.contains_key(flag.name)
    }

    /// The value of a flag that is not repeatable.
    pub fn value(&self, flag: &Flag) -> Value {
        match self.given.get(flag.name).and_then(|values| values.last()) {
            Some(value) => value.clone(),
            None => flag.default_value(),
        }
    }

    pub fn switch(&self, name: &str) -> bool {
        match self.value(flags::named(name)) {
            Value::Switch(on) => on,
            other => unreachable!("--{name} is a switch, not {other:?}"),
        }
    }

    pub fn text(&self, name: &str) -> String {
        match self.value(flags::named(name)) {
            Value::Text(text) => text,
            other => unreachable!("--{name} is a text, not {other:?}"),
        }
    }

    /// Sizes in bytes and durations in nanoseconds as well.
    pub fn int(&self, name: &str) -> i64 {
        match self.value(flags::named(name)) {
            Value::Int(number) => number,
            other => unreachable!("--{name} is a signed number, not {other:?}"),
        }
    }

    pub fn uint(&self, name: &str) -> u64 {
        match self.value(flags::named(name)) {
            Value::Uint(number) => number,
            other => unreachable!("--{name} is an unsigned number, not {other:?}"),
        }
    }

    pub fn float(&self, name: &str) -> f64 {
        match self.value(flags::named(name)) {
            Value::Float(number) => number,
            other => unreachable!("--{name} is a float, not {other:?}"),
        }
    }

    /// All values of a repeatable flag, in the order given.
    pub fn texts(&self, name: &str) -> Vec<String> {
        let values = self.given.get(flags::named(name).name).map(Vec::as_slice).unwrap_or_default();
        let text = |value: &Value| match value {
            Value::Text(text) => text.clone(),
            other => unreachable!("--{name} is a text, not {other:?}"),
        };
        values.iter().map(text).collect()
    }
}

/// Understands the words after the program's name.
pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Invocation, UsageError> {
    let mut words = Words::of(words);
    let mut command = None;
    let mut given = Vec::new();
    while let Some(word) = words.next()? {
        match word {
            Word::Long { name, value } => {
                let (flag, on) = find_long(&name, command.is_some())?;
                given.push((flag, raw_value(flag, on, value, &mut words)?));
            }
            Word::Short('h') => given.push((flags::named("help"), Raw::Switch(true))),
            Word::Short(letter) => return Err(UsageError::UnknownShortFlag(letter)),
            Word::Plain(word) if command.is_some() => return Err(UsageError::UnexpectedWord(word)),
            Word::Plain(word) if word == "receive" => command = Some(word),
            Word::Plain(word) => return Err(UsageError::UnknownCommand(word)),
        }
    }
    // Help is wanted most when something else is wrong, so it goes before the check of the values.
    for (flag, raw) in &given {
        if matches!(raw, Raw::Switch(true))
            && let Some(text) = printed_by(flag.name, command.is_some())
        {
            return Ok(Invocation::Print(text));
        }
    }
    let values = check_values(given)?;
    match command {
        Some(_) => Ok(Invocation::Receive(values)),
        None => Ok(Invocation::Print(usage::COMMANDS.to_owned())),
    }
}

/// What the switches print that ask for nothing else.
fn printed_by(flag: &str, after_command: bool) -> Option<String> {
    match flag {
        "help" if after_command => Some(usage::receive(Extent::WithoutHidden)),
        "help" => Some(usage::COMMANDS.to_owned()),
        "help-long" => Some(usage::receive(Extent::Whole)),
        "help-man" => Some(usage::man()),
        "completion-bash" => Some(usage::completion_words()),
        "completion-script-bash" => Some(usage::COMPLETION_SCRIPT_BASH.to_owned()),
        "completion-script-zsh" => Some(usage::COMPLETION_SCRIPT_ZSH.to_owned()),
        "version" => Some(version()),
        _ => None,
    }
}

/// What `--version` prints.
pub fn version() -> String {
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    format!(
        "ringest, version {} (branch: {}, revision: {})\n  platform: {os}/{arch}\n",
        env!("CARGO_PKG_VERSION"),
        BRANCH,
        REVISION,
    )
}

/// A value whose words were taken but not looked at.
enum Raw {
    Switch(bool),
    Text(String),
}

/// Finds `--name` or, for switches, `--no-name`. Flags of the command exist only after it.
fn find_long(name: &str, after_command: bool) -> Result<(&'static Flag, bool), UsageError> {
    let usable = |flag: &&Flag| after_command || flag.scope == Scope::Global;
    if let Some(flag) = flags::find(name).filter(usable) {
        return Ok((flag, true));
    }
    name.strip_prefix("no-")
        .and_then(flags::find)
        .filter(|flag| flag.kind == Kind::Switch)
        .filter(usable)
        .map(|flag| (flag, false))
        .ok_or_else(|| UsageError::UnknownLongFlag(name.to_owned()))
}

fn raw_value(
    flag: &'static Flag,
    on: bool,
    value: Option<String>,
    words: &mut Words,
) -> Result<Raw, UsageError> {
    if flag.kind == Kind::Switch {
        return match value {
            None => Ok(Raw::Switch(on)),
            Some(value) => Err(UsageError::UnexpectedValue { flag: flag.name, value }),
        };
    }
    if let Some(value) = value {
        return Ok(Raw::Text(value));
    }
    match words.next()? {
        Some(Word::Plain(value)) => Ok(Raw::Text(value)),
        _ => Err(UsageError::MissingValue(flag.name)),
    }
}

fn check_values(given: Vec<(&'static Flag, Raw)>) -> Result<Values, UsageError> {
    let mut values = Values::default();
    for (flag, raw) in given {
        let value = match raw {
            Raw::Switch(on) => Value::Switch(on),
            Raw::Text(text) => parse_value(flag.kind, &text)
                .map_err(|source| UsageError::Value { flag: flag.name, source })?,
        };
        let of_flag = values.given.entry(flag.name).or_default();
        if !of_flag.is_empty() && !flag.repeatable {
            return Err(UsageError::Repeated(flag.name));
        }
        of_flag.push(value);
    }
    Ok(values)
}

/// Checks a value against its flag's grammar. Labels, addresses and paths are judged when used.
pub fn parse_value(kind: Kind, text: &str) -> Result<Value, ValueError> {
    match kind {
        Kind::Switch => grammar::choice(text, &["true", "false"])?,
        Kind::Choice(choices) => grammar::choice(text, choices)?,
        _ => {}
    }
    Ok(match kind {
        Kind::Switch => Value::Switch(text == "true"),
        Kind::Int => Value::Int(grammar::int(text)?),
        Kind::Uint => Value::Uint(grammar::uint(text)?),
        Kind::Float => Value::Float(grammar::float(text)?),
        Kind::Bytes => Value::Int(grammar::bytes_base2(text)?),
        Kind::DurationModel => Value::Int(grammar::duration_model(text)?),
        Kind::DurationGo => Value::Int(grammar::duration_go(text)?),
        Kind::Choice(_) | Kind::Text | Kind::Path | Kind::Content | Kind::Address | Kind::Label => {
            Value::Text(text.to_owned())
        }
    })
}

enum Word {
    Long { name: String, value: Option<String> },
    Short(char),
    Plain(String),
}

/// The words still to be read, with the lines of argument files put in their place.
struct Words {
    rest: VecDeque<OsString>,
    /// After `--` nothing is a flag.
    flags_ended: bool,
    argument_files: usize,
}

impl Words {
    fn of(words: impl IntoIterator<Item = OsString>) -> Words {
        let rest = words.into_iter().collect();
        Words { rest, flags_ended: false, argument_files: 0 }
    }

    fn next(&mut self) -> Result<Option<Word>, UsageError> {
        loop {
            let Some(word) = self.rest.pop_front() else {
                return Ok(None);
            };
            let word = word.into_string().map_err(UsageError::NotUtf8)?;
            if self.flags_ended {
                return Ok(Some(Word::Plain(word)));
            }
            if word == "--" {
                self.flags_ended = true;
            } else if let Some(long) = word.strip_prefix("--") {
                let (name, value) = match long.split_once('=') {
                    Some((name, value)) => (name, Some(value.to_owned())),
                    None => (long, None),
                };
                return Ok(Some(Word::Long { name: name.to_owned(), value }));
            } else if let Some(letter) = word.strip_prefix('-').and_then(|rest| rest.chars().next())
            {
                return Ok(Some(Word::Short(letter)));
            } else if let Some(path) = word.strip_prefix('@') {
                self.put_lines_of(PathBuf::from(path))?;
            } else {
                return Ok(Some(Word::Plain(word)));
            }
        }
    }

    /// Puts the lines of an arguments file in front; blank lines and lines that start with `#` are
    /// left out.
    fn put_lines_of(&mut self, path: PathBuf) -> Result<(), UsageError> {
        self.argument_files += 1;
        if self.argument_files > ARGUMENT_FILES_MAX {
            return Err(UsageError::TooManyArgumentFiles(path));
        }
        let content = std::fs::read_to_string(&path)
            .map_err(|source| UsageError::ArgumentFile { path, source })?;
        let lines = content.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        for line in lines.rev() {
            self.rest.push_front(OsString::from(line));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &[&str]) -> Vec<OsString> {
        line.iter().map(OsString::from).collect()
    }

    fn receive(line: &[&str]) -> Values {
        match parse(words(&[&["receive"], line].concat())) {
            Ok(Invocation::Receive(values)) => values,
            other => panic!("{line:?}: {other:?}"),
        }
    }

    #[test]
    fn values_stand_behind_an_equals_sign_or_in_the_next_word() {
        let values = receive(&["--tsdb.path=", "--receive.default-tenant-id", "a", "--"]);
        assert_eq!(values.text("tsdb.path"), "");
        assert_eq!(values.text("receive.default-tenant-id"), "a");
        assert_eq!(values.text("receive.tenant-header"), "THANOS-TENANT");
        let values = receive(&["--tsdb.max-retention-bytes=-1MB", "--label=a", "--label=a"]);
        assert_eq!(values.int("tsdb.max-retention-bytes"), -(1 << 20));
        assert_eq!(values.texts("label"), ["a", "a"]);
    }

    #[test]
    fn switches_have_a_negative_form() {
        assert!(receive(&[]).switch("tsdb.wal-compression"));
        assert!(!receive(&["--no-tsdb.wal-compression"]).switch("tsdb.wal-compression"));
    }

    #[test]
    fn global_flags_stand_before_the_command_too() {
        let line = ["--log.level=debug", "receive", "--log.format=json"];
        match parse(words(&line)) {
            Ok(Invocation::Receive(values)) => assert_eq!(values.text("log.level"), "debug"),
            other => panic!("{other:?}"),
        }
        let error = parse(words(&["--tsdb.path=x", "receive"])).unwrap_err();
        assert!(matches!(error, UsageError::UnknownLongFlag(name) if name == "tsdb.path"));
    }

    #[test]
    fn an_arguments_file_stands_for_its_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("args");
        let content = "# a comment\n\n--receive.tenant-header=X\n--tsdb.path\n";
        std::fs::write(&path, content).unwrap();
        let values = receive(&[&format!("@{}", path.display()), "data"]);
        assert_eq!(values.text("receive.tenant-header"), "X");
        assert_eq!(values.text("tsdb.path"), "data");

        std::fs::write(&path, format!("@{}\n", path.display())).unwrap();
        let error = parse(words(&["receive", &format!("@{}", path.display())])).unwrap_err();
        assert!(matches!(error, UsageError::TooManyArgumentFiles(_)), "{error}");
    }

    #[test]
    fn words_are_judged_before_values() {
        let error = parse(words(&["receive", "--log.level=trace", "--nope"])).unwrap_err();
        assert!(matches!(error, UsageError::UnknownLongFlag(_)), "{error}");
        let help = parse(words(&["receive", "--log.level=trace", "--help"]));
        assert!(matches!(help, Ok(Invocation::Print(text)) if text.contains("--tsdb.path")));
    }
}
