//! The hashrings file: a JSON array of rings, read as Thanos reads it.
//!
//! Field names match in any case, unknown fields are skipped, `null` is the same as absent, and an
//! endpoint is an object or its address alone. What is refused is told with line and field.

use std::collections::BTreeMap;
use std::fmt;

use md5::Md5;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::hashring::{
    AlgorithmChoice, Endpoint, RingOptions, ShardingOptions, ShardingOverride, TenantMatcher,
    capnproto_address,
};

/// Why a hashrings file is refused. The first words are those of Thanos.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HashringsError {
    #[error("configuration file is empty: it has no hashrings")]
    Empty,
    #[error("configuration file is not parsable: line {line}, column {column}: {detail}")]
    Syntax { line: usize, column: usize, detail: String },
    #[error(
        "configuration file is not parsable: line {line}, {field}: expected {expected}, found {found}"
    )]
    WrongType { line: usize, field: String, expected: &'static str, found: &'static str },
    #[error(
        "configuration file is not parsable: line {line}, {field}: {text} is no whole number of \
         64 bits"
    )]
    NotAnInteger { line: usize, field: String, text: String },
    #[error(
        "configuration file is not parsable: line {line}, {field}: endpoint address must be set"
    )]
    NoAddress { line: usize, field: String },
}

/// What `--receive.hashrings` gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InlineHashrings {
    /// Empty text is the same as no flag.
    NotGiven,
    /// `null`: a router that is its own and only node.
    OneNode,
    Rings(Vec<RingOptions>),
}

/// Reads a hashrings file. It has at least one ring.
pub fn parse(content: &[u8]) -> Result<Vec<RingOptions>, HashringsError> {
    let rings = parse_document(content)?;
    rings.filter(|rings| !rings.is_empty()).ok_or(HashringsError::Empty)
}

/// Reads the value of `--receive.hashrings`. An array without rings, which Thanos takes only to
/// fail every write, is refused.
pub fn parse_inline(content: &str) -> Result<InlineHashrings, HashringsError> {
    if content.is_empty() {
        return Ok(InlineHashrings::NotGiven);
    }
    match parse_document(content.as_bytes())? {
        None => Ok(InlineHashrings::OneNode),
        Some(rings) if rings.is_empty() => Err(HashringsError::Empty),
        Some(rings) => Ok(InlineHashrings::Rings(rings)),
    }
}

/// The value of `thanos_receive_config_hash`: 48 bits, which a float holds exactly.
pub fn config_hash(content: &[u8]) -> u64 {
    first_6_bytes(&Sha256::digest(content))
}

/// The same of the MD5, as thanos-receive-controller computes it for what it wrote.
pub fn controller_hash(content: &[u8]) -> u64 {
    first_6_bytes(&Md5::digest(content))
}

/// As a little-endian number.
fn first_6_bytes(digest: &[u8]) -> u64 {
    digest.iter().take(6).rev().fold(0, |hash, byte| hash << 8 | u64::from(*byte))
}

fn parse_document(content: &[u8]) -> Result<Option<Vec<RingOptions>>, HashringsError> {
    // Go decodes bytes that are not UTF-8 as the replacement character.
    let source = String::from_utf8_lossy(content);
    let document: &RawValue = serde_json::from_str(&source).map_err(syntax)?;
    let document = Node { source: &source, json: document.get(), field: String::new() };
    if document.is_null() {
        return Ok(None);
    }
    document.items("an array of hashrings")?.iter().map(ring).collect::<Result<_, _>>().map(Some)
}

fn syntax(error: serde_json::Error) -> HashringsError {
    let (line, column) = (error.line(), error.column());
    // serde_json ends its messages with the place.
    let place = format!(" at line {line} column {column}");
    let detail = error.to_string();
    let detail = detail.strip_suffix(&place).unwrap_or(&detail).to_lowercase();
    HashringsError::Syntax { line, column, detail }
}

