//! A request on its way into a head: samples of known series by slot, and the keys of others.

use std::sync::Arc;

use crate::model::Timestamp;
use crate::model::fingerprint::Fingerprint;
use crate::model::histogram::AnyHistogram;
use crate::model::key_table::{Lookup, Rules, Slot};
use crate::model::labels::SeriesKey;
use crate::tsdb::chunkenc::samples::ValueRef;
use crate::tsdb::head::catalog::Catalog;

/// One sample. `series` is a slot, or with [`NEW_BIT`] an index of the batch's new series.
#[derive(Clone, Copy, Debug)]
pub struct BatchSample {
    pub t: Timestamp,
    /// Bits of a float, or the place of a histogram among the batch's.
    pub v: u64,
    pub series: u32,
    pub kind: SampleKind,
}

/// What a sample of a batch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SampleKind {
    Float,
    Histogram,
}

const _: () = assert!(size_of::<BatchSample>() == 24, "the kind fills a gap");

/// An exemplar of a series of the batch.
#[derive(Clone, Copy, Debug)]
pub struct BatchExemplar {
    pub t: Timestamp,
    /// Bits of the value.
    pub v: u64,
    /// As in [`BatchSample::series`].
    pub series: u32,
    /// The last sample of the series message that it came in, if there is one: without that it is
    /// not stored.
    pub sample: Option<u32>,
    /// The place of that message in the request.
    pub place: u32,
    labels: (u32, u32),
}

/// Set in [`BatchSample::series`] of series that the look-up did not know.
pub const NEW_BIT: u32 = 1 << 31;

/// A series that the look-up did not know, or knew only by other bytes.
#[derive(Clone, Copy)]
pub struct NewSeries {
    pub fingerprint: Fingerprint,
    key: (u32, u32),
}

/// Bytes that mean a series under some rules and are not its canonical key.
#[derive(Clone, Copy, Debug)]
pub struct NewAlias {
    pub series: u32,
    pub rules: Rules,
    raw: (u32, u32),
}

/// Samples of one tenant, in the order received. Reused from request to request.
#[derive(Default)]
pub struct Batch {
    pub samples: Vec<BatchSample>,
    pub new_series: Vec<NewSeries>,
    pub aliases: Vec<NewAlias>,
    /// Those that samples name, in their order, and what they take beside themselves.
    histograms: Vec<AnyHistogram>,
    histogram_bytes: usize,
    pub exemplars: Vec<BatchExemplar>,
    /// Keys of new series, raw bytes of aliases and labels of exemplars.
    bytes: Vec<u8>,
    /// Series messages with another number of samples than one, in order.
    uneven: Vec<Uneven>,
    /// What gave the slots of known series. Held, so that they mean no other series.
    catalog: Option<Arc<Catalog>>,
}

/// A series message of the request, and how many samples it has.
#[derive(Clone, Copy, Debug)]
struct Uneven {
    place: u32,
    first_sample: u32,
    samples: u32,
}

/// Batches that grew beyond this many samples, or bytes of all else, are not kept for reuse.
const KEPT_BYTES_MAX: usize = 2 << 20;
const KEPT_SAMPLES_MAX: usize = 1 << 16;

impl Batch {
    pub fn clear(&mut self) {
        let kept_bytes = self.bytes.capacity()
            + self.uneven.capacity() * size_of::<Uneven>()
            + self.new_series.capacity() * size_of::<NewSeries>()
            + self.aliases.capacity() * size_of::<NewAlias>()
            + self.histograms.capacity() * size_of::<AnyHistogram>()
            + self.exemplars.capacity() * size_of::<BatchExemplar>();
        if kept_bytes > KEPT_BYTES_MAX || self.samples.capacity() > KEPT_SAMPLES_MAX {
            *self = Batch::default();
            return;
        }
        self.catalog = None;
        self.samples.clear();
        self.histograms.clear();
        self.histogram_bytes = 0;
        self.exemplars.clear();
        self.new_series.clear();
        self.aliases.clear();
        self.bytes.clear();
        self.uneven.clear();
    }

    /// What to look the batch's series up in: the catalog, unless it has begun with another.
    pub fn look_up_in(&mut self, catalog: Arc<Catalog>) -> Lookup {
        self.catalog.get_or_insert(catalog).lookup()
    }

