use super::*;
use crate::disk::faulty::FaultyDisk;
use crate::metrics::Registry;
use crate::tsdb::wal::record;

fn nothing(loading: &Loading) -> BesideLog<'_> {
    let disk = Arc::new(FaultyDisk::new());
    let files = HeadChunkFiles::new(disk, "/db".as_ref(), 4096, &Registry::new(), "t");
    BesideLog {
        files: Arc::new(files),
        mapped: MappedChunks::default(),
        keeps_gaps: false,
        exemplars_max: 3,
        loading,
        known: None,
    }
}

#[test]
fn a_removed_series_that_is_announced_again_keeps_what_comes_then() {
    let series = |series_ref| {
        let mut bytes = Vec::new();
        record::begin_series(&mut bytes);
        let labels = [(&b"__name__"[..], &b"up"[..])];
        record::push_series(&mut bytes, HeadSeriesRef(series_ref), labels.into_iter());
        bytes
    };
    let samples = |series_ref, t| {
        let mut bytes = Vec::new();
        record::encode_samples(&mut bytes, [(HeadSeriesRef(series_ref), t, 1)]);
        bytes
    };
    let mut removal = vec![3, 0, 0, 0, 0, 0, 0, 0, 5];
    for lowest_byte in [0xff, 0xfe] {
        removal.push(lowest_byte);
        removal.extend([0xff; 8]);
        removal.push(1);
    }
    let log = [series(5), samples(5, 50), removal, samples(5, 60), series(9), samples(9, 40)];
    let read = |take: &mut dyn FnMut(Record<'_>)| {
        log.iter().for_each(|bytes| take(Record::parse(bytes).unwrap()));
        Ok(())
    };
    let ((), contents, report) =
        replay(Fingerprinter::random(), 0, 1000, nothing(&Loading::default()), read).unwrap();
    let state = contents.states.get(0);
    assert_eq!((state.last(), state.series_ref()), (Some((40, 1)), HeadSeriesRef(9)));
    assert!(!state.is_unlogged());
    assert_eq!((report.next_ref, report.unknown_refs), (10, 1));
}

#[test]
fn a_removed_series_is_removed_under_each_of_its_refs() {
    let refs = [5, 7, 1 << 30];
    let mut log = Vec::new();
    for series_ref in refs {
        let mut bytes = Vec::new();
        record::begin_series(&mut bytes);
        let labels = [(&b"__name__"[..], &b"up"[..])];
        record::push_series(&mut bytes, HeadSeriesRef(series_ref), labels.into_iter());
        log.push(bytes);
    }
    let mut removal = vec![3];
    removal.extend(7_u64.to_be_bytes());
    for lowest_byte in [0xff, 0xfe] {
        removal.push(lowest_byte);
        removal.extend([0xff; 8]);
        removal.push(1);
    }
    log.push(removal);
    for (t, series_ref) in refs.into_iter().enumerate() {
        let mut bytes = Vec::new();
        record::encode_samples(&mut bytes, [(HeadSeriesRef(series_ref), t as i64, 1)]);
        log.push(bytes);
    }
    let read = |take: &mut dyn FnMut(Record<'_>)| {
        log.iter().for_each(|bytes| take(Record::parse(bytes).unwrap()));
        Ok(())
    };
    let ((), contents, report) =
        replay(Fingerprinter::random(), 0, 1000, nothing(&Loading::default()), read).unwrap();
    assert_eq!(contents.states.get(0).last(), None);
    assert_eq!(report.unknown_refs, 3, "none of its refs is known any more");
}
