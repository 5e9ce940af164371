//! Every recorded command line: what Thanos refuses, we refuse with the same exit code and the same
//! key words; what it takes, we take, unless this version cannot do it yet and says so.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::net::TcpListener;
use std::os::unix::ffi::OsStringExt as _;
use std::path::Path;

use ringest::config::Config;
use ringest::config::command_line::{Invocation, parse};

use crate::program::{free_port, run, words};
use crate::support::certificates::Authority;

const RECORDED: &str = include_str!("../data/flags/startup-errors.tsv");

/// Said of flags whose function is still to come.
const NOT_YET: &str = "is not supported by this version";

/// Lines that Thanos takes and we refuse for good, with what we say.
const REFUSED_BY_US: [(&str, &str); 6] = [
    // Every write of a ring fails then.
    ("misc.grpc-service-config-bad", "--receive.grpc-service-config: EOF"),
    ("misc.grpc-service-config-bad-ring", "--receive.grpc-service-config: EOF"),
    ("ring.content-empty-array", "it has no hashrings"),
    // Names that leave the data directory, or that no write could have.
    ("tenant.default-empty", "tenant name is empty"),
    ("tenant.default-slash", "not a plain path element"),
    ("tenant.default-dotdot", "not a plain path element"),
];

/// Lines that both refuse, for which we have other key words.
const IN_OTHER_WORDS: [(&str, &str); 6] = [
    ("objstore.bad-yaml", "parsing config YAML file: yaml: line 1: unmarshal errors"),
    ("runtime.router-null-ring", "--receive.local-endpoint is needed"),
    ("label.bad-utf8-name", "is not valid UTF-8"),
    ("path.block-duration-zero", "--tsdb.min-block-duration: must be at least 30s"),
    ("path.max-block-duration-20s", "--tsdb.min-block-duration: must be at least 30s"),
    ("path.max-block-duration-5ms", "--tsdb.min-block-duration: must be at least 30s"),
];

const WAITS_FOR_FILE: &str = "alive and not ready until there is a usable file";

/// Lines whose outcome here is another one for a reason that holds for this version or this test.
const LEFT_OUT: [(&str, &str); 16] = [
    ("ring.file-missing", WAITS_FOR_FILE),
    ("ring.file-empty", WAITS_FOR_FILE),
    ("ring.file-empty-array", WAITS_FOR_FILE),
    ("ring.file-null", WAITS_FOR_FILE),
    ("ring.file-bad-json", WAITS_FOR_FILE),
    ("ring.file-object", WAITS_FOR_FILE),
    ("ring.file-is-dir", WAITS_FOR_FILE),
    ("ring.refresh-zero", "an interval of nothing is taken for the shortest"),
    ("label.none", "the hostname becomes the label"),
    ("path.no-permission-parent", "needs a user other than root"),
    ("path.no-permission-existing", "needs a user other than root"),
    ("path.tenant-wal-is-file", "a broken tenant does not stop the others"),
    ("path.max-block-duration-30s", "a panic of Thanos; taken here"),
    ("num.ooo-cap-300", "refused before storage opens, in other words"),
    ("enum.log-format-journald", "depends on the machine"),
    ("cli.global-before", "the recorded line has a flag of the command before it"),
];

struct Row {
    id: &'static str,
    args: &'static str,
    setup: &'static str,
    exit: &'static str,
    stage: &'static str,
    key: &'static str,
}

fn rows() -> Vec<Row> {
    let mut lines = RECORDED.lines().filter(|line| !line.starts_with('#'));
    let columns: Vec<&str> = lines.next().unwrap().split('\t').collect();
    lines
        .map(|line| {
            let row: HashMap<&str, &str> = columns.iter().copied().zip(line.split('\t')).collect();
            Row {
                id: row["id"],
                args: row["args"],
                setup: row["setup"],
                exit: row["exit"],
                stage: row["stage"],
                key: row["stderr_key"],
            }
        })
        .filter(|row| !row.args.starts_with("(running"))
        .filter(|row| LEFT_OUT.iter().all(|(id, _)| *id != row.id))
        .collect()
}

