//! A remote write 1.0 request into a batch: known series by their bytes, others by a full read.
//!
//! A known series costs a fingerprint of its label bytes and one line of the table. Messages are
//! taken sixteen at a time, so that the cache misses of their look-ups overlap. A sender whose series
//! come in the order in which they were made costs half a fingerprint, and no line: each is guessed
//! to be the one behind the last.
//!
//! A batch may become larger than its request. Its buffers are held before they grow.

use crate::model::fingerprint::Fingerprint;
use crate::model::histogram::HistogramFault;
use crate::model::key_table::{Lookup, Rules, RulesMark, Slot};
use crate::model::labels::{KeyBuilder, label_len, split_label};
use crate::model::varint::split_len_prefixed;
use crate::tsdb::head::batch::Batch;
use crate::wire::exemplar::ExemplarMessage;
use crate::wire::histogram::HistogramMessage;
use crate::wire::remote_write_v1::{
    DecodeError, RequestField, RequestFields, SeriesField, SeriesFields, check_message,
    split_tail_sample,
};
use crate::write::admission::{Admission, InflightGuard, Overloaded};
use crate::write::error::Reason;
use crate::write::label_rules::{LabelCaps, display, judge_labels};
use crate::write::{Manners, WriteOutcome};

/// Messages looked up together.
const WINDOW: usize = 16;

/// A batch of so many bytes has its place with its request: those of usual ones take no more.
const SMALL_BATCH_BYTES: usize = 256 << 10;

/// The shortest sample with a time after 1971: two bytes of header, a tag and six of time.
const SAMPLE_BYTES_MIN: usize = 9;

/// Samples that a request may have whatever its length.
const SAMPLES_ALLOWED: usize = 4096;

/// Why a request with more samples, or with more series that have none, is refused.
pub(super) const STORM: DecodeError =
    DecodeError { field: "timeseries", what: "a storm of empty samples" };

/// Samples that a request of so many bytes may have.
pub(super) fn samples_max(bytes: usize) -> usize {
    (bytes / SAMPLE_BYTES_MIN).max(SAMPLES_ALLOWED)
}

/// Why a request is not decoded. What of it is in the batch is of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotDecoded {
    #[error(transparent)]
    Malformed(#[from] DecodeError),
    #[error(transparent)]
    Overloaded(#[from] Overloaded),
}

/// What becomes of series that can be read.
#[derive(Clone, Copy, Debug)]
pub struct DecodeOptions {
    /// By whose rules labels are judged.
    pub manners: Manners,
    pub caps: LabelCaps,
    /// Exemplars are stored. Otherwise they are counted and dropped.
    pub keeps_exemplars: bool,
}

impl DecodeOptions {
    /// With the usual caps, and exemplars.
    pub fn new(manners: Manners) -> DecodeOptions {
        DecodeOptions { manners, caps: LabelCaps::default(), keeps_exemplars: true }
    }
}

/// Decodes a remote write 1.0 request into `batch`, looking series up in `known`. Series that the
/// label rules refuse are counted in the outcome, their samples are not in the batch. No budget
/// bounds it.
pub fn decode_request(
    request: &[u8],
    known: &Lookup,
    options: DecodeOptions,
    batch: &mut Batch,
) -> Result<WriteOutcome, NotDecoded> {
    let mut held = Admission::new(u64::MAX).hold(0);
    let fields = RequestFields::new(request);
    decode_fields(fields, request.len(), known, options, batch, &mut held)
}

/// As [`decode_request`], for any fields that carry series as those of a write request do, of
/// `bytes` bytes in all. `held` is what the batch is held by.
pub fn decode_fields<'r>(
    fields: impl IntoIterator<Item = Result<RequestField<'r>, DecodeError>>,
    bytes: usize,
    known: &Lookup,
    options: DecodeOptions,
    batch: &mut Batch,
    held: &mut InflightGuard,
) -> Result<WriteOutcome, NotDecoded> {
    let DecodeOptions { manners, caps, keeps_exemplars } = options;
    let mut decoder = Decoder {
        known,
        rules: known.mark(rules(manners)),
        manners,
        caps,
        samples_max: samples_max(bytes),
        batch,
        held,
        outcome: WriteOutcome::default(),
        place: 0,
        labels: Vec::new(),
        label_count: 0,
        key: KeyBuilder::default(),
        keeps_exemplars,
        exemplar_labels: Vec::new(),
        guess: 0,
        is_in_order: false,
    };
    let mut window = [Sought::default(); WINDOW];
    let mut filled = 0;
    for field in fields {
        match field? {
            RequestField::TimeSeries(series) => {
                // At once: its beginning and its end are in the cache.
                window[filled] = decoder.seek(series, filled as u32);
                filled += 1;
                if filled == WINDOW {
                    decoder.decode_window(&window)?;
                    filled = 0;
                }
            }
            RequestField::Metadata(metadata) => {
                check_message(metadata, "metadata")?;
                decoder.outcome.metadata += 1;
            }
        }
    }
    decoder.decode_window(&window[..filled])?;
    Ok(decoder.outcome)
}

