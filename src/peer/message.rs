//! The message of one forward: gathered from ranges of the request that the series came in.
//!
//! A series' tag, length and body are the same bytes in `prometheus.WriteRequest` and in Thanos'
//! `WriteRequest`, so they are copied as they are, once. The layout is that of a single tenant, which
//! every release of Thanos reads, see [`crate::wire::peer_write`]: the replica and the tenant's name,
//! then the series. So a message that is all of a request need not be gathered: it shares the
//! request's bytes, and only that keeps a request's buffer alive. A merged message differs in the
//! method that it is sent to only. Over Cap'n Proto series are taken apart, see [`SeriesTable`].

use std::sync::Arc;

use bytes::buf::Chain;
use bytes::{Buf as _, Bytes};

use crate::model::varint::push_varint;
use crate::wire::capnproto::encode::{self, SeriesTable};
use crate::wire::grpc::{HEAD_BYTES, Head, deflate_snappy, deflate_snappy_chunks};
use crate::wire::snappy::framed::push_stream_head;

/// The longest message that Thanos takes, inflated.
pub const MESSAGE_BYTES_MAX: usize = (1 << 31) - 1;

/// `--receive.grpc-compression`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    Snappy,
    None,
}

/// `--receive.replication-protocol`, and what is up to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Protobuf(Compression),
    CapnProto,
}

/// What is written around the series of a message.
#[derive(Clone, Copy, Debug)]
pub struct Envelope<'a> {
    pub tenant: &'a str,
    /// As on the wire: counted from 1, 0 for series that the peer is to place itself.
    pub replica: u64,
    /// The series are of several replicas, `replica` being the lowest, and the peer is one that
    /// [takes them so](crate::wire::peer_write::MergedWriteRequest).
    pub is_merged: bool,
    /// How many there are.
    pub series_count: u32,
}

/// A message ready to be sent.
#[derive(Clone, Debug)]
pub struct ForwardMessage {
    /// All of it, or what goes before `shared`.
    bytes: Bytes,
    /// A request's series, as they came in. Most messages have none.
    shared: Bytes,
    form: Form,
    is_merged: bool,
    series_count: u32,
    tenant: Box<str>,
    /// The routers that it has passed, if that is told.
    path: Option<Arc<str>>,
}

/// A message longer than any peer takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("forward of {bytes} bytes is over the cap of {MESSAGE_BYTES_MAX}")]
pub struct TooLong {
    pub bytes: usize,
}

/// What a stream of deflated chunks takes besides these and what they hold, about.
const AROUND_BYTES: usize = 64;

/// What the bytes of a message are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// gRPC's head, and a message under it.
    Protobuf(Compression),
    /// A packed `WriteRequest` of so many words.
    CapnProto { words: u32 },
}

const REPLICA_TAG: u8 = 3 << 3;
const TENANT_TAG: u8 = 2 << 3 | 2;

