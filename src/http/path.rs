//! Paths that are nearly right, as Thanos' two routers see them.

use std::borrow::Cow;

/// What a path is to a listener that serves a few fixed ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resolved {
    /// Exactly this one, once percent signs are decoded.
    Known(&'static str),
    /// This one is meant: a slash too many, dots, or another case.
    Meant(&'static str),
    Unknown,
}

/// How far a path may be from the one that is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tolerance {
    /// Dots, double slashes, a slash at the end, another case: the remote-write listener.
    Generous,
    /// Dots and double slashes: the operator's listener.
    Exact,
}

/// Looks `path`, as it stands in the request, up among `known`.
pub(super) fn resolve(path: &str, known: &[&'static str], tolerance: Tolerance) -> Resolved {
    let decoded = percent_decode(path);
    if let Some(exact) = known.iter().find(|known| known.as_bytes() == &*decoded) {
        return Resolved::Known(exact);
    }
    let cleaned = clean(&decoded);
    let meant = known.iter().find(|known| match tolerance {
        Tolerance::Generous => known.as_bytes().eq_ignore_ascii_case(&cleaned),
        Tolerance::Exact => known.as_bytes() == cleaned && !decoded.ends_with(b"/"),
    });
    meant.map_or(Resolved::Unknown, |known| Resolved::Meant(known))
}

/// Decodes `%xx`; a percent sign without two hexadecimal digits stays as it is.
fn percent_decode(path: &str) -> Cow<'_, [u8]> {
    if !path.contains('%') {
        return Cow::Borrowed(path.as_bytes());
    }
    let hex = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut decoded = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let [byte, tail @ ..] = rest {
        rest = tail;
        let mut decoded_byte = *byte;
        if let (b'%', [high, low, tail @ ..]) = (byte, tail)
            && let (Some(high), Some(low)) = (hex(*high), hex(*low))
        {
            decoded_byte = high << 4 | low;
            rest = tail;
        }
        decoded.push(decoded_byte);
    }
    Cow::Owned(decoded)
}

/// Without empty elements and single dots; a double dot takes the element before it away.
fn clean(path: &[u8]) -> Vec<u8> {
    let mut elements: Vec<&[u8]> = Vec::new();
    for element in path.split(|byte| *byte == b'/') {
        match element {
            b"" | b"." => {}
            b".." => {
                elements.pop();
            }
            _ => elements.push(element),
        }
    }
    [&b"/"[..], &elements.join(&b'/')].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearly_right_paths_are_told_from_wrong_ones() {
        const KNOWN: &[&str] = &["/api/v1/receive", "/-/ready"];
        let cases = [
            ("/api/v1/receive", Resolved::Known(KNOWN[0])),
            ("/api/v1/%72eceive", Resolved::Known(KNOWN[0])),
            ("/api/v1/receive/", Resolved::Meant(KNOWN[0])),
            ("//api/v1/receive", Resolved::Meant(KNOWN[0])),
            ("/API/v1/receive", Resolved::Meant(KNOWN[0])),
            ("/api/v1/../v1/./receive", Resolved::Meant(KNOWN[0])),
            ("/../api/v1/receive", Resolved::Meant(KNOWN[0])),
            ("//-/ready", Resolved::Meant(KNOWN[1])),
            ("/api/v1", Resolved::Unknown),
            ("/", Resolved::Unknown),
            ("", Resolved::Unknown),
            ("/api/v1/receive%", Resolved::Unknown),
            ("/api/v1/receive%2", Resolved::Unknown),
            ("/api/v1/receive%zz", Resolved::Unknown),
            ("/%ff%00", Resolved::Unknown),
        ];
        for (path, resolved) in cases {
            assert_eq!(resolve(path, KNOWN, Tolerance::Generous), resolved, "{path}");
        }
    }

    #[test]
    fn the_operators_listener_corrects_less() {
        const KNOWN: &[&str] = &["/-/ready"];
        let cases = [
            ("/-/ready", Resolved::Known(KNOWN[0])),
            ("//-/ready", Resolved::Meant(KNOWN[0])),
            ("/-/ready/", Resolved::Unknown),
            ("/-/READY", Resolved::Unknown),
        ];
        for (path, resolved) in cases {
            assert_eq!(resolve(path, KNOWN, Tolerance::Exact), resolved, "{path}");
        }
    }
}
