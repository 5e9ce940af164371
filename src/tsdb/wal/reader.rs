//! One segment's bytes to records, verified.
//!
//! The reader never stops at damage: it reports what it could not read and goes on with the next
//! whole record. Since a fragment's checksum covers its payload only, a damaged length says nothing
//! about where the next fragment starts; so every offset behind the damage is tried, up to the end
//! of the page, for a fragment that starts a record: its type valid, its length within the page,
//! its checksum right and, if it is the whole record, its content decodable. Then the next page is
//! read from its start. A label value may hold the bytes of a whole record, and would be taken for
//! one if the record around it were damaged; it could hurt only the tenant that sent it.
//!
//! Before that the header itself is mended if it can be: the checksum tells which length the payload
//! has, or, where type and place do not agree, that the payload is whole. What then decodes is
//! given like any record, and the damage is told behind it.
//!
//! Bytes that a file lacks of its last page are read as zeros, as Prometheus does: a log whose last
//! zero bytes never reached the disk is whole.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::disk::{Disk, DiskFile};
use crate::tsdb::wal::Compression;
use crate::tsdb::wal::record::Record;
use crate::tsdb::wal::segment::{
    HEADER_BYTES, KIND_FIRST, KIND_FULL, KIND_LAST, KIND_MASK, KIND_MIDDLE, PAGE_BYTES,
    RECORD_BYTES_MAX, SNAPPY_FLAG, ZSTD_FLAG,
};

/// Bytes read from the file at once.
const BLOCK_BYTES: usize = 32 * PAGE_BYTES;
const PAGE: u64 = PAGE_BYTES as u64;
/// Snappy's densest element gives 64 bytes for 3; a declared length beyond this is a lie.
const SNAPPY_RATIO_MAX: usize = 22;

/// What is wrong with a place in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DamageKind {
    /// A type byte that no fragment has here.
    FragmentType,
    /// A fragment that would reach over the end of its page.
    Length,
    Checksum,
    /// A record whose later fragments are not there.
    Unfinished,
    /// Fragments whose record has no start.
    Orphan,
    /// Zeros in place of pages.
    Zeros,
    /// Checksum right, but no compressed data or no record.
    Undecodable,
    /// Longer than any record we read.
    TooLong,
    /// A length or type byte, of a fragment that its checksum calls whole. It was read, and costs
    /// nothing.
    Mended,
}

/// A part of a segment that gave no record, but for [`DamageKind::Mended`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    pub kind: DamageKind,
    /// Offsets in the file; reading went on at `end`.
    pub start: u64,
    pub end: u64,
    /// The file ends within what was being written: ordinary in the log's last segment.
    pub is_torn: bool,
}

/// A record as found.
#[derive(Debug)]
pub struct FoundRecord<'r> {
    pub record: Record<'r>,
    /// The record's bytes, not compressed.
    pub bytes: &'r [u8],
    /// The bytes that lie in the segment, and how they are compressed.
    pub stored: &'r [u8],
    pub compression: Compression,
    /// Offsets of the first fragment and behind the last.
    pub start: u64,
    pub end: u64,
}

/// The next thing in a segment.
#[derive(Debug)]
pub enum Found<'r> {
    Record(FoundRecord<'r>),
    Damage(Damage),
}

/// Reads one segment file from its start, in large blocks.
pub struct SegmentReader {
    file: Arc<dyn DiskFile>,
    file_bytes: u64,
    /// Offset of the next fragment.
    offset: u64,
    /// Pages read, and where in the file the first of them lies. The file's last page is filled up
    /// with zeros.
    block: Vec<u8>,
    block_start: u64,
    /// A record whose last fragment is still to come.
    pending: Option<Pending>,
    /// Fragments of a record that has several.
    assembled: Vec<u8>,
    unpacker: Unpacker,
    /// Where a run of zeros starts that the file should have ended with.
    zeros_from: Option<u64>,
    /// Whether fragments without a start belong to damage already reported.
    is_resuming: bool,
    /// Damage that was mended, to be told behind what it was found in.
    mended: Option<Damage>,
}

#[derive(Clone, Copy)]
struct Pending {
    start: u64,
    compression: Compression,
}

