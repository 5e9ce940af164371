//! A certificate, as far as it has a say in whether it is trusted.

use std::collections::HashSet;

use rustls::pki_types::SignatureVerificationAlgorithm;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, NameConstraints, ParsedExtension, PolicyMapping};
use x509_parser::oid_registry::{
    OID_PKIX_AUTHORITY_INFO_ACCESS, OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER,
    OID_X509_EXT_SUBJECT_KEY_IDENTIFIER, Oid,
};
use x509_parser::prelude::FromDer as _;
use x509_parser::time::ASN1Time;
use x509_parser::x509::X509Version;

use crate::tls::key::{PublicKey, Signed};
use crate::tls::verify::Refused;

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Server,
    Client,
}

#[derive(Debug)]
pub(super) struct Certificate<'a> {
    parsed: X509Certificate<'a>,
    signed: Signed<'a>,
    key: PublicKey<'a>,
    /// Before version 3 there are no extensions.
    has_extensions: bool,
    /// Of basic constraints, if there are any.
    is_authority: Option<bool>,
    path_len_max: Option<u32>,
    /// No usage of its key is listed, or that of signing certificates is.
    may_sign: bool,
    /// No use is listed, or any.
    is_for_any: bool,
    is_for_servers: bool,
    is_for_clients: bool,
    has_unhandled: bool,
    pub(super) policies: Policies<'a>,
}

/// Policies that a certificate names, and what it asks of others.
#[derive(Debug, Default)]
pub(super) struct Policies<'a> {
    pub(super) named: Vec<Oid<'a>>,
    /// Pairs of an issuer's and a subject's.
    pub(super) mapped: Vec<(Oid<'a>, Oid<'a>)>,
    /// How many certificates below may do without.
    pub(super) required_after: Option<u32>,
    pub(super) mapping_inhibited_after: Option<u32>,
    pub(super) any_inhibited_after: Option<u32>,
}

impl<'a> Certificate<'a> {
    /// Refuses what Go does not read.
    pub(super) fn parse(der: &'a [u8]) -> Result<Certificate<'a>, Refused> {
        let malformed = || Refused::Malformed;
        let (behind, parsed) = X509Certificate::from_der(der).map_err(|_| malformed())?;
        let signed = Signed::of_certificate(der).ok_or_else(malformed)?;
        let key = PublicKey::of_certificate(der).ok_or_else(malformed)?;
        let is_negative = parsed.raw_serial().first().is_some_and(|byte| *byte >= 0x80);
        if is_negative || !behind.is_empty() {
            return Err(malformed());
        }
        let has_extensions = match parsed.version() {
            X509Version::V1 | X509Version(1) => false,
            X509Version::V3 => true,
            _ => return Err(malformed()),
        };
        let mut certificate = Certificate {
            signed,
            key,
            has_extensions,
            is_authority: None,
            path_len_max: None,
            may_sign: true,
            is_for_any: true,
            is_for_servers: false,
            is_for_clients: false,
            has_unhandled: false,
            policies: Policies::default(),
            parsed,
        };
        if has_extensions {
            certificate.read_extensions()?;
        }
        Ok(certificate)
    }

    fn read_extensions(&mut self) -> Result<(), Refused> {
        // They borrow from the certificate's bytes; the list itself is what is copied.
        let extensions = self.parsed.extensions().to_vec();
        let mut seen = HashSet::new();
        for extension in &extensions {
            if !seen.insert(extension.oid.clone()) {
                return Err(Refused::Malformed);
            }
            let is_handled = match extension.parsed_extension() {
                ParsedExtension::ParseError { .. } => return Err(Refused::Malformed),
                ParsedExtension::BasicConstraints(constraints) => {
                    self.is_authority = Some(constraints.ca);
                    self.path_len_max = constraints.path_len_constraint;
                    true
                }
                ParsedExtension::KeyUsage(usage) => {
                    self.may_sign = usage.flags == 0 || usage.key_cert_sign();
                    true
                }
                ParsedExtension::ExtendedKeyUsage(usage) => {
                    let is_empty = !(usage.any
                        || usage.server_auth
                        || usage.client_auth
                        || usage.code_signing
                        || usage.email_protection
                        || usage.time_stamping
                        || usage.ocsp_signing)
                        && usage.other.is_empty();
                    self.is_for_any = usage.any || is_empty;
                    self.is_for_servers = usage.server_auth;
                    self.is_for_clients = usage.client_auth;
                    true
                }
                ParsedExtension::SubjectAlternativeName(names) => {
                    names.general_names.iter().any(is_name)
                }
                ParsedExtension::NameConstraints(constraints) => {
                    let NameConstraints { permitted_subtrees, excluded_subtrees } = constraints;
                    let mut trees = permitted_subtrees.iter().chain(excluded_subtrees).flatten();
                    trees.all(|tree| is_name(&tree.base))
                }
                ParsedExtension::CertificatePolicies(policies) => {
                    self.policies.named =
                        policies.iter().map(|policy| policy.policy_id.clone()).collect();
                    let mut seen = HashSet::new();
                    if !self.policies.named.iter().all(|policy| seen.insert(policy)) {
                        return Err(Refused::Malformed);
                    }
                    true
                }
                ParsedExtension::PolicyMappings(mappings) => {
                    let pairs = mappings.mappings.iter().map(|mapping| {
                        let PolicyMapping { issuer_domain_policy, subject_domain_policy } = mapping;
                        (issuer_domain_policy.clone(), subject_domain_policy.clone())
                    });
                    self.policies.mapped = pairs.collect();
                    true
                }
                ParsedExtension::PolicyConstraints(constraints) => {
                    self.policies.required_after = constraints.require_explicit_policy;
                    self.policies.mapping_inhibited_after = constraints.inhibit_policy_mapping;
                    true
                }
                ParsedExtension::InhibitAnyPolicy(inhibit) => {
                    self.policies.any_inhibited_after = Some(inhibit.skip_certs);
                    true
                }
                ParsedExtension::CRLDistributionPoints(_) => true,
                _ => {
                    let never_critical = [
                        OID_X509_EXT_SUBJECT_KEY_IDENTIFIER,
                        OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER,
                        OID_PKIX_AUTHORITY_INFO_ACCESS,
                    ];
                    if extension.critical && never_critical.contains(&extension.oid) {
                        return Err(Refused::Malformed);
                    }
                    false
                }
            };
            self.has_unhandled |= extension.critical && !is_handled;
        }
        Ok(())
    }

    pub(super) fn subject(&self) -> &'a [u8] {
        self.parsed.tbs_certificate.subject.as_raw()
    }