    /// What its series were looked up in; `None` if none of them is known.
    pub fn catalog(&self) -> Option<&Arc<Catalog>> {
        self.catalog.as_ref()
    }

    /// What it takes, filled or not.
    pub fn allocated_bytes(&self) -> usize {
        size_of::<Batch>()
            + self.samples.capacity() * size_of::<BatchSample>()
            + self.new_series.capacity() * size_of::<NewSeries>()
            + self.aliases.capacity() * size_of::<NewAlias>()
            + self.uneven.capacity() * size_of::<Uneven>()
            + self.histograms.capacity() * size_of::<AnyHistogram>()
            + self.histogram_bytes
            + self.exemplars.capacity() * size_of::<BatchExemplar>()
            + self.bytes.capacity()
    }

    /// Makes room for one more sample. Before it takes memory, `admit` is asked with what the batch
    /// then takes until the samples are moved; what that answers ends it.
    #[inline]
    pub fn reserve_sample<E>(
        &mut self,
        admit: impl FnMut(usize) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.samples.len() < self.samples.capacity() {
            return Ok(());
        }
        let allocated = self.allocated_bytes();
        grow(&mut self.samples, 1, allocated, admit)
    }

    /// The same for a series that is not known, or an alias of one, with so many bytes for both.
    pub fn reserve_series<E>(
        &mut self,
        bytes: usize,
        mut admit: impl FnMut(usize) -> Result<(), E>,
    ) -> Result<(), E> {
        let has_places = has_room(&self.new_series, 1) && has_room(&self.aliases, 1);
        if has_places && has_room(&self.bytes, bytes) {
            return Ok(());
        }
        let allocated = self.allocated_bytes();
        grow(&mut self.new_series, 1, allocated, &mut admit)?;
        let allocated = self.allocated_bytes();
        grow(&mut self.aliases, 1, allocated, &mut admit)?;
        let allocated = self.allocated_bytes();
        grow(&mut self.bytes, bytes, allocated, &mut admit)
    }

    /// The same for the end of a series message.
    #[inline]
    pub fn reserve_end<E>(&mut self, admit: impl FnMut(usize) -> Result<(), E>) -> Result<(), E> {
        if has_room(&self.uneven, 1) {
            return Ok(());
        }
        let allocated = self.allocated_bytes();
        grow(&mut self.uneven, 1, allocated, admit)
    }

    /// The same for a histogram that is read from a message of so many bytes.
    pub fn reserve_histogram<E>(
        &mut self,
        message_bytes: usize,
        mut admit: impl FnMut(usize) -> Result<(), E>,
    ) -> Result<(), E> {
        let allocated = self.allocated_bytes();
        admit(allocated.saturating_add(message_bytes.saturating_mul(HISTOGRAM_GROWTH)))?;
        grow(&mut self.histograms, 1, allocated, admit)
    }

    /// The same for an exemplar with labels of so many bytes.
    pub fn reserve_exemplar<E>(
        &mut self,
        label_bytes: usize,
        mut admit: impl FnMut(usize) -> Result<(), E>,
    ) -> Result<(), E> {
        let allocated = self.allocated_bytes();
        grow(&mut self.exemplars, 1, allocated, &mut admit)?;
        let allocated = self.allocated_bytes();
        grow(&mut self.bytes, label_bytes, allocated, admit)
    }

    #[inline]
    pub fn push(&mut self, series: u32, t: Timestamp, v: u64) {
        self.samples.push(BatchSample { t, v, series, kind: SampleKind::Float });
    }

    pub fn push_histogram(&mut self, series: u32, t: Timestamp, histogram: AnyHistogram) {
        let place = self.histograms.len() as u64;
        self.histogram_bytes += histogram.heap_bytes();
        self.histograms.push(histogram);
        self.samples.push(BatchSample { t, v: place, series, kind: SampleKind::Histogram });
    }

    /// Adds an exemplar of the series message at `place` in the request. Which series that is, and
    /// which sample it goes with, is told [at its end](Self::end_exemplars).
    pub fn push_exemplar(&mut self, place: u32, (t, v): (Timestamp, u64), labels: &[u8]) {
        let labels = self.keep(labels);
        self.exemplars.push(BatchExemplar { t, v, series: 0, sample: None, place, labels });
    }

