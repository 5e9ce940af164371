//! `thanos.WriteRequest`, in which nodes of a ring hand series to one another, read in place.
//!
//! ```text
//! WriteRequest           1 timeseries*   2 tenant   3 replica   4 timeseriesTenantData*
//! TimeSeriesTenantTuple  1 timeseries*   2 tenant
//! ```
//!
//! `TimeSeries` is Prometheus' message, under the field number that it has in
//! `prometheus.WriteRequest`: tag, length and body of a series are the same bytes everywhere.
//! Fields 1 and 2 of the request are its older form, for one tenant. Thanos overlooks them where
//! field 4 is there, and so do we, or the two would store different samples.
//!
//! Nodes of ours send one another merged requests, under a method of their own: in that older form,
//! but with the series at the end, so that nobody has to walk over them to find the tenant.

use crate::wire::remote_write_v1::{DecodeError, Value, WRONG_WIRE_TYPE, read_field};

/// A request, its outer fields checked.
#[derive(Clone, Copy, Debug)]
pub struct PeerWriteRequest<'a> {
    message: &'a [u8],
    /// As it stands on the wire: counted from 1, and 0 for series that no peer has placed yet.
    pub replica: i64,
    has_tuples: bool,
}

/// The series of one tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TenantSeries<'a> {
    /// The tenant's name, not checked.
    pub tenant: &'a [u8],
    /// The message that carries the series, in its field 1.
    pub message: &'a [u8],
    pub has_series: bool,
}

const REQUEST: &str = "peer write request";

impl<'a> PeerWriteRequest<'a> {
    /// Walks over the fields of `message`, not into them.
    pub fn parse(message: &'a [u8]) -> Result<PeerWriteRequest<'a>, DecodeError> {
        let mut request = PeerWriteRequest { message, replica: 0, has_tuples: false };
        let mut rest = message;
        while !rest.is_empty() {
            let (number, value, after) = read_field(rest, REQUEST)?;
            rest = after;
            match (number, value) {
                (1 | 2, Value::Bytes(_)) => {}
                // A negative number stands there as its two's complement.
                (3, Value::Varint(replica)) => request.replica = replica as i64,
                (4, Value::Bytes(_)) => request.has_tuples = true,
                (1..=4, _) => return Err(DecodeError::new(REQUEST, WRONG_WIRE_TYPE)),
                _ => {}
            }
        }
        Ok(request)
    }

    /// The tenants of the request, in order; a tenant may come again.
    pub fn tenants(&self) -> Tenants<'a> {
        let single = if self.has_tuples { None } else { Some(self.message) };
        let rest = if self.has_tuples { self.message } else { &[] };
        Tenants { single, rest }
    }
}

/// See [`PeerWriteRequest::tenants`].
pub struct Tenants<'a> {
    single: Option<&'a [u8]>,
    rest: &'a [u8],
}

impl<'a> Iterator for Tenants<'a> {
    type Item = Result<TenantSeries<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(message) = self.single.take() {
            return Some(read_tenant(message, REQUEST));
        }
        while !self.rest.is_empty() {
            match read_field(self.rest, REQUEST) {
                Ok((number, value, rest)) => {
                    self.rest = rest;
                    if let (4, Value::Bytes(tuple)) = (number, value) {
                        return Some(read_tenant(tuple, "tenant's series"));
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

impl<'a> MergedWriteRequest<'a> {
    pub fn parse(message: &'a [u8]) -> Result<MergedWriteRequest<'a>, DecodeError> {
        const MERGED: &str = "merged peer write request";
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
}

/// Finds the tenant among the fields of a message. Thanos writes it behind the series.
fn read_tenant<'a>(message: &'a [u8], name: &'static str) -> Result<TenantSeries<'a>, DecodeError> {
    let mut found = TenantSeries { tenant: &[], message, has_series: false };
    let mut rest = message;
    while !rest.is_empty() {
        let (number, value, after) = read_field(rest, name)?;
        rest = after;
        match (number, value) {
            (1, Value::Bytes(_)) => found.has_series = true,
            (2, Value::Bytes(tenant)) => found.tenant = tenant,
            (1 | 2, _) => return Err(DecodeError::new(name, WRONG_WIRE_TYPE)),
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
        let tenants = request.tenants().collect::<Result<_, _>>()?;
        Ok((request.replica, tenants))
    }

    #[test]
    fn the_older_form_is_one_tenant() {
        let message = b"\x0a\x01s\x12\x01a\x18\x02\x0a\x00";
        let expected = TenantSeries { tenant: b"a", message, has_series: true };
        assert_eq!(tenants(message), Ok((2, vec![expected])));
        let nothing = TenantSeries { tenant: b"", message: b"", has_series: false };
        assert_eq!(tenants(b""), Ok((0, vec![nothing])));
    }

    #[test]
    fn tuples_win_over_the_older_form() {
        let message = b"\x0a\x01s\x12\x01a\x22\x06\x0a\x01s\x12\x01b\x22\x03\x12\x01c";
        let (replica, found) = tenants(message).unwrap();
        assert_eq!(replica, 0);
        let b = TenantSeries { tenant: b"b", message: b"\x0a\x01s\x12\x01b", has_series: true };
        let c = TenantSeries { tenant: b"c", message: b"\x12\x01c", has_series: false };
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

    proptest! {
        #[test]
        fn any_bytes_are_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = tenants(&bytes);
            let _ = MergedWriteRequest::parse(&bytes);
        }
    }
}
