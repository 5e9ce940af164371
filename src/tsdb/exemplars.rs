//! Exemplars of a tenant: the newest of all its series, in memory and in the log.
//!
//! They stand in a ring in the order in which they came, so that the oldest makes room for the next;
//! those of a series are found by its ref, in the order of their times. The rules are Prometheus'
//! (3.14): what a series has as its newest is success, what is older is refused but inside the window
//! for what comes out of order, and there only the first of a time is kept. Of two with one time and
//! one value Prometheus takes the second if its labels hash higher, and refuses it otherwise; here that
//! one is passed over, as no retry could ever store it.

use std::collections::{HashMap, VecDeque, hash_map};

use parking_lot::{RwLock, RwLockReadGuard};
use rapidhash::fast::RandomState;
use xxhash_rust::xxh64::Xxh64;

use crate::metrics::{Counter, Gauge, Registry};
use crate::model::key_table::Slot;
use crate::model::labels::{LabelIter, SeriesKey};
use crate::model::matcher::Matcher;
use crate::model::{HeadSeriesRef, Timestamp, stop};

/// What is stored of an exemplar. Two are the same if all of it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exemplar {
    pub t: Timestamp,
    /// Bits of the value.
    pub v: u64,
    /// In the encoding of a key, but in the order in which they were sent.
    pub labels: Box<[u8]>,
}

/// The same, borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExemplarRef<'e> {
    pub t: Timestamp,
    pub v: u64,
    pub labels: &'e [u8],
}

impl Exemplar {
    fn borrowed(&self) -> ExemplarRef<'_> {
        ExemplarRef { t: self.t, v: self.v, labels: &self.labels }
    }
}

impl ExemplarRef<'_> {
    pub fn to_owned(self) -> Exemplar {
        Exemplar { t: self.t, v: self.v, labels: self.labels.into() }
    }
}

/// Exemplars of one series, in the order of their times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeriesExemplars {
    pub key: SeriesKey,
    pub exemplars: Vec<Exemplar>,
}

impl SeriesExemplars {
    /// What it takes, roughly.
    pub fn bytes(&self) -> usize {
        let one = |exemplar: &Exemplar| size_of::<Exemplar>() + exemplar.labels.len();
        size_of::<SeriesExemplars>() + self.exemplars.iter().map(one).sum::<usize>()
    }
}

/// What is to become of an exemplar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Store,
    /// It is stored, or another one that stands for it.
    Stored,
    /// It is older than the newest of its series.
    OutOfOrder,
}

/// The storage of one head. Its lock is taken while others are held, and none under it.
pub struct Exemplars {
    /// How many are kept at most.
    max: usize,
    /// How far behind the newest one of its series an exemplar may be, in milliseconds.
    window: i64,
    ring: RwLock<Ring>,
    metrics: ExemplarMetrics,
}

struct Ring {
    entries: Vec<Entry>,
    /// Where the next one goes once there are as many as may be.
    next: usize,
    series: HashMap<HeadSeriesRef, SeriesEntries, RandomState>,
}

struct Entry {
    series_ref: HeadSeriesRef,
    exemplar: Exemplar,
}

struct SeriesEntries {
    key: SeriesKey,
    /// Places in the ring, in the order of their exemplars' times.
    places: VecDeque<u32>,
}

/// Series that are looked at under one hold of the lock: some ten microseconds.
const SERIES_PER_HOLD: usize = 256;

impl Exemplars {
    /// At most `max` exemplars, which may be none.
    pub fn new(max: usize, window: i64, registry: &Registry, tenant: &str) -> Exemplars {
        let metrics = ExemplarMetrics::new(registry, tenant);
        // Places are of four bytes.
        let max = max.min(u32::MAX as usize);
        metrics.max.set(max as f64);
        let ring = Ring { entries: Vec::new(), next: 0, series: HashMap::default() };
        Exemplars { max, window, ring: RwLock::new(ring), metrics }
    }

    /// Whether any are kept.
    pub fn is_on(&self) -> bool {
        self.max > 0
    }

