//! The protobuf messages that the sender writes and the verifier reads.
//!
//! Written apart from the server's decoders on purpose, so that a mistake there is not hidden by
//! the same mistake here. Messages are Prometheus' `prompb`; the fields used:
//!
//! ```text
//! WriteRequest        1 timeseries
//! TimeSeries          1 labels · 2 samples
//! Label               1 name · 2 value
//! Sample              1 value (double) · 2 timestamp (int64)
//! ReadRequest         1 queries · 2 accepted_response_types (0 SAMPLES, 1 STREAMED_XOR_CHUNKS)
//! Query               1 start · 2 end · 3 matchers
//! LabelMatcher        1 type (0 equal) · 2 name · 3 value
//! ReadResponse        1 results { 1 timeseries }
//! ChunkedReadResponse 1 chunked_series { 1 labels · 2 chunks { 3 type (1 XOR) · 4 data } }
//! ```
//!
//! A streamed answer is a sequence of frames: length as varint, CRC-32C of the message as 4 bytes
//! big-endian, message.

use super::xor;

/// An answer that does not read as its format says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MalformedAnswer {
    #[error("protobuf ends within a field")]
    Truncated,
    #[error("protobuf wire type {0} is not used by remote read")]
    WireType(u64),
    #[error("frame checksum is {stated:08x}, its bytes have {computed:08x}")]
    Checksum { stated: u32, computed: u32 },
    #[error("chunk of encoding {0} in a series of floats")]
    ChunkEncoding(u64),
    #[error("XOR chunk ends within a sample")]
    XorTruncated,
}

/// One series as the server returned it. Samples are in the order of the answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ReadSeries {
    pub labels: Vec<(Vec<u8>, Vec<u8>)>,
    /// Timestamp and bits of the value.
    pub samples: Vec<(i64, u64)>,
}

/// How the server is asked to answer a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadFormat {
    Samples,
    StreamedXorChunks,
}

pub(super) fn push_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn push_bytes(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    out.push(tag);
    push_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Appends a series' labels as the `labels` fields of a `TimeSeries`.
pub(super) fn push_labels(out: &mut Vec<u8>, labels: &[(String, String)]) {
    let mut label = Vec::with_capacity(128);
    for (name, value) in labels {
        label.clear();
        push_bytes(&mut label, 0x0a, name.as_bytes());
        push_bytes(&mut label, 0x12, value.as_bytes());
        push_bytes(out, 0x0a, &label);
    }
}

/// Appends a `timeseries` field of `WriteRequest` made of encoded labels and samples.
pub(super) fn push_series(out: &mut Vec<u8>, labels: &[u8], samples: &[(i64, u64)]) {
    let samples_len: u64 = samples.iter().map(|&sample| 2 + u64::from(sample_len(sample))).sum();
    out.push(0x0a);
    push_varint(out, labels.len() as u64 + samples_len);
    out.extend_from_slice(labels);
    for &(timestamp, bits) in samples {
        out.extend_from_slice(&[0x12, sample_len((timestamp, bits))]);
        if bits != 0 {
            out.push(0x09);
            out.extend_from_slice(&bits.to_le_bytes());
        }
        if timestamp != 0 {
            out.push(0x10);
            push_varint(out, timestamp as u64);
        }
    }
}

/// Length of a `Sample` message; proto3 leaves zero fields out.
fn sample_len((timestamp, bits): (i64, u64)) -> u8 {
    let value = if bits == 0 { 0 } else { 9 };
    let time = match timestamp as u64 {
        0 => 0,
        time => 1 + (64 - time.leading_zeros() as u8).div_ceil(7),
    };
    value + time
}

/// A `ReadRequest` for the series whose label `name` is `value`, between two times, both included.
pub(super) fn read_request(
    mint: i64,
    maxt: i64,
    name: &str,
    value: &str,
    format: ReadFormat,
) -> Vec<u8> {
    let mut matcher = Vec::new();
    push_bytes(&mut matcher, 0x12, name.as_bytes());
    push_bytes(&mut matcher, 0x1a, value.as_bytes());
    let mut query = Vec::new();
    query.push(0x08);
    push_varint(&mut query, mint as u64);
    query.push(0x10);
    push_varint(&mut query, maxt as u64);
    push_bytes(&mut query, 0x1a, &matcher);
    let mut request = Vec::new();
    push_bytes(&mut request, 0x0a, &query);
    let accepted = match format {
        ReadFormat::Samples => 0,
        ReadFormat::StreamedXorChunks => 1,
    };
    request.extend_from_slice(&[0x12, 1, accepted]);
    request
}

/// The series of an uncompressed `ReadResponse`.
pub(super) fn read_response(bytes: &[u8]) -> Result<Vec<ReadSeries>, MalformedAnswer> {
    let mut all = Vec::new();
    for_each_field(bytes, |number, field| {
        let (1, Field::Bytes(result)) = (number, field) else { return Ok(()) };
        for_each_field(result, |number, field| {
            if let (1, Field::Bytes(series)) = (number, field) {
                all.push(time_series(series)?);
            }
            Ok(())
        })
    })?;
    Ok(all)
}

/// The series of a `WriteRequest`, which has the shape of one query's result.
#[cfg(test)]
pub(super) fn write_request(bytes: &[u8]) -> Result<Vec<ReadSeries>, MalformedAnswer> {
    let mut response = Vec::new();
    push_bytes(&mut response, 0x0a, bytes);
    read_response(&response)
}

/// The series of a whole streamed answer. A series may come in several parts.
pub(super) fn chunked_response(mut bytes: &[u8]) -> Result<Vec<ReadSeries>, MalformedAnswer> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let (len, rest) = read_varint(bytes).ok_or(MalformedAnswer::Truncated)?;
        let (stated, rest) = rest.split_first_chunk::<4>().ok_or(MalformedAnswer::Truncated)?;
        let (message, rest) = split(rest, len)?;
        let (stated, computed) = (u32::from_be_bytes(*stated), crc32c::crc32c(message));
        if stated != computed {
            return Err(MalformedAnswer::Checksum { stated, computed });
        }
        for_each_field(message, |number, field| {
            if let (1, Field::Bytes(series)) = (number, field) {
                all.push(chunked_series(series)?);
            }
            Ok(())
        })?;
        bytes = rest;
    }
    Ok(all)
}

