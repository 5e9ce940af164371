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

/// The content type of remote write 2.0.
pub(crate) const VERSION_2: &str = "application/x-protobuf;proto=io.prometheus.write.v2.Request";

/// Names and values, in the order in which they are sent.
pub(crate) type Labels = Vec<(String, String)>;

/// `io.prometheus.write.v2.Request`.
pub(crate) struct SymbolicRequest {
    symbols: Vec<Vec<u8>>,
    series: Vec<u8>,
}

/// A series of it.
#[derive(Clone, Default)]
pub(crate) struct SymbolicSeries {
    pub labels: Labels,
    /// Time, value, start.
    pub samples: Vec<(i64, f64, i64)>,
    /// Whole messages.
    pub histograms: Vec<Vec<u8>>,
    /// Labels, time, value.
    pub exemplars: Vec<(Labels, i64, f64)>,
    /// Type, help, unit.
    pub metadata: Option<(u8, String, String)>,
}

impl Default for SymbolicRequest {
    fn default() -> SymbolicRequest {
        SymbolicRequest { symbols: vec![Vec::new()], series: Vec::new() }
    }
}

impl SymbolicRequest {
    /// Adds a series.
    pub(crate) fn with(mut self, series: &SymbolicSeries) -> SymbolicRequest {
        let mut message = Vec::new();
        self.push_refs(&mut message, &series.labels);
        for (t, v, start) in &series.samples {
            let mut sample = vec![1 << 3 | 1];
            sample.extend_from_slice(&v.to_le_bytes());
            sample.push(2 << 3);
            push_varint(&mut sample, *t as u64);
            if *start != 0 {
                sample.push(3 << 3);
                push_varint(&mut sample, *start as u64);
            }
            push_field(&mut message, 2, &sample);
        }
        for histogram in &series.histograms {
            push_field(&mut message, 3, histogram);
        }
        for (labels, t, v) in &series.exemplars {
            let mut exemplar = Vec::new();
            self.push_refs(&mut exemplar, labels);
            exemplar.push(2 << 3 | 1);
            exemplar.extend_from_slice(&v.to_le_bytes());
            exemplar.push(3 << 3);
            push_varint(&mut exemplar, *t as u64);
            push_field(&mut message, 4, &exemplar);
        }
        if let Some((kind, help, unit)) = &series.metadata {
            let mut metadata = vec![1 << 3, *kind];
            for (number, text) in [(3, help), (4, unit)] {
                metadata.push(number << 3);
                push_varint(&mut metadata, self.symbol(text.as_bytes()));
            }
            push_field(&mut message, 5, &metadata);
        }
        push_field(&mut self.series, 5, &message);
        self
    }

    fn symbol(&mut self, text: &[u8]) -> u64 {
        let known = self.symbols.iter().position(|symbol| symbol == text);
        known.unwrap_or_else(|| {
            self.symbols.push(text.to_vec());
            self.symbols.len() - 1
        }) as u64
    }

    fn push_refs(&mut self, message: &mut Vec<u8>, labels: &[(String, String)]) {
        let mut refs = Vec::new();
        for (name, value) in labels {
            let (name, value) = (self.symbol(name.as_bytes()), self.symbol(value.as_bytes()));
            push_varint(&mut refs, name);
            push_varint(&mut refs, value);
        }
        push_field(message, 1, &refs);
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let symbols = self.symbols.iter().flat_map(|symbol| field(4, symbol));
        symbols.chain(self.series.iter().copied()).collect()
    }

    /// As it is posted to `path`.
    pub(crate) fn posted_to(&self, path: &str) -> Request {
        Request::new("POST", path)
            .header("Content-Type", VERSION_2)
            .header("Content-Encoding", "snappy")
            .header("X-Prometheus-Remote-Write-Version", "2.0.0")
            .body(compressed(&self.bytes()))
    }
}
