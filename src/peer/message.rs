//! The message of one forward: gathered from ranges of the request that the series came in.
//!
//! A series' tag, length and body are the same bytes in `prometheus.WriteRequest` and in Thanos'
//! `WriteRequest`, so they are copied as they are, once, and nothing keeps the request's buffer
//! alive. The layout is Thanos' own, see [`crate::wire::peer_write`]: the replica, then for each
//! tenant a tuple with its series first and its name last. Over Cap'n Proto series are taken apart,
//! see [`SeriesTable`].

use bytes::Bytes;

use crate::wire::capnproto::encode::{self, SeriesTable};
use crate::wire::grpc::{HEAD_BYTES, Head, deflate_snappy, deflate_snappy_chunks};
use crate::wire::reader::{push_varint, varint_len};
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

/// One tenant's series of a forward. `series` gives bytes that are whole fields, each with its tag
/// `0a`; one run may hold many.
#[derive(Clone, Debug)]
pub struct TenantBatch<'a, I> {
    pub tenant: &'a str,
    pub series: I,
}

/// A message ready to be sent.
#[derive(Clone, Debug)]
pub struct ForwardMessage {
    bytes: Bytes,
    form: Form,
    tenants: Box<[Box<str>]>,
}

/// A message longer than any peer takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("forward of {bytes} bytes is over the cap of {MESSAGE_BYTES_MAX}")]
pub struct TooLong {
    pub bytes: usize,
}

/// What a message of deflated chunks takes besides these and the tenant's name, about.
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
const TUPLE_TAG: u8 = 4 << 3 | 2;
const TENANT_TAG: u8 = 2 << 3 | 2;

impl ForwardMessage {
    /// Gathers the series of `tenants`. `replica` is the number on the wire: counted from 1, 0 for
    /// series that the peer is to place itself.
    pub fn gather<'a, I>(
        replica: u64,
        tenants: &[TenantBatch<'a, I>],
        compression: Compression,
    ) -> Result<ForwardMessage, TooLong>
    where
        I: Iterator<Item = &'a [u8]> + Clone,
    {
        let replica_field = replica_field(replica);
        let frames: Vec<_> = tenants.iter().map(TupleFrame::around).collect();
        let series = tenants.iter().map(|batch| batch.series.clone());
        let parts = frames.iter().zip(series).flat_map(|(frame, series)| {
            let series = series.map(shorten);
            [&frame.before[..]].into_iter().chain(series).chain([&frame.after[..]])
        });
        let parts = [&replica_field[..]].into_iter().chain(parts);
        let len = frames
            .iter()
            .fold(replica_field.len(), |len, frame| len.saturating_add(frame.tuple_bytes));
        if len > MESSAGE_BYTES_MAX {
            return Err(TooLong { bytes: len });
        }
        let mut bytes = match compression {
            Compression::None => Vec::with_capacity(HEAD_BYTES + len),
            Compression::Snappy => Vec::with_capacity(HEAD_BYTES + len / 2),
        };
        bytes.extend_from_slice(&[0; HEAD_BYTES]);
        match compression {
            Compression::None => parts.for_each(|part| bytes.extend_from_slice(part)),
            Compression::Snappy => deflate_snappy(parts, &mut bytes),
        }
        ForwardMessage::finish(bytes, compression, tenants.iter().map(|batch| batch.tenant))
    }

