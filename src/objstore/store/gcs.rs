//! Google Cloud Storage.

use std::sync::Arc;

use object_store::ObjectStore;
use object_store::gcp::GoogleCloudStorageBuilder;

use crate::metrics::Registry;
use crate::objstore::OpenBucketError;
use crate::objstore::http::{Extras, Transport};
use crate::objstore::options::GcsOptions;
use crate::objstore::store::retries;

/// Where Google's libraries find a key.
const CREDENTIALS: &str = "GOOGLE_APPLICATION_CREDENTIALS";

pub(super) fn store(
    options: &GcsOptions,
    registry: &Registry,
) -> Result<Arc<dyn ObjectStore>, OpenBucketError> {
    let extras = Extras { request_timeout: options.request_timeout, ..Extras::default() };
    let transport = Transport::new(&options.http, extras, registry)?;
    let mut builder = GoogleCloudStorageBuilder::new()
        .with_bucket_name(&options.bucket)
        .with_retry(retries(options.retries_max))
        .with_http_connector(transport);
    if !options.service_account.0.is_empty() {
        builder = builder.with_service_account_key(&options.service_account.0);
    } else if let Ok(path) = std::env::var(CREDENTIALS) {
        builder = builder.with_application_credentials(path);
    }
    Ok(Arc::new(builder.build()?))
}
