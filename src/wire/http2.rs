//! Frames of HTTP/2 as they go by (RFC 9113, section 4.1). Their heads are looked at, payloads passed
//! over.
//!
//! ```text
//! ┌────────────┬──────────┬───────────┬───────────────┬─────────┐
//! │ length 3 B │ kind 1 B │ flags 1 B │ stream id 4 B │ payload │     big endian
//! └────────────┴──────────┴───────────┴───────────────┴─────────┘
//! ```

pub const HEAD_BYTES: usize = 9;

/// Kinds of frames.
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const GOAWAY: u8 = 7;
pub const CONTINUATION: u8 = 9;

/// The flag of the last frame of a head.
pub const END_HEADERS: u8 = 4;
/// Flags of HEADERS: the first byte of the payload says how many there are at its end that mean
/// nothing; five bytes of an order of importance are before the head.
pub const PADDED: u8 = 8;
pub const PRIORITY: u8 = 0x20;

/// What a frame says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHead {
    /// Bytes of its payload.
    pub length: usize,
    pub kind: u8,
    pub flags: u8,
}

/// What has come of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    Head,
    /// Bytes of its payload, at least one.
    Payload(&'a [u8]),
    /// All of it.
    End,
}

/// Where in its frames a stream of bytes is.
#[derive(Debug, Default)]
pub struct Frames {
    head: [u8; HEAD_BYTES],
    /// Bytes of the head that have come; none between frames.
    head_bytes: usize,
    /// Bytes of the payload that are still to come.
    payload_left: usize,
}

impl Frames {
    /// Passes over bytes that have come, and tells each part of a frame in its order.
    pub fn pass(&mut self, mut bytes: &[u8], mut tell: impl FnMut(FrameHead, Part<'_>)) {
        while !bytes.is_empty() {
            if self.head_bytes < HEAD_BYTES {
                let (head, behind) = bytes.split_at(bytes.len().min(HEAD_BYTES - self.head_bytes));
                self.head[self.head_bytes..][..head.len()].copy_from_slice(head);
                self.head_bytes += head.len();
                bytes = behind;
                let Some(head) = self.current() else { return };
                self.payload_left = head.length;
                tell(head, Part::Head);
            } else {
                let (passed, behind) = bytes.split_at(bytes.len().min(self.payload_left));
                self.payload_left -= passed.len();
                bytes = behind;
                debug_assert!(bytes.is_empty() || self.payload_left == 0);
                tell(self.frame_head(), Part::Payload(passed));
            }
            if self.payload_left == 0 {
                self.head_bytes = 0;
                tell(self.frame_head(), Part::End);
            }
        }
    }

    /// Whether a frame has begun that is not whole.
    pub fn is_within(&self) -> bool {
        self.head_bytes > 0
    }

    /// The frame that has begun, if its head is whole and it is not.
    pub fn current(&self) -> Option<FrameHead> {
        (self.head_bytes == HEAD_BYTES).then(|| self.frame_head())
    }

    fn frame_head(&self) -> FrameHead {
        let [a, b, c, kind, flags, ..] = self.head;
        FrameHead { length: u32::from_be_bytes([0, a, b, c]) as usize, kind, flags }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, PartialEq)]
    enum Told {
        Head,
        Payload(usize),
        End,
    }

    /// What is told of bytes that come in pieces of so many, neighbouring payloads together.
    fn told(bytes: &[u8], piece: usize) -> Vec<(FrameHead, Told)> {
        let (mut frames, mut told) = (Frames::default(), Vec::new());
        for bytes in bytes.chunks(piece) {
            frames.pass(bytes, |head, part| match (told.last_mut(), part) {
                (Some((_, Told::Payload(sum))), Part::Payload(more)) => *sum += more.len(),
                (_, Part::Payload(first)) => told.push((head, Told::Payload(first.len()))),
                (_, Part::Head) => told.push((head, Told::Head)),
                (_, Part::End) => told.push((head, Told::End)),
            });
        }
        told
    }

    proptest! {
        #[test]
        fn frames_are_told_however_they_are_cut(
            sent in prop::collection::vec((any::<u8>(), any::<u8>(), 0_usize..40), 0..8),
            piece in 1_usize..60,
        ) {
            let (mut bytes, mut expected) = (Vec::new(), Vec::new());
            for (kind, flags, length) in sent {
                let head = FrameHead { length, kind, flags };
                bytes.extend([0, 0, length as u8, kind, flags, 0, 0, 0, 1]);
                bytes.resize(bytes.len() + length, 0xff);
                expected.push((head, Told::Head));
                expected.extend((length > 0).then_some((head, Told::Payload(length))));
                expected.push((head, Told::End));
            }
            prop_assert_eq!(told(&bytes, piece), expected);
        }
    }
}
