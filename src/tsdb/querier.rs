//! Matchers to series to chunks, over a head and the blocks beside it.
//!
//! A series that several of them hold is one series of the answer. Its chunks come in order of time
//! and without overlap: where two sources hold the same time (a block that was taken over from
//! another program, or overlapping blocks), their samples are merged into new chunks, each time once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::ControlFlow;
use std::sync::Arc;

use thin_vec::ThinVec;

use crate::model::key_table::Slot;
use crate::model::labels::LabelIter;
use crate::model::matcher::Matcher;
use crate::model::pairs::{PairId, Pairs, SeriesLabels, Text};
use crate::model::stop;
use crate::model::{TimeRange, Timestamp};
use crate::tsdb::block::Block;
use crate::tsdb::block::chunks::unsupported;
use crate::tsdb::blocks::View;
use crate::tsdb::chunk_set::ChunkSet;
use crate::tsdb::chunkenc::is_known;
use crate::tsdb::chunkenc::samples::{Encoded, SampleIterator, Value, encode, encode_if};
use crate::tsdb::error::ReadError;
use crate::tsdb::head::read::HeadReader;
use crate::tsdb::head::states::HeadChunk;
use crate::tsdb::index::SeriesReader;
use crate::tsdb::source::{Source as _, SourceChunk, SourceRef};

/// A reader over one time range of one database. Holds no lock between calls.
pub struct Querier {
    head: HeadReader,
    /// The head from the floor on.
    in_head: TimeRange,
    /// Those that the range meets, oldest first.
    blocks: Vec<Arc<Block>>,
    range: TimeRange,
    /// Held, so that the head keeps what it has that is not in these blocks.
    _view: Arc<View>,
}

/// A series that a query selected.
#[derive(Clone)]
pub struct SelectedSeries {
    /// Labels as stored, without external labels.
    pub labels: SeriesLabels,
    found: Found,
}

/// Where a series was found.
#[derive(Clone, Default)]
struct Found {
    head: Option<Slot>,
    /// By the block's place in the querier.
    blocks: ThinVec<(u32, SourceRef)>,
}

impl SelectedSeries {
    /// One that the head alone holds.
    pub fn of_head(labels: SeriesLabels, slot: Slot) -> SelectedSeries {
        SelectedSeries { labels, found: Found { head: Some(slot), ..Found::default() } }
    }

    /// What a query takes for it.
    pub fn bytes(&self) -> usize {
        size_of::<SelectedSeries>()
            + self.labels.bytes()
            + self.found.blocks.len() * size_of::<(u32, SourceRef)>()
    }
}

/// An encoded chunk, whole (not cut to the query's range).
#[derive(Clone, Debug)]
pub struct ChunkData {
    pub mint: Timestamp,
    /// Time of the last sample, included.
    pub maxt: Timestamp,
    /// Prometheus' chunk encoding number; 1 is XOR.
    pub encoding: u8,
    /// The chunk as Prometheus stores it: sample count (u16, big endian), then the bit stream.
    pub bytes: Arc<[u8]>,
}

impl Querier {
    pub(super) fn new(
        head: HeadReader,
        view: Arc<View>,
        mint: Timestamp,
        maxt: Timestamp,
    ) -> Querier {
        let meets = |block: &&Arc<Block>| {
            block.time_range().is_some_and(|range| range.overlaps(mint, maxt))
        };
        let blocks = view.blocks.iter().filter(meets).cloned().collect();
        let in_head = TimeRange { mint: mint.max(view.floor), maxt };
        Querier { head, in_head, blocks, range: TimeRange { mint, maxt }, _view: view }
    }

    /// Series that match all `matchers` and have a chunk in the range, in no particular order.
    pub fn select(&self, matchers: &[Matcher]) -> Result<Vec<SelectedSeries>, ReadError> {
        let in_head = self.head.select(matchers, self.in_head.mint, self.in_head.maxt);
        if self.blocks.is_empty() {
            let series = in_head.into_iter();
            return Ok(series
                .map(|(slot, labels)| SelectedSeries::of_head(labels, slot))
                .collect());
        }
        let mut union = Union::default();
        for (slot, labels) in in_head.into_iter().take_while(|_| !stop::is_asked()) {
            union.series(labels.iter()).head = Some(slot);
        }
        for (i, block) in (0..).zip(&self.blocks) {
            block.select(matchers, self.range, &mut |series| {
                let labels = LabelIter::of_canonical(series.key);
                union.series(labels).blocks.push((i, series.series));
                ControlFlow::Continue(())
            })?;
        }
        Ok(union.into_series())
    }