    /// What exemplars are judged by. Nothing is stored while it is held.
    pub fn judge(&self) -> Judge<'_> {
        Judge { window: self.window, ring: self.ring.read() }
    }

    /// Counts what was refused.
    pub fn count_refused(&self, count: u64) {
        self.metrics.out_of_order.add(count);
    }

    /// Stores exemplars that were logged, in the order of the log, each judged again by what is stored
    /// by then. `key` tells what the series of a slot is called, and may take locks. One thread at a
    /// time stores: the one that holds the log.
    pub fn add(
        &self,
        exemplars: impl IntoIterator<Item = (HeadSeriesRef, Slot, Exemplar)>,
        key: impl Fn(Slot) -> SeriesKey,
    ) {
        if !self.is_on() {
            return;
        }
        let mut stored = 0;
        for (series_ref, slot, exemplar) in exemplars {
            let known = self.ring.read().key_of(series_ref);
            let key = known.unwrap_or_else(|| key(slot));
            let mut ring = self.ring.write();
            stored += u64::from(ring.add((series_ref, key), exemplar, self.max, self.window));
        }
        self.metrics.appended.add(stored);
        self.show(&self.ring.read());
    }

    /// Exemplars of the series that all matchers of one of the sets select, with times in
    /// `[mint, maxt]`, in the order of the series' labels. `hold` is asked before anything is copied,
    /// with the bytes that it takes. Ends early if it is [asked to](stop).
    pub fn select<E>(
        &self,
        matchers: &[Vec<Matcher>],
        (mint, maxt): (Timestamp, Timestamp),
        mut hold: impl FnMut(usize) -> Result<(), E>,
    ) -> Result<Vec<SeriesExemplars>, E> {
        let meets: Vec<(HeadSeriesRef, SeriesKey)> = {
            let ring = self.ring.read();
            hold(ring.series.len() * size_of::<(HeadSeriesRef, SeriesKey)>())?;
            let meeting = ring.series.iter().filter(|(_, series)| {
                let time = |place: Option<&u32>| place.map(|place| ring.at(*place).t);
                time(series.places.front()).is_some_and(|oldest| oldest <= maxt)
                    && time(series.places.back()).is_some_and(|newest| newest >= mint)
            });
            meeting.map(|(series_ref, series)| (*series_ref, series.key.clone())).collect()
        };
        let mut found: Vec<SeriesExemplars> = Vec::new();
        for chunk in meets.chunks(SERIES_PER_HOLD) {
            if stop::is_asked() {
                break;
            }
            let matching = chunk.iter().filter(|(_, key)| is_selected(key, matchers));
            let matching: Vec<_> = matching.collect();
            let ring = self.ring.read();
            for (series_ref, key) in matching {
                let Some(series) = ring.series.get(series_ref) else { continue };
                let all = series.places.iter().map(|place| ring.at(*place));
                let inside = all.filter(|exemplar| (mint..=maxt).contains(&exemplar.t));
                hold(inside.clone().map(|one| size_of::<Exemplar>() + one.labels.len()).sum())?;
                let exemplars: Vec<_> = inside.cloned().collect();
                if !exemplars.is_empty() {
                    found.push(SeriesExemplars { key: key.clone(), exemplars });
                }
            }
        }
        found.sort_by(|a, b| a.key.labels().cmp(b.key.labels()));
        // A series that was forgotten and came back has another ref than before.
        found.dedup_by(|later, earlier| {
            let is_same = later.key == earlier.key;
            if is_same {
                earlier.exemplars.append(&mut later.exemplars);
                earlier.exemplars.sort_by_key(|exemplar| exemplar.t);
            }
            is_same
        });
        Ok(found)
    }

    /// Some of what is kept, behind the first `first` in the order in which they came, with the refs of
    /// their series. None come meanwhile.
    pub fn in_order_of_arrival(&self, first: usize, max: usize) -> Vec<(HeadSeriesRef, Exemplar)> {
        let ring = self.ring.read();
        let (newer, older) = ring.entries.split_at(ring.next.min(ring.entries.len()));
        let entries = older.iter().chain(newer).skip(first).take(max);
        entries.map(|entry| (entry.series_ref, entry.exemplar.clone())).collect()
    }

    fn show(&self, ring: &Ring) {
        self.metrics.in_storage.set(ring.entries.len() as f64);
        self.metrics.series_in_storage.set(ring.series.len() as f64);
        let oldest = ring.entries.get(ring.next).map_or(0, |entry| entry.exemplar.t);
        self.metrics.last_timestamp.set(oldest as f64 / 1e3);
    }
}