fn ring(node: &Node<'_>) -> Result<RingOptions, HashringsError> {
    let mut ring = RingOptions::default();
    for (key, value) in node.members("a hashring")? {
        if value.is_null() {
            continue;
        }
        match key.as_str() {
            "hashring" => ring.name = value.text()?,
            "tenants" => ring.tenants = value.texts()?,
            "tenant_matcher_type" => ring.tenant_matcher = TenantMatcher::parse(&value.text()?),
            "endpoints" => {
                let endpoints = value.items("an array of endpoints")?;
                ring.endpoints = endpoints.iter().map(endpoint).collect::<Result<_, _>>()?;
            }
            "algorithm" => ring.algorithm = AlgorithmChoice::parse(&value.text()?),
            "external_labels" => ring.external_labels.extend(value.labels()?),
            "shuffle_sharding_config" => ring.sharding = sharding(&value)?,
            _ => {}
        }
    }
    Ok(ring)
}

fn endpoint(node: &Node<'_>) -> Result<Endpoint, HashringsError> {
    let mut address = String::new();
    let mut capnproto = String::new();
    let mut az = String::new();
    if node.kind() == Kind::Text {
        address = node.text()?;
    } else {
        for (key, value) in node.members("an address or an endpoint object")? {
            if value.is_null() {
                continue;
            }
            match key.as_str() {
                "address" => address = value.text()?,
                "capnproto_address" => capnproto = value.text()?,
                "az" => az = value.text()?,
                _ => {}
            }
        }
    }
    if address.is_empty() {
        return Err(HashringsError::NoAddress { line: node.line(), field: node.field.clone() });
    }
    if capnproto.is_empty() {
        capnproto = capnproto_address(&address);
    }
    Ok(Endpoint { address, capnproto_address: capnproto, az })
}

fn sharding(node: &Node<'_>) -> Result<ShardingOptions, HashringsError> {
    let mut sharding = ShardingOptions::default();
    for (key, value) in node.members("an object")? {
        if value.is_null() {
            continue;
        }
        match key.as_str() {
            "shard_size" => sharding.shard_size = value.integer()?,
            "cache_size" => sharding.cache_size = value.integer()?,
            "zone_awareness_disabled" => sharding.zone_awareness_disabled = value.boolean()?,
            "overrides" => {
                let overrides = value.items("an array of overrides")?;
                sharding.overrides =
                    overrides.iter().map(sharding_override).collect::<Result<_, _>>()?;
            }
            _ => {}
        }
    }
    Ok(sharding)
}

fn sharding_override(node: &Node<'_>) -> Result<ShardingOverride, HashringsError> {
    let mut entry = ShardingOverride::default();
    for (key, value) in node.members("an override")? {
        if value.is_null() {
            continue;
        }
        match key.as_str() {
            "shard_size" => entry.shard_size = value.integer()?,
            "tenants" => entry.tenants = value.texts()?,
            "tenant_matcher_type" => entry.tenant_matcher = TenantMatcher::parse(&value.text()?),
            _ => {}
        }
    }
    Ok(entry)
}

/// A value of the document, which is known to be JSON, and where it stands.
struct Node<'a> {
    source: &'a str,
    /// A part of `source`.
    json: &'a str,
    /// Path from the document, as in `[0].endpoints[2].address`.
    field: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Null,
    Boolean,
    Number,
    Text,
    Array,
    Object,
}

impl<'a> Node<'a> {
    fn kind(&self) -> Kind {
        match self.json.bytes().next() {
            Some(b'n') => Kind::Null,
            Some(b't' | b'f') => Kind::Boolean,
            Some(b'"') => Kind::Text,
            Some(b'[') => Kind::Array,
            Some(b'{') => Kind::Object,
            _ => Kind::Number,
        }
    }

    fn is_null(&self) -> bool {
        self.kind() == Kind::Null
    }

    /// Counted from 1.
    fn line(&self) -> usize {
        // `json` lies within `source`, so the difference of their addresses is an offset in it.
        let offset = self.json.as_ptr().addr().saturating_sub(self.source.as_ptr().addr());
        let before = self.source.as_bytes().get(..offset).unwrap_or_default();
        1 + before.iter().filter(|byte| **byte == b'\n').count()
    }

