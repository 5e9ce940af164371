//! Samples of any kind, out of chunks of any encoding and into new ones.

use thin_vec::ThinVec;

use crate::model::histogram::{AnyHistogram, Float, Histogram, Integer};
use crate::model::{STALE_NAN_BITS, Timestamp};
use crate::tsdb::chunkenc::histogram::{HistogramIterator, OpenHistogramChunk, Taken};
use crate::tsdb::chunkenc::xor::{XorIterator, XorState};
use crate::tsdb::chunkenc::{
    ChunkError, ENCODING_FLOAT_HISTOGRAM, ENCODING_HISTOGRAM, ENCODING_XOR,
};

/// As many as Prometheus puts into a chunk of samples that it has merged.
pub const SAMPLES_PER_CHUNK: u16 = 120;

/// What a sample says.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Bits of the float.
    Float(u64),
    Histogram(Box<AnyHistogram>),
}

impl Value {
    /// Whether both tell the same of their time. A float that is a staleness marker became one of
    /// histograms where it followed some.
    pub fn tells_the_same(&self, sent: ValueRef<'_>) -> bool {
        match (self, sent) {
            (Value::Float(stored), ValueRef::Float(sent)) => *stored == sent,
            (Value::Histogram(stored), ValueRef::Float(sent)) => {
                sent == STALE_NAN_BITS && stored.is_stale()
            }
            (Value::Histogram(stored), ValueRef::Histogram(sent)) => stored.tells_the_same(sent),
            (Value::Float(_), ValueRef::Histogram(_)) => false,
        }
    }
}

/// The same, borrowed.
#[derive(Clone, Copy, Debug)]
pub enum ValueRef<'v> {
    Float(u64),
    Histogram(&'v AnyHistogram),
}

/// Samples of a chunk. Ends after the first error.
pub enum SampleIterator<'a> {
    Float(XorIterator<'a>),
    Integer(Box<HistogramIterator<'a, Integer>>),
    FloatHistogram(Box<HistogramIterator<'a, Float>>),
    /// Of an encoding that nothing here reads; whether that was said.
    Unknown(bool),
}

impl<'a> SampleIterator<'a> {
    pub fn new(encoding: u8, chunk: &'a [u8]) -> SampleIterator<'a> {
        match encoding {
            ENCODING_XOR => SampleIterator::Float(XorIterator::new(chunk)),
            ENCODING_HISTOGRAM => SampleIterator::Integer(Box::new(HistogramIterator::new(chunk))),
            ENCODING_FLOAT_HISTOGRAM => {
                SampleIterator::FloatHistogram(Box::new(HistogramIterator::new(chunk)))
            }
            _ => SampleIterator::Unknown(false),
        }
    }
}

impl Iterator for SampleIterator<'_> {
    type Item = Result<(Timestamp, Value), ChunkError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            SampleIterator::Float(samples) => {
                Some(samples.next()?.map(|(t, v)| (t, Value::Float(v))))
            }
            SampleIterator::Integer(samples) => {
                let mut read = Histogram::default();
                let t = samples.next_into(&mut read)?;
                let value = |t| (t, Value::Histogram(Box::new(AnyHistogram::Integer(read))));
                Some(t.map(value))
            }
            SampleIterator::FloatHistogram(samples) => {
                let mut read = Histogram::default();
                let t = samples.next_into(&mut read)?;
                let value = |t| (t, Value::Histogram(Box::new(AnyHistogram::Float(read))));
                Some(t.map(value))
            }
            SampleIterator::Unknown(was_said) => {
                let is_first = !std::mem::replace(was_said, true);
                is_first.then_some(Err(ChunkError("an encoding that is not read")))
            }
        }
    }
}

/// The value at `t` in an encoded chunk, if there is one.
pub fn value_in(encoding: u8, chunk: &[u8], t: Timestamp) -> Option<Value> {
    SampleIterator::new(encoding, chunk).flatten().find_map(|(at, value)| {
        let is_it = at == t;
        is_it.then_some(value)
    })
}

/// A chunk that samples of its kind are added to.
pub enum OpenChunk {
    Float { mint: Timestamp, xor: XorState, bytes: ThinVec<u8> },
    Integer(Box<OpenHistogramChunk<Integer>>),
    FloatHistogram(Box<OpenHistogramChunk<Float>>),
}

/// A chunk as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    pub mint: Timestamp,
    /// Time of the last sample, included.
    pub maxt: Timestamp,
    pub encoding: u8,
    pub bytes: ThinVec<u8>,
}

