//! Stand-in peers: a gRPC server that answers as a step says and keeps what it was sent.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::TcpListener;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Map, Value, json};
use tokio::sync::oneshot;

use crate::suite::Step;
use crate::{compare, grpc, proto, suite};

/// How often calls are counted that a step waits for.
const POLL: Duration = Duration::from_millis(10);

/// A peer. It goes away when dropped.
pub(crate) struct Stub {
    shared: Arc<Mutex<Shared>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    code: i64,
    message: String,
    delay: Duration,
    calls: Vec<Call>,
}

#[derive(Clone)]
struct Call {
    headers: Map<String, Value>,
    data: Vec<u8>,
}

fn locked(shared: &Mutex<Shared>) -> std::sync::MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stub {
    pub(crate) fn start(address: &str) -> Stub {
        let listener = TcpListener::bind(address).expect("the stub's port is free");
        listener.set_nonblocking(true).expect("a listener");
        let shared = Arc::new(Mutex::new(Shared::default()));
        let (stop, stopped) = oneshot::channel();
        let served = shared.clone();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                tokio::select! {
                    () = serve(listener, served) => {}
                    _ = stopped => {}
                }
            });
        });
        Stub { shared, stop: Some(stop), thread: Some(thread) }
    }

    /// Takes a `stub` step: how to answer from now on. What came before is forgotten.
    pub(crate) fn set(&self, step: &Step) {
        let delay = Duration::from_secs_f64(step.number("delay").unwrap_or(0.0));
        *locked(&self.shared) = Shared {
            code: step.int("code").unwrap_or(0),
            message: step.text("message").unwrap_or("stub").to_owned(),
            delay,
            calls: Vec::new(),
        };
    }

    /// Compares what came with a `stub-calls` step.
    pub(crate) fn compare(&self, step: &Step) -> compare::Differences {
        let at_least = step.int("at_least").unwrap_or(1);
        let deadline =
            Instant::now() + Duration::from_secs_f64(step.number("wait_s").unwrap_or(5.0));
        let mut calls = loop {
            let calls = locked(&self.shared).calls.clone();
            if calls.len() as i64 >= at_least || Instant::now() >= deadline {
                break calls;
            }
            thread::sleep(POLL);
        };
        if let Some(first) = step.int("first").and_then(|first| usize::try_from(first).ok()) {
            calls.truncate(first);
        }
        let expected = step.expected("calls").and_then(Value::as_array).expect("expected calls");
        if calls.len() != expected.len() {
            return vec![format!("{} calls came, expected {}", calls.len(), expected.len())];
        }
        // Recorded in order of their messages, since calls may overtake one another.
        calls.sort_by_cached_key(|call| call.messages().map(|messages| messages.to_string()));
        let mut expected: Vec<&Value> = expected.iter().collect();
        expected.sort_by_cached_key(|call| compared(&call["messages"]).to_string());
        let pairs = calls.iter().zip(expected).enumerate();
        pairs.flat_map(|(i, (call, expected))| call.compare(i, expected)).collect()
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A stub that panicked has failed its suite already.
            let _ = thread.join();
        }
    }
}

impl Call {
    fn compare(&self, i: usize, expected: &Value) -> compare::Differences {
        let mut differences = Vec::new();
        for (name, value) in expected["headers"].as_object().into_iter().flatten() {
            let found = self.headers.get(name).unwrap_or(&Value::Null);
            if !compare::value_matches(value, found) {
                differences.push(format!("call {i}: header {name}: {found}, expected {value}"));
            }
        }
        // Of long messages only the bytes are recorded as they are.
        let recorded = match expected["data_b64"].as_str() {
            Some(data) => self.decode(&suite::base64_bytes(data)),
            None => Ok(compared(&expected["messages"])),
        };
        match (recorded, self.messages()) {
            (Ok(recorded), Ok(messages)) if compare::value_matches(&recorded, &messages) => {}
            (Ok(recorded), Ok(messages)) => {
                let difference = compare::first_difference("messages", &recorded, &messages);
                differences.push(format!("call {i}: {difference}"));
            }
            (Err(error), _) | (_, Err(error)) => differences.push(format!("call {i}: {error}")),
        }
        differences
    }

