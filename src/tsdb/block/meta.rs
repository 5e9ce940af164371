//! A block's `meta.json`: what it holds, what it was made from, and what Thanos adds for the bucket.
//!
//! Written byte for byte as Go's `encoding/json` does it, with tabs: by Prometheus without a line
//! feed at the end, by Thanos with one. Read are the manifests of both, of any version; fields that
//! are not known here are passed over, as Go passes over them.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use crate::disk::{Disk, read_file, replace_file};
use crate::model::Timestamp;
use crate::tsdb::block::ulid::Ulid;
use crate::tsdb::error::{ReadError, WriteError};

/// The file's name in the block's directory.
pub const META_FILE: &str = "meta.json";
/// Usually a few kilobytes; one of a block made from thousands of others has hundreds.
const META_BYTES_MAX: u64 = 16 << 20;

/// The hint of a block that was cut from samples out of order.
pub const FROM_OUT_OF_ORDER: &str = "from-out-of-order";
/// The hint of a block of series that had ended.
pub const FROM_STALE_SERIES: &str = "from-stale-series";
/// The hint of a block of series that somebody chose.
pub const FROM_SELECTED_SERIES: &str = "from-selected-series";

/// Hints of blocks that hold only some of their time's samples.
pub const PARTIAL: [&str; 3] = [FROM_OUT_OF_ORDER, FROM_STALE_SERIES, FROM_SELECTED_SERIES];

/// A manifest. The order of fields here and below is that in the file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BlockMeta {
    /// Zero if the manifest names none.
    #[serde(default, deserialize_with = "or_default")]
    pub ulid: Ulid,
    /// No sample is older.
    #[serde(default, deserialize_with = "or_default")]
    pub min_time: Timestamp,
    /// All samples are older.
    pub max_time: Timestamp,
    #[serde(default, deserialize_with = "or_default")]
    pub stats: BlockStats,
    #[serde(default, deserialize_with = "or_default")]
    pub compaction: Compaction,
    #[serde(default, deserialize_with = "or_default")]
    pub version: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thanos: Option<ThanosMeta>,
}

/// How much a block holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BlockStats {
    #[serde(skip_serializing_if = "is_zero")]
    pub num_samples: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub num_float_samples: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub num_histogram_samples: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub num_series: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub num_chunks: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub num_tombstones: u64,
}

/// What a block was made from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Compaction {
    /// 1 for a block that was cut from a head.
    #[serde(deserialize_with = "or_default")]
    pub level: i64,
    /// The blocks cut from a head that went in.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<Ulid>,
    /// Nothing is in it.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_false")]
    pub deletable: bool,
    /// The blocks that it was made from directly. One cut from samples out of order has one that
    /// does not exist, with ULID and times 0.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub parents: Vec<BlockDesc>,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_false")]
    pub failed: bool,
    /// Sorted.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub hints: Vec<String>,
}

/// Another block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BlockDesc {
    pub ulid: Ulid,
    pub min_time: Timestamp,
    pub max_time: Timestamp,
}

/// Thanos' section, in the bucket.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ThanosMeta {
    /// Absent from what `thanos receive` uploads, which stands for 1.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_zero_signed")]
    pub version: i64,
    /// External labels.
    #[serde(deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "or_default")]
    pub downsample: Downsample,
    /// Which component made it.
    #[serde(deserialize_with = "or_default")]
    pub source: String,
    /// Names in `chunks/`.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub segment_files: Vec<String>,
    /// Sorted by path.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<BlockFile>,
    /// What was deleted or relabelled afterwards; kept as it is.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub rewrites: Vec<Value>,
    /// The compactor's; `{}` before.
    #[serde(deserialize_with = "or_default")]
    pub index_stats: IndexStats,
    /// Anybody's; kept as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extensions: Option<Value>,
    /// RFC 3339 with as many digits of a second as it takes.
    pub upload_time: String,
}

