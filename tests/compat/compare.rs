//! What counts as the same answer.
//!
//! Strict are statuses, codes, exits and stored data; texts of errors are everybody's own. A status
//! or code taken from `accept` ends the comparison. `<any>` within an expected text stands for
//! anything.

use regex_automata::meta;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::chunks::{self, Point, Points};
use crate::grpc::Called;
use crate::proto;
use crate::suite::{self, Step};
use crate::support::http::Answer;

/// What differs; empty if nothing does.
pub(crate) type Differences = Vec<String>;

pub(crate) fn http(step: &Step, answer: Option<&Answer>) -> Differences {
    let Some(answer) = answer else {
        return if step.expected("closed").is_some() {
            Vec::new()
        } else {
            vec!["no answer came".into()]
        };
    };
    let status = json!(answer.status);
    if step.accepts("status", &status) {
        return Vec::new();
    }
    let body = String::from_utf8_lossy(&answer.body);
    if step.expected("status") != Some(&status) {
        let expected = step.expected("status").or(step.expected("closed"));
        return vec![format!("status {status}, expected {}: {body}", shown(expected))];
    }
    let mut differences = Vec::new();
    let expected_headers = step.expected("headers").and_then(Value::as_object);
    for (name, value) in expected_headers.into_iter().flatten() {
        if answer.header(name) != value.as_str() {
            differences.push(format!("header {name}: {:?}, expected {value}", answer.header(name)));
        }
    }
    let is_success = answer.status < 300;
    if let Some(Value::String(expected)) = step.expected("body").filter(|_| is_success)
        && !text_matches(expected, &body)
    {
        differences.push(format!("body {body:?}, expected {expected:?}"));
    }
    if let Some(expected) = step.expected("json") {
        let found = serde_json::from_str(&body).unwrap_or(Value::Null);
        if !value_matches(expected, &found) {
            differences.push(format!("json {found}, expected {expected}"));
        }
    }
    if let (Some(expected), Some(pattern)) = (step.expected("found"), step.text("keep")) {
        let found = json!(pattern_of(pattern).is_match(&*answer.body));
        if found != *expected && !step.accepts("found", &found) {
            differences.push(format!("{pattern} found: {found}, expected {expected}"));
        }
    }
    differences
}

/// The regular expression of a `re:…`, in which `^` means the start of any line.
fn pattern_of(pattern: &str) -> meta::Regex {
    let pattern = pattern.strip_prefix("re:").expect("a pattern");
    meta::Regex::new(&format!("(?m){pattern}")).expect("a pattern")
}

pub(crate) fn grpc(step: &Step, called: &Called) -> Differences {
    let code = called.code.map_or(Value::Null, |code| json!(code));
    if step.accepts("code", &code) {
        return Vec::new();
    }
    if step.expected("code") != Some(&code) {
        let expected = shown(step.expected("code"));
        return vec![format!("code {code}, expected {expected}: {}", called.message)];
    }
    let mut differences = Vec::new();
    if step.flag("raw_reply") {
        let expected_headers = step.expected("headers").and_then(Value::as_object);
        for (name, value) in expected_headers.into_iter().flatten() {
            // Wording is Thanos' own affair.
            if name == "grpc-message" {
                continue;
            }
            let found = called.headers.iter().find(|(other, _)| other == name);
            if found.map(|(_, value)| value.as_str()) != value.as_str() {
                differences.push(format!("header {name}: {found:?}, expected {value}"));
            }
        }
    }
    let Some(expected) = step.expected("replies") else { return differences };
    let mut expected = expected.clone();
    let mut found = match step.flag("summarise") {
        true => Value::Array(called.replies.iter().map(summary).collect()),
        false => Value::Array(called.replies.clone()),
    };
    if let Some(limit) = step.int("stats_limit") {
        blank_ties(&mut found, usize::try_from(limit).unwrap_or(usize::MAX));
    }
    for replies in [&mut expected, &mut found] {
        for path in step.list("unordered") {
            at_path(replies, &reply_path(path), &mut sort);
        }
        for path in step.list("volatile") {
            let path = reply_path(path);
            let (last, parents) = path.split_last().expect("a path");
            at_path(replies, parents, &mut |parent| {
                parent.as_object_mut().map(|fields| fields.shift_remove(*last));
            });
        }
    }
    let same = match step.accept_mode("replies") {
        Some("any") => true,
        Some("count") => list_lengths(&expected) == list_lengths(&found),
        Some("dedup") => dedup(expected.clone()) == dedup(found.clone()),
        Some(other) => panic!("unknown mode {other} of replies"),
        None => false,
    };
    if !same && !value_matches(&expected, &found) {
        differences.push(first_difference("replies", &expected, &found));
    }
    differences
}

