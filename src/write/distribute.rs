//! Series × replica to one batch per endpoint and replica.
//!
//! Every series is read once: its labels are judged by the rules of the endpoint that took the
//! request, hashed once, and the section of the ring that the hash falls into gives all replicas at
//! once. A batch is a list of groups of series; their bytes stay where they came in, since tag,
//! length and body of a `TimeSeries` are the same in a client's request and in the message to a peer.
//! Only a series whose labels had to be put in order, or whose tag or length is oddly encoded, is
//! written anew.

mod deflated;
mod groups;
mod one_pass;
mod shape;

use std::sync::Arc;

use bytes::Bytes;

pub use deflated::DeflatedGroups;
pub use shape::{Contents, Shape};

use crate::hashring::{EndpointIndex, PlacedHashes, Ring, SeriesHasher};
use crate::model::labels::{TAG_FIELD_1, push_label};
use crate::model::varint::{push_varint, varint_len};
use crate::wire::remote_write_v1::{
    DecodeError, RequestField, RequestFields, SeriesField, SeriesFields, check_message,
    split_tail_sample,
};
use crate::write::admission::{InflightGuard, Overloaded};
use crate::write::decode::{STORM, samples_max};
use crate::write::distribute::groups::Groups;
use crate::write::distribute::one_pass::{OrderedLabels, read_ordered_labels};
use crate::write::label_rules::{LabelCaps, display, judge_labels};
use crate::write::{Manners, WriteOutcome};

/// About what a series takes in a request, for a first guess at how many there are.
const SERIES_BYTES_USUAL: usize = 300;

/// What a series' place takes, but for its replicas: field, hash, set, group, batches and tally.
const PLACE_BYTES: usize = 52;

/// Which replicas of the series are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replicas {
    /// The first so many.
    All(u8),
    /// This one, counted from 0: the others are somebody else's.
    One(u8),
}

/// A request to be placed.
pub struct Unplaced<'a> {
    /// Inflated.
    pub request: Bytes,
    /// Whether it is a peer's message rather than a `prometheus.WriteRequest`.
    pub is_of_peer: bool,
    pub tenant: &'a str,
    pub manners: Manners,
    pub caps: LabelCaps,
    /// Grows by what the places take: many short series take more than their bytes.
    pub inflight: InflightGuard,
}

/// A request whose series have their places.
pub struct Placed {
    series: PlacedSeries,
    /// One per endpoint and replica that has series, in order of endpoints.
    pub batches: Vec<Batch>,
    /// Series counted, refused ones told. What is stored is known only later: `samples_stored` is
    /// what could be.
    pub outcome: WriteOutcome,
}

/// Series that go to one endpoint as one replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    pub endpoint: EndpointIndex,
    /// Counted from 0.
    pub replica: u8,
    /// Numbers of groups, rising.
    pub groups: Vec<u32>,
}

/// The bytes of the series that have a place, in groups that share their replicas.
pub struct PlacedSeries {
    request: Bytes,
    /// Whole fields that were written anew. Their offsets go on where those of `request` end.
    rewritten: Vec<u8>,
    /// Offset and length of each series' field, tag included.
    fields: Vec<(u32, u32)>,
    shape: Arc<Shape>,
    _inflight: InflightGuard,
}

/// Why a request cannot be placed at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DistributeError {
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error("request of {0} bytes is too long to be placed")]
    TooLong(u64),
    /// With nothing else in flight there would be no room for it.
    #[error("{bytes} bytes, as sent and of places, are over the {max} that may be in flight")]
    OverBudget { bytes: u64, max: u64 },
    #[error(transparent)]
    Overloaded(#[from] Overloaded),
}

impl Placed {
    /// Series that have a place.
    pub fn series_count(&self) -> usize {
        self.series.fields.len()
    }

    /// Takes the series' bytes and the batches apart.
    pub fn into_parts(self) -> (PlacedSeries, Vec<Batch>, WriteOutcome) {
        (self.series, self.batches, self.outcome)
    }

    pub fn series(&self) -> &PlacedSeries {
        &self.series
    }
}

impl PlacedSeries {
    /// Of the request that they came in.
    pub fn request_bytes(&self) -> usize {
        self.request.len()
    }

    pub fn group_count(&self) -> usize {
        self.shape.group_count()
    }

    /// What outlives the bytes.
    pub fn shape(&self) -> &Arc<Shape> {
        &self.shape
    }