/// See [`Exemplars::judge`].
pub struct Judge<'e> {
    window: i64,
    ring: RwLockReadGuard<'e, Ring>,
}

impl Judge<'_> {
    /// Judges an exemplar by the newest one of its series, that which was accepted before it and is not
    /// stored yet included.
    pub fn judge(
        &self,
        series_ref: HeadSeriesRef,
        exemplar: ExemplarRef<'_>,
        accepted: Option<ExemplarRef<'_>>,
    ) -> Verdict {
        let newest = self.ring.newest(series_ref).map(Exemplar::borrowed);
        // `None` comes before all times.
        let newest =
            [newest, accepted].into_iter().max_by_key(|one| one.map(|one| one.t)).flatten();
        newest.map_or(Verdict::Store, |newest| judge(exemplar, newest, self.window))
    }
}

/// By the newest exemplar of the series.
fn judge(exemplar: ExemplarRef<'_>, newest: ExemplarRef<'_>, window: i64) -> Verdict {
    let ExemplarRef { t, v, labels } = exemplar;
    if exemplar == newest {
        return Verdict::Stored;
    }
    if t < newest.t {
        let is_inside = t > newest.t.saturating_sub(window);
        return if is_inside { Verdict::Store } else { Verdict::OutOfOrder };
    }
    if t > newest.t {
        return Verdict::Store;
    }
    let (value, newest_value) = (f64::from_bits(v), f64::from_bits(newest.v));
    if value < newest_value {
        return Verdict::OutOfOrder;
    }
    match value == newest_value && hash(labels) <= hash(newest.labels) {
        true => Verdict::Stored,
        false => Verdict::Store,
    }
}

/// As Prometheus hashes labels: `(name 0xFF value 0xFF)*`.
fn hash(labels: &[u8]) -> u64 {
    let mut hash = Xxh64::new(0);
    for (name, value) in LabelIter::of_canonical(labels) {
        for bytes in [name, b"\xff", value, b"\xff"] {
            hash.update(bytes);
        }
    }
    hash.digest()
}

fn is_selected(key: &SeriesKey, matchers: &[Vec<Matcher>]) -> bool {
    let value_of = |name: &[u8]| {
        let found = key.labels().find(|(other, _)| *other == name);
        found.map_or(&[][..], |(_, value)| value)
    };
    matchers.iter().any(|set| set.iter().all(|matcher| matcher.matches(value_of(&matcher.name))))
}

impl Ring {
    fn at(&self, place: u32) -> &Exemplar {
        &self.entries[place as usize].exemplar
    }

    fn newest(&self, series_ref: HeadSeriesRef) -> Option<&Exemplar> {
        let newest = self.series.get(&series_ref)?.places.back()?;
        Some(self.at(*newest))
    }

    fn key_of(&self, series_ref: HeadSeriesRef) -> Option<SeriesKey> {
        self.series.get(&series_ref).map(|series| series.key.clone())
    }

