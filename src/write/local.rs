//! One tenant's request into that tenant's head.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::timeout;

use crate::model::key_table::{KeyTable, Lookup};
use crate::model::tenant::TenantId;
use crate::multi_tsdb::{AppendError, MultiTsdb, Tenant, TenantError};
use crate::tsdb::head::append::{AppendReport, Refusal};
use crate::tsdb::head::batch::Batch;
use crate::tsdb::wal::{SyncPolicy, WalError};
use crate::wire::refused::RefusedSeries;
use crate::wire::remote_write_v1::{DecodeError, RequestField, RequestFields};
use crate::write::admission::{Admission, InflightGuard, Overloaded};
use crate::write::decode::decode_fields;
use crate::write::distribute::PlacedSeries;
use crate::write::error::{Invalid, NotReady, Reason, TooLarge, Unavailable, WriteError};
use crate::write::heavy::in_place;
use crate::write::label_rules::LabelCaps;
use crate::write::sink::{Sender, WriteSink};
use crate::write::{Manners, WriteOutcome};

/// Batches kept for reuse: about as many as requests are decoded at once.
const BATCHES_KEPT: usize = 16;

/// A write that is not stored by then is given up: no sender waits so long. The disk is stuck.
const STORE_TIMEOUT: Duration = Duration::from_secs(30);

/// Writes decoded requests into the tenants of this node.
pub struct LocalWriter {
    tenants: Arc<MultiTsdb>,
    caps: LabelCaps,
    sync: SyncPolicy,
    /// What batches are counted against while they are on their way into the log.
    admission: Arc<Admission>,
    /// What requests of tenants that do not exist yet are looked up in.
    nothing_known: Lookup,
    batches: Mutex<Vec<Batch>>,
}

impl LocalWriter {
    pub fn new(
        tenants: Arc<MultiTsdb>,
        caps: LabelCaps,
        sync: SyncPolicy,
        admission: Arc<Admission>,
    ) -> LocalWriter {
        let nothing_known = KeyTable::new(tenants.fingerprinter().clone()).lookup();
        LocalWriter { tenants, caps, sync, admission, nothing_known, batches: Mutex::default() }
    }

    /// Stores a remote write 1.0 request (`prometheus.WriteRequest`, inflated). Returns once the
    /// samples are in the log, and under `--tsdb.wal-sync=always` on the medium.
    pub async fn write(
        &self,
        tenant: &TenantId,
        request: &[u8],
        manners: Manners,
    ) -> Result<WriteOutcome, WriteError> {
        self.write_fields(tenant, RequestFields::new(request), request.len(), manners).await
    }

    /// Stores the series that a peer has placed here: `message` is one of those that
    /// [`RequestFields::of_peer`] reads.
    pub async fn write_from_peer(
        &self,
        tenant: &TenantId,
        message: &[u8],
    ) -> Result<WriteOutcome, WriteError> {
        let fields = RequestFields::of_peer(message);
        self.write_fields(tenant, fields, message.len(), Manners::Thanos).await
    }

    /// Stores the groups of series that were placed here, of a request that was already judged by
    /// `manners`.
    pub async fn write_placed(
        &self,
        tenant: &TenantId,
        series: &PlacedSeries,
        groups: &[u32],
        manners: Manners,
    ) -> Result<WriteOutcome, WriteError> {
        let fields = series.fields(groups).flat_map(RequestFields::of_peer);
        self.write_fields(tenant, fields, series.bytes(groups), manners).await
    }

