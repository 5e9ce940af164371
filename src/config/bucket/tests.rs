use std::path::Path;

use super::*;
use crate::objstore::options::{
    AzureCredentials, AzureOptions, BucketLookup, GcsOptions, HttpOptions, S3Credentials,
    S3Encryption, S3Options,
};

fn s3(values: &str) -> (S3Options, Vec<String>) {
    let ParsedBucket { options, idle } = parse(&content("S3", values)).unwrap();
    match options.provider {
        Provider::S3(options) => (options, idle),
        other => panic!("{other:?}"),
    }
}

fn gcs(values: &str) -> (GcsOptions, Vec<String>) {
    let ParsedBucket { options, idle } = parse(&content("GCS", values)).unwrap();
    match options.provider {
        Provider::Gcs(options) => (options, idle),
        other => panic!("{other:?}"),
    }
}

fn azure(values: &str) -> (AzureOptions, Vec<String>) {
    let ParsedBucket { options, idle } = parse(&content("AZURE", values)).unwrap();
    match options.provider {
        Provider::Azure(options) => (options, idle),
        other => panic!("{other:?}"),
    }
}

fn content(provider: &str, values: &str) -> String {
    let indented: String = values.lines().map(|line| format!("  {line}\n")).collect();
    format!("type: {provider}\nconfig:\n{indented}")
}

fn error(provider: &str, values: &str) -> String {
    parse(&content(provider, values)).unwrap_err().to_string()
}

const HTTP: &str = "http_config:
  idle_conn_timeout: 1m
  response_header_timeout: 2s
  insecure_skip_verify: true
  tls_handshake_timeout: 0s
  expect_continue_timeout: 3s
  max_idle_conns: 7
  max_idle_conns_per_host: 9
  max_conns_per_host: 4
  tls_config:
    ca_file: /ca
    cert_file: /cert
    key_file: /key
    server_name: name
    insecure_skip_verify: false
  disable_compression: true
";

fn assert_http(http: &HttpOptions, idle: &[String]) {
    assert_eq!(http.idle_timeout, Some(Duration::from_secs(60)));
    assert_eq!(http.response_header_timeout, Some(Duration::from_secs(2)));
    assert_eq!(http.tls_handshake_timeout, None);
    assert_eq!((http.idle_connections_max, http.connections_max), (7, Some(4)));
    assert_eq!(http.tls.ca.as_deref(), Some(Path::new("/ca")));
    assert_eq!(http.tls.identity, Some(("/cert".into(), "/key".into())));
    assert_eq!(http.tls.server_name.as_deref(), Some("name"));
    assert!(http.tls.skip_verify);
    for key in ["expect_continue_timeout", "disable_compression", "tls_config.insecure_skip_verify"]
    {
        let key = format!("http_config.{key}: ");
        assert!(idle.iter().any(|idle| idle.starts_with(&key)), "{key} {idle:?}");
    }
}

/// The keys are those of Thanos' documentation and source.
#[test]
fn every_key_of_s3_is_used_or_told() {
    let (options, idle) = s3(&format!(
        "bucket: b\nendpoint: h:1\nregion: r\ndisable_dualstack: true\naws_sdk_auth: false\n\
         access_key: a\ninsecure: true\nsignature_version2: false\nsecret_key: s\n\
         session_token: t\nput_user_metadata:\n  X-Amz-Storage-Class: C\n  Key: v\n  \
         x-amz-meta-other: w\ntrace:\n  enable: true\nlist_objects_version: v1\n\
         bucket_lookup_type: path\nsend_content_md5: false\ndisable_multipart: false\n\
         part_size: 10000000\nsse_config:\n  type: SSE-KMS\n  kms_key_id: k\n  \
         kms_encryption_context: {{}}\n  encryption_key: \"\"\nsts_endpoint: http://sts\n\
         max_retries: 3\n{HTTP}"
    ));
    assert_eq!((options.bucket.as_str(), options.endpoint.as_str()), ("b", "h:1"));
    assert_eq!((options.region.as_str(), options.dualstack, options.insecure), ("r", false, true));
    let S3Credentials::Keys { access_key, secret_key, session_token } = &options.credentials else {
        panic!("{options:?}");
    };
    assert_eq!((access_key.as_str(), &*secret_key.0, &*session_token.0), ("a", "s", "t"));
    assert_eq!(options.storage_class.as_deref(), Some("C"));
    let metadata = [("key", "v"), ("other", "w")];
    assert_eq!(options.user_metadata, metadata.map(|(k, v)| (k.into(), v.into())).into());
    assert_eq!(options.lookup, BucketLookup::Path);
    assert!(options.trace && !options.send_content_md5);
    assert_eq!((options.part_bytes, options.retries_max), (10_000_000, Some(3)));
    let is_kms = |key: &S3Encryption| matches!(key, S3Encryption::Kms { key_id } if key_id == "k");
    assert!(options.encryption.as_ref().is_some_and(is_kms));
    assert_http(&options.http, &idle);
    for key in ["list_objects_version: ", "sts_endpoint: "] {
        assert!(idle.iter().any(|idle| idle.starts_with(key)), "{key} {idle:?}");
    }
    assert_eq!(idle.len(), 5);
}

