//! The exemplars of batches.

use std::collections::{HashMap, HashSet};

use rapidhash::fast::RandomState;

use crate::tsdb::exemplars::{ExemplarRef, Verdict};
use crate::tsdb::head::Head;
use crate::tsdb::head::append::group::{AcceptedExemplar, Group};
use crate::tsdb::head::append::{AppendReport, LogSide};
use crate::tsdb::head::batch::{Batch, BatchExemplar};
use crate::tsdb::head::catalog::Catalog;

impl Head {
    /// Judges the exemplars of a batch whose samples were judged, and adds the accepted ones to the
    /// group. One whose series is not made, or whose sample was refused, is passed over, as in Thanos.
    /// The group's earlier batches are not looked at: what they refuse of these is not stored when its
    /// turn comes, now or in a replay.
    pub(super) fn check_exemplars(
        &self,
        log: &mut LogSide,
        catalog: &Catalog,
        (batch, number): (&Batch, usize),
        report: &mut AppendReport,
    ) {
        if batch.exemplars.is_empty() || !self.exemplars.is_on() {
            return;
        }
        let refused: HashSet<u32> =
            report.refused_samples.iter().map(|(sample, _)| *sample).collect();
        let mut accepted: HashMap<_, usize, RandomState> = HashMap::default();
        let mut out_of_order = None;
        let (states, judge) = (self.states.read(), self.exemplars.judge());
        for (place, exemplar) in batch.exemplars.iter().enumerate() {
            let Some(slot) = log.scratch.slot_of(exemplar.series) else { continue };
            if exemplar.sample.is_some_and(|sample| refused.contains(&sample)) {
                continue;
            }
            let state = states.get(slot);
            // A request made it in vain, and the log does not name it.
            if state.is_unlogged() {
                continue;
            }
            let series_ref = state.series_ref();
            let before = accepted.get(&series_ref).map(|place| &batch.exemplars[*place]);
            let before = before.map(|before| batch.exemplar(before));
            match judge.judge(series_ref, batch.exemplar(exemplar), before) {
                Verdict::Store => {
                    accepted.insert(series_ref, place);
                    // A batch has fewer than 2^32.
                    let place = place as u32;
                    let exemplar = AcceptedExemplar { series_ref, slot, batch: number, place };
                    log.group.exemplars.push(exemplar);
                    report.exemplars_stored += 1;
                }
                Verdict::Stored => report.exemplars_stored += 1,
                Verdict::OutOfOrder => {
                    report.refused_exemplars.push(place as u32);
                    out_of_order.get_or_insert(slot);
                }
            }
        }
        // Labels come before states in the order of locks.
        drop((states, judge));
        report.refused_exemplar = out_of_order.map(|slot| catalog.key_of(slot));
        self.exemplars.count_refused(report.refused_exemplars.len() as u64);
    }

    /// Stores what is logged.
    pub(super) fn apply_exemplars(&self, group: &Group, batches: &[&Batch]) {
        if group.exemplars.is_empty() {
            return;
        }
        let logged = group.exemplars.iter().map(|accepted| {
            let batch = batches[accepted.batch];
            let exemplar = batch.exemplar(&batch.exemplars[accepted.place as usize]);
            (accepted.series_ref, accepted.slot, exemplar.to_owned())
        });
        let catalog = self.catalog.load();
        self.exemplars.add(logged, |slot| catalog.key_of(slot));
    }
}

