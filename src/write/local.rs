//! One tenant's request into that tenant's head.

use std::sync::Arc;

use crate::model::tenant::TenantId;
use crate::multi_tsdb::MultiTsdb;
use crate::write::error::WriteError;
use crate::write::{Manners, WriteOutcome};

/// Writes decoded requests into the tenants of this node.
pub struct LocalWriter {
    #[allow(dead_code)]
    tenants: Arc<MultiTsdb>,
}

impl LocalWriter {
    pub fn new(tenants: Arc<MultiTsdb>) -> LocalWriter {
        LocalWriter { tenants }
    }

    /// Stores a remote write 1.0 request (`prometheus.WriteRequest`, inflated). Returns once the
    /// samples are in the log, and under `--tsdb.wal-sync=always` on the medium.
    pub async fn write(
        &self,
        _tenant: &TenantId,
        _request: &[u8],
        _manners: Manners,
    ) -> Result<WriteOutcome, WriteError> {
        unimplemented!()
    }
}
