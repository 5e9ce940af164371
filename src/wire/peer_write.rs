//! `thanos.WriteRequest`, in which nodes of a ring hand series to one another, read in place.
//!
//! ```text
//! WriteRequest           1 timeseries*   2 tenant   3 replica   4 timeseriesTenantData*
//! TimeSeriesTenantTuple  1 timeseries*   2 tenant
//! ```
//!
//! `TimeSeries` is Prometheus' message, under the field number that it has in
//! `prometheus.WriteRequest`: tag, length and body of a series are the same bytes everywhere.
//! Fields 1 and 2 of the request are its older form, for one tenant. Thanos ignores them where
//! field 4 is there, and so do we, or the two would store different samples.
//!
//! That older form is what we send: it is the only one that a released Thanos reads. Nodes of ours
//! send one another merged requests, under a method of their own: in the same form, the series
//! always at the end, so that nobody has to walk over them to find the tenant.
//!
//! Fields that we do not know are skipped, as protobuf wants it, where there are series beside them.
//! Without any series they may be a newer form, which must not be answered as stored.

use crate::model::varint::push_varint;
use crate::wire::refused::{LIST_BYTES_MAX, RefusedSeries};
use crate::wire::remote_write_v1::{DecodeError, Value, WRONG_WIRE_TYPE, read_field};

/// A request, its outer fields checked.
#[derive(Clone, Copy, Debug)]
pub struct PeerWriteRequest<'a> {
    message: &'a [u8],
    /// As it stands on the wire: counted from 1, and 0 for series that no peer has placed yet.
    pub replica: i64,
    /// From the first tuple on, if there is one.
    tuples: Option<&'a [u8]>,
    /// The first field that we do not know.
    pub unknown: Option<u32>,
}

/// The part of a request that is of one tenant, unread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TenantPart<'a> {
    pub message: &'a [u8],
    is_tuple: bool,
}

/// The series of one tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TenantSeries<'a> {
    /// The tenant's name, not checked.
    pub tenant: &'a [u8],
    /// The message that carries the series, in its field 1.
    pub message: &'a [u8],
    pub has_series: bool,
    /// The first field that we do not know.
    pub unknown: Option<u32>,
}

const REQUEST: &str = "peer write request";

/// The highest number of a field that we know.
const REQUEST_FIELDS: u32 = 4;
const TUPLE_FIELDS: u32 = 2;

impl<'a> PeerWriteRequest<'a> {
    /// Walks over the fields of `message`, not into them.
    pub fn parse(message: &'a [u8]) -> Result<PeerWriteRequest<'a>, DecodeError> {
        let (replica, tuples, unknown) = (0, None, None);
        let mut request = PeerWriteRequest { message, replica, tuples, unknown };
        let mut rest = message;
        while !rest.is_empty() {
            let (number, value, after) = read_field(rest, REQUEST)?;
            let from_here = std::mem::replace(&mut rest, after);
            match (number, value) {
                (1 | 2, Value::Bytes(_)) => {}
                // A negative number stands there as its two's complement.
                (3, Value::Varint(replica)) => request.replica = replica as i64,
                (4, Value::Bytes(_)) => request.tuples = request.tuples.or(Some(from_here)),
                (1..=REQUEST_FIELDS, _) => {
                    return Err(DecodeError::new(REQUEST, WRONG_WIRE_TYPE));
                }
                (unknown, _) => request.unknown = request.unknown.or(Some(unknown)),
            }
        }
        Ok(request)
    }

    /// The tenants of the request, in order; a tenant may come again.
    pub fn tenants(&self) -> Tenants<'a> {
        match self.tuples {
            Some(rest) => Tenants { single: None, rest },
            None => Tenants { single: Some(self.message), rest: &[] },
        }
    }
}

/// See [`PeerWriteRequest::tenants`].
pub struct Tenants<'a> {
    single: Option<&'a [u8]>,
    rest: &'a [u8],
}

impl<'a> Iterator for Tenants<'a> {
    type Item = Result<TenantPart<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(message) = self.single.take() {
            return Some(Ok(TenantPart { message, is_tuple: false }));
        }
        while !self.rest.is_empty() {
            match read_field(self.rest, REQUEST) {
                Ok((number, value, rest)) => {
                    self.rest = rest;
                    if let (4, Value::Bytes(message)) = (number, value) {
                        return Some(Ok(TenantPart { message, is_tuple: true }));
                    }
                }
                Err(error) => {
                    self.rest = &[];
                    return Some(Err(error));
                }
            }
        }
        None
    }
}

