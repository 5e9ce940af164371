//! What both ends of TLS have in common: versions, certificates and keys in PEM files, and settings
//! that are made anew when their files have changed.
//!
//! A certificate is renewed by putting new files in the place of the old ones, so the next
//! connection after that uses them. Files that cannot be used at that moment, perhaps because one
//! of them is not written yet, leave the last good ones in force.

pub(crate) mod key;
pub mod server;
pub mod stream;
pub(crate) mod verify;
pub(crate) mod words;

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, InvalidDnsNameError, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, InconsistentKeys, SupportedProtocolVersion};

use crate::error::io_cause;
use crate::metrics::{Gauge, Registry};
use crate::tls::key::{PublicKey, RSA_BITS_MIN, rsa_bits_of_private};

/// The lowest version that is spoken. Those below 1.2 are not; who allows them gets 1.2 at least.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsVersion {
    V1_2,
    #[default]
    V1_3,
}

static TLS13_ONLY: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];

impl TlsVersion {
    pub(crate) fn and_above(self) -> &'static [&'static SupportedProtocolVersion] {
        match self {
            TlsVersion::V1_2 => rustls::ALL_VERSIONS,
            TlsVersion::V1_3 => TLS13_ONLY,
        }
    }
}

/// A file and the flag that names it. Errors tell of both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFile {
    pub flag: &'static str,
    pub path: PathBuf,
}

impl fmt::Display for TlsFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--{}: {}", self.flag, self.path.display())
    }
}

/// A certificate, with those that lead to its authority, and its key, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub cert: TlsFile,
    pub key: TlsFile,
}

/// Settings that cannot work.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{file}: {}", io_cause(source))]
    Read { file: TlsFile, source: io::Error },
    #[error("{file}: {source}")]
    Pem { file: TlsFile, source: pem::Error },
    #[error("{file}: failed to find any PEM data of a {what}")]
    Nothing { file: TlsFile, what: &'static str },
    /// Not understood, or not of the key beside it.
    #[error("{file}: {source}")]
    Certificate { file: TlsFile, source: rustls::Error },
    #[error("{0}: none of its certificates is understood")]
    Authority(TlsFile),
    /// The library that computes with keys has none that are shorter.
    #[error("{file}: a key of RSA has {bits} bits, and at least {RSA_BITS_MIN} are needed")]
    ShortKey { file: TlsFile, bits: usize },
    #[error("--remote-write.client-server-name: {0:?}: {1}")]
    ServerName(String, InvalidDnsNameError),
    /// Versions, cipher suites and key exchanges that do not go together.
    #[error(transparent)]
    Rustls(#[from] rustls::Error),
}

pub(crate) fn provider() -> CryptoProvider {
    aws_lc_rs::default_provider()
}

impl Identity {
    /// Reads both files.
    pub(crate) fn read(&self, provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
        let chain = read_certificates(&self.cert)?;
        let key = PrivateKeyDer::from_pem_slice(&read(&self.key)?);
        let key = key.map_err(|source| match source {
            pem::Error::NoItemsFound => {
                TlsError::Nothing { file: self.key.clone(), what: "private key" }
            }
            source => TlsError::Pem { file: self.key.clone(), source },
        })?;
        if let Some(bits) =
            rsa_bits_of_private(key.secret_der()).filter(|bits| *bits < RSA_BITS_MIN)
        {
            return Err(TlsError::ShortKey { file: self.key.clone(), bits });
        }
        let unusable =
            |file: &TlsFile, source| TlsError::Certificate { file: file.clone(), source };
        let key = provider.key_provider.load_private_key(key);
        let key = key.map_err(|source| unusable(&self.key, source))?;
        // Of what is shown, nothing else has to be understood here.
        let of_leaf = chain.first().and_then(|leaf| PublicKey::of_certificate(leaf));
        let of_leaf =
            of_leaf.ok_or_else(|| unusable(&self.cert, CertificateError::BadEncoding.into()))?;
        match key.public_key() {
            Some(of_key) if !of_leaf.is(&of_key) => {
                Err(unusable(&self.cert, InconsistentKeys::KeyMismatch.into()))
            }
            _ => Ok(CertifiedKey::new(chain, key)),
        }
    }
}

/// A certificate that is trusted.
pub(crate) struct Authority {
    pub(crate) certificate: CertificateDer<'static>,
    /// As it is encoded.
    pub(crate) subject: Vec<u8>,
}

/// Who is trusted.
#[derive(Clone)]
pub(crate) struct Authorities(Arc<[Authority]>);

impl Authorities {
    pub(crate) fn nobody() -> Authorities {
        Authorities(Arc::default())
    }

    /// Reads the certificates of authorities.
    pub(crate) fn read(file: &TlsFile) -> Result<Authorities, TlsError> {
        let (authorities, ignored) = Authorities::of(read_certificates(file)?);
        if authorities.is_empty() {
            return Err(TlsError::Authority(file.clone()));
        }
        if ignored > 0 {
            tracing::warn!(%file, ignored, "some certificates of authorities are not understood");
        }
        Ok(authorities)
    }

    /// Refuses those of a file whose keys are all too short to verify with, and tells of some.
    pub(crate) fn with_usable_keys(self, file: &TlsFile) -> Result<Authorities, TlsError> {
        let short: Vec<_> = self.iter().filter_map(Authority::short_key).collect();
        match short.first() {
            Some((bits, _)) if short.len() == self.0.len() => {
                return Err(TlsError::ShortKey { file: file.clone(), bits: *bits });
            }
            _ => {}
        }
        for (bits, subject) in short {
            tracing::warn!(
                %file,
                subject,
                bits,
                "the RSA key of an authority is too short, so nothing is trusted that it signed"
            );
        }
        Ok(self)
    }

    /// Tells how many are not understood, too: bundles that come with systems have some that are
    /// too old.
    pub(crate) fn of(certificates: Vec<CertificateDer<'static>>) -> (Authorities, usize) {
        let count = certificates.len();
        let authorities = certificates.into_iter().filter_map(|certificate| {
            let (subject, _) = verify::subject_of(&certificate)?;
            Some(Authority { certificate, subject })
        });
        let authorities = Authorities(authorities.collect());
        let ignored = count - authorities.0.len();
        (authorities, ignored)
    }

    /// Whom the system trusts.
    pub(crate) fn of_system() -> Authorities {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!(err = %error, "a certificate that the system trusts cannot be read");
        }
        let (authorities, _) = Authorities::of(found.certs);
        if authorities.is_empty() {
            tracing::warn!("the system trusts no certificate, so nobody can be verified");
        }
        authorities
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Authority> {
        self.0.iter()
    }

    /// For rustls' own clients.
    #[cfg(test)]
    pub(crate) fn root_store(&self) -> rustls::RootCertStore {
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(self.iter().map(|authority| authority.certificate.clone()));
        roots
    }
}

impl Authority {
    /// Bits of a key that is too short to be computed with, and whose it is.
    fn short_key(&self) -> Option<(usize, String)> {
        let bits = PublicKey::of_certificate(&self.certificate)?.rsa_bits()?;
        let (_, subject) = verify::subject_of(&self.certificate)?;
        (bits < RSA_BITS_MIN).then_some((bits, subject))
    }
}

fn read_certificates(file: &TlsFile) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let content = read(file)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&content).collect();
    let certificates =
        certificates.map_err(|source| TlsError::Pem { file: file.clone(), source })?;
    if certificates.is_empty() {
        return Err(TlsError::Nothing { file: file.clone(), what: "certificate" });
    }
    Ok(certificates)
}

