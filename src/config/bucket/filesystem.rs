//! FILESYSTEM, whose values are not strict.

use std::path::PathBuf;

use serde::Deserialize;

use crate::config::bucket::{ValueError, refused};
use crate::objstore::options::Provider;

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Values {
    directory: Option<String>,
}

pub(super) fn parse(values: Values) -> Result<Provider, ValueError> {
    let directory = values.directory.filter(|directory| !directory.is_empty());
    let directory = directory.ok_or_else(|| refused("missing directory for filesystem bucket"))?;
    match std::path::absolute(PathBuf::from(directory)) {
        Ok(directory) => Ok(Provider::FileSystem(directory)),
        Err(error) => Err(refused(format!("directory: {error}"))),
    }
}