/// The words of a row's line, after what every recorded line had.
fn line_of(row: &Row, dir: &Path, busy_port: u16) -> Vec<OsString> {
    // Where a line names it a second time; else nobody need know it before.
    let http_port = if row.args.contains("<phttp>") { free_port() } else { 0 };
    let args = match row.args {
        "(none)" => String::new(),
        args => args
            .replace("<dir>", dir.to_str().unwrap())
            .replace("<pbusy>", &busy_port.to_string())
            .replace("<phttp>", &http_port.to_string())
            .replace("<pgrpc>", "1")
            .replace("<ppeer>", "2")
            .replace("<cert>", dir.join("localhost.crt").to_str().unwrap())
            .replace("<key>", dir.join("localhost.key").to_str().unwrap()),
    };
    let args: Vec<String> = if row.id.starts_with("cli.") {
        args.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect()
    } else {
        // Values may hold blanks.
        format!(" {args}").split(" --").skip(1).map(|arg| format!("--{arg}")).collect()
    };
    let mut line = match row.id {
        "cli.no-command" | "cli.help-long" | "cli.help-man" | "cli.version-root" => Vec::new(),
        _ => words(&["receive"]),
    };
    let base = [
        ("--http-address=", format!("127.0.0.1:{http_port}")),
        ("--grpc-address=", "127.0.0.1:0".to_owned()),
        ("--remote-write.address=", "127.0.0.1:0".to_owned()),
        ("--receive.capnproto-address=", "127.0.0.1:0".to_owned()),
        ("--tsdb.path=", dir.join("data").display().to_string()),
        ("--label=", "replica=\"a\"".to_owned()),
    ];
    for (flag, value) in base {
        let is_given = args.iter().any(|arg| arg.starts_with(flag));
        if !line.is_empty() && !is_given {
            line.push(format!("{flag}{value}").into());
        }
    }
    line.extend(args.into_iter().map(|arg| match arg.split_once("\\xff") {
        Some((before, after)) => {
            OsString::from_vec([before.as_bytes(), b"\xff", after.as_bytes()].concat())
        }
        None => arg.into(),
    }));
    line
}

fn set_up(row: &Row, dir: &Path) {
    if let Some(content) = row.setup.strip_prefix("file: ") {
        fs::write(dir.join("cfg"), content.replace("\\n", "\n")).unwrap();
    } else if row.args.contains("<dir>/cfg") {
        fs::write(dir.join("cfg"), "").unwrap();
    }
    if row.args.contains("<dir>/args") {
        fs::write(dir.join("args"), "# comment\n\n--receive.tenant-header=X\n").unwrap();
    }
    if row.args.contains("<dir>/f") {
        fs::write(dir.join("f"), "").unwrap();
    }
    if row.args.contains("<cert>") || row.args.contains("<key>") {
        Authority::new().issue(dir, "localhost");
    }
    if row.args.contains("<dir>/bad") {
        fs::write(dir.join("bad"), "nothing").unwrap();
    }
    if row.args.contains("<dir>/r") {
        fs::write(dir.join("r"), "[]").unwrap();
    }
}

