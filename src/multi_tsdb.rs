//! Tenant to [`Db`]: opened at start or by the tenant's first write.

use std::path::PathBuf;
use std::sync::Arc;

use crate::clock::Clock;
use crate::disk::Disk;
use crate::metrics::Registry;
use crate::model::tenant::TenantId;
use crate::tsdb::Db;
use crate::tsdb::options::DbOptions;

/// What all tenants share.
pub struct MultiTsdbOptions {
    /// `--tsdb.path`
    pub dir: PathBuf,
    pub db: DbOptions,
    /// `--label`s, name and value, in the order given.
    pub labels: Vec<(String, String)>,
    /// `--receive.tenant-label-name`
    pub tenant_label_name: String,
    /// `--receive.default-tenant-id`: its directory is made at start.
    pub default_tenant: TenantId,
    /// Tenants beyond this are refused.
    pub tenants_max: usize,
}

/// All tenants of this node.
pub struct MultiTsdb {}

/// A tenant that is open.
pub struct Tenant {
    pub id: TenantId,
    pub db: Arc<Db>,
    /// `--label`s and the tenant label, sorted by name: added to every series a querier sees.
    pub external_labels: Vec<(Vec<u8>, Vec<u8>)>,
}

impl MultiTsdb {
    /// Starts opening the tenants found under the data directory, in the background.
    pub fn open(
        _options: MultiTsdbOptions,
        _disk: Arc<dyn Disk>,
        _clock: Arc<dyn Clock>,
        _registry: &Registry,
    ) -> std::io::Result<Arc<MultiTsdb>> {
        unimplemented!()
    }

    /// Whether every tenant found at start is open or quarantined.
    pub fn is_ready(&self) -> bool {
        unimplemented!()
    }

    /// The open tenants, in order of their names.
    pub fn tenants(&self) -> Vec<Arc<Tenant>> {
        unimplemented!()
    }

    /// The tenant if it is open.
    pub fn tenant(&self, _id: &TenantId) -> Option<Arc<Tenant>> {
        unimplemented!()
    }

    /// Syncs and closes every tenant.
    pub fn close(&self) {
        unimplemented!()
    }
}