    pub(super) fn issuer(&self) -> &'a [u8] {
        self.parsed.tbs_certificate.issuer.as_raw()
    }

    pub(super) fn is_self_issued(&self) -> bool {
        self.subject() == self.issuer()
    }

    pub(super) fn key(&self) -> &PublicKey<'a> {
        &self.key
    }

    /// The names that it is for.
    pub(super) fn names(&self) -> Option<&[GeneralName<'a>]> {
        self.extension(|extension| match extension {
            ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names[..]),
            _ => None,
        })
    }

    /// Which names those below it may have.
    pub(super) fn name_constraints(&self) -> Option<&NameConstraints<'a>> {
        self.extension(|extension| match extension {
            ParsedExtension::NameConstraints(constraints) => Some(constraints),
            _ => None,
        })
    }

    fn extension<'s, T>(
        &'s self,
        find: impl Fn(&'s ParsedExtension<'a>) -> Option<T>,
    ) -> Option<T> {
        let extensions = self.parsed.extensions().iter().filter(|_| self.has_extensions);
        extensions.map(|extension| extension.parsed_extension()).find_map(find)
    }

    /// Whether it is the same subject with the same key and names, perhaps signed by another.
    pub(super) fn is_twin_of(&self, other: &Certificate<'_>) -> bool {
        self.subject() == other.subject()
            && self.key == other.key
            && self.raw_names() == other.raw_names()
    }

    fn raw_names(&self) -> Option<&'a [u8]> {
        let mut extensions = self.parsed.extensions().iter().filter(|_| self.has_extensions);
        let names = extensions.find(|extension| {
            matches!(extension.parsed_extension(), ParsedExtension::SubjectAlternativeName(_))
        });
        names.map(|names| names.value)
    }

    /// Whether it is understood and valid now.
    pub(super) fn check(&self, now: ASN1Time) -> Result<(), Refused> {
        let validity = self.parsed.validity();
        if self.has_unhandled {
            return Err(Refused::Critical);
        }
        if now < validity.not_before {
            return Err(Refused::NotBegun);
        }
        if validity.not_after < now {
            return Err(Refused::Ended);
        }
        Ok(())
    }

    /// Whether it may be above so many others that are no leaf. An authority that is trusted need not
    /// say that it is one.
    pub(super) fn check_above(&self, between: usize, is_trusted: bool) -> Result<(), Refused> {
        if !is_trusted && self.is_authority != Some(true) {
            return Err(Refused::NoAuthority);
        }
        match self.path_len_max {
            Some(max) if between > max as usize => Err(Refused::PathTooLong),
            _ => Ok(()),
        }
    }

    /// Whether its key may sign certificates.
    pub(super) fn may_sign(&self) -> bool {
        let is_authority = self.is_authority.unwrap_or(!self.has_extensions);
        is_authority && self.may_sign
    }

    /// Whether it lists this use, or none.
    pub(super) fn is_for(&self, role: Role) -> bool {
        self.is_for_any
            || match role {
                Role::Server => self.is_for_servers,
                Role::Client => self.is_for_clients,
            }
    }

    /// Whether a key has signed it.
    pub(super) fn is_signed_by(
        &self,
        key: &PublicKey<'_>,
        algorithms: &[&'static dyn SignatureVerificationAlgorithm],
    ) -> Result<(), Refused> {
        let Signed { message, algorithm, signature } = self.signed;
        let of_signature = algorithms.iter().copied().filter(|known| {
            let of_signature = known.signature_alg_id();
            of_signature.as_ref() == algorithm
        });
        key.check(of_signature, message, signature)
    }

    pub(super) fn summary(&self) -> String {
        self.parsed.subject().to_string()
    }
}

/// A name of a kind that can be asked for.
fn is_name(name: &GeneralName<'_>) -> bool {
    matches!(
        name,
        GeneralName::DNSName(_)
            | GeneralName::IPAddress(_)
            | GeneralName::RFC822Name(_)
            | GeneralName::URI(_)
    )
}
