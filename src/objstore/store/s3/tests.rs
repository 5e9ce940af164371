use super::*;
use crate::objstore::options::HttpOptions;

pub(in crate::objstore) fn options(endpoint: &str) -> S3Options {
    S3Options {
        bucket: "bkt".to_owned(),
        endpoint: endpoint.to_owned(),
        region: String::new(),
        dualstack: true,
        credentials: S3Credentials::Keys {
            access_key: "key".to_owned(),
            secret_key: Secret("secret".to_owned()),
            session_token: Secret::default(),
        },
        insecure: true,
        user_metadata: Default::default(),
        storage_class: None,
        lookup: BucketLookup::Auto,
        send_content_md5: true,
        part_bytes: 5 << 20,
        encryption: None,
        retries_max: None,
        trace: false,
        http: HttpOptions::default(),
    }
}

/// By minio's client, which Thanos uses.
#[test]
fn hosts_of_amazon_are_made_from_the_region() {
    for (endpoint, region) in [
        ("s3.amazonaws.com", None),
        ("s3.eu-west-1.amazonaws.com", Some("eu-west-1")),
        ("s3-eu-west-1.amazonaws.com:443", Some("eu-west-1")),
        ("s3.dualstack.us-east-2.amazonaws.com", Some("us-east-2")),
        ("s3-fips.us-gov-west-1.amazonaws.com", Some("us-gov-west-1")),
        ("s3.cn-north-1.amazonaws.com.cn", Some("cn-north-1")),
        ("s3-external-1.amazonaws.com", None),
        ("minio:9000", None),
        ("10.0.0.1", None),
        ("storage.googleapis.com", None),
    ] {
        assert_eq!(region_of(endpoint).as_deref(), region, "{endpoint}");
    }
    for (endpoint, region, dualstack, host) in [
        ("s3.amazonaws.com", "eu-west-1", true, "s3.dualstack.eu-west-1.amazonaws.com"),
        ("s3.amazonaws.com", "eu-west-1", false, "s3.eu-west-1.amazonaws.com"),
        ("s3.cn-north-1.amazonaws.com.cn", "cn-north-1", false, "s3.cn-north-1.amazonaws.com.cn"),
        ("s3-fips.us-east-1.amazonaws.com", "us-east-1", true, "s3-fips.us-east-1.amazonaws.com"),
        ("minio:9000", "eu-west-1", true, "minio:9000"),
    ] {
        assert_eq!(host_in(endpoint, region, dualstack), host, "{endpoint}");
    }
}

#[test]
fn a_buckets_name_stands_in_the_host_where_that_is_known_to_work() {
    use BucketLookup::{Auto, Path, VirtualHosted};
    for (bucket, host, lookup, insecure, url) in [
        ("b", "minio:9000", Auto, true, "http://minio:9000/b"),
        ("b", "minio:9000", VirtualHosted, true, "http://b.minio:9000"),
        ("b", "s3.eu-west-1.amazonaws.com", Auto, false, "https://b.s3.eu-west-1.amazonaws.com"),
        ("b", "s3.eu-west-1.amazonaws.com", Path, false, "https://s3.eu-west-1.amazonaws.com/b"),
        ("b.c", "s3.amazonaws.com", Auto, false, "https://s3.amazonaws.com/b.c"),
        ("b.c", "s3.amazonaws.com", Auto, true, "http://b.c.s3.amazonaws.com"),
        ("b", "storage.googleapis.com", Auto, false, "https://b.storage.googleapis.com"),
        ("b", "oss-cn.aliyuncs.com", Auto, false, "https://b.oss-cn.aliyuncs.com"),
    ] {
        let options = S3Options { bucket: bucket.to_owned(), lookup, insecure, ..options(host) };
        assert_eq!(bucket_url(&options, host), url);
    }
}

#[test]
fn an_elements_text_is_found() {
    let xml =
        "<?xml version=\"1.0\"?>\n<LocationConstraint xmlns=\"x\">eu-west-1</LocationConstraint>";
    assert_eq!(element(xml, "LocationConstraint"), Some("eu-west-1"));
    assert_eq!(element("<LocationConstraint xmlns=\"x\"/>", "LocationConstraint"), None);
    let error = "<Error><Code>x</Code><Region>ap-1</Region></Error>";
    assert_eq!(element(error, "Region"), Some("ap-1"));
    assert_eq!(element("", "Region"), None);
    assert_eq!(element("<Region", "Region"), None);
}

#[test]
fn metadata_is_told_with_every_object() {
    let user_metadata = [("a", "1"), ("content-type", "x/y"), ("cache-control", "no-store")];
    let options = S3Options {
        user_metadata: user_metadata.map(|(name, value)| (name.into(), value.into())).into(),
        storage_class: Some("STANDARD_IA".to_owned()),
        ..options("minio:9000")
    };
    let attributes = attributes(&options);
    let value = |attribute| attributes.get(&attribute).map(|value| value.to_string());
    assert_eq!(value(Attribute::Metadata("a".into())).as_deref(), Some("1"));
    assert_eq!(value(Attribute::ContentType).as_deref(), Some("x/y"));
    assert_eq!(value(Attribute::CacheControl).as_deref(), Some("no-store"));
    assert_eq!(value(Attribute::StorageClass).as_deref(), Some("STANDARD_IA"));
    assert_eq!(attributes.len(), 4);
}
