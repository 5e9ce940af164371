//! HTTP/2 as it comes, as far as tells what is still missing of it.
//!
//! After the preface there are [frames](crate::wire::http2). A head comes as HEADERS and, until one
//! has the flag END_HEADERS, as CONTINUATION. Nothing else may come between.

use crate::door::heads::HEADERS_MAP_MAX;
use crate::wire::hpack::FieldCounter;
use crate::wire::http2::{
    self, CONTINUATION, DATA, END_HEADERS, FrameHead, HEADERS, PADDED, PRIORITY, Part,
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Where in its frames a connection is.
#[derive(Default)]
pub(super) struct Frames {
    /// Bytes of the preface that have come.
    preface: usize,
    walk: http2::Frames,
    heads: HeadParts,
}

#[derive(Default)]
struct HeadParts {
    /// Whether a head has begun that is not whole.
    in_head: bool,
    /// Bytes of it.
    bytes: usize,
    fields: FieldCounter,
    /// Of the frame: whether its first byte tells of padding and is still to come, other bytes before
    /// its piece of the head, and those of that piece.
    is_padded: bool,
    before: usize,
    piece: usize,
    /// Fields of a head that was whole and had more than anyone can keep.
    too_many: Option<usize>,
    /// Frames and heads that were whole.
    wholes: u32,
}

impl HeadParts {
    fn take(&mut self, frame: FrameHead, part: Part<'_>) {
        let is_of_head = matches!(frame.kind, HEADERS | CONTINUATION);
        match part {
            Part::Head => {
                self.in_head |= is_of_head;
                self.begin_piece(frame);
            }
            Part::Payload(bytes) if self.in_head => {
                self.bytes += bytes.len();
                self.count(bytes);
            }
            Part::Payload(_) => {}
            Part::End => {
                if is_of_head && frame.flags & END_HEADERS != 0 {
                    (self.in_head, self.bytes) = (false, 0);
                    let fields = std::mem::take(&mut self.fields).fields();
                    if fields > HEADERS_MAP_MAX {
                        self.too_many = Some(fields);
                    }
                }
                if !self.in_head {
                    self.wholes = self.wholes.wrapping_add(1);
                }
            }
        }
    }
}

impl HeadParts {
    fn begin_piece(&mut self, frame: FrameHead) {
        let is = |flag| frame.kind == HEADERS && frame.flags & flag != 0;
        self.is_padded = is(PADDED);
        self.before = if is(PRIORITY) { 5 } else { 0 };
        let is_of_head = matches!(frame.kind, HEADERS | CONTINUATION);
        let others = self.before + usize::from(self.is_padded);
        self.piece = if is_of_head { frame.length.saturating_sub(others) } else { 0 };
    }

    /// Counts the fields that begin in these bytes of a frame.
    fn count(&mut self, mut bytes: &[u8]) {
        if let [padding, rest @ ..] = bytes
            && self.is_padded
        {
            self.is_padded = false;
            self.piece = self.piece.saturating_sub(usize::from(*padding));
            bytes = rest;
        }
        let (before, bytes) = bytes.split_at(bytes.len().min(self.before));
        self.before -= before.len();
        let bytes = &bytes[..bytes.len().min(self.piece)];
        self.piece -= bytes.len();
        self.fields.pass(bytes);
    }
}

impl Frames {
    /// Fields of a head that had more than anyone can keep, said once.
    pub(super) fn take_too_many(&mut self) -> Option<usize> {
        self.heads.too_many.take()
    }

    /// Takes what has come. False if it cannot be HTTP/2.
    pub(super) fn see(&mut self, bytes: &[u8]) -> bool {
        let preface_left = &PREFACE[self.preface..];
        let common = preface_left.len().min(bytes.len());
        let (preface, frames) = bytes.split_at(common);
        if preface_left[..common] != *preface {
            return false;
        }
        self.preface += common;
        self.walk.pass(frames, |frame, part| self.heads.take(frame, part));
        true
    }

    /// Whether the preface has come, which no other protocol begins with.
    pub(super) fn is_http2(&self) -> bool {
        self.preface == PREFACE.len()
    }

    /// Whether the preface and a first frame have come, which a client sends at once.
    pub(super) fn has_begun(&self) -> bool {
        self.heads.wholes > 0
    }

    /// The number of the frame or head that has begun and is not whole, if it is not one of data,
    /// which may come as slowly as its request's own limits allow.
    pub(super) fn partial(&self) -> Option<u32> {
        let is_partial = self.heads.in_head || self.walk.is_within();
        let is_data = self.walk.current().is_some_and(|frame| frame.kind == DATA);
        (is_partial && !is_data).then_some(self.heads.wholes)
    }

    /// Bytes that have come of a head that is not whole.
    pub(super) fn head_bytes(&self) -> usize {
        self.heads.bytes
    }

    /// What it may take: headers that were sent before are named by one byte.
    pub(super) fn head_memory(&self) -> usize {
        /// As many headers as fit into a map of them.
        const MAP_BYTES_MAX: usize = 4 << 20;
        // A usual head is not taken for one of a thousand headers.
        let bytes = self.head_bytes();
        if bytes <= USUAL_BYTES {
            return bytes;
        }
        let headers = bytes.saturating_mul(super::heads::HEADER_OVERHEAD);
        bytes.saturating_add(headers.min(MAP_BYTES_MAX))
    }
}

/// Heads of gRPC are under 1 KiB.
const USUAL_BYTES: usize = 2 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        let length = u32::try_from(payload).unwrap().to_be_bytes();
        let mut bytes = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
        bytes.resize(9 + payload, 7);
        bytes
    }

    /// All of it at once, and byte by byte.
    fn seen(bytes: &[u8]) -> Frames {
        let (mut whole, mut by_byte) = (Frames::default(), Frames::default());
        assert!(whole.see(bytes));
        assert!(bytes.iter().all(|byte| by_byte.see(&[*byte])));
        assert_eq!(whole.partial(), by_byte.partial());
        assert_eq!(whole.head_bytes(), by_byte.head_bytes());
        whole
    }

    #[test]
    fn what_is_missing_is_known_at_every_byte() {
        const SETTINGS: u8 = 4;
        assert!(!Frames::default().see(b"POST /"));
        assert!(!Frames::default().see(b"PRI * HTTP/1.1"));
        assert!(!seen(&PREFACE[..23]).is_http2());
        assert!(seen(PREFACE).is_http2() && !seen(PREFACE).has_begun());
        let begun = [PREFACE, &frame(SETTINGS, 0, 0)[..]].concat();
        assert!(seen(&begun).has_begun());
        let after = |more: &[u8]| seen(&[&begun, more].concat());
        assert_eq!(after(&[]).partial(), None);
        assert_eq!(after(&[0]).partial(), Some(1), "a frame's header");
        assert_eq!(after(&frame(DATA, 0, 100)[..50]).partial(), None, "data");
        assert_eq!(after(&frame(SETTINGS, 0, 100)[..50]).partial(), Some(1));
        let head = frame(HEADERS, 0, 3000);
        assert_eq!(after(&head[..9 + 1000]).head_bytes(), 1000);
        assert_eq!(after(&head).partial(), Some(1), "no end");
        assert_eq!(after(&head).head_bytes(), 3000);
        assert_eq!(after(&head).head_memory(), 3000 * 129);
        let more = [&head[..], &frame(CONTINUATION, 0, 500)].concat();
        assert_eq!(after(&more).head_bytes(), 3500);
        let whole = [&head[..], &frame(CONTINUATION, END_HEADERS, 0)].concat();
        assert_eq!((after(&whole).partial(), after(&whole).head_bytes()), (None, 0));
        assert_eq!(after(&whole).take_too_many(), None);
        let two = [&whole[..], &frame(HEADERS, 0, 1)].concat();
        assert_eq!(after(&two).partial(), Some(2), "another wait than the one before");
    }

    /// Heads of so many fields, with all that a frame may have around its piece.
    #[test]
    fn heads_of_too_many_fields_are_told() {
        let framed = |kind, flags, payload: &[u8]| {
            let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
            [&[length[1], length[2], length[3], kind, flags, 0, 0, 0, 1], payload].concat()
        };
        let head = |more: usize| {
            let padded = [&[3, 0, 0, 0, 0, 0][..], &[0x82; 1000], &[0x82; 3]].concat();
            let rest = vec![0x82; HEADERS_MAP_MAX - 1000 + more];
            let (middle, last) = rest.split_at(10_000);
            [
                PREFACE.to_vec(),
                framed(HEADERS, PADDED | PRIORITY, &padded),
                framed(CONTINUATION, 0, middle),
                framed(CONTINUATION, END_HEADERS, last),
            ]
            .concat()
        };
        assert_eq!(seen(&head(0)).take_too_many(), None);
        let mut over = seen(&head(1));
        assert_eq!(over.take_too_many(), Some(HEADERS_MAP_MAX + 1));
        assert_eq!(over.take_too_many(), None, "once");
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_taken(bytes: Vec<u8>, more: Vec<u8>) {
            let mut frames = Frames::default();
            frames.see(PREFACE);
            frames.see(&bytes);
            frames.see(&more);
            let _ = (frames.partial(), frames.head_memory());
        }
    }
}
