//! Requests of remote write 2.0 from outside: no bytes panic, no more memory is taken than was
//! admitted, and what comes out is a request of 1.0 whatever was in the buffer.
//!
//! Input: the inflated body.

use ringest::wire::remote_write_v1::{RequestField, RequestFields, SeriesFields};
use ringest::wire::remote_write_v2::{ResolveError, Resolved, resolve};

const MAX: u64 = 1 << 20;

/// Tries one input.
pub(crate) fn run(request: &[u8]) {
    let mut admitted: u64 = 0;
    let mut out = Vec::new();
    let mut resolve_into = |out: &mut Vec<u8>, max| -> Result<Resolved, ResolveError> {
        resolve(request, out, max, |bytes| {
            admitted = bytes.max(admitted);
            Ok(())
        })
    };
    let resolved = resolve_into(&mut out, MAX);
    let mut used = vec![0xee; 100_000];
    assert_eq!(resolve_into(&mut used, MAX), resolved, "whatever was in the buffer");
    let Ok(Resolved { len, .. }) = resolved else { return };
    // The cap is exact.
    assert_eq!(resolve_into(&mut Vec::new(), len as u64), resolved);
    if len > 0 {
        assert!(resolve_into(&mut Vec::new(), len as u64 - 1).is_err());
    }
    assert!(out.len() as u64 <= admitted);
    let out = &out[..len];
    assert_eq!(out, &used[..len]);
    for field in RequestFields::new(out) {
        let Ok(RequestField::TimeSeries(series)) = field else { panic!("{field:?}") };
        let mut fields = SeriesFields::new(series);
        while fields.next_field().expect("a series of 1.0").is_some() {}
    }
}

/// Inputs to begin with: labels packed and not, every kind of content, symbols behind series.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let field = |number: u8, body: &[u8]| [&[number << 3 | 2, body.len() as u8][..], body].concat();
    let texts: [&[u8]; 5] = [b"", b"__name__", b"up", b"job", b"a"];
    let symbols = texts.map(|symbol| field(4, symbol)).concat();
    let sample = field(2, b"\x09\0\0\0\0\0\0\xf0\x3f\x10\x80\x08\x18\x07");
    let up = field(5, &[field(1, &[1, 2, 3, 4]), sample.clone()].concat());
    let unpacked = field(5, &[b"\x08\x01\x08\x02".to_vec(), sample].concat());
    let histogram = field(3, b"\x08\x03\x19\0\0\0\0\0\0\xf0\x3f\x78\x80\x08\x88\x01\x07");
    let exemplar = field(4, b"\x0a\x02\x03\x04\x11\0\0\0\0\0\0\xf0\x3f\x18\x07");
    let metadata = field(5, b"\x08\x01\x18\x02\x20\x04");
    let all = [field(1, &[1, 2]), histogram, exemplar, metadata].concat();
    let all = field(5, &all);
    vec![
        [symbols.clone(), up.clone()].concat(),
        [symbols.clone(), unpacked, all.clone()].concat(),
        [all, symbols, up].concat(),
    ]
}
