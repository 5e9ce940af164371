//! Packing: words with their zero bytes left out.
//!
//! ```text
//! word     tag (bit i: byte i is not zero), the bytes that are not
//! tag 00   then one byte: how many more words of zeros follow
//! tag ff   then eight bytes, then one byte: how many words follow as they are
//! ```
//!
//! Any split of words into runs is good, so packed words may be put behind packed words.

/// Most words that follow a tag of `00` or `ff`.
const RUN_WORDS_MAX: usize = 255;

const WORD_BYTES: usize = 8;

/// Appends `words`, packed.
pub fn pack(words: &[u64], out: &mut Vec<u8>) {
    let mut rest = words;
    loop {
        rest = pack_partial(rest, out);
        let Some((&word, after)) = rest.split_first() else { return };
        rest = after;
        match tag_of(word) {
            0 => {
                let zeros = rest.iter().take(RUN_WORDS_MAX).take_while(|word| **word == 0).count();
                rest = rest.get(zeros..).unwrap_or_default();
                out.extend_from_slice(&[0, zeros as u8]);
            }
            0xff => {
                // Words with one zero byte or none are no longer as they are than packed.
                let is_full = |word: &&u64| tag_of(**word).count_zeros() <= 1;
                let full = rest.iter().take(RUN_WORDS_MAX).take_while(is_full).count();
                let (run, after) = rest.split_at(full);
                rest = after;
                out.push(0xff);
                out.extend_from_slice(&word.to_le_bytes());
                out.push(full as u8);
                run.iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
            }
            // It comes next.
            _ => rest = words.get(words.len() - rest.len() - 1..).unwrap_or_default(),
        }
    }
}

/// Appends `bytes`, filled up with zeros to whole words, as they are: text has no zeros to leave
/// out.
pub fn pack_as_is(bytes: &[u8], out: &mut Vec<u8>) {
    let runs = bytes.chunks((1 + RUN_WORDS_MAX) * WORD_BYTES);
    out.reserve(bytes.len() + (runs.len() + 1) * (WORD_BYTES + 2));
    for run in runs {
        let words = run.len().div_ceil(WORD_BYTES);
        let first = run.len().min(WORD_BYTES);
        out.push(0xff);
        out.extend_from_slice(&run[..first]);
        if first < WORD_BYTES {
            out.resize(out.len() + WORD_BYTES - first, 0);
        }
        // At least one, as no run is empty.
        out.push((words - 1) as u8);
        out.extend_from_slice(&run[first..]);
        if first == WORD_BYTES {
            out.resize(out.len() + words * WORD_BYTES - run.len(), 0);
        }
    }
}

/// Bit i tells whether byte i is not zero.
#[inline]
fn tag_of(word: u64) -> u8 {
    const LOW: u64 = 0x7f7f_7f7f_7f7f_7f7f;
    // The high bit of each byte: set if any of its bits is.
    let high = (((word & LOW) + LOW) | word) & !LOW;
    // Gathers the eight bits in the topmost byte.
    ((high >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8
}

/// Appends words for as long as they are neither zero nor full; returns what follows them.
#[inline]
fn pack_partial<'w>(mut words: &'w [u64], out: &mut Vec<u8>) -> &'w [u64] {
    const STEP_WORDS: usize = 8;
    loop {
        // Room for whole words, of which only the part counts that is not overwritten.
        let mut packed = [0; STEP_WORDS * (1 + WORD_BYTES)];
        let (mut len, mut taken) = (0, 0);
        for &word in words.iter().take(STEP_WORDS) {
            let tag = tag_of(word);
            if tag == 0 || tag == 0xff {
                break;
            }
            let Some(room) = packed.get_mut(len..len + 1 + WORD_BYTES) else { break };
            room[0] = tag;
            room[1..].copy_from_slice(&gather(tag, word).to_le_bytes());
            len += 1 + usize::from(ONES[usize::from(tag)]);
            taken += 1;
        }
        out.extend_from_slice(packed.get(..len).unwrap_or_default());
        words = words.get(taken..).unwrap_or_default();
        if taken < STEP_WORDS {
            return words;
        }
    }
}

/// Unpacks a stream that comes in pieces.
#[derive(Debug, Default)]
pub struct Unpacker {
    state: State,
}

