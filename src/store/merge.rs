//! One Series answer over all tenants, in order of final labels.
//!
//! Series with equal final labels (a replica label was removed, or two tenants hold the same) are
//! sent one after another and are not joined, nor are their chunks compared: that is the
//! querier's part, as with `thanos receive`, which runs its merge without deduplication.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::mem::size_of;

use prost::Message as _;

use crate::model::stop;
use crate::store::budget::{ReadBudget, ReadBudgetGuard};
use crate::store::error::QueryError;
use crate::store::matchers;
use crate::store::missing::{self, Missing};
use crate::store::pieces::{Cursor, interrupted};
use crate::store::sort::sort_by;
use crate::store::source::{SeriesReader, Tenants};
use crate::store::tsdb_store::{self, FRAME_BYTES, FinalLabels, Shard};
use crate::tsdb::querier::{ChunkData, SelectedSeries};
use crate::wire::proto::thanos::series_response::Result as Part;
use crate::wire::proto::thanos::{Series, SeriesBatch, SeriesRequest, SeriesResponse};

/// Bytes of messages made at a time; a frame may exceed it.
const FILL_BYTES: usize = 256 * 1024;

/// What of an answer is made and on its way, at most, and a series' part in it: charged at once, as
/// it stays with the transport while a client does not read.
const UNDER_WAY_BYTES: usize = 2 * FRAME_BYTES;
const SERIES_BYTES: usize = 1024;

/// The rest of an answer.
pub struct SeriesCursor {
    tenants: Vec<TenantPart>,
    /// In order of final labels.
    series: std::vec::IntoIter<Entry>,
    /// Sent before any series.
    warnings: VecDeque<String>,
    skip_chunks: bool,
    /// Series that may still be sent.
    limit: u64,
    batch_len_max: usize,
    batch: Vec<Series>,
    batch_bytes: usize,
    /// Reused from series to series.
    chunks: Vec<ChunkData>,
    _held: ReadBudgetGuard,
}

struct TenantPart {
    reader: Box<dyn SeriesReader>,
    labels: FinalLabels,
}

struct Entry {
    /// Index into `SeriesCursor::tenants`.
    tenant: u32,
    series: SelectedSeries,
}

impl SeriesCursor {
    /// Selects and sorts. No chunk is read yet.
    pub fn open(
        tenants: &Tenants,
        request: &SeriesRequest,
        budget: &ReadBudget,
    ) -> Result<SeriesCursor, QueryError> {
        // Of the matchers, which are let go of once the series are selected.
        let mut programs = budget.begin();
        let asked = matchers::parse(&request.matchers, &mut programs)?;
        if asked.is_empty() {
            return Err(QueryError::NoMatchers);
        }
        let batch_len_max = usize::try_from(request.response_batch_size)
            .map_err(|_| QueryError::NegativeBatchSize(request.response_batch_size))?;
        let mut shard = Shard::new(request.shard_info.as_ref());
        let mut held = budget.begin();
        let mut parts = Vec::new();
        let mut series = Vec::new();
        let missing = Missing::of_request(
            request.partial_response_disabled,
            request.partial_response_strategy,
        );
        let unavailable = tenants.unavailable.iter();
        let unavailable = unavailable.filter(|tenant| missing::can_match(tenant, &asked));
        let mut warnings = missing.settle(missing::warnings(unavailable))?;
        for tenant in &tenants.open {
            let mint = tenant.time_range().map_or(i64::MAX, |(mint, _)| mint);
            if request.max_time < mint {
                continue;
            }
            let Some(matchers) = tsdb_store::match_external(&asked, tenant.external_labels())
            else {
                continue;
            };
            if matchers.is_empty() {
                warnings.push(no_matchers_warning(mint));
                continue;
            }
            let reader = tenant.reader(request.min_time, request.max_time);
            let labels =
                FinalLabels::new(tenant.external_labels(), &request.without_replica_labels);
            let selected = reader.select(&matchers);
            let Some(mut selected) = missing.read(&**tenant, selected, &mut warnings)? else {
                continue;
            };
            if let Some(shard) = &mut shard {
                selected.retain(|series| {
                    !stop::is_asked() && shard.contains(labels.of(&series.labels))
                });
            }
            interrupted()?;
            let label_bytes: usize = selected.iter().map(|series| series.labels.bytes()).sum();
            held.hold(selected.len() * size_of::<Entry>() + label_bytes)?;
            let index = parts.len() as u32;
            series.extend(selected.into_iter().map(|series| Entry { tenant: index, series }));
            parts.push(TenantPart { reader, labels });
        }
        let warnings = missing.settle(warnings)?;
        held.hold((series.len().saturating_mul(SERIES_BYTES)).min(UNDER_WAY_BYTES))?;
        sort_by(&mut series, |a, b| compare(&parts, a, b));
        interrupted()?;
        Ok(SeriesCursor {
            tenants: parts,
            series: series.into_iter(),
            warnings: warnings.into(),
            skip_chunks: request.skip_chunks,
            limit: u64::try_from(request.limit).ok().filter(|n| *n > 0).unwrap_or(u64::MAX),
            batch_len_max,
            batch: Vec::new(),
            batch_bytes: 0,
            chunks: Vec::new(),
            _held: held,
        })
    }

