//! `ringest ring status`: asks the nodes of a ring what they say of themselves, and prints a line
//! for each.

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use futures::{StreamExt as _, stream};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;

use crate::model::target::Target;
use crate::ring_tool::ToolError;

/// Nodes that are asked at the same time.
const ASKED_MAX: usize = 16;

/// A ring of some thousand members has a page of a few hundred bytes for each.
const PAGE_BYTES_MAX: usize = 16 << 20;

/// An error is cut here, so that a line stays one.
const ERROR_CHARS_MAX: usize = 200;

pub(super) fn command() -> Command {
    Command::new("status")
        .about("Ask all members of a ring how they are, and whether they have the same rings")
        .long_about(
            "Ask all members of a ring how they are, and whether they have the same rings.\n\nThe \
             nodes given are asked for their page /api/v1/ring, then all members that it names, at \
             the host of the member and the port of the first URL. Each gets a line; STATE, \
             IN-FLIGHT and LAST ERROR are what the first node sees of it. Exits with 0 if all could \
             be asked and have the same rings, or else with 1. Only http is spoken.",
        )
        .arg(
            Arg::new("url")
                .long("url")
                .value_name("URL")
                .help("HTTP address of a node, http://host:10902; repeated or parted by commas")
                .required(true)
                .action(ArgAction::Append)
                .value_delimiter(',')
                .value_parser(Base::from_str),
        )
        .arg(
            Arg::new("http-port")
                .long("http-port")
                .value_name("PORT")
                .help("HTTP port of members that are not given, if not that of the first URL")
                .value_parser(value_parser!(u16).range(1..)),
        )
        .arg(
            Arg::new("timeout")
                .long("timeout")
                .help("Time that a node has to answer")
                .default_value("5s")
                .value_parser(humantime::parse_duration),
        )
}

