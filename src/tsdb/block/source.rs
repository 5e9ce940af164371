//! A block as a source of a query.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use super::Block;
use super::chunks::RawChunk;
use crate::model::TimeRange;
use crate::model::labels::LabelIter;
use crate::model::matcher::Matcher;
use crate::model::stop;
use crate::tsdb::chunk_set::ChunkSet;
use crate::tsdb::error::ReadError;
use crate::tsdb::index::{BlockSeriesRef, ChunkMeta, SeriesReader};
use crate::tsdb::source::{Source, SourceChunk, SourceRef, SourceSeries};

impl Source for Block {
    fn time_range(&self) -> Option<TimeRange> {
        let range =
            TimeRange { mint: self.meta.min_time, maxt: self.meta.max_time.checked_sub(1)? };
        (range.mint <= range.maxt).then_some(range)
    }

    fn select(
        &self,
        matchers: &[Matcher],
        range: TimeRange,
        each: &mut dyn FnMut(SourceSeries<'_>) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        if !self.overlaps(range) {
            return Ok(());
        }
        let mut reader = self.index.series();
        for series in self.index.select(matchers)? {
            if stop::is_asked() {
                break;
            }
            reader.read(BlockSeriesRef(series))?;
            let deleted = self.tombstones.of(u64::from(series));
            if !reader.chunks().iter().any(|chunk| is_asked(chunk, range, deleted)) {
                continue;
            }
            let series = SourceRef(u64::from(series));
            if each(SourceSeries { series, key: reader.key()? }).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn chunks(
        &self,
        series: SourceRef,
        range: TimeRange,
        chunks: &mut Vec<SourceChunk>,
    ) -> Result<(), ReadError> {
        // Nobody has another reference than those that were given.
        let Ok(place) = u32::try_from(series.0) else { return Ok(()) };
        let deleted = self.tombstones.of(series.0);
        let mut reader = self.index.series();
        reader.read(BlockSeriesRef(place))?;
        for chunk in reader.chunks().iter().filter(|chunk| is_asked(chunk, range, deleted)) {
            let mut raw = RawChunk::default();
            self.chunks.read(chunk.chunk, &mut raw)?;
            let overlaps = |span: &&TimeRange| span.overlaps(chunk.mint, chunk.maxt);
            chunks.push(SourceChunk {
                mint: chunk.mint,
                maxt: chunk.maxt,
                encoding: raw.encoding,
                bytes: raw.bytes,
                deleted: deleted.iter().filter(overlaps).copied().collect(),
            });
        }
        Ok(())
    }

    fn label_names(
        &self,
        matchers: &[Matcher],
        range: TimeRange,
    ) -> Result<Vec<Vec<u8>>, ReadError> {
        if matchers.is_empty() {
            let names = self.index.label_names().filter(|_| self.overlaps(range));
            return Ok(names.map(<[u8]>::to_vec).collect());
        }
        let mut names = BTreeSet::new();
        self.select(matchers, range, &mut |series| {
            for (name, _) in LabelIter::of_canonical(series.key) {
                insert(&mut names, name);
            }
            ControlFlow::Continue(())
        })?;
        Ok(names.into_iter().collect())
    }

    fn label_values(
        &self,
        name: &[u8],
        matchers: &[Matcher],
        range: TimeRange,
    ) -> Result<Vec<Vec<u8>>, ReadError> {
        if !self.overlaps(range) {
            return Ok(Vec::new());
        }
        let mut values = BTreeSet::new();
        if matchers.is_empty() {
            let mut all = Vec::new();
            let mut entries = self.index.values(name);
            while let Some((value, _)) = entries.next()? {
                // An empty name is that of all series, and an empty value stands for none.
                if !name.is_empty() && !value.is_empty() {
                    all.push(value.to_vec());
                }
            }
            return Ok(all);
        }
        self.select(matchers, range, &mut |series| {
            let mut labels = LabelIter::of_canonical(series.key);
            if let Some((_, value)) = labels.find(|(label, _)| *label == name) {
                insert(&mut values, value);
            }
            ControlFlow::Continue(())
        })?;
        Ok(values.into_iter().collect())
    }
}

impl Block {
    /// Adds the chunks of a series that overlap the range to `chunks`, to be read later. Whether they
    /// are to be handed on as they are: samples of some may be deleted.
    pub fn gather(
        &self,
        series: SourceRef,
        range: TimeRange,
        reader: &mut SeriesReader<'_>,
        chunks: &mut ChunkSet,
    ) -> Result<bool, ReadError> {
        // Nobody has another reference than those that were given.
        let Ok(place) = u32::try_from(series.0) else { return Ok(true) };
        if !self.tombstones.of(series.0).is_empty() {
            return Ok(false);
        }
        reader.read(BlockSeriesRef(place))?;
        for chunk in reader.chunks().iter().filter(|chunk| range.overlaps(chunk.mint, chunk.maxt)) {
            self.chunks.gather(chunk, chunks)?;
        }
        Ok(true)
    }

    fn overlaps(&self, range: TimeRange) -> bool {
        self.time_range().is_some_and(|own| own.overlaps(range.mint, range.maxt))
    }
}

/// Whether a chunk has a part in the range, and is not deleted as a whole.
fn is_asked(chunk: &ChunkMeta, range: TimeRange, deleted: &[TimeRange]) -> bool {
    let is_deleted = |span: &TimeRange| span.mint <= chunk.mint && chunk.maxt <= span.maxt;
    range.overlaps(chunk.mint, chunk.maxt) && !deleted.iter().any(is_deleted)
}

fn insert(texts: &mut BTreeSet<Vec<u8>>, text: &[u8]) {
    if !texts.contains(text) {
        texts.insert(text.to_vec());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::disk::{Disk, SystemDisk, faulty::FaultyDisk};
    use crate::model::matcher::MatchOp::{self, Equal, NotEqual, NotRegex, Regex};
    use crate::tsdb::block::chunks::EncodedChunk;
    use crate::tsdb::block::meta::Compaction;
    use crate::tsdb::block::tests::{data_dir, recorded};
    use crate::tsdb::block::tombstones::Tombstones;
    use crate::tsdb::block::ulid::Ulid;
    use crate::tsdb::block::writer::BlockWriter;
    use crate::tsdb::chunkenc::xor::XorIterator;
    use crate::tsdb::file::PageCache;
    use std::collections::BTreeMap;
    use std::path::Path;

    const ALL: TimeRange = TimeRange { mint: i64::MIN, maxt: i64::MAX };

    type Labels = BTreeMap<String, String>;

    fn labels_of(key: &[u8]) -> Labels {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        LabelIter::of_canonical(key).map(|(name, value)| (text(name), text(value))).collect()
    }

    fn selected(block: &Block, matchers: &[Matcher], range: TimeRange) -> Vec<(SourceRef, Labels)> {
        let mut all = Vec::new();
        let mut each = |series: SourceSeries<'_>| {
            all.push((series.series, labels_of(series.key)));
            ControlFlow::Continue(())
        };
        block.select(matchers, range, &mut each).unwrap();
        all
    }

    fn matcher(op: MatchOp, name: &str, value: &str) -> Matcher {
        Matcher::new(op, name.as_bytes(), value.as_bytes()).unwrap()
    }

    fn open(disk: &dyn Disk, dir: &Path) -> Block {
        Block::open(disk, dir, PageCache::new(1 << 20)).unwrap()
    }

    #[test]
    fn a_query_of_a_block_with_tombstones_is_answered_as_by_prometheus() {
        let case = recorded("tombstones.json");
        let block = open(&SystemDisk, &data_dir().join(case["dir"].as_str().unwrap()));
        let mut found = Vec::new();
        for (series, labels) in selected(&block, &[], ALL) {
            let mut chunks = Vec::new();
            block.chunks(series, ALL, &mut chunks).unwrap();
            let mut times = Vec::new();
            for chunk in chunks {
                let samples = XorIterator::new(&chunk.bytes).map(|sample| sample.unwrap().0);
                let is_left = |t: &i64| !chunk.deleted.iter().any(|span| span.overlaps(*t, *t));
                times.extend(samples.filter(is_left));
            }
            found.push((labels["i"].clone(), times.len(), times[0], times[times.len() - 1]));
        }
        let queried: Vec<(String, usize, i64, i64)> =
            serde_json::from_value(case["queried"].clone()).unwrap();
        assert_eq!(found, queried);
    }

    /// Series `m` of every combination of labels, each with two chunks: `[1000, 1999]` and
    /// `[3000, 3999]`, the second only where `b` is there.
    fn sample_block() -> (FaultyDisk, Block, Vec<Labels>) {
        let disk = FaultyDisk::new();
        let parent = Path::new("/db");
        disk.create_dir_all(parent).unwrap();
        let mut all = Vec::new();
        for a in ["", "1", "2", "10", "x\ny"] {
            for b in ["", "1", "b"] {
                for c in ["", "c"] {
                    let labels = [("__name__", "m"), ("a", a), ("b", b), ("c", c)];
                    let labels = labels.into_iter().filter(|(_, value)| !value.is_empty());
                    all.push(labels.map(|(n, v)| (n.to_owned(), v.to_owned())).collect::<Labels>());
                }
            }
        }
        all.sort_by_key(|labels| {
            labels.iter().map(|(n, v)| (n.clone(), v.clone())).collect::<Vec<_>>()
        });
        let texts: BTreeSet<&String> = all.iter().flatten().flat_map(|(n, v)| [n, v]).collect();
        let ulid = Ulid::new(7, 7);
        let mut writer = BlockWriter::create(&disk, parent, ulid).unwrap();
        let symbols: BTreeMap<&String, u32> =
            texts.into_iter().map(|s| (s, writer.add_symbol(s.as_bytes()).unwrap())).collect();
        for labels in &all {
            let numbers: Vec<_> = labels.iter().map(|(n, v)| (symbols[n], symbols[v])).collect();
            let chunk =
                |mint| EncodedChunk { mint, maxt: mint + 999, encoding: 1, bytes: &[0, 2, 9] };
            let chunks = [chunk(1000), chunk(3000)];
            let count = if labels.contains_key("b") { 2 } else { 1 };
            writer.add_series(&numbers, &chunks[..count]).unwrap();
        }
        writer.finish(1000, 4000, Compaction::of_head(ulid)).unwrap().unwrap();
        let block = open(&disk, &parent.join(ulid.to_string()));
        (disk, block, all)
    }

    #[test]
    fn a_range_includes_both_its_ends_for_every_question() {
        let (_disk, block, all) = sample_block();
        assert_eq!(block.time_range(), Some(TimeRange { mint: 1000, maxt: 3999 }));
        let with_b = all.iter().filter(|labels| labels.contains_key("b")).count();
        for (mint, maxt, count, chunks_max) in [
            (i64::MIN, i64::MAX, all.len(), 2),
            (1999, 1999, all.len(), 1),
            (2000, 2999, 0, 0),
            (2000, 3000, with_b, 1),
            (3999, 9000, with_b, 1),
            (4000, 9000, 0, 0),
            (0, 999, 0, 0),
            (0, 1000, all.len(), 1),
        ] {
            let range = TimeRange { mint, maxt };
            let found = selected(&block, &[], range);
            assert_eq!(found.len(), count, "{range:?}");
            let mut chunks_of_one = 0;
            for (series, _) in found {
                let mut chunks = Vec::new();
                block.chunks(series, range, &mut chunks).unwrap();
                assert!(chunks.iter().all(|chunk| range.overlaps(chunk.mint, chunk.maxt)));
                assert!(chunks.iter().all(|chunk| chunk.bytes == [0, 2, 9]));
                chunks_of_one = chunks_of_one.max(chunks.len());
            }
            assert_eq!(chunks_of_one, chunks_max, "{range:?}");
            let m = [matcher(Equal, "__name__", "m")];
            assert_eq!(block.label_values(b"__name__", &m, range).unwrap().len(), count.min(1));
            assert_eq!(block.label_names(&m, range).unwrap().is_empty(), count == 0);
            // Without matchers a block is asked as a whole.
            let is_in = range.overlaps(1000, 3999);
            assert_eq!(!block.label_names(&[], range).unwrap().is_empty(), is_in);
            assert_eq!(!block.label_values(b"a", &[], range).unwrap().is_empty(), is_in);
        }
    }

    #[test]
    fn what_is_deleted_is_neither_selected_nor_given_whole() {
        let (disk, block, all) = sample_block();
        let series: Vec<_> = selected(&block, &[], ALL).into_iter().map(|found| found.0).collect();
        let span = |mint, maxt| TimeRange { mint, maxt };
        // All of the first, its first chunk of the second one with two, the middle of another's.
        let two: Vec<_> = (1..all.len()).filter(|i| all[*i].contains_key("b")).collect();
        let spans = vec![
            (series[0].0, span(0, 9000)),
            (series[two[0]].0, span(1000, 1999)),
            (series[two[1]].0, span(1500, 3500)),
        ];
        Tombstones::from_spans(spans).write(&disk, block.dir()).unwrap();
        let block = open(&disk, block.dir());
        let found = selected(&block, &[], ALL);
        assert_eq!(found.len(), all.len() - 1);
        assert!(found.iter().all(|found| found.0 != series[0]));
        let chunks = |i: usize| {
            let mut chunks = Vec::new();
            block.chunks(series[i], ALL, &mut chunks).unwrap();
            chunks.into_iter().map(|chunk| (chunk.mint, chunk.deleted)).collect::<Vec<_>>()
        };
        assert_eq!(chunks(0), []);
        assert_eq!(chunks(two[0]), [(3000, vec![])]);
        let cut = vec![span(1500, 3500)];
        assert_eq!(chunks(two[1]), [(1000, cut.clone()), (3000, cut)]);
        assert_eq!(selected(&block, &[], span(1000, 1999)).len(), all.len() - 2);
    }

    #[test]
    fn whoever_has_enough_breaks_off() {
        let (_disk, block, _) = sample_block();
        let mut count = 0;
        let mut each = |_: SourceSeries<'_>| {
            count += 1;
            if count == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        block.select(&[], ALL, &mut each).unwrap();
        assert_eq!(count, 3);
        let (waiting, stop) = stop::pair();
        drop(waiting);
        assert_eq!(stop.run(|| selected(&block, &[], ALL).len()), 0);
    }

    fn matchers() -> impl Strategy<Value = Vec<(MatchOp, &'static str, &'static str)>> {
        let op = prop::sample::select(vec![Equal, NotEqual, Regex, NotRegex]);
        let name = prop::sample::select(vec!["__name__", "a", "b", "c", "none", ""]);
        let value = prop::sample::select(vec![
            "", "1", "m", "b", "1|2", "1.*", ".*", ".+", "x.y", "[12]", "c?", "nothing", "1|",
        ]);
        prop::collection::vec((op, name, value), 0..4)
    }

    proptest! {
        #[test]
        fn every_question_is_answered_by_what_matches(asked in matchers()) {
            let (_disk, block, all) = sample_block();
            let matchers: Vec<_> =
                asked.iter().map(|(op, name, value)| matcher(*op, name, value)).collect();
            let matches = |labels: &&Labels| {
                matchers.iter().zip(&asked).all(|(matcher, (_, name, _))| {
                    let value = labels.get(*name).map_or("", String::as_str);
                    matcher.matches(value.as_bytes())
                })
            };
            let expected: Vec<_> = all.iter().filter(matches).collect();
            let found = selected(&block, &matchers, ALL);
            prop_assert_eq!(found.iter().map(|found| &found.1).collect::<Vec<_>>(), expected.clone());
            let text = |texts: Vec<Vec<u8>>| -> Vec<String> {
                texts.into_iter().map(|text| String::from_utf8(text).unwrap()).collect()
            };
            let names: BTreeSet<_> = expected.iter().flat_map(|labels| labels.keys()).collect();
            let found = text(block.label_names(&matchers, ALL).unwrap());
            prop_assert_eq!(found.iter().collect::<Vec<_>>(), names.into_iter().collect::<Vec<_>>());
            for name in ["a", "b", "none", ""] {
                let values: BTreeSet<_> =
                    expected.iter().filter_map(|labels| labels.get(name)).collect();
                let found = text(block.label_values(name.as_bytes(), &matchers, ALL).unwrap());
                prop_assert_eq!(
                    found.iter().collect::<Vec<_>>(), values.into_iter().collect::<Vec<_>>()
                );
            }
        }
    }
}