/// A step of the walk, free of borrows.
enum Step {
    Record { place: Place, compression: Compression, start: u64 },
    Damage(Damage),
    End,
}

/// Where a record's stored bytes are.
enum Place {
    Block(Range<usize>),
    Assembled,
}

/// A fragment that stands on its own: type, length and checksum are right.
#[derive(Clone, Copy)]
struct Fragment {
    kind: u8,
    compression: Compression,
    payload_bytes: usize,
}

impl SegmentReader {
    pub fn open(disk: &dyn Disk, path: &Path) -> io::Result<SegmentReader> {
        SegmentReader::open_part(disk, path, 0..u64::MAX)
    }

    /// The same for a part of it, from the begin of a record to the end of one, or of the file.
    pub fn open_part(disk: &dyn Disk, path: &Path, part: Range<u64>) -> io::Result<SegmentReader> {
        let file = disk.open(path)?;
        let file_bytes = file.len()?.min(part.end);
        Ok(SegmentReader {
            file,
            file_bytes,
            offset: part.start,
            block: Vec::new(),
            block_start: 0,
            pending: None,
            assembled: Vec::new(),
            unpacker: Unpacker::default(),
            zeros_from: None,
            is_resuming: false,
            mended: None,
        })
    }

    /// Length of the file when it was opened, or where the part ends.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// The next record or damage; `None` at the end. An error is the disk's.
    pub fn read_next(&mut self) -> io::Result<Option<Found<'_>>> {
        if let Some(mended) = self.mended.take() {
            return Ok(Some(Found::Damage(mended)));
        }
        let (place, compression, start) = match self.step()? {
            Step::Record { place, compression, start } => (place, compression, start),
            Step::Damage(damage) => return Ok(Some(Found::Damage(damage))),
            Step::End => return Ok(None),
        };
        let end = self.offset;
        let stored = match place {
            Place::Block(range) => self.block.get(range).unwrap_or_default(),
            Place::Assembled => &self.assembled,
        };
        let stored_as = self.unpacker.unpack_any(compression, stored);
        let decoded = stored_as.and_then(|compression| {
            let bytes = self.unpacker.unpacked(compression, stored);
            let record = Record::of_parsed(bytes).map_err(|_| DamageKind::Undecodable)?;
            Ok(FoundRecord { record, bytes, stored, compression, start, end })
        });
        if decoded.as_ref().is_ok_and(|found| found.compression != compression) {
            let damage = Damage { kind: DamageKind::Mended, start, end, is_torn: false };
            self.mended.get_or_insert(damage);
        }
        Ok(Some(match decoded {
            Ok(record) => Found::Record(record),
            Err(kind) => Found::Damage(Damage { kind, start, end, is_torn: false }),
        }))
    }

    /// Gives what the segment holds, undecoded; ends at damage.
    #[cfg(test)]
    pub(super) fn for_each_payload(&mut self, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        while let Step::Record { place, compression, .. } = self.step()? {
            let stored = match place {
                Place::Block(range) => self.block.get(range).unwrap_or_default(),
                Place::Assembled => &self.assembled,
            };
            let unpacked = self.unpacker.unpack(compression, stored);
            each(unpacked.map_err(|kind| io::Error::other(format!("{kind:?}")))?);
        }
        Ok(())
    }

    fn step(&mut self) -> io::Result<Step> {
        loop {
            if self.offset >= self.file_bytes {
                return Ok(self.finish());
            }
            let page_start = self.offset - self.offset % PAGE;
            let page = self.load_page(page_start)?;
            let in_page = (self.offset % PAGE) as usize;
            if PAGE_BYTES - in_page < HEADER_BYTES {
                // Too short for a header: padding.
                self.offset = page_start + PAGE;
                continue;
            }
            let bytes = self.block.get(page.clone()).unwrap_or_default();
            if bytes.get(in_page) == Some(&0) && bytes.iter().skip(in_page).all(|byte| *byte == 0) {
                if let Some(pending) = self.pending.take() {
                    return Ok(Step::Damage(self.damage(DamageKind::Unfinished, pending.start)));
                }
                self.zeros_from.get_or_insert(self.offset);
                self.offset = page_start + PAGE;
                continue;
            }
            if let Some(start) = self.zeros_from.take() {
                // Pages are filled to their end unless the file ends with them.
                return Ok(Step::Damage(self.damage(DamageKind::Zeros, start)));
            }
            let found = read_fragment(bytes, in_page);
            let start = self.offset;
            let (fragment, is_mended) =
                match found.and_then(|fragment| self.in_sequence(fragment, in_page)) {
                    Ok(fragment) => (fragment, false),
                    Err(kind) => match self.mend(page.clone(), in_page) {
                        Some(fragment) => (fragment, true),
                        None => return Ok(Step::Damage(self.resynchronize(kind, page))),
                    },
                };
            let step = self.take_fragment(fragment, page.start + in_page);
            // It stays where it is while damage before it is told.
            if is_mended && self.offset > start {
                self.note_mended(start, self.offset);
            }
            if let Some(step) = step {
                return Ok(step);
            }
        }
    }

    fn note_mended(&mut self, start: u64, end: u64) {
        let damage = Damage { kind: DamageKind::Mended, start, end, is_torn: false };
        self.mended.get_or_insert(damage);
    }

    /// Moves behind a good fragment; a step if it ends a record or reveals damage.
    fn take_fragment(&mut self, fragment: Fragment, at: usize) -> Option<Step> {
        let Fragment { kind, compression, payload_bytes } = fragment;
        let start = self.offset;
        let starts_record = matches!(kind, KIND_FULL | KIND_FIRST);
        if starts_record && let Some(pending) = self.pending.take() {
            return Some(Step::Damage(self.damage(DamageKind::Unfinished, pending.start)));
        }
        let payload = at + HEADER_BYTES..at + HEADER_BYTES + payload_bytes;
        self.offset += (HEADER_BYTES + payload_bytes) as u64;
        if kind == KIND_FULL {
            self.is_resuming = false;
            return Some(Step::Record { place: Place::Block(payload), compression, start });
        }
        if kind == KIND_FIRST {
            self.is_resuming = false;
            self.assembled.clear();
            self.pending = Some(Pending { start, compression });
        }
        let Some(pending) = self.pending else {
            if self.is_resuming {
                return None;
            }
            self.is_resuming = true;
            return Some(Step::Damage(self.damage(DamageKind::Orphan, start)));
        };
        if self.assembled.len() + payload_bytes > RECORD_BYTES_MAX {
            self.pending = None;
            return Some(Step::Damage(self.damage(DamageKind::TooLong, pending.start)));
        }
        self.assembled.extend_from_slice(self.block.get(payload).unwrap_or_default());
        if kind == KIND_MIDDLE || kind == KIND_FIRST {
            return None;
        }
        self.pending = None;
        let Pending { start, compression } = pending;
        Some(Step::Record { place: Place::Assembled, compression, start })
    }

    /// The fragment, if it can stand where it does.
    fn in_sequence(&self, fragment: Fragment, in_page: usize) -> Result<Fragment, DamageKind> {
        let fills_page = in_page + HEADER_BYTES + fragment.payload_bytes == PAGE_BYTES;
        let is_placed = match fragment.kind {
            KIND_FULL => true,
            KIND_FIRST => fills_page,
            KIND_MIDDLE => in_page == 0 && fills_page,
            _ => in_page == 0,
        };
        if is_placed { Ok(fragment) } else { Err(DamageKind::FragmentType) }
    }

    /// The fragment at `offset` as its checksum has it, if nothing but its length or its type is
    /// damaged. An empty one could be anything.
    fn mend(&mut self, page: Range<usize>, in_page: usize) -> Option<Fragment> {
        let bytes = self.block.get(page).unwrap_or_default();
        let header = Header::read(bytes, in_page)?;
        let behind = bytes.get(in_page + HEADER_BYTES..).unwrap_or_default();
        let payload = header.payload(behind).or_else(|| header.payload_of_any_length(behind))?;
        if payload.is_empty() {
            return None;
        }
        let fills_page = payload.len() == behind.len();
        let (declared, compression) = (header.kind(), header.compression());
        let is_start = matches!(declared, KIND_FULL | KIND_FIRST);
        let (kind, compression) = if self.pending.is_some() && in_page == 0 && !is_start {
            let is_last = !fills_page || declared == KIND_LAST;
            (if is_last { KIND_LAST } else { KIND_MIDDLE }, compression)
        } else if let Some(compression) = self.unpacker.known_compression(compression, payload) {
            (KIND_FULL, compression)
        } else if fills_page {
            (KIND_FIRST, compression)
        } else {
            return None;
        };
        Some(Fragment { kind, compression, payload_bytes: payload.len() })
    }

    /// Looks behind the damage at `offset` for the next start of a record in the page.
    fn resynchronize(&mut self, kind: DamageKind, page: Range<usize>) -> Damage {
        let bytes = self.block.get(page.clone()).unwrap_or_default();
        let in_page = (self.offset % PAGE) as usize;
        let page_start = self.offset - self.offset % PAGE;
        // Read before `offset` moves.
        let reaches_over_end = reaches_over(bytes, in_page, self.file_bytes - page_start);
        let next = (in_page + 1..PAGE_BYTES - HEADER_BYTES)
            .find(|at| starts_record(bytes, *at, &mut self.unpacker));
        // What was written behind something else was not torn when that was.
        let is_whole = |at| read_fragment(bytes, at).is_ok_and(|found| found.payload_bytes > 0);
        let has_whole_fragment =
            next.is_none() && reaches_over_end && (in_page + 1..PAGE_BYTES).any(is_whole);
        let start = self.pending.take().map_or(self.offset, |pending| pending.start);
        self.offset = page_start + next.unwrap_or(PAGE_BYTES) as u64;
        let mut damage = self.damage(kind, start);
        damage.is_torn = next.is_none() && reaches_over_end && !has_whole_fragment;
        damage
    }

    /// Damage from `start` to where reading goes on.
    fn damage(&mut self, kind: DamageKind, start: u64) -> Damage {
        self.is_resuming = true;
        Damage { kind, start, end: self.offset.min(self.file_bytes), is_torn: false }
    }

    /// What the end of the file leaves open.
    fn finish(&mut self) -> Step {
        if let Some(pending) = self.pending.take() {
            let damage = self.damage(DamageKind::Unfinished, pending.start);
            return Step::Damage(Damage { is_torn: true, ..damage });
        }
        // Zeros to the end of a begun page are its padding; a page of nothing else is not.
        if let Some(start) = self.zeros_from.take()
            && start.next_multiple_of(PAGE) < self.file_bytes
        {
            let damage = self.damage(DamageKind::Zeros, start.next_multiple_of(PAGE));
            return Step::Damage(Damage { is_torn: true, ..damage });
        }
        Step::End
    }

    /// Where the page that starts at `page_start` lies in the block, read if it must be.
    #[expect(clippy::cast_possible_truncation, reason = "both are within a block")]
    fn load_page(&mut self, page_start: u64) -> io::Result<Range<usize>> {
        let is_loaded = page_start >= self.block_start
            && page_start - self.block_start < self.block.len() as u64;
        if !is_loaded {
            self.block_start = page_start;
            let left = self.file_bytes - page_start;
            let wanted = left.min(BLOCK_BYTES as u64) as usize;
            self.block.resize(wanted.next_multiple_of(PAGE_BYTES), 0);
            let mut filled = 0;
            while filled < wanted {
                let room = &mut self.block[filled..wanted];
                match self.file.read_at(room, page_start + filled as u64) {
                    Ok(0) => break,
                    Ok(n) => filled += n,
                    Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                    Err(err) => {
                        self.block.clear();
                        return Err(err);
                    }
                }
            }
            self.block[filled..].fill(0);
        }
        let at = (page_start - self.block_start) as usize;
        Ok(at..at + PAGE_BYTES)
    }
}