/// Asks, prints, and tells whether all is well.
pub(super) fn run(matches: &ArgMatches) -> Result<ExitCode, ToolError> {
    let urls: Vec<Base> = matches.get_many("url").into_iter().flatten().cloned().collect();
    let Some(first) = urls.first() else { return Ok(ExitCode::FAILURE) };
    let port = matches.get_one::<u16>("http-port").copied().unwrap_or(first.port);
    let timeout = matches.get_one::<Duration>("timeout").copied().unwrap_or_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(ToolError::Runtime)?;
    let table = runtime.block_on(async {
        let asker = Asker { client: Client::builder(TokioExecutor::new()).build_http(), timeout };
        Table::ask(&asker, urls, port).await
    });
    let mut out = io::BufWriter::new(io::stdout().lock());
    write!(out, "{table}")?;
    out.flush()?;
    Ok(if table.is_well() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Where a node serves its HTTP address.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Base {
    /// `host:port`, or `[host]:port`.
    authority: String,
    port: u16,
    /// What stands before the paths, without a `/` at its end.
    prefix: String,
}

impl FromStr for Base {
    type Err = String;

    fn from_str(text: &str) -> Result<Base, String> {
        let uri: Uri = text.parse().map_err(|error| format!("{error}"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err("only http is spoken, not https".to_owned()),
            _ => return Err("a URL begins with http://".to_owned()),
        }
        let host = uri.host().filter(|host| !host.is_empty()).ok_or("it names no host")?;
        let port = uri.port_u16().unwrap_or(80);
        let prefix = uri.path().trim_end_matches('/').to_owned();
        Ok(Base { authority: format!("{host}:{port}"), port, prefix })
    }
}

impl Base {
    /// The HTTP address of a member, which is on the host of its endpoint.
    fn of_member(address: &str, port: u16) -> Base {
        let authority = match Target::parse(address, port) {
            Ok(Target { host, .. }) if host.contains(':') => format!("[{host}]:{port}"),
            Ok(Target { host, .. }) => format!("{host}:{port}"),
            // Nobody will be found there.
            Err(_) => address.to_owned(),
        };
        Base { authority, port, prefix: String::new() }
    }
}

/// What is read of a node's page. Nodes of other releases may say less or more.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Page {
    mode: String,
    ready: Option<bool>,
    source: Option<String>,
    ring_hash: Option<String>,
    error: Option<String>,
    held: Option<HeldRings>,
    hashrings: Vec<Hashring>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct HeldRings {
    ring_hash: String,
    reason: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Hashring {
    members: Vec<Member>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Member {
    address: String,
    is_local: bool,
    state: String,
    inflight_requests: u64,
    last_error: Option<String>,
}

impl Page {
    fn members(&self) -> impl Iterator<Item = &Member> {
        self.hashrings.iter().flat_map(|ring| &ring.members)
    }

    fn member(&self, address: &str) -> Option<&Member> {
        self.members().find(|member| member.address == address)
    }

    /// The node as its own rings name it.
    fn own_address(&self) -> Option<&str> {
        self.members().find(|member| member.is_local).map(|member| member.address.as_str())
    }
}

/// Why a node has not told about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Silence {
    Unreachable(String),
    /// It answers, but has no such page: a Thanos, say.
    NoPage {
        ready: Option<bool>,
        why: String,
    },
}

/// Asks nodes for their pages.
struct Asker {
    client: Client<HttpConnector, Empty<Bytes>>,
    timeout: Duration,
}

impl Asker {
    async fn ask(&self, base: &Base) -> Result<Page, Silence> {
        let asked = tokio::time::timeout(self.timeout, self.ask_patiently(base)).await;
        let late = |_| Err(Silence::Unreachable(format!("no answer in {:?}", self.timeout)));
        asked.unwrap_or_else(late)
    }

    async fn ask_patiently(&self, base: &Base) -> Result<Page, Silence> {
        let response = self.get(base, "/api/v1/ring").await.map_err(Silence::Unreachable)?;
        let page = match read_page(response).await {
            Ok(page) => page,
            Err(why) => return Err(Silence::NoPage { ready: self.is_ready(base).await, why }),
        };
        let ready = match page.ready {
            None => self.is_ready(base).await,
            ready => ready,
        };
        Ok(Page { ready, ..page })
    }

    async fn is_ready(&self, base: &Base) -> Option<bool> {
        let response = self.get(base, "/-/ready").await.ok()?;
        Some(response.status() == StatusCode::OK)
    }

    async fn get(&self, base: &Base, path: &str) -> Result<Response<Incoming>, String> {
        let Base { authority, prefix, .. } = base;
        let request = Request::get(format!("http://{authority}{prefix}{path}"));
        let request = request.body(Empty::new()).map_err(|error| error.to_string())?;
        self.client.request(request).await.map_err(|error| cause(&error))
    }

    /// Asks all, some at a time. The answers come in the order of the questions.
    async fn ask_all(&self, bases: &[Base]) -> Vec<Result<Page, Silence>> {
        stream::iter(bases).map(|base| self.ask(base)).buffered(ASKED_MAX).collect().await
    }
}

async fn read_page(response: Response<Incoming>) -> Result<Page, String> {
    let status = response.status();
    let body = Limited::new(response.into_body(), PAGE_BYTES_MAX).collect().await;
    let body = body.map_err(|error| error.to_string())?.to_bytes();
    if status != StatusCode::OK {
        return Err(format!("/api/v1/ring answers {}", status.as_u16()));
    }
    serde_json::from_slice(&body)
        .map_err(|error| format!("/api/v1/ring is no page of ours: {error}"))
}

/// The innermost cause, which says what happened.
fn cause(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// A node's line.
struct Row {
    address: String,
    answer: Result<Page, Silence>,
    /// As the first node sees it.
    seen: Option<Member>,
}

/// All lines.
struct Table {
    rows: Vec<Row>,
}

impl Table {
    /// Asks the nodes given, then all members that they name and that have not answered yet.
    async fn ask(asker: &Asker, given: Vec<Base>, port: u16) -> Table {
        let answers = asker.ask_all(&given).await;
        let mut members: Vec<&Member> = Vec::new();
        for member in answers.iter().flatten().flat_map(Page::members) {
            if !members.iter().any(|known| known.address == member.address) {
                members.push(member);
            }
        }
        let own = |answer: &Result<Page, Silence>| {
            answer.as_ref().ok().and_then(|page| page.own_address().map(str::to_owned))
        };
        let given_as: Vec<Option<String>> = answers.iter().map(own).collect();
        let is_given = |member: &&&Member| given_as.iter().flatten().any(|a| *a == member.address);
        let others: Vec<&Member> = members.iter().filter(|m| !is_given(m)).copied().collect();
        let bases: Vec<_> =
            others.iter().map(|member| Base::of_member(&member.address, port)).collect();
        let told = asker.ask_all(&bases).await;

        let first = answers.iter().flatten().next().cloned();
        let row = |address: String, answer| {
            let seen = first.as_ref().and_then(|page| page.member(&address)).cloned();
            Row { address, answer, seen }
        };
        let named = given.into_iter().zip(given_as);
        let given = named.map(|(base, own)| own.unwrap_or(base.authority)).zip(answers.clone());
        let others = others.into_iter().map(|member| member.address.clone());
        let others = others.zip(told).map(|(address, answer)| {
            let answer = answer.and_then(|page| expect_member(page, &address));
            (address, answer)
        });
        let mut rows: Vec<Row> = Vec::new();
        for (address, answer) in given.chain(others) {
            // A node may be given twice, under two names.
            if !rows.iter().any(|known| known.address == address) {
                rows.push(row(address, answer));
            }
        }
        Table { rows }
    }

    /// The rings that the others are held against: those of the first node that has some.
    fn reference(&self) -> Option<&str> {
        self.rows.iter().find_map(|row| row.answer.as_ref().ok()?.ring_hash.as_deref())
    }

    /// All are reachable and have the same rings.
    fn is_well(&self) -> bool {
        let reference = self.reference();
        self.rows.iter().all(|row| match row.ring() {
            RingCell::None => row.answer.is_ok(),
            RingCell::Hash(hash) => Some(hash) == reference,
            RingCell::Missing | RingCell::Unknown => false,
        })
    }
}

/// Several members may be behind one host and port.
fn expect_member(page: Page, address: &str) -> Result<Page, Silence> {
    match page.own_address() {
        Some(own) if own != address => {
            let why = format!("that is {own}; give the node's own address with --url");
            Err(Silence::Unreachable(why))
        }
        _ => Ok(page),
    }
}

enum RingCell<'a> {
    /// A node without rings.
    None,
    Hash(&'a str),
    /// There are to be some, but none are in force yet.
    Missing,
    /// It does not say.
    Unknown,
}

impl Row {
    fn ring(&self) -> RingCell<'_> {
        match &self.answer {
            Ok(Page { ring_hash: Some(hash), .. }) => RingCell::Hash(hash),
            Ok(Page { source: None, .. }) => RingCell::None,
            Ok(page) if page.hashrings.is_empty() => RingCell::Missing,
            Ok(_) | Err(_) => RingCell::Unknown,
        }
    }

    fn cells(&self, reference: Option<&str>) -> [String; 8] {
        let (mode, ready) = match &self.answer {
            Ok(page) => (page.mode.as_str(), page.ready),
            Err(Silence::NoPage { ready, .. }) => ("?", *ready),
            Err(Silence::Unreachable(_)) => ("?", None),
        };
        let is_reachable = !matches!(self.answer, Err(Silence::Unreachable(_)));
        let yes = |is: bool| if is { "yes" } else { "no" };
        let ring = match self.ring() {
            RingCell::None => "-".to_owned(),
            RingCell::Hash(hash) if Some(hash) == reference => hash.to_owned(),
            RingCell::Hash(hash) => format!("{hash} *"),
            RingCell::Missing => "none yet *".to_owned(),
            RingCell::Unknown => "?".to_owned(),
        };
        let seen = self.seen.as_ref();
        let error = match &self.answer {
            Err(Silence::Unreachable(why) | Silence::NoPage { why, .. }) => Some(why.as_str()),
            Ok(_) => seen.and_then(|member| member.last_error.as_deref()),
        };
        [
            self.address.clone(),
            yes(is_reachable).to_owned(),
            mode.to_owned(),
            ready.map_or("?", yes).to_owned(),
            ring,
            seen.map_or("-".to_owned(), |member| member.state.clone()),
            seen.map_or("-".to_owned(), |member| member.inflight_requests.to_string()),
            one_line(error.unwrap_or("-")),
        ]
    }
}

fn one_line(text: &str) -> String {
    let is_odd = |c: char| c.is_control();
    text.chars().map(|c| if is_odd(c) { ' ' } else { c }).take(ERROR_CHARS_MAX).collect()
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const TITLES: [&str; 8] =
            ["ADDRESS", "REACHABLE", "MODE", "READY", "RING", "STATE", "IN-FLIGHT", "LAST ERROR"];
        let reference = self.reference();
        let lines = std::iter::once(TITLES.map(str::to_owned));
        let lines: Vec<_> = lines
            .chain(self.rows.iter().map(|row| row.cells(reference).map(|c| one_line(&c))))
            .collect();
        let width = |column: usize| {
            lines.iter().map(|line| line[column].chars().count()).max().unwrap_or_default()
        };
        let widths: [usize; 8] = std::array::from_fn(width);
        for line in &lines {
            let padded = line.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
            writeln!(f, "{}", padded.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        let notes = self.rows.iter().flat_map(Row::notes).collect::<Vec<_>>();
        if !notes.is_empty() {
            writeln!(f)?;
            notes.iter().try_for_each(|note| writeln!(f, "{note}"))?;
        }
        Ok(())
    }
}

impl Row {
    /// What does not fit a line.
    fn notes(&self) -> Vec<String> {
        let Ok(page) = &self.answer else { return Vec::new() };
        let held = page.held.as_ref().map(|held| {
            let HeldRings { ring_hash, reason } = held;
            one_line(&format!("{} holds back {ring_hash}: {reason}", self.address))
        });
        let error = page.error.as_ref();
        let error = error.map(|error| one_line(&format!("{}: {error}", self.address)));
        held.into_iter().chain(error).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(json: &str) -> Result<Page, Silence> {
        Ok(serde_json::from_str(json).unwrap())
    }

    fn row(address: &str, answer: Result<Page, Silence>, seen: Option<Member>) -> Row {
        Row { address: address.to_owned(), answer, seen }
    }

    #[test]
    fn a_url_is_plain_http_with_a_host() {
        let base = |text: &str| Base::from_str(text);
        let parts = |base: Base| (base.authority, base.port, base.prefix);
        let of =
            |authority: &str, port, prefix: &str| (authority.to_owned(), port, prefix.to_owned());
        assert_eq!(parts(base("http://a:10902").unwrap()), of("a:10902", 10902, ""));
        assert_eq!(parts(base("http://[::1]:7/p/").unwrap()), of("[::1]:7", 7, "/p"));
        assert_eq!(parts(base("http://a").unwrap()), of("a:80", 80, ""));
        assert_eq!(base("https://a").unwrap_err(), "only http is spoken, not https");
        assert!(base("a:10902").is_err() && base("http://").is_err());
        assert_eq!(Base::of_member("n-0.svc:10901", 10902).authority, "n-0.svc:10902");
        assert_eq!(Base::of_member("[fd00::1]:10901", 10902).authority, "[fd00::1]:10902");
        assert_eq!(Base::of_member("dns:///n-0:10901", 10902).authority, "n-0:10902");
    }

    #[test]
    fn each_node_has_a_line_and_a_ring_that_differs_is_marked() {
        let here = r#"{"mode":"RouterIngestor","ready":true,"source":"f","ring_hash":"0123456789ab",
            "hashrings":[{"members":[]}]}"#;
        let there = r#"{"mode":"RouterIngestor","ready":false,"source":"f","ring_hash":"ffff56789ab0",
            "error":"line 3","held":{"ring_hash":"00","reason":"why"},"hashrings":[]}"#;
        let shut = Member {
            address: "b:1".to_owned(),
            state: "shut".to_owned(),
            inflight_requests: 7,
            last_error: Some("peer\nb".to_owned()),
            ..Member::default()
        };
        let dead = Err(Silence::Unreachable("Connection refused".to_owned()));
        let alone = r#"{"mode":"IngestorOnly","ready":true,"unknown":[1]}"#;
        let thanos = Err(Silence::NoPage { ready: Some(true), why: "answers 404".to_owned() });
        let mut table = Table {
            rows: vec![
                row("a:1", page(here), None),
                row("b:1", page(there), Some(shut)),
                row("c:1", dead, None),
                row("d:1", page(alone), None),
                row("e:1", thanos, None),
            ],
        };
        let expected = "\
ADDRESS  REACHABLE  MODE            READY  RING            STATE  IN-FLIGHT  LAST ERROR
a:1      yes        RouterIngestor  yes    0123456789ab    -      -          -
b:1      yes        RouterIngestor  no     ffff56789ab0 *  shut   7          peer b
c:1      no         ?               ?      ?               -      -          Connection refused
d:1      yes        IngestorOnly    yes    -               -      -          -
e:1      yes        ?               yes    ?               -      -          answers 404

b:1 holds back 00: why
b:1: line 3
";
        assert_eq!(table.to_string(), expected);
        assert!(!table.is_well());
        table.rows.remove(4);
        table.rows.remove(2);
        assert!(!table.is_well(), "another ring");
        table.rows.remove(1);
        assert!(table.is_well());
        let none_yet = page(r#"{"mode":"RouterOnly","source":"f","hashrings":[]}"#);
        table.rows.push(row("f:1", none_yet, None));
        assert!(!table.is_well(), "none yet");
    }

    #[test]
    fn a_node_that_stands_in_for_another_is_not_taken_for_it() {
        let json = r#"{"hashrings":[{"members":[{"address":"a:1","is_local":true}]}]}"#;
        assert!(expect_member(page(json).unwrap(), "a:1").is_ok());
        let refused = expect_member(page(json).unwrap(), "b:1").unwrap_err();
        assert!(matches!(refused, Silence::Unreachable(why) if why.contains("a:1")));
    }
}