    async fn write_fields<'r>(
        &self,
        tenant: &TenantId,
        request: impl Iterator<Item = Result<RequestField<'r>, DecodeError>> + Send,
        bytes: usize,
        manners: Manners,
    ) -> Result<WriteOutcome, WriteError> {
        let mut batch = self.batches.lock().pop().unwrap_or_default();
        let outcome = self.write_batch(tenant, request, bytes, manners, &mut batch).await;
        batch.clear();
        let mut batches = self.batches.lock();
        if batches.len() < BATCHES_KEPT {
            batches.push(batch);
        }
        outcome
    }

    async fn write_batch<'r>(
        &self,
        id: &TenantId,
        request: impl Iterator<Item = Result<RequestField<'r>, DecodeError>> + Send,
        bytes: usize,
        manners: Manners,
        batch: &mut Batch,
    ) -> Result<WriteOutcome, WriteError> {
        let existing = self.tenants.find(id).map_err(|err| not_ready(id, err))?;
        let decode = || {
            let known = match &existing {
                Some(tenant) => &tenant.db.lookup(batch),
                None => &self.nothing_known,
            };
            decode_fields(request, bytes, known, manners, self.caps, batch)
        };
        let decoded = in_place(bytes, decode).await;
        let mut outcome = decoded.map_err(Invalid::Decode)?;
        if batch.samples.is_empty() {
            return Ok(outcome);
        }
        let stored = timeout(STORE_TIMEOUT, self.store(id, existing, batch)).await;
        let report = stored.unwrap_or_else(|_| Err(too_slow(id)))?;
        outcome.samples_stored = report.stored;
        add_refusals(&mut outcome, &report, batch);
        Ok(outcome)
    }

    /// Brings a batch into the log and the head, and where it is asked for to the medium.
    async fn store(
        &self,
        id: &TenantId,
        existing: Option<Arc<Tenant>>,
        batch: &mut Batch,
    ) -> Result<AppendReport, WriteError> {
        let tenant = match existing {
            Some(tenant) => tenant,
            None => self.tenants.create(id).await.map_err(|err| not_ready(id, err))?,
        };
        let held = self.hold(batch, &tenant)?;
        let appended = tenant.appends.append(batch, held).await;
        let report = appended.map_err(|err| not_appended(id, err))?;
        self.make_durable(&tenant, &report).await?;
        Ok(report)
    }

    /// Counts a batch while it waits, which may be for long and without its client. One that goes
    /// straight into the log is let in over the budget: its request had its place, and is done soon.
    fn hold(&self, batch: &Batch, tenant: &Tenant) -> Result<InflightGuard, Overloaded> {
        let bytes = batch.bytes() as u64;
        match tenant.appends.has_backlog() {
            true => self.admission.admit(bytes),
            false => Ok(self.admission.hold(bytes)),
        }
    }

    async fn make_durable(&self, tenant: &Tenant, report: &AppendReport) -> Result<(), WriteError> {
        let log = tenant.db.sync_handle();
        match self.sync {
            SyncPolicy::Interval => Ok(()),
            SyncPolicy::Always => {
                let synced = log.wait_synced(report.position).await;
                synced
                    .map_err(|cause| Unavailable::Sync { tenant: tenant.id.clone(), cause }.into())
            }
            SyncPolicy::Segment => {
                if report.closed_segment {
                    log.sync_in_background();
                }
                Ok(())
            }
        }
    }
}

impl WriteSink for LocalWriter {
    /// Stores whatever comes, whichever replica it is.
    async fn write(
        &self,
        tenant: &TenantId,
        request: Bytes,
        _replica: u64,
        sender: Sender<'_>,
    ) -> Result<WriteOutcome, WriteError> {
        match sender {
            Sender::Client(manners) => self.write(tenant, &request, manners).await,
            Sender::Peer(_) => self.write_from_peer(tenant, &request).await,
        }
    }
}

fn not_ready(id: &TenantId, err: TenantError) -> WriteError {
    match err {
        TenantError::Closed => Unavailable::Storage(err).into(),
        _ => WriteError::TenantNotReady { tenant: id.clone(), cause: err.into() },
    }
}

fn not_appended(id: &TenantId, cause: AppendError) -> WriteError {
    let tenant = id.clone();
    match cause {
        AppendError::Log(WalError::RecordTooLong { .. }) => {
            TooLarge::Record { tenant, cause }.into()
        }
        AppendError::Log(WalError::DiskFull(_) | WalError::Io(_) | WalError::SyncFailed)
        | AppendError::DiskStuck
        | AppendError::Closed => Unavailable::Append { tenant, cause }.into(),
        // Other tenants' logs may be on another disk.
        AppendError::QueueFull | AppendError::Interrupted => {
            WriteError::TenantNotReady { tenant, cause: cause.into() }
        }
    }
}

/// What is under way may be stored all the same; the same samples sent again are a success then.
fn too_slow(id: &TenantId) -> WriteError {
    WriteError::TenantNotReady { tenant: id.clone(), cause: NotReady::Slow(STORE_TIMEOUT) }
}

fn add_refusals(outcome: &mut WriteOutcome, report: &AppendReport, batch: &Batch) {
    for (refusal, refused) in Refusal::ALL.into_iter().zip(&report.refused) {
        if let Some((count, key)) = refused {
            outcome.refusals.add(reason_of(refusal), *count, || format!("{key:?}"));
        }
    }
    if report.refused_samples.is_empty() {
        return;
    }
    // Those of the labels, and those of the samples.
    let of_samples = report.refused_samples.iter();
    let of_samples =
        of_samples.map(|(sample, refusal)| (batch.place_of(*sample), reason_of(*refusal).code()));
    let mut places: Vec<_> = outcome.refused_series.iter().chain(of_samples).collect();
    places.sort_unstable();
    outcome.refused_series = RefusedSeries::default();
    places.into_iter().for_each(|(place, reason)| outcome.refused_series.push(place, reason));
}

fn reason_of(refusal: Refusal) -> Reason {
    match refusal {
        Refusal::OutOfOrder => Reason::OutOfOrder,
        Refusal::OutOfBounds => Reason::OutOfBounds,
        Refusal::TooFarInFuture => Reason::TooFarInFuture,
        Refusal::DuplicateForTimestamp => Reason::DuplicateForTimestamp,
        Refusal::TooManySeries => Reason::TooManySeries,
    }
}

#[cfg(test)]
mod tests;
