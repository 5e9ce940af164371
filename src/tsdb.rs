//! A Prometheus TSDB directory of one tenant. Knows no tenant, no HTTP and no Thanos.

pub mod head;
pub mod options;
pub mod querier;
pub mod wal;

use crate::model::Timestamp;
use crate::tsdb::querier::Querier;

/// One tenant's database, open.
pub struct Db {}

impl Db {
    /// A reader over `[mint, maxt]`, both included. Sees what was appended before the call.
    pub fn querier(&self, _mint: Timestamp, _maxt: Timestamp) -> Querier {
        unimplemented!()
    }

    /// Times of the oldest and the newest sample held; `None` while there is none.
    pub fn time_range(&self) -> Option<(Timestamp, Timestamp)> {
        unimplemented!()
    }
}
