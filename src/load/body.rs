//! Request bodies: a lane's label bytes are made once, each round only puts samples behind them.

use super::protobuf::{push_labels, push_series};
use super::workload::{Lane, Permutation, Workload};
use crate::model::Timestamp;

/// Makes the snappy-compressed `WriteRequest` bodies of one lane.
pub(super) struct BodyEncoder<'a> {
    workload: &'a Workload,
    lane: &'a Lane,
    /// Encoded labels of all series of the lane, one after the other.
    labels: Vec<u8>,
    /// Where each series' labels begin in `labels`; one more entry closes the last.
    bounds: Vec<usize>,
    generations: Vec<u32>,
    permutation: Option<(u32, Permutation)>,
    request: Vec<u8>,
    samples: Vec<(i64, u64)>,
    snappy: snap::raw::Encoder,
}

/// One body, ready to be sent.
#[derive(Clone, Debug)]
pub struct Body {
    /// Snappy block of a `WriteRequest`.
    pub bytes: bytes::Bytes,
    pub sample_count: u32,
}

impl<'a> BodyEncoder<'a> {
    pub(super) fn new(workload: &'a Workload, lane: &'a Lane) -> BodyEncoder<'a> {
        let mut encoder = BodyEncoder {
            workload,
            lane,
            labels: Vec::new(),
            bounds: vec![0],
            generations: Vec::with_capacity(lane.series_count() as usize),
            permutation: None,
            request: Vec::new(),
            samples: Vec::new(),
            snappy: snap::raw::Encoder::new(),
        };
        for index in 0..lane.series_count() {
            let generation = workload.generation(lane.series.start + index, workload.start);
            let (target, place) = lane.place(index);
            push_labels(&mut encoder.labels, &workload.labels(target, place, generation));
            encoder.bounds.push(encoder.labels.len());
            encoder.generations.push(generation);
        }
        encoder
    }

    /// The body of one request of a round whose first timestamp is `base`.
    pub(super) fn encode(
        &mut self,
        request: u32,
        round: u32,
        base: Timestamp,
    ) -> Result<Body, snap::Error> {
        let permutation = self.permutation(round);
        self.request.clear();
        let mut sample_count = 0;
        for position in self.lane.positions(request) {
            let index = permutation.series_at(position);
            self.push_series(index, round, base);
            sample_count += self.workload.samples_per_series;
        }
        let mut compressed = vec![0; snap::raw::max_compress_len(self.request.len())];
        let len = self.snappy.compress(&self.request, &mut compressed)?;
        // A copy of the right size: the caller may keep many bodies.
        Ok(Body { bytes: bytes::Bytes::copy_from_slice(&compressed[..len]), sample_count })
    }

    /// The uncompressed request that [`BodyEncoder::encode`] made last.
    #[cfg(test)]
    pub(super) fn last_request(&self) -> &[u8] {
        &self.request
    }

    fn push_series(&mut self, index: u32, round: u32, base: Timestamp) {
        let series = self.lane.series.start + index;
        let (target, place) = self.lane.place(index);
        let i = index as usize;
        let range = self.bounds[i]..self.bounds[i + 1];
        let generation = self.workload.generation(series, base);
        if generation != self.generations[i] {
            let mut replaced = Vec::with_capacity(range.len());
            push_labels(&mut replaced, &self.workload.labels(target, place, generation));
            // Generations are printed at a fixed width, so the new labels fit the old place.
            self.labels[range.clone()].copy_from_slice(&replaced);
            self.generations[i] = generation;
        }
        self.samples.clear();
        for k in 0..self.workload.samples_per_series {
            let timestamp = self.workload.timestamp(base, k);
            self.samples.push((timestamp, self.workload.value_bits(series, place, round, k)));
        }
        push_series(&mut self.request, &self.labels[range], &self.samples);
    }

    fn permutation(&mut self, round: u32) -> Permutation {
        match self.permutation {
            Some((known, permutation)) if known == round => permutation,
            _ => {
                let permutation = Permutation::new(self.workload.order, self.lane, round);
                self.permutation = Some((round, permutation));
                permutation
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::protobuf::write_request;
    use super::super::workload::Order;
    use super::*;

    fn workload(order: Order) -> Workload {
        Workload {
            series_count: 1_000,
            series_per_request: 128,
            connections: 2,
            samples_per_series: 3,
            churn_percent: 50.0,
            order,
            ..Workload::new(1_764_000_000_000)
        }
    }

    #[test]
    fn bodies_hold_the_described_series_and_samples() {
        for order in [Order::Stable, Order::Shuffled] {
            let workload = workload(order);
            for lane in &workload.lanes() {
                let mut encoder = BodyEncoder::new(&workload, lane);
                for round in [0, 1, 7] {
                    let base = workload.synthetic_base(round);
                    let mut seen = HashSet::new();
                    for request in 0..lane.request_count {
                        let body = encoder.encode(request, round, base).unwrap();
                        let bytes = snap::raw::Decoder::new().decompress_vec(&body.bytes).unwrap();
                        assert_eq!(bytes, encoder.last_request());
                        let all = write_request(&bytes).unwrap();
                        assert_eq!(body.sample_count as usize, 3 * all.len());
                        let permutation = Permutation::new(order, lane, round);
                        for (position, series) in lane.positions(request).zip(all) {
                            let index = permutation.series_at(position);
                            let (target, place) = lane.place(index);
                            let id = lane.series.start + index;
                            let generation = workload.generation(id, base);
                            let labels: Vec<_> = workload
                                .labels(target, place, generation)
                                .into_iter()
                                .map(|(n, v)| (n.into_bytes(), v.into_bytes()))
                                .collect();
                            assert_eq!(series.labels, labels);
                            let expected: Vec<_> = (0..3)
                                .map(|k| {
                                    (
                                        workload.timestamp(base, k),
                                        workload.value_bits(id, place, round, k),
                                    )
                                })
                                .collect();
                            assert_eq!(series.samples, expected);
                            assert!(seen.insert(index));
                        }
                    }
                    assert_eq!(seen.len(), lane.series_count() as usize);
                }
            }
        }
    }

    #[test]
    fn two_encoders_make_the_same_bytes() {
        let workload = workload(Order::Shuffled);
        let lane = &workload.lanes()[1];
        let body = |skip: bool| {
            let mut encoder = BodyEncoder::new(&workload, lane);
            if !skip {
                encoder.encode(0, 0, workload.synthetic_base(0)).unwrap();
            }
            encoder.encode(1, 5, workload.synthetic_base(5)).unwrap().bytes
        };
        assert_eq!(body(false), body(true));
    }
}
