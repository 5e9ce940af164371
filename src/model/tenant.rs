//! A tenant's name, checked once where it enters.

use std::fmt;
use std::sync::Arc;

/// A tenant name that is safe as one path element. It is UTF-8, not empty, holds no `/` and no
/// control byte but the tab, is neither `.` nor `..`, not `lost+found`, and at most 255 bytes long,
/// since it names a directory.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantId(Arc<str>);

/// Why a name cannot be a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TenantNameError {
    #[error("tenant name is empty")]
    Empty,
    #[error("tenant name is not UTF-8")]
    NotUtf8,
    #[error("tenant name is not a plain path element")]
    NotAPathElement,
    #[error("tenant name contains a control character")]
    ControlCharacter,
    #[error("tenant name is longer than 255 bytes")]
    TooLong,
}

/// The longest file name on the file systems we know (`NAME_MAX`).
pub const TENANT_NAME_BYTES_MAX: usize = 255;

/// The file in the data directory by which it is tried whether that can be used.
pub const DATA_DIRECTORY_PROBE: &str = ".ringest-probe";

/// Names in the data directory that are never tenants', neither written nor opened: what the root
/// of an ext4 volume has, our own file, and what a database in the data directory itself has. Thanos
/// makes such a one for a write without a tenant; one of ours in its `wal` would lie among another's
/// segments.
const NO_TENANTS: [&str; 6] =
    ["lost+found", "wal", "wbl", "chunks_head", "lock", DATA_DIRECTORY_PROBE];

impl TenantId {
    pub fn parse(name: &[u8]) -> Result<TenantId, TenantNameError> {
        let name = std::str::from_utf8(name).map_err(|_| TenantNameError::NotUtf8)?;
        if name.is_empty() {
            return Err(TenantNameError::Empty);
        }
        if name.len() > TENANT_NAME_BYTES_MAX {
            return Err(TenantNameError::TooLong);
        }
        if name == "." || name == ".." || NO_TENANTS.contains(&name) || name.contains('/') {
            return Err(TenantNameError::NotAPathElement);
        }
        // A tab is legal within a header, so Thanos has such tenants.
        if name.bytes().any(|byte| (byte < 0x20 && byte != b'\t') || byte == 0x7f) {
            return Err(TenantNameError::ControlCharacter);
        }
        Ok(TenantId(Arc::from(name)))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_leave_the_data_directory_are_refused() {
        let cases: &[(&[u8], TenantNameError)] = &[
            (b"", TenantNameError::Empty),
            (b".", TenantNameError::NotAPathElement),
            (b"..", TenantNameError::NotAPathElement),
            (b"/", TenantNameError::NotAPathElement),
            (b"a/b", TenantNameError::NotAPathElement),
            (b"../a", TenantNameError::NotAPathElement),
            (b"lost+found", TenantNameError::NotAPathElement),
            (b"wal", TenantNameError::NotAPathElement),
            (b"wbl", TenantNameError::NotAPathElement),
            (b"chunks_head", TenantNameError::NotAPathElement),
            (b"lock", TenantNameError::NotAPathElement),
            (DATA_DIRECTORY_PROBE.as_bytes(), TenantNameError::NotAPathElement),
            (b"a\0b", TenantNameError::ControlCharacter),
            (b"a\nb", TenantNameError::ControlCharacter),
            (b"\xff", TenantNameError::NotUtf8),
            (&[b'a'; 256], TenantNameError::TooLong),
        ];
        for (name, error) in cases {
            assert_eq!(TenantId::parse(name), Err(*error), "{name:?}");
        }
    }

    #[test]
    fn plain_names_are_taken() {
        for name in ["a", "default-tenant", "...", "a b", "a\tb", "ü", ".hidden", "WAL", "wals"] {
            assert_eq!(TenantId::parse(name.as_bytes()).unwrap().as_str(), name);
        }
        assert!(TenantId::parse(&[b'a'; 255]).is_ok());
    }
}