    /// The fields of these groups' series: tag, length and body of each.
    pub fn fields<'a>(
        &'a self,
        groups: &'a [u32],
    ) -> impl Iterator<Item = &'a [u8]> + Clone + use<'a> {
        self.numbers(groups).filter_map(|number| self.field(number))
    }

    /// The numbers of these groups' series.
    pub fn numbers<'a>(&'a self, groups: &'a [u32]) -> impl Iterator<Item = u32> + Clone + use<'a> {
        self.shape.numbers(groups)
    }

    /// The field of one series.
    pub fn field(&self, number: u32) -> Option<&[u8]> {
        let (offset, len) = *self.fields.get(number as usize)?;
        let (offset, len) = (offset as usize, len as usize);
        let bytes = match offset.checked_sub(self.request.len()) {
            Some(offset) => self.rewritten.get(offset..offset + len),
            None => self.request.get(offset..offset + len),
        };
        debug_assert!(bytes.is_some(), "series {number} lies outside of the request");
        bytes
    }

    /// The fields of all series.
    pub fn all_fields(&self) -> impl Iterator<Item = &[u8]> {
        let numbers = 0..self.fields.len() as u32;
        numbers.filter_map(|number| self.field(number))
    }

    /// What all fields amount to.
    fn total_bytes(&self) -> usize {
        self.fields.iter().map(|(_, len)| *len as usize).sum()
    }

    /// The fields of these groups in one piece that shares the request's bytes, if they are all of
    /// its series and nearly all that it holds: what is shared keeps the rest alive, too.
    pub fn whole(&self, groups: &[u32]) -> Option<Bytes> {
        let (start, _) = *self.fields.first()?;
        let (last, last_len) = *self.fields.last()?;
        let range = start as usize..last as usize + last_len as usize;
        let is_whole = groups.len() == self.group_count()
            && self.rewritten.is_empty()
            && range.len() == self.total_bytes()
            && range.len() >= self.request.len() / 4 * 3;
        is_whole.then(|| self.request.slice(range))
    }

    /// What the fields of these groups amount to.
    pub fn bytes(&self, groups: &[u32]) -> usize {
        self.fields(groups).map(<[u8]>::len).sum()
    }
}

/// Gives every series of `unplaced` its places in `ring`, which has as many replicas as are asked
/// for. `endpoint_count` is that of the ring's snapshot.
pub fn distribute(
    unplaced: Unplaced<'_>,
    ring: &Ring,
    endpoint_count: usize,
    replicas: Replicas,
) -> Result<Placed, DistributeError> {
    let request = unplaced.request.clone();
    let fields = match unplaced.is_of_peer {
        true => RequestFields::of_peer(&request),
        false => RequestFields::new(&request),
    };
    let mut distributor = Distributor::new(unplaced, &request, ring)?;
    distributor.take_all(fields)?;
    Ok(distributor.finish(request.clone(), endpoint_count, replicas))
}

struct Distributor<'a, 'r> {
    ring: &'a Ring,
    request: &'r [u8],
    manners: Manners,
    caps: LabelCaps,
    hasher: SeriesHasher,
    rewritten: Vec<u8>,
    /// Of the series that have a place: offset and length, as [`PlacedSeries`] has them.
    fields: Vec<(u32, u32)>,
    /// Of the same series. Their sections are looked up together in the end, so that the look-ups'
    /// cache misses overlap.
    hashes: Vec<u64>,
    /// What the same series hold; empty as long as each has one sample and nothing else.
    contents: Vec<Contents>,
    outcome: WriteOutcome,
    inflight: InflightGuard,
    /// Labels of the series at hand, reused; of too many only as many as prove it.
    labels: Vec<(&'r [u8], &'r [u8])>,
    label_count: usize,
}

impl<'a, 'r> Distributor<'a, 'r> {
    fn new(
        unplaced: Unplaced<'_>,
        request: &'r [u8],
        ring: &'a Ring,
    ) -> Result<Distributor<'a, 'r>, DistributeError> {
        let series_count = request.len() / SERIES_BYTES_USUAL;
        let mut distributor = Distributor {
            ring,
            request,
            manners: unplaced.manners,
            caps: unplaced.caps,
            hasher: SeriesHasher::for_tenant(unplaced.tenant.as_bytes()),
            rewritten: Vec::new(),
            fields: Vec::with_capacity(series_count),
            hashes: Vec::with_capacity(series_count),
            contents: Vec::new(),
            outcome: WriteOutcome::default(),
            inflight: unplaced.inflight,
            labels: Vec::new(),
            label_count: 0,
        };
        distributor.hold(series_count)?;
        Ok(distributor)
    }

