//! What the read APIs ask of the tenants' databases.

use std::sync::Arc;

use bytes::Bytes;

use crate::model::Timestamp;
use crate::model::matcher::Matcher;
use crate::model::tenant::TenantId;
use crate::multi_tsdb::{LabelSet, MultiTsdb, Tenant};
use crate::tsdb::querier::{ChunkData, Querier, SelectedSeries};

/// The tenants of this node.
pub trait TenantSource: Send + Sync {
    /// Those that are open, in order of their names.
    fn tenants(&self) -> Vec<Arc<dyn ReadTenant>>;
    /// The tenant, if it is open.
    fn tenant(&self, id: &TenantId) -> Option<Arc<dyn ReadTenant>>;
    /// Whether no tenant is still opening.
    fn is_ready(&self) -> bool;
}

/// One tenant that can be read.
pub trait ReadTenant: Send + Sync {
    fn name(&self) -> &str;
    /// Sorted by name; no empty values.
    fn external_labels(&self) -> &[(Vec<u8>, Vec<u8>)];
    /// Times of the oldest and newest sample; `None` while there is none.
    fn time_range(&self) -> Option<(Timestamp, Timestamp)>;
    /// A reader over `[mint, maxt]`, both included.
    fn reader(&self, mint: Timestamp, maxt: Timestamp) -> Box<dyn SeriesReader>;
}

/// A reader of one tenant over one time range. The methods are those of [`Querier`].
pub trait SeriesReader: Send {
    fn select(&self, matchers: &[Matcher]) -> Vec<SelectedSeries>;
    fn chunks(&self, series: &SelectedSeries, chunks: &mut Vec<ChunkData>);
    fn label_names(&self, matchers: &[Matcher]) -> Vec<Vec<u8>>;
    fn label_values(&self, name: &[u8], matchers: &[Matcher]) -> Vec<Vec<u8>>;
}

/// Shares a chunk's bytes with a message, without copying them.
pub(crate) fn chunk_bytes(chunk: &ChunkData) -> Bytes {
    Bytes::from_owner(chunk.bytes.clone())
}

impl TenantSource for MultiTsdb {
    fn tenants(&self) -> Vec<Arc<dyn ReadTenant>> {
        let tenants = MultiTsdb::tenants(self).into_iter();
        tenants.map(ReadableTenant::of).collect()
    }

    fn tenant(&self, id: &TenantId) -> Option<Arc<dyn ReadTenant>> {
        MultiTsdb::tenant(self, id).map(ReadableTenant::of)
    }

    fn is_ready(&self) -> bool {
        MultiTsdb::is_ready(self)
    }
}

/// A node that only routes has none.
pub struct NoTenants;

impl TenantSource for NoTenants {
    fn tenants(&self) -> Vec<Arc<dyn ReadTenant>> {
        Vec::new()
    }

    fn tenant(&self, _: &TenantId) -> Option<Arc<dyn ReadTenant>> {
        None
    }

    fn is_ready(&self) -> bool {
        true
    }
}

/// A tenant with the external labels that hold for one call.
struct ReadableTenant {
    tenant: Arc<Tenant>,
    external_labels: Arc<LabelSet>,
}

impl ReadableTenant {
    fn of(tenant: Arc<Tenant>) -> Arc<dyn ReadTenant> {
        let external_labels = tenant.external_labels();
        Arc::new(ReadableTenant { tenant, external_labels })
    }
}

impl ReadTenant for ReadableTenant {
    fn name(&self) -> &str {
        self.tenant.id.as_str()
    }

    fn external_labels(&self) -> &[(Vec<u8>, Vec<u8>)] {
        &self.external_labels
    }

    fn time_range(&self) -> Option<(Timestamp, Timestamp)> {
        self.tenant.db.time_range()
    }

    fn reader(&self, mint: Timestamp, maxt: Timestamp) -> Box<dyn SeriesReader> {
        Box::new(self.tenant.db.querier(mint, maxt))
    }
}

impl SeriesReader for Querier {
    fn select(&self, matchers: &[Matcher]) -> Vec<SelectedSeries> {
        Querier::select(self, matchers)
    }

    fn chunks(&self, series: &SelectedSeries, chunks: &mut Vec<ChunkData>) {
        Querier::chunks(self, series, chunks);
    }

    fn label_names(&self, matchers: &[Matcher]) -> Vec<Vec<u8>> {
        Querier::label_names(self, matchers)
    }

    fn label_values(&self, name: &[u8], matchers: &[Matcher]) -> Vec<Vec<u8>> {
        Querier::label_values(self, name, matchers)
    }
}
