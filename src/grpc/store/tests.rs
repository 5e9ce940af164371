use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use serde_json::Value;
use tonic::body::Body;
use tonic::{Code, Request, Status};

use super::*;
use crate::store::budget::READ_BYTES_MAX_DEFAULT;
use crate::store::fake::{FakeSource, FakeTenant, base64, chunk_type, recorded_data_set, suite};
use crate::store::frames::FRAME_BYTES;
use crate::store::frames::tests::messages;
use crate::wire::proto::thanos::series_response::Result as Part;
use crate::wire::proto::thanos::{
    AggrChunk, Chunk, Label, LabelMatcher, QueryHints, Series, SeriesBatch, ShardInfo,
};

fn service(source: FakeSource) -> StoreService {
    StoreService::new(Arc::new(source), ReadBudget::new(READ_BYTES_MAX_DEFAULT))
}

async fn series(service: &StoreService, request: SeriesRequest) -> Result<Vec<Part>, Status> {
    let mut body = framed(service, request).await?;
    let mut pieces = Vec::new();
    while let Some(frame) = body.frame().await {
        match frame?.into_data() {
            Ok(piece) => pieces.push(piece),
            Err(trailers) => match Status::from_header_map(trailers.trailers_ref().unwrap()) {
                Some(status) if status.code() == Code::Ok => {}
                status => return Err(status.unwrap()),
            },
        }
    }
    Ok(messages(pieces).into_iter().map(|message| message.result.unwrap()).collect())
}

/// The body of an answer.
async fn framed(service: &StoreService, request: SeriesRequest) -> Result<Body, Status> {
    let mut response = service.series(Request::new(request)).await?;
    Ok(response.extensions_mut().remove::<FramedAnswer>().unwrap().into_body())
}

/// Every recorded answer over the data set, in the same order and to the byte, but for what
/// `accept` allows.
#[tokio::test]
async fn series_are_answered_as_recorded() {
    let service = service(recorded_data_set());
    let mut compared = 0;
    for step in suite("store-series").iter().filter(|step| step["kind"] == "grpc") {
        let id = step["id"].as_str().unwrap();
        let answer = series(&service, series_request(&step["message"])).await;
        compared += 1;
        let code = answer.as_ref().map_or_else(Status::code, |_| Code::Ok);
        if accepts_code(step, code) {
            continue;
        }
        assert_eq!(code as i64, step["expect"]["code"].as_i64().unwrap(), "{id}");
        let replies = step["expect"]["replies"].as_array().unwrap();
        let expected: Vec<_> = replies.iter().map(series_part).collect();
        assert_eq!(answer.unwrap_or_default(), expected, "{id}");
    }
    assert!(compared > 100, "only {compared} steps");
}

#[tokio::test]
async fn names_and_values_are_answered_as_recorded() {
    let service = service(recorded_data_set());
    for step in suite("store-labels").iter().filter(|step| step["kind"] == "grpc") {
        let id = step["id"].as_str().unwrap();
        let message = &step["message"];
        let (answer, field) = if step["method"] == "/thanos.Store/LabelNames" {
            let answer = service.label_names(Request::new(names_request(message))).await;
            (answer.map(|names| names.into_inner().names), "names")
        } else {
            let answer = service.label_values(Request::new(values_request(message))).await;
            (answer.map(|values| values.into_inner().values), "values")
        };
        let code = answer.as_ref().map_or_else(Status::code, |_| Code::Ok);
        assert_eq!(code as i64, step["expect"]["code"].as_i64().unwrap(), "{id}");
        let Ok(answer) = answer else { continue };
        let mut expected = texts(&step["expect"]["replies"][0][field]);
        match step["accept"]["replies"].as_str() {
            Some("dedup") => expected.dedup(),
            Some("count") => {
                assert_eq!(answer.len(), expected.len(), "{id}");
                continue;
            }
            other => assert_eq!(other, None, "{id}"),
        }
        assert_eq!(answer, expected, "{id}");
    }
}