impl<'a> TenantPart<'a> {
    /// Walks over the fields to find the tenant.
    pub fn read(self) -> Result<TenantSeries<'a>, DecodeError> {
        match self.is_tuple {
            true => read_tenant(self.message, "tenant's series", TUPLE_FIELDS),
            false => read_tenant(self.message, REQUEST, REQUEST_FIELDS),
        }
    }
}

/// A request of the series of one tenant that are in their place, whichever replicas they are:
/// fields 3, 2 and then 1 only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MergedWriteRequest<'a> {
    /// The lowest of the replicas', counted from 1.
    pub replica: u64,
    /// The tenant's name, not checked.
    pub tenant: &'a [u8],
    /// The fields of the series. What else may be among them is skipped by who reads them.
    pub series: &'a [u8],
}

const MERGED: &str = "merged peer write request";

impl<'a> MergedWriteRequest<'a> {
    pub fn parse(message: &'a [u8]) -> Result<MergedWriteRequest<'a>, DecodeError> {
        let (number, replica, rest) = read_field(message, MERGED)?;
        let (3, Value::Varint(replica)) = (number, replica) else {
            return Err(DecodeError::new(MERGED, "does not begin with a replica"));
        };
        let (number, tenant, series) = read_field(rest, MERGED)?;
        let (2, Value::Bytes(tenant)) = (number, tenant) else {
            return Err(DecodeError::new(MERGED, "has no tenant before its series"));
        };
        Ok(MergedWriteRequest { replica, tenant, series })
    }

    /// The first field that is no series, if there is no series at all.
    pub fn unread(&self) -> Result<Option<u32>, DecodeError> {
        let mut unread = None;
        let mut rest = self.series;
        while !rest.is_empty() {
            let (number, _, after) = read_field(rest, MERGED)?;
            if number == 1 {
                return Ok(None);
            }
            unread = unread.or(Some(number));
            rest = after;
        }
        Ok(unread)
    }
}

/// What a merged write is answered with where the caller reads it: which series were refused for
/// good, all others being stored. Nothing refused is an empty message, as Thanos' answer is.
///
/// ```text
/// MergedWriteAnswer   1001 refused (a list, see [`crate::wire::refused`])   1002 why, in words
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MergedWriteAnswer {
    pub refused: RefusedSeries,
    pub detail: String,
}

const REFUSED_FIELD: u32 = 1001;
const DETAIL_FIELD: u32 = 1002;

/// Words are cut here.
const DETAIL_BYTES_MAX: usize = 4096;

/// The longest answer.
pub const ANSWER_BYTES_MAX: usize = LIST_BYTES_MAX + DETAIL_BYTES_MAX + 64;

impl MergedWriteAnswer {
    /// None if the list is too long to be told.
    pub fn encode(&self) -> Option<Vec<u8>> {
        let list = self.refused.encode()?;
        let detail = &self.detail[..self.detail.floor_char_boundary(DETAIL_BYTES_MAX)];
        let mut bytes = Vec::with_capacity(list.len() + detail.len() + 16);
        for (field, value) in [(REFUSED_FIELD, &list[..]), (DETAIL_FIELD, detail.as_bytes())] {
            push_varint(&mut bytes, u64::from(field) << 3 | 2);
            push_varint(&mut bytes, value.len() as u64);
            bytes.extend_from_slice(value);
        }
        Some(bytes)
    }

