//! The log back into memory.
//!
//! Three threads: one reads, verifies and decodes the log, one builds series and chunks, one builds
//! the postings. They are joined by short queues, so memory beyond the head's own stays at a few
//! batches.
//!
//! Rules where logs are unusual: the first series record of a ref wins; two refs of one series feed
//! that series; a sample not newer than its series' last is skipped; samples of unknown refs are
//! counted; a tombstone over all time removes the series at its place in the log, as Prometheus 3.14
//! means it, any other one hides its range of the whole log. Of exemplars the last ones are loaded, as
//! many as are kept. Metadata stays in the log and is not loaded by this version.
//!
//! A series begins with the chunks that files have of its ref ([`mapped`]), and what these cover is
//! not built again. What the log has of the gaps between them fills these, in chunks of their own,
//! and it goes on behind them.

pub mod mapped;
pub(super) mod sort;

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::sync::{Arc, mpsc};
use std::thread;

use crate::model::fingerprint::{Fingerprint, Fingerprinter};
use crate::model::key_table::Slot;
use crate::model::labels::LabelIter;
use crate::model::{HeadSeriesRef, STALE_NAN_BITS, Timestamp};
use crate::tsdb::chunkenc::samples::{OpenChunk, SAMPLES_PER_CHUNK, Value, value_in};
use crate::tsdb::chunkenc::{ENCODING_FLOAT_HISTOGRAM, ENCODING_HISTOGRAM};
use crate::tsdb::error::ReadError;
use crate::tsdb::exemplars::Exemplar;
use crate::tsdb::head::HeadContents;
use crate::tsdb::head::append::RefSample;
use crate::tsdb::head::catalog::Catalog;
use crate::tsdb::head::chunk_list::Listed;
use crate::tsdb::head::histograms::HistogramKind;
use crate::tsdb::head::ref_map::RefMap;
use crate::tsdb::head::replay::mapped::{MappedChunks, MappedList};
use crate::tsdb::head::replay::sort::{LoggedHistogram, NamedSeries, SeriesBatch, Sorter, Step};
use crate::tsdb::head::series::{SERIES_MAX, SeriesState};
use crate::tsdb::head::states::{HeadChunk, States};
use crate::tsdb::head_chunks::HeadChunkFiles;
use crate::tsdb::loading::Loading;
use crate::tsdb::wal::record::{Record, RecordTombstone};

/// Batches under way between two of the threads.
const QUEUE_BATCHES: usize = 16;
/// Series handed to the postings together.
const BATCH_SERIES: usize = 1024;
/// States are touched this many at a time before they are used; see `append`.
const TOUCHED_TOGETHER: usize = 16;

/// What a replay found besides the head's contents.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ReplayReport {
    /// The next ref to give: above every ref seen.
    pub next_ref: u64,
    pub samples: u64,
    /// Samples not newer than their series' last one, or below the floor of the blocks.
    pub samples_skipped: u64,
    /// Samples that head chunk files have.
    pub samples_mapped: u64,
    /// Chunks that the series have in files.
    pub chunks_mapped: u64,
    /// Chunks of what the log had between these.
    pub gaps_filled: u64,
    /// Samples and tombstones whose ref no series record names.
    pub unknown_refs: u64,
    /// Histogram samples whose spans do not name their buckets, or that are longer than any is to be.
    pub histograms_unusable: u64,
    /// Refs of series beside the one that each is known by, and that one; the log may have samples of
    /// them.
    pub further_refs: Vec<(HeadSeriesRef, HeadSeriesRef)>,
}

/// Series that were made, in order of their slots, and their canonical keys one after another.
#[derive(Default)]
struct MadeSeries {
    keys: Vec<u8>,
    /// Slot, and where the key ends.
    series: Vec<(Slot, usize)>,
}

impl MadeSeries {
    fn push(&mut self, slot: Slot, key: &[u8]) {
        self.keys.extend_from_slice(key);
        self.series.push((slot, self.keys.len()));
    }

