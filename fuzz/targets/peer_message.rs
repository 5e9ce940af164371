//! Messages of peers over gRPC: no bytes panic, none is inflated beyond the cap, and what was deflated
//! comes back.
//!
//! Input: one byte for the encoding, then the message's head and body.

use ringest::wire::grpc::{Encoding, HEAD_BYTES, Head, MessageError};
use ringest::wire::peer_write::{MergedWriteAnswer, MergedWriteRequest, PeerWriteRequest};
use ringest::wire::refused::RefusedSeries;

const INFLATED_MAX: u64 = 1 << 20;

/// Tries one input.
pub(crate) fn run(input: &[u8]) {
    let Some((manner, frame)) = input.split_first() else { return };
    let encoding = if manner & 1 == 0 { Encoding::Snappy } else { Encoding::Gzip };
    let Some((head, body)) = frame.split_first_chunk::<HEAD_BYTES>() else { return };
    if let Ok(head) = Head::parse(*head, Some(encoding)) {
        assert_eq!(Head::parse(head.to_bytes(), Some(encoding)), Ok(head));
    }
    read(body);
    let mut admitted = 0;
    let admit = |bytes| {
        admitted = bytes;
        Ok::<(), MessageError>(())
    };
    let mut buffer = Vec::new();
    if let Ok(message) = encoding.inflate(body, INFLATED_MAX, &mut buffer, admit) {
        assert!(message.len() as u64 <= INFLATED_MAX);
        read(message);
    }
    assert!(buffer.len() as u64 <= admitted.max(INFLATED_MAX), "more than was asked for");
    let deflated = encoding.deflate(body);
    let mut again = Vec::new();
    let inflated =
        encoding.inflate(&deflated, INFLATED_MAX, &mut again, |_| Ok::<(), MessageError>(()));
    assert!(inflated.is_ok_and(|inflated| inflated == body), "what was deflated comes back");
}

/// Reads a message in each of its forms, to the last series.
fn read(message: &[u8]) {
    if let Ok(request) = PeerWriteRequest::parse(message) {
        let _ = request.tenants().map(|part| part?.read()).filter(Result::is_ok).count();
    }
    if let Ok(request) = MergedWriteRequest::parse(message) {
        let _ = request.unread();
    }
    let _ = MergedWriteAnswer::parse(message, 100);
    if let Ok(refused) = RefusedSeries::decode(message, 100) {
        assert!(refused.iter().all(|(series, _)| series < 100), "a series that was not sent");
    }
}

/// Inputs to begin with: a message of a tenant's series, deflated and not.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let message =
        b"\x18\x01\x12\x03cap\x0a\x2b\x0a\x0d\x0a\x08__name__\x12\x01m\x0a\x08\x0a\x03job\
                    \x12\x01a\x12\x10\x09\0\0\0\0\0\0\xf0\x3f\x10\x80\xd0\x95\xff\xbc\x31";
    let framed = |manner: u8, is_encoded: bool, body: &[u8]| {
        let head = Head { is_encoded, len: body.len() as u32 }.to_bytes();
        [&[manner][..], &head, body].concat()
    };
    vec![
        framed(0, false, message),
        framed(0, true, &Encoding::Snappy.deflate(message)),
        framed(1, true, &Encoding::Gzip.deflate(message)),
    ]
}
