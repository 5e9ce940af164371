//! Whether the certificate that the other end shows is trusted, as Go's `crypto/x509` decides it.
//!
//! Clients, peers and their authorities are made for programs in Go, and webpki, which rustls brings,
//! refuses some of what Go takes: certificates of version 1, critical policies, a use named "any", an
//! authority as a client or a server, a trusted certificate that is no authority. So a chain is built
//! here, by Go's rules and within its limits: from the leaf by way of what the other end shows to one
//! of the certificates that are trusted. What only a library can do well stays with it: DER
//! (x509-parser), signatures (rustls' provider).
//!
//! - The leaf, and each authority as it is put above it, is valid now and has no critical extension
//!   that is not understood. The name counts only where it is an alternative one of the leaf's.
//! - What is trusted is trusted: a leaf byte for byte, an authority without a word on whether it is
//!   one, be it signed by another or by a signature that is wrong.
//! - A chain holds if each certificate in it lists the use or none, policies are there where they are
//!   required, and all names are permitted.
//!
//! That the other end holds the key is always verified, also where anybody is trusted.

mod certificate;
mod names;
mod policies;

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, PeerMisbehaved,
    SignatureScheme,
};
use x509_parser::time::ASN1Time;

use self::certificate::{Certificate, Role};
use crate::tls::Authorities;
use crate::tls::key::{PublicKey, RSA_BITS_MIN};

/// Signatures that are verified for one chain, as in Go.
const SIGNATURES_MAX: u32 = 100;

/// Why a certificate is not trusted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("it is no certificate that is understood")]
    Malformed,
    #[error("it has a critical extension that is not understood")]
    Critical,
    #[error("it has not begun")]
    NotBegun,
    #[error("it has ended")]
    Ended,
    #[error("it is for another name")]
    Name,
    #[error("it is not for this use")]
    Use,
    #[error("it is not signed by an authority that is trusted")]
    Unknown,
    #[error("it does not fit the key that signed it")]
    Signature,
    #[error("a signature in its chain is of a kind that is not trusted, as those by SHA-1 are")]
    Algorithm,
    #[error(
        "a key of RSA in its chain has {0} bits, and fewer than {RSA_BITS_MIN} are not trusted"
    )]
    ShortKey(usize),
    #[error("it is signed by a certificate that is no authority's, or not to sign others")]
    NoAuthority,
    #[error("its chain is longer than an authority in it allows")]
    PathTooLong,
    #[error("its chain lacks the policies that an authority in it requires")]
    Policies,
    #[error("an authority in its chain does not permit its names")]
    NameNotPermitted,
    #[error("its chain takes too many signatures to verify")]
    TooManySignatures,
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Error {
        let error = match refused {
            Refused::Malformed => CertificateError::BadEncoding,
            Refused::Critical => CertificateError::UnhandledCriticalExtension,
            Refused::NotBegun => CertificateError::NotValidYet,
            Refused::Ended => CertificateError::Expired,
            Refused::Name => CertificateError::NotValidForName,
            Refused::Use => CertificateError::InvalidPurpose,
            Refused::Unknown => CertificateError::UnknownIssuer,
            Refused::Signature => CertificateError::BadSignature,
            other => CertificateError::Other(OtherError(Arc::new(other))),
        };
        error.into()
    }
}

/// Judges the certificates of clients and peers.
pub(crate) struct Verifier {
    /// None if anybody is trusted who holds the key of what he shows.
    trusted: Option<Authorities>,
    /// Which authorities a client is told of.
    hints: Vec<DistinguishedName>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    pub(crate) fn new(trusted: Authorities, provider: &CryptoProvider) -> Verifier {
        let hints = trusted.iter().map(|authority| authority.subject.clone().into()).collect();
        let algorithms = provider.signature_verification_algorithms;
        Verifier { trusted: Some(trusted), hints, algorithms }
    }

