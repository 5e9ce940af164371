//! Questions are judged before they are decoded: what a client may make us hold of one is bounded
//! by the caps here, and not by what its bytes say.
//!
//! The generated services and clients use this codec, see `build.rs`.

use std::marker::PhantomData;
use std::mem::size_of;

use bytes::Buf as _;
use prost::Message;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic_prost::ProstEncoder;

use crate::grpc::respond;
use crate::store::matchers::MATCHERS_MAX;
use crate::wire::proto::thanos::info::{InfoRequest, InfoResponse};
use crate::wire::proto::thanos::{
    ExemplarsRequest, ExemplarsResponse, LabelMatcher, LabelNamesRequest, LabelNamesResponse,
    LabelValuesRequest, LabelValuesResponse, SeriesRequest, SeriesResponse, TsdbStatisticsRequest,
    TsdbStatisticsResponse,
};
use crate::wire::shape::{Field, Kind, Shape};

/// Labels of one list in a question, and numbers.
const LIST_MAX: usize = 1000;

/// Lists that a question has, matchers among them.
const LISTS: usize = 6;

/// Bytes that a question takes beside its own once decoded, at most.
pub(super) fn decoded_bytes_most(question: usize) -> usize {
    // An element of a list is two bytes at least, and no larger than a matcher in memory.
    let elements = (question / 2).min(LISTS * LIST_MAX.max(MATCHERS_MAX));
    elements * 2 * size_of::<LabelMatcher>()
}

/// A message that is decoded.
pub trait Judged {
    /// `None` for answers: we choose whom we ask.
    const SHAPE: Option<&'static Shape>;
}

const fn matchers(number: u32) -> Field {
    let (max, bytes) = (MATCHERS_MAX, size_of::<LabelMatcher>());
    Field { number, name: "matchers", kind: Kind::Messages { max, bytes, shape: &NOTHING } }
}

const fn texts(number: u32, name: &'static str) -> Field {
    Field { number, name, kind: Kind::Texts { max: LIST_MAX } }
}

static NOTHING: Shape = Shape(&[]);

static SERIES: Shape = Shape(&[
    matchers(3),
    Field { number: 5, name: "aggregates", kind: Kind::Numbers { max: LIST_MAX } },
    Field { number: 12, name: "query hints", kind: Kind::Message(&QUERY_HINTS) },
    Field { number: 13, name: "shard info", kind: Kind::Message(&SHARD_INFO) },
    texts(14, "replica labels"),
]);

static QUERY_HINTS: Shape = Shape(&[
    Field { number: 4, name: "grouping", kind: Kind::Message(&GROUPING) },
    texts(6, "projection labels"),
]);

static GROUPING: Shape = Shape(&[texts(3, "grouping labels")]);
static SHARD_INFO: Shape = Shape(&[texts(4, "shard labels")]);
static LABEL_NAMES: Shape = Shape(&[matchers(6), texts(7, "replica labels")]);
static LABEL_VALUES: Shape = Shape(&[matchers(7), texts(8, "replica labels")]);
static STATISTICS: Shape = Shape(&[matchers(4)]);

macro_rules! judged {
    ($($message:ty: $shape:expr,)*) => {
        $(impl Judged for $message {
            const SHAPE: Option<&'static Shape> = $shape;
        })*
    };
}

judged! {
    SeriesRequest: Some(&SERIES),
    LabelNamesRequest: Some(&LABEL_NAMES),
    LabelValuesRequest: Some(&LABEL_VALUES),
    InfoRequest: Some(&NOTHING),
    ExemplarsRequest: Some(&NOTHING),
    TsdbStatisticsRequest: Some(&STATISTICS),
    SeriesResponse: None,
    LabelNamesResponse: None,
    LabelValuesResponse: None,
    InfoResponse: None,
    ExemplarsResponse: None,
    TsdbStatisticsResponse: None,
}

/// Encodes `T`, and decodes `U` if it is within its caps.
pub struct JudgedCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for JudgedCodec<T, U> {
    fn default() -> JudgedCodec<T, U> {
        JudgedCodec(PhantomData)
    }
}

impl<T, U> Codec for JudgedCodec<T, U>
where
    T: Message + Send + 'static,
    U: Judged + Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = JudgedDecoder<U>;

    fn encoder(&mut self) -> ProstEncoder<T> {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> JudgedDecoder<U> {
        JudgedDecoder(PhantomData)
    }
}

/// See [`JudgedCodec`].
pub struct JudgedDecoder<U>(PhantomData<U>);

impl<U: Judged + Message + Default> Decoder for JudgedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // Taken out, not copied.
        let message = message.copy_to_bytes(message.remaining());
        if let Some(shape) = U::SHAPE {
            shape.judge(&message).map_err(|error| respond::shape(&error))?;
        }
        let decoded = U::decode(message).map_err(|error| respond::undecodable(&error))?;
        Ok(Some(decoded))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge<U: Judged + Message>(message: &U) -> Result<usize, String> {
        let judged = U::SHAPE.unwrap().judge(&message.encode_to_vec());
        judged.map_err(|error| error.to_string())
    }

    #[test]
    fn every_list_of_a_question_has_a_cap() {
        use crate::wire::proto::thanos::{Grouping, QueryHints, ShardInfo};
        let matchers = |count| vec![LabelMatcher::default(); count];
        let texts = |count| vec![bytes::Bytes::new(); count];
        let series = |count: usize| {
            let default = SeriesRequest::default;
            let hints = |hints| SeriesRequest { query_hints: Some(hints), ..default() };
            let grouping = Some(Grouping { labels: texts(count), ..Default::default() });
            let shard = Some(ShardInfo { labels: texts(count), ..Default::default() });
            [
                SeriesRequest { matchers: matchers(count), ..default() },
                SeriesRequest { aggregates: vec![0; count], ..default() },
                SeriesRequest { without_replica_labels: texts(count), ..default() },
                SeriesRequest { shard_info: shard, ..default() },
                hints(QueryHints { grouping, ..Default::default() }),
                hints(QueryHints { projection_labels: texts(count), ..Default::default() }),
            ]
        };
        assert_eq!(series(0).len(), LISTS);
        for (fits, more) in series(LIST_MAX).iter().zip(series(LIST_MAX + 1)) {
            let bytes = judge(fits).unwrap();
            assert!(bytes <= decoded_bytes_most(fits.encoded_len()), "{bytes} of {fits:?}");
            let refused = judge(&more).unwrap_err();
            assert!(refused.starts_with("more than 1000 "), "{refused}");
        }
        let default = LabelNamesRequest::default;
        let more = LIST_MAX + 1;
        judge(&LabelNamesRequest { matchers: matchers(more), ..default() }).unwrap_err();
        judge(&LabelNamesRequest { without_replica_labels: texts(more), ..default() }).unwrap_err();
        let default = LabelValuesRequest::default;
        judge(&LabelValuesRequest { matchers: matchers(more), ..default() }).unwrap_err();
        judge(&LabelValuesRequest { without_replica_labels: texts(more), ..default() })
            .unwrap_err();
        let default = TsdbStatisticsRequest::default;
        judge(&TsdbStatisticsRequest { matchers: matchers(more), ..default() }).unwrap_err();
    }
}
