//! One Series answer over all tenants, in order of final labels.
//!
//! Series with equal final labels (a replica label was removed, or two tenants hold the same) are
//! sent one after another and are not joined, nor are their chunks compared: that is the
//! querier's part, as with `thanos receive`, which runs its merge without deduplication.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::mem::size_of;

use bytes::Bytes;

use crate::model::stop;
use crate::store::budget::{ReadBudget, ReadBudgetGuard};
use crate::store::error::QueryError;
use crate::store::frames::{FRAME_BYTES, FrameWriter};
use crate::store::matchers;
use crate::store::missing::{self, Missing};
use crate::store::pieces::{Cursor, interrupted};
use crate::store::sort::sort_by;
use crate::store::source::{SeriesReader, Tenants};
use crate::store::tsdb_store::{self, FinalLabels, Shard};
use crate::tsdb::chunk_set::ChunkSet;
use crate::tsdb::querier::SelectedSeries;
use crate::wire::proto::thanos::SeriesRequest;

/// Bytes of chunks of which a piece is made; a series may exceed it. The more there are, the nearer to
/// one another they lie in their files.
const FILL_BYTES: usize = 512 * 1024;

/// Series gathered at a time, if their chunks are few.
const SERIES_AT_ONCE: usize = 1024;

/// What of an answer is made and on its way, at most unless a series is longer, and a series' part in
/// it: charged at once, as it stays with the transport while a client does not read.
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
    writer: FrameWriter,
    /// Reused from piece to piece.
    chunks: ChunkSet,
    held: ReadBudgetGuard,
    /// What of that is for chunks and messages, in bytes.
    under_way: usize,
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
        let under_way = series.len().saturating_mul(SERIES_BYTES).min(UNDER_WAY_BYTES);
        held.hold(under_way)?;
        sort_by(&mut series, |a, b| compare(&parts, a, b));
        interrupted()?;
        Ok(SeriesCursor {
            tenants: parts,
            series: series.into_iter(),
            warnings: warnings.into(),
            skip_chunks: request.skip_chunks,
            limit: u64::try_from(request.limit).ok().filter(|n| *n > 0).unwrap_or(u64::MAX),
            writer: FrameWriter::new(batch_len_max),
            chunks: ChunkSet::default(),
            held,
            under_way,
        })
    }

    fn has_more(&self) -> bool {
        self.limit > 0 && self.series.len() > 0
    }

    /// Gathers and writes the next series.
    fn write_some(&mut self) -> Result<(), QueryError> {
        let SeriesCursor { tenants, series, chunks, writer, limit, .. } = self;
        let rest = series.as_slice();
        chunks.clear();
        match self.skip_chunks {
            true => rest.iter().take(SERIES_AT_ONCE).for_each(|_| chunks.end_series()),
            false => gather(tenants, rest, *limit, chunks)?,
        }
        // Once as they are stored, and once in messages.
        let bytes = chunks.bytes().saturating_mul(2);
        self.held.hold(bytes.saturating_sub(self.under_way))?;
        self.under_way = self.under_way.max(bytes);
        chunks.load()?;
        interrupted()?;
        writer.reserve(chunks.series_count(), chunks.chunk_count(), chunks.bytes());
        for (i, entry) in (0..chunks.series_count()).zip(rest) {
            let Some(part) = tenants.get(entry.tenant as usize) else { continue };
            let of_series = chunks.of(i);
            if *limit == 0 || of_series.len() == 0 && !self.skip_chunks {
                continue;
            }
            writer.series(part.labels.of(&entry.series.labels), of_series);
            *limit -= 1;
        }
        series.by_ref().take(chunks.series_count()).for_each(drop);
        Ok(())
    }
}

/// Gathers as many of the series, from the first one on, as a piece is made of.
fn gather(
    tenants: &[TenantPart],
    mut rest: &[Entry],
    limit: u64,
    chunks: &mut ChunkSet,
) -> Result<(), QueryError> {
    let most = usize::try_from(limit).unwrap_or(usize::MAX).min(SERIES_AT_ONCE).min(rest.len());
    while let (Some(first), true) = (rest.first(), chunks.series_count() < most) {
        let Some(part) = tenants.get(first.tenant as usize) else { break };
        let before = chunks.series_count();
        let of_tenant = rest.iter().take_while(|entry| entry.tenant == first.tenant);
        let mut of_tenant = of_tenant.take(most - before).map(|entry| &entry.series);
        part.reader.gather(&mut of_tenant, FILL_BYTES, chunks)?;
        if chunks.bytes() >= FILL_BYTES || stop::is_asked() {
            break;
        }
        rest = rest.get(chunks.series_count() - before..).unwrap_or_default();
    }
    Ok(())
}

impl Cursor for SeriesCursor {
    /// Messages, whole ones, with their heads.
    type Message = Bytes;

    fn fill(&mut self, ready: &mut VecDeque<Bytes>) -> Result<bool, QueryError> {
        self.warnings.drain(..).for_each(|text| self.writer.warning(&text));
        while self.has_more() {
            interrupted()?;
            self.write_some()?;
            if !self.writer.is_empty() {
                break;
            }
        }
        if !self.has_more() {
            self.writer.flush_batch();
        }
        self.writer.take(ready);
        Ok(self.has_more())
    }
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