    /// Reads the answer to a message of `series_count` series.
    pub fn parse(mut message: &[u8], series_count: u32) -> Result<MergedWriteAnswer, DecodeError> {
        let mut answer = MergedWriteAnswer::default();
        while !message.is_empty() {
            let (number, value, rest) = read_field(message, "merged write answer")?;
            message = rest;
            match (number, value) {
                (REFUSED_FIELD, Value::Bytes(list)) => {
                    answer.refused = RefusedSeries::decode(list, series_count)?;
                }
                (DETAIL_FIELD, Value::Bytes(detail)) => {
                    answer.detail = String::from_utf8_lossy(detail).into_owned();
                }
                (REFUSED_FIELD | DETAIL_FIELD, _) => {
                    return Err(DecodeError::new("merged write answer", WRONG_WIRE_TYPE));
                }
                _ => {}
            }
        }
        Ok(answer)
    }
}

/// Finds the tenant among the fields of a message. Thanos writes it behind the series.
fn read_tenant<'a>(
    message: &'a [u8],
    name: &'static str,
    known: u32,
) -> Result<TenantSeries<'a>, DecodeError> {
    let mut found = TenantSeries { tenant: &[], message, has_series: false, unknown: None };
    let mut rest = message;
    while !rest.is_empty() {
        let (number, value, after) = read_field(rest, name)?;
        rest = after;
        match (number, value) {
            (1, Value::Bytes(_)) => found.has_series = true,
            (2, Value::Bytes(tenant)) => found.tenant = tenant,
            (1 | 2, _) => return Err(DecodeError::new(name, WRONG_WIRE_TYPE)),
            (number, _) if number > known => found.unknown = found.unknown.or(Some(number)),
            _ => {}
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tenants(message: &[u8]) -> Result<(i64, Vec<TenantSeries<'_>>), DecodeError> {
        let request = PeerWriteRequest::parse(message)?;
        let tenants = request.tenants().map(|part| part?.read()).collect::<Result<_, _>>()?;
        Ok((request.replica, tenants))
    }

    #[test]
    fn the_older_form_is_one_tenant() {
        let message = b"\x0a\x01s\x12\x01a\x18\x02\x0a\x00";
        let expected = TenantSeries { tenant: b"a", message, has_series: true, unknown: None };
        assert_eq!(tenants(message), Ok((2, vec![expected])));
        let nothing = TenantSeries { tenant: b"", message: b"", has_series: false, unknown: None };
        assert_eq!(tenants(b""), Ok((0, vec![nothing])));
    }

    #[test]
    fn tuples_win_over_the_older_form() {
        let message = b"\x0a\x01s\x12\x01a\x22\x06\x0a\x01s\x12\x01b\x22\x03\x12\x01c";
        let (replica, found) = tenants(message).unwrap();
        assert_eq!(replica, 0);
        let b = TenantSeries {
            tenant: b"b",
            message: b"\x0a\x01s\x12\x01b",
            has_series: true,
            unknown: None,
        };
        let c =
            TenantSeries { tenant: b"c", message: b"\x12\x01c", has_series: false, unknown: None };
        assert_eq!(found, [b, c]);
    }

    #[test]
    fn odd_fields_are_judged_as_gos_decoder_does() {
        let minus_one = b"\x18\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01";
        assert_eq!(tenants(minus_one).unwrap().0, -1);
        assert_eq!(tenants(b"\x12\x01a\x92\x03\x01x\x12\x01b").unwrap().1[0].tenant, b"b");
        for wrong in [&b"\x10\x01"[..], b"\x0a\xff", b"\x1a\x00", b"\x20\x00", b"\x22\x02\x10\x01"]
        {
            assert!(tenants(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn fields_that_are_not_known_are_noticed() {
        let unknown = |message: &'static [u8]| {
            let request = PeerWriteRequest::parse(message).unwrap();
            let of_tenants = request.tenants().map(|part| part.unwrap().read().unwrap().unknown);
            (request.unknown, of_tenants.collect::<Vec<_>>())
        };
        assert_eq!(unknown(b"\x12\x01a\x18\x01"), (None, vec![None]));
        assert_eq!(unknown(b"\x12\x01a\x2a\x01x\x32\x00"), (Some(5), vec![Some(5)]));
        let of_tuple = b"\x22\x06\x12\x01b\x1a\x01x";
        assert_eq!(unknown(of_tuple), (None, vec![Some(3)]));
        let unread = |message| MergedWriteRequest::parse(message).unwrap().unread();
        assert_eq!(unread(b"\x18\x01\x12\x01a"), Ok(None));
        assert_eq!(unread(b"\x18\x01\x12\x01a\x2a\x01x"), Ok(Some(5)));
        assert_eq!(unread(b"\x18\x01\x12\x01a\x2a\x01x\x0a\x00"), Ok(None));
    }

    #[test]
    fn merged_series_stand_at_the_end() {
        let merged = MergedWriteRequest::parse(b"\x18\x02\x12\x01a\x0a\x01s");
        let expected = MergedWriteRequest { replica: 2, tenant: b"a", series: b"\x0a\x01s" };
        assert_eq!(merged, Ok(expected));
        for other in [
            &b""[..],
            b"\x18\x02",
            b"\x12\x01a\x18\x02",
            b"\x18\x02\x0a\x01s\x12\x01a",
            b"\x1a\x00\x12\x01a",
        ] {
            assert!(MergedWriteRequest::parse(other).is_err(), "{other:?}");
        }
    }

    #[test]
    fn an_answer_is_read_as_it_was_made() {
        let mut answer = MergedWriteAnswer { detail: "out of order".into(), ..Default::default() };
        answer.refused.push(3, 1);
        let bytes = answer.encode().unwrap();
        assert_eq!(MergedWriteAnswer::parse(&bytes, 4), Ok(answer));
        assert!(MergedWriteAnswer::parse(&bytes, 3).is_err(), "the message has no such series");
        assert_eq!(MergedWriteAnswer::parse(b"", 0), Ok(MergedWriteAnswer::default()));
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = tenants(&bytes);
            let _ = MergedWriteRequest::parse(&bytes).map(|request| request.unread());
            let _ = MergedWriteAnswer::parse(&bytes, 100);
        }
    }
}