    /// One that trusts any certificate, but its holder must hold the key.
    pub(crate) fn of_anybody(provider: &CryptoProvider) -> Verifier {
        let algorithms = provider.signature_verification_algorithms;
        Verifier { trusted: None, hints: Vec::new(), algorithms }
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        (role, name): (Role, Option<&ServerName<'_>>),
        now: UnixTime,
    ) -> Result<(), Refused> {
        let Some(trusted) = &self.trusted else { return Ok(()) };
        let seconds = i64::try_from(now.as_secs()).map_err(|_| Refused::Ended)?;
        let now = ASN1Time::from_timestamp(seconds).map_err(|_| Refused::Ended)?;
        let is_trusted = trusted.iter().any(|authority| authority.certificate == *leaf);
        let leaf = Certificate::parse(leaf)?;
        let others: Result<Vec<_>, _> = others.iter().map(|der| Certificate::parse(der)).collect();
        let others = others?;
        leaf.check(now)?;
        if let Some(name) = name {
            names::check(&leaf, name)?;
        }
        if is_trusted {
            return holds(&[&leaf], role);
        }
        let is_above = |subject: &[u8]| {
            leaf.issuer() == subject || others.iter().any(|other| other.issuer() == subject)
        };
        let above = trusted.iter().filter(|authority| is_above(&authority.subject));
        let trusted: Result<Vec<_>, _> =
            above.map(|authority| Certificate::parse(&authority.certificate)).collect();
        let mut search = Search {
            trusted: &trusted?,
            others: &others,
            algorithms: &self.algorithms,
            now,
            role,
            signatures_left: SIGNATURES_MAX,
            failure: None,
        };
        match search.extend(&mut vec![&leaf]) {
            true => Ok(()),
            false => Err(search.failure.unwrap_or(Refused::Unknown)),
        }
    }

    fn verify_tls12(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = PublicKey::of_certificate(certificate).ok_or(Refused::Malformed)?;
        let mut known = self.algorithms.mapping.iter();
        let (_, algorithms) = known
            .find(|(scheme, _)| *scheme == signed.scheme)
            .ok_or(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme)?;
        key.check(algorithms.iter().copied(), message, signed.signature())?;
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = PublicKey::of_certificate(certificate).ok_or(Refused::Malformed)?;
        key.check_length()?;
        verify_tls13_signature_with_raw_key(message, &key.to_der(), signed, &self.algorithms)
    }
}

/// Whether a chain up to what is trusted holds as a whole.
fn holds(chain: &[&Certificate<'_>], role: Role) -> Result<(), Refused> {
    if !policies::are_valid(chain) {
        return Err(Refused::Policies);
    }
    if !chain.iter().all(|certificate| certificate.is_for(role)) {
        return Err(Refused::Use);
    }
    names::are_permitted(chain)
}

/// A search for a chain.
struct Search<'s, 'a> {
    trusted: &'s [Certificate<'a>],
    /// Shown by the other end, in no particular order.
    others: &'s [Certificate<'a>],
    algorithms: &'s WebPkiSupportedAlgorithms,
    now: ASN1Time,
    role: Role,
    signatures_left: u32,
    /// What was wrong with a chain that was no good.
    failure: Option<Refused>,
}

impl<'s, 'a> Search<'s, 'a> {
    /// Puts authorities above the last certificate until one is trusted and the chain holds. The depth
    /// is at most the number of signatures.
    fn extend(&mut self, chain: &mut Vec<&'s Certificate<'a>>) -> bool {
        let Some(last) = chain.last().copied() else { return false };
        let trusted = self.trusted.iter().map(|candidate| (candidate, true));
        let others = self.others.iter().map(|candidate| (candidate, false));
        for (candidate, is_trusted) in trusted.chain(others) {
            if candidate.subject() != last.issuer() {
                continue;
            }
            if self.signatures_left == 0 {
                self.failure = Some(Refused::TooManySignatures);
                return false;
            }
            self.signatures_left -= 1;
            if chain.iter().any(|other| candidate.is_twin_of(other)) {
                continue;
            }
            if let Err(refused) = self.check(chain, candidate, is_trusted) {
                self.fail(refused);
                continue;
            }
            chain.push(candidate);
            let is_found = match is_trusted {
                false => self.extend(chain),
                true => holds(chain, self.role).map_err(|refused| self.fail(refused)).is_ok(),
            };
            if is_found {
                return true;
            }
            chain.pop();
        }
        false
    }

    /// Whether a candidate may stand above the last of the chain.
    fn check(
        &self,
        chain: &[&Certificate<'a>],
        candidate: &Certificate<'a>,
        is_trusted: bool,
    ) -> Result<(), Refused> {
        let Some((last, between)) = chain.split_last() else { return Ok(()) };
        if !candidate.may_sign() {
            return Err(Refused::NoAuthority);
        }
        last.is_signed_by(candidate.key(), self.algorithms.all)?;
        candidate.check(self.now)?;
        candidate.check_above(between.len(), is_trusted)
    }

    /// A signature that does not fit says least: another authority has the same name.
    fn fail(&mut self, refused: Refused) {
        if matches!(self.failure, None | Some(Refused::Signature)) {
            self.failure = Some(refused);
        }
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let trusted = self.trusted.as_ref().map(|trusted| trusted.iter().count());
        f.debug_struct("Verifier").field("trusted", &trusted).finish_non_exhaustive()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(end_entity, intermediates, (Role::Server, Some(server_name)), now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify_tls12(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify_tls13(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(end_entity, intermediates, (Role::Client, None), now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify_tls12(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify_tls13(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The subject of an authority's certificate as it is encoded, and in words.
pub(crate) fn subject_of(der: &[u8]) -> Option<(Vec<u8>, String)> {
    let certificate = Certificate::parse(der).ok()?;
    Some((certificate.subject().to_vec(), certificate.summary()))
}