/// Has `held` hold the `bytes` of a batch.
fn hold_batch(held: &mut InflightGuard, bytes: usize) -> Result<(), Overloaded> {
    if bytes > SMALL_BATCH_BYTES {
        return held.resize(bytes as u64);
    }
    held.resize_in_any_case(bytes as u64);
    Ok(())
}

/// The rules under which an alias holds. Caps do not change while the process runs.
fn rules(manners: Manners) -> Rules {
    Rules(manners as u8)
}

struct Decoder<'r, 'k> {
    known: &'k Lookup,
    rules: RulesMark,
    manners: Manners,
    caps: LabelCaps,
    /// A sample takes 72 bytes on its way to the log, and two of a request if it is all zero. So
    /// there may be no more than a request of its length can have in earnest.
    samples_max: usize,
    batch: &'k mut Batch,
    held: &'k mut InflightGuard,
    outcome: WriteOutcome,
    /// The place of the series at hand in the request.
    place: u32,
    /// Labels of the series at hand, reused; of too many only as many as prove it.
    labels: Vec<(&'r [u8], &'r [u8])>,
    label_count: usize,
    key: KeyBuilder,
    /// Exemplars are stored, not counted and dropped.
    keeps_exemplars: bool,
    /// Labels of the exemplar at hand, reused.
    exemplar_labels: Vec<u8>,
    /// The slot that the first series of the window at hand is guessed to have.
    guess: Slot,
    /// Most guesses were right in the window before.
    is_in_order: bool,
}

/// A series message of a window.
#[derive(Clone, Copy, Default)]
struct Sought<'r> {
    series: &'r [u8],
    at: At<'r>,
}

/// What is known of a series message before the table is asked.
#[derive(Clone, Copy, Default)]
enum At<'r> {
    /// It has another number of samples than one, or an unusual encoding.
    #[default]
    Nowhere,
    /// It is one sample of the slot that was guessed.
    Slot(Slot, i64, u64),
    /// Fingerprint and bytes of its labels, and its one sample.
    Key(Fingerprint, &'r [u8], i64, u64),
}

