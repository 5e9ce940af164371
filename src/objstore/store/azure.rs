//! Azure Blob Storage. A container that is not there is made by the first upload, where Thanos makes it
//! at its start.

use std::sync::Arc;

use http::{Method, StatusCode};
use object_store::ObjectStore;
use object_store::azure::{AzureAuthorizer, MicrosoftAzure, MicrosoftAzureBuilder};
use object_store::client::{HttpRequest, HttpRequestBody, HttpService as _};

use crate::metrics::Registry;
use crate::objstore::OpenBucketError;
use crate::objstore::http::{Extras, Transport};
use crate::objstore::options::{AzureCredentials, AzureOptions};
use crate::objstore::store::{generic, retries};

/// Files that are larger go up in parts of so many bytes.
pub(super) const PART_BYTES: u64 = 16 << 20;

const NAME: &str = "AZURE";

pub(super) struct AzureStore {
    store: Arc<MicrosoftAzure>,
    transport: Transport,
    account: String,
    /// Of the container.
    url: String,
    creates_container: bool,
}

impl AzureStore {
    pub(super) fn new(
        options: &AzureOptions,
        registry: &Registry,
    ) -> Result<AzureStore, OpenBucketError> {
        let extras = Extras { request_timeout: options.try_timeout, ..Extras::default() };
        let transport = Transport::new(&options.http, extras, registry)?;
        let mut retry = retries(options.retries_max);
        if let Some(delay) = options.retry_delay {
            retry.backoff.init_backoff = delay;
            retry.backoff.max_backoff = retry.backoff.max_backoff.max(delay);
        }
        if let Some(delay) = options.retry_delay_max {
            retry.backoff.max_backoff = delay;
            retry.backoff.init_backoff = retry.backoff.init_backoff.min(delay);
        }
        // From the environment come the ways to a token that the file says nothing of.
        let builder = match &options.credentials {
            AzureCredentials::Chain => MicrosoftAzureBuilder::from_env(),
            _ => MicrosoftAzureBuilder::new(),
        };
        let builder = builder
            .with_account(&options.account)
            .with_container_name(&options.container)
            .with_endpoint(options.url.clone())
            .with_allow_http(options.url.starts_with("http://"))
            .with_retry(retry)
            .with_http_connector(transport.clone());
        let builder = match &options.credentials {
            AzureCredentials::Key(key) => builder.with_access_key(&key.0),
            AzureCredentials::Signature(signature) => {
                let pairs = signature.0.trim_start_matches('?');
                builder.with_sas_authorization(object_store::azure::split_sas(pairs)?)
            }
            AzureCredentials::Client { tenant_id, client_id, client_secret } => {
                builder.with_client_secret_authorization(client_id, &client_secret.0, tenant_id)
            }
            AzureCredentials::ManagedIdentity { client_id } => builder.with_client_id(client_id),
            AzureCredentials::Chain => builder,
        };
        Ok(AzureStore {
            store: Arc::new(builder.build()?),
            transport,
            account: options.account.clone(),
            url: format!("{}/{}", options.url, options.container),
            creates_container: options.create_container,
        })
    }

    pub(super) fn store(&self) -> Arc<dyn ObjectStore> {
        self.store.clone()
    }

    pub(super) fn creates_container(&self) -> bool {
        self.creates_container
    }

    /// One that is there is as good.
    pub(super) async fn create_container(&self) -> object_store::Result<()> {
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.method_mut() = Method::PUT;
        *request.uri_mut() = format!("{}?restype=container", self.url)
            .parse()
            .map_err(|err: http::uri::InvalidUri| generic(NAME, err))?;
        request.headers_mut().insert(http::header::CONTENT_LENGTH, 0.into());
        let credential = self.store.credentials().get_credential().await?;
        AzureAuthorizer::new(&credential, &self.account).try_authorize(&mut request)?;
        let answer = self.transport.call(request).await.map_err(|err| generic(NAME, err))?;
        match answer.status() {
            StatusCode::CREATED | StatusCode::CONFLICT => Ok(()),
            status => Err(generic(NAME, format!("the container is not made: {status}"))),
        }
    }
}
