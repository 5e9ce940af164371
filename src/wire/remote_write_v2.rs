//! Remote write 2.0, `io.prometheus.write.v2.Request`, into the form of 1.0 that all the rest
//! reads.
//!
//! ```text
//! Request     4 symbols*       5 timeseries*                (1 to 3 are reserved: they are 1.0's)
//! TimeSeries  1 label refs*    2 samples*    3 histograms*    4 exemplars*    5 metadata
//! Sample      1 value (fixed64)    2 timestamp    3 start timestamp
//! Histogram   as in 1.0            17 start timestamp
//! Exemplar    1 label refs*    2 value (fixed64)    3 timestamp
//! Metadata    1 type           3 help ref           4 unit ref
//! ```
//!
//! Texts stand once in the table of symbols, the first of which is empty. Labels are pairs of
//! references to it, packed or not. From
//! <https://prometheus.io/docs/specs/prw/remote_write_spec_2_0/>.
//!
//! Every series is read once. Its labels are put in from the table, samples and histograms are
//! copied without their start timestamps, which nobody keeps, and metadata is checked and counted.
//! A label that was written before is copied as a whole, from where it is: most series of a request
//! have most of their labels in common with one before. What comes out is judged by its length before
//! it takes memory: a reference of one byte may stand for a symbol of many.

use crate::model::varint::{read_varint, split_len_prefixed};
use crate::wire::remote_write_v1::{DecodeError, Value, WRONG_WIRE_TYPE, read_field, read_sample};
use crate::wire::request_builder::{RequestBuilder, Stop, Text, TooLong, WrittenLabel};

const REQUEST: &str = "remote write 2.0 request";
const SERIES: &str = "timeseries";
const LABELS: &str = "label references";
const EXEMPLAR: &str = "exemplar";
const METADATA: &str = "metadata";
const HISTOGRAM: &str = "histogram";

const TIME_SERIES_TAG: u8 = 5 << 3 | 2;

/// Of a histogram.
const START_TIMESTAMP: u32 = 17;

/// A symbol takes two bytes of a request at least; so many does one of a usual request.
const SYMBOL_BYTES_USUAL: usize = 32;

/// Labels of one series that are remembered to be copied.
const FRESH_MAX: usize = 1024;

/// No reference: the table has fewer symbols than its request has bytes.
const NO_NAME: u32 = u32::MAX;

/// Why a request is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    #[error(transparent)]
    Malformed(#[from] DecodeError),
    #[error(transparent)]
    TooLong(#[from] TooLong),
}

/// What a request came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    /// Bytes of the request of 1.0.
    pub len: usize,
    /// Series that carried metadata.
    pub metadata: u64,
}

/// Writes `request`, inflated, to the start of `out` as one of version 1.0, of at most `max` bytes.
/// Before the work holds so many bytes beside the request, `admit` is asked, which ends it with its
/// error.
pub fn resolve<E: From<ResolveError>>(
    request: &[u8],
    out: &mut Vec<u8>,
    max: u64,
    mut admit: impl FnMut(u64) -> Result<(), E>,
) -> Result<Resolved, E> {
    let (symbols, table_bytes) = Symbols::read(request, &mut admit)?;
    let admit = |bytes: u64| admit(bytes.saturating_add(table_bytes)).map_err(Stop::Told);
    let builder = RequestBuilder::new(out, max, admit);
    let mut resolver = Resolver { symbols, builder, fresh: Vec::new(), metadata: 0 };
    match resolver.take_all(request) {
        Ok(()) => Ok(Resolved { len: resolver.builder.finish(), metadata: resolver.metadata }),
        Err(Stop::Told(error)) => Err(error),
        Err(Stop::Found(error)) => Err(error.into()),
    }
}

/// The table of symbols.
struct Symbols<'r> {
    request: &'r [u8],
    symbols: Vec<Symbol>,
}

/// Where in the request a symbol is, and the last label that was written with it as its value.
#[derive(Clone, Copy)]
struct Symbol {
    start: u32,
    len: u32,
    /// The reference to that label's name.
    name: u32,
    label: WrittenLabel,
}

