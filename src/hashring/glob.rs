//! Tenant patterns with the meaning of Go's `filepath.Match` on Unix: `*` any run without `/`, `?`
//! one character but `/`, `[a-z]` and `[^a-z]` one character, `\` takes the next one literally.
//!
//! A piece that follows a `*` stays where it first fits, even if a later place would let the rest
//! match: that is Go's rule, and it shows when a class matches a `/`.

/// The pattern can match nothing, whatever the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("syntax error in pattern")]
pub(super) struct MalformedPattern;

/// A pattern, ready to match.
#[derive(Clone, Debug)]
pub(super) struct Glob {
    pieces: Vec<Piece>,
}

/// What stands between two stars.
#[derive(Clone, Debug, Default)]
struct Piece {
    /// One or more `*` stand before it.
    after_star: bool,
    atoms: Vec<Atom>,
}

#[derive(Clone, Debug)]
enum Atom {
    Byte(u8),
    /// `?`
    AnyCharacter,
    Class {
        ranges: Vec<(char, char)>,
        negated: bool,
    },
}

impl Glob {
    pub(super) fn parse(pattern: &str) -> Result<Glob, MalformedPattern> {
        let mut pieces = vec![Piece::default()];
        let mut rest = pattern.chars();
        while let Some(c) = rest.next() {
            let literal = match c {
                '*' => {
                    match pieces.last_mut() {
                        Some(piece) if piece.atoms.is_empty() => piece.after_star = true,
                        _ => pieces.push(Piece { after_star: true, atoms: Vec::new() }),
                    }
                    continue;
                }
                '?' => Err(Atom::AnyCharacter),
                '[' => Err(parse_class(&mut rest)?),
                '\\' => Ok(rest.next().ok_or(MalformedPattern)?),
                other => Ok(other),
            };
            // `pieces` is never empty.
            let Some(piece) = pieces.last_mut() else { break };
            match literal {
                Ok(c) => {
                    piece.atoms.extend(c.encode_utf8(&mut [0; 4]).bytes().map(Atom::Byte));
                }
                Err(atom) => piece.atoms.push(atom),
            }
        }
        Ok(Glob { pieces })
    }

    pub(super) fn matches(&self, name: &str) -> bool {
        let mut rest = name.as_bytes();
        let mut pieces = self.pieces.iter().peekable();
        while let Some(piece) = pieces.next() {
            let is_last = pieces.peek().is_none();
            if piece.after_star && piece.atoms.is_empty() {
                // Only the last piece can be empty after a star.
                return !rest.contains(&b'/');
            }
            let Some(after) = piece.fit(rest, is_last) else { return false };
            rest = after;
        }
        rest.is_empty()
    }
}

impl Piece {
    /// What is left of `name` after this piece. The last piece has to reach the end.
    fn fit<'a>(&self, name: &'a [u8], is_last: bool) -> Option<&'a [u8]> {
        let fits =
            |from: &'a [u8]| self.match_prefix(from).filter(|after| after.is_empty() || !is_last);
        if !self.after_star {
            return fits(name);
        }
        // The star may take all up to the first slash, but not the slash.
        let star_max = name.iter().position(|byte| *byte == b'/').unwrap_or(name.len());
        (0..=star_max).find_map(|skipped| fits(&name[skipped..]))
    }

    fn match_prefix<'a>(&self, mut name: &'a [u8]) -> Option<&'a [u8]> {
        for atom in &self.atoms {
            let (&byte, after_byte) = name.split_first()?;
            name = match atom {
                Atom::Byte(wanted) => (byte == *wanted).then_some(after_byte)?,
                Atom::AnyCharacter => {
                    let (_, width) = first_character(name);
                    (byte != b'/').then_some(&name[width..])?
                }
                Atom::Class { ranges, negated } => {
                    let (c, width) = first_character(name);
                    let contained = ranges.iter().any(|(lo, hi)| (*lo..=*hi).contains(&c));
                    (contained != *negated).then_some(&name[width..])?
                }
            };
        }
        Some(name)
    }
}

/// The first character of `name`, which is not empty, and its width in bytes. A star can stop
/// within a character; what follows is a replacement character of one byte.
fn first_character(name: &[u8]) -> (char, usize) {
    let head = &name[..name.len().min(4)];
    let valid = head.utf8_chunks().next().map_or("", |chunk| chunk.valid());
    match valid.chars().next() {
        Some(c) => (c, c.len_utf8()),
        None => (char::REPLACEMENT_CHARACTER, 1),
    }
}

/// The rest of a class, after its `[`.
fn parse_class(rest: &mut std::str::Chars<'_>) -> Result<Atom, MalformedPattern> {
    let negated = rest.as_str().starts_with('^');
    if negated {
        rest.next();
    }
    let mut ranges = Vec::new();
    loop {
        if !ranges.is_empty() && rest.as_str().starts_with(']') {
            rest.next();
            return Ok(Atom::Class { ranges, negated });
        }
        let lo = class_character(rest)?;
        let mut hi = lo;
        if rest.as_str().starts_with('-') {
            rest.next();
            hi = class_character(rest)?;
        }
        ranges.push((lo, hi));
    }
}

/// One end of a range. Something has to follow it, at least the closing bracket.
fn class_character(rest: &mut std::str::Chars<'_>) -> Result<char, MalformedPattern> {
    let c = match rest.next() {
        None | Some('-' | ']') => return Err(MalformedPattern),
        Some('\\') => rest.next().ok_or(MalformedPattern)?,
        Some(c) => c,
    };
    if rest.as_str().is_empty() { Err(MalformedPattern) } else { Ok(c) }
}
