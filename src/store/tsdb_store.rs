//! One tenant's part of an answer: its external labels against the matchers, and the labels its series
//! are seen under.

use std::cmp::Ordering;
use std::collections::HashSet;

use bytes::{Bytes, BytesMut};
use xxhash_rust::xxh64::xxh64;

use crate::model::matcher::Matcher;
use crate::model::pairs::{LabelPairs, SeriesLabels};
use crate::wire::proto::thanos::ShardInfo;

/// The matchers that remain to ask the database with, once those on external labels have matched;
/// `None` if one of them doesn't. What a series itself says under an external label's name is not
/// seen, as it is overwritten in the answer.
pub fn match_external(
    matchers: &[Matcher],
    external: &[(Vec<u8>, Vec<u8>)],
) -> Option<Vec<Matcher>> {
    let mut rest = Vec::with_capacity(matchers.len());
    for matcher in matchers {
        match external.iter().find(|(name, _)| *name == matcher.name) {
            Some((_, value)) if !matcher.matches(value) => return None,
            Some(_) => {}
            None => rest.push(matcher.clone()),
        }
    }
    Some(rest)
}

/// How a tenant's series are seen: without replica labels, with external labels, the external one
/// winning where both have a name.
pub struct FinalLabels {
    /// Sorted by name, none of them among `removed`.
    external: Vec<(Vec<u8>, Vec<u8>)>,
    removed: Vec<Bytes>,
}

impl FinalLabels {
    pub fn new(external: &[(Vec<u8>, Vec<u8>)], without_replica_labels: &[Bytes]) -> FinalLabels {
        let kept = external.iter().filter(|(name, _)| {
            !without_replica_labels.iter().any(|removed| *removed == name.as_slice())
        });
        FinalLabels { external: kept.cloned().collect(), removed: without_replica_labels.to_vec() }
    }

    /// Names and values in order of names.
    pub fn of<'a>(&'a self, labels: &'a SeriesLabels) -> FinalLabelIter<'a> {
        self.over(labels.iter())
    }

    /// The same of stored labels, given in order of names.
    pub fn over<'a, S>(&'a self, stored: S) -> FinalLabelIter<'a, S>
    where
        S: Iterator<Item = (&'a [u8], &'a [u8])>,
    {
        self.resume(stored, &self.external)
    }

    /// Order of two series of this tenant by the labels they are seen under. Most series differ
    /// late, so what they share is skipped before external labels are looked at.
    pub fn compare(&self, a: &SeriesLabels, b: &SeriesLabels) -> Ordering {
        let shared = a.shared_with(b);
        let (first_a, first_b) = (a.iter_from(shared).next(), b.iter_from(shared).next());
        if let (Some((name, value)), Some((other, other_value))) = (first_a, first_b)
            && name == other
            && !self.hides(name)
        {
            // Nearly always. What is seen before this label is the same on both sides.
            return value.cmp(other_value);
        }
        let last_shared = shared.checked_sub(1).and_then(|last| a.iter_from(last).next());
        let shared_name = last_shared.map_or(&[][..], |(name, _)| name);
        // External labels up to the last shared name have been seen on both sides.
        let seen = self.external.partition_point(|(name, _)| name.as_slice() <= shared_name);
        let external = self.external.get(seen..).unwrap_or(&[]);
        let (a, b) = (a.iter_from(shared), b.iter_from(shared));
        self.resume(a, external).cmp(self.resume(b, external))
    }

    /// Whether a stored label of this name is not seen.
    fn hides(&self, name: &[u8]) -> bool {
        let is_external = self.external.iter().any(|(external, _)| external == name);
        is_external || self.removed.iter().any(|removed| removed == name)
    }

    fn resume<'a, S>(
        &'a self,
        stored: S,
        external: &'a [(Vec<u8>, Vec<u8>)],
    ) -> FinalLabelIter<'a, S> {
        FinalLabelIter { stored, next_stored: None, external, removed: &self.removed }
    }
}

/// Copies of names and values that share one allocation.
pub fn shared_texts<'a>(
    labels: impl Iterator<Item = (&'a [u8], &'a [u8])> + Clone,
) -> impl Iterator<Item = (Bytes, Bytes)> {
    let lengths: Vec<_> = labels.clone().map(|(name, value)| (name.len(), value.len())).collect();
    let bytes = lengths.iter().map(|(name, value)| name + value).sum();
    let mut text = BytesMut::with_capacity(bytes);
    for (name, value) in labels {
        text.extend_from_slice(name);
        text.extend_from_slice(value);
    }
    let mut text = text.freeze();
    lengths.into_iter().map(move |(name, value)| (text.split_to(name), text.split_to(value)))
}

/// See [`FinalLabels::of`].
#[derive(Clone)]
pub struct FinalLabelIter<'a, S = LabelPairs<'a>> {
    stored: S,
    /// Taken from `stored`, not yet given out.
    next_stored: Option<(&'a [u8], &'a [u8])>,
    external: &'a [(Vec<u8>, Vec<u8>)],
    removed: &'a [Bytes],
}