impl<'r> Decoder<'r, '_> {
    /// Reads the `i`-th series message of a window as far as that needs no line of the table.
    #[inline]
    fn seek(&self, series: &'r [u8], i: u32) -> Sought<'r> {
        let Some((raw, t, v)) = split_tail_sample(series) else {
            return Sought { series, at: At::Nowhere };
        };
        let guess = self.guess.wrapping_add(i);
        let at = if self.is_in_order {
            let high = self.known.high(raw);
            match self.known.is_canonical(guess, high) {
                true => At::Slot(guess, t, v),
                false => At::Key(self.known.with_low(high, raw), raw, t, v),
            }
        } else {
            let key = self.known.fingerprint(raw);
            match self.known.is_canonical(guess, key.high) {
                true => At::Slot(guess, t, v),
                false => At::Key(key, raw, t, v),
            }
        };
        Sought { series, at }
    }

    fn decode_window(&mut self, window: &[Sought<'r>]) -> Result<(), NotDecoded> {
        let before = self.outcome.series;
        self.outcome.series += window.len() as u64;
        // Between two of the fingerprints a processor would wait for each line by itself.
        let touch = |sum, sought: &Sought<'r>| match sought.at {
            At::Key(key, ..) => sum ^ self.known.touch(key),
            _ => sum,
        };
        std::hint::black_box(window.iter().fold(0, touch));
        let mut guessed = 0;
        for (i, Sought { series, at }) in window.iter().enumerate() {
            let found = match *at {
                At::Slot(slot, t, v) => {
                    guessed += 1;
                    Some((slot, t, v))
                }
                At::Key(key, _, t, v) => self.known.find(key, self.rules).map(|slot| (slot, t, v)),
                At::Nowhere => None,
            };
            if let Some((slot, t, v)) = found {
                self.push(slot, t, v)?;
                // What lies between, to the end of the window, has slots of its own.
                self.guess = slot.wrapping_add((window.len() - i) as u32);
                continue;
            }
            // A request has fewer series than it has bytes, of which there are fewer than 2^32.
            self.place = (before + i as u64) as u32;
            let first_sample = self.batch.samples.len();
            match *at {
                At::Key(key, raw, t, v) if self.read_usual(raw) => {
                    self.decode_new(series, key, raw, t, v)?;
                }
                // Labels and one sample: the series is new.
                At::Key(key, raw, ..) if split_labels(raw).1.is_empty() => {
                    self.decode_fully(series, key, raw)?;
                }
                _ => self.decode_unusual(series)?,
            }
            self.batch.reserve_end(|bytes| hold_batch(self.held, bytes))?;
            self.batch.end_series(self.place, first_sample);
            // One without samples takes two bytes of a request and twelve here.
            if self.batch.uneven_count() > self.samples_max {
                return Err(STORM.into());
            }
        }
        self.is_in_order = 2 * guessed >= window.len();
        Ok(())
    }

    /// A series with another number of samples than one, or an unusual encoding.
    fn decode_unusual(&mut self, series: &'r [u8]) -> Result<(), NotDecoded> {
        let (raw, rest) = split_labels(series);
        let key = self.known.fingerprint(raw);
        if let Some(slot) = self.known.find(key, self.rules) {
            let first_sample = self.batch.samples.len();
            let first_exemplar = self.batch.exemplars.len();
            let mut fields = SeriesFields::new(rest);
            let mut others = Others::default();
            while let Some(field) = fields.next_field()? {
                match field {
                    SeriesField::Sample { t, v } => self.push_sample(slot, t, v)?,
                    SeriesField::Histogram(message) => {
                        self.push_histogram(slot, message, &mut others)?;
                    }
                    SeriesField::Label { .. } => {
                        // Labels behind samples: the bytes before do not name the series.
                        self.batch.truncate(first_sample);
                        self.batch.exemplars.truncate(first_exemplar);
                        return self.decode_fully(series, key, raw);
                    }
                    SeriesField::Exemplar(message) => self.push_exemplar(message, &mut others)?,
                }
            }
            self.batch.end_exemplars(first_exemplar, slot, first_sample);
            others.add_to(&mut self.outcome, self.place, || labels_of(raw));
            return Ok(());
        }
        self.decode_fully(series, key, raw)
    }

    fn push_sample(&mut self, series: u32, t: i64, v: u64) -> Result<(), NotDecoded> {
        if self.batch.samples.len() >= self.samples_max {
            return Err(STORM.into());
        }
        self.push(series, t, v)?;
        Ok(())
    }

    /// Reads a histogram, or counts why it is none.
    fn push_histogram(
        &mut self,
        series: u32,
        message: &[u8],
        others: &mut Others,
    ) -> Result<(), NotDecoded> {
        if self.batch.samples.len() >= self.samples_max {
            return Err(STORM.into());
        }
        self.batch.reserve_histogram(message.len(), |bytes| hold_batch(self.held, bytes))?;
        let (t, histogram) = HistogramMessage::read(message)?.into_model();
        if let Err(fault) = histogram.check() {
            others.invalid += 1;
            others.fault.get_or_insert(fault);
            return Ok(());
        }
        self.batch.reserve_sample(|bytes| hold_batch(self.held, bytes))?;
        self.batch.push_histogram(series, t, histogram);
        Ok(())
    }

    /// Reads an exemplar, or counts it where none are kept.
    fn push_exemplar(&mut self, message: &[u8], others: &mut Others) -> Result<(), NotDecoded> {
        if !self.keeps_exemplars {
            return Ok(others.count_exemplar(message)?);
        }
        // It takes more here than the shortest takes in a request, as a sample does.
        if self.batch.exemplars.len() >= self.samples_max {
            return Err(STORM.into());
        }
        let ExemplarMessage { t, v, is_too_long } =
            ExemplarMessage::read(message, &mut self.exemplar_labels)?;
        if is_too_long {
            others.too_long += 1;
            return Ok(());
        }
        let labels = self.exemplar_labels.len();
        self.batch.reserve_exemplar(labels, |bytes| hold_batch(self.held, bytes))?;
        self.batch.push_exemplar(self.place, (t, v), &self.exemplar_labels);
        Ok(())
    }

    #[inline]
    fn push(&mut self, series: u32, t: i64, v: u64) -> Result<(), Overloaded> {
        self.batch.reserve_sample(|bytes| hold_batch(self.held, bytes))?;
        self.batch.push(series, t, v);
        Ok(())
    }

    /// Reads labels in the encoding that senders normally use; `false` if there is anything else.
    fn read_usual(&mut self, raw: &'r [u8]) -> bool {
        self.labels.clear();
        let mut rest = raw;
        while let Some((name, value, after)) = split_label(rest) {
            // Of too many they are read in another way.
            if self.labels.len() == self.caps.labels_max {
                return false;
            }
            self.labels.push((name, value));
            rest = after;
        }
        self.label_count = self.labels.len();
        rest.is_empty()
    }

    /// A series that the table does not know, with one sample, whose labels were just read in full.
    /// Mostly they are its canonical key.
    fn decode_new(
        &mut self,
        series: &'r [u8],
        fingerprint: Fingerprint,
        raw: &'r [u8],
        t: i64,
        v: u64,
    ) -> Result<(), NotDecoded> {
        match judge_labels(&mut self.labels, self.manners, self.caps) {
            Err(reason) => {
                self.refuse(reason);
                return Ok(());
            }
            Ok(true) if canonical_len(&self.labels) == raw.len() => {}
            Ok(_) => return self.decode_fully(series, fingerprint, raw),
        }
        if self.batch.samples.len() >= self.samples_max {
            return Err(STORM.into());
        }
        self.batch.reserve_series(3 * raw.len(), |bytes| hold_batch(self.held, bytes))?;
        let number = self.batch.push_new_series(fingerprint, raw);
        self.push(number, t, v)?;
        Ok(())
    }

    fn refuse(&mut self, reason: Reason) {
        let (labels, count) = (&self.labels, self.label_count);
        self.outcome.refusals.add(reason, 1, || display(labels, count));
        self.outcome.refused_series.push(self.place, reason.code());
    }

    /// Reads every field, judges the labels and finds the series by its canonical key. `raw` are
    /// bytes at the message's start that were looked up in vain, or named another series.
    fn decode_fully(
        &mut self,
        series: &'r [u8],
        raw_fingerprint: Fingerprint,
        raw: &[u8],
    ) -> Result<(), NotDecoded> {
        self.labels.clear();
        self.label_count = 0;
        let first_sample = self.batch.samples.len();
        let first_exemplar = self.batch.exemplars.len();
        let mut others = Others::default();
        let mut fields = SeriesFields::new(series);
        while let Some(field) = fields.next_field()? {
            match field {
                SeriesField::Label { name, value } => {
                    self.label_count += 1;
                    // A label takes two bytes in a request and 32 here.
                    if self.labels.len() <= self.caps.labels_max {
                        self.labels.push((name, value));
                    }
                }
                SeriesField::Sample { t, v } => self.push_sample(0, t, v)?,
                SeriesField::Histogram(message) => self.push_histogram(0, message, &mut others)?,
                SeriesField::Exemplar(message) => self.push_exemplar(message, &mut others)?,
            }
        }
        if let Err(reason) = judge_labels(&mut self.labels, self.manners, self.caps) {
            self.batch.truncate(first_sample);
            self.batch.exemplars.truncate(first_exemplar);
            self.refuse(reason);
            return Ok(());
        }
        self.key.clear();
        for (name, value) in &self.labels {
            self.key.push(name, value);
        }
        others.add_to(&mut self.outcome, self.place, || self.labels.clone());
        let key = self.key.as_bytes();
        if self.batch.samples.len() == first_sample {
            if self.batch.exemplars.len() > first_exemplar {
                // An exemplar makes no series.
                match self.known.find(self.known.fingerprint(key), self.rules) {
                    Some(slot) => self.batch.end_exemplars(first_exemplar, slot, first_sample),
                    None => self.batch.exemplars.truncate(first_exemplar),
                }
            }
            return Ok(());
        }
        // An alias is no longer than two keys.
        self.batch.reserve_series(3 * key.len(), |bytes| hold_batch(self.held, bytes))?;
        let number = if key == raw {
            // The usual encoding of a series that is new.
            self.batch.push_new_series(raw_fingerprint, key)
        } else {
            let fingerprint = self.known.fingerprint(key);
            let found = self.known.find(fingerprint, self.rules);
            let number = found.unwrap_or_else(|| self.batch.push_new_series(fingerprint, key));
            self.push_alias(number, series);
            number
        };
        for sample in &mut self.batch.samples[first_sample..] {
            sample.series = number;
        }
        self.batch.end_exemplars(first_exemplar, number, first_sample);
        Ok(())
    }

    /// Lets the label bytes of a message that is not in the usual encoding be known, too.
    fn push_alias(&mut self, number: u32, series: &[u8]) {
        let (raw, rest) = split_labels(series);
        // Unknown fields may make an encoding as long as they like; such a one is not kept.
        let is_usual = raw.len() <= self.key.as_bytes().len() * 2;
        if is_usual && raw != self.key.as_bytes() && has_no_label(rest) {
            self.batch.push_alias(number, raw, rules(self.manners));
        }
    }
}