    fn child(&self, json: &'a RawValue, step: fmt::Arguments<'_>) -> Node<'a> {
        Node { source: self.source, json: json.get(), field: format!("{}{step}", self.field) }
    }

    fn wrong_type(&self, expected: &'static str) -> HashringsError {
        let found = match self.kind() {
            Kind::Null => "null",
            Kind::Boolean => "a boolean",
            Kind::Number => "a number",
            Kind::Text => "a string",
            Kind::Array => "an array",
            Kind::Object => "an object",
        };
        let field = if self.field.is_empty() { "document" } else { &self.field };
        HashringsError::WrongType { line: self.line(), field: field.to_owned(), expected, found }
    }

    /// Decodes the value, whose kind is checked, so that only nesting can fail.
    fn decode<T: Deserialize<'a>>(&self) -> Result<T, HashringsError> {
        serde_json::from_str(self.json).map_err(|error| {
            let error = syntax(error);
            match error {
                HashringsError::Syntax { line, column, detail } => {
                    HashringsError::Syntax { line: self.line() + line - 1, column, detail }
                }
                other => other,
            }
        })
    }

    fn items(&self, expected: &'static str) -> Result<Vec<Node<'a>>, HashringsError> {
        if self.kind() != Kind::Array {
            return Err(self.wrong_type(expected));
        }
        let items: Vec<&RawValue> = self.decode()?;
        Ok(items
            .into_iter()
            .enumerate()
            .map(|(i, item)| self.child(item, format_args!("[{i}]")))
            .collect())
    }

    /// Members of an object in order, names in lower case. `null` has none.
    fn members(&self, expected: &'static str) -> Result<Vec<(String, Node<'a>)>, HashringsError> {
        if self.is_null() {
            return Ok(Vec::new());
        }
        let members = self.raw_members(expected)?;
        Ok(members
            .into_iter()
            .map(|(name, value)| {
                let name = name.to_ascii_lowercase();
                let dot = if self.field.is_empty() { "" } else { "." };
                let node = self.child(value, format_args!("{dot}{name}"));
                (name, node)
            })
            .collect())
    }

    fn raw_members(
        &self,
        expected: &'static str,
    ) -> Result<Vec<(String, &'a RawValue)>, HashringsError> {
        if self.kind() != Kind::Object {
            return Err(self.wrong_type(expected));
        }
        let Members(members) = self.decode()?;
        Ok(members)
    }

    fn text(&self) -> Result<String, HashringsError> {
        if self.kind() != Kind::Text {
            return Err(self.wrong_type("a string"));
        }
        let Text(text) = self.decode()?;
        Ok(text)
    }

    /// An array of strings, in which `null` is an empty one.
    fn texts(&self) -> Result<Vec<String>, HashringsError> {
        let text = |item: &Node<'_>| if item.is_null() { Ok(String::new()) } else { item.text() };
        self.items("an array of strings")?.iter().map(text).collect()
    }

    /// An object of strings, in which `null` is an empty one. Of a name twice, the last counts.
    fn labels(&self) -> Result<BTreeMap<String, String>, HashringsError> {
        let mut labels = BTreeMap::new();
        for (name, value) in self.raw_members("an object of strings")? {
            let value = self.child(value, format_args!(".{name}"));
            let text = if value.is_null() { String::new() } else { value.text()? };
            labels.insert(name, text);
        }
        Ok(labels)
    }

    fn integer(&self) -> Result<i64, HashringsError> {
        if self.kind() != Kind::Number {
            return Err(self.wrong_type("a whole number"));
        }
        self.json.parse().map_err(|_| HashringsError::NotAnInteger {
            line: self.line(),
            field: self.field.clone(),
            text: self.json.to_owned(),
        })
    }

    fn boolean(&self) -> Result<bool, HashringsError> {
        match self.kind() {
            Kind::Boolean => Ok(self.json == "true"),
            _ => Err(self.wrong_type("true or false")),
        }
    }
}

/// The members of an object, names decoded and values as they stand.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Members<'a>, D::Error> {
        struct MembersVisitor;
        impl<'de> Visitor<'de> for MembersVisitor {
            type Value = Vec<(String, &'de RawValue)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some((Text(name), value)) = map.next_entry()? {
                    members.push((name, value));
                }
                Ok(members)
            }
        }
        deserializer.deserialize_map(MembersVisitor).map(Members)
    }
}

/// A string, in which half a surrogate pair is the replacement character, as in Go.
struct Text(String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Text, D::Error> {
        struct TextVisitor;
        impl Visitor<'_> for TextVisitor {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E>(self, text: &str) -> Result<Text, E> {
                Ok(Text(text.to_owned()))
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Text, E> {
                Ok(Text(replace_surrogates(bytes)))
            }
        }
        // Asked for bytes, serde_json takes half surrogates, and gives each as three bytes.
        deserializer.deserialize_bytes(TextVisitor)
    }
}

