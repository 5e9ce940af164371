//! What the read APIs ask of the tenants' databases.

use std::sync::Arc;

use crate::model::Timestamp;
use crate::model::matcher::Matcher;
use crate::model::tenant::TenantId;
use crate::multi_tsdb::{LabelSet, MultiTsdb, StartStatus, Tenant, UnavailableTenant};
use crate::store::error::QueryError;
use crate::tsdb::chunk_set::ChunkSet;
use crate::tsdb::error::ReadError;
use crate::tsdb::exemplars::Exemplars;
use crate::tsdb::querier::{Querier, SelectedSeries};

/// The tenants of this node.
pub trait TenantSource: Send + Sync {
    fn tenants(&self) -> Tenants;
    /// The tenant, if there is one; an error if it cannot be read now.
    fn tenant(&self, id: &TenantId) -> Result<Option<Arc<dyn ReadTenant>>, QueryError>;
    /// Whether no tenant is still opening, and the storage can be used.
    fn is_ready(&self) -> bool;
    /// How far the tenants' opening has come, while there are such.
    fn start_status(&self) -> Option<StartStatus> {
        None
    }
}

/// All tenants at one moment, each in order of their names.
#[derive(Default)]
pub struct Tenants {
    pub open: Vec<Arc<dyn ReadTenant>>,
    /// Those whose data cannot be read now. An answer that they would have a part in must say that
    /// it is missing.
    pub unavailable: Vec<UnavailableTenant>,
}

/// One tenant that can be read.
pub trait ReadTenant: Send + Sync {
    fn name(&self) -> &str;
    /// Sorted by name; no empty values.
    fn external_labels(&self) -> &[(Vec<u8>, Vec<u8>)];
    /// Times of the oldest and newest sample; `None` while there is none.
    fn time_range(&self) -> Option<(Timestamp, Timestamp)>;
    /// As [`ReadTenant::time_range`], of what is in no block yet.
    fn head_time_range(&self) -> Option<(Timestamp, Timestamp)>;
    /// A reader of what is in no block yet.
    fn head_reader(&self) -> Box<dyn SeriesReader>;
    /// What is kept of exemplars.
    fn exemplars(&self) -> &Exemplars;
    /// A reader over `[mint, maxt]`, both included.
    fn reader(&self, mint: Timestamp, maxt: Timestamp) -> Box<dyn SeriesReader>;
}

/// A reader of one tenant over one time range. The methods are those of [`Querier`].
pub trait SeriesReader: Send {
    fn select(&self, matchers: &[Matcher]) -> Result<Vec<SelectedSeries>, ReadError>;
    fn gather(
        &self,
        series: &mut dyn Iterator<Item = &SelectedSeries>,
        bytes: usize,
        chunks: &mut ChunkSet,
    ) -> Result<(), ReadError>;
    fn label_names(&self, matchers: &[Matcher]) -> Result<Vec<Vec<u8>>, ReadError>;
    fn label_values(&self, name: &[u8], matchers: &[Matcher]) -> Result<Vec<Vec<u8>>, ReadError>;
}

impl TenantSource for MultiTsdb {
    fn tenants(&self) -> Tenants {
        let all = self.all_tenants();
        let open = all.open.into_iter().map(ReadableTenant::of).collect();
        Tenants { open, unavailable: all.unavailable }
    }

    fn tenant(&self, id: &TenantId) -> Result<Option<Arc<dyn ReadTenant>>, QueryError> {
        match self.find_to_read(id) {
            Ok(tenant) => Ok(tenant.map(ReadableTenant::of)),
            Err(reason) => Err(QueryError::Unavailable { tenant: id.clone(), reason }),
        }
    }

    fn is_ready(&self) -> bool {
        MultiTsdb::is_ready(self)
    }

    fn start_status(&self) -> Option<StartStatus> {
        MultiTsdb::start_status(self)
    }
}

/// A node that only routes has none.
pub struct NoTenants;

impl TenantSource for NoTenants {
    fn tenants(&self) -> Tenants {
        Tenants::default()
    }

    fn tenant(&self, _: &TenantId) -> Result<Option<Arc<dyn ReadTenant>>, QueryError> {
        Ok(None)
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

    fn head_time_range(&self) -> Option<(Timestamp, Timestamp)> {
        self.tenant.db.head_time_range()
    }

    fn head_reader(&self) -> Box<dyn SeriesReader> {
        Box::new(self.tenant.db.head_querier())
    }

    fn exemplars(&self) -> &Exemplars {
        self.tenant.db.exemplars()
    }

    fn reader(&self, mint: Timestamp, maxt: Timestamp) -> Box<dyn SeriesReader> {
        Box::new(self.tenant.db.querier(mint, maxt))
    }
}

impl SeriesReader for Querier {
    fn select(&self, matchers: &[Matcher]) -> Result<Vec<SelectedSeries>, ReadError> {
        Querier::select(self, matchers)
    }

    fn gather(
        &self,
        series: &mut dyn Iterator<Item = &SelectedSeries>,
        bytes: usize,
        chunks: &mut ChunkSet,
    ) -> Result<(), ReadError> {
        Querier::gather(self, series, bytes, chunks)
    }

    fn label_names(&self, matchers: &[Matcher]) -> Result<Vec<Vec<u8>>, ReadError> {
        Querier::label_names(self, matchers)
    }

    fn label_values(&self, name: &[u8], matchers: &[Matcher]) -> Result<Vec<Vec<u8>>, ReadError> {
        Querier::label_values(self, name, matchers)
    }
}
