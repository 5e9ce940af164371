//! The requests of `http` steps.

use std::time::Duration;

use serde_json::Value;

use crate::suite::{self, Step};
use crate::support::http::Request;
use crate::support::messages::{compressed, field, push_varint};
use crate::support::now;

pub(crate) fn request(step: &Step) -> Request {
    let header = |pair: &Value| {
        let name = pair[0].as_str().expect("header name").to_owned();
        (name, suite::text_or_bytes(&pair[1]))
    };
    Request {
        headers: step.list("headers").iter().map(header).collect(),
        body: body_of_step(step),
        version: step.text("version").unwrap_or("1.1").to_owned(),
        chunked: step.flag("chunked"),
        content_length: step.int("content_length"),
        half_close: step.flag("half_close"),
        timeout: Duration::from_secs_f64(step.number("timeout_s").unwrap_or(15.0)),
        ..Request::new(step.text("method").expect("method"), step.text("path").expect("path"))
    }
}

fn body_of_step(step: &Step) -> Option<Vec<u8>> {
    if let Some(rule) = step.0.get("gen") {
        return Some(compressed(&generated(rule)));
    }
    if let Some(mut plain) = step.bytes("plain_b64") {
        for patch in step.list("now_patches") {
            let offset = patch[0].as_u64().expect("offset") as usize;
            let time = now() + patch[1].as_i64().expect("milliseconds");
            let mut varint = Vec::new();
            push_varint(&mut varint, time as u64);
            assert_eq!(varint.len(), 6, "times of now take six bytes");
            plain[offset..offset + 6].copy_from_slice(&varint);
        }
        return Some(compressed(&plain));
    }
    step.bytes("body_b64")
}

/// One series of many samples, which spares the recording megabytes: sample i is at t0 + i·dt and
/// has the value (i·mul mod 2^32) / div.
fn generated(rule: &Value) -> Vec<u8> {
    let int = |key: &str| rule[key].as_u64().expect("a number of the rule");
    let name = rule["name"].as_str().expect("name");
    let label = [field(1, b"__name__"), field(2, name.as_bytes())].concat();
    let mut series = field(1, &label);
    for i in int("from")..int("to") {
        let numerator = i.wrapping_mul(int("mul")) % (1 << 32);
        let value = numerator as f64 / rule["div"].as_f64().expect("div");
        let mut sample = Vec::new();
        if value.to_bits() != 0 {
            sample.push(1 << 3 | 1);
            sample.extend_from_slice(&value.to_le_bytes());
        }
        sample.push(2 << 3);
        push_varint(&mut sample, int("t0") + i * int("dt"));
        series.extend(field(2, &sample));
    }
    field(1, &series)
}
