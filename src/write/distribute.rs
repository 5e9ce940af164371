//! Series × replica to one batch per endpoint and replica.
//!
//! Every series is read once: its labels are judged by the rules of the endpoint that took the
//! request, hashed once, and the section of the ring that the hash falls into gives all replicas at
//! once. A batch is a list of series; their bytes stay where they came in, since tag, length and
//! body of a `TimeSeries` are the same in a client's request and in the message to a peer. Only a
//! series whose labels had to be put in order, or whose tag or length is oddly encoded, is written
//! anew.

use bytes::Bytes;

use crate::hashring::{EndpointIndex, Ring, SeriesHasher};
use crate::model::labels::{TAG_FIELD_1, TAG_FIELD_2, push_label};
use crate::wire::reader::{push_varint, split_len_prefixed, varint_len};
use crate::wire::remote_write_v1::{
    DecodeError, RequestField, RequestFields, SeriesField, SeriesFields, check_message,
    split_tail_sample,
};
use crate::write::known::{LabelCaps, display, judge_labels};
use crate::write::{Manners, WriteOutcome};

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
    /// Numbers of series that have a place, rising.
    pub series: Vec<u32>,
}

/// The bytes of the series that have a place.
pub struct PlacedSeries {
    request: Bytes,
    /// Whole fields that were written anew. Their offsets go on where those of `request` end.
    rewritten: Vec<u8>,
    /// Offset and length of each series' field, tag included.
    fields: Vec<(u32, u32)>,
}