/// What comes next.
#[derive(Clone, Copy, Debug, Default)]
enum State {
    #[default]
    Tag,
    /// Bytes of a word, from this one on.
    Word {
        tag: u8,
        byte: u32,
    },
    ZeroCount,
    RunCount,
    /// Bytes that are zero.
    Zeros {
        left: usize,
    },
    /// Bytes as they are.
    Run {
        left: usize,
    },
}

impl Unpacker {
    /// Takes bytes off `input` and fills `out` from the front, until one of them is used up.
    /// Returns how many bytes it has written.
    pub fn unpack(&mut self, input: &mut &[u8], out: &mut [u8]) -> usize {
        let out_len = out.len();
        let mut out = out;
        loop {
            if matches!(self.state, State::Tag) {
                unpack_words(input, &mut out);
            }
            let Some(next) = self.step(input, &mut out) else { return out_len - out.len() };
            self.state = next;
        }
    }

    /// Does what the state asks for; `None` if there is nothing to do it with.
    fn step(&mut self, input: &mut &[u8], out: &mut &mut [u8]) -> Option<State> {
        Some(match &mut self.state {
            // Whether a word is ahead is known only from its tag, which is taken when there is room
            // for the word.
            State::Tag if out.is_empty() => return None,
            State::Tag => {
                let tag = take_byte(input)?;
                State::Word { tag, byte: 0 }
            }
            State::Word { tag, byte: 8 } => match tag {
                0 => State::ZeroCount,
                0xff => State::RunCount,
                _ => State::Tag,
            },
            State::Word { tag, byte } => {
                if out.is_empty() {
                    return None;
                }
                let value = if *tag >> *byte & 1 == 1 { take_byte(input)? } else { 0 };
                put(out, &[value]);
                State::Word { tag: *tag, byte: *byte + 1 }
            }
            State::ZeroCount => State::Zeros { left: usize::from(take_byte(input)?) * WORD_BYTES },
            State::RunCount => State::Run { left: usize::from(take_byte(input)?) * WORD_BYTES },
            State::Zeros { left: 0 } | State::Run { left: 0 } => State::Tag,
            State::Zeros { left } => {
                let len = (*left).min(out.len());
                if len == 0 {
                    return None;
                }
                let (zeros, rest) = std::mem::take(out).split_at_mut(len);
                zeros.fill(0);
                *out = rest;
                State::Zeros { left: *left - len }
            }
            State::Run { left } => {
                let len = (*left).min(out.len()).min(input.len());
                if len == 0 {
                    return None;
                }
                let (run, rest) = input.split_at(len);
                put(out, run);
                *input = rest;
                State::Run { left: *left - len }
            }
        })
    }
}

/// Unpacks words and runs for as long as all of the next one is there, and room for it. Bytes that
/// follow a tag are read ten at a time, so that some words at the input's end are left.
#[inline]
fn unpack_words(input: &mut &[u8], out: &mut &mut [u8]) {
    const HEAD_BYTES: usize = 1 + WORD_BYTES + 1;
    while let Some(&[tag, ref bytes @ .., count]) = input.first_chunk::<HEAD_BYTES>() {
        let bytes: &[u8; WORD_BYTES] = bytes;
        match tag {
            0 => {
                let len = (1 + usize::from(bytes[0])) * WORD_BYTES;
                let Some(zeros) = take_room(out, len) else { return };
                zeros.fill(0);
                *input = input.get(2..).unwrap_or_default();
            }
            0xff => {
                let end = HEAD_BYTES + usize::from(count) * WORD_BYTES;
                let Some((run, rest)) = input.split_at_checked(end) else { return };
                let Some(room) = take_room(out, end - 2) else { return };
                let (first, others) = room.split_at_mut(WORD_BYTES);
                first.copy_from_slice(bytes);
                others.copy_from_slice(run.get(HEAD_BYTES..).unwrap_or_default());
                *input = rest;
            }
            tag => {
                let Some(word) = take_room(out, WORD_BYTES) else { return };
                word.copy_from_slice(&spread(tag, u64::from_le_bytes(*bytes)).to_le_bytes());
                let len = 1 + usize::from(ONES[usize::from(tag)]);
                *input = input.get(len..).unwrap_or_default();
            }
        }
    }
}

