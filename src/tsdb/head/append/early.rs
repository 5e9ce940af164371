//! Batches into a head whose log is still being read.
//!
//! A batch all of whose samples are certainly later than what their series have, or are the last
//! ones of theirs again, is logged and answered as one of any other head; who reads the log finds
//! it there in its turn and puts it into the head. Any other waits until the log is read, and so
//! does what comes later of its series: were that appended first, what waits would be out of order.
//! Nothing is refused before.

use std::collections::HashMap;
use std::io;

use crate::model::Timestamp;
use crate::model::fingerprint::Fingerprint;
use crate::model::key_table::{Lookup, Slot};
use crate::model::labels::LabelIter;
use crate::model::{HeadSeriesRef, key_table::Adder};
use crate::tsdb::head::Head;
use crate::tsdb::head::append::group::{AcceptedKind, Group, RecordKind};
use crate::tsdb::head::append::records::{RefHistogram, encode_exemplars, encode_histograms};
use crate::tsdb::head::append::{
    AppendReport, AppendResults, Bounds, LOG_CLOSED, LogSide, RefSample,
};
use crate::tsdb::head::batch::{Batch, BatchSample, NEW_BIT, SampleKind};
use crate::tsdb::head::early::{Early, EarlySeries, EarlyValue, EarlyWrites};
use crate::tsdb::wal::names::Gist;
use crate::tsdb::wal::{LogPosition, WalError, record};

/// A series that the batch names and that does not exist.
struct NewSeries {
    fingerprint: Fingerprint,
    /// Its place among the batch's new series.
    place: usize,
    state: EarlySeries,
    /// Else it is not made, here as elsewhere.
    has_samples: bool,
}

/// What a series of the batch that its look-up did not know is.
#[derive(Clone, Copy)]
enum Resolved {
    /// Somebody made it meanwhile.
    Known(Slot),
    /// One of those to be made.
    New(usize),
}

/// What of a batch goes to the log.
struct Judged {
    resolved: Vec<Resolved>,
    new: Vec<NewSeries>,
    samples: Vec<RefSample>,
    histograms: Vec<RefHistogram>,
    /// Exemplars by their places in the batch. Whether they are in order is found when the log is
    /// read; one that is not is passed over then.
    exemplars: Vec<(HeadSeriesRef, usize)>,
    /// Floats that are stored already.
    repeats: u64,
    mint: Timestamp,
    maxt: Timestamp,
}

impl Head {
    /// As [`Head::append_group`], while the log is read: one after another, since that is for
    /// seconds.
    pub(super) fn append_early(&self, log: &mut LogSide, batches: &[&Batch]) -> AppendResults {
        batches.iter().map(|batch| self.append_one_early(log, batch)).collect()
    }

    fn append_one_early(&self, log: &mut LogSide, batch: &Batch) -> Result<AppendReport, WalError> {
        let LogSide { wal, early, next_ref, unsynced, .. } = log;
        let (Some(wal), Some(early)) = (wal, early) else {
            return Err(WalError::io(io::Error::other(LOG_CLOSED)));
        };
        let mut report = AppendReport { position: wal.end(), ..AppendReport::default() };
        if early.is_over {
            return Err(WalError::StillRead);
        }
        let Some(bounds) = self.bounds_of(batch, &Group::default()) else { return Ok(report) };
        let catalog = self.catalog.load();
        let lookup = catalog.lookup();
        let series_left =
            self.options.series_max.saturating_sub(catalog.known.adder().series_count());
        let refs_left = HeadSeriesRef::LIMIT.saturating_sub(*next_ref);
        let new_max = series_left.min(usize::try_from(refs_left).unwrap_or(usize::MAX));
        let Some(judged) = early.judge_batch(batch, &lookup, bounds, *next_ref, new_max) else {
            early.take_back();
            early.block_batch(batch, &lookup);
            return Err(WalError::StillRead);
        };
        let [floats, histograms] =
            [judged.samples.len(), judged.histograms.len()].map(|count| count as u64);
        report.histograms_stored = histograms;
        report.stored = floats + histograms + judged.repeats;
        report.exemplars_stored = judged.exemplars.len() as u64;
        if floats + histograms + report.exemplars_stored == 0 {
            return Ok(report);
        }
        let (records, ends) = encode(batch, &judged);
        let starts = [0].into_iter().chain(ends.iter().copied());
        let records: Vec<&[u8]> =
            starts.zip(&ends).map(|(start, end)| &records[start..*end]).collect();
        // No ref is given twice, whatever becomes of this.
        *next_ref += judged.new.len() as u64;
        let gist = Gist { newest: judged.maxt, highest_ref: *next_ref - 1 };
        let appended = match wal.append_summed_up(&records, Some(gist)) {
            Ok(appended) => appended,
            Err(err) => {
                early.take_back();
                return Err(err);
            }
        };
        early.keep();
        let made = early.make(batch, &judged, &mut catalog.known.adder());
        (report.position, report.closed_segment) = (appended.end(), appended.closed_segment());
        early.logged = appended.end();
        unsynced.note(wal.synced_position(), appended.end(), judged.mint, &made);
        self.extend_time_range(judged.mint, judged.maxt);
        self.metrics.series_created.add(made.len() as u64);
        self.metrics.samples_appended.add(floats);
        self.metrics.histograms_appended.add(histograms);
        Ok(report)
    }

