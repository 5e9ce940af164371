//! Flags of TLS: certificates of this node's servers, and of this node where it is a peer's client.
//!
//! Whether the files can be used is found out when they are [loaded](crate::tls).

use crate::config::flags;
use crate::config::settings::{NoticeKind, Settings};
use crate::peer::tls::ClientTlsOptions;
use crate::tls::server::{self, ServerTlsOptions};
use crate::tls::{Identity, TlsFile, TlsVersion};

/// Flags that do not go together, or names that mean nothing. The words are those of Thanos.
#[derive(Debug, thiserror::Error)]
pub enum TlsFlagError {
    #[error("--{cert}, --{key}: both server key and certificate must be provided")]
    HalfOfServer { cert: &'static str, key: &'static str },
    #[error("--{0}: when a client CA is used a server key and certificate must also be provided")]
    ClientAuthorityAlone(&'static str),
    #[error("--{cert}, --{key}: both client key and certificate must be provided")]
    HalfOfClient { cert: &'static str, key: &'static str },
    #[error("--{flag}: invalid cipher suite: {name}, valid values are {valid}")]
    CipherSuite { flag: &'static str, name: String, valid: String },
    #[error("--{flag}: invalid curve: {name}, valid values are {valid}")]
    Curve { flag: &'static str, name: String, valid: String },
}

/// The flags of one server.
pub(super) struct ServerFlags {
    cert: &'static str,
    key: &'static str,
    client_ca: &'static str,
    min_version: &'static str,
    ciphers: &'static str,
    curves: &'static str,
}

pub(super) const GRPC_SERVER: ServerFlags = ServerFlags {
    cert: "grpc-server-tls-cert",
    key: "grpc-server-tls-key",
    client_ca: "grpc-server-tls-client-ca",
    min_version: "grpc-server-tls-min-version",
    ciphers: "grpc-server-tls-ciphers",
    curves: "grpc-server-tls-curves",
};

pub(super) const REMOTE_WRITE_SERVER: ServerFlags = ServerFlags {
    cert: "remote-write.server-tls-cert",
    key: "remote-write.server-tls-key",
    client_ca: "remote-write.server-tls-client-ca",
    min_version: "remote-write.server-tls-min-version",
    ciphers: "remote-write.server-tls-ciphers",
    curves: "remote-write.server-tls-curves",
};

impl ServerFlags {
    /// `Some(None)` for plain text, which is what there is without certificate and key.
    pub(super) fn options(&self, settings: &mut Settings<'_>) -> Option<Option<ServerTlsOptions>> {
        let client_ca = file(settings, self.client_ca);
        let identity = match (file(settings, self.cert), file(settings, self.key)) {
            (Some(cert), Some(key)) => Identity { cert, key },
            (None, None) if client_ca.is_some() => {
                return settings.check(Err(TlsFlagError::ClientAuthorityAlone(self.client_ca)));
            }
            (None, None) => {
                let needed = format!("--{} and --{}", self.cert, self.key);
                without_effect(settings, &[self.min_version, self.ciphers, self.curves], &needed);
                return Some(None);
            }
            _ => {
                let (cert, key) = (self.cert, self.key);
                return settings.check(Err(TlsFlagError::HalfOfServer { cert, key }));
            }
        };
        let version_min = version(settings, self.min_version);
        let flag = self.ciphers;
        let cipher_suites = all(settings, flag, |name| {
            server::cipher_suite(&name).map_err(|valid| TlsFlagError::CipherSuite {
                flag,
                name,
                valid,
            })
        });
        let flag = self.curves;
        let curves = all(settings, flag, |name| {
            server::curve(&name).map_err(|valid| TlsFlagError::Curve { flag, name, valid })
        });
        Some(Some(ServerTlsOptions {
            identity,
            client_ca,
            version_min,
            cipher_suites: Some(cipher_suites?).filter(|suites| !suites.is_empty()),
            curves: Some(curves?).filter(|curves| !curves.is_empty()),
        }))
    }
}

/// What all values of a flag mean.
fn all<T>(
    settings: &mut Settings<'_>,
    flag: &str,
    find: impl Fn(String) -> Result<T, TlsFlagError>,
) -> Option<Vec<T>> {
    let names = settings.values.texts(flag);
    let found: Vec<_> = names.into_iter().map(|name| settings.check(find(name))).collect();
    found.into_iter().collect()
}

const CLIENT_CERT: &str = "remote-write.client-tls-cert";
const CLIENT_KEY: &str = "remote-write.client-tls-key";
const CLIENT_CA: &str = "remote-write.client-tls-ca";
const CLIENT_SECURE: &str = "remote-write.client-tls-secure";
const CLIENT_SKIP_VERIFY: &str = "remote-write.client-tls-skip-verify";
const CLIENT_SERVER_NAME: &str = "remote-write.client-server-name";
const CLIENT_MIN_VERSION: &str = "remote-write.client-tls-min-version";

/// Towards peers; `Some(None)` for plain text, whatever the other flags say.
pub(super) fn client(settings: &mut Settings<'_>) -> Option<Option<ClientTlsOptions>> {
    if !settings.values.switch(CLIENT_SECURE) {
        let idle = [
            CLIENT_CERT,
            CLIENT_KEY,
            CLIENT_CA,
            CLIENT_SKIP_VERIFY,
            CLIENT_SERVER_NAME,
            CLIENT_MIN_VERSION,
        ];
        without_effect(settings, &idle, &format!("--{CLIENT_SECURE}"));
        return Some(None);
    }
    let identity = match (file(settings, CLIENT_CERT), file(settings, CLIENT_KEY)) {
        (Some(cert), Some(key)) => Some(Identity { cert, key }),
        (None, None) => None,
        _ => {
            let (cert, key) = (CLIENT_CERT, CLIENT_KEY);
            return settings.check(Err(TlsFlagError::HalfOfClient { cert, key }));
        }
    };
    let server_name = settings.values.text(CLIENT_SERVER_NAME);
    Some(Some(ClientTlsOptions {
        identity,
        ca: file(settings, CLIENT_CA),
        skip_verify: settings.values.switch(CLIENT_SKIP_VERIFY),
        server_name: Some(server_name).filter(|name| !name.is_empty()),
        version_min: version(settings, CLIENT_MIN_VERSION),
    }))
}

fn file(settings: &Settings<'_>, flag: &'static str) -> Option<TlsFile> {
    let path = settings.values.text(flag);
    (!path.is_empty()).then(|| TlsFile { flag, path: path.into() })
}

fn version(settings: &mut Settings<'_>, flag: &str) -> TlsVersion {
    match settings.values.text(flag).as_str() {
        "1.3" => TlsVersion::V1_3,
        "1.2" => TlsVersion::V1_2,
        lower => {
            let text = format!("--{flag}={lower} is taken for 1.2: TLS {lower} is not spoken");
            settings.notice(NoticeKind::Note, text);
            TlsVersion::V1_2
        }
    }
}

/// Tells which flags were given that need others.
fn without_effect(settings: &mut Settings<'_>, names: &[&str], needed: &str) {
    for name in names {
        let (flag, values) = (flags::named(name), settings.values);
        let is_default = !flag.repeatable && values.value(flag) == flag.default_value();
        if values.is_given(flag) && !is_default {
            let text = format!("--{name} does nothing without {needed}");
            settings.notice(NoticeKind::NoEffect, text);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::config::command_line::{Invocation, parse};
    use crate::config::{Config, Notice};

    fn config(flags: &[&str]) -> Result<Config, String> {
        let words = ["receive", "--label=a=\"b\""].iter().chain(flags).map(OsString::from);
        match parse(words) {
            Ok(Invocation::Receive(values)) => {
                Config::from_values(&values, "host-1").map_err(|error| error.to_string())
            }
            other => panic!("{flags:?}: {other:?}"),
        }
    }

    #[test]
    fn without_certificate_a_server_speaks_plain_text_and_says_what_does_nothing() {
        let config = config(&[
            "--grpc-server-tls-min-version=1.2",
            "--grpc-server-tls-ciphers=FOO",
            "--remote-write.server-tls-min-version=1.3",
            "--remote-write.client-tls-ca=ca",
            "--remote-write.client-tls-skip-verify",
            "--no-remote-write.client-tls-secure",
        ])
        .unwrap();
        assert!(config.grpc.tls.is_none() && config.remote_write.tls.is_none());
        assert!(config.ring.client_tls.is_none());
        let grpc = "does nothing without --grpc-server-tls-cert and --grpc-server-tls-key";
        let client = "does nothing without --remote-write.client-tls-secure";
        let expected = [
            format!("--grpc-server-tls-min-version {grpc}"),
            format!("--grpc-server-tls-ciphers {grpc}"),
            format!("--remote-write.client-tls-ca {client}"),
            format!("--remote-write.client-tls-skip-verify {client}"),
        ];
        let texts: Vec<&str> = config.notices.iter().map(|notice| notice.text.as_str()).collect();
        assert_eq!(texts, expected);
    }

    #[test]
    fn flags_arrive_where_they_are_used() {
        let config = config(&[
            "--grpc-server-tls-cert=c",
            "--grpc-server-tls-key=k",
            "--grpc-server-tls-client-ca=a",
            "--grpc-server-tls-min-version=1.0",
            "--grpc-server-tls-ciphers=TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
            "--grpc-server-tls-curves=X25519",
            "--grpc-server-tls-curves=CurveP384",
            "--remote-write.server-tls-cert=c",
            "--remote-write.server-tls-key=k",
            "--remote-write.client-tls-secure",
            "--remote-write.client-tls-cert=c",
            "--remote-write.client-tls-key=k",
            "--remote-write.client-tls-ca=a",
            "--remote-write.client-server-name=n",
            "--remote-write.client-tls-min-version=1.2",
        ])
        .unwrap();
        let grpc = config.grpc.tls.unwrap();
        let file = |flag, path: &str| TlsFile { flag, path: path.into() };
        assert_eq!(grpc.identity.cert, file("grpc-server-tls-cert", "c"));
        assert_eq!(grpc.identity.key, file("grpc-server-tls-key", "k"));
        assert_eq!(grpc.client_ca, Some(file("grpc-server-tls-client-ca", "a")));
        assert_eq!(grpc.version_min, TlsVersion::V1_2);
        assert_eq!(grpc.cipher_suites.unwrap().len(), 1);
        assert_eq!(grpc.curves.unwrap().len(), 2);
        let write = config.remote_write.tls.unwrap();
        assert_eq!(write.identity.cert.flag, "remote-write.server-tls-cert");
        assert_eq!(write.version_min, TlsVersion::V1_3);
        assert!(write.client_ca.is_none() && write.cipher_suites.is_none());
        let client = config.ring.client_tls.unwrap();
        assert_eq!(client.ca, Some(file("remote-write.client-tls-ca", "a")));
        assert_eq!(client.server_name.as_deref(), Some("n"));
        assert_eq!(client.version_min, TlsVersion::V1_2);
        assert!(client.identity.is_some() && !client.skip_verify);
        let is_note = |notice: &&Notice| notice.kind == NoticeKind::Note;
        let notes: Vec<_> = config.notices.iter().filter(is_note).collect();
        assert_eq!(notes.len(), 1, "{:?}", config.notices);
        assert!(notes[0].text.starts_with("--grpc-server-tls-min-version=1.0"));
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        let cert = "--grpc-server-tls-cert=c";
        let key = "--grpc-server-tls-key=k";
        let secure = "--remote-write.client-tls-secure";
        for (flags, words) in [
            (&[cert][..], "--grpc-server-tls-cert, --grpc-server-tls-key: both server key"),
            (&[key], "both server key and certificate must be provided"),
            (&["--grpc-server-tls-client-ca=a"], "--grpc-server-tls-client-ca: when a client CA"),
            (&[secure, "--remote-write.client-tls-cert=c"], "both client key and certificate"),
            (
                &[cert, key, "--grpc-server-tls-ciphers=TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA"],
                "--grpc-server-tls-ciphers: invalid cipher suite: TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA, \
                 valid values are TLS_AES_128_GCM_SHA256, ",
            ),
            (
                &[cert, key, "--grpc-server-tls-curves=CurveP521"],
                "--grpc-server-tls-curves: invalid curve: CurveP521, valid values are CurveP256, ",
            ),
        ] {
            let error = config(flags).unwrap_err();
            assert!(error.contains(words), "{flags:?}: {error}");
        }
        assert!(config(&["--remote-write.client-tls-cert=c"]).is_ok(), "not looked at");
    }
}
