//! Suites as they are recorded: one JSON file each.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
pub(crate) struct Suite {
    pub server: Server,
    pub steps: Vec<Step>,
}

#[derive(Deserialize)]
pub(crate) struct Server {
    pub args: Vec<String>,
    #[serde(default)]
    pub files: BTreeMap<String, String>,
    #[serde(default)]
    pub stubs: BTreeMap<String, Value>,
    pub wait: String,
}

/// One step, with access to its fields by name: most belong to some kinds only.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
pub(crate) struct Step(pub Value);

impl Step {
    pub(crate) fn id(&self) -> &str {
        self.text("id").expect("a step has an id")
    }

    pub(crate) fn kind(&self) -> &str {
        self.text("kind").expect("a step has a kind")
    }

    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.as_str()
    }

    pub(crate) fn flag(&self, key: &str) -> bool {
        self.0.get(key).and_then(Value::as_bool).unwrap_or(false)
    }

    pub(crate) fn int(&self, key: &str) -> Option<i64> {
        self.0.get(key)?.as_i64()
    }

    pub(crate) fn number(&self, key: &str) -> Option<f64> {
        self.0.get(key)?.as_f64()
    }

    pub(crate) fn list(&self, key: &str) -> &[Value] {
        self.0.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn bytes(&self, key: &str) -> Option<Vec<u8>> {
        self.text(key).map(base64_bytes)
    }

    /// A value of `expect`.
    pub(crate) fn expected(&self, key: &str) -> Option<&Value> {
        self.0.get("expect")?.get(key)
    }

    /// Whether `accept` lists `value` under `key`.
    pub(crate) fn accepts(&self, key: &str, value: &Value) -> bool {
        let listed = self.0.get("accept").and_then(|accept| accept.get(key));
        listed.and_then(Value::as_array).is_some_and(|values| values.contains(value))
    }

    /// A mode of `accept`, such as `"series": "any"`.
    pub(crate) fn accept_mode(&self, key: &str) -> Option<&str> {
        self.0.get("accept")?.get(key)?.as_str()
    }
}

pub(crate) fn base64_bytes(text: &str) -> Vec<u8> {
    BASE64_STANDARD.decode(text).expect("recorded base64")
}

/// A text, or bytes that are none.
pub(crate) fn text_or_bytes(value: &Value) -> Vec<u8> {
    match value {
        Value::String(text) => text.as_bytes().to_vec(),
        other => base64_bytes(other["b64"].as_str().expect("text or b64")),
    }
}

fn dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/http")
}

/// The names of all recorded suites, sorted.
pub(crate) fn names() -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir())
        .expect("recorded suites")
        .filter_map(|entry| {
            let name = entry.expect("recorded suite").file_name().into_string().ok()?;
            Some(name.strip_suffix(".json")?.to_owned())
        })
        .collect();
    names.sort();
    names
}

pub(crate) fn load(name: &str) -> Suite {
    let text = fs::read_to_string(dir().join(format!("{name}.json"))).expect("recorded suite");
    serde_json::from_str(&text).expect("recorded suite")
}

/// Replaces `{{name}}` in every text within `value`.
pub(crate) fn fill(value: &mut Value, places: &BTreeMap<String, String>) {
    match value {
        Value::String(text) => *text = fill_text(text, places),
        Value::Array(values) => values.iter_mut().for_each(|value| fill(value, places)),
        Value::Object(fields) => fields.values_mut().for_each(|value| fill(value, places)),
        _ => {}
    }
}

pub(crate) fn fill_text(text: &str, places: &BTreeMap<String, String>) -> String {
    let mut filled = text.to_owned();
    for (name, place) in places {
        filled = filled.replace(&format!("{{{{{name}}}}}"), place);
    }
    filled
}
