//! What is sent to a receiver, written apart from the server's code.

use crate::support::http::Request;

/// `prometheus.WriteRequest`. Two in a row are one, too.
#[derive(Clone, Default)]
pub(crate) struct WriteRequest(pub Vec<u8>);

impl WriteRequest {
    /// One series with one sample.
    pub(crate) fn of(labels: &[(&str, &str)], t: i64, v: f64) -> WriteRequest {
        WriteRequest::default().with(labels, &[(t, v)])
    }

    /// Adds a series.
    pub(crate) fn with(mut self, labels: &[(&str, &str)], samples: &[(i64, f64)]) -> WriteRequest {
        let mut series = Vec::new();
        for (name, value) in labels {
            let mut label = Vec::new();
            push_field(&mut label, 1, name.as_bytes());
            push_field(&mut label, 2, value.as_bytes());
            push_field(&mut series, 1, &label);
        }
        for (t, v) in samples {
            let mut sample = vec![1 << 3 | 1];
            sample.extend_from_slice(&v.to_le_bytes());
            sample.push(2 << 3);
            push_varint(&mut sample, *t as u64);
            push_field(&mut series, 2, &sample);
        }
        push_field(&mut self.0, 1, &series);
        self
    }

    /// As it is posted.
    pub(crate) fn compressed(&self) -> Vec<u8> {
        compressed(&self.0)
    }
}

/// A block of snappy.
pub(crate) fn compressed(message: &[u8]) -> Vec<u8> {
    snap::raw::Encoder::new().compress_vec(message).expect("below 4 GiB")
}

pub(crate) fn push_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

/// A field of bytes or of a message.
pub(crate) fn push_field(bytes: &mut Vec<u8>, number: u8, content: &[u8]) {
    bytes.push(number << 3 | 2);
    push_varint(bytes, content.len() as u64);
    bytes.extend_from_slice(content);
}

/// The same by itself.
pub(crate) fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    push_field(&mut bytes, number, content);
    bytes
}

/// A write in the manners of Thanos: a body, compressed already, of a tenant that may be any bytes.
pub(crate) fn write_request(tenant: &[u8], body: &[u8]) -> Request {
    Request::new("POST", "/api/v1/receive").header("THANOS-TENANT", tenant).body(body)
}