impl<'r> Symbols<'r> {
    /// Reads all symbols, wherever they stand in the request, and says how many bytes were admitted
    /// for the table.
    fn read<E: From<ResolveError>>(
        request: &'r [u8],
        admit: &mut impl FnMut(u64) -> Result<(), E>,
    ) -> Result<(Symbols<'r>, u64), E> {
        let malformed = |what| E::from(DecodeError::new(REQUEST, what).into());
        if u32::try_from(request.len()).is_err() {
            return Err(malformed("longer than 4 GiB"));
        }
        let mut symbols: Vec<Symbol> = Vec::new();
        let mut table_bytes = 0;
        let (mut has_known, mut rest) = (false, request);
        while !rest.is_empty() {
            if let [TIME_SERIES_TAG, after_tag @ ..] = rest
                && let Some((_, after)) = split_len_prefixed(after_tag)
            {
                (has_known, rest) = (true, after);
                continue;
            }
            let (number, value, after) =
                read_field(rest, REQUEST).map_err(|error| E::from(error.into()))?;
            rest = after;
            match (number, value) {
                (4, Value::Bytes(symbol)) => {
                    has_known = true;
                    if symbols.is_empty() && !symbol.is_empty() {
                        return Err(malformed("the first symbol is not empty"));
                    }
                    if symbols.len() == symbols.capacity() {
                        let usual = request.len() / SYMBOL_BYTES_USUAL;
                        let more = symbols.len().max(usual).max(64);
                        table_bytes = ((symbols.len() + more) * size_of::<Symbol>()) as u64;
                        admit(table_bytes)?;
                        symbols.reserve_exact(more);
                    }
                    // Both are at most the request's length, and that is below 2^32.
                    let start = request.len() - after.len() - symbol.len();
                    let place = (u32::try_from(start), u32::try_from(symbol.len()));
                    let (Ok(start), Ok(len)) = place else { continue };
                    let label = WrittenLabel::NONE;
                    symbols.push(Symbol { start, len, name: NO_NAME, label });
                }
                // Looked at when it is its turn.
                (5, Value::Bytes(_)) => has_known = true,
                (4 | 5, _) => return Err(malformed(WRONG_WIRE_TYPE)),
                _ => {}
            }
        }
        if !has_known && !request.is_empty() {
            return Err(malformed("neither symbols nor series, but other fields"));
        }
        Ok((Symbols { request, symbols }, table_bytes))
    }

    #[inline]
    fn get(&self, reference: u64) -> Option<Text<'r>> {
        let Symbol { start, len, .. } = *self.symbols.get(usize::try_from(reference).ok()?)?;
        Text::within(self.request, start as usize, len as usize)
    }

    #[inline]
    fn get_mut(&mut self, reference: u64) -> Option<&mut Symbol> {
        self.symbols.get_mut(usize::try_from(reference).ok()?)
    }
}

struct Resolver<'r, 'b, A> {
    symbols: Symbols<'r>,
    builder: RequestBuilder<'b, A>,
    /// Values of labels that were first written in the series at hand.
    fresh: Vec<u64>,
    metadata: u64,
}

