//! Frames of HTTP/2 as they come, as far as tells what is still missing of them.
//!
//! ```text
//! "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"   then, again and again:
//! ┌────────────┬──────────┬───────────┬───────────────┬─────────┐
//! │ length 3 B │ kind 1 B │ flags 1 B │ stream id 4 B │ payload │     big endian
//! └────────────┴──────────┴───────────┴───────────────┴─────────┘
//! ```
//!
//! A head comes as HEADERS (kind 1) and, until one has the flag END_HEADERS (4), as CONTINUATION
//! (kind 9). Nothing else may come between.

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADER_BYTES: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// Where in its frames a connection is.
#[derive(Default)]
pub(super) struct Frames {
    /// Bytes of the preface that have come.
    preface: usize,
    header: [u8; HEADER_BYTES],
    header_len: usize,
    /// Bytes of the payload that are still to come.
    payload_left: usize,
    /// Whether a head has begun that is not whole.
    in_head: bool,
    /// Bytes of it.
    head_bytes: usize,
    /// Frames and heads that were whole.
    wholes: u32,
}

impl Frames {
    /// Takes what has come. False if it cannot be HTTP/2.
    pub(super) fn see(&mut self, mut bytes: &[u8]) -> bool {
        let preface_left = &PREFACE[self.preface..];
        let common = preface_left.len().min(bytes.len());
        if preface_left[..common] != bytes[..common] {
            return false;
        }
        self.preface += common;
        bytes = &bytes[common..];
        while !bytes.is_empty() {
            if self.header_len < HEADER_BYTES {
                let taken = (HEADER_BYTES - self.header_len).min(bytes.len());
                self.header[self.header_len..][..taken].copy_from_slice(&bytes[..taken]);
                self.header_len += taken;
                bytes = &bytes[taken..];
                if self.header_len < HEADER_BYTES {
                    break;
                }
                self.begin_payload();
            } else {
                let taken = self.payload_left.min(bytes.len());
                self.payload_left -= taken;
                if self.in_head {
                    self.head_bytes += taken;
                }
                bytes = &bytes[taken..];
            }
            if self.payload_left == 0 {
                self.end_frame();
            }
        }
        true
    }

    fn begin_payload(&mut self) {
        let [a, b, c, ..] = self.header;
        self.payload_left = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        self.in_head |= self.is_of_head();
    }

    fn end_frame(&mut self) {
        let is_end = self.is_of_head() && self.header[4] & END_HEADERS != 0;
        self.header_len = 0;
        if is_end {
            self.in_head = false;
            self.head_bytes = 0;
        }
        if !self.in_head {
            self.wholes = self.wholes.wrapping_add(1);
        }
    }

    fn is_of_head(&self) -> bool {
        matches!(self.header[3], HEADERS | CONTINUATION)
    }

    /// Whether the preface has come, which no other protocol begins with.
    pub(super) fn is_http2(&self) -> bool {
        self.preface == PREFACE.len()
    }

    /// Whether the preface and a first frame have come, which a client sends at once.
    pub(super) fn has_begun(&self) -> bool {
        self.wholes > 0
    }

    /// The number of the frame or head that has begun and is not whole, if it is not one of data,
    /// which may come as slowly as its request's own limits allow.
    pub(super) fn partial(&self) -> Option<u32> {
        let is_partial = self.in_head || self.header_len > 0;
        let is_data = self.header_len == HEADER_BYTES && self.header[3] == DATA;
        (is_partial && !is_data).then_some(self.wholes)
    }

    /// Bytes that have come of a head that is not whole.
    pub(super) fn head_bytes(&self) -> usize {
        self.head_bytes
    }

    /// What it may take: headers that were sent before are named by one byte.
    pub(super) fn head_memory(&self) -> usize {
        /// As many headers as fit into a map of them.
        const MAP_BYTES_MAX: usize = 4 << 20;
        // A usual head is not taken for one of a thousand headers.
        if self.head_bytes <= USUAL_BYTES {
            return self.head_bytes;
        }
        let headers = self.head_bytes.saturating_mul(super::heads::HEADER_OVERHEAD);
        self.head_bytes.saturating_add(headers.min(MAP_BYTES_MAX))
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
        bytes.resize(HEADER_BYTES + payload, 7);
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
        let two = [&whole[..], &frame(HEADERS, 0, 1)].concat();
        assert_eq!(after(&two).partial(), Some(2), "another wait than the one before");
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
