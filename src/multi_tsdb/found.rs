//! What is in the data directory at start: tenants, each with its lock, and blocks that are nobody's.

use std::path::Path;

use crate::disk::{DirLock, Disk};
use crate::metrics::Registry;
use crate::model::tenant::TenantId;
use crate::multi_tsdb::{MultiTsdbOptions, StartError, data_dir};
use crate::tsdb::{Db, OpenError};

/// A directory found at start whose lock is ours, or why it could not be had.
pub(super) struct Found {
    pub(super) id: TenantId,
    pub(super) lock: Result<Option<Box<dyn DirLock>>, OpenError>,
}

/// The tenants' directories, the default tenant's included, each with its lock.
pub(super) fn find_tenants(
    options: &MultiTsdbOptions,
    disk: &dyn Disk,
    registry: &Registry,
) -> Result<Vec<Found>, StartError> {
    let at = |dir: &Path| {
        let dir = dir.to_owned();
        move |source| StartError::Io { dir, source }
    };
    let dir = &options.dir;
    disk.create_dir_all(dir).map_err(at(dir))?;
    // Its name is to outlive a power cut, but what it is in may be closed to us.
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty())
        && let Err(err) = disk.sync_dir(parent)
    {
        tracing::debug!(dir = %parent.display(), %err, "a directory cannot be synced");
    }
    let mut ids = vec![options.default_tenant.clone()];
    let mut existing: usize = 0;
    let mut blocks = Vec::new();
    for entry in disk.list(dir).map_err(at(dir))?.into_iter().filter(|entry| entry.is_dir) {
        let path = dir.join(&entry.name);
        match TenantId::parse(entry.name.as_encoded_bytes()) {
            Ok(id) if id == options.default_tenant => existing += 1,
            Ok(_) if is_block(disk, &path) => blocks.push(path),
            Ok(id) => {
                existing += 1;
                ids.push(id);
            }
            Err(err) => {
                tracing::warn!(path = %path.display(), %err, "skipping a directory that is no tenant");
            }
        }
    }
    if let Some(example) = blocks.first() {
        let (count, example) = (blocks.len(), example.display());
        tracing::warn!(count, %example, "blocks in the data directory are no tenant's and not served");
        show_unserved_blocks(registry, "", count);
    }
    let mut found = Vec::with_capacity(ids.len());
    let mut denied: usize = 0;
    for id in ids {
        let lock = match Db::lock(disk, &dir.join(id.as_str()), &options.db) {
            Err(locked @ OpenError::Locked { .. }) => return Err(StartError::Locked(locked)),
            Err(err) if is_denied(&err) => {
                denied += 1;
                if denied >= existing.max(1) {
                    return Err(StartError::Denied(err));
                }
                Err(err)
            }
            lock => lock,
        };
        found.push(Found { id, lock });
    }
    Ok(found)
}

/// Whether a directory belongs to somebody else, or is on a file system that is read-only.
fn is_denied(err: &OpenError) -> bool {
    matches!(err, OpenError::Io { source, .. } if data_dir::is_denied(source))
}

/// Whether a directory is a block of a database in the data directory itself, which is no tenant's.
fn is_block(disk: &dyn Disk, dir: &Path) -> bool {
    disk.open(&dir.join("meta.json")).is_ok()
}

/// Blocks that are there and are not served.
pub(super) fn show_unserved_blocks(registry: &Registry, tenant: &str, count: usize) {
    if count > 0 {
        let blocks = registry.gauge_vec(
            "ringest_blocks_not_served",
            "Blocks found in tenants' directories that cannot be read, and those without a tenant in \
             the data directory itself.",
            &["tenant"],
        );
        blocks.with(&[tenant]).set(count as f64);
    }
}