    /// Holds what places for so many series take, here and in the ledger.
    fn hold(&mut self, series_count: usize) -> Result<(), DistributeError> {
        let place_bytes = PLACE_BYTES + size_of::<u32>() * self.ring.replica_count();
        let bytes = series_count.saturating_mul(place_bytes);
        let bytes = bytes.saturating_add(self.rewritten.capacity()) as u64;
        self.inflight.resize(bytes).map_err(|over| {
            let (bytes, max) = (bytes.saturating_add(self.request.len() as u64), over.max);
            // A retry would be refused as well.
            if bytes > max { DistributeError::OverBudget { bytes, max } } else { over.into() }
        })
    }

    /// Takes all series of the request.
    fn take_all(&mut self, mut fields: RequestFields<'r>) -> Result<(), DistributeError> {
        while let Some(field) = fields.next_field()? {
            match field {
                RequestField::TimeSeries(body) => {
                    self.take(body, self.request.len() - fields.rest().len())?;
                }
                RequestField::Metadata(metadata) => {
                    check_message(metadata, "metadata")?;
                    self.outcome.metadata += 1;
                }
            }
        }
        Ok(())
    }

    /// Takes the series message `body`, which ends at offset `end` of the request.
    fn take(&mut self, body: &'r [u8], end: usize) -> Result<(), DistributeError> {
        self.outcome.series += 1;
        if let Some(labels) = self.read_in_one_pass(body, end)
            && let Some(contents) = read_contents(&body[labels.bytes..])?
        {
            return self.place(labels.hash, contents, body, end, true);
        }
        self.take_unusual(body, end)
    }

    /// Takes a series by a full read of all its fields.
    fn take_unusual(&mut self, body: &'r [u8], end: usize) -> Result<(), DistributeError> {
        let contents = self.read(body)?;
        let in_order = self.labels_are_in_order();
        if let Err(reason) = judge_labels(&mut self.labels, self.manners, self.caps) {
            let (labels, count) = (&self.labels, self.label_count);
            self.outcome.refusals.add(reason, 1, || display(labels, count));
            return Ok(());
        }
        let hash = self.hasher.hash(self.labels.iter().copied());
        self.place(hash, contents, body, end, in_order)
    }

    #[inline]
    fn read_in_one_pass(&mut self, body: &'r [u8], end: usize) -> Option<OrderedLabels> {
        let ahead = self.request.get(end.checked_sub(body.len())?..)?;
        read_ordered_labels(ahead, body.len(), &mut self.hasher, self.manners, self.caps)
    }

    /// Notes a series that was accepted. Its labels are those at hand unless they are in order.
    #[inline]
    fn place(
        &mut self,
        hash: u64,
        contents: Contents,
        body: &[u8],
        end: usize,
        in_order: bool,
    ) -> Result<(), DistributeError> {
        self.outcome.samples_stored += u64::from(contents.samples) + u64::from(contents.histograms);
        if self.outcome.samples_stored > samples_max(self.request.len()) as u64 {
            return Err(STORM.into());
        }
        self.outcome.exemplars_dropped += u64::from(contents.exemplars);
        self.outcome.written += contents.into();
        let (offset, len) = match usual_head(self.request, end, body.len()).filter(|_| in_order) {
            Some(head) => (end - body.len() - head, head + body.len()),
            None => self.rewrite(body, in_order)?,
        };
        let too_long = |_| DistributeError::TooLong(offset as u64 + len as u64);
        let end = u32::try_from(offset + len).map_err(too_long)?;
        if self.fields.len() == self.fields.capacity() {
            self.hold(self.fields.capacity() * 2)?;
        }
        if contents != Contents::USUAL || !self.contents.is_empty() {
            self.contents.resize(self.fields.len(), Contents::USUAL);
            self.contents.push(contents);
        }
        // Both are at most `end`. A series takes two bytes, so there are fewer than 2^32.
        self.fields.push((end - len as u32, len as u32));
        self.hashes.push(hash);
        Ok(())
    }

