//! Comparisons of much, of which a failure shows the little that differs.

use std::collections::BTreeMap;
use std::fmt::{Debug, Write as _};

/// Differences that are shown; the others are counted.
const SHOWN_MAX: usize = 5;
/// What is shown of a value around the place where it differs.
const EXCERPT_BYTES: usize = 60;

/// Expects the same entries, and shows those that are missing, too many, or different.
#[track_caller]
pub(crate) fn assert_same<K, V>(what: &str, found: &BTreeMap<K, V>, expected: &BTreeMap<K, V>)
where
    K: Ord + Debug,
    V: PartialEq + Debug,
{
    let missing = expected.keys().filter(|key| !found.contains_key(key));
    let mut differences: Vec<String> = missing.map(|key| format!("{key:?} is missing")).collect();
    for (key, value) in found {
        match expected.get(key) {
            None => differences.push(format!("{key:?} is not expected")),
            Some(wanted) if wanted != value => {
                differences.push(format!("{key:?}: {}", difference(value, wanted)));
            }
            Some(_) => {}
        }
    }
    let mut shown = String::new();
    for difference in differences.iter().take(SHOWN_MAX) {
        // Writing to a String cannot fail.
        let _ = write!(shown, "\n  {difference}");
    }
    let count = differences.len();
    assert!(
        count == 0,
        "{what}: {count} differences of {} entries and {} expected ones:{shown}",
        found.len(),
        expected.len(),
    );
}

/// Both values around the first byte of their texts that differs.
fn difference(found: &impl Debug, expected: &impl Debug) -> String {
    let (found, expected) = (format!("{found:?}"), format!("{expected:?}"));
    let same = found.bytes().zip(expected.bytes()).take_while(|(a, b)| a == b).count();
    let excerpt = |text: &str| {
        let start = text.floor_char_boundary(same.saturating_sub(EXCERPT_BYTES));
        let end = text.ceil_char_boundary((same + EXCERPT_BYTES).min(text.len()));
        format!("…{}…", &text[start.min(end)..end])
    };
    format!("{}, expected {}", excerpt(&found), excerpt(&expected))
}
