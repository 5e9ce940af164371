//! Certificates that are their own authority, as `openssl req -x509` makes them.
//!
//! In Go a certificate is trusted that is itself among the trusted ones. webpki refuses it as that
//! of a peer because it says that it is an authority's. So where webpki refuses a certificate that
//! is one of the trusted, byte for byte, what is left to ask is asked here: whether it has begun and
//! not ended, is for that name, and for that use (as Go's `crypto/x509`, `Certificate.Verify`). That
//! its holder holds the key is checked as for any other.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ExtendedKeyUsage;
use x509_parser::prelude::FromDer as _;
use x509_parser::time::ASN1Time;

/// Asks `V` first, and takes what it refuses if it is one of the trusted certificates itself.
#[derive(Debug)]
pub(crate) struct OwnAuthorities<V: ?Sized> {
    trusted: Arc<[CertificateDer<'static>]>,
    verifier: Arc<V>,
}

impl<V: ?Sized> OwnAuthorities<V> {
    pub(crate) fn new(
        trusted: Arc<[CertificateDer<'static>]>,
        verifier: Arc<V>,
    ) -> OwnAuthorities<V> {
        OwnAuthorities { trusted, verifier }
    }

    /// Whether `certificate` is trusted itself, valid now and not meant for other uses only.
    /// `refused` is what was found wrong with it before.
    fn check(
        &self,
        certificate: &CertificateDer<'_>,
        now: UnixTime,
        is_for: impl FnOnce(&ExtendedKeyUsage<'_>) -> bool,
        refused: Error,
    ) -> Result<(), Error> {
        if !self.trusted.contains(certificate) {
            return Err(refused);
        }
        let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return Err(refused) };
        let validity = parsed.validity();
        let now = i64::try_from(now.as_secs()).ok();
        let now = now.and_then(|seconds| ASN1Time::from_timestamp(seconds).ok());
        match now {
            Some(now) if validity.is_valid_at(now) => {}
            Some(now) if now < validity.not_before => {
                return Err(CertificateError::NotValidYet.into());
            }
            Some(_) => return Err(CertificateError::Expired.into()),
            None => return Err(refused),
        }
        match parsed.extended_key_usage() {
            Ok(None) => Ok(()),
            Ok(Some(usage)) if usage.value.any || is_for(usage.value) => Ok(()),
            Ok(Some(_)) => Err(CertificateError::InvalidPurpose.into()),
            // Two of them, or one that is none.
            Err(_) => Err(refused),
        }
    }
}

impl<V: ServerCertVerifier + ?Sized> ServerCertVerifier for OwnAuthorities<V> {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verifier = &self.verifier;
        let refused = match verifier.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        ) {
            Ok(verified) => return Ok(verified),
            Err(refused) => refused,
        };
        self.check(end_entity, now, |usage| usage.server_auth, refused)?;
        verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

impl<V: ClientCertVerifier + ?Sized> ClientCertVerifier for OwnAuthorities<V> {
    fn offer_client_auth(&self) -> bool {
        self.verifier.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.verifier.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.verifier.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match self.verifier.verify_client_cert(end_entity, intermediates, now) {
            Ok(verified) => Ok(verified),
            Err(refused) => {
                self.check(end_entity, now, |usage| usage.client_auth, refused)?;
                // Refuses what it does not understand, critical extensions, say.
                ParsedCertificate::try_from(end_entity)?;
                Ok(ClientCertVerified::assertion())
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}
