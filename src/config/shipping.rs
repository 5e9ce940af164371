//! Where blocks are shipped to, and how.

use crate::config::bucket::{self, ParsedBucket};
use crate::config::error::ConfigError;
use crate::config::flags::{CONTENT_PAIRS, ContentPair, named};
use crate::config::ring::Mode;
use crate::config::settings::{NoticeKind, Settings};
use crate::config::support::{Content, load_content};
use crate::objstore::options::BucketOptions;
use crate::shipper::ShipperOptions;

/// Where blocks are shipped to, and how.
#[derive(Clone, Debug)]
pub struct ShippingConfig {
    /// The flag that says where.
    pub flag: &'static str,
    pub bucket: BucketOptions,
    pub shipper: ShipperOptions,
}

const BUCKET: &str = "objstore.config";

/// What says how blocks are shipped.
const HOW: [&str; 4] = [
    "hash-func",
    "shipper.allow-out-of-order-uploads",
    "shipper.skip-corrupted-blocks",
    "shipper.upload-concurrency",
];

impl ShippingConfig {
    /// The inner `None` is where nothing is shipped: without a bucket, and on a node that only
    /// routes, which does not even parse what it is given, as in Thanos.
    pub(super) fn of(
        settings: &mut Settings<'_>,
        mode: Option<Mode>,
    ) -> Option<Option<ShippingConfig>> {
        let pair: &'static ContentPair = CONTENT_PAIRS.iter().find(|pair| pair.name == BUCKET)?;
        let content = load_content(settings, pair);
        let Content { flag, text } = settings.check(content)?;
        if text.is_empty() || mode == Some(Mode::RouterOnly) {
            tell_idle_flags(settings);
            return Some(None);
        }
        let parsed = bucket::parse(&text).map_err(|source| ConfigError::Bucket { flag, source });
        let ParsedBucket { options: bucket, idle } = settings.check(parsed)?;
        for key in idle {
            let text = format!("--{flag}: what is given does nothing here: {key}");
            settings.notice(NoticeKind::NoEffect, text);
        }
        let values = settings.values;
        let at_once = values.int("shipper.upload-concurrency");
        let shipper = ShipperOptions {
            has_hashes: !values.text("hash-func").is_empty(),
            files_at_once: usize::try_from(at_once).unwrap_or(0).max(1),
            goes_on_after_failure: values.switch("shipper.allow-out-of-order-uploads"),
            goes_on_after_damage: values.switch("shipper.skip-corrupted-blocks"),
        };
        Some(Some(ShippingConfig { flag, bucket, shipper }))
    }
}

fn tell_idle_flags(settings: &mut Settings<'_>) {
    for name in HOW {
        let flag = named(name);
        let is_set =
            settings.values.is_given(flag) && settings.values.value(flag) != flag.default_value();
        if is_set {
            let text = format!("--{name} does nothing: blocks are not shipped from here");
            settings.notice(NoticeKind::NoEffect, text);
        }
    }
}
