//! Azure Blob Storage.

use serde::Deserialize;

use crate::config::bucket::{Span, ValueError, count, http, refused, text};
use crate::objstore::options::{AzureCredentials, AzureOptions, Secret};

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Values {
    az_tenant_id: Option<String>,
    client_id: Option<String>,
    client_secret: Option<String>,
    storage_account: Option<String>,
    storage_account_key: Option<String>,
    storage_connection_string: Option<String>,
    storage_create_container: Option<bool>,
    container: Option<String>,
    endpoint: Option<String>,
    user_assigned_id: Option<String>,
    max_retries: Option<i64>,
    reader_config: Option<ReaderValues>,
    pipeline_config: Option<PipelineValues>,
    http_config: Option<http::Values>,
    msi_resource: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ReaderValues {
    max_retry_requests: Option<i64>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct PipelineValues {
    max_tries: Option<i64>,
    try_timeout: Option<Span>,
    retry_delay: Option<Span>,
    max_retry_delay: Option<Span>,
}

const ENDPOINT: &str = "blob.core.windows.net";

pub(super) fn options(values: Values, idle: &mut Vec<String>) -> Result<AzureOptions, ValueError> {
    let pipeline = values.pipeline_config.unwrap_or_default();
    let reader_retries = values.reader_config.and_then(|reader| reader.max_retry_requests);
    let key = text(values.storage_account_key);
    let connection = text(values.storage_connection_string);
    let identity = text(values.user_assigned_id);
    let client = (text(values.az_tenant_id), text(values.client_id), text(values.client_secret));
    let account = text(values.storage_account);
    let container = text(values.container);

    // All that is wrong at once, as Thanos tells it.
    let mut wrong = Vec::new();
    let mut judge = |is_wrong: bool, text: &str| {
        if is_wrong {
            wrong.push(text.to_owned());
        }
    };
    judge(
        identity.is_some() && key.is_some(),
        "user_assigned_id cannot be set when using storage_account_key authentication",
    );
    judge(
        identity.is_some() && connection.is_some(),
        "user_assigned_id cannot be set when using storage_connection_string authentication",
    );
    judge(
        identity.is_some() && client.1.is_some(),
        "user_assigned_id cannot be set when using client_id authentication",
    );
    let given = [client.0.is_some(), client.1.is_some(), client.2.is_some()];
    judge(
        given.contains(&true) && given.contains(&false),
        "az_tenant_id, client_id, and client_secret must be set together",
    );
    judge(
        key.is_some() && connection.is_some(),
        "storage_account_key and storage_connection_string cannot both be set",
    );
    judge(account.is_none(), "storage_account_name is required but not configured");
    judge(container.is_none(), "no container specified");
    judge(
        pipeline.max_tries.is_some_and(|tries| tries < 0),
        "The value of max_tries must be greater than or equal to 0 in the config file",
    );
    judge(
        reader_retries.is_some_and(|tries| tries < 0),
        "The value of max_retry_requests must be greater than or equal to 0 in the config file",
    );
    let (Some(account), Some(container), true) = (account, container, wrong.is_empty()) else {
        return Err(refused(wrong.join(", ")));
    };

    if reader_retries.is_some() {
        idle.push("reader_config.max_retry_requests: a receiver reads no objects".to_owned());
    }
    if text(values.msi_resource).is_some() {
        idle.push("msi_resource: it is deprecated, and has no effect in Thanos either".to_owned());
    }
    let endpoint = text(values.endpoint).unwrap_or_else(|| ENDPOINT.to_owned());
    let mut url = format!("https://{account}.{endpoint}");
    let mut of_account = account;
    let credentials = match (connection, key, client, identity) {
        (Some(connection), ..) => {
            let parsed = Connection::parse(&connection)?;
            url = parsed.url;
            of_account = parsed.account.unwrap_or(of_account);
            parsed.credentials
        }
        (_, Some(key), ..) => AzureCredentials::Key(Secret(key)),
        (_, _, (Some(tenant_id), Some(client_id), Some(secret)), _) => {
            AzureCredentials::Client { tenant_id, client_id, client_secret: Secret(secret) }
        }
        (.., Some(client_id)) => AzureCredentials::ManagedIdentity { client_id },
        _ => AzureCredentials::Chain,
    };
    Ok(AzureOptions {
        account: of_account,
        container,
        url,
        credentials,
        create_container: values.storage_create_container.unwrap_or(true),
        retries_max: count(pipeline.max_tries).or(count(values.max_retries)),
        try_timeout: pipeline.try_timeout.and_then(Span::or_none),
        retry_delay: pipeline.retry_delay.and_then(Span::or_none),
        retry_delay_max: pipeline.max_retry_delay.and_then(Span::or_none),
        http: http::options(values.http_config, idle)?,
    })
}

/// What a connection string says.
struct Connection {
    url: String,
    account: Option<String>,
    credentials: AzureCredentials,
}

impl Connection {
    /// `Name=Value` pairs between semicolons.
    fn parse(text: &str) -> Result<Connection, ValueError> {
        let value = |name: &str| {
            let pairs = text.split(';').filter_map(|pair| pair.split_once('='));
            let mut values = pairs.filter(|(of, _)| of.trim().eq_ignore_ascii_case(name));
            values
                .next()
                .map(|(_, value)| value.trim().to_owned())
                .filter(|value| !value.is_empty())
        };
        let account = value("AccountName");
        let incomplete = || refused("connection string is either blank or malformed");
        let url = match (value("BlobEndpoint"), &account) {
            (Some(url), _) => url.trim_end_matches('/').to_owned(),
            (None, Some(account)) => {
                let scheme =
                    value("DefaultEndpointsProtocol").unwrap_or_else(|| "https".to_owned());
                let suffix = value("EndpointSuffix");
                let suffix = suffix.unwrap_or_else(|| "core.windows.net".to_owned());
                format!("{scheme}://{account}.blob.{suffix}")
            }
            (None, None) => return Err(incomplete()),
        };
        let credentials = match (value("AccountKey"), value("SharedAccessSignature")) {
            (Some(key), _) => AzureCredentials::Key(Secret(key)),
            (None, Some(signature)) => AzureCredentials::Signature(Secret(signature)),
            (None, None) => return Err(incomplete()),
        };
        Ok(Connection { url, account, credentials })
    }
}
