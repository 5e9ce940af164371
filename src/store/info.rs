//! What this node holds and which APIs it serves.

use bytes::Bytes;

use crate::store::source::Tenants;
use crate::wire::proto::thanos::info::{
    ExemplarsInfo, InfoResponse, StatusInfo, StoreInfo, TsdbInfo,
};
use crate::wire::proto::thanos::{Label, LabelSet};

/// The component that queriers know us as.
const COMPONENT_TYPE: &str = "receive";

/// What this node has.
///
/// Tenants that cannot be read are told of, too: a querier asks no store for what it does not say it
/// has, and would take it for absent.
pub fn describe(tenants: &Tenants) -> InfoResponse {
    let open = tenants.open.iter().map(|tenant| TsdbInfo {
        labels: Some(label_set(tenant.external_labels())),
        // An empty database begins at the end of time, and none ends before: it may take samples at
        // any moment.
        min_time: tenant.time_range().map_or(i64::MAX, |(mint, _)| mint),
        max_time: i64::MAX,
    });
    let unavailable = tenants.unavailable.iter().map(|tenant| TsdbInfo {
        labels: Some(label_set(&tenant.external_labels)),
        // What it holds is not known.
        min_time: i64::MIN,
        max_time: i64::MAX,
    });
    let tsdb_infos: Vec<_> = open.chain(unavailable).collect();
    let mut label_sets: Vec<_> = tsdb_infos.iter().filter_map(|info| info.labels.clone()).collect();
    label_sets.sort_by(|a, b| pairs(a).cmp(pairs(b)));
    label_sets.dedup();
    InfoResponse {
        label_sets,
        component_type: COMPONENT_TYPE.to_owned(),
        store: Some(StoreInfo {
            min_time: tsdb_infos.iter().map(|info| info.min_time).min().unwrap_or(i64::MIN),
            max_time: i64::MAX,
            supports_sharding: true,
            supports_without_replica_labels: true,
            tsdb_infos,
            ..Default::default()
        }),
        exemplars: Some(ExemplarsInfo::default()),
        status: Some(StatusInfo {}),
        ..Default::default()
    }
}

fn pairs(set: &LabelSet) -> impl Iterator<Item = (&Bytes, &Bytes)> {
    set.labels.iter().map(|label| (&label.name, &label.value))
}

fn label_set(labels: &[(Vec<u8>, Vec<u8>)]) -> LabelSet {
    let labels = labels.iter().map(|(name, value)| Label {
        name: Bytes::copy_from_slice(name),
        value: Bytes::copy_from_slice(value),
    });
    LabelSet { labels: labels.collect() }
}
