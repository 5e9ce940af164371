//! A `prometheus.WriteRequest` of version 1.0, made piece by piece from what came in another form.
//!
//! Labels are written in the encoding that senders normally use, and so are samples: what a series
//! is known by is the same bytes whichever way it came. The buffer is one that is used again. It
//! grows only by what was admitted before, and never beyond a cap, since a few bytes in another
//! form may stand for as many as one likes in this one.

use crate::model::labels::{TAG_FIELD_1, TAG_FIELD_2};
use crate::model::varint::{varint_bytes, varint_len};
use crate::wire::remote_write_v1::DecodeError;

/// Tags of a `TimeSeries`' fields, which hold messages, beside those of labels.
const SAMPLE: u8 = 0x12;
const EXEMPLAR: u8 = 0x1a;
const HISTOGRAM: u8 = 0x22;

/// Tags of the numbers in a sample and in an exemplar.
const SAMPLE_VALUE: u8 = 0x09;
const SAMPLE_TIME: u8 = 0x10;
const EXEMPLAR_VALUE: u8 = 0x11;
const EXEMPLAR_TIME: u8 = 0x18;

/// Short texts, and short labels, are copied as so many bytes, whatever follows them.
const SHORT: usize = 32;
const SHORT_LABEL: usize = 64;

/// Beyond what is asked for there is always room for a short label, and for the length of a message
/// that takes more bytes than was guessed.
const SLACK: usize = SHORT_LABEL + 10;

/// What is admitted first.
const STEP_BYTES: usize = 64 << 10;

/// What the request would come to is over the cap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than the cap of {max} bytes once its labels are written out")]
pub struct TooLong {
    pub max: u64,
}

/// Why the work on a request ends: for what was found in it, or for what the caller said.
#[derive(Debug)]
pub enum Stop<F, E> {
    Found(F),
    Told(E),
}

impl<F: From<TooLong>, E> From<TooLong> for Stop<F, E> {
    fn from(error: TooLong) -> Stop<F, E> {
        Stop::Found(error.into())
    }
}

impl<F: From<DecodeError>, E> From<DecodeError> for Stop<F, E> {
    fn from(error: DecodeError) -> Stop<F, E> {
        Stop::Found(error.into())
    }
}

/// Bytes of a text, and whatever follows them where they came from.
#[derive(Clone, Copy, Debug)]
pub struct Text<'r> {
    ahead: &'r [u8],
    /// At most those that are ahead.
    len: usize,
}

/// Writes a request into a buffer.
pub struct RequestBuilder<'b, A> {
    out: &'b mut Vec<u8>,
    /// Where it goes on.
    at: usize,
    /// Nothing is written from here on. Invariant: the buffer is at least as long.
    admitted: usize,
    max: usize,
    admit: A,
    /// Bytes of the last series' length: a guess at the next one's.
    series_len_bytes: usize,
}

/// A label that was written, as its field's bytes: where they are, and how many. It is there as long
/// as no message around it is moved.
#[derive(Clone, Copy, Debug)]
pub struct WrittenLabel {
    at: u32,
    len: u32,
}

impl WrittenLabel {
    pub const NONE: WrittenLabel = WrittenLabel { at: 0, len: 0 };
}

/// A message whose length is not known yet.
#[must_use = "its length is written when it is closed"]
pub struct Open {
    body: usize,
    /// Bytes that were left for its length.
    len_bytes: usize,
    is_series: bool,
}

impl<'r> From<&'r [u8]> for Text<'r> {
    fn from(text: &'r [u8]) -> Text<'r> {
        Text { ahead: text, len: text.len() }
    }
}

impl<'r> Text<'r> {
    /// The text at `start` of `bytes`, if it lies in there.
    #[inline]
    pub fn within(bytes: &'r [u8], start: usize, len: usize) -> Option<Text<'r>> {
        let ahead = bytes.get(start..)?;
        (len <= ahead.len()).then_some(Text { ahead, len })
    }

    fn as_bytes(self) -> &'r [u8] {
        self.ahead.get(..self.len).unwrap_or_default()
    }
}

