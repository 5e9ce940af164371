//! The full chunks of a series, in 16 bytes each: when they begin, how long they are, where they lie.

use thin_vec::ThinVec;

use crate::model::Timestamp;
use crate::tsdb::head_chunks::ChunkPlace;

/// Where a full chunk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// In memory: its number among those that wait to be written.
    Waiting(WaitingId),
    File(ChunkPlace),
}

/// Numbers the full chunks of a head that are in memory; never given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WaitingId(pub u64);

/// A full chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    pub mint: Timestamp,
    pub maxt: Timestamp,
    pub place: Place,
}

impl Listed {
    pub fn overlaps(&self, mint: Timestamp, maxt: Timestamp) -> bool {
        self.mint <= maxt && mint <= self.maxt
    }
}

/// Chunks that do not overlap, oldest first.
#[derive(Default)]
pub struct ChunkList(ThinVec<Entry>);

/// A chunk: its first time, and from the highest bit on whether it waits (1), the milliseconds from its
/// first to its last sample (23, more than two hours), and its place (40). If it is longer, all bits of
/// the middle part are set, and another entry follows whose time is the chunk's last.
#[derive(Clone, Copy)]
struct Entry {
    time: Timestamp,
    word: u64,
}

const _: () = assert!(size_of::<Entry>() == 16);

const WAITS: u64 = 1 << 63;
const SPAN_SHIFT: u32 = ChunkPlace::BITS;
const PLACE_MASK: u64 = (1 << SPAN_SHIFT) - 1;
/// Says that the chunk's end is in the next entry.
const LONG: u64 = (1 << (63 - SPAN_SHIFT)) - 1;

impl Entry {
    fn span(self) -> u64 {
        (self.word & !WAITS) >> SPAN_SHIFT
    }

    fn place(self) -> Place {
        let bits = self.word & PLACE_MASK;
        match self.word & WAITS {
            0 => Place::File(ChunkPlace::from_bits(bits)),
            _ => Place::Waiting(WaitingId(bits)),
        }
    }

    fn set_place(&mut self, place: Place) {
        let bits = match place {
            Place::Waiting(WaitingId(id)) => {
                debug_assert!(id <= PLACE_MASK);
                WAITS | id & PLACE_MASK
            }
            Place::File(place) => place.to_bits(),
        };
        self.word = self.word & LONG << SPAN_SHIFT | bits;
    }
}

impl ChunkList {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A part of the first entry, to bring its line.
    #[inline]
    pub fn touch(&self) -> u8 {
        self.0.first().map_or(0, |first| first.word as u8)
    }

    /// How many chunks there are.
    pub fn count(&self) -> usize {
        self.iter().count()
    }

    pub fn iter(&self) -> impl Iterator<Item = Listed> {
        let mut entries = self.0.iter();
        std::iter::from_fn(move || {
            let entry = entries.next()?;
            let maxt = match entry.span() {
                LONG => entries.next()?.time,
                span => entry.time.wrapping_add(span as i64),
            };
            Some(Listed { mint: entry.time, maxt, place: entry.place() })
        })
    }

    pub fn first(&self) -> Option<Listed> {
        self.iter().next()
    }

    pub fn last(&self) -> Option<Listed> {
        let last = self.0.last()?;
        let before = self.0.len().checked_sub(2).map(|i| self.0[i]);
        Some(match before.filter(|before| before.span() == LONG) {
            Some(before) => Listed { mint: before.time, maxt: last.time, place: before.place() },
            None => {
                let maxt = last.time.wrapping_add(last.span() as i64);
                Listed { mint: last.time, maxt, place: last.place() }
            }
        })
    }

    /// Adds a chunk that is later than all others.
    pub fn push(&mut self, chunk: Listed) {
        debug_assert!(self.last().is_none_or(|last| last.maxt < chunk.mint));
        self.insert_at(self.0.len(), chunk);
    }

    /// Adds a chunk in its place; or gives the first one that it overlaps.
    pub fn insert(&mut self, chunk: Listed) -> Result<(), Listed> {
        // Mostly they come in order.
        if self.last().is_none_or(|last| last.maxt < chunk.mint) {
            self.insert_at(self.0.len(), chunk);
            return Ok(());
        }
        let mut at = 0;
        for other in self.iter() {
            if other.overlaps(chunk.mint, chunk.maxt) {
                return Err(other);
            }
            if other.mint > chunk.maxt {
                break;
            }
            at += entries_of(&other);
        }
        self.insert_at(at, chunk);
        Ok(())
    }

