//! The public key of a certificate, which is all of it that has to be understood to know who shows
//! it. So it is taken from its place without a look at the rest.

use rustls::pki_types::{SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer};

use crate::tls::verify::Refused;

/// Shorter RSA keys are not known to the library that computes with them.
pub(crate) const RSA_BITS_MIN: usize = 2048;

/// What the algorithm of RSA keys is called: 1.2.840.113549.1.1.1.
const RSA: &[u8] = &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];

/// Tags of DER.
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;

/// What a certificate is signed with, taken from its place likewise.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Signed<'a> {
    pub(crate) message: &'a [u8],
    /// What the algorithm's sequence holds.
    pub(crate) algorithm: &'a [u8],
    pub(crate) signature: &'a [u8],
}

impl<'a> Signed<'a> {
    /// `None` for what is no certificate, or has another algorithm without than within.
    pub(crate) fn of_certificate(der: &'a [u8]) -> Option<Signed<'a>> {
        let mut certificate = Der(Der(der).take(SEQUENCE)?.content);
        let Element { whole, content } = certificate.take(SEQUENCE)?;
        let algorithm = certificate.take(SEQUENCE)?.content;
        let signature = certificate.take(BIT_STRING)?.content.strip_prefix(&[0])?;
        let mut signed = Der(content);
        if signed.0.first() == Some(&VERSION) {
            signed.take(VERSION)?;
        }
        signed.take(INTEGER)?;
        let is_whole = signed.take(SEQUENCE)?.content == algorithm && certificate.0.is_empty();
        is_whole.then_some(Signed { message: whole, algorithm, signature })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PublicKey<'a> {
    /// With its algorithm.
    whole: &'a [u8],
    /// What the algorithm's sequence holds.
    algorithm: &'a [u8],
    bits: &'a [u8],
}

impl<'a> PublicKey<'a> {
    /// `None` for what is no certificate.
    pub(crate) fn of_certificate(der: &'a [u8]) -> Option<PublicKey<'a>> {
        let mut certificate = Der(Der(der).take(SEQUENCE)?.content);
        let mut signed = Der(certificate.take(SEQUENCE)?.content);
        if signed.0.first() == Some(&VERSION) {
            signed.take(VERSION)?;
        }
        // Serial number, the signature's algorithm, issuer, validity, subject.
        for tag in [INTEGER, SEQUENCE, SEQUENCE, SEQUENCE, SEQUENCE] {
            signed.take(tag)?;
        }
        PublicKey::of_parts(signed.take(SEQUENCE)?)
    }

    fn of_parts(Element { whole, content }: Element<'a>) -> Option<PublicKey<'a>> {
        let mut parts = Der(content);
        let algorithm = parts.take(SEQUENCE)?.content;
        // The first byte tells how many bits of the last are unused.
        let bits = parts.take(BIT_STRING)?.content.strip_prefix(&[0])?;
        Some(PublicKey { whole, algorithm, bits })
    }

    /// How long it is, if it is one of RSA.
    pub(crate) fn rsa_bits(&self) -> Option<usize> {
        if !self.algorithm.starts_with(RSA) {
            return None;
        }
        let mut numbers = Der(Der(self.bits).take(SEQUENCE)?.content);
        bits_of(numbers.take(INTEGER)?.content)
    }

    /// Whether it has made a signature by one of the algorithms.
    pub(crate) fn check(
        &self,
        algorithms: impl IntoIterator<Item = &'static dyn SignatureVerificationAlgorithm>,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), Refused> {
        self.check_length()?;
        let mut algorithms = algorithms.into_iter();
        let algorithm = algorithms.find(|algorithm| {
            let of_key = algorithm.public_key_alg_id();
            of_key.as_ref() == self.algorithm
        });
        let algorithm = algorithm.ok_or(Refused::Algorithm)?;
        algorithm.verify_signature(self.bits, message, signature).map_err(|_| Refused::Signature)
    }

    /// Refuses what the library does not compute with.
    pub(crate) fn check_length(&self) -> Result<(), Refused> {
        match self.rsa_bits() {
            Some(bits) if bits < RSA_BITS_MIN => Err(Refused::ShortKey(bits)),
            _ => Ok(()),
        }
    }

    /// Whether it is that of a private key, of which this is the public one.
    pub(crate) fn is(&self, other: &SubjectPublicKeyInfoDer<'_>) -> bool {
        let other = Der(other).take(SEQUENCE).and_then(PublicKey::of_parts);
        other.is_some_and(|other| other.bits == self.bits)
    }

    pub(crate) fn to_der(&self) -> SubjectPublicKeyInfoDer<'a> {
        SubjectPublicKeyInfoDer::from(self.whole)
    }
}

/// How long a private key of RSA is, in whichever form: `PKCS #1`, or `PKCS #8` around it.
pub(crate) fn rsa_bits_of_private(der: &[u8]) -> Option<usize> {
    let mut key = Der(Der(der).take(SEQUENCE)?.content);
    // The form's version.
    key.take(INTEGER)?;
    if key.0.first() == Some(&INTEGER) {
        return bits_of(key.take(INTEGER)?.content);
    }
    let algorithm = key.take(SEQUENCE)?.content;
    match algorithm.starts_with(RSA) {
        true => rsa_bits_of_private(key.take(OCTET_STRING)?.content),
        false => None,
    }
}

fn bits_of(number: &[u8]) -> Option<usize> {
    let first = number.iter().position(|byte| *byte != 0)?;
    let zeros = number.get(first)?.leading_zeros() as usize;
    Some((number.len() - first) * 8 - zeros)
}

/// A reader of DER.
struct Der<'a>(&'a [u8]);

struct Element<'a> {
    /// With tag and length.
    whole: &'a [u8],
    content: &'a [u8],
}

impl<'a> Der<'a> {
    /// The next element, if it has this tag.
    fn take(&mut self, tag: u8) -> Option<Element<'a>> {
        let (head, rest) = self.0.split_at_checked(2)?;
        if *head.first()? != tag {
            return None;
        }
        let (len, behind) = match *head.get(1)? {
            len @ 0..=0x7f => (usize::from(len), rest),
            // Four bytes of length are far more than anybody reads.
            len @ 0x81..=0x84 => {
                let (bytes, behind) = rest.split_at_checked(usize::from(len & 0x7f))?;
                (bytes.iter().fold(0, |len, byte| len << 8 | usize::from(*byte)), behind)
            }
            _ => return None,
        };
        let (content, behind) = behind.split_at_checked(len)?;
        let whole = self.0.get(..self.0.len() - behind.len())?;
        self.0 = behind;
        Some(Element { whole, content })
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, PublicKeyData as _};

    use super::*;

    #[test]
    fn a_key_is_found_in_its_place_and_nowhere_else() {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["a".to_owned()]).unwrap().self_signed(&key);
        let der = certificate.unwrap().der().to_vec();
        let found = PublicKey::of_certificate(&der).unwrap();
        assert_eq!(found.whole, key.subject_public_key_info());
        assert!(found.is(&found.to_der()));
        assert_eq!(found.rsa_bits(), None);
        assert_eq!(rsa_bits_of_private(&key.serialize_der()), None);
        for len in 0..der.len() {
            // What is cut within the key, or lies about its length, has none.
            let _ = PublicKey::of_certificate(&der[..len]);
            let mut changed = der.clone();
            changed[len] = 0xff;
            let _ = PublicKey::of_certificate(&changed);
        }
        assert_eq!(PublicKey::of_certificate(&der[..der.len() - 1]), None);
    }
}