impl OpenChunk {
    /// A chunk of one sample.
    pub fn begin(t: Timestamp, value: &Value) -> OpenChunk {
        match value {
            Value::Float(v) => {
                let (mut xor, mut bytes) = (XorState::default(), ThinVec::new());
                xor.append(&mut bytes, t, *v);
                OpenChunk::Float { mint: t, xor, bytes }
            }
            Value::Histogram(histogram) => match &**histogram {
                AnyHistogram::Integer(sample) => {
                    OpenChunk::Integer(Box::new(OpenHistogramChunk::begin(t, sample, None)))
                }
                AnyHistogram::Float(sample) => {
                    OpenChunk::FloatHistogram(Box::new(OpenHistogramChunk::begin(t, sample, None)))
                }
            },
        }
    }

    /// Adds a sample that is later than the last; or gives the chunk that begins with it, where this
    /// one cannot have it. The caller upholds that this one is not [full](Self::is_full).
    pub fn append(&mut self, t: Timestamp, value: &Value) -> Option<OpenChunk> {
        match (self, value) {
            (OpenChunk::Float { xor, bytes, .. }, Value::Float(v)) => {
                xor.append(bytes, t, *v);
                None
            }
            (OpenChunk::Integer(chunk), Value::Histogram(histogram)) => match &**histogram {
                AnyHistogram::Integer(sample) => match chunk.append(t, sample) {
                    Taken::Begun(begun) => Some(OpenChunk::Integer(begun)),
                    Taken::Appended | Taken::Recoded => None,
                },
                AnyHistogram::Float(_) => Some(OpenChunk::begin(t, value)),
            },
            (OpenChunk::FloatHistogram(chunk), Value::Histogram(histogram)) => match &**histogram {
                AnyHistogram::Float(sample) => match chunk.append(t, sample) {
                    Taken::Begun(begun) => Some(OpenChunk::FloatHistogram(begun)),
                    Taken::Appended | Taken::Recoded => None,
                },
                AnyHistogram::Integer(_) => Some(OpenChunk::begin(t, value)),
            },
            _ => Some(OpenChunk::begin(t, value)),
        }
    }

    /// Samples in the chunk.
    pub fn count(&self) -> u16 {
        match self {
            OpenChunk::Float { xor, .. } => xor.count,
            OpenChunk::Integer(chunk) => chunk.count(),
            OpenChunk::FloatHistogram(chunk) => chunk.count(),
        }
    }

    /// Whether it can take no sample more.
    pub fn is_full(&self) -> bool {
        self.count() == u16::MAX
    }

    /// The chunk as it is when no sample is added any more.
    pub fn finish(self) -> Encoded {
        match self {
            OpenChunk::Float { mint, xor, mut bytes } => {
                xor.finish(&mut bytes);
                Encoded { mint, maxt: xor.t, encoding: ENCODING_XOR, bytes }
            }
            OpenChunk::Integer(chunk) => Encoded {
                mint: chunk.first_time(),
                maxt: chunk.last_time(),
                encoding: ENCODING_HISTOGRAM,
                bytes: chunk.bytes().into(),
            },
            OpenChunk::FloatHistogram(chunk) => Encoded {
                mint: chunk.first_time(),
                maxt: chunk.last_time(),
                encoding: ENCODING_FLOAT_HISTOGRAM,
                bytes: chunk.bytes().into(),
            },
        }
    }
}

/// Chunks of samples in order of time, cut as Prometheus cuts what it has merged. (`storage/series.go`)
pub fn encode(samples: impl IntoIterator<Item = (Timestamp, Value)>) -> Vec<Encoded> {
    let mut chunks = Vec::new();
    let mut open: Option<OpenChunk> = None;
    for (t, value) in samples {
        let begun = match open.as_mut().filter(|open| open.count() < SAMPLES_PER_CHUNK) {
            Some(open) => open.append(t, &value),
            None => Some(OpenChunk::begin(t, &value)),
        };
        if let Some(begun) = begun {
            chunks.extend(open.replace(begun).map(OpenChunk::finish));
        }
    }
    chunks.extend(open.map(OpenChunk::finish));
    chunks
}