    /// Up to where the log may be read that is written meanwhile.
    pub fn logged_early(&self) -> LogPosition {
        self.log.lock().early.as_ref().map_or(LogPosition::default(), |early| early.logged)
    }

    /// Lets everything wait that comes from now on, until [`Head::release_writes`]. Where the log
    /// ends then.
    pub fn hold_writes(&self) -> LogPosition {
        let mut log = self.log.lock();
        let Some(early) = &mut log.early else { return LogPosition::default() };
        early.is_over = true;
        early.logged
    }

    /// Takes writes as ever, once the log is read.
    pub fn release_writes(&self) {
        self.log.lock().early = None;
    }
}

impl EarlyWrites {
    /// Judges each sample of a batch; `None` if it has to wait. At most `new_max` series are new,
    /// and get their refs from `next_ref` on.
    fn judge_batch(
        &mut self,
        batch: &Batch,
        lookup: &Lookup,
        bounds: Bounds,
        next_ref: u64,
        new_max: usize,
    ) -> Option<Judged> {
        let mut judged = Judged {
            resolved: Vec::with_capacity(batch.new_series.len()),
            new: Vec::new(),
            samples: Vec::with_capacity(batch.samples.len()),
            histograms: Vec::new(),
            exemplars: Vec::new(),
            repeats: 0,
            mint: Timestamp::MAX,
            maxt: Timestamp::MIN,
        };
        let mut named: HashMap<Fingerprint, usize> = HashMap::new();
        for (place, series) in batch.new_series.iter().enumerate() {
            let fingerprint = series.fingerprint;
            let resolved = match (lookup.find_canonical(fingerprint), named.get(&fingerprint)) {
                (Some(slot), _) => Resolved::Known(slot),
                (None, Some(new)) => Resolved::New(*new),
                (None, None) if self.is_blocked(fingerprint) || judged.new.len() >= new_max => {
                    return None;
                }
                (None, None) => {
                    let new = judged.new.len();
                    let series_ref = HeadSeriesRef(next_ref + new as u64);
                    let state = EarlySeries::new(series_ref);
                    judged.new.push(NewSeries { fingerprint, place, state, has_samples: false });
                    named.insert(fingerprint, new);
                    Resolved::New(new)
                }
            };
            judged.resolved.push(resolved);
        }
        for sample in &batch.samples {
            let BatchSample { t, v, kind, .. } = *sample;
            let value = match kind {
                SampleKind::Float => EarlyValue::Float(v),
                // Places in a batch have fewer bits than 32.
                SampleKind::Histogram => {
                    EarlyValue::Histogram(RecordKind::of(batch.histogram(v as u32)) as u8)
                }
            };
            if !bounds.take(t) {
                return None;
            }
            let (early, series_ref) = match judged.resolved_of(sample.series) {
                Resolved::Known(slot) => self.take(slot, t, value),
                Resolved::New(new) => {
                    let NewSeries { state, has_samples, .. } = judged.new.get_mut(new)?;
                    let early = state.judge(t, value, Timestamp::MIN);
                    if early == Early::IsLater {
                        (*state, *has_samples) = (state.with_last(t, value), true);
                    }
                    (early, state.series_ref())
                }
            };
            match early {
                Early::IsLater => {
                    match kind {
                        SampleKind::Float => judged.samples.push(RefSample { series_ref, t, v }),
                        SampleKind::Histogram => {
                            let place = v as u32;
                            let kind = RecordKind::of(batch.histogram(place));
                            let kind = AcceptedKind::Histogram(kind);
                            judged.histograms.push(RefHistogram { series_ref, t, kind, place });
                        }
                    }
                    judged.mint = judged.mint.min(t);
                    judged.maxt = judged.maxt.max(t);
                }
                Early::IsStored => judged.repeats += 1,
                Early::Waits => return None,
            }
        }
        for (place, exemplar) in batch.exemplars.iter().enumerate() {
            let series_ref = match judged.resolved_of(exemplar.series) {
                Resolved::Known(slot) => self.ref_of(slot)?,
                Resolved::New(new) => match judged.new.get(new)? {
                    NewSeries { state, has_samples: true, .. } => state.series_ref(),
                    // As elsewhere nothing makes a series of an exemplar alone.
                    _ => continue,
                },
            };
            judged.exemplars.push((series_ref, place));
        }
        Some(judged)
    }