    /// As [`ForwardMessage::gather`] with snappy, for one tenant's series that were deflated before:
    /// `chunks` hold `series_bytes` of whole fields.
    pub fn gather_deflated<'a>(
        replica: u64,
        tenant: &str,
        series_bytes: usize,
        chunks: impl Iterator<Item = &'a [u8]> + Clone,
    ) -> Result<ForwardMessage, TooLong> {
        let replica_field = replica_field(replica);
        let frame = TupleFrame::of(tenant, series_bytes);
        let len = replica_field.len().saturating_add(frame.tuple_bytes);
        if len > MESSAGE_BYTES_MAX {
            return Err(TooLong { bytes: len });
        }
        let chunk_bytes: usize = chunks.clone().map(<[u8]>::len).sum();
        let mut bytes = Vec::with_capacity(HEAD_BYTES + chunk_bytes + AROUND_BYTES + tenant.len());
        bytes.extend_from_slice(&[0; HEAD_BYTES]);
        push_stream_head(&mut bytes);
        deflate_snappy_chunks([&replica_field[..], &frame.before], &mut bytes);
        chunks.for_each(|chunk| bytes.extend_from_slice(chunk));
        deflate_snappy_chunks([&frame.after[..]], &mut bytes);
        ForwardMessage::finish(bytes, Compression::Snappy, std::iter::once(tenant))
    }

    /// Fills the head in that `bytes` has room for.
    fn finish<'a>(
        mut bytes: Vec<u8>,
        compression: Compression,
        tenants: impl Iterator<Item = &'a str>,
    ) -> Result<ForwardMessage, TooLong> {
        let sent = bytes.len() - HEAD_BYTES;
        // What does not deflate grows by a chunk's head for each 64 KiB.
        let sent_len = u32::try_from(sent).map_err(|_| TooLong { bytes: sent })?;
        // An empty message is never encoded.
        let is_encoded = compression == Compression::Snappy && sent > 0;
        let head = Head { is_encoded, len: sent_len }.to_bytes();
        for (to, from) in bytes.iter_mut().zip(head) {
            *to = from;
        }
        // What is under way to a peer is counted by its length.
        bytes.shrink_to_fit();
        let tenants = tenants.map(Box::from).collect();
        Ok(ForwardMessage { bytes: bytes.into(), form: Form::Protobuf(compression), tenants })
    }

    /// Gathers the series of `table` that are numbered in `numbers`, as Cap'n Proto.
    pub fn gather_capnproto(
        tenant: &str,
        table: &SeriesTable,
        numbers: &[u32],
    ) -> Result<ForwardMessage, encode::TooLong> {
        let encoded = table.encode(tenant, numbers)?;
        Ok(ForwardMessage {
            bytes: encoded.packed.into(),
            form: Form::CapnProto { words: encoded.words },
            tenants: [tenant.into()].into(),
        })
    }

    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    pub fn form(&self) -> Form {
        self.form
    }

    pub fn tenants(&self) -> impl Iterator<Item = &str> + Clone {
        self.tenants.iter().map(|tenant| &**tenant)
    }
}

fn replica_field(replica: u64) -> Vec<u8> {
    let mut field = Vec::new();
    if replica > 0 {
        field.push(REPLICA_TAG);
        push_varint(&mut field, replica);
    }
    field
}

/// The same bytes, for less time: those around the series do not live as long as they.
fn shorten<'short, 'a: 'short>(bytes: &'a [u8]) -> &'short [u8] {
    bytes
}

/// The bytes around the series of a tenant.
struct TupleFrame {
    /// Tag and length of the tuple.
    before: Vec<u8>,
    /// The tenant's name.
    after: Vec<u8>,
    /// All of the tuple, tag and length included.
    tuple_bytes: usize,
}