#[test]
fn what_thanos_refuses_is_refused_with_the_same_code_and_words() {
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let busy_port = busy.local_addr().unwrap().port();
    let mut failures = Vec::new();
    let mut count = 0;
    for row in rows().into_iter().filter(|row| matches!(row.exit, "1" | "2")) {
        count += 1;
        let dir = tempfile::tempdir().unwrap();
        set_up(&row, dir.path());
        let output = run(&line_of(&row, dir.path(), busy_port));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        // What cannot be understood is told before the start, with a line on where to read on.
        let mut lines: Vec<&str> = said.lines().collect();
        let hint = lines.pop_if(|line| line.starts_with("ringest: `ringest "));
        let last = lines.last().copied().unwrap_or_default();
        // What ends Thanos with a panic is an ordinary error here.
        let code = if row.stage == "panic" { 1 } else { row.exit.parse().unwrap() };
        let other_words = IN_OTHER_WORDS.iter().find(|(id, _)| *id == row.id);
        let key = other_words.map_or(row.key, |(_, words)| words);
        let says_why = last.contains(key) || last.contains(NOT_YET);
        let is_told_early =
            matches!(row.stage, "grammar" | "value") || row.id == "label.bad-utf8-name";
        let is_one_line = lines.len() == 1 && hint.is_some() == is_told_early;
        let has_ended = output.status.code() == Some(code) && output.stdout.is_empty();
        if !has_ended || !says_why || !is_one_line {
            failures.push(format!(
                "{} ({}, {:?}): {}, {last}",
                row.id, row.exit, row.key, output.status
            ));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
    assert!(count > 150, "{count} rows");
}

/// Thanos takes no notice of such files: it serves plain text, or trusts whom the system trusts.
#[test]
fn an_authority_that_cannot_be_read_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    authority.issue(dir.path(), "localhost");
    fs::write(dir.path().join("nothing"), "nothing").unwrap();
    let half = dir.path().join("half");
    authority.write(&half);
    let whole = fs::read(&half).unwrap();
    fs::write(&half, &whole[..whole.len() / 2]).unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let server = |flags: &str| {
        let (cert, key) = (path("localhost.crt"), path("localhost.key"));
        vec![format!("--{flags}-cert={cert}"), format!("--{flags}-key={key}")]
    };
    let client = ["secure", "skip-verify"].map(|flag| format!("--remote-write.client-tls-{flag}"));
    let (nothing, half) =
        (("nothing", "failed to find any PEM data"), ("half", "section end marker"));
    for (line, flag, (bad, cause)) in [
        (server("grpc-server-tls"), "grpc-server-tls-client-ca", nothing),
        (server("grpc-server-tls"), "grpc-server-tls-client-ca", half),
        (server("remote-write.server-tls"), "remote-write.server-tls-client-ca", nothing),
        (client.to_vec(), "remote-write.client-tls-ca", nothing),
        (client.to_vec(), "remote-write.client-tls-ca", half),
    ] {
        let data = format!("--tsdb.path={}", path("data"));
        let ca = format!("--{flag}={}", path(bad));
        let words: Vec<OsString> = ["receive".to_owned(), "--label=a=\"b\"".to_owned(), data, ca]
            .into_iter()
            .chain(line)
            .map(OsString::from)
            .collect();
        let output = run(&words);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{flag}: {said}");
        let named = format!("--{flag}: {}: ", path(bad));
        let says_why = said.contains(&named) && said.contains(cause);
        assert!(said.lines().count() == 1 && says_why, "{flag}: {said}");
        assert!(!dir.path().join("data").exists(), "{flag}: nothing was made");
    }
}

#[test]
fn what_thanos_takes_is_taken_or_refused_for_a_reason() {
    let mut failures = Vec::new();
    let mut count = 0;
    for row in rows().into_iter().filter(|row| row.exit == "runs") {
        // Variables of the test process are left alone.
        if row.setup.starts_with("env ") {
            continue;
        }
        count += 1;
        let dir = tempfile::tempdir().unwrap();
        set_up(&row, dir.path());
        let line = line_of(&row, dir.path(), 1);
        let refusal = match parse(line) {
            Ok(Invocation::Receive(values)) => {
                Config::from_values(&values, "host-1").err().map(|error| error.to_string())
            }
            Ok(Invocation::Print(text)) => Some(text),
            Err(refused) => Some(format!("{:?}", refused.errors)),
        };
        let ours = REFUSED_BY_US.iter().find(|(id, _)| *id == row.id);
        let as_meant = match (&refusal, ours) {
            (None, None) => true,
            (None, Some(_)) => false,
            (Some(refusal), Some((_, words))) => refusal.contains(words),
            (Some(refusal), None) => refusal.contains(NOT_YET),
        };
        if !as_meant {
            failures.push(format!("{}: {refusal:?}", row.id));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
    assert!(count > 100, "{count} rows");
}

#[test]
fn a_start_names_all_that_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let data = format!("--tsdb.path={}", dir.path().join("data").display());
    let settings = [
        "receive",
        "--http-address=nowhere",
        "--objstore.config-file=/nonexistent/bucket.yaml",
        "--receive.tenants-max=0",
        "--receive.split-tenant-label-name=team",
    ];
    let said_of_settings = [
        "--http-address: address nowhere: missing port in address",
        "--objstore.config-file: loading file: no such file or directory",
        "--receive.tenants-max must be above 0",
        "--receive.split-tenant-label-name is not supported by this version",
    ];
    let output = run(&words(&[&settings[..], &[&data]].concat()));
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.lines().count(), said_of_settings.len(), "{said}");
    for part in said_of_settings {
        assert!(said.contains(part), "{part}: {said}");
    }

    // So it does beside words that nobody understands.
    let with_typo = [&settings[..], &[&data, "--nope=1", "--log.level=loud"]].concat();
    let output = run(&words(&with_typo));
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in said_of_settings.iter().chain(&["unknown long flag '--nope'", "--log.level: "]) {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(said.lines().last().unwrap().contains("`ringest receive --help`"), "{said}");
}

#[test]
fn a_check_tells_what_a_start_would_find_and_leaves_no_trace() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let data = format!("--tsdb.path={}", path("data"));
    let check = |flags: &[&str], how: &str| {
        let output = run(&words(&[&["receive", &data, how, "--label=a=\"b\""], flags].concat()));
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    assert_eq!(check(&[], "--check"), (Some(0), String::new()));
    // A port that somebody has is no matter.
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("--http-address={}", busy.local_addr().unwrap());
    assert_eq!(check(&[&address], "--check").0, Some(0));

    let harmless = ["--matcher-cache-size=9", "--enable-auto-gomemlimit"];
    let told = "no effect: --enable-auto-gomemlimit is accepted but";
    for (how, code) in [("--check", 0), ("--check=strict", 1)] {
        let (status, said) = check(&harmless, how);
        assert_eq!(status, Some(code), "{said}");
        assert!(said.contains("not yet: --matcher-cache-size is accepted but"), "{said}");
        assert!(said.contains(told) && said.lines().count() == 2, "{said}");
    }

    fs::write(path("half"), r#"[{"endpoints":["#).unwrap();
    fs::write(path("cert"), "nothing").unwrap();
    let ring = format!("--receive.hashrings-file={}", path("half"));
    let (cert, key) = (path("cert"), path("key"));
    let tls = ["remote-write.server", "grpc-server"];
    let tls = tls.map(|of| [format!("--{of}-tls-cert={cert}"), format!("--{of}-tls-key={key}")]);
    let tls: Vec<&str> = tls.iter().flatten().map(String::as_str).collect();
    let (status, said) = check(&[&[ring.as_str()], &tls[..]].concat(), "--check");
    assert_eq!(status, Some(1), "{said}");
    for part in ["error: --receive.hashrings-file: ", "grpc-server-tls", "remote-write.server-tls"]
    {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert_eq!(said.lines().count(), 3, "{said}");

    // The code is that of a start: 2 where only a value is wrong.
    let (status, said) = check(&["--log.level=loud", "--receive.tenants-max=0"], "--check");
    assert_eq!(status, Some(2), "{said}");
    assert!(said.contains("error: --log.level: "), "{said}");
    assert!(said.contains("error: --receive.tenants-max must be above 0"), "{said}");
    assert!(!dir.path().join("data").exists(), "nothing was made");
}

#[test]
fn questions_are_answered_on_standard_output() {
    let mut count = 0;
    for row in rows().into_iter().filter(|row| row.exit == "0") {
        count += 1;
        let dir = tempfile::tempdir().unwrap();
        let output = run(&line_of(&row, dir.path(), 1));
        assert!(output.status.success(), "{}: {}", row.id, output.status);
        assert!(!output.stdout.is_empty() && output.stderr.is_empty(), "{}", row.id);
    }
    assert_eq!(count, 6);
    let version = String::from_utf8(run(&words(&["--version"])).stdout).unwrap();
    assert!(version.starts_with("ringest, version "), "{version}");
}