#[test]
fn without_values_those_of_thanos_hold() {
    for values in ["endpoint: h", "endpoint: h\nregion:\nhttp_config:\npart_size: ~\ntrace: null"] {
        let (options, idle) = s3(values);
        assert_eq!((options.part_bytes, options.retries_max), (64 << 20, None));
        assert!(options.dualstack && options.send_content_md5 && !options.insecure);
        assert_eq!((options.lookup, options.region.as_str()), (BucketLookup::Auto, ""));
        assert_eq!(options.http, HttpOptions::default());
        let asks = S3Credentials::Chain { sts_endpoint: None };
        assert_eq!(format!("{:?}", options.credentials), format!("{asks:?}"));
        assert_eq!(idle, [""; 0]);
    }
    assert_eq!(s3("endpoint: h\npart_size: 0").0.part_bytes, 16 << 20);
    let (options, _) = s3("endpoint: h\naws_sdk_auth: true\nsts_endpoint: x");
    let S3Credentials::Chain { sts_endpoint } = options.credentials else { panic!() };
    assert_eq!(sts_endpoint.as_deref(), Some("x"));
    let (options, _) = s3("endpoint: h\nsse_config: {type: SSE-C, encryption_key: /k}");
    assert!(matches!(options.encryption, Some(S3Encryption::Customer { .. })));
    assert!(matches!(
        s3("endpoint: h\nsse_config: {type: SSE-S3}").0.encryption,
        Some(S3Encryption::S3)
    ));
}

#[test]
fn every_key_of_gcs_is_used_or_told() {
    let key = r#"{"type": "service_account", "client_email": "e"}"#;
    let (options, idle) = gcs(&format!(
        "bucket: b\nservice_account: |-\n  {key}\nuse_grpc: false\ngrpc_conn_pool_size: 3\n\
         chunk_size_bytes: 9000000\nmax_retries: 4\n{HTTP}"
    ));
    assert_eq!((options.bucket.as_str(), options.service_account.0.as_str()), ("b", key));
    assert_eq!((options.part_bytes, options.retries_max), (9_000_000, Some(3)));
    assert_eq!(options.request_timeout, Some(Duration::from_secs(60)));
    assert_http(&options.http, &idle);
    assert!(idle.iter().any(|idle| idle.starts_with("grpc_conn_pool_size: ")), "{idle:?}");
    let (options, idle) = gcs("bucket: b\nmax_retries: 1");
    assert_eq!((options.part_bytes, options.retries_max), (16 << 20, Some(0)));
    assert_eq!(options.request_timeout, Some(Duration::from_secs(90)));
    assert_eq!(idle, [""; 0]);
}

