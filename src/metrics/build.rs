//! What this program was built from.

/// Set by whoever builds a release.
pub const BRANCH: &str = match option_env!("RINGEST_BRANCH") {
    Some(branch) => branch,
    None => "",
};
pub const REVISION: &str = match option_env!("RINGEST_REVISION") {
    Some(revision) => revision,
    None => "",
};