impl<'r, A, E> Resolver<'r, '_, A>
where
    A: FnMut(u64) -> Result<(), Stop<ResolveError, E>>,
{
    /// Takes all series. The request's fields were walked over before.
    fn take_all(&mut self, request: &'r [u8]) -> Result<(), Stop<ResolveError, E>> {
        let mut rest = request;
        while !rest.is_empty() {
            let series;
            if let [TIME_SERIES_TAG, after_tag @ ..] = rest
                && let Some(split) = split_len_prefixed(after_tag)
            {
                (series, rest) = split;
            } else {
                let (number, value, after) = read_field(rest, REQUEST)?;
                rest = after;
                let (5, Value::Bytes(message)) = (number, value) else { continue };
                series = message;
            }
            self.take_series(series)?;
        }
        Ok(())
    }

    fn take_series(&mut self, mut message: &'r [u8]) -> Result<(), Stop<ResolveError, E>> {
        let open = self.builder.open_series()?;
        let mut labels = Labels::default();
        while !message.is_empty() {
            let (number, value, rest) = read_field(message, SERIES)?;
            let field = message.get(..message.len() - rest.len()).unwrap_or_default();
            message = rest;
            match (number, value) {
                (1, value) => self.take_refs(&mut labels, value)?,
                (2, Value::Bytes(sample)) => self.take_sample(field, sample)?,
                (3, Value::Bytes(histogram)) => self.take_histogram(histogram)?,
                (4, Value::Bytes(exemplar)) => self.take_exemplar(exemplar)?,
                (5, Value::Bytes(metadata)) => self.take_metadata(metadata)?,
                (2..=5, _) => return Err(DecodeError::new(SERIES, WRONG_WIRE_TYPE).into()),
                _ => {}
            }
        }
        labels.end()?;
        if self.builder.close_series(open)? {
            self.forget_fresh();
        }
        self.fresh.clear();
        Ok(())
    }

    /// What was written in the series at hand was moved.
    fn forget_fresh(&mut self) {
        for value in self.fresh.drain(..) {
            if let Some(symbol) = self.symbols.get_mut(value) {
                symbol.name = NO_NAME;
            }
        }
    }

    /// Puts in the labels that a field of references names.
    fn take_refs(
        &mut self,
        labels: &mut Labels,
        value: Value<'r>,
    ) -> Result<(), Stop<ResolveError, E>> {
        let mut packed = match value {
            Value::Bytes(packed) => packed,
            Value::Varint(reference) => return self.take_ref(labels, reference),
            _ => return Err(DecodeError::new(LABELS, WRONG_WIRE_TYPE).into()),
        };
        while !packed.is_empty() {
            let cut = DecodeError::new(LABELS, "cut short");
            let (reference, rest) = read_varint(packed).ok_or(cut)?;
            packed = rest;
            self.take_ref(labels, reference)?;
        }
        Ok(())
    }

    #[inline]
    fn take_ref(
        &mut self,
        labels: &mut Labels,
        reference: u64,
    ) -> Result<(), Stop<ResolveError, E>> {
        let Some(name) = labels.name.take() else {
            labels.name = Some(reference);
            return Ok(());
        };
        let symbol = self.symbols.get_mut(reference).ok_or(OUT_OF_TABLE)?;
        // The name was in the table when the label was written.
        match u64::from(symbol.name) == name && name != u64::from(NO_NAME) {
            true => self.builder.label_again(symbol.label),
            false => self.take_new_label(name, reference),
        }
    }

    fn take_new_label(&mut self, name: u64, value: u64) -> Result<(), Stop<ResolveError, E>> {
        let texts = (self.symbols.get(name), self.symbols.get(value));
        let (Some(name_text), Some(value_text)) = texts else { return Err(OUT_OF_TABLE.into()) };
        let label = self.builder.label_to_copy(name_text, value_text)?;
        if self.fresh.len() < FRESH_MAX
            && let Ok(name) = u32::try_from(name)
            && let Some(symbol) = self.symbols.get_mut(value)
        {
            self.fresh.push(value);
            (symbol.name, symbol.label) = (name, label);
        }
        Ok(())
    }

    /// `field` is the sample with its tag and length.
    #[inline]
    fn take_sample(&mut self, field: &[u8], sample: &[u8]) -> Result<(), Stop<ResolveError, E>> {
        debug_assert!(field.ends_with(sample), "it is its field's content");
        let (t, v) = match sample {
            // As nearly all are: without a start.
            [0x09, value @ .., 0x10, _, _, _, _, _, _] if sample.len() == 16 => {
                let time = sample.get(10..).and_then(read_varint);
                match (value.first_chunk(), time) {
                    (Some(value), Some((time, []))) => {
                        (time.cast_signed(), u64::from_le_bytes(*value))
                    }
                    _ => read_sample(sample)?,
                }
            }
            _ => read_sample(sample)?,
        };
        self.builder.sample(t, v)
    }

    fn take_histogram(&mut self, histogram: &[u8]) -> Result<(), Stop<ResolveError, E>> {
        let (mut before, mut rest) = (0, histogram);
        let mut start = None;
        while !rest.is_empty() {
            let at = histogram.len() - rest.len();
            let (number, _, after) = read_field(rest, HISTOGRAM)?;
            rest = after;
            if number == START_TIMESTAMP {
                if start.is_some() {
                    return Err(DecodeError::new(HISTOGRAM, "two start timestamps").into());
                }
                before = at;
                start = Some(histogram.len() - rest.len());
            }
        }
        let (head, tail) = match start {
            Some(end) => (histogram.get(..before), histogram.get(end..)),
            None => (Some(histogram), None),
        };
        self.builder.histogram(head.into_iter().chain(tail))
    }

    fn take_exemplar(&mut self, mut message: &'r [u8]) -> Result<(), Stop<ResolveError, E>> {
        let open = self.builder.open_exemplar()?;
        let mut labels = Labels::default();
        let (mut t, mut v) = (0, 0);
        while !message.is_empty() {
            let (number, value, rest) = read_field(message, EXEMPLAR)?;
            message = rest;
            match (number, value) {
                (1, value) => self.take_refs(&mut labels, value)?,
                (2, Value::Fixed64(bits)) => v = bits,
                (3, Value::Varint(time)) => t = time.cast_signed(),
                (2 | 3, _) => return Err(DecodeError::new(EXEMPLAR, WRONG_WIRE_TYPE).into()),
                _ => {}
            }
        }
        labels.end()?;
        self.builder.exemplar_value(t, v)?;
        if self.builder.close_exemplar(open)? {
            self.forget_fresh();
        }
        Ok(())
    }

    fn take_metadata(&mut self, mut message: &[u8]) -> Result<(), Stop<ResolveError, E>> {
        // Prometheus writes an empty one where there is none.
        self.metadata += u64::from(!message.is_empty());
        while !message.is_empty() {
            let (number, value, rest) = read_field(message, METADATA)?;
            message = rest;
            match (number, value) {
                (1, Value::Varint(_)) => {}
                // No text is reference 0, with or without a table.
                (3 | 4, Value::Varint(0)) => {}
                (3 | 4, Value::Varint(reference)) => {
                    self.symbols.get(reference).ok_or(OUT_OF_TABLE)?;
                }
                (1 | 3 | 4, _) => return Err(DecodeError::new(METADATA, WRONG_WIRE_TYPE).into()),
                _ => {}
            }
        }
        Ok(())
    }
}

const OUT_OF_TABLE: DecodeError = DecodeError { field: REQUEST, what: "no such symbol" };

/// Labels of a series or of an exemplar, as far as they were read.
#[derive(Default)]
struct Labels {
    /// The reference to a name whose value is still to come.
    name: Option<u64>,
}

impl Labels {
    fn end(self) -> Result<(), DecodeError> {
        match self.name {
            None => Ok(()),
            Some(_) => Err(DecodeError::new(LABELS, "a name without a value")),
        }
    }
}

#[cfg(test)]
mod tests;