    fn insert_at(&mut self, at: usize, chunk: Listed) {
        let Listed { mint, maxt, place } = chunk;
        debug_assert!(mint <= maxt);
        let span = maxt.wrapping_sub(mint) as u64;
        // Chunks are many, and lists are short: no room is left over.
        self.0.reserve_exact(entries_of(&chunk));
        let mut entry = Entry { time: mint, word: span.min(LONG) << SPAN_SHIFT };
        entry.set_place(place);
        self.0.insert(at, entry);
        if span >= LONG {
            self.0.insert(at + 1, Entry { time: maxt, word: 0 });
        }
    }

    /// Puts the chunk that lies at `from`, if there is one, at `to`; whether there was.
    pub fn replace(&mut self, from: Place, to: Place) -> bool {
        let found = self.find(from);
        if let Some((at, _)) = found {
            self.0[at].set_place(to);
        }
        found.is_some()
    }

    /// Takes the chunk that lies at `place` out, if there is one.
    pub fn remove(&mut self, place: Place) -> Option<Listed> {
        let (at, chunk) = self.find(place)?;
        self.0.drain(at..at + entries_of(&chunk));
        Some(chunk)
    }

    /// The chunk that lies at `place`, and its entry.
    fn find(&self, place: Place) -> Option<(usize, Listed)> {
        let mut at = 0;
        for chunk in self.iter() {
            if chunk.place == place {
                return Some((at, chunk));
            }
            at += entries_of(&chunk);
        }
        None
    }

    /// Takes out the chunks that end before `mint`, from the front.
    pub fn drop_before(&mut self, mint: Timestamp, mut dropped: impl FnMut(Listed)) {
        let mut count = 0;
        for chunk in self.iter().take_while(|chunk| chunk.maxt < mint) {
            count += entries_of(&chunk);
            dropped(chunk);
        }
        if count > 0 {
            // Into a vector of its own, as large as need be.
            self.0 = self.0.split_off(count);
        }
    }
}

/// Entries that a chunk takes.
fn entries_of(chunk: &Listed) -> usize {
    if chunk.maxt.wrapping_sub(chunk.mint) as u64 >= LONG { 2 } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A list against a vector of the same chunks, over all lengths that a chunk may have.
    #[test]
    fn a_list_is_what_a_vector_is() {
        let seed = getrandom::u64().unwrap();
        println!("seed {seed}");
        let mut state = seed;
        let mut random = move |below: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        const LENGTHS: [i64; 7] = [0, 1, 7_200_000, LONG as i64 - 1, LONG as i64, 1 << 40, 1 << 59];
        for _ in 0..300 {
            let (mut list, mut model) = (ChunkList::default(), Vec::new());
            let mut t = [i64::MIN, -5, 0, 1 << 40][random(4) as usize];
            for id in 0..random(12) {
                let maxt = t + LENGTHS[random(7) as usize];
                let place = match random(2) {
                    0 => Place::Waiting(WaitingId(id)),
                    _ => Place::File(ChunkPlace::from_bits(id | 0xff << 32)),
                };
                model.push(Listed { mint: t, maxt, place });
                t = maxt.saturating_add(1 + random(3) as i64);
            }
            let mut shuffled = model.clone();
            for i in (1..shuffled.len()).rev() {
                shuffled.swap(i, random(i as u64 + 1) as usize);
            }
            for chunk in &shuffled {
                assert_eq!(list.insert(*chunk), Ok(()));
                assert!(list.insert(*chunk).is_err());
            }
            let check = |list: &ChunkList, model: &[Listed]| {
                assert_eq!(list.iter().collect::<Vec<_>>(), model);
                assert_eq!(
                    (list.first(), list.last()),
                    (model.first().copied(), model.last().copied())
                );
                assert_eq!((list.count(), list.is_empty()), (model.len(), model.is_empty()));
            };
            check(&list, &model);
            for chunk in &mut model {
                let to = Place::File(ChunkPlace::from_bits(random(1 << 40)));
                if random(2) == 0 && list.replace(chunk.place, to) {
                    chunk.place = to;
                }
            }
            check(&list, &model);
            if let Some(chunk) = model.get(random(12) as usize).copied() {
                assert_eq!(list.remove(chunk.place), Some(chunk));
                model.retain(|other| other.place != chunk.place);
                assert_eq!(list.remove(chunk.place), None);
            }
            check(&list, &model);
            let mint = model.get(random(12) as usize).map_or(i64::MIN, |chunk| chunk.maxt);
            let mut dropped = Vec::new();
            list.drop_before(mint, |chunk| dropped.push(chunk));
            let kept = model.split_off(dropped.len());
            assert_eq!(dropped, model);
            assert!(dropped.iter().all(|chunk| chunk.maxt < mint));
            assert!(kept.first().is_none_or(|chunk| chunk.maxt >= mint));
            check(&list, &kept);
        }
    }
}