impl ForwardMessage {
    /// Gathers series. `fields` gives bytes that are whole fields, each with its tag `0a`; one run
    /// may hold many.
    pub fn gather<'a>(
        envelope: Envelope<'_>,
        fields: impl Iterator<Item = &'a [u8]> + Clone,
        compression: Compression,
    ) -> Result<ForwardMessage, TooLong> {
        let cover = Cover::new(envelope, fields.clone().map(<[u8]>::len).sum())?;
        let parts = [&cover.before[..]].into_iter().chain(fields.map(shorten));
        let mut bytes = match compression {
            Compression::None => Vec::with_capacity(HEAD_BYTES + cover.message_bytes),
            Compression::Snappy => Vec::with_capacity(HEAD_BYTES + cover.message_bytes / 2),
        };
        bytes.extend_from_slice(&[0; HEAD_BYTES]);
        match compression {
            Compression::None => parts.for_each(|part| bytes.extend_from_slice(part)),
            Compression::Snappy => deflate_snappy(parts, &mut bytes),
        }
        ForwardMessage::finish(bytes, compression, envelope)
    }

    /// As [`ForwardMessage::gather`] with snappy, for series that were deflated before: `chunks`
    /// hold `series_bytes` of whole fields.
    pub fn gather_deflated<'a>(
        envelope: Envelope<'_>,
        series_bytes: usize,
        chunks: impl Iterator<Item = &'a [u8]> + Clone,
    ) -> Result<ForwardMessage, TooLong> {
        let cover = Cover::new(envelope, series_bytes)?;
        let chunk_bytes: usize = chunks.clone().map(<[u8]>::len).sum();
        let around_bytes = AROUND_BYTES + cover.message_bytes - series_bytes;
        let mut bytes = Vec::with_capacity(HEAD_BYTES + chunk_bytes + around_bytes);
        bytes.extend_from_slice(&[0; HEAD_BYTES]);
        push_stream_head(&mut bytes);
        deflate_snappy_chunks([&cover.before[..]], &mut bytes);
        chunks.for_each(|chunk| bytes.extend_from_slice(chunk));
        ForwardMessage::finish(bytes, Compression::Snappy, envelope)
    }

    /// Fills the head in that `bytes` has room for.
    fn finish(
        mut bytes: Vec<u8>,
        compression: Compression,
        envelope: Envelope<'_>,
    ) -> Result<ForwardMessage, TooLong> {
        let sent = bytes.len() - HEAD_BYTES;
        // What does not deflate grows by a chunk's head for each 64 KiB.
        let len = u32::try_from(sent).map_err(|_| TooLong { bytes: sent })?;
        let head = Head { is_encoded: compression == Compression::Snappy, len }.to_bytes();
        for (to, from) in bytes.iter_mut().zip(head) {
            *to = from;
        }
        // What is under way to a peer is counted by its length.
        bytes.shrink_to_fit();
        Ok(ForwardMessage {
            bytes: bytes.into(),
            shared: Bytes::new(),
            form: Form::Protobuf(compression),
            is_merged: envelope.is_merged,
            series_count: envelope.series_count,
            tenant: envelope.tenant.into(),
            path: None,
        })
    }

    /// A message of `series` that lie in one piece, whole fields as they came in: they are not
    /// copied, and keep the buffer alive that they are a part of.
    pub fn share(envelope: Envelope<'_>, series: Bytes) -> Result<ForwardMessage, TooLong> {
        let cover = Cover::new(envelope, series.len())?;
        let too_long = |_| TooLong { bytes: cover.message_bytes };
        let len = u32::try_from(cover.message_bytes).map_err(too_long)?;
        let head = Head { is_encoded: false, len }.to_bytes();
        Ok(ForwardMessage {
            bytes: [&head[..], &cover.before].concat().into(),
            shared: series,
            form: Form::Protobuf(Compression::None),
            is_merged: envelope.is_merged,
            series_count: envelope.series_count,
            tenant: envelope.tenant.into(),
            path: None,
        })
    }

    /// Gathers the series of `table` that are numbered in `numbers`, as Cap'n Proto.
    pub fn gather_capnproto(
        tenant: &str,
        table: &SeriesTable,
        numbers: &[u32],
    ) -> Result<ForwardMessage, encode::TooLong> {
        let mut encoded = table.encode(tenant, numbers)?;
        encoded.packed.shrink_to_fit();
        Ok(ForwardMessage {
            bytes: encoded.packed.into(),
            shared: Bytes::new(),
            form: Form::CapnProto { words: encoded.words },
            is_merged: false,
            series_count: numbers.len() as u32,
            tenant: tenant.into(),
            path: None,
        })
    }

    /// Tells the peer which routers it has passed.
    pub fn through(self, path: Arc<str>) -> ForwardMessage {
        ForwardMessage { path: Some(path), ..self }
    }

    pub fn path(&self) -> Option<&str> {
        self.path.as_deref()
    }

    /// What is sent.
    pub fn body(&self) -> Chain<Bytes, Bytes> {
        self.bytes.clone().chain(self.shared.clone())
    }

    /// How much that is.
    pub fn body_bytes(&self) -> usize {
        self.bytes.len() + self.shared.len()
    }

    /// Whether it is one that only peers take that say so.
    pub fn is_merged(&self) -> bool {
        self.is_merged
    }

    pub fn series_count(&self) -> u32 {
        self.series_count
    }

    pub fn form(&self) -> Form {
        self.form
    }

    pub fn tenant(&self) -> &str {
        &self.tenant
    }
}

/// The same bytes, for less time: those around the series do not live as long as they.
fn shorten<'short, 'a: 'short>(bytes: &'a [u8]) -> &'short [u8] {
    bytes
}

/// The bytes before the series of a message.
struct Cover {
    before: Vec<u8>,
    /// Of the whole message, its series included, at most [`MESSAGE_BYTES_MAX`].
    message_bytes: usize,
}

