//! What is known of a request's series without their bytes: which have the same replicas, and how
//! many samples each holds. It lasts until the last replica has answered, so that its answer can be
//! laid to the series that it is about.

use crate::write::distribute::groups::Groups;
use crate::write::quorum::SeriesPosition;

#[derive(Debug)]
pub struct Shape {
    groups: Groups,
    /// Of each series; empty where each has one.
    samples: Box<[u32]>,
}

impl Shape {
    pub(super) fn new(groups: Groups, samples: Vec<u32>) -> Shape {
        Shape { groups, samples: samples.into() }
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

    /// Samples of the series at `position`.
    pub fn samples_at(&self, position: SeriesPosition) -> u64 {
        let member = self.groups.members(position.group).get(position.member as usize);
        member.map_or(0, |series| self.samples_of(*series))
    }

    /// Samples of all series of a group.
    pub fn samples_in(&self, group: u32) -> u64 {
        let members = self.groups.members(group);
        match self.samples.is_empty() {
            true => members.len() as u64,
            false => members.iter().map(|series| self.samples_of(*series)).sum(),
        }
    }

    fn samples_of(&self, series: u32) -> u64 {
        self.samples.get(series as usize).map_or(1, |samples| u64::from(*samples))
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
