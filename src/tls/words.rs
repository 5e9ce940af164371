//! What goes wrong with TLS, in words that say what to do.

use std::fmt::Write as _;
use std::io;

use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::{AlertDescription, CertificateError, Error, InvalidMessage};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;

use crate::tls::verify::Refused;

/// Names of a certificate that are told; there may be hundreds.
const NAMES_MAX: usize = 8;

/// The other end of a connection, and what is known of the handshake with it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Other<'a> {
    /// What it is to us, with its article.
    pub noun: &'a str,
    /// The certificate that it has shown.
    pub certificate: Option<&'a CertificateDer<'a>>,
    /// The name that its certificate should have.
    pub name: &'a str,
    /// Who is trusted, after "an authority".
    pub trusted: &'a str,
    /// Whether we have a certificate to show.
    pub shows: bool,
}

impl Other<'static> {
    /// Somebody who has connected to us.
    pub(crate) const CLIENT: Other<'static> = Other {
        noun: "the client",
        certificate: None,
        name: "",
        trusted: " that is trusted here",
        shows: true,
    };
}

impl Other<'_> {
    /// Why the handshake failed.
    pub(crate) fn failed(&self, error: &io::Error) -> String {
        let noun = self.noun;
        if let Some(error) = rustls_error(error) {
            return self.refused(error);
        }
        match error.kind() {
            io::ErrorKind::TimedOut => format!("{noun} does not go on with the TLS handshake"),
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe => {
                format!(
                    "{noun} hung up within the TLS handshake, as one does that speaks plain text"
                )
            }
            _ => error.to_string(),
        }
    }

    /// The same of what rustls says, perhaps after our side of the handshake was done.
    pub(crate) fn refused(&self, error: &Error) -> String {
        let noun = self.noun;
        match error {
            Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
                format!("{noun} speaks plain text")
            }
            Error::InvalidMessage(_) => format!("{noun} speaks no TLS that is understood: {error}"),
            Error::InvalidCertificate(error) => self.certificate_refused(error),
            Error::NoCertificatesPresented => format!("{noun} shows no certificate"),
            Error::AlertReceived(alert) => self.alerted(*alert),
            Error::PeerIncompatible(why) => {
                format!("{noun} and this node have no version or cipher of TLS in common: {why:?}")
            }
            Error::NoApplicationProtocol => format!("{noun} does not offer HTTP/2 in its TLS"),
            error => error.to_string(),
        }
    }

    fn certificate_refused(&self, error: &CertificateError) -> String {
        let parsed = self.certificate.and_then(|der| X509Certificate::from_der(der).ok());
        let parsed = parsed.as_ref().map(|(_, certificate)| certificate);
        match error {
            CertificateError::UnknownIssuer => {
                let by = match parsed {
                    None => String::new(),
                    Some(certificate) if certificate.issuer() == certificate.subject() => {
                        ", but by itself".to_owned()
                    }
                    Some(certificate) => format!(", but by {:?}", certificate.issuer().to_string()),
                };
                format!("its certificate is not signed by an authority{}{by}", self.trusted)
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                let names = parsed.map(names).unwrap_or_default();
                let names = if names.is_empty() { "no name".to_owned() } else { names };
                format!("its certificate is for {names} and not for {}", self.name)
            }
            CertificateError::Expired => match parsed {
                Some(certificate) => {
                    format!("its certificate has ended at {}", certificate.validity().not_after)
                }
                None => "its certificate has ended".to_owned(),
            },
            CertificateError::ExpiredContext { not_after, .. } => {
                format!("its certificate has ended at {}", time(*not_after))
            }
            CertificateError::NotValidYet => match parsed {
                Some(certificate) => {
                    let begin = certificate.validity().not_before;
                    format!("its certificate does not begin before {begin}")
                }
                None => "its certificate has not begun".to_owned(),
            },
            CertificateError::NotValidYetContext { not_before, .. } => {
                format!("its certificate does not begin before {}", time(*not_before))
            }
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                format!("its certificate is not for what {} is", self.noun)
            }
            CertificateError::BadSignature => {
                "its certificate does not fit the key that signed it".to_owned()
            }
            CertificateError::UnhandledCriticalExtension => {
                "its certificate has a critical extension that is not understood".to_owned()
            }
            CertificateError::Other(error) => match error.0.downcast_ref::<Refused>() {
                Some(refused) => format!("its certificate is not trusted: {refused}"),
                None => format!("its certificate is not understood: {error}"),
            },
            error => format!("its certificate is not understood: {error}"),
        }
    }

    /// What the other end has said before it hung up.
    fn alerted(&self, alert: AlertDescription) -> String {
        let noun = self.noun;
        match alert {
            AlertDescription::CertificateRequired => {
                format!("{noun} wants a certificate and is shown none")
            }
            AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::AccessDenied
                if !self.shows =>
            {
                format!("{noun} wants a certificate and is shown none")
            }
            AlertDescription::UnknownCA => {
                format!("{noun} does not trust the authority of our certificate")
            }
            AlertDescription::CertificateExpired => {
                format!("{noun} says that our certificate has ended or not begun")
            }
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::AccessDenied => {
                format!("{noun} does not accept our certificate: {alert:?}")
            }
            AlertDescription::ProtocolVersion
            | AlertDescription::HandshakeFailure
            | AlertDescription::InsufficientSecurity => {
                format!(
                    "{noun} and this node have no version or cipher of TLS in common: {alert:?}"
                )
            }
            AlertDescription::NoApplicationProtocol => {
                format!("{noun} does not speak HTTP/2 over TLS")
            }
            alert => format!("{noun} ended the connection: {alert:?}"),
        }
    }
}

/// What rustls has to say in an error of a socket.
pub(crate) fn rustls_error(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

/// The names that a certificate is for.
fn names(certificate: &X509Certificate<'_>) -> String {
    let alternatives = certificate.subject_alternative_name().ok().flatten();
    let alternatives = alternatives.map(|names| &names.value.general_names[..]).unwrap_or_default();
    let mut told = String::new();
    for (i, name) in alternatives.iter().take(NAMES_MAX + 1).enumerate() {
        if i > 0 {
            told.push_str(", ");
        }
        // Writing to a String cannot fail.
        match name {
            _ if i == NAMES_MAX => told.push('…'),
            GeneralName::DNSName(name) => told.push_str(&name.escape_default().to_string()),
            GeneralName::IPAddress(bytes) => match ip(bytes) {
                Some(ip) => drop(write!(told, "{ip}")),
                None => told.push('?'),
            },
            other => drop(write!(told, "{other}")),
        }
    }
    told
}

fn ip(bytes: &[u8]) -> Option<std::net::IpAddr> {
    match bytes.len() {
        4 => Some(<[u8; 4]>::try_from(bytes).ok()?.into()),
        16 => Some(<[u8; 16]>::try_from(bytes).ok()?.into()),
        _ => None,
    }
}

fn time(time: UnixTime) -> String {
    let time = std::time::UNIX_EPOCH.checked_add(std::time::Duration::from_secs(time.as_secs()));
    time.map(|time| humantime::format_rfc3339_seconds(time).to_string()).unwrap_or_default()
}
