//! Bytes of a file, read by a cursor that moves forward only. Every step is bounds-checked; what does
//! not fit names what was read and where.

/// What was to be read and was not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("byte {at}: {what}")]
pub struct Malformed {
    /// Where it was to begin, counted from the cursor's first byte.
    pub at: usize,
    pub what: &'static str,
}

/// Reads numbers and texts as Go's `encoding/binary` writes them.
#[derive(Clone, Debug)]
pub struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub fn new(bytes: &'a [u8]) -> Cursor<'a> {
        Cursor { bytes, at: 0 }
    }

    /// Bytes read so far.
    pub fn at(&self) -> usize {
        self.at
    }

    /// Bytes left.
    pub fn len(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All that is left must have been read.
    pub fn end(&self, what: &'static str) -> Result<(), Malformed> {
        if self.is_empty() { Ok(()) } else { Err(self.malformed(what)) }
    }

    pub fn malformed(&self, what: &'static str) -> Malformed {
        Malformed { at: self.at, what }
    }

    #[inline]
    pub fn take(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], Malformed> {
        let (taken, _) =
            self.bytes[self.at..].split_at_checked(len).ok_or_else(|| self.malformed(what))?;
        self.at += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Malformed> {
        let bytes = self.bytes[self.at..].first_chunk().ok_or_else(|| self.malformed(what))?;
        self.at += N;
        Ok(*bytes)
    }

    pub fn byte(&mut self, what: &'static str) -> Result<u8, Malformed> {
        self.array::<1>(what).map(|[byte]| byte)
    }

    pub fn be32(&mut self, what: &'static str) -> Result<u32, Malformed> {
        self.array(what).map(u32::from_be_bytes)
    }

    pub fn be64(&mut self, what: &'static str) -> Result<u64, Malformed> {
        self.array(what).map(u64::from_be_bytes)
    }

    /// An unsigned varint; as in Go it is refused if it has more than 64 bits.
    #[inline]
    pub fn uvarint(&mut self, what: &'static str) -> Result<u64, Malformed> {
        let mut value = 0;
        for (i, &byte) in self.bytes[self.at..].iter().take(10).enumerate() {
            if i == 9 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << (7 * i);
            if byte < 0x80 {
                self.at += i + 1;
                return Ok(value);
            }
        }
        Err(self.malformed(what))
    }

    /// A zigzagged varint.
    #[inline]
    pub fn varint(&mut self, what: &'static str) -> Result<i64, Malformed> {
        self.uvarint(what).map(super::varint::unzigzag)
    }

    /// An unsigned varint of at most 32 bits.
    #[inline]
    pub fn uvarint32(&mut self, what: &'static str) -> Result<u32, Malformed> {
        let before = self.malformed(what);
        self.uvarint(what)?.try_into().map_err(|_| before)
    }

    /// Bytes behind their length.
    #[inline]
    pub fn len_prefixed(&mut self, what: &'static str) -> Result<&'a [u8], Malformed> {
        let before = self.malformed(what);
        let len = usize::try_from(self.uvarint(what)?).map_err(|_| before)?;
        self.take(len, what).map_err(|_| before)
    }
}

/// Appends `value` as a zigzagged varint.
pub fn push_zigzag(out: &mut Vec<u8>, value: i64) {
    super::varint::push_varint(out, super::varint::zigzag(value));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::varint::push_varint;

    #[test]
    fn what_is_written_is_read() {
        let mut bytes = vec![7];
        bytes.extend(0xdead_beef_u32.to_be_bytes());
        bytes.extend(u64::MAX.to_be_bytes());
        let numbers = [0, 1, -1, 63, -64, 64, i64::MAX, i64::MIN];
        for number in numbers {
            push_zigzag(&mut bytes, number);
            push_varint(&mut bytes, number as u64);
        }
        push_varint(&mut bytes, 3);
        bytes.extend(b"abc");
        let mut cursor = Cursor::new(&bytes);
        assert_eq!(cursor.byte("a byte"), Ok(7));
        assert_eq!(cursor.be32("a number"), Ok(0xdead_beef));
        assert_eq!(cursor.be64("a number"), Ok(u64::MAX));
        for number in numbers {
            assert_eq!(cursor.varint("a number"), Ok(number));
            assert_eq!(cursor.uvarint("a number"), Ok(number as u64));
        }
        assert_eq!(cursor.len_prefixed("a text"), Ok(&b"abc"[..]));
        assert_eq!(cursor.end("more"), Ok(()));
    }

    #[test]
    fn what_does_not_fit_is_told_with_its_place_and_moves_nothing() {
        let mut cursor = Cursor::new(&[9, 0xff, 0xff]);
        assert_eq!(cursor.byte("a byte"), Ok(9));
        let at = |what| Malformed { at: 1, what };
        assert_eq!(cursor.be32("four"), Err(at("four")));
        assert_eq!(cursor.uvarint("a varint"), Err(at("a varint")));
        assert_eq!(cursor.take(3, "three"), Err(at("three")));
        assert_eq!(cursor.end("more"), Err(at("more")));
        assert_eq!(cursor.len(), 2);
        // A length that nothing follows is told where it stands.
        let mut cursor = Cursor::new(&[9, 5, 1, 2]);
        assert_eq!(cursor.byte("a byte"), Ok(9));
        assert_eq!(cursor.len_prefixed("a text"), Err(at("a text")));
        // 65 bits, and 33 where 32 are asked for.
        let over = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2];
        assert!(Cursor::new(&over).uvarint("a varint").is_err());
        let over = [0x80, 0x80, 0x80, 0x80, 0x10];
        assert!(Cursor::new(&over).uvarint32("a varint").is_err());
    }
}