impl<'a, S> Iterator for FinalLabelIter<'a, S>
where
    S: Iterator<Item = (&'a [u8], &'a [u8])>,
{
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        if self.next_stored.is_none() {
            let removed = self.removed;
            let is_kept = |(name, _): &(&[u8], &[u8])| !removed.iter().any(|other| other == name);
            self.next_stored = self.stored.find(is_kept);
        }
        let Some(((name, value), rest)) = self.external.split_first() else {
            return self.next_stored.take();
        };
        if let Some(stored) = self.next_stored {
            match stored.0.cmp(name) {
                Ordering::Less => return self.next_stored.take(),
                Ordering::Equal => self.next_stored = None,
                Ordering::Greater => {}
            }
        }
        self.external = rest;
        Some((name, value))
    }
}

/// Which series belong to the asked shard, by a hash of some of their final labels. The hash is
/// Thanos': a querier splits one query over shards and all stores must agree.
pub struct Shard {
    index: u64,
    total: u64,
    /// Whether `labels` are the hashed ones, or those left out.
    by: bool,
    labels: HashSet<Bytes>,
    hashed: Vec<u8>,
}

impl Shard {
    /// `None` if the query is not sharded.
    pub fn new(info: Option<&ShardInfo>) -> Option<Shard> {
        let info = info?;
        let total = u64::try_from(info.total_shards).ok().filter(|total| *total > 0)?;
        Some(Shard {
            // A negative index is past every shard, as in Thanos.
            index: info.shard_index as u64,
            total,
            by: info.by,
            labels: info.labels.iter().cloned().collect(),
            hashed: Vec::new(),
        })
    }

    pub fn contains<'a>(&mut self, labels: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> bool {
        self.hashed.clear();
        for (name, value) in labels {
            if self.labels.contains(name) == self.by {
                for part in [name, value] {
                    self.hashed.extend_from_slice(part);
                    self.hashed.push(0xff);
                }
            }
        }
        xxh64(&self.hashed, 0) % self.total == self.index
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::model::pairs::tests::series_labels;

    type Pairs = BTreeMap<Vec<u8>, Vec<u8>>;

    fn key(labels: &Pairs) -> SeriesLabels {
        series_labels(labels.iter().map(|(name, value)| (&name[..], &value[..])))
    }

    fn owned<'a>(labels: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Vec<(Vec<u8>, Vec<u8>)> {
        labels.map(|(name, value)| (name.to_vec(), value.to_vec())).collect()
    }

    /// Few names and values, so that they meet.
    fn pairs() -> impl Strategy<Value = Pairs> {
        let text = |pattern: &'static str| pattern.prop_map(String::into_bytes);
        prop::collection::btree_map(text("[a-e]{1,2}"), text("[xy]{1,2}"), 0..6)
    }

    proptest! {
        /// Against maps: remove, then overwrite with what is external, then compare.
        #[test]
        fn final_labels_are_those_of_the_maps(
            a in pairs(),
            b in pairs(),
            external in pairs(),
            removed in prop::collection::vec("[a-e]{1,2}", 0..3),
        ) {
            let removed: Vec<_> = removed.into_iter().map(Bytes::from).collect();
            let is_kept = |name: &Vec<u8>| !removed.iter().any(|other| other == name);
            let seen = |stored: &Pairs| -> Vec<(Vec<u8>, Vec<u8>)> {
                let mut seen = stored.clone();
                seen.extend(external.clone());
                seen.retain(|name, _| is_kept(name));
                seen.into_iter().collect()
            };
            let external: Vec<_> = external.clone().into_iter().collect();
            let labels = FinalLabels::new(&external, &removed);
            prop_assert_eq!(owned(labels.of(&key(&a))), seen(&a));
            prop_assert_eq!(labels.compare(&key(&a), &key(&b)), seen(&a).cmp(&seen(&b)));
            let texts: Vec<_> = shared_texts(labels.of(&key(&a))).collect();
            let texts = texts.iter().map(|(name, value)| (&name[..], &value[..]));
            prop_assert_eq!(owned(texts), seen(&a));
        }
    }

    #[test]
    fn shards_share_out_every_series_once() {
        let info = |shard_index, by| ShardInfo {
            shard_index,
            total_shards: 3,
            by,
            labels: vec![Bytes::from_static(b"a")],
        };
        for by in [false, true] {
            let mut shards: Vec<_> =
                (0..3).map(|index| Shard::new(Some(&info(index, by))).unwrap()).collect();
            for i in 0..100 {
                let (a, b) = ((i % 10).to_string(), i.to_string());
                let labels = [(&b"a"[..], a.as_bytes()), (b"b", b.as_bytes())];
                let holders = shards
                    .iter_mut()
                    .filter_map(|shard| shard.contains(labels.into_iter()).then_some(()));
                assert_eq!(holders.count(), 1);
            }
        }
        assert!(Shard::new(Some(&ShardInfo::default())).is_none());
    }
}