/// Paths are written from the step's `expect` on.
fn reply_path(path: &Value) -> Vec<&str> {
    let path = path.as_str().expect("a path");
    let path = path.strip_prefix("replies").expect("a path of replies");
    path.split('.').skip(1).collect()
}

fn at_path(value: &mut Value, path: &[&str], change: &mut impl FnMut(&mut Value)) {
    match path.split_first() {
        None => change(value),
        Some((&"*", rest)) => {
            for value in value.as_array_mut().into_iter().flatten() {
                at_path(value, rest, change);
            }
        }
        Some((name, rest)) => {
            if let Some(value) = value.get_mut(*name) {
                at_path(value, rest, change);
            }
        }
    }
}

/// In top lists of `limit` places, names tied with the last one have no order in Thanos.
fn blank_ties(value: &mut Value, limit: usize) {
    let is_top_list = |values: &[Value]| {
        values.iter().all(|value| value.get("name").is_some() && value["value"].is_u64())
    };
    match value {
        Value::Array(values) if !values.is_empty() && is_top_list(values) => {
            let count = |entry: &Value| std::cmp::Reverse(entry["value"].as_u64());
            values.sort_by_key(|entry| (count(entry), entry["name"].to_string()));
            let last = values.last().map(count);
            if values.len() >= limit {
                for entry in values.iter_mut().filter(|entry| Some(count(entry)) == last) {
                    entry["name"] = json!("<any>");
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| blank_ties(value, limit)),
        Value::Object(fields) => fields.values_mut().for_each(|value| blank_ties(value, limit)),
        _ => {}
    }
}

fn sort(value: &mut Value) {
    if let Some(values) = value.as_array_mut() {
        values.sort_by_key(Value::to_string);
    }
}

fn dedup(mut value: Value) -> Value {
    match &mut value {
        Value::Array(values) => {
            let mut seen = Vec::new();
            for value in values.drain(..).map(dedup) {
                if !seen.contains(&value) {
                    seen.push(value);
                }
            }
            *values = seen;
        }
        Value::Object(fields) => {
            for field in fields.values_mut() {
                *field = dedup(field.take());
            }
        }
        _ => {}
    }
    value
}

/// How long the lists within each reply are.
fn list_lengths(replies: &Value) -> Vec<Vec<usize>> {
    let lists = |reply: &Value| {
        let fields = reply.as_object().into_iter().flat_map(|fields| fields.values());
        fields.filter_map(Value::as_array).map(Vec::len).collect()
    };
    replies.as_array().into_iter().flatten().map(lists).collect()
}

/// A frame of one series without its data.
fn summary(reply: &Value) -> Value {
    let Some(series) = reply.get("series") else { return reply.clone() };
    let chunks = series["chunks"].as_array().map_or(&[][..], Vec::as_slice);
    let data: Vec<Vec<u8>> = chunks
        .iter()
        .map(|chunk| suite::base64_bytes(chunk["raw"]["data"].as_str().unwrap_or_default()))
        .collect();
    let times = |key: &'static str| chunks.iter().filter_map(move |chunk| chunk[key].as_i64());
    let digest = Sha256::digest(data.concat());
    json!({
        "labels": series["labels"],
        "chunks": chunks.len(),
        "bytes": data.iter().map(Vec::len).sum::<usize>(),
        "sha256": digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
        "min_time": times("min_time").min(),
        "max_time": times("max_time").max(),
    })
}

/// Labels and points of series in the order they came; chunk borders do not count.
pub(crate) fn series(step: &Step, called: &Called) -> Differences {
    if called.code != Some(0) {
        return vec![format!("code {:?}: {}", called.code, called.message)];
    }
    let found = match stored(&called.replies) {
        Ok(found) => found,
        Err(error) => return vec![error],
    };
    let mode = step.accept_mode("series");
    if mode == Some("any") || (mode == Some("less") && found.is_empty()) {
        return Vec::new();
    }
    let recorded = step.expected("series").and_then(Value::as_array);
    let recorded = recorded.expect("series of a series step");
    let mut differences = Vec::new();
    for i in 0..recorded.len().max(found.len()) {
        let expected = recorded.get(i).map(recorded_series);
        if expected.as_ref() != found.get(i) {
            let found = found.get(i);
            differences.push(format!("series {i}: {found:?}, expected {expected:?}"));
        }
    }
    differences.truncate(5);
    differences
}

type Series = (Value, Points);

fn recorded_series(series: &Value) -> Series {
    let mut points = Points::new();
    for chunk in series["chunks"].as_array().expect("chunks") {
        let kind = chunk["type"].as_str().expect("a type");
        for point in chunk["points"].as_array().expect("points") {
            if kind != "XOR" {
                points.push(chunks::recorded_histogram(kind, point));
                continue;
            }
            let time = point[0].as_i64().expect("time");
            points.push((time, Point::Float(proto::double_bits(&point[1]))));
        }
    }
    (series["labels"].clone(), points)
}

fn stored(replies: &[Value]) -> Result<Vec<Series>, String> {
    let mut all: Vec<Series> = Vec::new();
    for series in replies.iter().filter_map(|reply| reply.get("series")) {
        let pair = |label: &Value| {
            let part = |key: &str| label.get(key).cloned().unwrap_or_else(|| json!(""));
            json!([part("name"), part("value")])
        };
        let labels = series["labels"].as_array().into_iter().flatten().map(pair).collect();
        let mut points = Points::new();
        for chunk in series["chunks"].as_array().into_iter().flatten() {
            let raw = &chunk["raw"];
            let kind = raw["type"].as_str().unwrap_or("XOR");
            points.extend(chunks::points(kind, raw["data"].as_str().unwrap_or_default())?);
        }
        match all.last_mut() {
            // A series too long for one frame goes on in the next.
            Some((before, more)) if *before == labels => more.extend(points),
            _ => all.push((labels, points)),
        }
    }
    Ok(all)
}

/// Whether `found` is `expected`, in which texts may hold `<any>`.
pub(crate) fn value_matches(expected: &Value, found: &Value) -> bool {
    match (expected, found) {
        (Value::String(expected), Value::String(found)) => text_matches(expected, found),
        (Value::Array(expected), Value::Array(found)) => {
            expected.len() == found.len()
                && expected
                    .iter()
                    .zip(found)
                    .all(|(expected, found)| value_matches(expected, found))
        }
        (Value::Object(expected), Value::Object(found)) => {
            expected.len() == found.len()
                && expected.iter().all(|(name, expected)| {
                    found.get(name).is_some_and(|found| value_matches(expected, found))
                })
        }
        _ => expected == found,
    }
}

fn text_matches(expected: &str, found: &str) -> bool {
    // Go's protobuf library writes one or the other kind of space, on purpose.
    let found = &*found.replace('\u{a0}', " ");
    let expected = &*expected.replace('\u{a0}', " ");
    let Some((first, parts)) = expected.split_once("<any>") else { return expected == found };
    let (middle, last) = parts.rsplit_once("<any>").unwrap_or(("", parts));
    let Some(mut rest) = found.strip_prefix(first) else { return false };
    for part in middle.split("<any>") {
        match rest.split_once(part) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// Where two values part, so that a failure fits on a screen.
pub(crate) fn first_difference(path: &str, expected: &Value, found: &Value) -> String {
    match (expected, found) {
        (Value::Array(expected), Value::Array(found)) => {
            let pairs = expected.iter().zip(found).enumerate();
            for (i, (expected, found)) in pairs {
                if !value_matches(expected, found) {
                    return first_difference(&format!("{path}.{i}"), expected, found);
                }
            }
            let i = expected.len().min(found.len());
            let (expected, found) = (expected.get(i), found.get(i));
            format!("{path}.{i}: {}, expected {}", shown(found), shown(expected))
        }
        (Value::Object(expected), Value::Object(found)) => {
            let names = expected.keys().chain(found.keys());
            for name in names {
                let (expected, found) = (expected.get(name), found.get(name));
                match (expected, found) {
                    (Some(expected), Some(found)) if value_matches(expected, found) => {}
                    (Some(expected), Some(found)) => {
                        return first_difference(&format!("{path}.{name}"), expected, found);
                    }
                    _ => {
                        return format!(
                            "{path}.{name}: {}, expected {}",
                            shown(found),
                            shown(expected)
                        );
                    }
                }
            }
            path.to_owned()
        }
        _ => format!("{path}: {found}, expected {expected}"),
    }
}

pub(crate) fn shown(value: Option<&Value>) -> String {
    value.map_or_else(|| "nothing".to_owned(), Value::to_string)
}
