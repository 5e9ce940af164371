//! The rules that a series' labels must keep, after the manners of the endpoint.

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

/// Checks a series' labels; leaves them sorted and without empty values where that is allowed.
pub(super) fn judge_labels(
    labels: &mut Vec<(&[u8], &[u8])>,
    manners: Manners,
    caps: LabelCaps,
) -> Result<(), Reason> {
    if labels.is_empty() {
        return Err(Reason::EmptyLabels);
    }
    let bytes: usize = labels.iter().map(|(name, value)| name.len() + value.len()).sum();
    if labels.len() > caps.labels_max || bytes > caps.bytes_max {
        return Err(Reason::TooManyLabels);
    }
    match manners {
        Manners::Thanos => {
            if labels[0].0.is_empty() || labels[0].1.is_empty() {
                return Err(Reason::EmptyLabel);
            }
            for pair in labels.windows(2) {
                let ((before, _), (name, value)) = (pair[0], pair[1]);
                if name.is_empty() || value.is_empty() {
                    return Err(Reason::EmptyLabel);
                }
                match before.cmp(name) {
                    std::cmp::Ordering::Less => {}
                    std::cmp::Ordering::Equal => return Err(Reason::DuplicateLabel),
                    std::cmp::Ordering::Greater => return Err(Reason::OutOfOrderLabels),
                }
            }
        }
        Manners::Prometheus => {
            labels.sort_by(|a, b| a.0.cmp(b.0));
            if labels.windows(2).any(|pair| pair[0].0 == pair[1].0) {
                return Err(Reason::DuplicateLabel);
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
    Ok(())
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
