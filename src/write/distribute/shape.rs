//! What is known of a request's series without their bytes: which have the same replicas, and how
//! much each holds. It lasts until the last replica has answered, so that its answer can be
//! laid to the series that it is about.

use crate::write::WrittenCounts;
use crate::write::distribute::groups::Groups;
use crate::write::quorum::SeriesPosition;

/// What a series holds besides labels: less of each than its request has bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    pub samples: u32,
    pub histograms: u32,
    pub exemplars: u32,
}

impl Contents {
    /// Nearly all.
    pub(super) const USUAL: Contents = Contents { samples: 1, histograms: 0, exemplars: 0 };
}

impl From<Contents> for WrittenCounts {
    fn from(Contents { samples, histograms, exemplars }: Contents) -> WrittenCounts {
        WrittenCounts {
            samples: samples.into(),
            histograms: histograms.into(),
            exemplars: exemplars.into(),
        }
    }
}

#[derive(Debug)]
pub struct Shape {
    groups: Groups,
    /// Of each series; empty where all are usual.
    contents: Box<[Contents]>,
}

impl Shape {
    pub(super) fn new(groups: Groups, contents: Vec<Contents>) -> Shape {
        Shape { groups, contents: contents.into() }
    }

    pub fn group_count(&self) -> usize {
        self.groups.len()
    }

    /// Series of a group.
    pub fn group_len(&self, group: u32) -> usize {
        self.groups.members(group).len()
    }

    /// Series of these groups, of which there are fewer than 2^32.
    pub fn series_count(&self, groups: &[u32]) -> u32 {
        groups.iter().map(|group| self.group_len(*group) as u32).sum()
    }

    /// The numbers of these groups' series.
    pub fn numbers<'a>(&'a self, groups: &'a [u32]) -> impl Iterator<Item = u32> + Clone + use<'a> {
        groups.iter().flat_map(|group| self.groups.members(*group)).copied()
    }

    /// What the series at `position` holds.
    pub fn held_at(&self, position: SeriesPosition) -> WrittenCounts {
        let member = self.groups.members(position.group).get(position.member as usize);
        member.map_or_else(WrittenCounts::default, |series| self.held_by(*series))
    }

    /// What all series of a group hold.
    pub fn held_in(&self, group: u32) -> WrittenCounts {
        let members = self.groups.members(group);
        if self.contents.is_empty() {
            return WrittenCounts { samples: members.len() as u64, ..WrittenCounts::default() };
        }
        let mut held = WrittenCounts::default();
        members.iter().for_each(|series| held += self.held_by(*series));
        held
    }

    fn held_by(&self, series: u32) -> WrittenCounts {
        self.contents.get(series as usize).copied().unwrap_or(Contents::USUAL).into()
    }

    /// Where the series are that stand at `places`, rising, of a message with the series of these
    /// groups in the order of [`Shape::numbers`]. In the order of groups.
    pub fn positions(
        &self,
        groups: &[u32],
        places: impl IntoIterator<Item = u32>,
    ) -> Vec<SeriesPosition> {
        let mut starts = Vec::with_capacity(groups.len());
        let mut end = 0;
        for group in groups {
            starts.push(end);
            end += self.group_len(*group) as u32;
        }
        let position = |place: u32| {
            let i = starts.partition_point(|start| *start <= place).checked_sub(1)?;
            (place < end).then(|| SeriesPosition { group: groups[i], member: place - starts[i] })
        };
        places.into_iter().filter_map(position).collect()
    }

    /// As [`Shape::positions`], of a message that has all series in the order of the request.
    pub fn positions_in_request(
        &self,
        places: impl IntoIterator<Item = u32>,
    ) -> Vec<SeriesPosition> {
        let mut by_number = Vec::new();
        for group in 0..self.group_count() as u32 {
            for (member, series) in self.groups.members(group).iter().enumerate() {
                let series = *series as usize;
                if by_number.len() <= series {
                    by_number.resize(series + 1, SeriesPosition { group: 0, member: 0 });
                }
                by_number[series] = SeriesPosition { group, member: member as u32 };
            }
        }
        let position = |place: u32| by_number.get(place as usize).copied();
        let mut positions: Vec<_> = places.into_iter().filter_map(position).collect();
        positions.sort_unstable();
        positions
    }
}