#[test]
fn every_key_of_azure_is_used_or_told() {
    let (options, idle) = azure(&format!(
        "storage_account: a\nstorage_account_key: k\nstorage_connection_string: \"\"\n\
         storage_create_container: false\ncontainer: c\nendpoint: e\naz_tenant_id: \"\"\n\
         client_id: \"\"\nclient_secret: \"\"\nuser_assigned_id: \"\"\nmax_retries: 9\n\
         reader_config:\n  max_retry_requests: 2\npipeline_config:\n  max_tries: 5\n  \
         try_timeout: 1m\n  retry_delay: 2s\n  max_retry_delay: 3s\nmsi_resource: x\n{HTTP}"
    ));
    assert_eq!((options.account.as_str(), options.container.as_str()), ("a", "c"));
    assert_eq!(options.url, "https://a.e");
    assert!(matches!(&options.credentials, AzureCredentials::Key(key) if key.0 == "k"));
    assert!(!options.create_container);
    let seconds = |seconds| Some(Duration::from_secs(seconds));
    assert_eq!((options.retries_max, options.try_timeout), (Some(5), seconds(60)));
    assert_eq!((options.retry_delay, options.retry_delay_max), (seconds(2), seconds(3)));
    assert_http(&options.http, &idle);
    for key in ["reader_config.max_retry_requests: ", "msi_resource: "] {
        assert!(idle.iter().any(|idle| idle.starts_with(key)), "{key} {idle:?}");
    }
    let (options, idle) = azure("storage_account: a\ncontainer: c\nmax_retries: 9");
    assert_eq!(options.url, "https://a.blob.core.windows.net");
    assert!(options.create_container && idle.is_empty());
    assert!(matches!(options.credentials, AzureCredentials::Chain));
    assert_eq!(options.retries_max, Some(9));
}

#[test]
fn azure_is_spoken_to_in_one_of_five_ways() {
    let base = "storage_account: a\ncontainer: c\n";
    let credentials = |values: &str| azure(&format!("{base}{values}")).0;
    let of_client = credentials("az_tenant_id: t\nclient_id: i\nclient_secret: s");
    assert!(matches!(of_client.credentials, AzureCredentials::Client { .. }));
    let of_machine = credentials("user_assigned_id: i");
    assert!(matches!(of_machine.credentials, AzureCredentials::ManagedIdentity { .. }));
    let of_key = credentials(
        "storage_connection_string: DefaultEndpointsProtocol=http;AccountName=b;AccountKey=a2V5==;\
         EndpointSuffix=x.net",
    );
    assert_eq!((of_key.account.as_str(), of_key.url.as_str()), ("b", "http://b.blob.x.net"));
    assert!(matches!(of_key.credentials, AzureCredentials::Key(key) if key.0 == "a2V5=="));
    let by_url = credentials(
        "storage_connection_string: BlobEndpoint=http://h:1/acc/;SharedAccessSignature=sv=1&sig=x",
    );
    assert_eq!(by_url.url, "http://h:1/acc");
    assert!(matches!(by_url.credentials, AzureCredentials::Signature(s) if s.0 == "sv=1&sig=x"));

    for (values, words) in [
        ("user_assigned_id: i\nstorage_account_key: k", "user_assigned_id cannot be set when"),
        ("user_assigned_id: i\nstorage_connection_string: x", "storage_connection_string auth"),
        ("user_assigned_id: i\nclient_id: x", "must be set together"),
        ("client_secret: s", "az_tenant_id, client_id, and client_secret must be set together"),
        ("storage_account_key: k\nstorage_connection_string: x", "cannot both be set"),
        ("pipeline_config: {max_tries: -1}", "max_tries must be greater"),
        ("reader_config: {max_retry_requests: -1}", "max_retry_requests must be greater"),
        ("storage_connection_string: AccountName=x", "connection string is either blank"),
    ] {
        let error = error("AZURE", &format!("{base}{values}"));
        assert!(error.contains(words), "{values}: {error}");
    }
    let both = error("AZURE", "endpoint: e");
    assert!(both.contains("storage_account_name is required") && both.contains("no container"));
}