fn replace_surrogates(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(chunk) = rest.utf8_chunks().next() {
        text.push_str(chunk.valid());
        rest = rest.get(chunk.valid().len()..).unwrap_or_default();
        match rest {
            [] => break,
            [0xed, 0xa0..=0xbf, 0x80..=0xbf, after @ ..] | [_, after @ ..] => {
                text.push(char::REPLACEMENT_CHARACTER);
                rest = after;
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::hashring::{
        Algorithm, Hashring, HashringMetrics, RingDefaults, RingError, RingState,
    };
    use crate::metrics::Registry;

    fn recorded() -> Vec<Value> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/ring/hashrings_json.json");
        let text = std::fs::read_to_string(path).unwrap();
        let recorded: Value = serde_json::from_str(&text).unwrap();
        recorded["cases"].as_array().unwrap().clone()
    }

    /// A ring as the recorded configurations show it.
    fn shown(ring: &RingOptions) -> Value {
        let endpoints: Vec<_> = ring
            .endpoints
            .iter()
            .map(|endpoint| {
                serde_json::json!({
                    "address": endpoint.address,
                    "capnproto_address": endpoint.capnproto_address,
                    "az": endpoint.az,
                })
            })
            .collect();
        let overrides: Vec<_> = ring
            .sharding
            .overrides
            .iter()
            .map(|entry| {
                serde_json::json!({
                    "shard_size": entry.shard_size,
                    "tenants": entry.tenants,
                    "tenant_matcher_type": entry.tenant_matcher.as_str(),
                })
            })
            .collect();
        serde_json::json!({
            "hashring": ring.name,
            "tenants": ring.tenants,
            "tenant_matcher_type": ring.tenant_matcher.as_str(),
            "endpoints": endpoints,
            "algorithm": ring.algorithm.as_str(),
            "external_labels": ring.external_labels,
            "shuffle_sharding_config": {
                "shard_size": ring.sharding.shard_size,
                "cache_size": ring.sharding.cache_size,
                "zone_awareness_disabled": ring.sharding.zone_awareness_disabled,
                "overrides": overrides,
            },
        })
    }

    /// The recorded configuration, with the Cap'n Proto host that ours gives to `[::1]:10901`.
    fn expected_config(case: &Value) -> Value {
        let mut config = case["config"].clone();
        for ring in config.as_array_mut().unwrap() {
            for endpoint in ring["endpoints"].as_array_mut().unwrap() {
                let address = endpoint["address"].as_str().unwrap().to_owned();
                // A name that gRPC resolves keeps its scheme, and so has another port only.
                if address.starts_with("dns:///") {
                    let host = address.trim_end_matches(":10901");
                    endpoint["capnproto_address"] = format!("{host}:19391").into();
                } else if let Some((host, _)) = address.rsplit_once("]:") {
                    endpoint["capnproto_address"] = format!("{host}]:19391").into();
                }
            }
        }
        config
    }

    fn build_error(rings: Vec<RingOptions>, build: &Value) -> Option<RingError> {
        let algorithm = match build["algorithm"].as_str().unwrap() {
            "ketama" => Algorithm::Ketama,
            _ => Algorithm::Hashmod,
        };
        let replication_factor = build["rf"].as_u64().unwrap() as usize;
        let defaults = RingDefaults { algorithm, replication_factor };
        let metrics = HashringMetrics::new(&Registry::new());
        let hashring = Hashring::build(rings, defaults, None, &metrics);
        hashring.rings().find_map(|ring| match ring.state {
            RingState::NotBuilt(error) => Some(error),
            RingState::InForce | RingState::LastGood(_) => None,
        })
    }

    #[test]
    fn files_are_read_like_in_thanos() {
        for case in recorded() {
            let text = case["text"].as_str().unwrap();
            let result = parse(text.as_bytes());
            if case["file"] == "refused" {
                match (case["kind"].as_str().unwrap(), result) {
                    ("empty", Err(HashringsError::Empty)) => {}
                    ("not parsable", Err(HashringsError::Empty)) => panic!("{case}"),
                    ("not parsable", Err(error)) => {
                        let message = error.to_string();
                        assert!(message.contains("not parsable: line "), "{message}");
                    }
                    (_, result) => panic!("{result:?} for {case}"),
                }
                continue;
            }
            let rings = result.unwrap_or_else(|error| panic!("{error} for {case}"));
            let hash = config_hash(text.as_bytes()).to_string();
            assert_eq!(hash, case["config_hash"].as_str().unwrap(), "{case}");
            // Go decodes the second list into the memory of the first one.
            if case["quirk"].is_null() {
                let shown: Vec<_> = rings.iter().map(shown).collect();
                assert_eq!(Value::Array(shown), expected_config(&case), "{case}");
                check_builds(&rings, &case);
            }
        }
    }

    fn check_builds(rings: &[RingOptions], case: &Value) {
        for build in case["build"].as_array().unwrap() {
            let error = build_error(rings.to_vec(), build);
            let kind = error.as_ref().map(|error| match error {
                RingError::NoEndpoints => "no_endpoints",
                RingError::FewerEndpointsThanReplicationFactor { .. } => "fewer_endpoints_than_rf",
                RingError::ZonesWithHashmod { .. } => "zones_with_hashmod",
                RingError::ShardingWithHashmod => "sharding_with_hashmod",
                RingError::ShardLargerThanRing { .. } => "shard_larger_than_ring",
                other => panic!("{other}"),
            });
            let expected = match build["outcome"].as_str().unwrap() {
                "error" => build["kind"].as_str(),
                // What makes Thanos panic is taken with a warning.
                _ => None,
            };
            if error == Some(RingError::NoEndpoints) {
                // Ours waits for them, where Thanos fails every write.
                assert_eq!((kind, expected), (Some("no_endpoints"), None), "{build} of {case}");
                continue;
            }
            assert_eq!(kind, expected, "{build} of {case}");
        }
    }

    #[test]
    fn the_flag_is_read_like_in_thanos() {
        for case in recorded() {
            let result = parse_inline(case["text"].as_str().unwrap());
            let matches = match case["inline"].as_str().unwrap() {
                "accepted" => matches!(result, Ok(InlineHashrings::Rings(_))),
                "refused" => matches!(result, Err(error) if error != HashringsError::Empty),
                "not given" => result == Ok(InlineHashrings::NotGiven),
                "no ring: one node, itself" => result == Ok(InlineHashrings::OneNode),
                // Ours refuses it, since no tenant would have a place.
                "accepted, ring without hashrings" => result == Err(HashringsError::Empty),
                other => panic!("unknown outcome {other}"),
            };
            assert!(matches, "{case}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_line_and_field() {
        let message = |text: &str| parse(text.as_bytes()).unwrap_err().to_string();
        let at = |rest: &str| format!("configuration file is not parsable: line {rest}");
        assert_eq!(
            message("[\n {\"endpoints\": [\n  \"a:1\",\n  {\"address\": 17}]}]"),
            at("4, [0].endpoints[1].address: expected a string, found a number")
        );
        assert_eq!(
            message("[{},\n{\"endpoints\": [\"\"]}]"),
            at("2, [1].endpoints[0]: endpoint address must be set")
        );
        assert_eq!(
            message("[{\"shuffle_sharding_config\":\n{\"Shard_Size\":1.5}}]"),
            at("2, [0].shuffle_sharding_config.shard_size: 1.5 is no whole number of 64 bits")
        );
        assert_eq!(message("7"), at("1, document: expected an array of hashrings, found a number"));
        assert_eq!(message("[\n{"), at("2, column 1: eof while parsing an object"));
    }

    #[test]
    fn deep_nesting_is_refused_not_followed() {
        let deep = "[".repeat(100_000);
        assert!(parse(deep.as_bytes()).is_err());
        let unknown = format!("[{{\"x\":{}{}}}]", "[".repeat(90), "]".repeat(90));
        assert!(parse(unknown.as_bytes()).is_ok());
    }

    #[test]
    fn the_controllers_hash_is_md5() {
        // The first bytes of the MD5 of nothing are d4 1d 8c d9 8f 00.
        assert_eq!(controller_hash(b""), 0x008f_d98c_1dd4);
    }
}
