//! The rules that a series' labels must keep, after the manners of the endpoint.

use std::cmp::Ordering;

use crate::model::labels::{METRIC_NAME, fmt_labels};
use crate::write::Manners;
use crate::write::error::Reason;

/// What a series' labels may amount to.
#[derive(Clone, Copy, Debug)]
pub struct LabelCaps {
    pub labels_max: usize,
    /// Names and values of one series together.
    pub bytes_max: usize,
}

impl Default for LabelCaps {
    fn default() -> LabelCaps {
        LabelCaps { labels_max: 1000, bytes_max: 64 << 10 }
    }
}

/// Checks a series' labels; leaves them sorted and without empty values where that is allowed, and
/// says whether they were so before.
pub(super) fn judge_labels(
    labels: &mut Vec<(&[u8], &[u8])>,
    manners: Manners,
    caps: LabelCaps,
) -> Result<bool, Reason> {
    if labels.is_empty() {
        return Err(Reason::EmptyLabels);
    }
    let bytes: usize = labels.iter().map(|(name, value)| name.len() + value.len()).sum();
    if labels.len() > caps.labels_max || bytes > caps.bytes_max {
        return Err(Reason::TooManyLabels);
    }
    let is_sorted = labels.windows(2).all(|pair| pair[0].0 < pair[1].0);
    let has_empty = labels.iter().any(|(name, value)| name.is_empty() || value.is_empty());
    match manners {
        Manners::Thanos if is_sorted && !has_empty => {}
        Manners::Thanos => return Err(fault_of_thanos(labels)),
        Manners::Prometheus => {
            if !is_sorted {
                labels.sort_by(|a, b| a.0.cmp(b.0));
                if labels.windows(2).any(|pair| pair[0].0 == pair[1].0) {
                    return Err(Reason::DuplicateLabel);
                }
            }
            labels.retain(|(_, value)| !value.is_empty());
            let utf8 = |bytes| std::str::from_utf8(bytes).is_ok();
            if labels.iter().any(|(name, value)| name.is_empty() || !utf8(name) || !utf8(value))
                || !labels.iter().any(|(name, _)| *name == METRIC_NAME)
            {
                return Err(Reason::InvalidLabels);
            }
        }
    }
    Ok(is_sorted && !has_empty)
}

/// The first fault, as Thanos looks for it, of labels that have one.
#[cold]
fn fault_of_thanos(labels: &[(&[u8], &[u8])]) -> Reason {
    let mut before: Option<&[u8]> = None;
    for (name, value) in labels {
        if name.is_empty() || value.is_empty() {
            return Reason::EmptyLabel;
        }
        match before.map_or(Ordering::Less, |before| before.cmp(name)) {
            Ordering::Less => before = Some(name),
            Ordering::Equal => return Reason::DuplicateLabel,
            Ordering::Greater => return Reason::OutOfOrderLabels,
        }
    }
    // Not reached: neither an empty one nor two out of order.
    Reason::OutOfOrderLabels
}

/// The first of `count` labels, as a refusal's example. A storm is cut before it is written out.
pub(super) fn display(labels: &[(&[u8], &[u8])], count: usize) -> String {
    const SHOWN_MAX: usize = 32;
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = fmt_labels(&mut text, labels.iter().copied().take(SHOWN_MAX));
    if count > SHOWN_MAX {
        text.push_str(&format!(" and {} more labels", count - SHOWN_MAX));
    }
    text
}