#[expect(clippy::disallowed_methods, reason = "on threads that may wait")]
fn read(file: &TlsFile) -> Result<Vec<u8>, TlsError> {
    fs::read(&file.path).map_err(|source| TlsError::Read { file: file.clone(), source })
}

/// What is made from files, as long as they stay what they are.
pub(crate) struct FromFiles<T> {
    /// What the names of their flags begin with.
    flags: &'static str,
    files: Vec<TlsFile>,
    /// 1 while the files as they are now cannot be used.
    unusable: Gauge,
    state: Mutex<State<T>>,
}

struct State<T> {
    made: Arc<T>,
    /// The files from which it was made; none if they could not be used.
    from: Option<Vec<FileVersion>>,
    /// Why they cannot be used now; said once.
    failure: Option<String>,
}

/// Tells a file from the one that had its name before.
#[derive(PartialEq, Eq)]
struct FileVersion {
    inode: u64,
    bytes: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
}

impl<T> FromFiles<T> {
    pub(crate) fn new(
        flags: &'static str,
        files: Vec<TlsFile>,
        registry: &Registry,
        make: impl FnOnce() -> Result<T, TlsError>,
    ) -> Result<FromFiles<T>, TlsError> {
        let from = versions(&files);
        let state = State { made: Arc::new(make()?), from, failure: None };
        Ok(FromFiles {
            flags,
            files,
            unusable: unusable(flags, registry),
            state: Mutex::new(state),
        })
    }

    /// With `made` in the place of what cannot be made yet, for the reason of `failure`.
    pub(crate) fn without_files(
        flags: &'static str,
        files: Vec<TlsFile>,
        registry: &Registry,
        made: T,
        failure: &TlsError,
    ) -> FromFiles<T> {
        let failure = Some(failure.to_string());
        let state = State { made: Arc::new(made), from: None, failure };
        let unusable = unusable(flags, registry);
        unusable.set(1.0);
        FromFiles { flags, files, unusable, state: Mutex::new(state) }
    }

    /// Made anew if a file has changed, or the last good one.
    pub(crate) fn current(&self, make: impl FnOnce() -> Result<T, TlsError>) -> Arc<T> {
        let mut state = self.state.lock();
        // Looked at first: what changes while it is read is read again the next time.
        let from = versions(&self.files);
        if from.is_some() && from == state.from {
            return state.made.clone();
        }
        match make() {
            Ok(made) => {
                *state = State { made: Arc::new(made), from, failure: None };
                self.unusable.set(0.0);
                tracing::info!(flags = self.flags, "files of TLS have changed and are in use");
            }
            Err(error) => {
                let failure = Some(error.to_string());
                if state.failure != failure {
                    tracing::warn!(err = %error, "files of TLS cannot be used, keeping the last good");
                    state.failure = failure;
                }
                // What is made may be from the very files that are back now.
                state.from = None;
                self.unusable.set(1.0);
            }
        }
        state.made.clone()
    }
}

fn unusable(flags: &'static str, registry: &Registry) -> Gauge {
    registry
        .gauge_vec(
            "ringest_tls_files_unusable",
            "Whether certificate, key or authority as they are on disk now cannot be used.",
            &["flags"],
        )
        .with(&[flags])
}

/// None if a file is not there.
#[expect(clippy::disallowed_methods, reason = "on threads that may wait")]
fn versions(files: &[TlsFile]) -> Option<Vec<FileVersion>> {
    let version = |file: &TlsFile| {
        let metadata = fs::metadata(&file.path).ok()?;
        Some(FileVersion {
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    };
    files.iter().map(version).collect()
}

#[cfg(test)]
#[path = "../tests/support/certificates.rs"]
pub(crate) mod certificates;