/// What stands before a fragment's payload.
#[derive(Clone, Copy)]
struct Header {
    type_byte: u8,
    payload_bytes: usize,
    checksum: u32,
}

impl Header {
    fn read(page: &[u8], at: usize) -> Option<Header> {
        let behind = page.get(at..)?;
        let [type_byte, len_high, len_low, checksum @ ..] =
            *behind.first_chunk::<HEADER_BYTES>()?;
        let payload_bytes = usize::from(u16::from_be_bytes([len_high, len_low]));
        Some(Header { type_byte, payload_bytes, checksum: u32::from_be_bytes(checksum) })
    }

    fn kind(self) -> u8 {
        self.type_byte & KIND_MASK
    }

    /// Prometheus ignores the three upper bits, and so do we.
    fn compression(self) -> Compression {
        match self.type_byte {
            byte if byte & SNAPPY_FLAG != 0 => Compression::Snappy,
            byte if byte & ZSTD_FLAG != 0 => Compression::Zstd,
            _ => Compression::None,
        }
    }

    /// The payload at the start of what is behind the header, if it has this checksum.
    fn payload(self, behind: &[u8]) -> Option<&[u8]> {
        let payload = behind.get(..self.payload_bytes)?;
        (crc32c::crc32c(payload) == self.checksum).then_some(payload)
    }

