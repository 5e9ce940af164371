//! A request on its way into a head: samples of known series by slot, and the keys of others.

use crate::model::Timestamp;
use crate::model::key_table::{KeyHash, Slot};
use crate::tsdb::head::series::Rules;

/// One float sample. `series` is a slot, or with [`NEW_BIT`] an index of the batch's new series.
#[derive(Clone, Copy, Debug)]
pub struct BatchSample {
    pub t: Timestamp,
    /// Bits of the value.
    pub v: u64,
    pub series: u32,
}

/// Set in [`BatchSample::series`] of series that the look-up did not know.
pub const NEW_BIT: u32 = 1 << 31;

/// A series that the look-up did not know, or knew only by other bytes.
#[derive(Clone, Copy, Debug)]
pub struct NewSeries {
    pub hash: KeyHash,
    key: (u32, u32),
}

/// Bytes that mean a series under some rules and are not its canonical key.
#[derive(Clone, Copy, Debug)]
pub struct NewAlias {
    pub series: u32,
    pub rules: Rules,
    raw: (u32, u32),
}

/// Samples of one tenant, in the order received. Reused from request to request.
#[derive(Default)]
pub struct Batch {
    pub samples: Vec<BatchSample>,
    pub new_series: Vec<NewSeries>,
    pub aliases: Vec<NewAlias>,
    /// Keys of new series and raw bytes of aliases.
    bytes: Vec<u8>,
}

/// Batches that grew beyond this many bytes of keys are not kept for reuse.
const KEPT_BYTES_MAX: usize = 1 << 20;
const KEPT_SAMPLES_MAX: usize = 1 << 16;

impl Batch {
    pub fn clear(&mut self) {
        if self.bytes.capacity() > KEPT_BYTES_MAX || self.samples.capacity() > KEPT_SAMPLES_MAX {
            *self = Batch::default();
            return;
        }
        self.samples.clear();
        self.new_series.clear();
        self.aliases.clear();
        self.bytes.clear();
    }

    /// What it takes.
    pub fn bytes(&self) -> usize {
        size_of::<Batch>()
            + self.samples.len() * size_of::<BatchSample>()
            + self.new_series.len() * size_of::<NewSeries>()
            + self.aliases.len() * size_of::<NewAlias>()
            + self.bytes.len()
    }

    #[inline]
    pub fn push(&mut self, series: u32, t: Timestamp, v: u64) {
        self.samples.push(BatchSample { t, v, series });
    }

    /// Adds a series that is not known yet and gives the number its samples use. The request is
    /// smaller than 2^32 bytes, so its keys are, too.
    pub fn push_new_series(&mut self, hash: KeyHash, key: &[u8]) -> u32 {
        let index = self.new_series.len() as u32;
        let key = self.keep(key);
        self.new_series.push(NewSeries { hash, key });
        index | NEW_BIT
    }

    pub fn push_alias(&mut self, series: u32, raw: &[u8], rules: Rules) {
        let raw = self.keep(raw);
        self.aliases.push(NewAlias { series, rules, raw });
    }

    pub fn key(&self, series: &NewSeries) -> &[u8] {
        &self.bytes[series.key.0 as usize..series.key.1 as usize]
    }

    pub fn raw(&self, alias: &NewAlias) -> &[u8] {
        &self.bytes[alias.raw.0 as usize..alias.raw.1 as usize]
    }

    fn keep(&mut self, bytes: &[u8]) -> (u32, u32) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        assert!(self.bytes.len() <= u32::MAX as usize, "requests are capped far below 4 GiB");
        (start as u32, self.bytes.len() as u32)
    }

    /// The slot of a sample's series once new series are resolved.
    pub fn slot_of(series: u32, resolved: &[Option<Slot>]) -> Option<Slot> {
        match series & NEW_BIT {
            0 => Some(series),
            _ => resolved[(series & !NEW_BIT) as usize],
        }
    }
}