fn time_series(bytes: &[u8]) -> Result<ReadSeries, MalformedAnswer> {
    let mut series = ReadSeries::default();
    for_each_field(bytes, |number, field| {
        match (number, field) {
            (1, Field::Bytes(bytes)) => series.labels.push(label(bytes)?),
            (2, Field::Bytes(bytes)) => series.samples.push(sample(bytes)?),
            _ => {}
        }
        Ok(())
    })?;
    Ok(series)
}

fn label(bytes: &[u8]) -> Result<(Vec<u8>, Vec<u8>), MalformedAnswer> {
    let (mut name, mut value) = (Vec::new(), Vec::new());
    for_each_field(bytes, |number, field| {
        match (number, field) {
            (1, Field::Bytes(bytes)) => name = bytes.to_vec(),
            (2, Field::Bytes(bytes)) => value = bytes.to_vec(),
            _ => {}
        }
        Ok(())
    })?;
    Ok((name, value))
}

fn sample(bytes: &[u8]) -> Result<(i64, u64), MalformedAnswer> {
    let (mut timestamp, mut bits) = (0, 0);
    for_each_field(bytes, |number, field| {
        match (number, field) {
            (1, Field::Fixed64(value)) => bits = value,
            (2, Field::Varint(value)) => timestamp = value as i64,
            _ => {}
        }
        Ok(())
    })?;
    Ok((timestamp, bits))
}

fn chunked_series(bytes: &[u8]) -> Result<ReadSeries, MalformedAnswer> {
    let mut series = ReadSeries::default();
    for_each_field(bytes, |number, field| {
        match (number, field) {
            (1, Field::Bytes(bytes)) => series.labels.push(label(bytes)?),
            (2, Field::Bytes(bytes)) => chunk(bytes, &mut series.samples)?,
            _ => {}
        }
        Ok(())
    })?;
    Ok(series)
}

fn chunk(bytes: &[u8], samples: &mut Vec<(i64, u64)>) -> Result<(), MalformedAnswer> {
    const XOR: u64 = 1;
    let (mut encoding, mut payload) = (0, &[][..]);
    for_each_field(bytes, |number, field| {
        match (number, field) {
            (3, Field::Varint(value)) => encoding = value,
            (4, Field::Bytes(bytes)) => payload = bytes,
            _ => {}
        }
        Ok(())
    })?;
    if encoding != XOR {
        return Err(MalformedAnswer::ChunkEncoding(encoding));
    }
    xor::decode(payload, samples).ok_or(MalformedAnswer::XorTruncated)
}