impl TupleFrame {
    fn around<'a, I>(batch: &TenantBatch<'a, I>) -> TupleFrame
    where
        I: Iterator<Item = &'a [u8]> + Clone,
    {
        TupleFrame::of(batch.tenant, batch.series.clone().map(<[u8]>::len).sum())
    }

    /// Around so many bytes of series.
    fn of(tenant: &str, series_bytes: usize) -> TupleFrame {
        let name_len = tenant.len() as u64;
        let mut after = Vec::with_capacity(1 + varint_len(name_len) + tenant.len());
        after.push(TENANT_TAG);
        push_varint(&mut after, name_len);
        after.extend_from_slice(tenant.as_bytes());
        let body = series_bytes.saturating_add(after.len());
        let mut before = vec![TUPLE_TAG];
        push_varint(&mut before, body as u64);
        let tuple_bytes = before.len().saturating_add(body);
        TupleFrame { before, after, tuple_bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::grpc::{Encoding, MessageError};
    use crate::wire::peer_write::PeerWriteRequest;

    #[test]
    fn the_bytes_are_those_that_thanos_sends() {
        // A router of Thanos was recorded forwarding this series of tenant "cap" as replica 1.
        let series =
            b"\x0a\x2b\x0a\x0d\x0a\x08__name__\x12\x01m\x0a\x08\x0a\x03job\x12\x01a\x12\x10\
                       \x09\x00\x00\x00\x00\x00\x00\xf0\x3f\x10\x80\xd0\x95\xff\xbc\x31";
        let recorded =
            [b"\x00\x00\x00\x00\x36\x18\x01\x22\x32", &series[..], b"\x12\x03cap"].concat();
        let (first, second) = series.split_at(20);
        let batch = TenantBatch { tenant: "cap", series: [first, second].into_iter() };
        let message = ForwardMessage::gather(1, &[batch], Compression::None).unwrap();
        assert_eq!(message.bytes(), &recorded);
    }

    #[test]
    fn several_tenants_arrive_as_they_were_gathered() {
        let long = [&b"\x0a\x80\x80\x08"[..], &vec![b'x'; 1 << 17]].concat();
        let batches = [
            TenantBatch {
                tenant: "a",
                series: vec![&b"\x0a\x01s"[..], &b"\x0a\x01t"[..]].into_iter(),
            },
            TenantBatch { tenant: "b", series: vec![&long[..]].into_iter() },
            TenantBatch { tenant: "a", series: vec![].into_iter() },
        ];
        for compression in [Compression::None, Compression::Snappy] {
            let message = ForwardMessage::gather(3, &batches, compression).unwrap();
            let (head, body) = message.bytes().split_at(HEAD_BYTES);
            let head = Head::parse(head.try_into().unwrap(), Some(Encoding::Snappy)).unwrap();
            assert_eq!(head.is_encoded, compression == Compression::Snappy);
            assert_eq!(head.len as usize, body.len());
            let mut buffer = Vec::new();
            let body = match head.is_encoded {
                true => Encoding::Snappy
                    .inflate(body, 1 << 20, &mut buffer, |_| Ok::<(), MessageError>(()))
                    .unwrap(),
                false => body,
            };
            let request = PeerWriteRequest::parse(body).unwrap();
            assert_eq!(request.replica, 3);
            let tenants: Vec<_> = request.tenants().map(Result::unwrap).collect();
            let names: Vec<_> = tenants.iter().map(|tenant| tenant.tenant).collect();
            assert_eq!(names, [b"a", b"b", b"a"]);
            assert!(tenants[0].message.starts_with(b"\x0a\x01s\x0a\x01t\x12"));
            assert!(tenants[1].message.starts_with(&long));
            assert!(!tenants[2].has_series);
            assert_eq!(message.tenants().collect::<Vec<_>>(), ["a", "b", "a"]);
        }
    }

    #[test]
    fn chunks_that_were_deflated_before_inflate_to_the_same_message() {
        let runs: Vec<Vec<u8>> = (0..3u8).map(|i| vec![b'a' + i; 50_000]).collect();
        let fields: Vec<Vec<u8>> =
            runs.iter().map(|run| [&b"\x0a\xd0\x86\x03"[..], run].concat()).collect();
        let tenant = "t".repeat(300);
        let batch = TenantBatch { tenant: &tenant, series: fields.iter().map(|field| &field[..]) };
        let plain = ForwardMessage::gather(2, &[batch], Compression::None).unwrap();
        let mut chunks = Vec::new();
        for field in &fields {
            let mut chunk = Vec::new();
            deflate_snappy_chunks([&field[..]], &mut chunk);
            chunks.push(chunk);
        }
        let series_bytes = fields.iter().map(Vec::len).sum();
        let chunks = chunks.iter().map(|chunk| &chunk[..]);
        let message = ForwardMessage::gather_deflated(2, &tenant, series_bytes, chunks).unwrap();
        let (head, body) = message.bytes().split_at(HEAD_BYTES);
        let head = Head::parse(head.try_into().unwrap(), Some(Encoding::Snappy)).unwrap();
        assert!(head.is_encoded);
        let mut buffer = Vec::new();
        let inflated = Encoding::Snappy
            .inflate(body, 1 << 20, &mut buffer, |_| Ok::<(), MessageError>(()))
            .unwrap();
        assert_eq!(inflated, &plain.bytes()[HEAD_BYTES..]);
        assert_eq!(message.tenants().collect::<Vec<_>>(), [&tenant[..]]);
    }

    #[test]
    fn nothing_at_all_is_an_empty_message() {
        let no_batches: [TenantBatch<'_, std::iter::Empty<&[u8]>>; 0] = [];
        let message = ForwardMessage::gather(0, &no_batches, Compression::Snappy).unwrap();
        assert_eq!(message.bytes(), &[0; HEAD_BYTES][..]);
    }
}