impl Cover {
    /// Around so many bytes of series.
    fn new(envelope: Envelope<'_>, series_bytes: usize) -> Result<Cover, TooLong> {
        let Envelope { tenant, replica, .. } = envelope;
        let mut before = Vec::new();
        if replica > 0 {
            before.push(REPLICA_TAG);
            push_varint(&mut before, replica);
        }
        before.push(TENANT_TAG);
        push_varint(&mut before, tenant.len() as u64);
        before.extend_from_slice(tenant.as_bytes());
        let bytes = series_bytes.saturating_add(before.len());
        match bytes <= MESSAGE_BYTES_MAX {
            true => Ok(Cover { before, message_bytes: bytes }),
            false => Err(TooLong { bytes }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::grpc::{Encoding, MessageError};
    use crate::wire::peer_write::{MergedWriteRequest, PeerWriteRequest};

    fn to(tenant: &str, replica: u64) -> Envelope<'_> {
        Envelope { tenant, replica, is_merged: false, series_count: 0 }
    }

    /// All that is sent.
    fn bytes(message: &ForwardMessage) -> Vec<u8> {
        let body = message.body();
        let bytes = [&body.first_ref()[..], body.last_ref()].concat();
        assert_eq!(message.body_bytes(), bytes.len());
        bytes
    }

    /// The message itself, inflated.
    fn inflated(message: &ForwardMessage) -> Vec<u8> {
        let bytes = bytes(message);
        let (head, body) = bytes.split_at(HEAD_BYTES);
        let head = Head::parse(head.try_into().unwrap(), Some(Encoding::Snappy)).unwrap();
        assert_eq!(head.is_encoded, message.form() == Form::Protobuf(Compression::Snappy));
        assert_eq!(head.len as usize, body.len());
        let mut buffer = Vec::new();
        match head.is_encoded {
            true => {
                let admit = |_| Ok::<(), MessageError>(());
                Encoding::Snappy.inflate(body, 1 << 20, &mut buffer, admit).unwrap().to_vec()
            }
            false => body.to_vec(),
        }
    }

    #[test]
    fn the_form_is_the_one_that_every_release_reads() {
        // As Thanos up to 0.42 has it: timeseries = 1, tenant = 2, replica = 3 and nothing else.
        let series =
            b"\x0a\x2b\x0a\x0d\x0a\x08__name__\x12\x01m\x0a\x08\x0a\x03job\x12\x01a\x12\x10\
                       \x09\x00\x00\x00\x00\x00\x00\xf0\x3f\x10\x80\xd0\x95\xff\xbc\x31";
        let expected = [b"\x00\x00\x00\x00\x34\x18\x01\x12\x03cap", &series[..]].concat();
        let (first, second) = series.split_at(20);
        let fields = [first, second].into_iter();
        let message = ForwardMessage::gather(to("cap", 1), fields, Compression::None).unwrap();
        assert_eq!(bytes(&message), expected);
    }

    #[test]
    fn series_arrive_as_they_were_gathered() {
        let long = [&b"\x0a\x80\x80\x08"[..], &vec![b'x'; 1 << 17]].concat();
        for fields in [&[][..], &[&b"\x0a\x01s"[..], b"\x0a\x01t"], &[&long, b"\x0a\x00"]] {
            for compression in [Compression::None, Compression::Snappy] {
                let gather = |is_merged| {
                    let envelope = Envelope { is_merged, ..to("a", 3) };
                    let fields = fields.iter().copied();
                    ForwardMessage::gather(envelope, fields, compression).unwrap()
                };
                let message = gather(false);
                assert!(!message.is_merged());
                let message = inflated(&message);
                let request = PeerWriteRequest::parse(&message).unwrap();
                let tenants: Vec<_> =
                    request.tenants().map(|part| part.unwrap().read().unwrap()).collect();
                assert_eq!((request.replica, tenants.len()), (3, 1));
                assert_eq!(
                    (tenants[0].tenant, tenants[0].has_series),
                    (&b"a"[..], !fields.is_empty())
                );
                assert!(tenants[0].message.ends_with(&fields.concat()));

                let message = gather(true);
                assert_eq!((message.is_merged(), message.tenant()), (true, "a"));
                let message = inflated(&message);
                let request = MergedWriteRequest::parse(&message).unwrap();
                let series = fields.concat();
                assert_eq!(
                    request,
                    MergedWriteRequest { replica: 3, tenant: b"a", series: &series }
                );
            }
        }
    }

    #[test]
    fn a_message_that_shares_its_series_is_the_same() {
        let series = b"\x0a\x01s\x0a\x01t";
        let envelope = Envelope { is_merged: true, ..to("team", 2) };
        let shared = ForwardMessage::share(envelope, Bytes::from_static(series)).unwrap();
        let fields = [&series[..]].into_iter();
        let gathered = ForwardMessage::gather(envelope, fields, Compression::None).unwrap();
        assert_eq!(bytes(&shared), bytes(&gathered));
        assert!(shared.is_merged() && !shared.body().last_ref().is_empty());
    }

    #[test]
    fn chunks_that_were_deflated_before_inflate_to_the_same_message() {
        let runs: Vec<Vec<u8>> = (0..3u8).map(|i| vec![b'a' + i; 50_000]).collect();
        let fields: Vec<Vec<u8>> =
            runs.iter().map(|run| [&b"\x0a\xd0\x86\x03"[..], run].concat()).collect();
        let series_bytes = fields.iter().map(Vec::len).sum();
        let mut chunks = Vec::new();
        for field in &fields {
            let mut chunk = Vec::new();
            deflate_snappy_chunks([&field[..]], &mut chunk);
            chunks.push(chunk);
        }
        let tenant = "t".repeat(300);
        for is_merged in [false, true] {
            let envelope = Envelope { is_merged, ..to(&tenant, 2) };
            let series = fields.iter().map(|field| &field[..]);
            let plain = ForwardMessage::gather(envelope, series, Compression::None).unwrap();
            let chunks = chunks.iter().map(|chunk| &chunk[..]);
            let deflated = ForwardMessage::gather_deflated(envelope, series_bytes, chunks).unwrap();
            assert_eq!(inflated(&deflated), inflated(&plain));
        }
    }

    #[test]
    fn what_no_peer_takes_is_not_sent() {
        let chunks = std::iter::empty();
        let gathered = ForwardMessage::gather_deflated(to("a", 1), MESSAGE_BYTES_MAX, chunks);
        assert_eq!(gathered.unwrap_err(), TooLong { bytes: MESSAGE_BYTES_MAX + 5 });
    }
}
