//! A head's samples of a span of time into a block.
//!
//! The block is what Prometheus would make of the same samples: the symbols are all of the head's, as
//! they are when the cut begins; chunks are taken as they lie, but for those with samples on both sides
//! of the span's end. One that is open keeps what it says of counter resets, which Prometheus loses.
//!
//! It is made a few hundred series at a time, and appends and queries go on between. What it takes: 12
//! bytes a label of the head that is like no other, 24 a series in the block, and what the writer
//! keeps, which is a byte or two a label of a series.

use crate::model::key_table::Slot;
use crate::model::pairs::{PairId, Text};
use crate::model::stop;
use crate::model::{TimeRange, Timestamp};
use crate::tsdb::block::chunks::EncodedChunk;
use crate::tsdb::block::writer::BlockWriter;
use crate::tsdb::chunk_set::{ChunkSet, ChunkView};
use crate::tsdb::chunkenc::samples::{Encoded, encode_if};
use crate::tsdb::error::WriteError;
use crate::tsdb::head::Head;
use crate::tsdb::head::catalog::Catalog;
use crate::tsdb::index::LabelSymbols;

/// Series read under one hold of the locks: some ten microseconds that an append may wait.
const SERIES_PER_HOLD: usize = 256;
/// Series whose states are asked of memory together.
const FETCHED_TOGETHER: usize = 32;
/// Series whose chunks are copied under one hold.
const COPIED_TOGETHER: usize = 32;

/// The span of a block: from its first time up to, and without, its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub start: Timestamp,
    pub end: Timestamp,
}

/// Labels in the order of the block.
struct LabelOrder {
    /// By number of the pair: its place among all pairs as sorted, from 1 on, and its symbols.
    places: Vec<u32>,
    symbols: Vec<LabelSymbols>,
}

/// A series in the order of the block, judged by four of its labels.
#[derive(Clone, Copy)]
struct Sorted {
    places: u128,
    slot: Slot,
}

impl Head {
    /// Writes the samples of the span into the block, the floor having risen to its end. Whether all
    /// were written: work that was [asked to stop](stop) was not.
    pub fn write_block(
        &self,
        writer: &mut BlockWriter<'_>,
        span: Span,
    ) -> Result<bool, WriteError> {
        let catalog = self.catalog();
        // Later ones have no sample in the span.
        let mut series = self.series_in(&catalog, span);
        let order = LabelOrder::write(&catalog, writer)?;
        order.sort(&catalog, &mut series, 0);
        let mut chunks = ChunkSet::default();
        for some in series.chunks(COPIED_TOGETHER) {
            if stop::is_asked() {
                return Ok(false);
            }
            self.write_series(&catalog, &order, some, span, &mut chunks, writer)?;
        }
        Ok(!stop::is_asked())
    }

    fn series_in(&self, catalog: &Catalog, span: Span) -> Vec<Sorted> {
        let mut series = Vec::new();
        for slots in catalog.postings.all().chunks(SERIES_PER_HOLD) {
            let labels = catalog.labels();
            let states = self.states.read();
            // One that is being made has no labels yet, and no state.
            let is_made = |slot: &Slot| labels.get(*slot).is_some();
            let made: Vec<_> = slots.iter().copied().filter(is_made).collect();
            for some in made.chunks(FETCHED_TOGETHER) {
                states.fetch(some.iter().copied());
                let has_samples =
                    |slot: &&Slot| states.get(**slot).overlaps(span.start, span.end - 1);
                series.extend(some.iter().filter(has_samples).map(|slot| Sorted::of(*slot)));
            }
        }
        series
    }

    fn write_series(
        &self,
        catalog: &Catalog,
        order: &LabelOrder,
        series: &[Sorted],
        span: Span,
        chunks: &mut ChunkSet,
        writer: &mut BlockWriter<'_>,
    ) -> Result<(), WriteError> {
        self.gather_all(series, span, chunks);
        chunks.load()?;
        if stop::is_asked() {
            // Not all was read.
            return Ok(());
        }
        let mut symbols = Vec::new();
        for (i, series) in series.iter().enumerate() {
            let kept: Vec<_> = chunks.of(i).filter_map(|chunk| Kept::of(chunk, span)).collect();
            if kept.is_empty() {
                continue;
            }
            let encoded: Vec<_> = kept.iter().map(Kept::encoded).collect();
            symbols.clear();
            let labels = catalog.labels();
            let pairs = labels.get(series.slot).unwrap_or(&[]);
            symbols.extend(pairs.iter().map(|pair| order.symbols[pair.index()]));
            drop(labels);
            writer.add_series(&symbols, &encoded)?;
        }
        Ok(())
    }