enum Field<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
}

/// Calls `visit` with number and content of each field of a message.
fn for_each_field<'a>(
    mut bytes: &'a [u8],
    mut visit: impl FnMut(u64, Field<'a>) -> Result<(), MalformedAnswer>,
) -> Result<(), MalformedAnswer> {
    while !bytes.is_empty() {
        let (tag, rest) = read_varint(bytes).ok_or(MalformedAnswer::Truncated)?;
        let (field, rest) = match tag & 7 {
            0 => {
                let (value, rest) = read_varint(rest).ok_or(MalformedAnswer::Truncated)?;
                (Field::Varint(value), rest)
            }
            1 => {
                let (value, rest) =
                    rest.split_first_chunk::<8>().ok_or(MalformedAnswer::Truncated)?;
                (Field::Fixed64(u64::from_le_bytes(*value)), rest)
            }
            2 => {
                let (len, rest) = read_varint(rest).ok_or(MalformedAnswer::Truncated)?;
                let (value, rest) = split(rest, len)?;
                (Field::Bytes(value), rest)
            }
            other => return Err(MalformedAnswer::WireType(other)),
        };
        visit(tag >> 3, field)?;
        bytes = rest;
    }
    Ok(())
}

fn split(bytes: &[u8], len: u64) -> Result<(&[u8], &[u8]), MalformedAnswer> {
    let len = usize::try_from(len).map_err(|_| MalformedAnswer::Truncated)?;
    bytes.split_at_checked(len).ok_or(MalformedAnswer::Truncated)
}

/// A varint of at most ten bytes and what follows it.
pub(super) fn read_varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0u64;
    for (i, &byte) in bytes.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte < 0x80 {
            return bytes.get(i + 1..).map(|rest| (value, rest));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn labels() -> impl Strategy<Value = Vec<(String, String)>> {
        proptest::collection::vec((".{0,20}", ".{0,200}"), 0..8)
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(
            labels in labels(),
            samples in proptest::collection::vec((any::<i64>(), any::<u64>()), 0..5),
        ) {
            let mut encoded = Vec::new();
            push_labels(&mut encoded, &labels);
            let mut request = Vec::new();
            push_series(&mut request, &encoded, &samples);
            push_series(&mut request, &encoded, &[(0, 0)]);
            let labels: Vec<_> =
                labels.into_iter().map(|(n, v)| (n.into_bytes(), v.into_bytes())).collect();
            let decoded = write_request(&request).unwrap();
            prop_assert_eq!(decoded, vec![
                ReadSeries { labels: labels.clone(), samples },
                ReadSeries { labels, samples: vec![(0, 0)] },
            ]);
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read_response(&bytes);
            let _ = chunked_response(&bytes);
            let mut framed = Vec::new();
            push_varint(&mut framed, bytes.len() as u64);
            framed.extend_from_slice(&crc32c::crc32c(&bytes).to_be_bytes());
            framed.extend_from_slice(&bytes);
            let _ = chunked_response(&framed);
        }
    }

    /// Bytes written by hand from the message definitions.
    #[test]
    fn samples_have_the_two_usual_lengths() {
        let now = 1_764_000_000_000;
        let mut request = Vec::new();
        push_series(&mut request, b"", &[(now, 1.0f64.to_bits())]);
        push_series(&mut request, b"", &[(now, 0)]);
        let time = [0x10, 0x80, 0xd0, 0xdf, 0xb4, 0xab, 0x33];
        let mut expected = vec![0x0a, 18, 0x12, 16, 0x09, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f];
        expected.extend_from_slice(&time);
        expected.extend_from_slice(&[0x0a, 9, 0x12, 7]);
        expected.extend_from_slice(&time);
        assert_eq!(request, expected);
    }

    #[test]
    fn a_frame_with_a_flipped_bit_is_refused() {
        let mut framed = vec![2];
        framed.extend_from_slice(&crc32c::crc32c(&[0x10, 1]).to_be_bytes());
        framed.extend_from_slice(&[0x10, 1]);
        assert_eq!(chunked_response(&framed), Ok(Vec::new()));
        framed[6] ^= 1;
        assert!(matches!(chunked_response(&framed), Err(MalformedAnswer::Checksum { .. })));
    }
}
