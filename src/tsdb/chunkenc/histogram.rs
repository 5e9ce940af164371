//! Chunks of native histograms, integer ones and those of floats. (Prometheus
//! `tsdb/chunkenc/{float_,}histogram.go`)
//!
//! ```text
//! count u16 BE | flags: 00 unknown, 01 not reset, 10 reset, 11 gauge, six zeros | layout | sample*
//!
//! sample:   t | count | zero count | sum | positive buckets | negative buckets
//! t:        signed varbit: first the time, then the delta's delta to the one before
//! integers: count and zero count first unsigned, all else signed varbit: first the number, then the
//!           delta's delta
//! floats:   first 64 bits, then XOR as in float chunks; so is the sum of either kind
//! ```
//!
//! All samples of a chunk have its layout. One that has more buckets makes the chunk be written anew
//! with these, one that lacks some which were never hit gets them; where neither helps, or counts have
//! fallen, a chunk begins. A staleness marker has no buckets, and nothing but others follows it.

mod layouts;
#[cfg(test)]
mod tests;

use crate::model::histogram::{
    Float, Histogram, Integer, Layout, Numbers, ResetHint, Span, bucket_count, is_stale,
};
use crate::tsdb::chunkenc::bits::{BitReader, BitWriter};
use crate::tsdb::chunkenc::histogram::layouts::{
    Insert, buckets, insert, push_layout, read_layout, union,
};
use crate::tsdb::chunkenc::varbit::{push_signed, push_unsigned, read_signed, read_unsigned};
use crate::tsdb::chunkenc::xor::{COUNT_BYTES, XorWindow};
use crate::tsdb::chunkenc::{ChunkError, ENCODING_FLOAT_HISTOGRAM, ENCODING_HISTOGRAM};

const FLAGS_AT: usize = COUNT_BYTES;
const HEADER_BYTES: usize = COUNT_BYTES + 1;
/// Where the flags have what is known of resets.
const RESET_BITS: u8 = 6;

/// What a chunk says of the samples before its first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetHeader {
    Unknown = 0,
    NotReset = 1,
    Reset = 2,
    /// The chunk is of gauges, of which nothing is said.
    Gauge = 3,
}

impl ResetHeader {
    fn of_flags(flags: u8) -> ResetHeader {
        match flags >> RESET_BITS {
            0 => ResetHeader::Unknown,
            1 => ResetHeader::NotReset,
            2 => ResetHeader::Reset,
            _ => ResetHeader::Gauge,
        }
    }
}

/// How the numbers of one kind are written and read, each by what was before.
pub trait Encoded: Numbers {
    /// The encoding's number.
    const ENCODING: u8;
    type CountTrack: Track<Self::Count>;
    type BucketTrack: Track<Self::Bucket>;
    /// What a chunk says whose first sample follows gauges.
    const BEHIND_GAUGES: ResetHeader;
    /// What a chunk says behind a full one of another layout.
    const BEHIND_ANOTHER_LAYOUT: ResetHeader;
}