/// Fields of a series that are counted only.
#[derive(Default)]
struct Others {
    exemplars: u64,
    /// Exemplars whose labels are too long.
    too_long: u64,
    /// Histograms that are none.
    invalid: u64,
    /// What is wrong with the first.
    fault: Option<HistogramFault>,
}

impl Others {
    fn count_exemplar(&mut self, message: &[u8]) -> Result<(), DecodeError> {
        check_message(message, "exemplar")?;
        self.exemplars += 1;
        Ok(())
    }

    fn add_to<'l>(
        self,
        outcome: &mut WriteOutcome,
        place: u32,
        labels: impl Fn() -> Vec<(&'l [u8], &'l [u8])>,
    ) {
        outcome.exemplars_dropped += self.exemplars;
        outcome.written.exemplars += self.exemplars;
        if self.too_long > 0 {
            let labels = labels();
            let example = || display(&labels, labels.len());
            outcome.refusals.add(Reason::ExemplarTooLong, self.too_long, example);
            outcome.refused_series.push(place, Reason::ExemplarTooLong.code());
        }
        if let Some(fault) = self.fault {
            let example = || {
                let labels = labels();
                format!("{}: {fault}", display(&labels, labels.len()))
            };
            outcome.refusals.add(Reason::InvalidHistogram, self.invalid, example);
            outcome.refused_series.push(place, Reason::InvalidHistogram.code());
        }
    }
}

