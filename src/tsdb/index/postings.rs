//! Postings: places of series, rising, and how several are made one without writing it down.

/// The series that some question selects, found as they are asked for.
#[derive(Clone, Debug)]
pub enum Postings {
    List(List),
    /// What is in all.
    Intersection(Vec<Postings>),
    /// What is in the first alone.
    Difference(Box<(Postings, Postings)>),
}

/// Rising postings in memory; those before `at` are used up.
#[derive(Clone, Debug, Default)]
pub struct List {
    series: Vec<u32>,
    at: usize,
}

impl Postings {
    pub fn empty() -> Postings {
        Postings::of(Vec::new())
    }

    /// `series` rise.
    pub fn of(series: Vec<u32>) -> Postings {
        debug_assert!(series.is_sorted());
        Postings::List(List { series, at: 0 })
    }

    /// What is in any of the lists, each of which rises.
    pub fn union(mut lists: Vec<Vec<u32>>) -> Postings {
        let Some(longest) = (0..lists.len()).max_by_key(|i| lists[*i].len()) else {
            return Postings::empty();
        };
        let mut all = lists.swap_remove(longest);
        if !lists.is_empty() {
            all.reserve_exact(lists.iter().map(Vec::len).sum());
            all.extend(lists.into_iter().flatten());
            // Rising runs in a row, which the standard sort merges.
            all.sort();
            all.dedup();
        }
        Postings::of(all)
    }

    pub fn intersection(mut of: Vec<Postings>) -> Postings {
        match of.len() {
            0 => Postings::empty(),
            1 => of.swap_remove(0),
            _ => {
                // The one that may give least leads.
                of.sort_by_key(Postings::at_most);
                Postings::Intersection(of)
            }
        }
    }

    pub fn difference(of: Postings, without: Postings) -> Postings {
        if of.is_surely_empty() || without.is_surely_empty() {
            return of;
        }
        Postings::Difference(Box::new((of, without)))
    }

    /// Whether nothing comes, as far as that is known without looking.
    pub fn is_surely_empty(&self) -> bool {
        self.at_most() == 0
    }

    /// How many may still come.
    pub fn at_most(&self) -> usize {
        match self {
            Postings::List(list) => list.series.len() - list.at,
            Postings::Intersection(of) => of.iter().map(Postings::at_most).min().unwrap_or(0),
            Postings::Difference(both) => both.0.at_most(),
        }
    }

    /// The first series that is not before `least`. What is asked for does not go back: what lies
    /// before may be forgotten.
    pub fn seek(&mut self, least: u32) -> Option<u32> {
        match self {
            Postings::List(list) => list.seek(least),
            Postings::Intersection(of) => {
                let mut candidate = least;
                // Goes round until all agree.
                let (mut agreeing, mut i) = (0, 0);
                while agreeing < of.len() {
                    let found = of[i].seek(candidate)?;
                    agreeing = if found == candidate { agreeing + 1 } else { 1 };
                    candidate = found;
                    i = (i + 1) % of.len();
                }
                Some(candidate)
            }
            Postings::Difference(both) => {
                let (of, without) = &mut **both;
                let mut candidate = of.seek(least)?;
                while without.seek(candidate) == Some(candidate) {
                    candidate = of.seek(candidate.checked_add(1)?)?;
                }
                Some(candidate)
            }
        }
    }
}

impl List {
    /// Gallops: twice as far at each step, then back by halves.
    fn seek(&mut self, least: u32) -> Option<u32> {
        let rest = self.series.get(self.at..)?;
        let mut bound = 1;
        while rest.get(bound - 1).is_some_and(|series| *series < least) {
            bound *= 2;
        }
        let passed = (bound / 2).min(rest.len());
        let window = &rest[passed..bound.min(rest.len())];
        self.at += passed + window.partition_point(|series| *series < least);
        self.series.get(self.at).copied()
    }
}

/// Walks postings.
#[derive(Clone, Debug)]
pub struct Series {
    postings: Postings,
    least: Option<u32>,
}

impl IntoIterator for Postings {
    type Item = u32;
    type IntoIter = Series;

    fn into_iter(self) -> Series {
        Series { postings: self, least: Some(0) }
    }
}

impl Iterator for Series {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let found = self.postings.seek(self.least?);
        self.least = found.and_then(|found| found.checked_add(1));
        found
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn list(series: &BTreeSet<u32>) -> Postings {
        Postings::of(series.iter().copied().collect())
    }

    fn walked(postings: &Postings) -> Vec<u32> {
        postings.clone().into_iter().collect()
    }

    #[test]
    fn the_ends_of_what_a_place_can_be_are_met() {
        let all = || Postings::of(vec![0, 1, u32::MAX]);
        assert_eq!(walked(&all()), [0, 1, u32::MAX]);
        assert_eq!(walked(&Postings::difference(all(), Postings::of(vec![u32::MAX]))), [0, 1]);
        assert_eq!(walked(&Postings::intersection(vec![all(), all(), all()])), [0, 1, u32::MAX]);
        assert_eq!(walked(&Postings::intersection(vec![])), [0u32; 0]);
        assert_eq!(walked(&Postings::union(vec![])), [0u32; 0]);
    }

    fn sets() -> impl Strategy<Value = Vec<BTreeSet<u32>>> {
        let set = prop_oneof![
            prop::collection::btree_set(0u32..40, 0..40),
            prop::collection::btree_set(0u32..5000, 0..300),
            prop::collection::btree_set(any::<u32>(), 0..4),
        ];
        prop::collection::vec(set, 1..5)
    }

    proptest! {
        #[test]
        fn they_are_what_sets_are(sets in sets(), without in sets(), asked in any::<u32>()) {
            let all: BTreeSet<u32> = sets.iter().flatten().copied().collect();
            let both: BTreeSet<u32> =
                all.iter().copied().filter(|i| sets.iter().all(|set| set.contains(i))).collect();
            let removed: BTreeSet<u32> = without.iter().flatten().copied().collect();
            let lists = |sets: &[BTreeSet<u32>]| {
                sets.iter().map(|set| set.iter().copied().collect()).collect::<Vec<Vec<u32>>>()
            };
            let union = Postings::union(lists(&sets));
            let intersection = Postings::intersection(sets.iter().map(list).collect());
            let difference = Postings::difference(union.clone(), Postings::union(lists(&without)));
            // One within another.
            let mixed = Postings::intersection(vec![
                difference.clone(),
                Postings::difference(list(&sets[0]), intersection.clone()),
            ]);
            let left: BTreeSet<u32> = all.difference(&removed).copied().collect();
            let mixed_set: BTreeSet<u32> = left
                .iter()
                .copied()
                .filter(|i| sets[0].contains(i) && !both.contains(i))
                .collect();
            for (postings, set) in
                [(union, all), (intersection, both), (difference, left), (mixed, mixed_set)]
            {
                prop_assert!(postings.at_most() >= set.len());
                prop_assert_eq!(walked(&postings), set.iter().copied().collect::<Vec<_>>());
                let mut postings = postings;
                let first = set.range(asked..).next().copied();
                prop_assert_eq!(postings.seek(asked), first);
                prop_assert_eq!(postings.seek(asked), first);
            }
        }
    }
}