/// The first `len` bytes of `out`, which are taken off it if there are so many.
#[inline]
fn take_room<'o>(out: &mut &'o mut [u8], len: usize) -> Option<&'o mut [u8]> {
    if out.len() < len {
        return None;
    }
    let (room, rest) = std::mem::take(out).split_at_mut_checked(len)?;
    *out = rest;
    Some(room)
}

/// Bits of a tag: bytes behind it.
const ONES: [u8; 256] = {
    let mut ones = [0; 256];
    let mut tag = 0;
    while tag < 256 {
        ones[tag] = (tag as u8).count_ones() as u8;
        tag += 1;
    }
    ones
};

/// By a tag: the bytes that have come into place after a move up by four bytes, by two and by one,
/// and the tag's own. A byte moves up by as many bytes as there are zeros below it, and so by some of
/// the three. Looked up, as which tag comes next is hard to predict, and a wrong branch costs more
/// than all of it.
const MOVES: [[u64; 4]; 256] = {
    let mut moves = [[0; 4]; 256];
    let mut tag = 0;
    while tag < 256 {
        let (mut at, mut from) = (0, 0);
        while at < 8 {
            if tag >> at & 1 == 1 {
                let distance = at - from;
                let mut step = 0;
                while step < 3 {
                    let by = 4 >> step;
                    // Larger moves have been made before.
                    if distance & by != 0 {
                        moves[tag][step] |= 0xff << (8 * (from + distance / by * by));
                    }
                    step += 1;
                }
                moves[tag][3] |= 0xff << (8 * at);
                from += 1;
            }
            at += 1;
        }
        tag += 1;
    }
    moves
};

/// The word that has the first of `bytes` where the tag's bits are.
#[inline]
fn spread(tag: u8, bytes: u64) -> u64 {
    let [by_four, by_two, by_one, all] = MOVES[usize::from(tag)];
    let word = bytes & !by_four | bytes << 32 & by_four;
    let word = word & !by_two | word << 16 & by_two;
    let word = word & !by_one | word << 8 & by_one;
    word & all
}

/// Undoes [`spread`]: the word's bytes where the tag's bits are, moved together.
#[inline]
fn gather(tag: u8, word: u64) -> u64 {
    let [by_four, by_two, by_one, _] = MOVES[usize::from(tag)];
    let bytes = word & !by_one | (word & by_one) >> 8;
    let bytes = bytes & !by_two | (bytes & by_two) >> 16;
    bytes & !by_four | (bytes & by_four) >> 32
}

fn take_byte(input: &mut &[u8]) -> Option<u8> {
    let (byte, rest) = input.split_first()?;
    *input = rest;
    Some(*byte)
}