    /// Appends the series' chunks that overlap the range to `chunks`, in order of time.
    pub fn chunks(
        &self,
        series: &SelectedSeries,
        chunks: &mut Vec<ChunkData>,
    ) -> Result<(), ReadError> {
        let Found { head, blocks } = &series.found;
        let first = chunks.len();
        let mut found = Vec::new();
        for (i, reference) in blocks {
            let Some(block) = self.blocks.get(*i as usize) else { continue };
            block.chunks(*reference, self.range, &mut found)?;
            for chunk in found.drain(..) {
                push_chunk(block, chunk, chunks)?;
            }
        }
        if let Some(slot) = head {
            self.head.chunks(*slot, self.in_head.mint, self.in_head.maxt, |chunk| {
                let HeadChunk { mint, maxt, encoding, bytes } = chunk;
                chunks.push(ChunkData { mint, maxt, encoding, bytes });
            })?;
        }
        if !blocks.is_empty() {
            let merged = without_overlap(chunks.split_off(first));
            chunks.extend(merged.into_iter().filter(|chunk| {
                // New ones may be cut where nothing of them is left in the range.
                self.range.overlaps(chunk.mint, chunk.maxt)
            }));
        }
        Ok(())
    }

    /// Adds as many of the series to `chunks`, from the first one on, as it takes for these to come
    /// to about `bytes`; one at least, also in work that was asked to stop. Each has its chunks that
    /// overlap the range, in order of time. What of them lies in files is left to be
    /// [loaded](ChunkSet::load).
    pub fn gather(
        &self,
        series: &mut dyn Iterator<Item = &SelectedSeries>,
        bytes: usize,
        chunks: &mut ChunkSet,
    ) -> Result<(), ReadError> {
        let mut readers: Vec<_> = self.blocks.iter().map(|block| block.index().series()).collect();
        let mut merged = Vec::new();
        for series in series {
            if !self.gather_one(&series.found, &mut readers, chunks)? {
                self.chunks(series, &mut merged)?;
                for chunk in merged.drain(..) {
                    chunks.push(chunk.mint, chunk.maxt, chunk.encoding, &chunk.bytes);
                }
            }
            chunks.end_series();
            if chunks.bytes() >= bytes || stop::is_asked() {
                break;
            }
        }
        Ok(())
    }

