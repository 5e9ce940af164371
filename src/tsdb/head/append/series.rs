//! The series of a batch: found again that were forgotten, and made that do not exist.

use std::collections::HashMap;
use std::sync::Arc;

use crate::model::HeadSeriesRef;
use crate::model::fingerprint::Fingerprint;
use crate::model::key_table::{Adder, Slot};
use crate::model::labels::LabelIter;
use crate::tsdb::head::Head;
use crate::tsdb::head::append::{Bounds, LogSide, SERIES_PER_HOLD, TOUCHED_TOGETHER};
use crate::tsdb::head::batch::{Batch, NEW_BIT, NewSeries};
use crate::tsdb::head::catalog::Catalog;
use crate::tsdb::head::series::SeriesState;

impl Head {
    /// Finds the slots of series that were forgotten since the batch was looked up. They are made
    /// anew if they have a sample to hold.
    pub(super) fn resolve_forgotten(
        &self,
        log: &mut LogSide,
        catalog: &Arc<Catalog>,
        batch: &Batch,
        bounds: Bounds,
    ) {
        log.scratch.forgotten.clear();
        match batch.catalog() {
            Some(before) if !Arc::ptr_eq(before, catalog) => {
                self.resolve_by_catalog(log, catalog, batch, before, bounds);
            }
            _ => {}
        }
    }

    #[cold]
    fn resolve_by_catalog(
        &self,
        log: &mut LogSide,
        catalog: &Catalog,
        batch: &Batch,
        before: &Catalog,
        bounds: Bounds,
    ) {
        // Whether each has a sample to hold.
        let mut forgotten: HashMap<Slot, bool> = HashMap::new();
        let labels = catalog.labels();
        for sample in batch.samples.iter().filter(|sample| sample.series & NEW_BIT == 0) {
            // Nobody else got its slot: the batch holds the catalog in which it was its.
            if labels.get(sample.series).is_none() {
                *forgotten.entry(sample.series).or_default() |= bounds.take(sample.t);
            }
        }
        for exemplar in batch.exemplars.iter().filter(|exemplar| exemplar.series & NEW_BIT == 0) {
            if labels.get(exemplar.series).is_none() {
                forgotten.entry(exemplar.series).or_default();
            }
        }
        drop(labels);
        for (slot, is_wanted) in forgotten {
            let key = before.key_of(slot);
            let mut known = catalog.known.adder();
            let fingerprint = catalog.lookup().fingerprint(key.as_bytes());
            let mut found = known.find_canonical(fingerprint);
            if found.is_none() && is_wanted && self.has_room(known.series_count(), log, 0) {
                let new = log.give_slot(&mut known, fingerprint);
                drop(known);
                self.begin_series(log, &[new]);
                catalog.name([(new, LabelIter::of_canonical(key.as_bytes()))]);
                found = Some(new);
            }
            log.scratch.forgotten.insert(slot, found);
        }
    }

    /// Makes the series of the batch that do not exist and have a sample to hold.
    pub(super) fn resolve_new_series(
        &self,
        log: &mut LogSide,
        catalog: &Catalog,
        batch: &Batch,
        bounds: Bounds,
    ) {
        log.scratch.resolved.clear();
        log.scratch.made.clear();
        if batch.new_series.is_empty() && batch.aliases.is_empty() {
            return;
        }
        let mut wanted = vec![false; batch.new_series.len()];
        for sample in batch.samples.iter().filter(|sample| sample.series & NEW_BIT != 0) {
            wanted[(sample.series & !NEW_BIT) as usize] |= bounds.take(sample.t);
        }
        let mut known = catalog.known.adder();
        for (i, (series, wanted)) in batch.new_series.iter().zip(wanted).enumerate() {
            if i.is_multiple_of(TOUCHED_TOGETHER) {
                let window = batch.new_series[i..].iter().take(TOUCHED_TOGETHER);
                let touch =
                    |sum: u64, new: &NewSeries| sum.wrapping_add(known.touch(new.fingerprint));
                std::hint::black_box(window.fold(0, touch));
            }
            // Another request may have made it since the look-up, or this one names it twice.
            let mut slot = known.find_canonical(series.fingerprint);
            let made = log.scratch.made.len();
            if slot.is_none() && wanted && self.has_room(known.series_count(), log, made) {
                let new = log.give_slot(&mut known, series.fingerprint);
                log.scratch.made.push((new, i));
                slot = Some(new);
            }
            log.scratch.resolved.push(slot);
        }
        for alias in &batch.aliases {
            if let Some(slot) = log.scratch.slot_of(alias.series) {
                known.add_alias(batch.raw(alias), slot, alias.rules);
            }
        }
        drop(known);
        let made = std::mem::take(&mut log.scratch.made);
        for made in made.chunks(SERIES_PER_HOLD) {
            let slots = made.iter().map(|(slot, _)| *slot);
            self.begin_series(log, &slots.clone().collect::<Vec<_>>());
            let keys = made.iter().map(|(_, new)| batch.key(&batch.new_series[*new]));
            // Readers wait that need the labels of a series.
            catalog.name(slots.zip(keys.map(LabelIter::of_canonical)));
        }
        log.scratch.made = made;
    }

    /// Whether there is room for a series beside those that exist and of which `unnumbered` have no
    /// ref yet. Another program's log may leave few refs or none.
    fn has_room(&self, series: usize, log: &LogSide, unnumbered: usize) -> bool {
        let refs_left = HeadSeriesRef::LIMIT.saturating_sub(log.next_ref);
        series < self.options.series_max && (unnumbered as u64) < refs_left
    }

    /// Gives each slot the state of a series without samples.
    fn begin_series(&self, log: &mut LogSide, slots: &[Slot]) {
        let mut states = self.states.write();
        for slot in slots {
            states.begin(*slot, SeriesState::new(HeadSeriesRef(log.next_ref)));
            log.next_ref += 1;
        }
        drop(states);
        if let Some(meanwhile) = &mut log.meanwhile {
            meanwhile.extend_from_slice(slots);
        }
        self.metrics.series_created.add(slots.len() as u64);
        self.metrics.series.add(slots.len() as f64);
    }
}

impl LogSide {
    /// A slot for a new series, which look-ups find from now on.
    fn give_slot(&mut self, known: &mut Adder<'_>, fingerprint: Fingerprint) -> Slot {
        let slot = self.slots.take();
        known.add(fingerprint, slot);
        slot
    }
}
