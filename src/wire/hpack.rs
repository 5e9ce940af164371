//! Heads of HTTP/2 as they go by: their fields are counted, not read (RFC 7541, section 6).
//!
//! ```text
//! 1nnnnnnn                     a field that was sent before
//! 01nnnnnn, 0000nnnn, 0001nnnn a field: its name's number, or 0 and its name; then its value
//! 001nnnnn                     the size of the table: no field
//! name, value                  Hnnnnnnn (H: coded), so many bytes
//! n                            if all its bits are set, seven bits more in each byte that follows,
//!                              up to one without the highest bit
//! ```

/// Counts the fields of one head, however it is cut.
#[derive(Clone, Debug, Default)]
pub struct FieldCounter {
    fields: usize,
    next: Next,
}

/// What the next byte belongs to.
#[derive(Clone, Copy, Debug, Default)]
enum Next {
    #[default]
    Field,
    /// The rest of a number, of which `value` has come.
    Number { of: Number, value: u64, shift: u32 },
    /// The length of a text. Names and values to come, this one too.
    Length { texts: u8 },
    /// A text.
    Text { bytes: u64, texts_behind: u8 },
}

#[derive(Clone, Copy, Debug)]
enum Number {
    /// Of a name, or a size; so many texts follow.
    Index {
        texts: u8,
    },
    Length {
        texts: u8,
    },
}

impl FieldCounter {
    /// Fields that have begun.
    pub fn fields(&self) -> usize {
        self.fields
    }

    /// Passes over bytes that have come.
    pub fn pass(&mut self, mut bytes: &[u8]) {
        while let [first, rest @ ..] = bytes {
            if let Next::Text { bytes: left, texts_behind } = self.next {
                let passed = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                bytes = &bytes[passed..];
                self.next = text(left - passed as u64, texts_behind);
                continue;
            }
            bytes = rest;
            self.next = self.after(*first);
        }
    }

    fn after(&mut self, byte: u8) -> Next {
        match self.next {
            Next::Field => {
                // The bits of the number, and the texts if there is a number and if there is none.
                let (max, texts, texts_at_0) = match byte {
                    0x80.. => (0x7f, 0, 0),
                    0x40.. => (0x3f, 1, 2),
                    0x20.. => (0x1f, 0, 0),
                    _ => (0x0f, 1, 2),
                };
                self.fields += usize::from(!(0x20..0x40).contains(&byte));
                match byte & max {
                    0 => after_texts(texts_at_0),
                    number if number == max => {
                        Next::Number { of: Number::Index { texts }, value: 0, shift: 0 }
                    }
                    _ => after_texts(texts),
                }
            }
            Next::Number { of, value, shift } => {
                let more = u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(u64::MAX);
                let value = value.saturating_add(more);
                match of {
                    _ if byte >= 0x80 => Next::Number { of, value, shift: shift.saturating_add(7) },
                    Number::Index { texts } => after_texts(texts),
                    Number::Length { texts } => text(value, texts - 1),
                }
            }
            Next::Length { texts } => match byte & 0x7f {
                0x7f => Next::Number { of: Number::Length { texts }, value: 0x7f, shift: 0 },
                bytes => text(u64::from(bytes), texts - 1),
            },
            text @ Next::Text { .. } => text,
        }
    }
}

fn text(bytes: u64, texts_behind: u8) -> Next {
    match bytes {
        0 => after_texts(texts_behind),
        _ => Next::Text { bytes, texts_behind },
    }
}

fn after_texts(texts: u8) -> Next {
    match texts {
        0 => Next::Field,
        _ => Next::Length { texts },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn push_number(out: &mut Vec<u8>, first: u8, max: u8, number: usize) {
        if number < usize::from(max) {
            out.push(first | number as u8);
            return;
        }
        out.push(first | max);
        let mut rest = number - usize::from(max);
        while rest >= 0x80 {
            out.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        out.push(rest as u8);
    }

    fn push_text(out: &mut Vec<u8>, len: usize) {
        push_number(out, 0x80, 0x7f, len);
        out.resize(out.len() + len, 0xff);
    }

    /// A kind of field, a number, and lengths of name and value. Whether it counts.
    fn push_field(
        out: &mut Vec<u8>,
        (kind, number, name, value): (u8, usize, usize, usize),
    ) -> bool {
        let (first, max) =
            [(0x80, 0x7f), (0x40, 0x3f), (0x20, 0x1f), (0x10, 0xf), (0, 0xf)][usize::from(kind)];
        push_number(out, first, max, number);
        if matches!(kind, 1 | 3 | 4) {
            if number == 0 {
                push_text(out, name);
            }
            push_text(out, value);
        }
        kind != 2
    }

    proptest! {
        #[test]
        fn fields_are_counted_however_they_are_cut(
            fields in prop::collection::vec((0_u8..5, 0_usize..300, 0_usize..300, 0_usize..300), 0..20),
            piece in 1_usize..60,
        ) {
            let mut bytes = Vec::new();
            let counts = fields.into_iter().filter(|field| push_field(&mut bytes, *field)).count();
            let mut counter = FieldCounter::default();
            bytes.chunks(piece).for_each(|bytes| counter.pass(bytes));
            prop_assert_eq!(counter.fields(), counts);
            prop_assert!(matches!(counter.next, Next::Field));
        }

        #[test]
        fn any_bytes_are_taken(bytes: Vec<u8>) {
            let mut counter = FieldCounter::default();
            counter.pass(&bytes);
            prop_assert!(counter.fields() <= bytes.len());
        }
    }
}