    /// Tells the exemplars behind the first `first` whose they are: those of a series message whose
    /// samples are behind the first `first_sample`.
    pub fn end_exemplars(&mut self, first: usize, series: u32, first_sample: usize) {
        let has_samples = self.samples.len() > first_sample;
        // Samples are bounded by the bytes of a request.
        let sample = has_samples.then(|| self.samples.len() as u32 - 1);
        for exemplar in &mut self.exemplars[first..] {
            (exemplar.series, exemplar.sample) = (series, sample);
        }
    }

    /// The labels of an exemplar, in the encoding of a key, but in the order in which they were sent.
    pub fn exemplar_labels(&self, exemplar: &BatchExemplar) -> &[u8] {
        &self.bytes[exemplar.labels.0 as usize..exemplar.labels.1 as usize]
    }

    /// The histogram that a sample names.
    pub fn histogram(&self, place: u32) -> &AnyHistogram {
        &self.histograms[place as usize]
    }

    /// What a sample says.
    pub fn value(&self, sample: &BatchSample) -> ValueRef<'_> {
        match sample.kind {
            SampleKind::Float => ValueRef::Float(sample.v),
            SampleKind::Histogram => ValueRef::Histogram(&self.histograms[sample.v as usize]),
        }
    }

    /// Bytes that the histograms take beside themselves.
    pub fn histogram_bytes(&self) -> usize {
        self.histogram_bytes
    }

    /// Takes the samples behind the first `count` out.
    pub fn truncate(&mut self, count: usize) {
        let is_histogram = |sample: &&BatchSample| sample.kind == SampleKind::Histogram;
        if let Some(first) = self.samples.iter().skip(count).find(is_histogram) {
            let gone = self.histograms.drain(first.v as usize..);
            self.histogram_bytes -= gone.map(|histogram| histogram.heap_bytes()).sum::<usize>();
        }
        self.samples.truncate(count);
    }

    /// Ends the series message at `place` in the request, which may have any number of samples. Those
    /// with one sample need not be ended.
    pub fn end_series(&mut self, place: u32, first_sample: usize) {
        let samples = self.samples.len() - first_sample;
        if samples != 1 {
            // Samples are bounded by the bytes of a request.
            let (first_sample, samples) = (first_sample as u32, samples as u32);
            self.uneven.push(Uneven { place, first_sample, samples });
        }
    }

    /// How many series messages have another number of samples than one.
    pub fn uneven_count(&self) -> usize {
        self.uneven.len()
    }

    /// The place in the request of the series message that a sample came in.
    pub fn place_of(&self, sample: u32) -> u32 {
        let before = self.uneven.partition_point(|uneven| uneven.first_sample <= sample);
        let Some(last) = before.checked_sub(1).map(|i| self.uneven[i]) else { return sample };
        match (sample - last.first_sample).checked_sub(last.samples) {
            None => last.place,
            Some(behind) => last.place + 1 + behind,
        }
    }

    /// Adds a series that is not known yet and gives the number its samples use. The request is
    /// smaller than 2^32 bytes, so its keys are, too.
    pub fn push_new_series(&mut self, fingerprint: Fingerprint, key: &[u8]) -> u32 {
        let index = self.new_series.len() as u32;
        let key = self.keep(key);
        self.new_series.push(NewSeries { fingerprint, key });
        index | NEW_BIT
    }

    pub fn push_alias(&mut self, series: u32, raw: &[u8], rules: Rules) {
        let raw = self.keep(raw);
        self.aliases.push(NewAlias { series, rules, raw });
    }

    pub fn key(&self, series: &NewSeries) -> &[u8] {
        &self.bytes[series.key.0 as usize..series.key.1 as usize]
    }

    pub fn raw(&self, alias: &NewAlias) -> &[u8] {
        &self.bytes[alias.raw.0 as usize..alias.raw.1 as usize]
    }

    fn keep(&mut self, bytes: &[u8]) -> (u32, u32) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        assert!(self.bytes.len() <= u32::MAX as usize, "requests are capped far below 4 GiB");
        (start as u32, self.bytes.len() as u32)
    }

    /// The slot of a sample's series once new series are resolved.
    pub fn slot_of(series: u32, resolved: &[Option<Slot>]) -> Option<Slot> {
        match series & NEW_BIT {
            0 => Some(series),
            _ => resolved[(series & !NEW_BIT) as usize],
        }
    }

    /// The canonical key of a sample's series.
    #[cold]
    pub fn key_of(&self, series: u32) -> SeriesKey {
        match (series & NEW_BIT, &self.catalog) {
            (0, Some(catalog)) => catalog.key_of(series),
            (0, None) => SeriesKey::from_canonical(&[]),
            _ => {
                SeriesKey::from_canonical(self.key(&self.new_series[(series & !NEW_BIT) as usize]))
            }
        }
    }
}

