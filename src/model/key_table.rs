//! Raw label bytes to slot.
//!
//! An open-addressing table of 8-byte entries: 32 bits of the key's hash and the slot. It holds no
//! keys; a hit is always confirmed by comparing the bytes the caller keeps for that slot. Entries
//! are ordered by hash (the index is the hash's top bits), so growing is one streaming pass.
//!
//! The hash is keyed with secrets drawn per process: whoever can choose labels cannot choose
//! collisions.

use rapidhash::v3::{RapidSecrets, rapidhash_v3_inline};

/// 32 bits of a keyed hash of label bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyHash(u32);

/// An index of a series within a head. Unlike a series ref it may be used again.
pub type Slot = u32;

/// The largest number of slots: entries hold `slot + 1` in 32 bits.
pub const SLOTS_MAX: usize = u32::MAX as usize - 1;

const EMPTY: u64 = 0;
const ENTRIES_MIN_BITS: u32 = 6;

/// Secrets of one process. One table's hash of a key means nothing to another process.
#[derive(Clone)]
pub struct KeyHasher(RapidSecrets);

impl KeyHasher {
    pub fn random() -> KeyHasher {
        KeyHasher(RapidSecrets::random())
    }

    #[inline]
    pub fn hash(&self, key: &[u8]) -> KeyHash {
        KeyHash((rapidhash_v3_inline::<true, false, false>(key, &self.0) >> 32) as u32)
    }
}

pub struct KeyTable {
    entries: Box<[u64]>,
    /// log2 of the number of entries.
    bits: u32,
    len: usize,
}

impl Default for KeyTable {
    fn default() -> KeyTable {
        KeyTable { entries: empty(ENTRIES_MIN_BITS), bits: ENTRIES_MIN_BITS, len: 0 }
    }
}

impl KeyTable {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of memory the entries take.
    pub fn bytes(&self) -> usize {
        self.entries.len() * size_of::<u64>()
    }

    /// The slot that the hash likely means, if any: reading it for many keys in a row brings their
    /// table lines at once. [`KeyTable::find`] judges.
    #[inline]
    pub fn likely_slot(&self, hash: KeyHash) -> Option<Slot> {
        let index = self.index(hash);
        // Entries are eight to a line; nearly every key is at its first place or the next.
        let next = (index + 1) & (self.entries.len() - 1);
        let is_likely = |entry: &u64| (entry >> 32) as u32 == hash.0;
        [self.entries[index], self.entries[next]].into_iter().find(is_likely).and_then(slot_of)
    }

    /// The slot under this hash whose key the caller says is the one sought.
    #[inline]
    pub fn find(&self, hash: KeyHash, mut is_key: impl FnMut(Slot) -> bool) -> Option<Slot> {
        let mask = self.entries.len() - 1;
        let mut index = self.index(hash);
        loop {
            let entry = self.entries[index];
            let slot = slot_of(entry)?;
            if (entry >> 32) as u32 == hash.0 && is_key(slot) {
                return Some(slot);
            }
            index = (index + 1) & mask;
        }
    }

    /// Adds an entry. The caller upholds that the key is not in the table.
    pub fn insert(&mut self, hash: KeyHash, slot: Slot) {
        assert!((slot as usize) < SLOTS_MAX);
        if (self.len + 1) * 4 > self.entries.len() * 3 {
            self.grow();
        }
        self.place(u64::from(hash.0) << 32 | (u64::from(slot) + 1));
        self.len += 1;
    }

    fn place(&mut self, entry: u64) {
        let mask = self.entries.len() - 1;
        let mut index = self.index(KeyHash((entry >> 32) as u32));
        while self.entries[index] != EMPTY {
            index = (index + 1) & mask;
        }
        self.entries[index] = entry;
    }

    fn grow(&mut self) {
        self.bits += 1;
        let old = std::mem::replace(&mut self.entries, empty(self.bits));
        for entry in old {
            if entry != EMPTY {
                self.place(entry);
            }
        }
    }

    #[inline]
    fn index(&self, hash: KeyHash) -> usize {
        (hash.0 >> (32 - self.bits)) as usize & (self.entries.len() - 1)
    }
}

fn empty(bits: u32) -> Box<[u64]> {
    assert!(bits <= 32, "the index is taken from 32 bits of hash");
    vec![EMPTY; 1 << bits].into_boxed_slice()
}

#[inline]
fn slot_of(entry: u64) -> Option<Slot> {
    (entry as u32).checked_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_found_and_no_other() {
        let hasher = KeyHasher::random();
        let mut table = KeyTable::default();
        let keys: Vec<String> = (0..10_000).map(|i| format!("key {i}")).collect();
        let find = |table: &KeyTable, key: &str| {
            table.find(hasher.hash(key.as_bytes()), |slot| keys[slot as usize] == key)
        };
        for (slot, key) in keys.iter().enumerate() {
            assert_eq!(find(&table, key), None);
            table.insert(hasher.hash(key.as_bytes()), slot as Slot);
        }
        for (slot, key) in keys.iter().enumerate() {
            assert_eq!(find(&table, key), Some(slot as Slot));
        }
        assert_eq!(table.len(), keys.len());
        assert!(table.bytes() <= 32 * keys.len());
    }

    #[test]
    fn keys_of_one_hash_are_told_apart() {
        let mut table = KeyTable::default();
        for slot in 0..40 {
            table.insert(KeyHash(u32::MAX), slot);
        }
        for slot in 0..40 {
            assert_eq!(table.find(KeyHash(u32::MAX), |found| found == slot), Some(slot));
        }
    }
}