    /// Lets what comes later of the batch's series wait, too.
    fn block_batch(&mut self, batch: &Batch, lookup: &Lookup) {
        for series in &batch.new_series {
            match lookup.find_canonical(series.fingerprint) {
                Some(slot) => self.block(slot),
                None => self.block_new(series.fingerprint),
            }
        }
        for sample in batch.samples.iter().filter(|sample| sample.series & NEW_BIT == 0) {
            self.block(sample.series);
        }
    }

    /// Makes the new series of a batch that is logged, and gives their slots. Who reads the log
    /// names them when it comes there.
    fn make(&mut self, batch: &Batch, judged: &Judged, known: &mut Adder<'_>) -> Vec<Slot> {
        let mut make = |new: &NewSeries| {
            let slot = known.series_count() as Slot;
            known.add(new.fingerprint, slot);
            self.add(slot, new.state);
            slot
        };
        let made: Vec<Option<Slot>> =
            judged.new.iter().map(|new| new.has_samples.then(|| make(new))).collect();
        for alias in &batch.aliases {
            let slot = match judged.resolved_of(alias.series) {
                Resolved::Known(slot) => Some(slot),
                Resolved::New(new) => made.get(new).copied().flatten(),
            };
            if let Some(slot) = slot {
                known.add_alias(batch.raw(alias), slot, alias.rules);
            }
        }
        made.into_iter().flatten().collect()
    }
}

impl Judged {
    fn resolved_of(&self, series: u32) -> Resolved {
        match series & NEW_BIT {
            0 => Resolved::Known(series),
            _ => self.resolved[(series & !NEW_BIT) as usize],
        }
    }
}

/// The records of a batch one after another, and where each ends: its new series, then its samples.
fn encode(batch: &Batch, judged: &Judged) -> (Vec<u8>, Vec<usize>) {
    let (mut records, mut ends) = (Vec::new(), Vec::new());
    let mut new = judged.new.iter().filter(|new| new.has_samples).peekable();
    if new.peek().is_some() {
        record::begin_series(&mut records);
        for NewSeries { place, state, .. } in new {
            let key = batch.key(&batch.new_series[*place]);
            record::push_series(&mut records, state.series_ref(), LabelIter::of_canonical(key));
        }
        ends.push(records.len());
    }
    if !judged.samples.is_empty() {
        let samples = judged.samples.iter().map(|sample| (sample.series_ref, sample.t, sample.v));
        record::encode_samples(&mut records, samples);
        ends.push(records.len());
    }
    encode_histograms(&mut records, &mut ends, batch, &judged.histograms);
    if !judged.exemplars.is_empty() {
        let exemplars = judged.exemplars.iter();
        encode_exemplars(&mut records, batch, exemplars.copied());
        ends.push(records.len());
    }
    (records, ends)
}