    /// Reads all fields, in any order and encoding, the labels to `self.labels`.
    fn read(&mut self, body: &'r [u8]) -> Result<Contents, DecodeError> {
        self.labels.clear();
        self.label_count = 0;
        let mut contents = Contents::default();
        let mut fields = SeriesFields::new(body);
        while let Some(field) = fields.next_field()? {
            match field {
                SeriesField::Label { name, value } => {
                    self.label_count += 1;
                    // A label takes two bytes in a request and 32 here.
                    if self.labels.len() <= self.caps.labels_max {
                        self.labels.push((name, value));
                    }
                }
                other => contents.count(other)?,
            }
        }
        Ok(contents)
    }

    /// Whether the labels can go on as they are. Where the rules refuse what is out of order rather
    /// than repair it, they always can.
    fn labels_are_in_order(&self) -> bool {
        self.manners == Manners::Thanos
            || (self.labels.is_sorted_by(|a, b| a.0 < b.0)
                && self.labels.iter().all(|(_, value)| !value.is_empty()))
    }

    /// Writes a series anew, with the labels at hand unless those in it will do. Gives its offset
    /// and length.
    #[cold]
    fn rewrite(&mut self, body: &[u8], in_order: bool) -> Result<(usize, usize), DistributeError> {
        let mut message = Vec::with_capacity(body.len());
        if in_order {
            message.extend_from_slice(body);
        } else {
            for (name, value) in &self.labels {
                push_label(&mut message, TAG_FIELD_1, name, value);
            }
            push_without_labels(&mut message, body)?;
        }
        let start = self.rewritten.len();
        self.rewritten.push(TAG_FIELD_1);
        push_varint(&mut self.rewritten, message.len() as u64);
        self.rewritten.extend_from_slice(&message);
        self.hold(self.fields.capacity())?;
        Ok((self.request.len() + start, self.rewritten.len() - start))
    }

    fn finish(self, request: Bytes, endpoint_count: usize, replicas: Replicas) -> Placed {
        let PlacedHashes { sets, table } = self.ring.place(&self.hashes);
        let groups = Groups::new(sets, table.count());
        let batches = groups.batches(&table, self.ring.replica_count(), endpoint_count, replicas);
        let (rewritten, fields, inflight) = (self.rewritten, self.fields, self.inflight);
        let shape = Arc::new(Shape::new(groups, self.contents));
        let series = PlacedSeries { request, rewritten, fields, shape, _inflight: inflight };
        Placed { series, batches, outcome: self.outcome }
    }
}

impl Contents {
    fn count(&mut self, field: SeriesField<'_>) -> Result<(), DecodeError> {
        match field {
            SeriesField::Label { .. } => {}
            SeriesField::Sample { .. } => self.samples += 1,
            SeriesField::Exemplar(message) => {
                check_message(message, "exemplar")?;
                self.exemplars += 1;
            }
            SeriesField::Histogram(message) => {
                check_message(message, "histogram")?;
                self.histograms += 1;
            }
        }
        Ok(())
    }
}

/// Reads what follows a series' labels. None if that holds labels, too.
#[inline]
fn read_contents(rest: &[u8]) -> Result<Option<Contents>, DecodeError> {
    if split_tail_sample(rest).is_some_and(|(before, ..)| before.is_empty()) {
        return Ok(Some(Contents::USUAL));
    }
    let mut contents = Contents::default();
    let mut fields = SeriesFields::new(rest);
    while let Some(field) = fields.next_field()? {
        if matches!(field, SeriesField::Label { .. }) {
            return Ok(None);
        }
        contents.count(field)?;
    }
    Ok(Some(contents))
}

/// Appends the fields of a series message that are no labels.
fn push_without_labels(out: &mut Vec<u8>, body: &[u8]) -> Result<(), DecodeError> {
    let mut fields = SeriesFields::new(body);
    loop {
        let before = fields.rest();
        let Some(field) = fields.next_field()? else { return Ok(()) };
        if !matches!(field, SeriesField::Label { .. }) {
            let len = before.len() - fields.rest().len();
            out.extend_from_slice(&before[..len]);
        }
    }
}

/// Length of the tag and length that stand before a series of `len` bytes ending at `end`, if they
/// are encoded as usual.
fn usual_head(request: &[u8], end: usize, len: usize) -> Option<usize> {
    let len_bytes = varint_len(len as u64);
    let start = end.checked_sub(len)?.checked_sub(len_bytes + 1)?;
    let (tag, rest) = request.get(start..)?.split_first()?;
    let (stated, _) = crate::model::varint::read_varint(rest.get(..len_bytes)?)?;
    (*tag == TAG_FIELD_1 && stated == len as u64).then_some(len_bytes + 1)
}

#[cfg(test)]
mod tests;