/// Why a request cannot be placed at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DistributeError {
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error("request of {0} bytes is too long to be placed")]
    TooLong(u64),
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
    /// The fields of these series: tag, length and body of each.
    pub fn fields<'a>(
        &'a self,
        series: &'a [u32],
    ) -> impl Iterator<Item = &'a [u8]> + Clone + use<'a> {
        series.iter().filter_map(|number| self.field(*number))
    }

    fn field(&self, number: u32) -> Option<&[u8]> {
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

    /// What those fields amount to.
    pub fn bytes(&self, series: &[u32]) -> usize {
        self.fields(series).map(<[u8]>::len).sum()
    }

    fn push(&mut self, offset: usize, len: usize) -> Result<u32, DistributeError> {
        let too_long = |_| DistributeError::TooLong(offset as u64 + len as u64);
        let number = u32::try_from(self.fields.len()).map_err(too_long)?;
        let end = u32::try_from(offset + len).map_err(too_long)?;
        // Both are at most `end`.
        self.fields.push((end - len as u32, len as u32));
        Ok(number)
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
    let mut fields = match unplaced.is_of_peer {
        true => RequestFields::of_peer(&request),
        false => RequestFields::new(&request),
    };
    let mut distributor = Distributor::new(&unplaced, ring, endpoint_count, replicas);
    while let Some(field) = fields.next_field()? {
        match field {
            RequestField::TimeSeries(body) => {
                distributor.take(body, request.len() - fields.rest().len())?;
            }
            RequestField::Metadata(metadata) => {
                check_message(metadata, "metadata")?;
                distributor.outcome.metadata += 1;
            }
        }
    }
    Ok(distributor.finish())
}

struct Distributor<'a, 'r> {
    ring: &'a Ring,
    replicas: Replicas,
    manners: Manners,
    caps: LabelCaps,
    hasher: SeriesHasher,
    series: PlacedSeries,
    lists: BatchLists,
    outcome: WriteOutcome,
    /// Labels of the series at hand, reused; of too many only as many as prove it.
    labels: Vec<(&'r [u8], &'r [u8])>,
    label_count: usize,
}

/// What a series holds besides labels.
#[derive(Default)]
struct Contents {
    samples: u64,
    exemplars: u64,
}

impl<'a, 'r> Distributor<'a, 'r> {
    fn new(
        unplaced: &Unplaced<'_>,
        ring: &'a Ring,
        endpoint_count: usize,
        replicas: Replicas,
    ) -> Distributor<'a, 'r> {
        Distributor {
            ring,
            replicas,
            manners: unplaced.manners,
            caps: unplaced.caps,
            hasher: SeriesHasher::for_tenant(unplaced.tenant.as_bytes()),
            series: PlacedSeries {
                request: unplaced.request.clone(),
                rewritten: Vec::new(),
                fields: Vec::new(),
            },
            lists: BatchLists::new(endpoint_count, ring.replica_count()),
            outcome: WriteOutcome::default(),
            labels: Vec::new(),
            label_count: 0,
        }
    }

    /// Takes the series message `body`, which ends at offset `end` of the request.
    fn take(&mut self, body: &'r [u8], end: usize) -> Result<(), DistributeError> {
        self.outcome.series += 1;
        let contents = self.read(body)?;
        let in_order = self.labels_are_in_order();
        if let Err(reason) = judge_labels(&mut self.labels, self.manners, self.caps) {
            let (labels, count) = (&self.labels, self.label_count);
            self.outcome.refusals.add(reason, 1, || display(labels, count));
            return Ok(());
        }
        self.outcome.samples_stored += contents.samples;
        self.outcome.exemplars_dropped += contents.exemplars;
        let hash = self.hasher.hash(self.labels.iter().copied());
        let number = match usual_head(&self.series.request, end, body.len()).filter(|_| in_order) {
            Some(head) => self.series.push(end - body.len() - head, head + body.len())?,
            None => self.rewrite(body, in_order)?,
        };
        let replicas = self.ring.replicas(self.ring.section_of(hash));
        match self.replicas {
            Replicas::All(count) => {
                for (replica, endpoint) in replicas.iter().take(usize::from(count)).enumerate() {
                    self.lists.push(*endpoint, replica, number);
                }
            }
            Replicas::One(replica) => {
                let replica = usize::from(replica);
                if let Some(endpoint) = replicas.get(replica) {
                    self.lists.push(*endpoint, replica, number);
                }
            }
        }
        Ok(())
    }

    /// Reads the labels, and whether the rest is a message at all.
    fn read(&mut self, body: &'r [u8]) -> Result<Contents, DecodeError> {
        self.labels.clear();
        if let Some((labels, ..)) = split_tail_sample(body)
            && read_usual_labels(labels, self.caps.labels_max, &mut self.labels).is_some()
        {
            self.label_count = self.labels.len();
            return Ok(Contents { samples: 1, exemplars: 0 });
        }
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
                SeriesField::Sample { .. } => contents.samples += 1,
                SeriesField::Exemplar(message) => {
                    check_message(message, "exemplar")?;
                    contents.exemplars += 1;
                }
                SeriesField::Histogram(message) => check_message(message, "histogram")?,
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

    /// Writes a series anew, with the labels at hand unless those in it will do.
    fn rewrite(&mut self, body: &[u8], in_order: bool) -> Result<u32, DistributeError> {
        let mut message = Vec::with_capacity(body.len());
        if in_order {
            message.extend_from_slice(body);
        } else {
            for (name, value) in &self.labels {
                push_label(&mut message, TAG_FIELD_1, name, value);
            }
            push_without_labels(&mut message, body)?;
        }
        let rewritten = &mut self.series.rewritten;
        let start = rewritten.len();
        rewritten.push(TAG_FIELD_1);
        push_varint(rewritten, message.len() as u64);
        rewritten.extend_from_slice(&message);
        let len = rewritten.len() - start;
        self.series.push(self.series.request.len() + start, len)
    }

    fn finish(self) -> Placed {
        Placed { series: self.series, batches: self.lists.finish(), outcome: self.outcome }
    }
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
    let (stated, _) = crate::wire::reader::read_varint(rest.get(..len_bytes)?)?;
    (*tag == TAG_FIELD_1 && stated == len as u64).then_some(len_bytes + 1)
}

/// Reads label fields in the encoding that senders normally use, and nothing else.
#[inline]
fn read_usual_labels<'r>(
    mut raw: &'r [u8],
    labels_max: usize,
    labels: &mut Vec<(&'r [u8], &'r [u8])>,
) -> Option<()> {
    while !raw.is_empty() {
        if labels.len() >= labels_max {
            return None;
        }
        let (label, rest) = split_len_prefixed(raw.strip_prefix(&[TAG_FIELD_1])?)?;
        let (name, value) = split_len_prefixed(label.strip_prefix(&[TAG_FIELD_1])?)?;
        let (value, end) = split_len_prefixed(value.strip_prefix(&[TAG_FIELD_2])?)?;
        if !end.is_empty() {
            return None;
        }
        labels.push((name, value));
        raw = rest;
    }
    Some(())
}

/// The series of each endpoint and replica.
struct BatchLists {
    replica_count: usize,
    /// Those of an endpoint lie together.
    lists: Vec<Vec<u32>>,
}

impl BatchLists {
    fn new(endpoint_count: usize, replica_count: usize) -> BatchLists {
        BatchLists { replica_count, lists: vec![Vec::new(); endpoint_count * replica_count] }
    }

    #[inline]
    fn push(&mut self, endpoint: EndpointIndex, replica: usize, series: u32) {
        let index = endpoint.as_usize() * self.replica_count + replica;
        match self.lists.get_mut(index) {
            Some(list) => list.push(series),
            None => debug_assert!(false, "endpoint {endpoint:?} is not of this ring"),
        }
    }

    fn finish(self) -> Vec<Batch> {
        let replica_count = self.replica_count;
        let batch = |(index, series): (usize, Vec<u32>)| Batch {
            // Rings have fewer than 2^16 endpoints, and replication factors are below 2^8.
            endpoint: EndpointIndex((index / replica_count) as u16),
            replica: (index % replica_count) as u8,
            series,
        };
        self.lists.into_iter().enumerate().filter(|(_, list)| !list.is_empty()).map(batch).collect()
    }
}

#[cfg(test)]
#[path = "distribute/tests.rs"]
mod tests;