impl Batch {
    fn exemplar(&self, exemplar: &BatchExemplar) -> ExemplarRef<'_> {
        ExemplarRef { t: exemplar.t, v: exemplar.v, labels: self.exemplar_labels(exemplar) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;
    use crate::model::labels::{TAG_FIELD_1, push_label};
    use crate::model::matcher::{MatchOp, Matcher};
    use crate::tsdb::Db;
    use crate::tsdb::head::append::Refusal;
    use crate::tsdb::head::tests::{TestDb, series_number};
    use crate::tsdb::options::DbOptions;

    fn labels(pairs: &[(&str, &str)]) -> Vec<u8> {
        let mut out = Vec::new();
        for (name, value) in pairs {
            push_label(&mut out, TAG_FIELD_1, name.as_bytes(), value.as_bytes());
        }
        out
    }

    fn key(series: &str) -> Vec<u8> {
        labels(&[("__name__", "m"), ("n", series)])
    }

    /// Adds a series message: samples, and exemplars by time and trace.
    fn add(
        db: &Db,
        batch: &mut Batch,
        series: &str,
        samples: &[(Timestamp, f64)],
        exemplars: &[(Timestamp, &str)],
    ) {
        let (first_sample, first_exemplar) = (batch.samples.len(), batch.exemplars.len());
        let number = series_number(db, batch, &key(series));
        for (t, v) in samples {
            batch.push(number, *t, v.to_bits());
        }
        for (t, trace) in exemplars {
            batch.push_exemplar(0, (*t, 1.0_f64.to_bits()), &labels(&[("trace_id", trace)]));
        }
        batch.end_exemplars(first_exemplar, number, first_sample);
    }

    fn batch(
        db: &Db,
        series: &str,
        samples: &[(Timestamp, f64)],
        exemplars: &[(Timestamp, &str)],
    ) -> Batch {
        let mut batch = Batch::default();
        add(db, &mut batch, series, samples, exemplars);
        batch
    }

    /// Times of the exemplars of each series.
    fn stored(db: &Db) -> Vec<(String, Vec<Timestamp>)> {
        let all = Matcher::new(MatchOp::Equal, b"__name__", b"m").unwrap();
        let times = (Timestamp::MIN, Timestamp::MAX);
        let found = db.exemplars().select(&[vec![all]], times, |_| Ok::<_, ()>(())).unwrap();
        let shown = found.iter().map(|series| {
            let (_, number) = series.key.labels().last().unwrap();
            let times = series.exemplars.iter().map(|exemplar| exemplar.t).collect();
            (String::from_utf8(number.to_vec()).unwrap(), times)
        });
        shown.collect()
    }

    fn open() -> TestDb {
        TestDb::new(DbOptions { exemplars_max: 4, ..DbOptions::default() })
    }

    fn expected(all: &[(&str, &[Timestamp])]) -> Vec<(String, Vec<Timestamp>)> {
        all.iter().map(|(series, times)| ((*series).to_owned(), times.to_vec())).collect()
    }

    #[test]
    fn exemplars_are_there_after_a_restart() {
        let db = open();
        let sent = batch(&db.db, "a", &[(10, 1.0)], &[(10, "x"), (10, "x"), (12, "y"), (11, "z")]);
        let report = db.db.append(&sent).unwrap();
        assert_eq!((report.stored, report.exemplars_stored), (1, 3), "one is sent twice");
        assert_eq!(report.refused_exemplars, [3]);
        assert!(format!("{:?}", report.refused_exemplar).contains("n=\"a\""));
        let again = db.db.append(&sent).unwrap();
        assert_eq!((again.exemplars_stored, again.refused_exemplars), (1, vec![0, 1, 3]));
        assert_eq!(stored(&db.db), expected(&[("a", &[10, 12])]));
        db.db.append(&batch(&db.db, "b", &[(10, 1.0)], &[(9, "x")])).unwrap();
        let two = expected(&[("a", &[10, 12]), ("b", &[9])]);
        assert_eq!(stored(&db.db), two);
        let db = db.restart();
        assert_eq!(stored(&db.db), two);
        // The rules go on where they were, and the oldest makes room.
        let report = db.db.append(&batch(&db.db, "a", &[], &[(11, "late"), (13, "v"), (14, "w")]));
        let report = report.unwrap();
        assert_eq!((report.exemplars_stored, report.refused_exemplars), (2, vec![0]));
        let newest = expected(&[("a", &[12, 13, 14]), ("b", &[9])]);
        assert_eq!(stored(&db.db), newest);
        assert_eq!(stored(&db.restart().db), newest);
    }

    #[test]
    fn an_exemplar_goes_with_its_sample() {
        let db = open();
        let db = &db.db;
        db.append(&batch(db, "a", &[(10, 1.0)], &[])).unwrap();
        let report = db.append(&batch(db, "a", &[(9, 1.0)], &[(20, "x")])).unwrap();
        assert_eq!(report.refused_samples, [(0, Refusal::OutOfOrder)]);
        assert_eq!((report.exemplars_stored, stored(db)), (0, vec![]));
        // The last sample of the message counts.
        db.append(&batch(db, "a", &[(9, 1.0), (11, 1.0)], &[(20, "x")])).unwrap();
        assert_eq!(stored(db), expected(&[("a", &[20])]));
        // Nothing makes a series of an exemplar alone.
        let report = db.append(&batch(db, "new", &[], &[(20, "x")])).unwrap();
        assert_eq!((report.exemplars_stored, db.series_count()), (0, 1));
    }

    #[test]
    fn batches_of_a_group_do_not_see_one_another() {
        let db = open();
        let db = &db.db;
        db.append(&batch(db, "a", &[(10, 1.0)], &[])).unwrap();
        // None of the two has a sample, so that they meet in one group.
        let batches = [batch(db, "a", &[], &[(30, "x")]), batch(db, "a", &[], &[(20, "y")])];
        let reports = db.append_group(&[&batches[0], &batches[1]]);
        assert_eq!(reports.iter().filter(|report| report.is_ok()).count(), 2);
        assert_eq!(stored(db), expected(&[("a", &[30])]));
    }

    #[test]
    fn where_none_are_kept_nothing_of_them_is_logged() {
        let db = TestDb::new(DbOptions::default());
        let report = db.db.append(&batch(&db.db, "a", &[(10, 1.0)], &[(10, "x")])).unwrap();
        assert_eq!((report.stored, report.exemplars_stored), (1, 0));
        assert_eq!(stored(&db.restart().db), []);
    }
}
