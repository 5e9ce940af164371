//! `--receive.grpc-service-config`: how calls of a method are treated, in gRPC's own format
//! (<https://github.com/grpc/grpc/blob/master/doc/service_config.md>), as the library of Thanos
//! reads it.
//!
//! Of all it may say, deadline, size limit and retries of the one method that is called have a
//! meaning here.

use std::collections::HashSet;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{self, Deserializer};
use serde_json::{Map, Value};
use tonic::Code;

/// The only method that is called, its service, and all others, the more special first.
const NAMES: [(&str, &str); 3] =
    [("thanos.WriteableStore", "RemoteWrite"), ("thanos.WriteableStore", ""), ("", "")];

/// More attempts are not made, whatever the policy says, as in grpc-go.
const ATTEMPTS_MAX: u32 = 5;

/// A service config that gRPC would not take either.
#[derive(Debug, thiserror::Error)]
pub enum ServiceConfigError {
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    #[error("methodConfig[{0}]: cannot combine empty 'service' and non-empty 'method'")]
    MethodAlone(usize),
    #[error("methodConfig[{0}]: duplicated name")]
    DuplicatedName(usize),
    #[error(
        "methodConfig[{0}]: invalid retry policy: it needs maxAttempts above 1, initialBackoff, \
         maxBackoff and backoffMultiplier above 0, and retryableStatusCodes"
    )]
    RetryPolicy(usize),
}

/// How forwards are treated. By default as without a service config.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MethodConfig {
    /// Deadline of a call with its retries, if it is sooner than that of the request.
    pub timeout: Option<Duration>,
    /// Larger messages are not sent.
    pub request_bytes_max: Option<u64>,
    pub retry: Option<RetryPolicy>,
}

/// Which calls are made again, and when.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryPolicy {
    /// The first one included.
    attempts_max: u32,
    backoff_initial: Duration,
    backoff_max: Duration,
    backoff_multiplier: f64,
    /// A bit for each code.
    codes: u32,
}

impl RetryPolicy {
    /// How long to wait after a call that ended with `code` and was the `attempt`th, counted from
    /// 1; none if that was the last. `jitter` is from 0 to 1.
    pub fn pause(&self, code: Code, attempt: u32, jitter: f64) -> Option<Duration> {
        if attempt >= self.attempts_max || self.codes & 1 << code as u32 == 0 {
            return None;
        }
        let factor = self.backoff_multiplier.powi(attempt.saturating_sub(1) as i32);
        let backoff = self.backoff_initial.as_secs_f64() * factor;
        let backoff = backoff.min(self.backoff_max.as_secs_f64());
        Some(
            Duration::try_from_secs_f64(backoff * (0.8 + 0.4 * jitter)).unwrap_or(self.backoff_max),
        )
    }
}