    /// Gathers a series whose chunks are handed on as they lie in its sources, one after another. Else
    /// nothing, and it says no.
    fn gather_one(
        &self,
        found: &Found,
        readers: &mut [SeriesReader<'_>],
        chunks: &mut ChunkSet,
    ) -> Result<bool, ReadError> {
        let start = chunks.mark();
        let mut is_plain = true;
        for (i, reference) in &found.blocks {
            let i = *i as usize;
            let (Some(block), Some(reader)) = (self.blocks.get(i), readers.get_mut(i)) else {
                continue;
            };
            is_plain = is_plain && block.gather(*reference, self.range, reader, chunks)?;
        }
        if let Some(slot) = found.head {
            self.head.gather(slot, self.in_head, chunks);
        }
        is_plain = is_plain && (found.blocks.is_empty() || chunks.is_in_order(&start));
        if !is_plain {
            chunks.return_to(&start);
        }
        Ok(is_plain)
    }

    /// Names of the labels of matching series (of all series without matchers), sorted.
    pub fn label_names(&self, matchers: &[Matcher]) -> Result<Vec<Vec<u8>>, ReadError> {
        let mut names = BTreeSet::new();
        if !self.overlaps_head() {
        } else if matchers.is_empty() {
            names.extend(self.head.label_names());
        } else {
            for (_, labels) in self.matching_in_head(matchers) {
                labels.iter().for_each(|(name, _)| insert(&mut names, name));
            }
        }
        for block in &self.blocks {
            names.extend(block.label_names(matchers, self.range)?);
        }
        Ok(names.into_iter().collect())
    }

    /// Values of one label over matching series, sorted.
    pub fn label_values(
        &self,
        name: &[u8],
        matchers: &[Matcher],
    ) -> Result<Vec<Vec<u8>>, ReadError> {
        let mut values = BTreeSet::new();
        if !self.overlaps_head() {
        } else if matchers.is_empty() {
            values.extend(self.head.label_values(name));
        } else {
            for (_, labels) in self.matching_in_head(matchers) {
                let value = labels.iter().find(|(label, _)| *label == name);
                value.into_iter().for_each(|(_, value)| insert(&mut values, value));
            }
        }
        for block in &self.blocks {
            values.extend(block.label_values(name, matchers, self.range)?);
        }
        Ok(values.into_iter().collect())
    }

    fn matching_in_head(&self, matchers: &[Matcher]) -> impl Iterator<Item = (Slot, SeriesLabels)> {
        let series = self.head.select(matchers, self.in_head.mint, self.in_head.maxt);
        series.into_iter().take_while(|_| !stop::is_asked())
    }

    fn overlaps_head(&self) -> bool {
        let TimeRange { mint, maxt } = self.in_head;
        self.head.time_range().is_some_and(|(oldest, newest)| oldest <= maxt && mint <= newest)
    }
}

fn insert(texts: &mut BTreeSet<Vec<u8>>, text: &[u8]) {
    if !texts.contains(text) {
        texts.insert(text.to_vec());
    }
}

/// The series of several sources, each once.
#[derive(Default)]
struct Union {
    pairs: Pairs,
    by_text: HashMap<Text, Values>,
    series: HashMap<Box<[PairId]>, Found>,
    /// The labels at hand, reused.
    ids: Vec<PairId>,
}

/// The numbers of a name's values.
struct Values {
    name: Text,
    ids: HashMap<Text, PairId>,
}

impl Union {
    fn series<'l>(&mut self, labels: impl Iterator<Item = (&'l [u8], &'l [u8])>) -> &mut Found {
        self.ids.clear();
        for (name, value) in labels {
            let id = self.pair(name, value);
            self.ids.push(id);
        }
        if !self.series.contains_key(&self.ids[..]) {
            self.series.insert(self.ids[..].into(), Found::default());
        }
        self.series.get_mut(&self.ids[..]).expect("it was found or added")
    }

    fn pair(&mut self, name: &[u8], value: &[u8]) -> PairId {
        if !self.by_text.contains_key(name) {
            let name = Text::new(name);
            self.by_text.insert(name.clone(), Values { name, ids: HashMap::default() });
        }
        let values = self.by_text.get_mut(name).expect("it was found or added");
        if let Some(id) = values.ids.get(value) {
            return *id;
        }
        let value = Text::new(value);
        let id = self.pairs.add(values.name.clone(), value.clone());
        values.ids.insert(value, id);
        id
    }

    fn into_series(self) -> Vec<SelectedSeries> {
        let pairs = Arc::new(self.pairs);
        let series = self.series.into_iter();
        series
            .map(|(ids, found)| SelectedSeries {
                labels: SeriesLabels::new(pairs.clone(), ids),
                found,
            })
            .collect()
    }
}

/// Adds what is left of a block's chunk. One of an encoding that nothing here can read is an error: it
/// is not to look as if it were not there.
fn push_chunk(
    block: &Block,
    chunk: SourceChunk,
    chunks: &mut Vec<ChunkData>,
) -> Result<(), ReadError> {
    let SourceChunk { mint, maxt, encoding, bytes, deleted } = chunk;
    let unread = |what| ReadError::Unsupported { path: block.dir().to_owned(), what };
    if !is_known(encoding) {
        return Err(unsupported(block.dir()));
    }
    if deleted.is_empty() {
        chunks.push(ChunkData { mint, maxt, encoding, bytes: bytes.into() });
        return Ok(());
    }
    let is_left = |t: Timestamp| !deleted.iter().any(|span| span.overlaps(t, t));
    let (left, read) = encode_if(encoding, &bytes, is_left);
    read.map_err(|_| unread("a damaged chunk of which samples are deleted"))?;
    chunks.extend(left.map(|left| ChunkData::of(left.finish())));
    Ok(())
}

impl ChunkData {
    fn of(chunk: Encoded) -> ChunkData {
        let Encoded { mint, maxt, encoding, bytes } = chunk;
        ChunkData { mint, maxt, encoding, bytes: bytes[..].into() }
    }
}

