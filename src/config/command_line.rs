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

/// A command line with words that cannot be understood or values that flags do not take.
#[derive(Debug)]
pub struct Refused {
    /// All of them, at least one.
    pub errors: Vec<UsageError>,
    /// What was understood, if it is a receiver's.
    pub values: Option<Values>,
}

impl Refused {
    /// 1 when words are not understood, 2 when only values are wrong, as in Thanos.
    pub fn exit_code(&self) -> ExitCode {
        let is_of_value = |error: &UsageError| {
            matches!(error, UsageError::Repeated(_) | UsageError::Value { .. })
        };
        ExitCode::from(if self.errors.iter().all(is_of_value) { 2 } else { 1 })
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

/// How strictly `--check` judges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// As a start would.
    Usual,
    /// What has no effect, or none yet, is an error.
    Strict,
}

const STRICT: &str = "strict";

/// Values by flag, with the table's defaults for flags that were not given.
#[derive(Debug, Default)]
pub struct Values {
    given: HashMap<&'static str, Vec<Value>>,
}

impl Values {
    pub fn is_given(&self, flag: &Flag) -> bool {
        self.given.contains_key(flag.name)
    }

    /// What `--check` asks for, if it is given.
    pub fn check(&self) -> Option<Check> {
        match self.given.get("check")?.last()? {
            Value::Text(text) if text == STRICT => Some(Check::Strict),
            _ => Some(Check::Usual),
        }
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
pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Invocation, Refused> {
    let mut line = Line { words: Words::of(words), given: Vec::new(), command: None };
    let mut errors = Vec::new();
    loop {
        match line.take_word() {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) => {
                // Which flags there are depends on the command.
                let is_end = matches!(error, UsageError::UnknownCommand(_));
                errors.push(error);
                if is_end {
                    return Err(Refused { errors, values: None });
                }
            }
        }
    }
    let Line { given, command, .. } = line;
    // Help is wanted most when something else is wrong, so it goes before the check of the values.
    if errors.is_empty()
        && let Some(text) = asked_for(&given, command)
    {
        return Ok(Invocation::Print(text));
    }
    let values = check_values(given, &mut errors);
    match (errors.is_empty(), command) {
        (true, Some(_)) => Ok(Invocation::Receive(values)),
        (true, None) => Ok(Invocation::Print(usage::COMMANDS.to_owned())),
        (false, command) => {
            let values = command.filter(|command| *command == Command::Receive).map(|_| values);
            Err(Refused { errors, values })
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    Receive,
    Help,
}

/// A command line as far as it was taken.
struct Line {
    words: Words,
    given: Vec<(&'static Flag, Raw)>,
    command: Option<Command>,
}

impl Line {
    /// Takes a word, and the next one too if that is its value; false at the end.
    fn take_word(&mut self) -> Result<bool, UsageError> {
        let Some(word) = self.words.next()? else { return Ok(false) };
        match word {
            Word::Long { name, value } => match find_long(&name, self.command.is_some()) {
                Ok((flag, on)) => {
                    let raw = raw_value(flag, on, value, &mut self.words)?;
                    self.given.push((flag, raw));
                }
                Err(error) => {
                    // A word behind it is most likely its value.
                    if value.is_none() && self.command.is_some() {
                        self.words.skip_plain();
                    }
                    return Err(error);
                }
            },
            Word::Short('h') => self.given.push((flags::named("help"), Raw::Switch(true))),
            Word::Short(letter) => return Err(UsageError::UnknownShortFlag(letter)),
            Word::Plain(word) => match (self.command, word.as_str()) {
                (None, "receive") => self.command = Some(Command::Receive),
                (None, "help") => self.command = Some(Command::Help),
                (Some(Command::Help), "receive") => {
                    self.command = Some(Command::Receive);
                    self.given.push((flags::named("help"), Raw::Switch(true)));
                }
                (None, "version") => {
                    self.given.push((flags::named("version"), Raw::Switch(true)));
                }
                (Some(Command::Receive), _) => return Err(UsageError::UnexpectedWord(word)),
                _ => return Err(UsageError::UnknownCommand(word)),
            },
        }
        Ok(true)
    }
}

/// What a line prints that asks for nothing else.
fn asked_for(given: &[(&'static Flag, Raw)], command: Option<Command>) -> Option<String> {
    let is_receive = command == Some(Command::Receive);
    let by_switch = given.iter().find_map(|(flag, raw)| match raw {
        Raw::Switch(true) => printed_by(flag.name, is_receive),
        _ => None,
    });
    by_switch.or_else(|| (command == Some(Command::Help)).then(|| usage::COMMANDS.to_owned()))
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
    match (flag.kind, value.is_some()) {
        (Kind::Switch, false) => return Ok(Raw::Switch(on)),
        (Kind::Switch, true) => {
            let value = value.unwrap_or_default();
            return Err(UsageError::UnexpectedValue { flag: flag.name, value });
        }
        (Kind::Check, false) => return Ok(Raw::Text(String::new())),
        _ => {}
    }
    if let Some(value) = value {
        return Ok(Raw::Text(value));
    }
    match words.next()? {
        Some(Word::Plain(value)) => Ok(Raw::Text(value)),
        _ => Err(UsageError::MissingValue(flag.name)),
    }
}

/// The values that their flags take.
fn check_values(given: Vec<(&'static Flag, Raw)>, errors: &mut Vec<UsageError>) -> Values {
    let mut values = Values::default();
    for (flag, raw) in given {
        let value = match raw {
            Raw::Switch(on) => Ok(Value::Switch(on)),
            Raw::Text(text) => parse_value(flag.kind, &text)
                .map_err(|source| UsageError::Value { flag: flag.name, source }),
        };
        let of_flag = values.given.entry(flag.name).or_default();
        match value {
            Ok(_) if !of_flag.is_empty() && !flag.repeatable => {
                errors.push(UsageError::Repeated(flag.name));
            }
            Ok(value) => of_flag.push(value),
            Err(error) => errors.push(error),
        }
    }
    // Of a flag without any value that it takes nothing is known.
    values.given.retain(|_, values| !values.is_empty());
    values
}

/// Checks a value against its flag's grammar. Labels, addresses and paths are judged when used.
pub fn parse_value(kind: Kind, text: &str) -> Result<Value, ValueError> {
    match kind {
        Kind::Switch => grammar::choice(text, &["true", "false"])?,
        Kind::Choice(choices) => grammar::choice(text, choices)?,
        Kind::Check if !text.is_empty() => grammar::choice(text, &[STRICT])?,
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
        Kind::Choice(_)
        | Kind::Check
        | Kind::Text
        | Kind::Path
        | Kind::Content
        | Kind::Address
        | Kind::Label => Value::Text(text.to_owned()),
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

    /// Takes the next word if it can only be a value.
    fn skip_plain(&mut self) {
        let is_plain = |word: &OsString| {
            let word = word.as_encoded_bytes();
            self.flags_ended || !(word.starts_with(b"-") || word.starts_with(b"@"))
        };
        if self.rest.front().is_some_and(is_plain) {
            self.rest.pop_front();
        }
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
    #[expect(clippy::disallowed_methods, reason = "before anything is started")]
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

    fn refused(line: &[&str]) -> Vec<UsageError> {
        match parse(words(line)) {
            Err(refused) => refused.errors,
            Ok(other) => panic!("{line:?}: {other:?}"),
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
        let [error] = refused(&["--tsdb.path=x", "receive"]).try_into().unwrap();
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
        let [error] = refused(&["receive", &format!("@{}", path.display())]).try_into().unwrap();
        assert!(matches!(error, UsageError::TooManyArgumentFiles(_)), "{error}");
    }

    #[test]
    fn all_that_is_wrong_is_told_at_once_by_the_name_that_was_written() {
        let line = [
            "receive",
            "--log.level=trace",
            "--nope",
            "its value",
            "--no-tsdb.path",
            "--tsdb.wal-compression=false",
            "--tsdb.retention=a",
            "--tsdb.path=x",
            "--tsdb.path=y",
            "stray",
            "--receive.tenant-header",
        ];
        let texts: Vec<String> = refused(&line).iter().map(UsageError::to_string).collect();
        let expected = [
            "unknown long flag '--nope'",
            "unknown long flag '--no-tsdb.path'",
            "unexpected false",
            "unexpected stray",
            "expected argument for flag '--receive.tenant-header'",
            "--log.level: ",
            "--tsdb.retention: ",
            "flag '--tsdb.path' cannot be repeated",
        ];
        assert_eq!(texts.len(), expected.len(), "{texts:#?}");
        for (text, expected) in texts.iter().zip(expected) {
            assert!(text.starts_with(expected), "{texts:#?}");
        }
        let values = parse(words(&line)).unwrap_err().values.unwrap();
        assert_eq!(
            (values.text("tsdb.path"), values.text("log.level")),
            ("x".into(), "info".into())
        );
    }

    #[test]
    fn help_and_version_are_commands_and_flags() {
        let printed = |line: &[&str]| match parse(words(line)) {
            Ok(Invocation::Print(text)) => text,
            other => panic!("{line:?}: {other:?}"),
        };
        for line in [&["receive", "--log.level=trace", "--help"][..], &["help", "receive"]] {
            assert!(printed(line).contains("--tsdb.path"), "{line:?}");
        }
        for line in [&["--help"][..], &["help"], &["-h"], &[]] {
            assert_eq!(printed(line), usage::COMMANDS, "{line:?}");
        }
        assert_eq!(printed(&["version"]), version());
        let [error] = refused(&["help", "nope"]).try_into().unwrap();
        assert!(matches!(error, UsageError::UnknownCommand(_)), "{error}");
    }

    #[test]
    fn check_takes_a_word_or_none() {
        assert_eq!(receive(&[]).check(), None);
        assert_eq!(receive(&["--check", "--tsdb.path=x"]).check(), Some(Check::Usual));
        assert_eq!(receive(&["--check=strict"]).check(), Some(Check::Strict));
        assert!(matches!(refused(&["receive", "--check=no"])[..], [UsageError::Value { .. }]));
    }
}