/// Frames are filled as Thanos fills them: the chunk that reaches 1 MiB is the last.
#[tokio::test]
async fn a_long_series_comes_in_frames() {
    let samples: Vec<_> = (0..200_000).map(|i| (i * 20, (i as f64).sin())).collect();
    let tenant = FakeTenant::new("a", &[("replica", "r0")])
        .with(&[("__name__", "long")], &samples, 120)
        .with(&[("__name__", "short")], &samples[..1], 120);
    let service = service(FakeSource::of(vec![Arc::new(tenant)]));
    let request = SeriesRequest {
        max_time: i64::MAX,
        matchers: vec![matcher(2, "__name__", ".+")],
        ..Default::default()
    };
    let parts = series(&service, request.clone()).await.unwrap();
    let frames: Vec<_> = parts
        .iter()
        .map(|part| match part {
            Part::Series(series) => series,
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(frames.len() > 2);
    let mut samples_read = 0;
    for (i, frame) in frames.iter().enumerate() {
        assert_eq!(frame.labels[1].value, "r0");
        let bytes: usize = frame.chunks.iter().map(prost::Message::encoded_len).sum();
        assert!(bytes < FRAME_BYTES + 2048, "frame {i} has {bytes} bytes");
        assert!(bytes > FRAME_BYTES - 2048 || i + 2 >= frames.len(), "frame {i} has {bytes} bytes");
        for chunk in &frame.chunks {
            let raw = chunk.raw.as_ref().unwrap();
            samples_read += usize::from(u16::from_be_bytes([raw.data[0], raw.data[1]]));
            assert_eq!(raw.hash, xxhash_rust::xxh64::xxh64(&raw.data, 0));
        }
    }
    assert_eq!(samples_read, samples.len() + 1);

    // A batch is a message too: it doesn't grow past what a frame may hold.
    let parts = series(&service, SeriesRequest { response_batch_size: 1000, ..request }).await;
    for part in parts.unwrap() {
        let Part::Batch(batch) = part else { panic!("{part:?}") };
        let bytes: usize = batch.series.iter().map(prost::Message::encoded_len).sum();
        assert!(bytes < FRAME_BYTES + 4096, "batch of {bytes} bytes");
    }
}

/// An answer is made as it is taken: a client that stops reading costs no more chunks.
#[tokio::test]
async fn chunks_are_read_while_streaming() {
    let samples: Vec<_> = (0..240).map(|i| (i * 1000, (i as f64).sin())).collect();
    let mut tenant = FakeTenant::new("a", &[("replica", "r0")]);
    for i in 0..1500 {
        tenant = tenant.with(&[("__name__", "m"), ("i", &format!("{i:04}"))], &samples, 120);
    }
    let tenant = Arc::new(tenant);
    let service = service(FakeSource::of(vec![tenant.clone()]));
    let request = SeriesRequest {
        max_time: i64::MAX,
        matchers: vec![matcher(0, "__name__", "m")],
        ..Default::default()
    };
    let mut body = framed(&service, request).await.unwrap();
    assert_eq!(tenant.chunk_reads.load(Ordering::Relaxed), 0);
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    let (read, sent) = (tenant.chunk_reads.load(Ordering::Relaxed), messages([first]).len());
    assert!(read < 500 && sent == read, "{read} of 1500 series read for a piece of {sent}");
    assert_eq!(messages([body.collect().await.unwrap().to_bytes()]).len(), 1500 - sent);
}

#[tokio::test]
async fn a_query_beyond_the_budget_is_refused_and_others_are_answered() {
    let tenant = (0..200).fold(FakeTenant::new("a", &[("replica", "r0")]), |tenant, i| {
        tenant.with(&[("__name__", "m"), ("i", &i.to_string())], &[(i, 1.0)], 1)
    });
    let source = FakeSource::of(vec![Arc::new(tenant)]);
    let service = StoreService::new(Arc::new(source), ReadBudget::new(2048));
    let request = |matcher| SeriesRequest {
        max_time: i64::MAX,
        matchers: vec![matcher],
        ..Default::default()
    };
    let refused = series(&service, request(matcher(0, "__name__", "m"))).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let answer = series(&service, request(matcher(0, "i", "7"))).await.unwrap();
    assert_eq!(answer.len(), 1);
}

#[tokio::test]
async fn a_missing_part_ends_an_all_or_nothing_query() {
    let service = service(recorded_data_set());
    let request = SeriesRequest {
        max_time: 1700036000000,
        matchers: vec![matcher(0, "tenant_id", "a")],
        partial_response_strategy: 1,
        ..Default::default()
    };
    assert_eq!(series(&service, request).await.unwrap_err().code(), Code::Aborted);
}

/// A tenant that is opening, whose labels match, leaves no answer as if it were not there.
#[tokio::test]
async fn a_tenant_that_cannot_be_read_is_told_of_where_its_labels_match() {
    let source = recorded_data_set()
        .with_opening("z", &[("replica", "r0"), ("tenant_id", "z"), ("zone", "eu")]);
    let service = service(source);
    let warning = "tenant z cannot be read now: its log is being replayed";
    let matches = [
        vec![matcher(2, "__name__", ".+")],
        vec![matcher(0, "tenant_id", "z"), matcher(0, "__name__", "m")],
        vec![matcher(0, "tenant_id", "z")],
        vec![matcher(1, "tenant_id", "a"), matcher(2, "__name__", ".+")],
    ];
    let misses = [
        vec![matcher(0, "tenant_id", "a"), matcher(2, "__name__", ".+")],
        vec![matcher(2, "__name__", ".+"), matcher(3, "tenant_id", "z|y")],
    ];
    for (all_or_nothing, strategy) in [(false, 0), (true, 0), (false, 1)] {
        let is_partial = !all_or_nothing && strategy == 0;
        for (asked, is_match) in matches
            .iter()
            .map(|asked| (asked, true))
            .chain(misses.iter().map(|asked| (asked, false)))
        {
            let request = SeriesRequest {
                max_time: i64::MAX,
                matchers: asked.clone(),
                partial_response_disabled: all_or_nothing,
                partial_response_strategy: strategy,
                ..Default::default()
            };
            let answer = series(&service, request).await;
            let names = service.label_names(Request::new(LabelNamesRequest {
                end: i64::MAX,
                matchers: asked.clone(),
                partial_response_disabled: all_or_nothing,
                partial_response_strategy: strategy,
                ..Default::default()
            }));
            let names = names.await.map(|names| names.into_inner().warnings);
            let values = service.label_values(Request::new(LabelValuesRequest {
                label: "job".into(),
                end: i64::MAX,
                matchers: asked.clone(),
                partial_response_disabled: all_or_nothing,
                partial_response_strategy: strategy,
                ..Default::default()
            }));
            let values = values.await.map(|values| values.into_inner().warnings);
            if is_match && !is_partial {
                for error in [answer.unwrap_err(), names.unwrap_err(), values.unwrap_err()] {
                    assert_eq!((error.code(), error.message()), (Code::Aborted, warning));
                }
                continue;
            }
            let is_told = |part: &Part| *part == Part::Warning(warning.to_owned());
            assert_eq!(answer.unwrap().first().is_some_and(is_told), is_match, "{asked:?}");
            let warnings = if is_match { vec![warning.to_owned()] } else { Vec::new() };
            assert_eq!(names.unwrap(), warnings, "{asked:?}");
            assert_eq!(values.unwrap(), warnings, "{asked:?}");
        }
    }
    // Its name is known.
    let values = |matchers| {
        service.label_values(Request::new(LabelValuesRequest {
            label: "tenant_id".into(),
            end: i64::MAX,
            matchers,
            partial_response_disabled: true,
            ..Default::default()
        }))
    };
    let answer = values(vec![matcher(2, "zone", "eu")]).await.unwrap().into_inner();
    assert_eq!((answer.values.last().unwrap(), answer.warnings.len()), (&Bytes::from("z"), 0));
    let refused = values(vec![matcher(0, "__name__", "m")]).await.unwrap_err();
    assert_eq!(refused.code(), Code::Aborted);
}

pub(crate) fn matcher(number: i32, name: &str, value: &str) -> LabelMatcher {
    let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    LabelMatcher { r#type: number, name: bytes(name), value: bytes(value) }
}

fn accepts_code(step: &Value, code: Code) -> bool {
    let codes = step["accept"]["code"].as_array();
    codes.is_some_and(|codes| codes.contains(&Value::from(code as i64)))
}

fn text(value: &Value) -> Bytes {
    match value {
        Value::Null => Bytes::new(),
        Value::String(text) => Bytes::copy_from_slice(text.as_bytes()),
        other => base64(&other["b64"]),
    }
}

fn texts(value: &Value) -> Vec<Bytes> {
    value.as_array().into_iter().flatten().map(text).collect()
}

fn int(value: &Value) -> i64 {
    value.as_i64().unwrap_or_default()
}

pub(crate) fn matchers_of(message: &Value) -> Vec<LabelMatcher> {
    let matchers = message["matchers"].as_array().into_iter().flatten();
    matchers
        .map(|matcher| LabelMatcher {
            r#type: match matcher["type"].as_str() {
                Some("EQ") => 0,
                Some("NEQ") => 1,
                Some("RE") => 2,
                Some("NRE") => 3,
                _ => matcher["type"].as_i64().unwrap() as i32,
            },
            name: text(&matcher["name"]),
            value: text(&matcher["value"]),
        })
        .collect()
}

fn series_request(message: &Value) -> SeriesRequest {
    SeriesRequest {
        min_time: int(&message["min_time"]),
        max_time: int(&message["max_time"]),
        matchers: matchers_of(message),
        skip_chunks: message["skip_chunks"] == true,
        partial_response_disabled: message["partial_response_disabled"] == true,
        partial_response_strategy: i32::from(message["partial_response_strategy"] == "ABORT"),
        shard_info: message.get("shard_info").map(|info| ShardInfo {
            shard_index: int(&info["shard_index"]),
            total_shards: int(&info["total_shards"]),
            by: info["by"] == true,
            labels: texts(&info["labels"]),
        }),
        query_hints: message.get("query_hints").map(|_| QueryHints::default()),
        without_replica_labels: texts(&message["without_replica_labels"]),
        limit: int(&message["limit"]),
        response_batch_size: int(&message["response_batch_size"]),
        ..Default::default()
    }
}

fn names_request(message: &Value) -> LabelNamesRequest {
    LabelNamesRequest {
        start: int(&message["start"]),
        end: int(&message["end"]),
        matchers: matchers_of(message),
        without_replica_labels: texts(&message["without_replica_labels"]),
        limit: int(&message["limit"]),
        ..Default::default()
    }
}

fn values_request(message: &Value) -> LabelValuesRequest {
    LabelValuesRequest {
        label: text(&message["label"]),
        start: int(&message["start"]),
        end: int(&message["end"]),
        matchers: matchers_of(message),
        without_replica_labels: texts(&message["without_replica_labels"]),
        limit: int(&message["limit"]),
        ..Default::default()
    }
}

fn series_part(reply: &Value) -> Part {
    if let Some(warning) = reply["warning"].as_str() {
        return Part::Warning(warning.to_owned());
    }
    match reply["batch"]["series"].as_array() {
        Some(batch) => {
            Part::Batch(SeriesBatch { series: batch.iter().map(series_message).collect() })
        }
        None => Part::Series(series_message(&reply["series"])),
    }
}

fn series_message(series: &Value) -> Series {
    let labels = series["labels"].as_array().into_iter().flatten();
    let chunks = series["chunks"].as_array().into_iter().flatten();
    Series {
        labels: labels
            .map(|label| Label { name: text(&label["name"]), value: text(&label["value"]) })
            .collect(),
        chunks: chunks
            .map(|chunk| AggrChunk {
                min_time: int(&chunk["min_time"]),
                max_time: int(&chunk["max_time"]),
                raw: Some(Chunk {
                    r#type: chunk_type(&chunk["raw"]),
                    data: base64(&chunk["raw"]["data"]),
                    hash: chunk["raw"]["hash"].as_u64().unwrap(),
                }),
                ..Default::default()
            })
            .collect(),
    }
}
