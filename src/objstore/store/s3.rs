//! S3: where a bucket is, and who we are to it.
//!
//! As Thanos' client does, a region that is not given is asked for, and the hosts of Amazon are made
//! from it.

mod keys;

use std::sync::Arc;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use http::{Method, StatusCode};
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, AwsAuthorizer};
use object_store::client::{HttpRequest, HttpRequestBody, HttpService as _};
use object_store::{Attribute, Attributes, ObjectStore};
use tokio::sync::OnceCell;

use crate::metrics::Registry;
use crate::objstore::OpenBucketError;
use crate::objstore::http::{Extras, Transport};
use crate::objstore::options::{BucketLookup, S3Credentials, S3Encryption, S3Options, Secret};
use crate::objstore::store::s3::keys::{Keys, shared_keys};
use crate::objstore::store::{generic, retries};

const NAME: &str = "S3";
const DEFAULT_REGION: &str = "us-east-1";
/// Of an answer that tells a region.
const ANSWER_BYTES_MAX: usize = 64 << 10;

pub(super) struct S3Store {
    options: S3Options,
    transport: Transport,
    /// None if only the chain's later members know.
    keys: Option<Keys>,
    encryption: Option<Encryption>,
    /// In the default region, to ask with.
    asking: Arc<AmazonS3>,
    store: OnceCell<Arc<AmazonS3>>,
}

enum Encryption {
    S3,
    Kms(String),
    /// The key in base 64.
    Customer(Secret),
}

impl S3Store {
    pub(super) fn new(
        options: &S3Options,
        registry: &Registry,
    ) -> Result<S3Store, OpenBucketError> {
        let extras = Extras {
            content_md5: options.send_content_md5,
            trace: options.trace,
            ..Extras::default()
        };
        let transport = Transport::new(&options.http, extras, registry)?;
        let keys = match &options.credentials {
            S3Credentials::Keys { access_key, secret_key, session_token } => Some(Keys {
                access_key: access_key.clone(),
                secret_key: secret_key.clone(),
                session_token: Some(session_token.clone()).filter(|token| !token.0.is_empty()),
            }),
            S3Credentials::Chain { .. } => shared_keys()?,
        };
        let encryption = options.encryption.as_ref().map(read_key).transpose()?;
        let region = match options.region.as_str() {
            "" => region_of(&options.endpoint),
            region => Some(region.to_owned()),
        };
        let known = region.clone().unwrap_or_else(|| DEFAULT_REGION.to_owned());
        let asking = build(options, &transport, keys.as_ref(), encryption.as_ref(), &known)?;
        let asking = Arc::new(asking);
        let store = OnceCell::new_with(region.map(|_| asking.clone()));
        let options = options.clone();
        Ok(S3Store { options, transport, keys, encryption, asking, store })
    }

    /// Asks for the region first, if it is not known.
    pub(super) async fn store(&self) -> object_store::Result<Arc<dyn ObjectStore>> {
        let make = || async {
            let region = self.ask_region().await?;
            let (keys, encryption) = (self.keys.as_ref(), self.encryption.as_ref());
            build(&self.options, &self.transport, keys, encryption, &region).map(Arc::new)
        };
        let store = self.store.get_or_try_init(make).await?;
        Ok(store.clone())
    }

    async fn ask_region(&self) -> object_store::Result<String> {
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.method_mut() = Method::GET;
        let url = format!("{}?location=", bucket_url(&self.options, &self.options.endpoint));
        *request.uri_mut() =
            url.parse().map_err(|err: http::uri::InvalidUri| generic(NAME, err))?;
        let credential = self.asking.credentials().get_credential().await?;
        AwsAuthorizer::new(&credential, "s3", DEFAULT_REGION).try_authorize(&mut request, None)?;
        let answer = self.transport.call(request).await.map_err(|err| generic(NAME, err))?;
        let status = answer.status();
        let text = answer.into_body().bytes().await.map_err(|err| generic(NAME, err))?;
        let text = String::from_utf8_lossy(&text[..text.len().min(ANSWER_BYTES_MAX)]);
        let region = match status {
            StatusCode::OK => element(&text, "LocationConstraint").unwrap_or_default(),
            // Whoever may not ask is told all the same, or has one region only.
            status if status.is_client_error() || status == StatusCode::NOT_IMPLEMENTED => {
                element(&text, "Region").unwrap_or_default()
            }
            status => return Err(generic(NAME, format!("asking for the region: {status}"))),
        };
        Ok(match region {
            "" => DEFAULT_REGION.to_owned(),
            "EU" => "eu-west-1".to_owned(),
            region => region.to_owned(),
        })
    }
}