    /// The same if the length is wrong.
    fn payload_of_any_length(self, behind: &[u8]) -> Option<&[u8]> {
        let mut checksum = 0;
        let len = behind.chunks(1).position(|byte| {
            checksum = crc32c::crc32c_append(checksum, byte);
            checksum == self.checksum
        })?;
        behind.get(..len + 1)
    }
}

/// The fragment at `at` of a page, if it is whole.
fn read_fragment(page: &[u8], at: usize) -> Result<Fragment, DamageKind> {
    let header = Header::read(page, at).ok_or(DamageKind::FragmentType)?;
    if !(KIND_FULL..=KIND_LAST).contains(&header.kind()) {
        return Err(DamageKind::FragmentType);
    }
    let behind = page.get(at + HEADER_BYTES..).unwrap_or_default();
    if header.payload_bytes > behind.len() {
        return Err(DamageKind::Length);
    }
    let payload = header.payload(behind).ok_or(DamageKind::Checksum)?;
    let (kind, compression) = (header.kind(), header.compression());
    Ok(Fragment { kind, compression, payload_bytes: payload.len() })
}

/// Whether the header at `at` says that its fragment ends behind the file, of which `page_bytes`
/// are left from the page's start on.
fn reaches_over(page: &[u8], at: usize, page_bytes: u64) -> bool {
    let len = match page.get(at + 1..at + 3) {
        Some(&[high, low]) => usize::from(u16::from_be_bytes([high, low])),
        _ => 0,
    };
    page_bytes < PAGE && (at + HEADER_BYTES + len) as u64 > page_bytes
}