/// A number as it was last, and what the next one is written with.
pub trait Track<V>: Clone + Default {
    /// Writes the number of a chunk's first sample.
    fn begin(&mut self, bits: &mut BitWriter, value: V);
    /// Writes that of a later one.
    fn push(&mut self, bits: &mut BitWriter, value: V);
    /// Reads what [`Track::begin`] wrote; `None` at the end of the stream, as below.
    fn read_first(&mut self, bits: &mut BitReader<'_>) -> Option<()>;
    fn read(&mut self, bits: &mut BitReader<'_>) -> Option<()>;
    fn value(&self) -> V;
    /// Appends the number of a staleness marker, which has none, to a chunk of others.
    fn push_stale(&mut self, bits: &mut BitWriter);
}

/// An integer by its delta's delta.
#[derive(Clone, Default)]
pub struct Delta {
    value: i64,
    delta: i64,
}

/// An integer, and how a chunk's first one is written: all later ones are as signed ones are.
pub trait Whole: Copy {
    fn push_first(self, bits: &mut BitWriter);
    fn read_first(bits: &mut BitReader<'_>) -> Option<Self>;
    fn to_signed(self) -> i64;
    fn of_signed(value: i64) -> Self;
}

impl Whole for i64 {
    fn push_first(self, bits: &mut BitWriter) {
        push_signed(bits, self);
    }

    fn read_first(bits: &mut BitReader<'_>) -> Option<i64> {
        read_signed(bits)
    }

    fn to_signed(self) -> i64 {
        self
    }

    fn of_signed(value: i64) -> i64 {
        value
    }
}

impl Whole for u64 {
    fn push_first(self, bits: &mut BitWriter) {
        push_unsigned(bits, self);
    }

    fn read_first(bits: &mut BitReader<'_>) -> Option<u64> {
        read_unsigned(bits)
    }

    fn to_signed(self) -> i64 {
        self as i64
    }

    fn of_signed(value: i64) -> u64 {
        value as u64
    }
}

impl<V: Whole> Track<V> for Delta {
    fn begin(&mut self, bits: &mut BitWriter, value: V) {
        value.push_first(bits);
        *self = Delta { value: value.to_signed(), delta: 0 };
    }

    fn push(&mut self, bits: &mut BitWriter, value: V) {
        let value = value.to_signed();
        let delta = value.wrapping_sub(self.value);
        push_signed(bits, delta.wrapping_sub(self.delta));
        *self = Delta { value, delta };
    }

    fn read_first(&mut self, bits: &mut BitReader<'_>) -> Option<()> {
        *self = Delta { value: V::read_first(bits)?.to_signed(), delta: 0 };
        Some(())
    }

    fn read(&mut self, bits: &mut BitReader<'_>) -> Option<()> {
        self.delta = self.delta.wrapping_add(read_signed(bits)?);
        self.value = self.value.wrapping_add(self.delta);
        Some(())
    }

    fn value(&self) -> V {
        V::of_signed(self.value)
    }

    fn push_stale(&mut self, bits: &mut BitWriter) {
        push_signed(bits, 0);
        *self = Delta { value: 0, delta: self.value.wrapping_neg() };
    }
}

/// A float by the bits in which it differs.
#[derive(Clone)]
pub struct Xor {
    bits: u64,
    window: XorWindow,
}

impl Default for Xor {
    fn default() -> Xor {
        Xor { bits: 0, window: XorWindow::NONE }
    }
}

impl Track<f64> for Xor {
    fn begin(&mut self, bits: &mut BitWriter, value: f64) {
        bits.push(value.to_bits().into(), u64::BITS);
        self.bits = value.to_bits();
    }

    fn push(&mut self, bits: &mut BitWriter, value: f64) {
        let (xor, count) = self.window.bits(self.bits, value.to_bits());
        bits.push(xor, count);
        self.bits = value.to_bits();
    }

    fn read_first(&mut self, bits: &mut BitReader<'_>) -> Option<()> {
        *self = Xor { bits: bits.read_bits(u64::BITS)?, window: XorWindow::default() };
        Some(())
    }

    fn read(&mut self, bits: &mut BitReader<'_>) -> Option<()> {
        self.bits = self.window.read(bits, self.bits)?;
        Some(())
    }

    fn value(&self) -> f64 {
        f64::from_bits(self.bits)
    }

    fn push_stale(&mut self, bits: &mut BitWriter) {
        self.push(bits, 0.0);
    }
}

impl Encoded for Integer {
    const ENCODING: u8 = ENCODING_HISTOGRAM;
    type CountTrack = Delta;
    type BucketTrack = Delta;
    const BEHIND_GAUGES: ResetHeader = ResetHeader::NotReset;
    const BEHIND_ANOTHER_LAYOUT: ResetHeader = ResetHeader::Unknown;
}

impl Encoded for Float {
    const ENCODING: u8 = ENCODING_FLOAT_HISTOGRAM;
    type CountTrack = Xor;
    type BucketTrack = Xor;
    const BEHIND_GAUGES: ResetHeader = ResetHeader::Unknown;
    const BEHIND_ANOTHER_LAYOUT: ResetHeader = ResetHeader::NotReset;
}

/// Whether counts have fallen from one sample to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reset {
    Seen,
    /// Layouts differ so that buckets cannot be compared.
    NotLookedFor,
    None,
}

/// Whether a chunk can take a sample.
enum Fit {
    /// Once both have each other's buckets, if they lack any.
    Takes(Option<Box<Inserts>>),
    BeginsAnew(Reset),
}

fn has_buckets_of(one: &Layout, other: &Layout) -> bool {
    one.positive_spans == other.positive_spans && one.negative_spans == other.negative_spans
}

/// What the chunk's buckets and a sample's lack of each other.
struct Inserts {
    into_chunk: [Vec<Insert>; 2],
    into_sample: [Vec<Insert>; 2],
    /// Spans of both.
    spans: [Vec<Span>; 2],
}

/// A chunk that still takes samples, and what it is that the next one is written with.
#[derive(Clone)]
pub struct OpenHistogramChunk<N: Encoded> {
    /// Header included.
    bits: BitWriter,
    count: u16,
    /// Time of the first sample.
    mint: i64,
    layout: Layout,
    t: Delta,
    observations: N::CountTrack,
    zero_count: N::CountTrack,
    sum: Xor,
    positive: Vec<N::BucketTrack>,
    negative: Vec<N::BucketTrack>,
}

/// What became of a chunk and a sample.
pub enum Taken<N: Encoded> {
    /// The chunk has it.
    Appended,
    /// The chunk has it, and was written anew with more buckets.
    Recoded,
    /// The chunk is as it was. The sample is the first of this one.
    Begun(Box<OpenHistogramChunk<N>>),
}

impl<N: Encoded> OpenHistogramChunk<N> {
    /// A chunk of one sample. `before` is the series' chunk before, if that was full.
    pub fn begin(t: i64, sample: &Histogram<N>, before: Option<&OpenHistogramChunk<N>>) -> Self {
        let header = match (sample.reset_hint, before) {
            (ResetHint::Gauge, _) => ResetHeader::Gauge,
            (ResetHint::Reset, _) => ResetHeader::Reset,
            (_, Some(before)) => match before.fit(sample) {
                Fit::Takes(_) => ResetHeader::NotReset,
                Fit::BeginsAnew(Reset::Seen) => ResetHeader::Reset,
                Fit::BeginsAnew(Reset::NotLookedFor) => N::BEHIND_ANOTHER_LAYOUT,
                Fit::BeginsAnew(Reset::None) => ResetHeader::NotReset,
            },
            (_, None) => ResetHeader::Unknown,
        };
        OpenHistogramChunk::begin_as(header, t, sample)
    }

    fn begin_as(header: ResetHeader, t: i64, sample: &Histogram<N>) -> Self {
        let mut chunk = OpenHistogramChunk {
            bits: BitWriter::after(&[0; HEADER_BYTES]),
            count: 0,
            mint: t,
            layout: Layout::default(),
            t: Delta::default(),
            observations: N::CountTrack::default(),
            zero_count: N::CountTrack::default(),
            sum: Xor::default(),
            positive: Vec::new(),
            negative: Vec::new(),
        };
        chunk.bits.bytes_mut()[FLAGS_AT] = (header as u8) << RESET_BITS;
        chunk.push_first(t, sample);
        chunk
    }

    /// Takes a sample that is later than the last. The caller upholds that its spans name its buckets,
    /// and that the chunk holds fewer than 65535 samples.
    pub fn append(&mut self, t: i64, sample: &Histogram<N>) -> Taken<N> {
        let inserts = match self.fit(sample) {
            Fit::Takes(inserts) => inserts,
            Fit::BeginsAnew(reset) => {
                let header = match (sample.reset_hint, reset) {
                    (ResetHint::Gauge, _) => ResetHeader::Gauge,
                    (_, Reset::Seen) => ResetHeader::Reset,
                    (_, Reset::NotLookedFor) => ResetHeader::Unknown,
                    (_, Reset::None) => N::BEHIND_GAUGES,
                };
                return Taken::Begun(Box::new(Self::begin_as(header, t, sample)));
            }
        };
        let Some(inserts) = inserts else {
            self.push_next(t, sample);
            return Taken::Appended;
        };
        let mut widened = sample.clone();
        self.widen_sample(&mut widened, &inserts);
        let is_recoded = inserts.into_chunk.iter().any(|inserts| !inserts.is_empty());
        if is_recoded {
            self.recode(&inserts, &widened);
        }
        self.push_next(t, &widened);
        if is_recoded { Taken::Recoded } else { Taken::Appended }
    }

    /// Samples in the chunk.
    pub fn count(&self) -> u16 {
        self.count
    }

    /// Time of the first sample.
    pub fn first_time(&self) -> i64 {
        self.mint
    }

    /// Time of the last sample.
    pub fn last_time(&self) -> i64 {
        self.t.value
    }

    /// The last sample.
    pub fn last(&self) -> Histogram<N> {
        if is_stale(self.sum.value()) {
            return Histogram::stale();
        }
        Histogram {
            reset_hint: match self.header() {
                ResetHeader::Gauge => ResetHint::Gauge,
                _ => ResetHint::Unknown,
            },
            layout: self.layout.clone(),
            count: self.observations.value(),
            zero_count: self.zero_count.value(),
            sum: self.sum.value(),
            positive: self.positive.iter().map(Track::value).collect(),
            negative: self.negative.iter().map(Track::value).collect(),
        }
    }

    /// Buckets of both sides.
    pub fn bucket_count(&self) -> usize {
        self.positive.len() + self.negative.len()
    }

    /// Whether a sample has the chunk's spans.
    pub fn has_buckets_of(&self, sample: &Histogram<N>) -> bool {
        has_buckets_of(&self.layout, &sample.layout)
    }

    /// The chunk as it stands.
    pub fn bytes(&self) -> &[u8] {
        self.bits.bytes()
    }

    fn header(&self) -> ResetHeader {
        ResetHeader::of_flags(self.bytes()[FLAGS_AT])
    }

    fn fit(&self, sample: &Histogram<N>) -> Fit {
        let is_gauge = sample.reset_hint == ResetHint::Gauge;
        if is_gauge != (self.header() == ResetHeader::Gauge) {
            return Fit::BeginsAnew(Reset::None);
        }
        if sample.reset_hint == ResetHint::Reset {
            return Fit::BeginsAnew(Reset::Seen);
        }
        if sample.is_stale() {
            return Fit::Takes(None);
        }
        if is_stale(self.sum.value()) {
            return Fit::BeginsAnew(Reset::NotLookedFor);
        }
        if !is_gauge && sample.count < self.observations.value() {
            return Fit::BeginsAnew(Reset::Seen);
        }
        let layout = &sample.layout;
        if layout.schema != self.layout.schema
            || layout.zero_threshold != self.layout.zero_threshold
        {
            return Fit::BeginsAnew(Reset::NotLookedFor);
        }
        if !layout.has_custom_bounds_of(&self.layout)
            || !is_gauge && sample.zero_count < self.zero_count.value()
        {
            return Fit::BeginsAnew(Reset::Seen);
        }
        if has_buckets_of(&self.layout, layout) {
            return match !is_gauge && self.has_fallen(sample) {
                true => Fit::BeginsAnew(Reset::Seen),
                false => Fit::Takes(None),
            };
        }
        match self.inserts(sample, !is_gauge) {
            Some(inserts) => Fit::Takes(Some(Box::new(inserts))),
            None => Fit::BeginsAnew(Reset::Seen),
        }
    }

    /// Whether a bucket of a sample with the chunk's very buckets has fewer observations than before.
    fn has_fallen(&self, sample: &Histogram<N>) -> bool {
        let fallen = |tracks: &[N::BucketTrack], kept: &[N::Bucket]| {
            let (mut before, mut now) = Default::default();
            tracks.iter().zip(kept).any(|(track, kept)| {
                before = N::absolute(before, track.value());
                now = N::absolute(now, *kept);
                before > now
            })
        };
        fallen(&self.positive, &sample.positive) || fallen(&self.negative, &sample.negative)
    }

    /// `None` if counts only rise and a bucket has fewer observations than before.
    fn inserts(&self, sample: &Histogram<N>, only_rises: bool) -> Option<Inserts> {
        let of = |spans: &[Span], tracks: &[N::BucketTrack], later: &[Span], kept: &[N::Bucket]| {
            let first = buckets::<N>(spans, tracks.iter().map(Track::value));
            let second = buckets::<N>(later, kept.iter().copied());
            union(first, second, only_rises)
        };
        let (ours, theirs) = (&self.layout, &sample.layout);
        let positive =
            of(&ours.positive_spans, &self.positive, &theirs.positive_spans, &sample.positive)?;
        let negative =
            of(&ours.negative_spans, &self.negative, &theirs.negative_spans, &sample.negative)?;
        Some(Inserts {
            into_chunk: [positive.into_first, negative.into_first],
            into_sample: [positive.into_second, negative.into_second],
            spans: [positive.spans, negative.spans],
        })
    }

    /// Gives the sample the chunk's buckets.
    fn widen_sample(&self, sample: &mut Histogram<N>, inserts: &Inserts) {
        let [positive, negative] = &inserts.into_sample;
        if positive.is_empty() && negative.is_empty() {
            return;
        }
        // Spans are written in the first of a chunk's forms that will do.
        let is_gauge = sample.reset_hint == ResetHint::Gauge;
        let chunk_has_all = inserts.into_chunk.iter().all(Vec::is_empty);
        let sides = [
            (positive, &mut sample.layout.positive_spans, &self.layout.positive_spans),
            (negative, &mut sample.layout.negative_spans, &self.layout.negative_spans),
        ];
        for ((inserted, spans, ours), both) in sides.into_iter().zip(&inserts.spans) {
            if is_gauge || !chunk_has_all && !inserted.is_empty() {
                spans.clone_from(both);
            } else if chunk_has_all {
                spans.clone_from(ours);
            }
        }
        if !positive.is_empty() {
            sample.positive = insert::<N>(&sample.positive, positive);
        }
        if !negative.is_empty() {
            sample.negative = insert::<N>(&sample.negative, negative);
        }
    }

    /// Writes the chunk anew with the buckets of a sample.
    fn recode(&mut self, inserts: &Inserts, sample: &Histogram<N>) {
        let [positive, negative] = &inserts.into_chunk;
        let old = std::mem::take(&mut self.bits);
        let header = ResetHeader::of_flags(old.bytes()[FLAGS_AT]);
        let mut samples = HistogramIterator::<N>::new(old.bytes());
        let mut read = Histogram::default();
        let mut anew: Option<Self> = None;
        // What was written here can be read.
        while let Some(Ok(t)) = samples.next_into(&mut read) {
            let spans = (&sample.layout.positive_spans, &sample.layout.negative_spans);
            read.layout.positive_spans.clone_from(spans.0);
            read.layout.negative_spans.clone_from(spans.1);
            if !positive.is_empty() {
                read.positive = insert::<N>(&read.positive, positive);
            }
            if !negative.is_empty() {
                read.negative = insert::<N>(&read.negative, negative);
            }
            match &mut anew {
                None => anew = Some(Self::begin_as(header, t, &read)),
                Some(anew) => anew.push_next(t, &read),
            }
        }
        match anew {
            Some(anew) => *self = anew,
            None => self.bits = old,
        }
    }

    fn push_first(&mut self, t: i64, sample: &Histogram<N>) {
        let marker = Histogram::stale();
        let sample = if sample.is_stale() { &marker } else { sample };
        let bits = &mut self.bits;
        push_layout(bits, &sample.layout);
        self.layout.clone_from(&sample.layout);
        Track::<i64>::begin(&mut self.t, bits, t);
        self.observations.begin(bits, sample.count);
        self.zero_count.begin(bits, sample.zero_count);
        self.sum.begin(bits, sample.sum);
        for (tracks, buckets) in
            [(&mut self.positive, &sample.positive), (&mut self.negative, &sample.negative)]
        {
            tracks.resize(buckets.len(), N::BucketTrack::default());
            let pairs = tracks.iter_mut().zip(buckets);
            pairs.for_each(|(track, bucket)| track.begin(bits, *bucket));
        }
        self.count_one();
    }

    fn push_next(&mut self, t: i64, sample: &Histogram<N>) {
        let bits = &mut self.bits;
        Track::<i64>::push(&mut self.t, bits, t);
        if sample.is_stale() {
            self.observations.push_stale(bits);
            self.zero_count.push_stale(bits);
            self.sum.push(bits, sample.sum);
        } else {
            self.observations.push(bits, sample.count);
            self.zero_count.push(bits, sample.zero_count);
            self.sum.push(bits, sample.sum);
            for (tracks, buckets) in
                [(&mut self.positive, &sample.positive), (&mut self.negative, &sample.negative)]
            {
                let pairs = tracks.iter_mut().zip(buckets);
                pairs.for_each(|(track, bucket)| track.push(bits, *bucket));
            }
        }
        self.count_one();
    }

    fn count_one(&mut self) {
        self.count += 1;
        self.bits.bytes_mut()[..COUNT_BYTES].copy_from_slice(&self.count.to_be_bytes());
    }
}

/// Samples of a chunk. Ends after the first error.
pub struct HistogramIterator<'a, N: Encoded> {
    bits: BitReader<'a>,
    remaining: u16,
    header: ResetHeader,
    /// `None` before the first sample.
    layout: Option<Layout>,
    read: u16,
    t: Delta,
    observations: N::CountTrack,
    zero_count: N::CountTrack,
    sum: Xor,
    positive: Vec<N::BucketTrack>,
    negative: Vec<N::BucketTrack>,
}

impl<'a, N: Encoded> HistogramIterator<'a, N> {
    pub fn new(chunk: &'a [u8]) -> HistogramIterator<'a, N> {
        let (head, stream) = chunk.split_first_chunk().unwrap_or((&[0; HEADER_BYTES], &[]));
        let &[high, low, flags] = head;
        HistogramIterator {
            bits: BitReader::new(stream),
            remaining: u16::from_be_bytes([high, low]),
            header: ResetHeader::of_flags(flags),
            layout: None,
            read: 0,
            t: Delta::default(),
            observations: N::CountTrack::default(),
            zero_count: N::CountTrack::default(),
            sum: Xor::default(),
            positive: Vec::new(),
            negative: Vec::new(),
        }
    }

    pub fn header(&self) -> ResetHeader {
        self.header
    }

    /// Reads the next sample into `sample`, in place of what is there, and gives its time.
    pub fn next_into(&mut self, sample: &mut Histogram<N>) -> Option<Result<i64, ChunkError>> {
        self.remaining = self.remaining.checked_sub(1)?;
        if self.read_sample().is_none() {
            self.remaining = 0;
            return Some(Err(ChunkError("histogram chunk ends early or names impossible buckets")));
        }
        self.read += 1;
        self.copy_to(sample);
        Some(Ok(self.t.value))
    }

    fn read_sample(&mut self) -> Option<()> {
        if self.layout.is_none() {
            return self.read_first();
        }
        let bits = &mut self.bits;
        Track::<i64>::read(&mut self.t, bits)?;
        self.observations.read(bits)?;
        self.zero_count.read(bits)?;
        self.sum.read(bits)?;
        if !is_stale(self.sum.value()) {
            let mut tracks = self.positive.iter_mut().chain(&mut self.negative);
            tracks.try_for_each(|track| track.read(bits))?;
        }
        Some(())
    }

    fn read_first(&mut self) -> Option<()> {
        let bits = &mut self.bits;
        let layout = read_layout(bits)?;
        Track::<i64>::read_first(&mut self.t, bits)?;
        self.observations.read_first(bits)?;
        self.zero_count.read_first(bits)?;
        self.sum.read_first(bits)?;
        for (tracks, spans) in [
            (&mut self.positive, &layout.positive_spans),
            (&mut self.negative, &layout.negative_spans),
        ] {
            // Each bucket takes a bit at least.
            let count = bucket_count(spans);
            if count > bits.remaining() {
                return None;
            }
            tracks.resize(count as usize, N::BucketTrack::default());
            tracks.iter_mut().try_for_each(|track| track.read_first(bits))?;
        }
        self.layout = Some(layout);
        Some(())
    }

    fn copy_to(&self, sample: &mut Histogram<N>) {
        if is_stale(self.sum.value()) {
            *sample = Histogram::stale();
            return;
        }
        sample.reset_hint = match self.header {
            ResetHeader::Gauge => ResetHint::Gauge,
            _ if self.read > 1 => ResetHint::NotReset,
            // The chunk before may be gone, or another one have come between.
            _ => ResetHint::Unknown,
        };
        if let Some(layout) = &self.layout {
            sample.layout.clone_from(layout);
        }
        sample.count = self.observations.value();
        sample.zero_count = self.zero_count.value();
        sample.sum = self.sum.value();
        for (buckets, tracks) in
            [(&mut sample.positive, &self.positive), (&mut sample.negative, &self.negative)]
        {
            buckets.clear();
            buckets.extend(tracks.iter().map(Track::value));
        }
    }
}