/// The chunks in order of time, those that overlap made anew. A damaged one stays as it is.
fn without_overlap(mut chunks: Vec<ChunkData>) -> Vec<ChunkData> {
    chunks.sort_by_key(|chunk| (chunk.mint, chunk.maxt));
    chunks.dedup_by(|b, a| {
        (a.mint, a.maxt, a.encoding) == (b.mint, b.maxt, b.encoding) && a.bytes == b.bytes
    });
    let mut merged = Vec::with_capacity(chunks.len());
    let mut rest = chunks.into_iter().peekable();
    while let Some(first) = rest.next() {
        let mut end = first.maxt;
        let mut group = vec![first];
        while let Some(next) = rest.next_if(|next| next.mint <= end) {
            end = end.max(next.maxt);
            group.push(next);
        }
        match group.len() {
            1 => merged.extend(group),
            _ => {
                merged.extend(samples_of(&group).map_or(group, |samples| {
                    encode(samples).into_iter().map(ChunkData::of).collect()
                }))
            }
        }
    }
    merged
}

/// The samples of chunks in order of time. Of two at one time that of the earlier chunk stays, as in
/// Prometheus. `None` if one of them cannot be decoded.
fn samples_of(chunks: &[ChunkData]) -> Option<BTreeMap<Timestamp, Value>> {
    let mut samples = BTreeMap::new();
    // What is known of resets holds within a chunk, and others come between its samples.
    for chunk in chunks {
        for sample in SampleIterator::new(chunk.encoding, &chunk.bytes) {
            let (t, value) = sample.ok()?;
            samples.entry(t).or_insert(value);
        }
    }
    Some(samples)
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::matcher::MatchOp;
    use crate::tsdb::chunk_set::ChunkView;
    use crate::tsdb::head::batch::Batch;
    use crate::tsdb::head::tests::{TestDb, push};
    use crate::tsdb::options::DbOptions;

    /// However many are gathered at a time, series have the chunks that each has by itself.
    pub(crate) fn assert_gathered(querier: &Querier, selected: &[SelectedSeries]) {
        let (mut set, mut chunks) = (ChunkSet::default(), Vec::new());
        for bytes in [0, 2000, usize::MAX] {
            let mut rest = selected;
            while !rest.is_empty() {
                set.clear();
                querier.gather(&mut rest.iter(), bytes, &mut set).unwrap();
                set.load().unwrap();
                let (gathered, others) = rest.split_at(set.series_count());
                assert!(!gathered.is_empty() && (bytes > 0 || gathered.len() == 1));
                for (i, series) in gathered.iter().enumerate() {
                    chunks.clear();
                    querier.chunks(series, &mut chunks).unwrap();
                    let chunks = chunks.iter().map(|chunk| ChunkView {
                        mint: chunk.mint,
                        maxt: chunk.maxt,
                        encoding: chunk.encoding,
                        bytes: &chunk.bytes,
                    });
                    assert!(set.of(i).eq(chunks), "{:?}", series.labels);
                }
                rest = others;
            }
        }
    }

    /// `m{a="1"}` and `n{b="2"}` from 1000 to 2000, each time twice as far from the one before.
    fn two_series() -> TestDb {
        let test = TestDb::new(DbOptions::default());
        for (name, label, value) in [("m", "a", "1"), ("n", "b", "2")] {
            for t in [1000, 1200, 1600, 2000] {
                let mut batch = Batch::default();
                push(&test.db, &mut batch, &json!([["__name__", name], [label, value]]), t, 1);
                assert_eq!(test.db.append(&batch).unwrap().stored, 1);
            }
        }
        test
    }

    fn is(name: &str, value: &str) -> Matcher {
        Matcher::new(MatchOp::Equal, name.as_bytes(), value.as_bytes()).unwrap()
    }

    #[test]
    fn a_range_includes_both_its_ends_for_every_question() {
        let test = two_series();
        let m = [is("__name__", "m")];
        for (mint, maxt, is_there) in [
            (i64::MIN, i64::MAX, true),
            (2000, 2000, true),
            (2000, 9000, true),
            (2001, 9000, false),
            (0, 1000, true),
            (0, 999, false),
            (1300, 1500, true),
        ] {
            let querier = test.db.querier(mint, maxt);
            let context = format!("{mint} to {maxt}");
            let selected = querier.select(&m).unwrap();
            assert_eq!(selected.len(), usize::from(is_there), "{context}");
            let mut chunks = Vec::new();
            selected.iter().for_each(|series| querier.chunks(series, &mut chunks).unwrap());
            let ranges: Vec<_> = chunks.iter().map(|chunk| (chunk.mint, chunk.maxt)).collect();
            assert_eq!(ranges, if is_there { vec![(1000, 2000)] } else { vec![] }, "{context}");
            assert_eq!(!querier.label_names(&[]).unwrap().is_empty(), is_there, "{context}");
            assert_eq!(!querier.label_names(&m).unwrap().is_empty(), is_there, "{context}");
            assert_eq!(!querier.label_values(b"a", &[]).unwrap().is_empty(), is_there, "{context}");
            assert_eq!(!querier.label_values(b"a", &m).unwrap().is_empty(), is_there, "{context}");
        }
    }

    #[test]
    fn names_and_values_are_those_of_matching_series() {
        let test = two_series();
        let querier = test.db.querier(0, 3000);
        let texts = |found: Result<Vec<Vec<u8>>, ReadError>| -> Vec<String> {
            found.unwrap().into_iter().map(|text| String::from_utf8(text).unwrap()).collect()
        };
        assert_eq!(texts(querier.label_names(&[])), ["__name__", "a", "b"]);
        assert_eq!(texts(querier.label_names(&[is("__name__", "n")])), ["__name__", "b"]);
        assert_eq!(texts(querier.label_names(&[is("a", "")])), ["__name__", "b"]);
        assert_eq!(texts(querier.label_values(b"__name__", &[])), ["m", "n"]);
        assert_eq!(texts(querier.label_values(b"__name__", &[is("b", "2")])), ["n"]);
        assert_eq!(texts(querier.label_values(b"a", &[is("b", "2")])), [""; 0]);
        assert_eq!(texts(querier.label_values(b"none", &[])), [""; 0]);
    }

    #[test]
    fn every_series_is_selected_however_many_holds_of_the_locks_it_takes() {
        let test = TestDb::new(DbOptions::default());
        let mut batch = Batch::default();
        for i in 0..600 {
            push(&test.db, &mut batch, &json!([["__name__", "m"], ["i", i.to_string()]]), 1000, i);
        }
        assert_eq!(test.db.append(&batch).unwrap().stored, 600);
        let querier = test.db.querier(0, 3000);
        let selected = querier.select(&[is("__name__", "m")]).unwrap();
        let keys: BTreeSet<_> =
            selected.iter().map(|series| format!("{:?}", series.labels)).collect();
        assert_eq!((selected.len(), keys.len()), (600, 600));
        // Each has its own chunk.
        let mut values = BTreeSet::new();
        for series in &selected {
            let mut chunks = Vec::new();
            querier.chunks(series, &mut chunks).unwrap();
            let [chunk] = &chunks[..] else { panic!("{} chunks", chunks.len()) };
            values.insert(chunk.bytes.to_vec());
        }
        assert_eq!(values.len(), 600);
        assert_gathered(&querier, &selected);
    }

    #[test]
    fn a_series_comes_in_the_chunks_of_the_range_oldest_first() {
        let test = TestDb::new(DbOptions::default());
        let labels = json!([["__name__", "m"]]);
        for t in 0..300 {
            let mut batch = Batch::default();
            push(&test.db, &mut batch, &labels, t * 1000, 1);
            assert_eq!(test.db.append(&batch).unwrap().stored, 1);
        }
        let ranges = |mint, maxt| {
            let querier = test.db.querier(mint, maxt);
            let mut chunks = Vec::new();
            querier
                .select(&[])
                .unwrap()
                .iter()
                .for_each(|series| querier.chunks(series, &mut chunks).unwrap());
            chunks.iter().map(|chunk| (chunk.mint, chunk.maxt)).collect::<Vec<_>>()
        };
        let all = ranges(0, 299_000);
        assert!(all.len() > 2, "{all:?}");
        assert!(all.windows(2).all(|pair| pair[0].1 + 1000 == pair[1].0), "{all:?}");
        assert_eq!((all[0].0, all[all.len() - 1].1), (0, 299_000));
        assert_eq!(ranges(all[1].0, all[1].1), all[1..2]);
        assert_eq!(ranges(all[0].1, all[1].0), all[..2]);
        assert_eq!(ranges(all[0].1 + 1, all[1].0 - 1), []);
    }
}