    fn messages(&self) -> Result<Value, String> {
        self.decode(&self.data)
    }

    /// The messages in `data`, which is encoded as the call's own.
    fn decode(&self, data: &[u8]) -> Result<Value, String> {
        let path = self.headers.get(":path").and_then(Value::as_str).unwrap_or_default();
        let method = proto::method(path).ok_or_else(|| format!("no schema for {path}"))?;
        let messages = grpc::messages(self.encoding(), data, &method.input())?;
        Ok(compared(&messages.into()))
    }

    fn encoding(&self) -> &str {
        self.headers.get("grpc-encoding").and_then(Value::as_str).unwrap_or("identity")
    }
}

/// Messages in the form in which they are compared.
fn compared(messages: &Value) -> Value {
    of_one_tenant(without_zeros(messages.clone()))
}

/// Messages in the form for several tenants, as the one recorded sends them, count as equal to those
/// in the older form if they are of one: that is sent, since no released Thanos reads the other.
fn of_one_tenant(mut messages: Value) -> Value {
    for message in messages.as_array_mut().into_iter().flatten() {
        let Some(fields) = message.as_object_mut() else { continue };
        let Some(Value::Array(tenants)) = fields.get_mut("timeseriesTenantData") else { continue };
        if let [Value::Object(tenant)] = &mut tenants[..] {
            let tenant = std::mem::take(tenant);
            fields.remove("timeseriesTenantData");
            fields.extend(tenant);
        }
    }
    messages.sort_all_objects();
    messages
}

/// Leaves out zeros, which a sender may write out: its bytes go on as they came, while Thanos
/// encodes them anew.
fn without_zeros(mut value: Value) -> Value {
    match &mut value {
        Value::Array(values) => {
            values.iter_mut().for_each(|value| *value = without_zeros(value.take()));
        }
        Value::Object(fields) => {
            fields.retain(|_, value| value.as_f64() != Some(0.0));
            fields.values_mut().for_each(|value| *value = without_zeros(value.take()));
        }
        _ => {}
    }
    value
}

async fn serve(listener: TcpListener, shared: Arc<Mutex<Shared>>) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let shared = shared.clone();
        let service = service_fn(move |request| answer(request, shared.clone()));
        tokio::spawn(
            hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service),
        );
    }
}

async fn answer(
    request: http::Request<Incoming>,
    shared: Arc<Mutex<Shared>>,
) -> Result<http::Response<impl hyper::body::Body<Data = Bytes, Error = Infallible>>, Infallible> {
    let (head, body) = request.into_parts();
    let mut headers: BTreeMap<String, String> = head
        .headers
        .iter()
        .map(|(name, value)| {
            (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        })
        .collect();
    headers.insert(":method".into(), head.method.to_string());
    headers.insert(":scheme".into(), head.uri.scheme_str().unwrap_or_default().to_owned());
    headers.insert(":path".into(), head.uri.path().to_owned());
    let authority = head.uri.authority().map(ToString::to_string);
    headers.insert(":authority".into(), authority.unwrap_or_default());
    let data = body.collect().await.map(|body| body.to_bytes().to_vec()).unwrap_or_default();
    let headers = headers.into_iter().map(|(name, value)| (name, json!(value))).collect();
    let (code, message, delay) = {
        let mut shared = locked(&shared);
        shared.calls.push(Call { headers, data });
        (shared.code, shared.message.clone(), shared.delay)
    };
    tokio::time::sleep(delay).await;
    let mut trailers = http::HeaderMap::new();
    trailers.insert("grpc-status", http::HeaderValue::from(code));
    let message = http::HeaderValue::from_str(&message).expect("a plain message");
    trailers.insert("grpc-message", message);
    // An empty message, if the call succeeds.
    let body = Bytes::from_static(if code == 0 { &[0; 5] } else { &[] });
    let body = Full::new(body).with_trailers(std::future::ready(Some(Ok(trailers))));
    let response = http::Response::builder().header("content-type", "application/grpc").body(body);
    Ok(response.expect("a valid response"))
}