    fn iter(&self) -> impl Iterator<Item = (Slot, LabelIter<'_>)> {
        let starts = [0].into_iter().chain(self.series.iter().map(|(_, end)| *end));
        let keys = starts.zip(&self.series).map(|(start, (_, end))| &self.keys[start..*end]);
        self.series.iter().zip(keys).map(|((slot, _), key)| (*slot, LabelIter::of_canonical(key)))
    }
}

/// What a replay has beside the log's records.
pub struct BesideLog<'l> {
    pub files: Arc<HeadChunkFiles>,
    /// What these files have.
    pub mapped: MappedChunks,
    /// Chunks that fill gaps between those in files stay in memory: the log is to keep their
    /// samples, and a Prometheus that finds them behind later ones would leave all files.
    pub keeps_gaps: bool,
    /// How many exemplars are kept.
    pub exemplars_max: usize,
    /// Who is told how far it has come.
    pub loading: &'l Loading,
    /// If the log is written while it is read: its series, by a look at it, and those that came
    /// since.
    pub known: Option<Arc<Catalog>>,
}

/// Fills a head from the records that `read` passes on, in order of the log.
pub fn replay<T: Send>(
    fingerprinter: Fingerprinter,
    floor: Timestamp,
    block_range: i64,
    BesideLog { files, mapped, keeps_gaps, exemplars_max, loading, known }: BesideLog<'_>,
    read: impl FnOnce(&mut dyn FnMut(Record<'_>)) -> io::Result<T> + Send,
) -> io::Result<(T, HeadContents, ReplayReport)> {
    let met = known.as_ref().map(|_| Vec::new());
    let mut contents = HeadContents::new(fingerprinter.clone(), files);
    contents.catalog = known.unwrap_or(contents.catalog);
    let (steps_in, steps_out) = mpsc::sync_channel(QUEUE_BATCHES);
    let (made_in, made_out) = mpsc::sync_channel::<MadeSeries>(QUEUE_BATCHES);
    let HeadContents { catalog, states, min_time, max_time, .. } = contents;
    let mut builder = Builder {
        catalog: &catalog,
        states,
        met,
        min_time,
        max_time,
        refs: RefMap::default(),
        tombstones: HashMap::new(),
        further_refs: HashMap::new(),
        removed: HashSet::new(),
        mapped,
        keeps_gaps,
        with_mapped: Vec::new(),
        gaps: HashMap::new(),
        exemplars_max,
        exemplars: VecDeque::new(),
        made: MadeSeries::default(),
        floor,
        block_range,
        report: ReplayReport { next_ref: 1, ..ReplayReport::default() },
    };
    let (read_result, sorted_out) = thread::scope(|scope| {
        let sort = move || {
            let mut sorter = Sorter::new(steps_in, fingerprinter, exemplars_max > 0);
            let result = read(&mut |record| sorter.take(record));
            sorter.flush();
            (result, sorter.found)
        };
        let reader = thread::Builder::new().name("wal-read".into()).spawn_scoped(scope, sort)?;
        let index = || {
            for made in made_out {
                catalog.name(made.iter());
            }
        };
        let indexer = thread::Builder::new().name("wal-index".into()).spawn_scoped(scope, index)?;
        for step in steps_out {
            builder.take(step, &made_in);
            let ReplayReport { samples, samples_skipped, samples_mapped, .. } = builder.report;
            loading.built(builder.states.len(), samples + samples_skipped + samples_mapped);
        }
        builder.hand_over_made(&made_in);
        drop(made_in);
        join(indexer);
        Ok::<_, io::Error>(join(reader))
    })?;
    let read_result = read_result?;
    if !builder.has_met_all() {
        let what = "the log does not have all series that were noted of it";
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    let mut report = builder.finish(sorted_out.max_ref).map_err(io::Error::other)?;
    report.histograms_unusable = sorted_out.histograms_unusable;
    let exemplars = builder.take_exemplars();
    let Builder { states, min_time, max_time, .. } = builder;
    let contents = HeadContents { catalog, states, min_time, max_time, exemplars };
    Ok((read_result, contents, report))
}

/// The value of a thread, or its panic.
fn join<T>(handle: thread::ScopedJoinHandle<'_, T>) -> T {
    handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// The building thread's half.
struct Builder<'c> {
    /// Another thread gives the series their labels.
    catalog: &'c Catalog,
    states: States,
    /// By slot, where series are known before: whether the log has named it by now.
    met: Option<Vec<bool>>,
    min_time: Timestamp,
    max_time: Timestamp,
    refs: RefMap,
    tombstones: HashMap<Slot, Vec<(Timestamp, Timestamp)>>,
    /// Refs of a series beside the one that its state knows.
    further_refs: HashMap<Slot, Vec<HeadSeriesRef>>,
    /// Slots of removed series that no later record announced again: they have no ref.
    removed: HashSet<Slot>,
    mapped: MappedChunks,
    keeps_gaps: bool,
    /// Series that have chunks in files.
    with_mapped: Vec<Slot>,
    /// Chunks being made of samples of the log that lie between chunks in files.
    gaps: HashMap<Slot, OpenChunk>,
    exemplars_max: usize,
    /// The last ones, with the ref by which the log knows their series.
    exemplars: VecDeque<(HeadSeriesRef, Slot, Exemplar)>,
    made: MadeSeries,
    floor: Timestamp,
    block_range: i64,
    report: ReplayReport,
}

impl Builder<'_> {
    fn take(&mut self, step: Step, made: &mpsc::SyncSender<MadeSeries>) {
        match step {
            Step::Series(SeriesBatch { keys, series }) => {
                let mut start = 0;
                for NamedSeries { series_ref, fingerprint, key_end } in series {
                    self.add_series(series_ref, fingerprint, &keys[start..key_end]);
                    start = key_end;
                }
                if self.made.series.len() >= BATCH_SERIES {
                    self.hand_over_made(made);
                }
            }
            Step::Samples(samples) => self.add_samples(&samples),
            Step::Histograms(histograms) => self.add_histograms(histograms),
            Step::Exemplars(exemplars) => self.add_exemplars(exemplars),
            Step::Tombstones(tombstones) => {
                tombstones.iter().for_each(|tombstone| self.add_tombstone(tombstone));
            }
        }
    }

    fn add_tombstone(&mut self, tombstone: &RecordTombstone) {
        let RecordTombstone { series_ref, mint, maxt } = *tombstone;
        self.see_ref(series_ref);
        match self.refs.slot(series_ref) {
            Some(slot) if (mint, maxt) == (Timestamp::MIN, Timestamp::MAX) => {
                self.refs.forget(self.states.get(slot).series_ref());
                let further = self.further_refs.remove(&slot).unwrap_or_default();
                further.into_iter().for_each(|series_ref| self.refs.forget(series_ref));
                self.tombstones.remove(&slot);
                self.gaps.remove(&slot);
                self.states.clear(slot);
                *self.states.get_mut(slot) = SeriesState::new(series_ref);
                self.removed.insert(slot);
            }
            Some(slot) => self.tombstones.entry(slot).or_default().push((mint, maxt)),
            None => self.report.unknown_refs += 1,
        }
    }

    fn hand_over_made(&mut self, made: &mpsc::SyncSender<MadeSeries>) {
        // As in `Sorter::send`.
        let _ = made.send(std::mem::take(&mut self.made));
    }

    fn see_ref(&mut self, series_ref: HeadSeriesRef) {
        if series_ref.0 < HeadSeriesRef::LIMIT {
            self.report.next_ref = self.report.next_ref.max(series_ref.0 + 1);
        }
    }

    fn add_series(&mut self, series_ref: HeadSeriesRef, fingerprint: Fingerprint, key: &[u8]) {
        if series_ref.0 >= HeadSeriesRef::LIMIT {
            self.report.unknown_refs += 1;
            return;
        }
        self.see_ref(series_ref);
        if self.refs.slot(series_ref).is_some() {
            return;
        }
        let logged_state = || {
            let mut state = SeriesState::new(series_ref);
            state.set_logged();
            state
        };
        let mut known = self.catalog.known.adder();
        let slot = match known.find_canonical(fingerprint) {
            Some(slot) if self.meet(slot) => {
                self.begin(slot, logged_state());
                self.made.push(slot, key);
                slot
            }
            Some(slot) => {
                if self.removed.remove(&slot) {
                    *self.states.get_mut(slot) = logged_state();
                } else {
                    self.further_refs.entry(slot).or_default().push(series_ref);
                }
                slot
            }
            None if known.series_count() >= SERIES_MAX => return,
            None => {
                let slot = known.series_count() as Slot;
                known.add(fingerprint, slot);
                self.meet(slot);
                self.begin(slot, logged_state());
                self.made.push(slot, key);
                slot
            }
        };
        self.refs.insert(series_ref, slot);
        self.attach_mapped(series_ref, slot);
    }

    /// Whether this is the first that the log says of a slot that was given before.
    fn meet(&mut self, slot: Slot) -> bool {
        let Some(met) = &mut self.met else { return false };
        if met.len() <= slot as usize {
            met.resize(slot as usize + 1, false);
        }
        !std::mem::replace(&mut met[slot as usize], true)
    }

    /// Gives a slot its state. Those of slots before it may come later.
    fn begin(&mut self, slot: Slot, state: SeriesState) {
        while self.states.len() < slot as usize {
            self.states.push(SeriesState::new(HeadSeriesRef(0)));
        }
        match (slot as usize) < self.states.len() {
            true => *self.states.get_mut(slot) = state,
            false => self.states.push(state),
        }
    }

    /// Whether the log named all series that were known before.
    fn has_met_all(&self) -> bool {
        let count = self.catalog.known.adder().series_count();
        let met = |met: &Vec<bool>| met.len() == count && met.iter().all(|met| *met);
        self.met.as_ref().is_none_or(met)
    }

    /// Gives a series the chunks that files have of its ref.
    fn attach_mapped(&mut self, series_ref: HeadSeriesRef, slot: Slot) {
        let MappedList { chunks, last_encoding } = self.mapped.take(series_ref);
        // Of a second ref whose series has gone on already; the log has them, too.
        if chunks.is_empty() || self.states.get(slot).has_open_chunk() {
            return;
        }
        if self.states.get(slot).last().is_none() {
            self.states.get_mut(slot).set_read_to(Timestamp::MIN);
        }
        for chunk in chunks.iter().filter(|chunk| chunk.maxt >= self.floor) {
            let Listed { mint, maxt, .. } = chunk;
            // A second ref's may overlap those of the first.
            if self.states.attach(slot, chunk).is_ok() {
                self.report.chunks_mapped += 1;
                self.min_time = self.min_time.min(mint.max(self.floor));
                self.max_time = self.max_time.max(maxt);
            }
        }
        if let Some(last) = self.states.get(slot).full.last() {
            // The value is looked up at the end, if need be.
            let is_of_these = chunks.last() == Some(last);
            match last_encoding {
                _ if !is_of_these => {}
                ENCODING_HISTOGRAM => {
                    let stale = HistogramKind::Integer.stale();
                    self.states.set_last_histogram(slot, last.maxt, stale);
                }
                ENCODING_FLOAT_HISTOGRAM => {
                    let stale = HistogramKind::Float.stale();
                    self.states.set_last_histogram(slot, last.maxt, stale);
                }
                _ => self.states.set_last(slot, last.maxt, 0),
            }
            self.with_mapped.push(slot);
        }
    }

    fn add_samples(&mut self, samples: &[RefSample]) {
        let mut slots = [None; TOUCHED_TOGETHER];
        for window in samples.chunks(TOUCHED_TOGETHER) {
            let mut touched = 0u8;
            for (sample, slot) in window.iter().zip(&mut slots) {
                *slot = self.refs.slot(sample.series_ref);
                if let Some(slot) = slot {
                    touched = touched.wrapping_add(self.states.get(*slot).touch());
                }
            }
            std::hint::black_box(touched);
            for (sample, slot) in window.iter().zip(slots) {
                match slot {
                    Some(slot) => self.add_sample(slot, sample.t, sample.v),
                    None => {
                        self.see_ref(sample.series_ref);
                        self.report.unknown_refs += 1;
                    }
                }
            }
        }
    }

    fn add_histograms(&mut self, histograms: Vec<LoggedHistogram>) {
        for LoggedHistogram { series_ref, t, histogram } in histograms {
            match self.refs.slot(series_ref) {
                Some(slot) => self.add_value(slot, t, Value::Histogram(histogram)),
                None => {
                    self.see_ref(series_ref);
                    self.report.unknown_refs += 1;
                }
            }
        }
    }

    fn add_exemplars(&mut self, exemplars: Vec<(HeadSeriesRef, Exemplar)>) {
        for (series_ref, exemplar) in exemplars {
            let Some(slot) = self.refs.slot(series_ref) else {
                self.see_ref(series_ref);
                self.report.unknown_refs += 1;
                continue;
            };
            if self.exemplars.len() == self.exemplars_max {
                self.exemplars.pop_front();
            }
            self.exemplars.push_back((series_ref, slot, exemplar));
        }
    }

    /// Without those of series that were removed meanwhile.
    fn take_exemplars(&mut self) -> VecDeque<(Slot, Exemplar)> {
        let found = std::mem::take(&mut self.exemplars).into_iter();
        let left = found.filter(|(series_ref, slot, _)| self.refs.slot(*series_ref) == Some(*slot));
        left.map(|(_, slot, exemplar)| (slot, exemplar)).collect()
    }

    #[inline]
    fn add_sample(&mut self, slot: Slot, t: Timestamp, v: u64) {
        let state = self.states.get(slot);
        if v == STALE_NAN_BITS {
            return self.add_value(slot, t, Value::Float(v));
        }
        let is_late = state.last().is_some_and(|(last, _)| t <= last);
        if is_late || t < self.floor {
            return self.add_late(slot, t, Value::Float(v));
        }
        self.states.append(slot, t, v, self.block_range);
        self.count_sample(t);
    }

    /// As [`Self::add_sample`], of any sample.
    fn add_value(&mut self, slot: Slot, t: Timestamp, value: Value) {
        let is_late = self.states.get(slot).last().is_some_and(|(last, _)| t <= last);
        if is_late || t < self.floor {
            return self.add_late(slot, t, value);
        }
        match (value, self.states.histogram_kind(slot)) {
            (Value::Histogram(histogram), _) => {
                self.states.append_histogram(slot, t, &histogram, self.block_range);
            }
            // A marker goes to what it ends.
            (Value::Float(STALE_NAN_BITS), Some(kind)) => {
                self.states.append_histogram(slot, t, &kind.stale(), self.block_range);
            }
            (Value::Float(v), _) => {
                self.states.append(slot, t, v, self.block_range);
            }
        }
        self.count_sample(t);
    }

    fn add_late(&mut self, slot: Slot, t: Timestamp, value: Value) {
        if !self.states.get(slot).has_open_chunk() && t >= self.floor {
            return self.add_beside_mapped(slot, t, value);
        }
        self.report.samples_skipped += 1;
    }

    fn count_sample(&mut self, t: Timestamp) {
        self.report.samples += 1;
        self.min_time = self.min_time.min(t);
        self.max_time = self.max_time.max(t);
    }

    /// A sample no later than the series' last chunk in a file.
    fn add_beside_mapped(&mut self, slot: Slot, t: Timestamp, value: Value) {
        let state = self.states.get_mut(slot);
        if t <= state.read_to() {
            self.report.samples_mapped += 1;
            return;
        }
        let covering = state.full.iter().find(|chunk| chunk.overlaps(t, t));
        match covering {
            Some(chunk) => {
                state.set_read_to(chunk.maxt);
                self.report.samples_mapped += 1;
                self.end_gap(slot);
            }
            None => {
                let before = state.read_to();
                state.set_read_to(t);
                // A chunk that the log lacks may lie between.
                if state.full.iter().any(|chunk| chunk.overlaps(before, t)) {
                    self.end_gap(slot);
                }
                let begun = match self.gaps.get_mut(&slot) {
                    Some(open) => open.append(t, &value),
                    None => Some(OpenChunk::begin(t, &value)),
                };
                if let Some(begun) = begun {
                    self.end_gap(slot);
                    self.gaps.insert(slot, begun);
                }
                if self.gaps.get(&slot).is_some_and(|open| open.count() >= SAMPLES_PER_CHUNK) {
                    self.end_gap(slot);
                }
                self.count_sample(t);
            }
        }
    }

    /// Puts what the log had between chunks in files into a chunk there.
    fn end_gap(&mut self, slot: Slot) {
        if let Some(chunk) = self.gaps.remove(&slot) {
            self.report.gaps_filled += u64::from(self.states.insert(slot, chunk, self.keeps_gaps));
        }
    }

    fn end_gaps(&mut self) {
        let slots: Vec<_> = self.gaps.keys().copied().collect();
        slots.into_iter().for_each(|slot| self.end_gap(slot));
    }

    /// Sees to what only a look into the files tells: samples below the floor in their chunks, and
    /// the last value of a series that has nothing else.
    fn look_into_mapped(&mut self) -> Result<(), ReadError> {
        let floor = self.floor;
        for slot in std::mem::take(&mut self.with_mapped) {
            let dropped = self.states.drop_before(slot, floor);
            if let Some(chunk) = dropped.to_shorten {
                let mut bytes = Vec::new();
                let encoding = chunk.read(&mut bytes)?;
                self.states.shorten(slot, &chunk, floor, (encoding, &bytes));
            }
            let state = self.states.get(slot);
            let Some((t, _)) = state.last().filter(|_| !state.has_open_chunk()) else { continue };
            if let Some(chunk) = self.states.chunk_at(slot, t) {
                let HeadChunk { encoding, bytes, .. } = chunk.load()?;
                match value_in(encoding, &bytes, t) {
                    Some(Value::Histogram(last)) => self.states.set_last_histogram(slot, t, *last),
                    Some(Value::Float(v)) => self.states.set_last(slot, t, v),
                    None => self.states.set_last(slot, t, 0),
                }
            }
        }
        Ok(())
    }

    /// A series that has nothing left gets a new ref: samples of the old one would be lost at the
    /// next replay, which takes them out again, or finds them before what files have of it.
    fn begin_anew(&mut self, slot: Slot) {
        let next_ref = &mut self.report.next_ref;
        if *next_ref < HeadSeriesRef::LIMIT {
            *self.states.get_mut(slot) = SeriesState::new(HeadSeriesRef(*next_ref));
            *next_ref += 1;
        }
    }

    /// Takes deleted samples out, and begins series anew that were removed.
    fn finish(&mut self, max_ref: u64) -> Result<ReplayReport, ReadError> {
        self.report.next_ref = self.report.next_ref.max(max_ref + 1);
        for slot in std::mem::take(&mut self.removed) {
            self.begin_anew(slot);
        }
        self.end_gaps();
        self.look_into_mapped()?;
        for (slot, deleted) in std::mem::take(&mut self.tombstones) {
            let is_deleted =
                |t: Timestamp| deleted.iter().any(|(mint, maxt)| (*mint..=*maxt).contains(&t));
            let last = self.states.get(slot).last();
            self.states.retain(slot, |t| !is_deleted(t))?;
            let state = self.states.get(slot);
            match last {
                // What comes is to be behind what files have, though it is deleted.
                Some(_) if state.last().is_none() => self.begin_anew(slot),
                Some((t, v)) if !state.has_open_chunk() && !state.is_histogram() => {
                    self.states.set_last(slot, t, v);
                }
                _ => {}
            }
        }
        for (slot, further) in std::mem::take(&mut self.further_refs) {
            let known_by = self.states.get(slot).series_ref();
            let further = further.into_iter().map(|further| (further, known_by));
            self.report.further_refs.extend(further);
        }
        Ok(std::mem::take(&mut self.report))
    }
}

#[cfg(test)]
mod tests;