/// Reads a service config. The second value says which of its fields mean nothing here.
pub fn parse(text: &str) -> Result<(MethodConfig, Vec<String>), ServiceConfigError> {
    let config: Option<ServiceConfigJson> = serde_json::from_str(text)?;
    let config = config.unwrap_or_default();
    let mut idle: Vec<String> = config.other.keys().cloned().collect();
    let mut names = HashSet::new();
    let mut chosen: Option<(usize, MethodConfig)> = None;
    for (i, method) in config.method_config.unwrap_or_default().into_iter().enumerate() {
        let Some(of) = method.name else { continue };
        let retry = method.retry_policy.map(RetryPolicyJson::checked);
        let retry = retry.transpose().map_err(|()| ServiceConfigError::RetryPolicy(i))?;
        let method_config = MethodConfig {
            timeout: method.timeout.and_then(|GrpcDuration(timeout)| timeout),
            request_bytes_max: method
                .max_request_message_bytes
                .map(|bytes| u64::try_from(bytes).unwrap_or(0)),
            retry,
        };
        for Name { service, method: name } in of {
            if service.is_empty() && !name.is_empty() {
                return Err(ServiceConfigError::MethodAlone(i));
            }
            let rank = NAMES.iter().position(|known| *known == (&*service, &*name));
            if !names.insert((service, name)) {
                return Err(ServiceConfigError::DuplicatedName(i));
            }
            let Some(rank) = rank else { continue };
            if chosen.is_none_or(|(other, _)| rank < other) {
                chosen = Some((rank, method_config));
            }
            idle.extend(method.other.keys().map(|field| format!("methodConfig[{i}].{field}")));
        }
    }
    idle.dedup();
    Ok((chosen.map(|(_, config)| config).unwrap_or_default(), idle))
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ServiceConfigJson {
    method_config: Option<Vec<MethodConfigJson>>,
    #[serde(flatten)]
    other: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MethodConfigJson {
    name: Option<Vec<Name>>,
    timeout: Option<GrpcDuration>,
    max_request_message_bytes: Option<i64>,
    retry_policy: Option<RetryPolicyJson>,
    #[serde(flatten)]
    other: Map<String, Value>,
}

#[derive(Deserialize)]
struct Name {
    #[serde(default)]
    service: String,
    #[serde(default)]
    method: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct RetryPolicyJson {
    max_attempts: i64,
    initial_backoff: GrpcDuration,
    max_backoff: GrpcDuration,
    backoff_multiplier: f64,
    retryable_status_codes: Vec<CodeJson>,
}

impl RetryPolicyJson {
    fn checked(self) -> Result<RetryPolicy, ()> {
        let above_zero = |GrpcDuration(duration)| duration.filter(|d| !d.is_zero()).ok_or(());
        if self.max_attempts <= 1
            || self.backoff_multiplier <= 0.0
            || self.retryable_status_codes.is_empty()
        {
            return Err(());
        }
        Ok(RetryPolicy {
            attempts_max: u32::try_from(self.max_attempts)
                .map_or(ATTEMPTS_MAX, |attempts| attempts.min(ATTEMPTS_MAX)),
            backoff_initial: above_zero(self.initial_backoff)?,
            backoff_max: above_zero(self.max_backoff)?,
            backoff_multiplier: self.backoff_multiplier,
            codes: self
                .retryable_status_codes
                .iter()
                .fold(0, |bits, CodeJson(code)| bits | 1 << code),
        })
    }
}

/// Seconds with up to nine decimals and an `s`; none if they are negative.
#[derive(Clone, Copy, Default)]
struct GrpcDuration(Option<Duration>);

impl<'de> Deserialize<'de> for GrpcDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<GrpcDuration, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_duration(&text)
            .map(GrpcDuration)
            .ok_or_else(|| de::Error::custom(format!("malformed duration {text:?}")))
    }
}

fn parse_duration(text: &str) -> Option<Option<Duration>> {
    let seconds = text.strip_suffix('s')?;
    let (is_negative, seconds) = match seconds.strip_prefix('-') {
        Some(seconds) => (true, seconds),
        None => (false, seconds),
    };
    let (whole, fraction) = seconds.split_once('.').unwrap_or((seconds, ""));
    let is_number = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit());
    if whole.len() + fraction.len() == 0 || fraction.len() > 9 {
        return None;
    }
    if !is_number(whole) || !is_number(fraction) {
        return None;
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let nanos: u32 = format!("{fraction:0<9}").parse().ok()?;
    Some((!is_negative).then(|| Duration::new(whole, nanos)))
}

/// A status code by name or number.
struct CodeJson(u32);

/// In the order of their numbers.
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

impl<'de> Deserialize<'de> for CodeJson {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<CodeJson, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let number = match &value {
            Value::String(name) => CODES.iter().position(|code| code == name),
            value => value.as_u64().and_then(|number| usize::try_from(number).ok()),
        };
        number
            .filter(|number| *number < CODES.len())
            .and_then(|number| u32::try_from(number).ok())
            .map(CodeJson)
            .ok_or_else(|| de::Error::custom(format!("invalid code: {value}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn method(json: &str) -> MethodConfig {
        let (config, idle) = parse(json).unwrap();
        assert!(idle.is_empty(), "{idle:?}");
        config
    }

    #[test]
    fn the_most_special_name_counts() {
        let json = |names: [&str; 3]| {
            let method = |(i, name)| format!(r#"{{"name":[{name}],"timeout":"{i}s"}}"#);
            let methods: Vec<String> = names.into_iter().enumerate().map(method).collect();
            format!(r#"{{"methodConfig":[{}]}}"#, methods.join(","))
        };
        let (all, service) = ("{}", r#"{"service":"thanos.WriteableStore"}"#);
        let exact = r#"{"service":"thanos.WriteableStore","method":"RemoteWrite"}"#;
        let other = r#"{"service":"thanos.Store"}"#;
        for (names, seconds) in [
            ([all, service, exact], Some(2)),
            ([exact, service, all], Some(0)),
            ([all, other, service], Some(2)),
            ([other, all, r#"{"service":"x"}"#], Some(1)),
        ] {
            let timeout = seconds.map(Duration::from_secs);
            assert_eq!(method(&json(names)).timeout, timeout, "{names:?}");
        }
        assert_eq!(method(r#"{"methodConfig":[{"timeout":"1s"}]}"#), MethodConfig::default());
        assert_eq!(method("null"), MethodConfig::default());
    }

    #[test]
    fn values_are_those_of_the_format() {
        let config = method(
            r#"{"methodConfig":[{"name":[{}],"timeout":"1.5s","maxRequestMessageBytes":1000,
                "retryPolicy":{"maxAttempts":9,"initialBackoff":"0.1s","maxBackoff":"1s",
                "backoffMultiplier":2,"retryableStatusCodes":["UNAVAILABLE",13]}}]}"#,
        );
        assert_eq!(config.timeout, Some(Duration::from_millis(1500)));
        assert_eq!(config.request_bytes_max, Some(1000));
        let retry = config.retry.unwrap();
        let millis = |code, attempt| retry.pause(code, attempt, 0.5).map(|p| p.as_millis());
        assert_eq!(millis(Code::Unavailable, 1), Some(100));
        assert_eq!(millis(Code::Internal, 3), Some(400));
        assert_eq!(millis(Code::Unavailable, 5), None, "five attempts at most");
        assert_eq!(millis(Code::AlreadyExists, 1), None);
        let (least, most) =
            [0.0, 1.0].map(|jitter| retry.pause(Code::Unavailable, 4, jitter).unwrap()).into();
        assert!(least.as_millis() == 640 && most.as_millis() == 960, "{least:?} {most:?}");

        for (text, duration) in [
            ("0s", Some(Some(Duration::ZERO))),
            (".5s", Some(Some(Duration::from_millis(500)))),
            ("3.s", Some(Some(Duration::from_secs(3)))),
            ("-1s", Some(None)),
            ("1", None),
            ("s", None),
            ("1.0000000001s", None),
            ("1e3s", None),
            ("99999999999999999999s", None),
        ] {
            assert_eq!(parse_duration(text), duration, "{text}");
        }
    }

    #[test]
    fn what_means_nothing_here_is_named() {
        let json = r#"{"loadBalancingPolicy":"round_robin","retryPolicy":{},"methodConfig":[
            {"name":[{"service":"thanos.Store"}],"waitForReady":true},
            {"name":[{}],"waitForReady":true,"timeout":"1s"}]}"#;
        let (config, idle) = parse(json).unwrap();
        assert_eq!(config.timeout, Some(Duration::from_secs(1)));
        assert_eq!(idle, ["loadBalancingPolicy", "retryPolicy", "methodConfig[1].waitForReady"]);
    }

    #[test]
    fn what_grpc_does_not_take_is_refused() {
        let retry = |policy: &str| {
            format!(r#"{{"methodConfig":[{{"name":[{{}}],"retryPolicy":{policy}}}]}}"#)
        };
        let good = r#""initialBackoff":"1s","maxBackoff":"1s","backoffMultiplier":1,"#;
        for (json, words) in [
            ("{".to_owned(), "EOF"),
            ("[1]".to_owned(), "invalid type"),
            (r#"{"methodConfig":{}}"#.to_owned(), "invalid type"),
            (r#"{"methodConfig":[{"name":[{}],"timeout":"1m"}]}"#.to_owned(), "duration \"1m\""),
            (r#"{"methodConfig":[{"name":[{"method":"x"}]}]}"#.to_owned(), "cannot combine"),
            (r#"{"methodConfig":[{"name":[{}]},{"name":[{}]}]}"#.to_owned(), "duplicated name"),
            (retry("{}"), "invalid retry policy"),
            (
                retry(&format!(r#"{{{good}"maxAttempts":1,"retryableStatusCodes":[14]}}"#)),
                "invalid retry policy",
            ),
            (
                retry(&format!(r#"{{{good}"maxAttempts":2,"retryableStatusCodes":["X"]}}"#)),
                "invalid code: \"X\"",
            ),
        ] {
            let error = parse(&json).unwrap_err().to_string();
            assert!(error.contains(words), "{json}: {error}");
        }
    }
}