#[test]
fn what_is_not_done_is_refused_by_its_name() {
    for (provider, values, words) in [
        ("S3", "endpoint: h\nsignature_version2: true", "signature_version2 is not supported by"),
        ("S3", "endpoint: h\ndisable_multipart: true", "disable_multipart is not supported by"),
        (
            "S3",
            "endpoint: h\nsse_config: {type: SSE-KMS, kms_key_id: k, kms_encryption_context: {a: b}}",
            "sse_config.kms_encryption_context is not supported by",
        ),
        ("S3", "endpoint: h\nput_user_metadata: {X-Amz-Acl: x}", "X-Amz-Acl is not supported by"),
        ("GCS", "bucket: b\nuse_grpc: true", "use_grpc is not supported by"),
        (
            "GCS",
            "bucket: b\nservice_account: '{\"type\": \"external_account\"}'",
            "service_account is not supported by",
        ),
        ("S3", "endpoint: http://h", "host or host:port"),
        ("S3", "endpoint: h/path", "host or host:port"),
        ("S3", "endpoint: h\nhttp_config: {tls_config: {cert_file: x}}", "without client key file"),
        ("S3", "endpoint: h\nsse_config: {type: SSE-C}", "encryption_key must be set"),
        ("S3", "endpoint: h\nsse_config: {type: SSE-KMS}", "kms_key_id must be set"),
        ("S3", "endpoint: h\nlist_objects_version: v3", "Unsupported version"),
        (
            "S3",
            "endpoint: h\naws_sdk_auth: true\naccess_key: a\nsecret_key: b",
            "mutually exclusive",
        ),
    ] {
        let error = error(provider, values);
        assert!(error.contains(words), "{values}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
    for provider in NOT_HERE {
        for name in [provider.to_owned(), provider.to_lowercase()] {
            let error = parse(&format!("type: {name}\nconfig: {{x: 1}}")).unwrap_err().to_string();
            let words = format!("bucket with type {provider} is not supported by this version");
            assert!(error.starts_with(&words), "{error}");
        }
    }
}

#[test]
fn the_top_is_strict_and_any_of_it_may_be_missing() {
    for (content, words) in [
        (" \n", "bucket with type  is not supported"),
        ("type:", "bucket with type  is not supported"),
        ("type: FLOPPY", "bucket with type FLOPPY is not supported"),
        ("type: FILESYSTEM", "missing directory for filesystem bucket"),
        ("type: FILESYSTEM\nfoo: 1", "yaml: line 2: unmarshal errors: no field is called foo"),
        ("type: S3\nconfig:\n  endpoint: h\n  foo: 1", "no field is called foo"),
        ("type: S3\nconfig:\n  endpoint: h\n  http_config: {foo: 1}", "no field is called foo"),
        ("type: S3\nconfig:\n  endpoint: h\n  insecure: maybe", "unmarshal errors"),
        ("type: S3\nconfig:\n  endpoint: h\n  endpoint: i", "a key stands twice"),
        ("type: [", "parsing config YAML file: yaml: line "),
    ] {
        let error = parse(content).unwrap_err().to_string();
        assert!(error.contains(words), "{content:?}: {error}");
        assert!(!error.contains('\n'), "{content:?}: {error}");
    }
    let parsed = parse("type: filesystem\nconfig: {directory: d, foo: 1}\nprefix: /a/b/").unwrap();
    let Provider::FileSystem(dir) = parsed.options.provider else { panic!() };
    assert!(dir.is_absolute() && dir.ends_with("d"));
    assert_eq!(parsed.options.prefix, "a/b");
}

/// Whatever is wrong beside it, a secret is told to nobody.
#[test]
fn secrets_are_in_no_message() {
    let secrets = "access_key: a\nsecret_key: hush\nsession_token: hush\nendpoint: h\n";
    assert!(!format!("{:?}", s3(secrets).0).contains("hush"));
    for wrong in [
        "insecure: hush",
        "part_size: hush",
        "http_config: hush",
        "trace: [hush]",
        "put_user_metadata: hush",
        "http_config: {idle_conn_timeout: hush}",
        "hush",
        "region: [\"hush",
        "region: \"hush",
        "max_retries: {hush: hush}",
        "secret_key: hush",
    ] {
        let error = error("S3", &format!("{secrets}{wrong}"));
        assert!(!error.contains("hush"), "{wrong}: {error}");
    }
    let key = "bucket: b\nservice_account: '{\"private_key\": \"hush\", }'";
    assert!(!error("GCS", key).contains("hush"));
    let (options, _) = azure(
        "storage_account: a\ncontainer: c\nstorage_connection_string: AccountName=a;AccountKey=hush",
    );
    assert!(!format!("{options:?}").contains("hush"));
}