impl Default for ThanosMeta {
    fn default() -> ThanosMeta {
        ThanosMeta {
            version: 0,
            labels: BTreeMap::new(),
            downsample: Downsample::default(),
            source: String::new(),
            segment_files: Vec::new(),
            files: Vec::new(),
            rewrites: Vec::new(),
            index_stats: IndexStats::default(),
            extensions: None,
            // Go's zero time.
            upload_time: "0001-01-01T00:00:00Z".to_owned(),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Downsample {
    /// Milliseconds between samples; 0 for samples as they came.
    pub resolution: i64,
}

/// A file of a block.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BlockFile {
    pub rel_path: String,
    /// None for `meta.json` itself.
    #[serde(skip_serializing_if = "is_zero_signed")]
    pub size_bytes: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hash: Option<FileHash>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FileHash {
    /// `SHA256`
    #[serde(rename = "hashFunc")]
    pub func: String,
    /// In hex.
    pub value: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IndexStats {
    #[serde(skip_serializing_if = "is_zero_signed")]
    pub series_max_size: i64,
    #[serde(skip_serializing_if = "is_zero_signed")]
    pub chunk_max_size: i64,
}

impl BlockMeta {
    /// Reads the manifest in a block's directory. Prometheus does not look at Thanos' section, so
    /// whatever stands there does not keep a block from being read: it is left out if it is none.
    pub fn read(disk: &dyn Disk, dir: &Path) -> Result<BlockMeta, ReadError> {
        let path = dir.join(META_FILE);
        let bytes = read_file(disk, &path, META_BYTES_MAX).map_err(ReadError::io(&path))?;
        let read = BlockMeta::from_bytes(&bytes).or_else(|err| {
            let mut fields: serde_json::Map<String, Value> = serde_json::from_slice(&bytes)?;
            fields.remove("thanos").ok_or(err)?;
            serde_json::from_value(Value::Object(fields))
        });
        read.map_err(|source| ReadError::Meta { path, source })
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<BlockMeta, serde_json::Error> {
        serde_json::from_slice(bytes)
    }

    /// Writes it into a block's directory, in place of the one that is there; the old or the new one
    /// is there after a crash.
    pub fn write(&self, disk: &dyn Disk, dir: &Path) -> Result<(), WriteError> {
        let path = dir.join(META_FILE);
        replace_file(disk, &path, &self.to_bytes()).map_err(WriteError::io(&path))
    }

    /// The file's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let formatter = GoFormatter(PrettyFormatter::with_indent(b"\t"));
        let mut serializer = Serializer::with_formatter(&mut bytes, formatter);
        // Neither a vector nor these types fail.
        let written = self.serialize(&mut serializer);
        debug_assert!(written.is_ok());
        if self.thanos.is_some() {
            bytes.push(b'\n');
        }
        bytes
    }

    /// Whether it holds some of its time's samples only: the head had, or has, others.
    pub fn is_partial(&self) -> bool {
        self.compaction.hints.iter().any(|hint| PARTIAL.contains(&hint.as_str()))
    }
}

/// As in Go, `null` stands for the zero value.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn is_zero_signed(number: &i64) -> bool {
    *number == 0
}

fn is_false(flag: &bool) -> bool {
    !flag
}

/// Writes JSON as Go does: with tabs, and so that it could stand in a page of HTML.
struct GoFormatter(PrettyFormatter<'static>);

impl Formatter for GoFormatter {
    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let is_escaped = |c: char| matches!(c, '<' | '>' | '&' | '\u{2028}' | '\u{2029}');
        for piece in fragment.split_inclusive(is_escaped) {
            let last = piece.chars().next_back().filter(|c| is_escaped(*c));
            let plain = piece.len() - last.map_or(0, char::len_utf8);
            writer.write_all(&piece.as_bytes()[..plain])?;
            if let Some(last) = last {
                write!(writer, "\\u{:04x}", u32::from(last))?;
            }
        }
        Ok(())
    }

    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_array(writer)
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_array(writer)
    }

    fn begin_array_value<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.0.begin_array_value(writer, first)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_array_value(writer)
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_object(writer)
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_object(writer)
    }

    fn begin_object_key<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.0.begin_object_key(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_object_value(writer)
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_object_value(writer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::SystemDisk;
    use crate::tsdb::block::tests::recorded_blocks;

    #[test]
    fn recorded_manifests_are_read_and_written_byte_for_byte() {
        let blocks = recorded_blocks();
        assert!(blocks.len() > 30, "{}", blocks.len());
        let mut of_thanos = 0;
        for block in blocks {
            let recorded = std::fs::read(block.join(META_FILE)).unwrap();
            let meta = BlockMeta::read(&SystemDisk, &block).unwrap();
            let name = block.file_name().unwrap().to_str().unwrap();
            assert_eq!(meta.ulid.to_string(), name);
            assert_eq!(meta.version, 1);
            of_thanos += usize::from(meta.thanos.is_some());
            let written = String::from_utf8(meta.to_bytes()).unwrap();
            assert_eq!(written, String::from_utf8(recorded).unwrap(), "{}", block.display());
        }
        assert_eq!(of_thanos, 6);
    }

    #[test]
    fn what_others_write_is_taken() {
        // Prometheus as of 2017, a field that is not known, null for lists.
        let meta = BlockMeta::from_bytes(
            br#"{"version": 2, "maxTime": 5, "later": {"a": [1]}, "stats": {"numSeries": 3},
                 "compaction": {"level": 2, "sources": null, "hints": null, "more": 1},
                 "thanos": {"labels": null, "downsample": {"resolution": 300000},
                            "files": [{"rel_path": "index", "size_bytes": 7}], "source": "compactor",
                            "extensions": {"a": {"z": 1, "b": [2.5]}}, "rewrites": [{"x": 1}],
                            "index_stats": {"series_max_size": 9}}}"#,
        )
        .unwrap();
        assert_eq!((meta.min_time, meta.max_time, meta.version), (0, 5, 2));
        assert_eq!((meta.ulid, meta.stats.num_series), (Ulid(0), 3));
        assert!(!meta.is_partial());
        let thanos = meta.thanos.as_ref().unwrap();
        assert_eq!((thanos.version, thanos.downsample.resolution), (0, 300_000));
        assert_eq!(thanos.files[0].size_bytes, 7);
        // What is only handed on comes back as it was.
        let again = BlockMeta::from_bytes(&meta.to_bytes()).unwrap();
        assert_eq!(again, meta);
        assert!(String::from_utf8(meta.to_bytes()).unwrap().contains("\"z\": 1,\n"));

        let hinted = r#"{"maxTime": 1, "compaction": {"hints": ["a", "from-stale-series"]}}"#;
        assert!(BlockMeta::from_bytes(hinted.as_bytes()).unwrap().is_partial());
    }

    #[test]
    fn texts_are_escaped_as_by_go() {
        let labels = [("a<b>&c".to_owned(), "\u{2028}\u{2029}<\u{e9}\"\\\n\u{1}\u{7f}".to_owned())];
        let thanos = ThanosMeta { labels: labels.into(), ..ThanosMeta::default() };
        let meta = BlockMeta { thanos: Some(thanos), ..BlockMeta::default() };
        let written = String::from_utf8(meta.to_bytes()).unwrap();
        let expected = concat!(
            r#""a\u003cb\u003e\u0026c": "\u2028\u2029\u003c"#,
            "\u{e9}",
            r#"\"\\\n\u0001"#,
            "\u{7f}\"\n"
        );
        assert!(written.contains(expected), "{written}");
        assert_eq!(BlockMeta::from_bytes(written.as_bytes()).unwrap(), meta);
        // An empty list or map, a zero time.
        assert!(written.contains("\"index_stats\": {},\n"), "{written}");
        assert!(written.ends_with("\"upload_time\": \"0001-01-01T00:00:00Z\"\n\t}\n}\n"));
    }

    #[test]
    fn what_is_no_manifest_is_told_with_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let read = || BlockMeta::read(&SystemDisk, dir.path()).unwrap_err();
        assert!(matches!(read(), ReadError::Io { .. }));
        for (bytes, line, column) in [
            ("", 1, 0),
            ("{\n\"maxTime\": 1,\n", 3, 0),
            ("{}", 1, 2),
            ("{\"maxTime\": \"1\"}", 1, 15),
        ] {
            std::fs::write(dir.path().join(META_FILE), bytes).unwrap();
            let ReadError::Meta { path, source } = read() else { panic!("{bytes}") };
            assert_eq!(path, dir.path().join(META_FILE));
            assert_eq!((source.line(), source.column()), (line, column), "{bytes}");
        }
        // What Prometheus does not look at does no harm.
        let odd = r#"{"maxTime": 7, "thanos": {"files": 5}}"#;
        std::fs::write(dir.path().join(META_FILE), odd).unwrap();
        let meta = BlockMeta::read(&SystemDisk, dir.path()).unwrap();
        assert_eq!((meta.max_time, meta.thanos), (7, None));
        let meta = BlockMeta { max_time: 3, ..BlockMeta::default() };
        meta.write(&SystemDisk, dir.path()).unwrap();
        assert_eq!(BlockMeta::read(&SystemDisk, dir.path()).unwrap(), meta);
    }
}