/// Bytes of the canonical key of sorted labels.
fn canonical_len(labels: &[(&[u8], &[u8])]) -> usize {
    labels.iter().map(|(name, value)| label_len(name, value)).sum()
}

/// The label fields at a series message's start, and what follows them.
fn split_labels(series: &[u8]) -> (&[u8], &[u8]) {
    let mut rest = series;
    while let Some(after_tag) = rest.strip_prefix(&[crate::model::labels::TAG_FIELD_1]) {
        match split_len_prefixed(after_tag) {
            Some((_, after)) => rest = after,
            None => break,
        }
    }
    (&series[..series.len() - rest.len()], rest)
}

fn has_no_label(fields: &[u8]) -> bool {
    let mut fields = SeriesFields::new(fields);
    while let Ok(Some(field)) = fields.next_field() {
        if matches!(field, SeriesField::Label { .. }) {
            return false;
        }
    }
    true
}

/// The labels among the fields of a series.
fn labels_of(fields: &[u8]) -> Vec<(&[u8], &[u8])> {
    let mut fields = SeriesFields::new(fields);
    let mut labels = Vec::new();
    while let Ok(Some(field)) = fields.next_field() {
        if let SeriesField::Label { name, value } = field {
            labels.push((name, value));
        }
    }
    labels
}

/// The labels of the series at `place` of a peer's message, as a refusal's example.
#[cold]
pub fn example_of(message: &[u8], place: u32) -> String {
    let series = RequestFields::of_peer(message).filter_map(|field| match field {
        Ok(RequestField::TimeSeries(series)) => Some(series),
        _ => None,
    });
    let labels = series.skip(place as usize).take(1).flat_map(labels_of).collect::<Vec<_>>();
    display(&labels, labels.len())
}

#[cfg(test)]
mod tests;