/// Whether at `at` there is beyond doubt the start of a record. Stricter than reading in sequence:
/// an empty record or one of unknown type could be anything.
fn starts_record(page: &[u8], at: usize, unpacker: &mut Unpacker) -> bool {
    let Some(&type_byte) = page.get(at) else { return false };
    let has_known_bits = type_byte & !(KIND_MASK | SNAPPY_FLAG | ZSTD_FLAG) == 0;
    if !has_known_bits || !matches!(type_byte & KIND_MASK, KIND_FULL | KIND_FIRST) {
        return false;
    }
    let Ok(fragment) = read_fragment(page, at) else { return false };
    if fragment.payload_bytes == 0 {
        return false;
    }
    let payload_start = at + HEADER_BYTES;
    let payload_end = payload_start + fragment.payload_bytes;
    if fragment.kind == KIND_FIRST {
        return payload_end == PAGE_BYTES;
    }
    let payload = page.get(payload_start..payload_end).unwrap_or_default();
    unpacker.is_known(fragment.compression, payload) == Ok(true)
}

/// Decompresses records, reusing its memory.
#[derive(Default)]
struct Unpacker {
    snappy: snap::raw::Decoder,
    zstd: Option<zstd::bulk::Decompressor<'static>>,
    /// Never shorter than the longest record so far, so that it is filled with zeros once.
    plain: Vec<u8>,
    /// How much of it is the last record.
    plain_bytes: usize,
}

/// In the order in which they are tried.
const COMPRESSIONS: [Compression; 3] = [Compression::Snappy, Compression::None, Compression::Zstd];

impl Unpacker {
    /// How the record is compressed for it to be one that we know, `declared` before all others.
    fn known_compression(&mut self, declared: Compression, stored: &[u8]) -> Option<Compression> {
        let others = COMPRESSIONS.into_iter().filter(|other| *other != declared);
        [declared].into_iter().chain(others).find(|one| self.is_known(*one, stored) == Ok(true))
    }