    /// Whether it was stored. At least one may be kept.
    fn add(
        &mut self,
        (series_ref, key): (HeadSeriesRef, SeriesKey),
        exemplar: Exemplar,
        max: usize,
        window: i64,
    ) -> bool {
        let Ring { entries, next, series } = self;
        let own = series.entry(series_ref);
        let own = own.or_insert_with(|| SeriesEntries { key, places: VecDeque::new() });
        let at = |place: u32| &entries[place as usize].exemplar;
        let mut rank = own.places.len();
        if let Some(newest) = own.places.back().map(|newest| at(*newest)) {
            if judge(exemplar.borrowed(), newest.borrowed(), window) != Verdict::Store {
                return false;
            }
            if exemplar.t < newest.t {
                rank = own.places.partition_point(|place| at(*place).t <= exemplar.t);
                // What came out of order is taken for the one of its time that is there.
                if rank > 0 && at(own.places[rank - 1]).t == exemplar.t {
                    return false;
                }
            }
        }
        let entry = Entry { series_ref, exemplar };
        if entries.len() < max {
            // Places are of four bytes, and no more are made.
            own.places.insert(rank, entries.len() as u32);
            entries.push(entry);
            return true;
        }
        let place = *next as u32;
        *next = (*next + 1) % max;
        let gone = std::mem::replace(&mut entries[place as usize], entry).series_ref;
        if gone == series_ref {
            let is_before = own.forget(place).is_some_and(|gone| gone < rank);
            own.places.insert(rank - usize::from(is_before), place);
            return true;
        }
        own.places.insert(rank, place);
        if let hash_map::Entry::Occupied(mut other) = series.entry(gone) {
            other.get_mut().forget(place);
            if other.get().places.is_empty() {
                other.remove();
            }
        }
        true
    }
}

impl SeriesEntries {
    /// Takes a place out, and tells its rank.
    fn forget(&mut self, place: u32) -> Option<usize> {
        // Mostly it is the first.
        let rank = self.places.iter().position(|other| *other == place)?;
        self.places.remove(rank);
        Some(rank)
    }
}

struct ExemplarMetrics {
    appended: Counter,
    in_storage: Gauge,
    series_in_storage: Gauge,
    last_timestamp: Gauge,
    max: Gauge,
    out_of_order: Counter,
}