/// The text of an XML element, which here has nothing to be unescaped.
fn element<'t>(xml: &'t str, name: &str) -> Option<&'t str> {
    let (_, rest) = xml.split_once(&format!("<{name}"))?;
    let (attributes, rest) = rest.split_once('>')?;
    if attributes.ends_with('/') {
        return None;
    }
    Some(rest.split_once('<')?.0.trim())
}

fn read_key(encryption: &S3Encryption) -> Result<Encryption, OpenBucketError> {
    const KEY: &str = "sse_config.encryption_key";
    Ok(match encryption {
        S3Encryption::S3 => Encryption::S3,
        S3Encryption::Kms { key_id } => Encryption::Kms(key_id.clone()),
        S3Encryption::Customer { key_file } => {
            let failed =
                |source| OpenBucketError::File { key: KEY, path: key_file.clone(), source };
            let key = keys::read_file(key_file).map_err(failed)?;
            if key.len() != 32 {
                let text = format!("{KEY}: a key has 32 bytes, this one {}", key.len());
                return Err(OpenBucketError::Value(text));
            }
            Encryption::Customer(Secret(BASE64_STANDARD.encode(key)))
        }
    })
}

fn build(
    options: &S3Options,
    transport: &Transport,
    keys: Option<&Keys>,
    encryption: Option<&Encryption>,
    region: &str,
) -> object_store::Result<AmazonS3> {
    let host = host_in(&options.endpoint, region, options.dualstack);
    let is_virtual = is_virtual_hosted(options, &host);
    // With the bucket's name in the host the library wants the bucket's URL, without it the host's.
    let endpoint = match is_virtual {
        true => bucket_url(options, &host),
        false => format!("{}://{host}", scheme(options)),
    };
    // The ways to keys that only the environment tells.
    let builder = match keys {
        Some(_) => AmazonS3Builder::new(),
        None => chain_from_env(&options.credentials),
    };
    let mut builder = builder
        .with_bucket_name(&options.bucket)
        .with_region(region)
        .with_endpoint(endpoint)
        .with_virtual_hosted_style_request(is_virtual)
        .with_allow_http(options.insecure)
        // TLS keeps what is sent as it is.
        .with_unsigned_payload(!options.insecure)
        .with_retry(retries(options.retries_max))
        .with_http_connector(transport.clone());
    if let Some(keys) = keys {
        builder =
            builder.with_access_key_id(&keys.access_key).with_secret_access_key(&keys.secret_key.0);
        if let Some(token) = &keys.session_token {
            builder = builder.with_token(&token.0);
        }
    }
    match encryption {
        None => {}
        Some(Encryption::S3) => {
            builder = builder.with_config("aws_server_side_encryption".parse()?, "AES256");
        }
        Some(Encryption::Kms(key_id)) => builder = builder.with_sse_kms_encryption(key_id),
        Some(Encryption::Customer(key)) => builder = builder.with_ssec_encryption(&key.0),
    }
    builder.build()
}

/// What of the environment leads to keys; the rest of it is not ours to take.
fn chain_from_env(credentials: &S3Credentials) -> AmazonS3Builder {
    const KEYS: [(&str, AmazonS3ConfigKey); 7] = [
        ("AWS_WEB_IDENTITY_TOKEN_FILE", AmazonS3ConfigKey::WebIdentityTokenFile),
        ("AWS_ROLE_ARN", AmazonS3ConfigKey::RoleArn),
        ("AWS_ROLE_SESSION_NAME", AmazonS3ConfigKey::RoleSessionName),
        (
            "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
            AmazonS3ConfigKey::ContainerCredentialsRelativeUri,
        ),
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", AmazonS3ConfigKey::ContainerCredentialsFullUri),
        (
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
            AmazonS3ConfigKey::ContainerAuthorizationTokenFile,
        ),
        ("AWS_ENDPOINT_URL_STS", AmazonS3ConfigKey::StsEndpoint),
    ];
    let given = KEYS.into_iter().filter_map(|(name, key)| Some((key, std::env::var(name).ok()?)));
    let builder = AmazonS3Builder::new();
    let builder = given.fold(builder, |builder, (key, value)| builder.with_config(key, value));
    match credentials {
        S3Credentials::Chain { sts_endpoint: Some(endpoint) } => builder
            .with_config(AmazonS3ConfigKey::StsEndpoint, endpoint)
            .with_metadata_endpoint(endpoint),
        _ => builder,
    }
}

