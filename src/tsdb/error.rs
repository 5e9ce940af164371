//! What goes wrong between the storage and its files.

use std::io;
use std::path::{Path, PathBuf};

/// Bytes of a file that are not what its format says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}, byte {offset}: {what}", file.display())]
pub struct Corruption {
    pub file: PathBuf,
    /// Where what is damaged begins, in bytes from the file's beginning.
    pub offset: u64,
    pub what: &'static str,
}

/// Why something could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The disk failed; the bytes may be whole.
    #[error("reading {}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Corrupt(#[from] Corruption),
    /// Whole, and of a kind that this version cannot read.
    #[error("{} holds {what}, which this version does not read", path.display())]
    Unsupported { path: PathBuf, what: &'static str },
    /// A `meta.json` that is none. The source tells line and column.
    #[error("{} does not describe a block", path.display())]
    Meta { path: PathBuf, source: serde_json::Error },
}

impl ReadError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> ReadError {
        move |source| ReadError::Io { path: path.to_owned(), source }
    }
}

/// Why something could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("writing {}", path.display())]
    Io { path: PathBuf, source: io::Error },
    /// What was written before is read again, and could not be.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// It would be larger than its format can hold; so many bytes are the most.
    #[error("{}: more than {bytes_max} bytes of {what}", path.display())]
    TooLarge { path: PathBuf, what: &'static str, bytes_max: u64 },
    /// What came was not in the order of the format, or not what was announced.
    #[error("{}: {what}", path.display())]
    Unordered { path: PathBuf, what: &'static str },
    /// The work was asked to stop.
    #[error("writing was interrupted")]
    Interrupted,
}

impl WriteError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> WriteError {
        move |source| WriteError::Io { path: path.to_owned(), source }
    }
}