    /// Unpacks a record for [`Unpacker::unpacked`], and says how it is compressed: otherwise than
    /// declared, if it is a record that we know only so.
    fn unpack_any(
        &mut self,
        declared: Compression,
        stored: &[u8],
    ) -> Result<Compression, DamageKind> {
        match self.is_known(declared, stored) {
            Ok(true) => return Ok(declared),
            Ok(false) if stored.is_empty() => return Ok(declared),
            _ => {}
        }
        match self.known_compression(declared, stored) {
            Some(compression) => Ok(compression),
            None => self.is_known(declared, stored).map(|_| declared),
        }
    }

    /// The record that was unpacked last.
    fn unpacked<'u>(&'u self, compression: Compression, stored: &'u [u8]) -> &'u [u8] {
        match compression {
            Compression::None => stored,
            _ => self.plain.get(..self.plain_bytes).unwrap_or_default(),
        }
    }

    /// Unpacks a record; whether it is of a type that we know.
    fn is_known(&mut self, compression: Compression, stored: &[u8]) -> Result<bool, DamageKind> {
        let bytes = self.unpack(compression, stored)?;
        let plain_bytes = bytes.len();
        let is_known = match Record::parse(bytes) {
            Ok(record) => !matches!(record, Record::Unknown(_)),
            Err(_) => return Err(DamageKind::Undecodable),
        };
        self.plain_bytes = plain_bytes;
        Ok(is_known)
    }

    fn unpack<'u>(
        &'u mut self,
        compression: Compression,
        stored: &'u [u8],
    ) -> Result<&'u [u8], DamageKind> {
        match compression {
            Compression::None => Ok(stored),
            Compression::Snappy => {
                let len = snap::raw::decompress_len(stored).map_err(|_| DamageKind::Undecodable)?;
                if len / SNAPPY_RATIO_MAX > stored.len() {
                    return Err(DamageKind::Undecodable);
                }
                let room = room_for(&mut self.plain, len)?;
                let written =
                    self.snappy.decompress(stored, room).map_err(|_| DamageKind::Undecodable)?;
                Ok(self.plain.get(..written).unwrap_or_default())
            }
            Compression::Zstd => {
                let declared = zstd::zstd_safe::get_frame_content_size(stored)
                    .map_err(|_| DamageKind::Undecodable)?;
                match declared {
                    Some(declared) => {
                        let len = usize::try_from(declared).map_err(|_| DamageKind::TooLong)?;
                        self.unpack_sized_zstd(stored, len)
                    }
                    None => self.unpack_zstd_stream(stored),
                }
            }
        }
    }

    fn unpack_sized_zstd(&mut self, stored: &[u8], len: usize) -> Result<&[u8], DamageKind> {
        let decompressor = match &mut self.zstd {
            Some(decompressor) => decompressor,
            none => {
                none.insert(zstd::bulk::Decompressor::new().map_err(|_| DamageKind::Undecodable)?)
            }
        };
        let room = room_for(&mut self.plain, len)?;
        let written =
            decompressor.decompress_to_buffer(stored, room).map_err(|_| DamageKind::Undecodable)?;
        Ok(self.plain.get(..written).unwrap_or_default())
    }

    /// A frame that does not say how long its content is.
    fn unpack_zstd_stream(&mut self, stored: &[u8]) -> Result<&[u8], DamageKind> {
        let decoder =
            zstd::stream::read::Decoder::new(stored).map_err(|_| DamageKind::Undecodable)?;
        let mut capped = io::Read::take(decoder, RECORD_BYTES_MAX as u64 + 1);
        self.plain.clear();
        io::Read::read_to_end(&mut capped, &mut self.plain).map_err(|_| DamageKind::Undecodable)?;
        if self.plain.len() > RECORD_BYTES_MAX {
            self.plain = Vec::new();
            return Err(DamageKind::TooLong);
        }
        Ok(&self.plain)
    }
}

/// The first `len` bytes of `plain`, made if there are fewer.
fn room_for(plain: &mut Vec<u8>, len: usize) -> Result<&mut [u8], DamageKind> {
    if len > RECORD_BYTES_MAX {
        return Err(DamageKind::TooLong);
    }
    if plain.len() < len {
        plain.resize(len, 0);
    }
    Ok(&mut plain[..len])
}
