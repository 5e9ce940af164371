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
use crate::write::admission::{Admission, InflightGuard};
use crate::write::decode::{DecodeOptions, NotDecoded, decode_fields};
use crate::write::distribute::PlacedSeries;
use crate::write::error::{Invalid, NotReady, Reason, TooLarge, Unavailable, WriteError};
use crate::write::heavy::in_place;
use crate::write::label_rules::LabelCaps;
use crate::write::sink::{Sender, WriteSink};
use crate::write::{Manners, WriteOutcome};

/// Batches kept for reuse: about as many as requests are decoded at once.
const BATCHES_KEPT: usize = 16;

/// What a sample takes on its way into the log beside the batch: judged, encoded, and to be applied.
const LOGGED_SAMPLE_BYTES: usize = 72;

/// The same of an exemplar, its record included: its labels have 128 characters at most.
const LOGGED_EXEMPLAR_BYTES: usize = 256;

/// A write that is not stored by then is given up: no sender waits so long. The disk is stuck.
const STORE_TIMEOUT: Duration = Duration::from_secs(30);

/// Writes decoded requests into the tenants of this node.
pub struct LocalWriter {
    tenants: Arc<MultiTsdb>,
    caps: LabelCaps,
    sync: SyncPolicy,
    /// What batches are counted against until they are stored.
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
        // What it was left with is in memory already.
        let held = self.admission.hold(batch.allocated_bytes() as u64);
        let outcome = self.write_batch(tenant, request, bytes, manners, &mut batch, held).await;
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
        mut held: InflightGuard,
    ) -> Result<WriteOutcome, WriteError> {
        let existing = self.tenants.find(id).map_err(|err| not_ready(id, err))?;
        let decode = || {
            let known = match &existing {
                Some(tenant) => &tenant.db.lookup(batch),
                None => &self.nothing_known,
            };
            let keeps_exemplars = self.tenants.keeps_exemplars();
            let options = DecodeOptions { manners, caps: self.caps, keeps_exemplars };
            decode_fields(request, bytes, known, options, batch, &mut held)
        };
        let decoded = in_place(bytes, decode).await;
        let mut outcome = decoded.map_err(|error| not_decoded(error, bytes, &held))?;
        // An exemplar belongs to a series that has samples.
        if batch.samples.is_empty() && (batch.exemplars.is_empty() || existing.is_none()) {
            return Ok(outcome);
        }
        // Only those take it whose turn has come, so it is let in.
        let logged = batch.samples.len().saturating_mul(LOGGED_SAMPLE_BYTES);
        // A histogram's record is no longer than it is.
        let logged = logged.saturating_add(batch.histogram_bytes());
        let exemplars = batch.exemplars.len().saturating_mul(LOGGED_EXEMPLAR_BYTES);
        let logged = logged.saturating_add(exemplars);
        held.resize_in_any_case(batch.allocated_bytes().saturating_add(logged) as u64);
        // The log lets go of it, but the batch comes back, and there may be a sync to wait for.
        let held = Arc::new(held);
        let stored = self.store(id, existing, batch, held.clone());
        let stored = timeout(STORE_TIMEOUT, stored).await;
        let report = stored.unwrap_or_else(|_| Err(too_slow(id)))?;
        outcome.samples_stored = report.stored;
        outcome.written.samples = report.stored - report.histograms_stored;
        outcome.written.histograms = report.histograms_stored;
        outcome.written.exemplars += report.exemplars_stored;
        in_place(bytes, || add_refusals(&mut outcome, &report, batch)).await;
        Ok(outcome)
    }

    /// Brings a batch into the log and the head, and where it is asked for to the medium.
    async fn store(
        &self,
        id: &TenantId,
        existing: Option<Arc<Tenant>>,
        batch: &mut Batch,
        held: Arc<InflightGuard>,
    ) -> Result<AppendReport, WriteError> {
        let tenant = match existing {
            Some(tenant) => tenant,
            None => self.tenants.create(id).await.map_err(|err| not_ready(id, err))?,
        };
        // A batch that goes straight into the log may be over the budget, as its request had its place
        // and is done soon. One that waits may do so for long, and without its client.
        if tenant.appends.has_backlog() {
            self.admission.check(0)?;
        }
        let appended = tenant.appends.append(batch, held).await;
        let report = appended.map_err(|err| not_appended(id, err))?;
        self.make_durable(&tenant, &report).await?;
        Ok(report)
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

/// `held` is what the batch of the request's `bytes` was held by.
fn not_decoded(error: NotDecoded, bytes: usize, held: &InflightGuard) -> WriteError {
    let over = match error {
        NotDecoded::Malformed(error) => return Invalid::Decode(error).into(),
        NotDecoded::Overloaded(over) => over,
    };
    WriteError::no_room(bytes as u64 + held.bytes(), over)
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
        AppendError::QueueFull
        | AppendError::Interrupted
        | AppendError::Log(WalError::StillRead) => {
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
    if let Some(key) = &report.refused_exemplar {
        let count = report.refused_exemplars.len() as u64;
        outcome.refusals.add(Reason::ExemplarOutOfOrder, count, || format!("{key:?}"));
    }
    if report.refused_samples.is_empty() && report.refused_exemplars.is_empty() {
        return;
    }
    // Those of the labels, those of the samples, and those of the exemplars.
    let of_samples = report.refused_samples.iter();
    let of_samples =
        of_samples.map(|(sample, refusal)| (batch.place_of(*sample), reason_of(*refusal).code()));
    let of_exemplars = report.refused_exemplars.iter().map(|exemplar| {
        let place = batch.exemplars[*exemplar as usize].place;
        (place, Reason::ExemplarOutOfOrder.code())
    });
    let others = of_samples.chain(of_exemplars);
    let mut places: Vec<_> = outcome.refused_series.iter().chain(others).collect();
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