    /// Returns the bytes of the series' frames.
    fn push_series(
        &mut self,
        entry: &Entry,
        ready: &mut VecDeque<SeriesResponse>,
    ) -> Result<usize, QueryError> {
        let Some(part) = self.tenants.get(entry.tenant as usize) else { return Ok(0) };
        let mut frames = Vec::new();
        if self.skip_chunks {
            let series =
                Series { labels: part.labels.messages(&entry.series.labels), chunks: vec![] };
            let bytes = series.encoded_len();
            frames.push((series, bytes));
        } else {
            self.chunks.clear();
            part.reader.chunks(&entry.series, &mut self.chunks)?;
            if self.chunks.is_empty() {
                return Ok(0);
            }
            let labels = part.labels.messages(&entry.series.labels);
            tsdb_store::frames(&labels, &self.chunks, |series, bytes| frames.push((series, bytes)));
        }
        self.limit -= 1;
        let mut pushed = 0;
        for (series, bytes) in frames {
            pushed += bytes;
            self.push_frame(series, bytes, ready);
        }
        Ok(pushed)
    }

    fn push_frame(&mut self, series: Series, bytes: usize, ready: &mut VecDeque<SeriesResponse>) {
        if self.batch_len_max <= 1 {
            ready.push_back(message(Part::Series(series)));
            return;
        }
        // A batch is one message, and stays within what a message may hold.
        if self.batch_bytes + bytes > FRAME_BYTES {
            self.flush_batch(ready);
        }
        self.batch.push(series);
        self.batch_bytes += bytes;
        if self.batch.len() >= self.batch_len_max {
            self.flush_batch(ready);
        }
    }

    fn flush_batch(&mut self, ready: &mut VecDeque<SeriesResponse>) {
        self.batch_bytes = 0;
        if !self.batch.is_empty() {
            let series = std::mem::take(&mut self.batch);
            ready.push_back(message(Part::Batch(SeriesBatch { series })));
        }
    }
}

impl Cursor for SeriesCursor {
    type Message = SeriesResponse;

    fn fill(&mut self, ready: &mut VecDeque<SeriesResponse>) -> Result<bool, QueryError> {
        let warnings = self.warnings.drain(..).map(|text| message(Part::Warning(text)));
        ready.extend(warnings);
        let mut filled = 0;
        while filled < FILL_BYTES || ready.is_empty() {
            interrupted()?;
            if self.limit == 0 {
                break;
            }
            let Some(entry) = self.series.next() else { break };
            filled += self.push_series(&entry, ready)?;
        }
        let more = self.limit > 0 && self.series.len() > 0;
        if !more {
            self.flush_batch(ready);
        }
        Ok(more)
    }
}

fn message(part: Part) -> SeriesResponse {
    SeriesResponse { result: Some(part) }
}

/// By final labels; equal ones by tenant and by what is stored, so the order is no chance.
fn compare(parts: &[TenantPart], a: &Entry, b: &Entry) -> Ordering {
    let (Some(part_a), Some(part_b)) = (parts.get(a.tenant as usize), parts.get(b.tenant as usize))
    else {
        return Ordering::Equal;
    };
    let (labels_a, labels_b) = (&a.series.labels, &b.series.labels);
    let by_labels = if a.tenant == b.tenant {
        part_a.labels.compare(labels_a, labels_b)
    } else {
        part_a.labels.of(labels_a).cmp(part_b.labels.of(labels_b))
    };
    by_labels.then(a.tenant.cmp(&b.tenant)).then_with(|| labels_a.cmp(labels_b))
}

/// What Thanos says, word for word, of a tenant that is asked by its external labels alone.
fn no_matchers_warning(mint: i64) -> String {
    format!(
        "receive series from MinTime: {mint} MaxTime: {}: rpc error: code = InvalidArgument desc = \
         no matchers specified (excluding external labels)",
        i64::MAX
    )
}
