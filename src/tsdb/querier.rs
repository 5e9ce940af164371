//! Matchers to series to chunks.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::model::Timestamp;
use crate::model::key_table::Slot;
use crate::model::matcher::Matcher;
use crate::model::pairs::SeriesLabels;
use crate::model::stop;
use crate::tsdb::chunkenc::ENCODING_XOR;
use crate::tsdb::head::Head;

/// A reader over one time range of one database. Holds no lock between calls.
pub struct Querier {
    head: Arc<Head>,
    mint: Timestamp,
    maxt: Timestamp,
}

/// A series that a query selected.
#[derive(Clone)]
pub struct SelectedSeries {
    /// Labels as stored, without external labels.
    pub labels: SeriesLabels,
    pub(crate) slot: Slot,
}

impl SelectedSeries {
    /// What a query takes for it.
    pub fn bytes(&self) -> usize {
        size_of::<SelectedSeries>() + self.labels.bytes()
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
    pub(super) fn new(head: Arc<Head>, mint: Timestamp, maxt: Timestamp) -> Querier {
        Querier { head, mint, maxt }
    }

    /// Series that match all `matchers` and have a chunk in the range, in no particular order.
    pub fn select(&self, matchers: &[Matcher]) -> Vec<SelectedSeries> {
        let selected = self.head.select(matchers, self.mint, self.maxt);
        selected.into_iter().map(|(slot, labels)| SelectedSeries { labels, slot }).collect()
    }

    /// Appends the series' chunks that overlap the range to `chunks`, in order of time.
    pub fn chunks(&self, series: &SelectedSeries, chunks: &mut Vec<ChunkData>) {
        self.head.chunks(series.slot, self.mint, self.maxt, |chunk| {
            chunks.push(ChunkData {
                mint: chunk.mint,
                maxt: chunk.maxt,
                encoding: ENCODING_XOR,
                bytes: chunk.bytes,
            });
        });
    }

    /// Names of the labels of matching series (of all series without matchers), sorted.
    pub fn label_names(&self, matchers: &[Matcher]) -> Vec<Vec<u8>> {
        if !self.overlaps_head() {
            return Vec::new();
        }
        if matchers.is_empty() {
            return self.head.label_names();
        }
        let mut names = BTreeSet::new();
        for series in self.select(matchers).into_iter().take_while(|_| !stop::is_asked()) {
            for (name, _) in series.labels.iter() {
                if !names.contains(name) {
                    names.insert(name.to_vec());
                }
            }
        }
        names.into_iter().collect()
    }

    /// Values of one label over matching series, sorted.
    pub fn label_values(&self, name: &[u8], matchers: &[Matcher]) -> Vec<Vec<u8>> {
        if !self.overlaps_head() {
            return Vec::new();
        }
        if matchers.is_empty() {
            return self.head.label_values(name);
        }
        let mut values = BTreeSet::new();
        for series in self.select(matchers).into_iter().take_while(|_| !stop::is_asked()) {
            let value = series.labels.iter().find(|(label, _)| *label == name);
            if let Some((_, value)) = value
                && !values.contains(value)
            {
                values.insert(value.to_vec());
            }
        }
        values.into_iter().collect()
    }

    fn overlaps_head(&self) -> bool {
        self.head.time_range().is_some_and(|(mint, maxt)| mint <= self.maxt && self.mint <= maxt)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::matcher::MatchOp;
    use crate::tsdb::head::batch::Batch;
    use crate::tsdb::head::tests::{TestDb, push};
    use crate::tsdb::options::DbOptions;

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
            let selected = querier.select(&m);
            assert_eq!(selected.len(), usize::from(is_there), "{context}");
            let mut chunks = Vec::new();
            selected.iter().for_each(|series| querier.chunks(series, &mut chunks));
            let ranges: Vec<_> = chunks.iter().map(|chunk| (chunk.mint, chunk.maxt)).collect();
            assert_eq!(ranges, if is_there { vec![(1000, 2000)] } else { vec![] }, "{context}");
            assert_eq!(!querier.label_names(&[]).is_empty(), is_there, "{context}");
            assert_eq!(!querier.label_names(&m).is_empty(), is_there, "{context}");
            assert_eq!(!querier.label_values(b"a", &[]).is_empty(), is_there, "{context}");
            assert_eq!(!querier.label_values(b"a", &m).is_empty(), is_there, "{context}");
        }
    }

    #[test]
    fn names_and_values_are_those_of_matching_series() {
        let test = two_series();
        let querier = test.db.querier(0, 3000);
        let texts = |found: Vec<Vec<u8>>| -> Vec<String> {
            found.into_iter().map(|text| String::from_utf8(text).unwrap()).collect()
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
        let selected = querier.select(&[is("__name__", "m")]);
        let keys: BTreeSet<_> =
            selected.iter().map(|series| format!("{:?}", series.labels)).collect();
        assert_eq!((selected.len(), keys.len()), (600, 600));
        // Each has its own chunk.
        let mut values = BTreeSet::new();
        for series in &selected {
            let mut chunks = Vec::new();
            querier.chunks(series, &mut chunks);
            let [chunk] = &chunks[..] else { panic!("{} chunks", chunks.len()) };
            values.insert(chunk.bytes.to_vec());
        }
        assert_eq!(values.len(), 600);
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
            querier.select(&[]).iter().for_each(|series| querier.chunks(series, &mut chunks));
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