/// A byte of a message may name a bucket, which takes eight, and twice as many as a list grows.
const HISTOGRAM_GROWTH: usize = 16;

/// Elements that a buffer has room for from the first one on.
const ROOM_MIN: usize = 16;

#[inline]
fn has_room<T>(buffer: &Vec<T>, more: usize) -> bool {
    buffer.capacity() - buffer.len() >= more
}

/// Makes room for `more` elements, at least doubling the buffer if there is none: that and the one
/// before are there together until the elements are moved. `allocated` is what the batch takes.
fn grow<T, E>(
    buffer: &mut Vec<T>,
    more: usize,
    allocated: usize,
    mut admit: impl FnMut(usize) -> Result<(), E>,
) -> Result<(), E> {
    if has_room(buffer, more) {
        return Ok(());
    }
    let needed = buffer.len() + more;
    let capacity = needed.max(buffer.capacity() * 2).max(ROOM_MIN);
    admit(allocated.saturating_add(capacity.saturating_mul(size_of::<T>())))?;
    buffer.reserve_exact(capacity - buffer.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_asked_for_before_it_is_taken() {
        let mut batch = Batch::default();
        let mut admitted = batch.allocated_bytes();
        let mut asked = 0;
        for i in 0..10_000 {
            let mut admit = |bytes| {
                (admitted, asked) = (bytes, asked + 1);
                Ok::<(), ()>(())
            };
            batch.reserve_sample(&mut admit).unwrap();
            batch.reserve_series(20, &mut admit).unwrap();
            batch.reserve_end(&mut admit).unwrap();
            let first_sample = batch.samples.len();
            batch.push(i, 0, 0);
            batch.push_new_series(Fingerprint { high: 0, low: 0 }, b"ten bytes.");
            batch.push_alias(i, b"ten others", Rules(0));
            if i % 2 == 0 {
                batch.samples.pop();
            }
            batch.end_series(i, first_sample);
            let after = batch.allocated_bytes();
            assert!(after <= admitted, "{after} bytes are taken, {admitted} were admitted");
        }
        assert!(asked < 100, "by doubling, not one by one: {asked}");
        batch.samples.shrink_to_fit();
        let allocated = batch.allocated_bytes();
        let refused = batch.reserve_sample(Err::<(), usize>).unwrap_err();
        let both = 3 * batch.samples.capacity() * size_of::<BatchSample>();
        let others = allocated - both / 3;
        assert_eq!(refused, others + both, "the buffer before counts, too");
        assert_eq!(batch.allocated_bytes(), allocated, "nothing is taken that is not admitted");
    }

    #[test]
    fn samples_know_the_series_message_they_came_in() {
        let mut batch = Batch::default();
        // Samples of each message, in order.
        let counts = [1, 1, 0, 0, 1, 3, 0, 1, 2, 1, 1];
        let mut expected = Vec::new();
        for (place, count) in counts.into_iter().enumerate() {
            let first = batch.samples.len();
            for _ in 0..count {
                batch.push(0, 0, 0);
                expected.push(place as u32);
            }
            if count != 1 || place % 2 == 0 {
                batch.end_series(place as u32, first);
            }
        }
        let places: Vec<_> = (0..expected.len() as u32).map(|i| batch.place_of(i)).collect();
        assert_eq!(places, expected);
    }
}
