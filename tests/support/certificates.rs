//! Authorities and the certificates that they sign.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        // Authorities of one name would be taken for each other until their signatures are checked.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("authority {}", COUNT.fetch_add(1, Ordering::Relaxed));
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Authority(CertifiedIssuer::self_signed(params, key).expect("a certificate"))
    }

    /// Its own certificate as a file.
    pub(crate) fn write(&self, path: &Path) {
        put(path, &self.0.pem());
    }

    /// Puts a new certificate for a name or an address into `NAME.crt` of a directory, and its key
    /// into `NAME.key`.
    pub(crate) fn issue(&self, dir: &Path, name: &str) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &self.0).expect("a certificate");
        let path = |ending: &str| dir.join(format!("{name}.{ending}"));
        put(&path("key"), &key.serialize_pem());
        put(&path("crt"), &certificate.pem());
        (path("crt"), path("key"))
    }
}

/// Whole or not at all, as those do it who renew certificates.
pub(crate) fn put(path: &Path, content: &str) {
    let new = path.with_extension("new");
    fs::write(&new, content).expect("a file");
    fs::rename(&new, path).expect("a file");
}