/// What a chunk has at the times that are kept, as one chunk; `None` if that is nothing. Of a damaged
/// one it is what can be read, up to the error.
pub fn encode_if(
    encoding: u8,
    chunk: &[u8],
    keep: impl Fn(Timestamp) -> bool,
) -> (Option<OpenChunk>, Result<(), ChunkError>) {
    let mut open: Option<OpenChunk> = None;
    for sample in SampleIterator::new(encoding, chunk) {
        let (t, value) = match sample {
            Ok(sample) => sample,
            Err(damage) => return (open, Err(damage)),
        };
        if !keep(t) {
            continue;
        }
        match &mut open {
            None => open = Some(OpenChunk::begin(t, &value)),
            Some(chunk) => {
                // Samples of a chunk fit one another, or it was not made by an appender.
                if chunk.append(t, &value).is_some() {
                    return (open, Err(ChunkError("samples of a chunk do not fit one another")));
                }
            }
        }
    }
    (open, Ok(()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn integer(count: u64) -> Value {
        let histogram = Histogram::<Integer> { count, zero_count: count, ..Histogram::default() };
        Value::Histogram(Box::new(AnyHistogram::Integer(histogram)))
    }

    fn float(count: f64) -> Value {
        let histogram = Histogram::<Float> { count, zero_count: count, ..Histogram::default() };
        Value::Histogram(Box::new(AnyHistogram::Float(histogram)))
    }

    /// Samples without what a chunk says of resets.
    fn told(chunks: &[Encoded]) -> Vec<(Timestamp, Value)> {
        let samples = |chunk: &Encoded| {
            let samples: Result<Vec<_>, _> =
                SampleIterator::new(chunk.encoding, &chunk.bytes).collect();
            let samples = samples.unwrap();
            assert_eq!((samples[0].0, samples[samples.len() - 1].0), (chunk.mint, chunk.maxt));
            samples
        };
        chunks.iter().flat_map(samples).collect()
    }

    fn as_ref(value: &Value) -> ValueRef<'_> {
        match value {
            Value::Float(v) => ValueRef::Float(*v),
            Value::Histogram(histogram) => ValueRef::Histogram(histogram),
        }
    }

    #[test]
    fn a_marker_of_either_kind_is_what_it_was_sent_as() {
        let marker = Value::Histogram(Box::new(AnyHistogram::Integer(Histogram::stale())));
        assert!(marker.tells_the_same(ValueRef::Float(STALE_NAN_BITS)));
        assert!(!marker.tells_the_same(ValueRef::Float(0)));
        assert!(!Value::Float(STALE_NAN_BITS).tells_the_same(as_ref(&marker)));
        assert!(!integer(0).tells_the_same(ValueRef::Float(STALE_NAN_BITS)));
        assert!(!integer(1).tells_the_same(as_ref(&float(1.0))));
    }

    #[test]
    fn what_is_not_read_is_an_error_once() {
        let mut samples = SampleIterator::new(77, &[0, 1, 0]);
        assert!(samples.next().unwrap().is_err());
        assert!(samples.next().is_none());
    }

    proptest! {
        /// Whatever kinds follow one another, all samples come back, each chunk is of one kind, and
        /// what is left of a chunk is what was kept.
        #[test]
        fn samples_of_all_kinds_come_back(
            kinds in prop::collection::vec((0u8..3, 0u64..50), 1..300),
            modulus in 1i64..5,
        ) {
            let sample = |(t, (kind, count)): (usize, &(u8, u64))| {
                let value = match kind {
                    0 => Value::Float(*count),
                    1 => integer(*count),
                    _ => float(*count as f64),
                };
                (t as Timestamp * 15_000, value)
            };
            let samples: Vec<_> = kinds.iter().enumerate().map(sample).collect();
            let chunks = encode(samples.clone());
            let found = told(&chunks);
            prop_assert_eq!(found.len(), samples.len());
            for ((t, value), (found_t, found)) in samples.iter().zip(&found) {
                prop_assert!(t == found_t && found.tells_the_same(as_ref(value)));
            }
            for chunk in &chunks {
                let keep = |t: Timestamp| t / 15_000 % modulus == 0;
                let (kept, read) = encode_if(chunk.encoding, &chunk.bytes, keep);
                prop_assert!(read.is_ok());
                let kept = told(&kept.map(OpenChunk::finish).into_iter().collect::<Vec<_>>());
                let mut expected = told(std::slice::from_ref(chunk));
                expected.retain(|(t, _)| keep(*t));
                prop_assert_eq!(kept.len(), expected.len());
                for ((t, value), (kept_t, kept)) in expected.iter().zip(&kept) {
                    prop_assert!(t == kept_t && kept.tells_the_same(as_ref(value)));
                }
            }
        }
    }
}