impl ExemplarMetrics {
    fn new(registry: &Registry, tenant: &str) -> ExemplarMetrics {
        let gauge = |name, help| registry.gauge_vec(name, help, &["tenant"]).with(&[tenant]);
        let counter = |name, help| registry.counter_vec(name, help, &["tenant"]).with(&[tenant]);
        ExemplarMetrics {
            appended: counter(
                "prometheus_tsdb_exemplar_exemplars_appended_total",
                "Total number of appended exemplars.",
            ),
            in_storage: gauge(
                "prometheus_tsdb_exemplar_exemplars_in_storage",
                "Number of exemplars currently in circular storage.",
            ),
            series_in_storage: gauge(
                "prometheus_tsdb_exemplar_series_with_exemplars_in_storage",
                "Number of series with exemplars currently in circular storage.",
            ),
            last_timestamp: gauge(
                "prometheus_tsdb_exemplar_last_exemplars_timestamp_seconds",
                "The timestamp of the exemplar that came first of those in circular storage.",
            ),
            max: gauge(
                "prometheus_tsdb_exemplar_max_exemplars",
                "Total number of exemplars the exemplar storage can store.",
            ),
            out_of_order: counter(
                "prometheus_tsdb_exemplar_out_of_order_exemplars_total",
                "Total number of out of order exemplar ingestion failed attempts.",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::labels::{TAG_FIELD_1, push_label};
    use crate::model::matcher::MatchOp;
    use proptest::prelude::*;

    fn exemplar(t: Timestamp, v: f64, trace: &str) -> Exemplar {
        let mut labels = Vec::new();
        push_label(&mut labels, TAG_FIELD_1, b"trace_id", trace.as_bytes());
        Exemplar { t, v: v.to_bits(), labels: labels.into() }
    }

    fn key(slot: Slot) -> SeriesKey {
        let mut key = Vec::new();
        push_label(&mut key, TAG_FIELD_1, b"__name__", b"m");
        push_label(&mut key, TAG_FIELD_1, b"n", slot.to_string().as_bytes());
        SeriesKey::from_canonical(&key)
    }

    fn storage(max: usize, window: i64) -> Exemplars {
        Exemplars::new(max, window, &Registry::new(), "t")
    }

    impl Exemplars {
        /// Adds an exemplar of a series whose slot is its ref, as an append does it.
        fn put(&self, series: u32, exemplar: Exemplar) -> Verdict {
            let series_ref = HeadSeriesRef(series.into());
            let verdict = self.judge().judge(series_ref, exemplar.borrowed(), None);
            if verdict == Verdict::Store {
                self.add([(series_ref, series, exemplar)], key);
            }
            verdict
        }

        fn all(&self) -> Vec<SeriesExemplars> {
            let named = Matcher::new(MatchOp::Equal, b"__name__", b"m").unwrap();
            let all = (Timestamp::MIN, Timestamp::MAX);
            self.select(&[vec![named]], all, |_| Ok::<_, ()>(())).unwrap()
        }

        fn of(&self, series: u32) -> Vec<Exemplar> {
            let found = self.all().into_iter().find(|found| found.key == key(series));
            found.map_or_else(Vec::new, |found| found.exemplars)
        }
    }

    #[test]
    fn exemplars_are_judged_by_the_newest_of_their_series() {
        let storage = storage(10, 0);
        assert_eq!(storage.put(1, exemplar(10, 1.0, "a")), Verdict::Store);
        assert_eq!(storage.put(1, exemplar(10, 1.0, "a")), Verdict::Stored);
        assert_eq!(storage.put(1, exemplar(9, 1.0, "a")), Verdict::OutOfOrder);
        assert_eq!(storage.put(2, exemplar(9, 1.0, "a")), Verdict::Store);
        assert_eq!(storage.put(1, exemplar(10, 0.5, "b")), Verdict::OutOfOrder);
        assert_eq!(storage.put(1, exemplar(10, 2.0, "b")), Verdict::Store);
        let nan = exemplar(11, f64::NAN, "c");
        assert_eq!(storage.put(1, nan.clone()), Verdict::Store);
        assert_eq!(storage.put(1, nan), Verdict::Stored);
        // One of the two hashes higher.
        let [a, b] = [exemplar(12, 1.0, "a"), exemplar(12, 1.0, "b")];
        let verdicts = [[&a, &b], [&b, &a]]
            .map(|[first, second]| judge(second.borrowed(), first.borrowed(), 0));
        assert!(verdicts.contains(&Verdict::Store) && verdicts.contains(&Verdict::Stored));
        assert_eq!(storage.of(1).len(), 3);
    }

    #[test]
    fn what_was_accepted_before_counts_as_the_newest() {
        let storage = storage(10, 0);
        storage.put(1, exemplar(10, 1.0, "a"));
        let accepted = exemplar(20, 1.0, "b");
        let judged = |t| {
            let exemplar = exemplar(t, 1.0, "c");
            storage.judge().judge(HeadSeriesRef(1), exemplar.borrowed(), Some(accepted.borrowed()))
        };
        assert_eq!(judged(15), Verdict::OutOfOrder);
        assert_eq!(judged(21), Verdict::Store);
        let accepted = accepted.borrowed();
        let same = storage.judge().judge(HeadSeriesRef(1), accepted, Some(accepted));
        assert_eq!(same, Verdict::Stored);
    }

    #[test]
    fn inside_the_window_the_first_of_a_time_is_kept() {
        let storage = storage(10, 5);
        for t in [10, 20, 16, 18] {
            assert_eq!(storage.put(1, exemplar(t, 1.0, "a")), Verdict::Store, "{t}");
        }
        assert_eq!(storage.put(1, exemplar(15, 1.0, "a")), Verdict::OutOfOrder);
        storage.put(1, exemplar(18, 9.0, "later"));
        let times: Vec<_> = storage.of(1).iter().map(|one| (one.t, one.v)).collect();
        let one = 1.0_f64.to_bits();
        assert_eq!(times, [(10, one), (16, one), (18, one), (20, one)]);
    }

    #[test]
    fn none_are_kept_where_none_may_be() {
        let storage = storage(0, 0);
        assert!(!storage.is_on());
        storage.put(1, exemplar(10, 1.0, "a"));
        assert_eq!(storage.all(), []);
    }

    #[test]
    fn matchers_and_times_select() {
        let storage = storage(10, 0);
        for (series, t) in [(1, 10), (1, 20), (2, 30), (3, 5)] {
            storage.put(series, exemplar(t, 1.0, "a"));
        }
        let matcher = |name: &str, value: &str| {
            Matcher::new(MatchOp::Regex, name.as_bytes(), value.as_bytes()).unwrap()
        };
        let select = |sets: &[Vec<Matcher>], mint, maxt| {
            let found = storage.select(sets, (mint, maxt), |_| Ok::<_, ()>(())).unwrap();
            let times = |one: SeriesExemplars| one.exemplars.into_iter().map(|one| one.t);
            found.into_iter().flat_map(times).collect::<Vec<_>>()
        };
        let first_two = [vec![matcher("n", "1")], vec![matcher("n", "2"), matcher("x", "")]];
        assert_eq!(select(&first_two, 0, 100), [10, 20, 30]);
        assert_eq!(select(&first_two, 11, 30), [20, 30]);
        assert_eq!(select(&first_two, 20, 10), [0; 0]);
        assert_eq!(select(&[vec![matcher("n", "1"), matcher("x", ".+")]], 0, 100), [0; 0]);
        assert_eq!(select(&[], 0, 100), [0; 0]);
        let refused = storage.select(&first_two, (0, 100), Err);
        assert!(refused.unwrap_err() > 0);
    }

    #[test]
    fn they_are_given_in_the_order_in_which_they_came() {
        let storage = storage(3, 0);
        for t in 1..=5 {
            storage.put(1, exemplar(t, 1.0, "a"));
        }
        let times = |first, max| {
            let given = storage.in_order_of_arrival(first, max).into_iter();
            given.map(|(_, one)| one.t).collect::<Vec<_>>()
        };
        assert_eq!(times(0, 9), [3, 4, 5]);
        assert_eq!(times(1, 1), [4]);
        assert_eq!(times(3, 9), [0; 0]);
    }

    #[test]
    fn a_series_that_came_back_is_one() {
        let storage = storage(10, 0);
        storage.add([(HeadSeriesRef(1), 7, exemplar(10, 1.0, "a"))], key);
        storage.add([(HeadSeriesRef(2), 7, exemplar(5, 1.0, "b"))], key);
        let times: Vec<_> = storage.of(7).iter().map(|one| one.t).collect();
        assert_eq!(times, [5, 10]);
        assert_eq!(storage.all().len(), 1);
    }

    /// What is stored, in the order in which it came, without a ring or lists.
    fn model(max: usize, window: i64, sent: &[(u32, Exemplar)]) -> Vec<(u32, Exemplar)> {
        let mut stored: Vec<(u32, Exemplar)> = Vec::new();
        for (series, one) in sent {
            // The last to come is the newest of those of a time.
            let own = stored.iter().filter(|(other, _)| other == series).map(|(_, other)| other);
            if let Some(newest) = own.clone().max_by_key(|other| other.t) {
                let is_taken = one.t < newest.t && own.clone().any(|other| other.t == one.t);
                let verdict = judge(one.borrowed(), newest.borrowed(), window);
                if verdict != Verdict::Store || is_taken {
                    continue;
                }
            }
            if stored.len() == max {
                stored.remove(0);
            }
            stored.push((*series, one.clone()));
        }
        stored
    }

    proptest! {
        #[test]
        fn the_newest_to_come_are_kept(
            max in 1_usize..8,
            window in 0_i64..6,
            sent in prop::collection::vec((0_u32..3, 0_i64..12, 0_u8..2, "[ab]"), 0..60),
        ) {
            let storage = storage(max, window);
            let sent: Vec<_> = sent
                .into_iter()
                .map(|(series, t, v, trace)| (series, exemplar(t, v.into(), &trace)))
                .collect();
            for (series, one) in &sent {
                storage.put(*series, one.clone());
            }
            let expected = model(max, window, &sent);
            for series in 0..3 {
                let of = expected.iter().filter(|(other, _)| *other == series);
                let mut of: Vec<_> = of.map(|(_, one)| one.clone()).collect();
                of.sort_by_key(|one| one.t);
                prop_assert_eq!(storage.of(series), of, "series {}", series);
            }
        }
    }
}