/// What every object is told with.
pub(super) fn attributes(options: &S3Options) -> Attributes {
    let mut attributes = Attributes::new();
    for (name, value) in &options.user_metadata {
        let attribute = match name.as_str() {
            "cache-control" => Attribute::CacheControl,
            "content-disposition" => Attribute::ContentDisposition,
            "content-encoding" => Attribute::ContentEncoding,
            "content-language" => Attribute::ContentLanguage,
            "content-type" => Attribute::ContentType,
            name => Attribute::Metadata(name.to_owned().into()),
        };
        attributes.insert(attribute, value.clone().into());
    }
    if let Some(class) = &options.storage_class {
        attributes.insert(Attribute::StorageClass, class.clone().into());
    }
    attributes
}

fn scheme(options: &S3Options) -> &'static str {
    if options.insecure { "http" } else { "https" }
}

/// The URL of the bucket at a host.
fn bucket_url(options: &S3Options, host: &str) -> String {
    let (scheme, bucket) = (scheme(options), &options.bucket);
    match is_virtual_hosted(options, host) {
        true => format!("{scheme}://{bucket}.{host}"),
        false => format!("{scheme}://{host}/{bucket}"),
    }
}

fn is_virtual_hosted(options: &S3Options, host: &str) -> bool {
    match options.lookup {
        BucketLookup::VirtualHosted => true,
        BucketLookup::Path => false,
        // No certificate is for a name with one more dot.
        BucketLookup::Auto if !options.insecure && options.bucket.contains('.') => false,
        BucketLookup::Auto => {
            let name = name_of(host);
            is_amazon(name) || name == "storage.googleapis.com" || name.ends_with("aliyuncs.com")
        }
    }
}

/// A host without its port.
fn name_of(host: &str) -> &str {
    host.rsplit_once(':').map_or(host, |(name, _)| name)
}

fn is_amazon(name: &str) -> bool {
    (name.starts_with("s3.") || name.starts_with("s3-") || name.contains(".vpce."))
        && [".amazonaws.com", ".amazonaws.com.cn"].iter().any(|suffix| name.ends_with(suffix))
}

/// The region that a host of Amazon's is in, if its name says it.
fn region_of(endpoint: &str) -> Option<String> {
    let name = name_of(endpoint);
    if !is_amazon(name) {
        return None;
    }
    let name = name.strip_suffix(".cn").unwrap_or(name).strip_suffix(".amazonaws.com")?;
    let region = ["s3.dualstack.", "s3-fips.dualstack.", "s3-fips.", "s3.", "s3-"]
        .iter()
        .find_map(|prefix| name.strip_prefix(prefix))
        .or_else(|| name.rsplit_once(".s3.")?.1.split_once(".vpce").map(|(region, _)| region))
        .or_else(|| {
            name.split_once(".vpce").and_then(|(host, _)| Some(host.rsplit_once('.')?.1))
        })?;
    let is_region = !region.contains('.') && region.split('-').count() >= 3;
    (is_region && region != "external-1").then(|| region.to_owned())
}

/// Amazon has a host for each region; others are who they are.
fn host_in(endpoint: &str, region: &str, dualstack: bool) -> String {
    let name = name_of(endpoint);
    if !is_amazon(name) || name.contains("fips") || name.contains(".vpce.") {
        return endpoint.to_owned();
    }
    let china = if region.starts_with("cn-") { ".cn" } else { "" };
    match dualstack {
        true => format!("s3.dualstack.{region}.amazonaws.com{china}"),
        false => format!("s3.{region}.amazonaws.com{china}"),
    }
}

#[cfg(test)]
pub(super) mod tests;
