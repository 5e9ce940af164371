//! What the program tells about itself: help, manual page, words for shells.

use std::fmt::Write as _;

use crate::config::flags::{FLAGS, Flag, Kind, Support};

/// Printed when no command is given.
pub const COMMANDS: &str = "\
usage: ringest [<flags>] <command> [<flags>]

Commands:
  receive   Take remote write from Prometheus and others, keep it, serve it to queriers.
  ring      Tell where series belong in a ring, what a change of it moves, how it is.
  load      Send load to a receiver and verify what it kept.
  help      Print this, or the help of a command.
  version   Print the version.

`ringest <command> --help` lists a command's flags.
";

/// Which flags a usage text lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    WithoutHidden,
    Whole,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Section {
    OfThanos,
    Own,
    DefaultOnly,
}

impl Section {
    const ALL: [Section; 3] = [Section::OfThanos, Section::Own, Section::DefaultOnly];

    fn of(flag: &Flag) -> Section {
        match flag.support {
            _ if flag.own => Section::Own,
            Support::NotYet => Section::DefaultOnly,
            Support::Implemented | Support::Awaited(_) | Support::NoMeaning(_) => Section::OfThanos,
        }
    }

    fn title(self) -> &'static str {
        match self {
            Section::OfThanos => "Flags, as in thanos receive",
            Section::Own => "Flags of Ringest alone",
            Section::DefaultOnly => {
                "Flags of thanos receive that this version takes with their default only"
            }
        }
    }
}

const WIDTH: usize = 80;
const HELP_COLUMN: usize = 33;

/// The text of `ringest receive --help`.
pub fn receive(extent: Extent) -> String {
    let mut text = String::from(
        "usage: ringest receive [<flags>]\n\n\
         Take remote write from Prometheus and others, keep it, serve it to queriers.\n",
    );
    for section in Section::ALL {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "\n{}:", section.title());
        let shown = |flag: &&Flag| extent == Extent::Whole || !flag.hidden;
        for flag in FLAGS.iter().filter(shown).filter(|flag| Section::of(flag) == section) {
            push_flag(&mut text, flag);
        }
    }
    text
}

fn push_flag(text: &mut String, flag: &Flag) {
    let short = if flag.name == "help" { "-h, " } else { "    " };
    let head = format!("  {short}{}", synopsis(flag));
    text.push_str(&head);
    let mut column = head.len();
    // The help goes to the next line if the flag reaches into its column.
    if column + 2 > HELP_COLUMN {
        text.push('\n');
        column = 0;
    }
    let _ = write!(text, "{:1$}", "", HELP_COLUMN - column);
    column = HELP_COLUMN;
    for word in flag.help.split(' ') {
        if column + 1 + word.len() > WIDTH {
            let _ = write!(text, "\n{:1$}", "", HELP_COLUMN);
            column = HELP_COLUMN;
        } else if column > HELP_COLUMN {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += word.len();
    }
    text.push('\n');
}

/// The flag as it is written, with its default or what its value is.
fn synopsis(flag: &Flag) -> String {
    let name = flag.name;
    let dots = if flag.repeatable { " ..." } else { "" };
    match flag.kind {
        Kind::Switch => format!("--[no-]{name}"),
        Kind::Label => format!("--{name}=<name>=\"<value>\"{dots}"),
        Kind::Check => format!("--{name}[=strict]"),
        Kind::Content => format!("--{name}=<content>"),
        _ if !flag.default.is_empty() => format!("--{name}={}", flag.default),
        Kind::Path => format!("--{name}=<file-path>"),
        _ if flag.repeatable => format!("--{name}=<value>{dots}"),
        _ => format!("--{name}=\"\""),
    }
}

/// The manual page, for `man -l`.
pub fn man() -> String {
    let mut page = String::from(
        ".TH ringest 1\n.SH NAME\nringest \\- takes remote write in the place of thanos receive\n\
         .SH SYNOPSIS\n\\fBringest receive\\fR [<flags>]\n",
    );
    for section in Section::ALL {
        let _ = writeln!(page, ".SH {}", section.title().to_uppercase());
        for flag in FLAGS.iter().filter(|flag| Section::of(flag) == section) {
            let synopsis = synopsis(flag).replace('-', "\\-");
            let _ = writeln!(page, ".TP\n\\fB{synopsis}\\fR\n{}", flag.help);
        }
    }
    page
}

/// Every word that a command line may hold, one a line.
pub fn completion_words() -> String {
    let mut words = String::from("receive\nring\nload\nhelp\nversion\n");
    for flag in FLAGS.iter().filter(|flag| !flag.hidden) {
        let _ = writeln!(words, "--{}", flag.name);
    }
    words
}

pub const COMPLETION_SCRIPT_BASH: &str = r#"_ringest() {
    COMPREPLY=($(compgen -W "$("${COMP_WORDS[0]}" --completion-bash)" -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _ringest ringest
"#;

pub const COMPLETION_SCRIPT_ZSH: &str = r#"#compdef ringest
autoload -U compinit && compinit
autoload -U bashcompinit && bashcompinit
_ringest() {
    COMPREPLY=($(compgen -W "$("${COMP_WORDS[1]}" --completion-bash)" -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _ringest ringest
"#;