    /// The chunks of some series that the span meets, in place of what is there.
    fn gather_all(&self, series: &[Sorted], span: Span, chunks: &mut ChunkSet) {
        let range = TimeRange { mint: span.start, maxt: span.end - 1 };
        chunks.clear();
        let states = self.states.read();
        states.fetch(series.iter().map(|series| series.slot));
        for series in series {
            states.gather(series.slot, range, chunks);
            chunks.end_series();
        }
    }
}

/// What a span has of a chunk.
enum Kept<'c> {
    Whole(ChunkView<'c>),
    /// The chunk goes beyond the span.
    Part(Encoded),
}

impl<'c> Kept<'c> {
    fn of(chunk: ChunkView<'c>, span: Span) -> Option<Kept<'c>> {
        if span.start <= chunk.mint && chunk.maxt < span.end {
            return Some(Kept::Whole(chunk));
        }
        let is_kept = |t| (span.start..span.end).contains(&t);
        let (kept, _) = encode_if(chunk.encoding, chunk.bytes, is_kept);
        kept.map(|kept| Kept::Part(kept.finish()))
    }

    fn encoded(&self) -> EncodedChunk<'_> {
        match *self {
            Kept::Whole(ChunkView { mint, maxt, encoding, bytes }) => {
                EncodedChunk { mint, maxt, encoding, bytes }
            }
            Kept::Part(Encoded { mint, maxt, encoding, ref bytes }) => {
                EncodedChunk { mint, maxt, encoding, bytes }
            }
        }
    }
}

impl LabelOrder {
    /// Gives the block all symbols of the catalog.
    fn write(catalog: &Catalog, writer: &mut BlockWriter<'_>) -> Result<LabelOrder, WriteError> {
        let names = catalog.postings.sorted_pairs();
        let pair_count = names.iter().map(|(_, values)| values.len()).sum::<usize>();
        let mut order =
            LabelOrder { places: vec![0; pair_count], symbols: vec![(0, 0); pair_count] };
        let pairs = names.iter().flat_map(|(_, values)| values);
        for (place, (_, pair)) in (1..).zip(pairs) {
            *grown(&mut order.places, pair.index()) = place;
        }
        // Names and values are symbols alike; one text is one symbol.
        let mut texts: Vec<(&Text, Use)> = Vec::with_capacity(pair_count + names.len());
        for (i, (name, values)) in names.iter().enumerate() {
            texts.push((name, Use::Name(i)));
            texts.extend(values.iter().map(|(value, pair)| (value, Use::Value(*pair))));
        }
        texts.sort_unstable_by(|(a, _), (b, _)| a.as_bytes().cmp(b.as_bytes()));
        let mut number = writer.add_symbol(b"")?;
        let mut last: &[u8] = b"";
        let mut name_symbols = vec![0; names.len()];
        for (text, used) in texts {
            if text.as_bytes() != last {
                last = text.as_bytes();
                number = writer.add_symbol(last)?;
            }
            match used {
                Use::Name(i) => name_symbols[i] = number,
                Use::Value(pair) => grown(&mut order.symbols, pair.index()).1 = number,
            }
        }
        for ((_, values), name) in names.iter().zip(name_symbols) {
            values.iter().for_each(|(_, pair)| order.symbols[pair.index()].0 = name);
        }
        Ok(order)
    }

    /// Sorts series that have their first `skipped` labels in common by the others.
    fn sort(&self, catalog: &Catalog, series: &mut [Sorted], skipped: usize) {
        const LABELS: usize = 4;
        for series in series.chunks_mut(SERIES_PER_HOLD) {
            let labels = catalog.labels();
            for series in series {
                let pairs = labels.get(series.slot).unwrap_or(&[]);
                let mut next = pairs.get(skipped..).unwrap_or(&[]).iter();
                // Where there is no label any more, there is 0: the shorter series comes first.
                series.places = (0..LABELS).fold(0, |places, _| {
                    let place = next.next().map_or(0, |pair| self.places[pair.index()]);
                    places << u32::BITS | u128::from(place)
                });
            }
        }
        series.sort_unstable_by_key(|series| series.places);
        for same in series.chunk_by_mut(|a, b| a.places == b.places) {
            // All labels are compared when the last of four places is empty; two series are never the
            // same.
            if same.len() > 1 && same[0].places as u32 != 0 {
                self.sort(catalog, same, skipped + LABELS);
            }
        }
    }
}

/// What a text is in a catalog.
#[derive(Clone, Copy)]
enum Use {
    Name(usize),
    Value(PairId),
}

impl Sorted {
    fn of(slot: Slot) -> Sorted {
        Sorted { places: 0, slot }
    }
}

/// The item at `index`, the list made longer if need be: pairs that no series has leave gaps.
fn grown<T: Clone + Default>(list: &mut Vec<T>, index: usize) -> &mut T {
    if index >= list.len() {
        list.resize(index + 1, T::default());
    }
    &mut list[index]
}