impl<'b, A, E> RequestBuilder<'b, A>
where
    A: FnMut(u64) -> Result<(), E>,
    E: From<TooLong>,
{
    /// Begins at the start of `out`. Before so many of its bytes are used, `admit` is asked, which
    /// ends the work with its error.
    pub fn new(out: &'b mut Vec<u8>, max: u64, admit: A) -> RequestBuilder<'b, A> {
        // A request is shorter than 4 GiB, or it would not be taken anywhere.
        let max = usize::try_from(max.min(u64::from(u32::MAX))).unwrap_or(usize::MAX);
        // Most series are of 128 bytes to 16 KiB.
        RequestBuilder { out, at: 0, admitted: 0, max, admit, series_len_bytes: 2 }
    }

    /// Bytes written.
    pub fn finish(self) -> usize {
        self.at
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.at
    }

    pub fn is_empty(&self) -> bool {
        self.at == 0
    }

    /// Forgets what was written from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.at = self.at.min(len);
    }

    pub fn open_series(&mut self) -> Result<Open, E> {
        self.open(TAG_FIELD_1, self.series_len_bytes)
    }

    /// Ends the series, and says whether it had to be moved for its length.
    #[inline]
    pub fn close_series(&mut self, open: Open) -> Result<bool, E> {
        let was_moved = self.close(open)?;
        // What is over the cap by a little less than was asked for is seen here.
        match self.at <= self.max {
            true => Ok(was_moved),
            false => Err(TooLong { max: self.max as u64 }.into()),
        }
    }

    pub fn open_exemplar(&mut self) -> Result<Open, E> {
        self.open(EXEMPLAR, 1)
    }

    /// Ends the exemplar, and goes on with its series. Says whether it had to be moved.
    pub fn close_exemplar(&mut self, open: Open) -> Result<bool, E> {
        self.close(open)
    }

    /// Writes the message's length.
    #[inline]
    fn close(&mut self, open: Open) -> Result<bool, E> {
        let len = self.at.saturating_sub(open.body);
        let (bytes, len_bytes) = varint_bytes(len as u64);
        let is_moved = len_bytes != open.len_bytes;
        if is_moved {
            self.room(len_bytes)?;
            let body = open.body - open.len_bytes + len_bytes;
            self.out.copy_within(open.body..self.at, body);
            self.at = body + len;
        }
        if open.is_series {
            self.series_len_bytes = len_bytes;
        }
        let at = open.body - open.len_bytes;
        if let Some(place) = self.out.get_mut(at..at + len_bytes) {
            place.copy_from_slice(bytes.get(..len_bytes).unwrap_or_default());
        }
        Ok(is_moved)
    }

    /// A label of the series or exemplar that is open.
    pub fn label(&mut self, name: Text<'_>, value: Text<'_>) -> Result<(), E> {
        self.label_to_copy(name, value).map(|_| ())
    }

    /// The same, and where it is.
    #[inline]
    pub fn label_to_copy(&mut self, name: Text<'_>, value: Text<'_>) -> Result<WrittenLabel, E> {
        let start = self.at;
        let text = |text: Text<'_>| 1 + varint_len(text.len as u64) + text.len;
        let body = text(name) + text(value);
        self.room(1 + varint_len(body as u64) + body)?;
        self.head(TAG_FIELD_1, body);
        self.head(TAG_FIELD_1, name.len);
        self.text(name);
        self.head(TAG_FIELD_2, value.len);
        self.text(value);
        // A request is shorter than 4 GiB.
        let (at, len) = (u32::try_from(start), u32::try_from(self.at - start));
        Ok(at.and_then(|at| len.map(|len| WrittenLabel { at, len })).unwrap_or(WrittenLabel::NONE))
    }

    /// The same label once more: mostly a copy of fixed length.
    #[inline]
    pub fn label_again(&mut self, label: WrittenLabel) -> Result<(), E> {
        let (start, len) = (label.at as usize, label.len as usize);
        self.room(len)?;
        if len <= SHORT_LABEL
            && let Some(bytes) = self.out.get(start..)
            && let Some(bytes) = bytes.first_chunk::<SHORT_LABEL>().copied()
            && let Some(place) = self.out.get_mut(self.at..)
            && let Some(place) = place.first_chunk_mut()
        {
            *place = bytes;
        } else {
            self.out.copy_within(start..start + len, self.at);
        }
        self.at += len;
        Ok(())
    }

    /// A sample of the series that is open; `v` are the bits of its value.
    #[inline]
    pub fn sample(&mut self, t: i64, v: u64) -> Result<(), E> {
        self.room(2 + 9 + 11)?;
        let start = self.at;
        self.array([SAMPLE, 0]);
        self.numbers(SAMPLE_VALUE, v, SAMPLE_TIME, t);
        // Two numbers take 20 bytes at most.
        self.set(start + 1, self.at - start - 2);
        Ok(())
    }

    /// Value and time of the exemplar that is open.
    pub fn exemplar_value(&mut self, t: i64, v: u64) -> Result<(), E> {
        self.room(9 + 11)?;
        self.numbers(EXEMPLAR_VALUE, v, EXEMPLAR_TIME, t);
        Ok(())
    }

    /// A histogram of the series that is open, of these pieces of a message.
    pub fn histogram<'p>(
        &mut self,
        pieces: impl Iterator<Item = &'p [u8]> + Clone,
    ) -> Result<(), E> {
        let len = pieces.clone().map(<[u8]>::len).sum();
        self.room(11 + len)?;
        self.head(HISTOGRAM, len);
        pieces.for_each(|piece| self.text(piece.into()));
        Ok(())
    }

    fn open(&mut self, tag: u8, len_bytes: usize) -> Result<Open, E> {
        self.room(1 + len_bytes)?;
        self.array([tag]);
        self.at += len_bytes;
        Ok(Open { body: self.at, len_bytes, is_series: tag == TAG_FIELD_1 })
    }

    /// Zeros are left out, as proto3 has it; -0.0 is not, which it has otherwise.
    #[inline]
    fn numbers(&mut self, value_tag: u8, v: u64, time_tag: u8, t: i64) {
        if v != 0 {
            self.array([value_tag]);
            self.array(v.to_le_bytes());
        }
        if t != 0 {
            self.array([time_tag]);
            self.varint(t.cast_unsigned());
        }
    }

    #[inline]
    fn head(&mut self, tag: u8, len: usize) {
        if let Ok(len @ ..0x80) = u8::try_from(len) {
            return self.array([tag, len]);
        }
        self.array([tag]);
        self.varint(len as u64);
    }

    #[inline]
    fn varint(&mut self, value: u64) {
        let (bytes, len) = varint_bytes(value);
        self.array(bytes);
        self.at = self.at - bytes.len() + len;
    }

    #[inline]
    fn text(&mut self, text: Text<'_>) {
        if text.len <= SHORT
            && let Some(bytes) = text.ahead.first_chunk::<SHORT>()
            && let Some(place) = self.out.get_mut(self.at..)
            && let Some(place) = place.first_chunk_mut::<SHORT>()
        {
            *place = *bytes;
        } else if let Some(place) = self.out.get_mut(self.at..self.at + text.len) {
            place.copy_from_slice(text.as_bytes());
        }
        self.at += text.len;
    }

    /// Room was made for it.
    #[inline]
    fn array<const N: usize>(&mut self, bytes: [u8; N]) {
        debug_assert!(self.at + N <= self.out.len(), "room was made");
        if let Some(place) = self.out.get_mut(self.at..)
            && let Some(place) = place.first_chunk_mut()
        {
            *place = bytes;
        }
        self.at += N;
    }

    /// A length below 128 that is written behind what it is the length of.
    #[inline]
    fn set(&mut self, at: usize, len: usize) {
        debug_assert!(len < 0x80, "{len} is no length of one byte");
        if let (Some(place), Ok(len)) = (self.out.get_mut(at), u8::try_from(len)) {
            *place = len;
        }
    }

    #[inline]
    fn room(&mut self, more: usize) -> Result<(), E> {
        match self.admitted - self.at >= more.saturating_add(SLACK) {
            true => Ok(()),
            false => self.grow(more),
        }
    }

    #[cold]
    fn grow(&mut self, more: usize) -> Result<(), E> {
        // Of numbers the most is asked for that they may take.
        let needed = self.at.saturating_add(more);
        if needed > self.max.saturating_add(SLACK) {
            return Err(TooLong { max: self.max as u64 }.into());
        }
        let doubled = self.admitted.saturating_mul(2).max(STEP_BYTES).min(self.max);
        let admitted = doubled.max(needed).saturating_add(SLACK);
        if self.out.capacity() < admitted {
            // While it is copied it is there twice.
            (self.admit)(admitted.saturating_add(self.admitted) as u64)?;
            // By as much as was admitted, and not to twice as much.
            self.out.reserve_exact(admitted.saturating_sub(self.out.len()));
        }
        (self.admit)(admitted as u64)?;
        if self.out.len() < admitted {
            self.out.resize(admitted, 0);
        }
        self.admitted = admitted;
        Ok(())
    }
}
