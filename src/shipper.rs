//! Brings tenants' blocks to the bucket, as Thanos' shipper does: each once, oldest first, its
//! `meta.json` last, so that what is whole in the bucket is what has one.
//!
//! ```text
//! <tenant>/thanos.shipper.json   which of the blocks here are in the bucket
//! <ULID>/chunks/000001           in the bucket: chunks,
//!        index                   then the index,
//!        meta.json               then this, with Thanos' section
//! ```
//!
//! Nothing that happens on the way does harm: what is half there is uploaded over, and a block that is
//! whole in the bucket without being in the record is found by its `meta.json`. Blocks are read where
//! they lie; nobody deletes one that is not in the record ([`shipped`]), and one whose cut may still
//! fail is left for a later round ([`ShippedDb::is_settled`]).
//!
//! What is not shipped is told by name, in the log and by `ringest_shipper_blocks_held_back`:
//! damaged blocks, which by default hold all others back as in Thanos; and by themselves those above
//! level 1, those with tombstones, which would come back to life in the bucket, and those with chunks
//! that Thanos' store gateway cannot read.

mod blocks;
mod metrics;
pub mod plan;
pub mod record;
mod round;
mod schedule;
mod upload;

pub use crate::shipper::metrics::ShipperMetrics;
pub use crate::shipper::record::{RECORD_FILE, shipped};
pub use crate::shipper::round::{ShipError, ShippedDb, Shipper, ShipperEnv};
pub use crate::shipper::schedule::{ShippedTenant, Shipping, ShippingOptions};

/// How blocks are shipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShipperOptions {
    /// `--hash-func`: the manifest has the SHA-256 of each file.
    pub has_hashes: bool,
    /// `--shipper.upload-concurrency`: chunk files of a block uploaded at a time, at least one.
    pub files_at_once: usize,
    /// `--shipper.allow-out-of-order-uploads`
    pub goes_on_after_failure: bool,
    /// `--shipper.skip-corrupted-blocks`
    pub goes_on_after_damage: bool,
}

impl Default for ShipperOptions {
    fn default() -> ShipperOptions {
        ShipperOptions {
            has_hashes: false,
            files_at_once: 1,
            goes_on_after_failure: false,
            goes_on_after_damage: false,
        }
    }
}

#[cfg(test)]
mod tests;
