//! Against the messages that are generated from `proto/`.

use bytes::Buf as _;
use proptest::prelude::*;
use prost::Message as _;

use super::*;
use crate::wire::proto::thanos::series_response::Result as Part;
use crate::wire::proto::thanos::{AggrChunk, Chunk, Label, Series, SeriesBatch, SeriesResponse};

/// The messages of an answer, as a client decodes them.
pub(crate) fn messages(pieces: impl IntoIterator<Item = Bytes>) -> Vec<SeriesResponse> {
    let mut messages = Vec::new();
    for mut piece in pieces {
        // A piece is of whole messages.
        while piece.has_remaining() {
            let mut head = [0; HEAD_BYTES];
            piece.copy_to_slice(&mut head);
            let Head { is_encoded, len } = Head::parse(head, None).unwrap();
            assert!(!is_encoded);
            let message = piece.split_to(len as usize);
            let decoded = SeriesResponse::decode(message.clone()).unwrap();
            // Nothing is longer than it has to be, and what is to be left out is left out.
            assert!(decoded.encode_to_vec() == message, "{decoded:?}");
            messages.push(decoded);
        }
    }
    messages
}

#[derive(Clone, Debug)]
struct OneChunk {
    mint: i64,
    maxt: i64,
    encoding: u8,
    bytes: Vec<u8>,
}

type Labels = Vec<(Vec<u8>, Vec<u8>)>;

/// Frames as they are cut, made of messages: the judge.
fn series_messages(labels: &Labels, chunks: &[OneChunk]) -> Vec<Series> {
    let labels: Vec<_> = labels
        .iter()
        .map(|(name, value)| Label { name: name.clone().into(), value: value.clone().into() })
        .collect();
    let label_bytes: usize = labels.iter().map(|label| label.encoded_len()).sum();
    let mut frames = vec![Series { labels: labels.clone(), chunks: vec![] }];
    let mut bytes = label_bytes;
    for chunk in chunks {
        if bytes >= FRAME_BYTES && !frames.last().unwrap().chunks.is_empty() {
            frames.push(Series { labels: labels.clone(), chunks: vec![] });
            bytes = label_bytes;
        }
        let raw = Chunk {
            r#type: i32::from(chunk.encoding) - 1,
            data: chunk.bytes.clone().into(),
            hash: xxh64(&chunk.bytes, 0),
        };
        let chunk = AggrChunk {
            min_time: chunk.mint,
            max_time: chunk.maxt,
            raw: Some(raw),
            ..Default::default()
        };
        bytes += chunk.encoded_len();
        frames.last_mut().unwrap().chunks.push(chunk);
    }
    frames
}

fn write(writer: &mut FrameWriter, labels: &Labels, chunks: &[OneChunk]) {
    let labels = labels.iter().map(|(name, value)| (&name[..], &value[..]));
    let views = chunks.iter().map(|chunk| ChunkView {
        mint: chunk.mint,
        maxt: chunk.maxt,
        encoding: chunk.encoding,
        bytes: &chunk.bytes,
    });
    writer.series(labels, views);
}

fn taken(writer: &mut FrameWriter) -> Vec<Part> {
    let mut ready = VecDeque::new();
    writer.take(&mut ready);
    assert!(writer.is_empty());
    messages(ready).into_iter().map(|message| message.result.unwrap()).collect()
}

/// Lengths at which a varint gets longer are among them, and zeros.
fn chunks() -> impl Strategy<Value = OneChunk> {
    let time =
        prop_oneof![Just(0), Just(-1), Just(i64::MIN), Just(i64::MAX), any::<i64>(), 0..300i64];
    let len = prop_oneof![0..4usize, 100..140usize, 16_370..16_390usize];
    (time.clone(), time, 1..4u8, len, any::<u8>()).prop_map(|(mint, maxt, encoding, len, byte)| {
        OneChunk { mint, maxt, encoding, bytes: vec![byte; len] }
    })
}

fn labels() -> impl Strategy<Value = Labels> {
    // Not all of it is text.
    let text = || {
        prop_oneof![
            prop::collection::vec(any::<u8>(), 0..4),
            prop::collection::vec(any::<u8>(), 110..140),
        ]
    };
    prop::collection::vec((text(), text()), 0..8)
}

proptest! {
    #[test]
    fn series_are_the_messages_that_they_are_decoded_to(
        series in prop::collection::vec((labels(), prop::collection::vec(chunks(), 0..6)), 0..6),
        batch_len_max in 0..5usize,
        taken_after in 0..6usize,
    ) {
        let mut writer = FrameWriter::new(batch_len_max);
        writer.warning("");
        writer.warning("a tenant is missing");
        let mut parts = Vec::new();
        for (i, (labels, chunks)) in series.iter().enumerate() {
            write(&mut writer, labels, chunks);
            if i == taken_after {
                parts.extend(taken(&mut writer));
            }
        }
        writer.flush_batch();
        parts.extend(taken(&mut writer));
        let all = series.iter().flat_map(|(labels, chunks)| series_messages(labels, chunks));
        let all: Vec<_> = all.collect();
        let mut expected: Vec<_> =
            ["", "a tenant is missing"].map(|text| Part::Warning(text.to_owned())).into();
        match batch_len_max {
            0 | 1 => expected.extend(all.into_iter().map(Part::Series)),
            max => expected.extend(
                all.chunks(max).map(|series| Part::Batch(SeriesBatch { series: series.to_vec() })),
            ),
        }
        prop_assert_eq!(parts, expected);
    }
}

/// Frames are cut behind the chunk that reaches the bound, and batches before the series that passes
/// it.
#[test]
fn long_series_come_in_frames_and_batches_stay_within_the_bound() {
    let chunk = |i: i64, len| OneChunk { mint: i, maxt: i, encoding: 1, bytes: vec![7; len] };
    let labels = vec![(b"a".to_vec(), b"b".to_vec())];
    let series: [Vec<_>; 4] = [
        (0..300).map(|i| chunk(i, 10_000)).collect(),
        vec![chunk(0, 3 * FRAME_BYTES), chunk(1, 5)],
        vec![chunk(0, FRAME_BYTES / 2)],
        vec![chunk(0, FRAME_BYTES / 2)],
    ];
    for batch_len_max in [1, 100] {
        let mut writer = FrameWriter::new(batch_len_max);
        series.iter().for_each(|chunks| write(&mut writer, &labels, chunks));
        writer.flush_batch();
        let expected: Vec<_> =
            series.iter().flat_map(|chunks| series_messages(&labels, chunks)).collect();
        assert_eq!(expected.len(), 3 + 2 + 2);
        let mut found = Vec::new();
        for part in taken(&mut writer) {
            match part {
                Part::Series(series) => found.push(series),
                Part::Batch(batch) => {
                    let bytes: usize = batch.series.iter().map(Series::encoded_len).sum();
                    assert!(batch.series.len() == 1 || bytes < FRAME_BYTES + 100, "{bytes}");
                    found.extend(batch.series);
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(found == expected, "in batches of {batch_len_max}");
    }
}