/// Writes `bytes`, for which there is room, to the front of `out`.
fn put(out: &mut &mut [u8], bytes: &[u8]) {
    let (to, rest) = std::mem::take(out).split_at_mut(bytes.len());
    to.copy_from_slice(bytes);
    *out = rest;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packed(words: &[u64]) -> Vec<u8> {
        let mut out = Vec::new();
        pack(words, &mut out);
        out
    }

    /// Unpacks `input` in pieces of `piece` bytes into pieces of `room`.
    fn unpacked(input: &[u8], piece: usize, room: usize, bytes: usize) -> Vec<u8> {
        let mut unpacker = Unpacker::default();
        let mut out = vec![0xaa; bytes];
        let mut filled = 0;
        for mut piece in input.chunks(piece) {
            loop {
                let end = (filled + room).min(bytes);
                let written = unpacker.unpack(&mut piece, &mut out[filled..end]);
                filled += written;
                if written == 0 {
                    break;
                }
            }
        }
        out.truncate(filled);
        out
    }

    fn bytes_of(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn words_pack_as_the_encoding_page_shows() {
        assert_eq!(packed(&[0x0000_0000_0000_0000]), [0, 0]);
        assert_eq!(
            packed(&[0x0002_0003_0000_0008, 0x0000_01aa_0000_0019]),
            [0x51, 8, 3, 2, 0x31, 0x19, 0xaa, 1]
        );
        assert_eq!(packed(&[0; 257]), [0, 255, 0, 0]);
        let full = 0x0102_0304_0506_0708;
        assert_eq!(packed(&[full]), [0xff, 8, 7, 6, 5, 4, 3, 2, 1, 0]);
        assert_eq!(packed(&[full, full])[9], 1);
        assert_eq!(packed(&[full; 300]).len(), 300 * 8 + 2 * 2);
    }

    #[test]
    fn every_tag_spreads_its_bytes() {
        for tag in 0..=255u8 {
            let mut next = 0;
            let expected: [u8; 8] = std::array::from_fn(|i| {
                let is_there = tag >> i & 1;
                next += is_there;
                next * is_there
            });
            let word = spread(tag, 0x0807_0605_0403_0201);
            assert_eq!(word.to_le_bytes(), expected, "{tag:08b}");
            assert_eq!(spread(tag, gather(tag, word)), word, "{tag:08b}");
        }
    }

    #[test]
    fn text_is_taken_as_it_is() {
        for len in [0usize, 1, 7, 8, 9, 16, 2047, 2048, 2049, 5000] {
            let text: Vec<u8> = (0..len).map(|i| (i % 7) as u8).collect();
            let mut out = Vec::new();
            pack_as_is(&text, &mut out);
            let bytes = len.div_ceil(8) * 8;
            let back = unpacked(&out, 100, 100, bytes + 8);
            assert_eq!(back.len(), bytes, "{len}");
            assert_eq!(&back[..len], text);
            assert!(back[len..].iter().all(|byte| *byte == 0));
        }
    }

    /// Words of the kinds there are: zero, small numbers, floats, text.
    fn word() -> impl Strategy<Value = u64> {
        prop_oneof![
            Just(0),
            any::<u64>(),
            any::<u64>().prop_map(|word| word | 0x0101_0101_0101_0101),
            (any::<u16>(), any::<u16>()).prop_map(|(a, b)| u64::from(a) | u64::from(b) << 32),
            any::<f32>().prop_map(|value| f64::from(value).to_bits()),
            (any::<u64>(), any::<u64>()).prop_map(|(a, b)| a & b & (b >> 7)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_was_packed_comes_back(
            words in proptest::collection::vec(word(), 0..400),
            piece in 1usize..40,
            room in 1usize..40,
        ) {
            let packed = packed(&words);
            let bytes = bytes_of(&words);
            // Room for more than there is.
            prop_assert_eq!(&unpacked(&packed, piece, room, bytes.len() + 16), &bytes);
            prop_assert_eq!(&unpacked(&packed, packed.len().max(1), 1 << 20, bytes.len()), &bytes);
        }

        #[test]
        fn the_capnp_crate_reads_what_we_pack(
            words in proptest::collection::vec(word(), 1..400),
        ) {
            let table = (words.len() as u64) << 32;
            let packed = packed(&[&[table], &words[..]].concat());
            let read = capnp::serialize_packed::read_message(&packed[..], Default::default());
            let segments = read.unwrap().into_segments();
            let theirs = capnp::message::ReaderSegments::get_segment(&segments, 0);
            prop_assert_eq!(theirs, Some(&bytes_of(&words)[..]));
        }

        #[test]
        fn we_read_what_the_capnp_crate_packs(
            words in proptest::collection::vec(word(), 0..400),
            piece in 1usize..40,
        ) {
            let mut builder = capnp::message::Builder::new_default();
            builder.set_root::<capnp::data::Owned>(&bytes_of(&words)[..]).unwrap();
            let (mut plain, mut packed) = (Vec::new(), Vec::new());
            capnp::serialize::write_message(&mut plain, &builder).unwrap();
            capnp::serialize_packed::write_message(&mut packed, &builder).unwrap();
            prop_assert_eq!(unpacked(&packed, piece, 64, plain.len()), plain);
        }

        #[test]
        fn any_bytes_unpack_to_something(
            input in proptest::collection::vec(any::<u8>(), 0..300),
            piece in 1usize..40,
        ) {
            let in_pieces = unpacked(&input, piece, 7, 4096);
            prop_assert_eq!(in_pieces, unpacked(&input, 300, 4096, 4096));
        }
    }
}
