//! Policies along a chain: RFC 5280, section 6.1, as RFC 9618 changes it.
//!
//! Nobody here asks for a policy. They matter where an authority requires that those below it have
//! one: then the policies that are valid for all of the chain must not be none.

use std::collections::{HashMap, HashSet};

use x509_parser::oid_registry::{OID_X509_EXT_CERTIFICATE_POLICIES, Oid};

use crate::tls::verify::certificate::Certificate;

/// Policies that are valid down to a certificate, and those that one below may name for each.
type Valid<'c> = HashMap<&'c [u8], HashSet<&'c [u8]>>;

/// `anyPolicy`, the first below the extension's own number.
const ANY: &[u8] = &[0x55, 0x1d, 0x20, 0x00];

fn bytes<'c>(oid: &'c Oid<'_>) -> &'c [u8] {
    oid.as_bytes()
}

/// Whether the chain, from the leaf to the authority that is trusted, has what it requires.
pub(super) fn are_valid(chain: &[&Certificate<'_>]) -> bool {
    debug_assert_eq!(&ANY[..3], OID_X509_EXT_CERTIFICATE_POLICIES.as_bytes());
    let Some((_, below)) = chain.split_last() else { return true };
    if below.is_empty() {
        return true;
    }
    let mut valid: Option<Valid<'_>> = Some(HashMap::from([(ANY, HashSet::from([ANY]))]));
    // Certificates until a policy is required, and neither mapping nor any is allowed.
    let [mut explicit, mut mapping, mut any] = [below.len() + 1; 3];
    for (i, certificate) in below.iter().enumerate().rev() {
        let is_leaf = i == 0;
        let policies = &certificate.policies;
        if policies.named.is_empty() {
            valid = None;
        }
        if explicit == 0 && valid.is_none() {
            return false;
        }
        if let Some(above) = &valid {
            let allows_any = any > 0 || (!is_leaf && certificate.is_self_issued());
            let mut named = named_below(above, certificate, allows_any);
            if !is_leaf {
                let is_any = |(of, to): &(Oid<'_>, Oid<'_>)| bytes(of) == ANY || bytes(to) == ANY;
                if mapping > 0 && policies.mapped.iter().any(is_any) {
                    return false;
                }
                map(&mut named, certificate, mapping > 0);
            }
            valid = Some(named);
        }
        if !is_leaf {
            if !certificate.is_self_issued() {
                for left in [&mut explicit, &mut mapping, &mut any] {
                    *left = left.saturating_sub(1);
                }
            }
            let limit = |left: &mut usize, after: Option<u32>| {
                *left = after.map_or(*left, |after| (*left).min(after as usize));
            };
            limit(&mut explicit, policies.required_after);
            limit(&mut mapping, policies.mapping_inhibited_after);
            limit(&mut any, policies.any_inhibited_after);
        }
    }
    let requires = |leaf: &&Certificate<'_>| leaf.policies.required_after == Some(0);
    let is_required = explicit.saturating_sub(1) == 0 || below.first().is_some_and(requires);
    !is_required || valid.is_some_and(|valid| !valid.is_empty())
}

/// Which of the policies that are valid above a certificate names, too.
fn named_below<'c>(
    above: &Valid<'c>,
    certificate: &'c Certificate<'_>,
    allows_any: bool,
) -> Valid<'c> {
    let mut found = Valid::new();
    let is_expected = |policy| above.values().any(|expected| expected.contains(policy));
    let named: HashSet<&[u8]> = certificate.policies.named.iter().map(bytes).collect();
    for policy in named.iter().copied().filter(|policy| *policy != ANY) {
        if is_expected(policy) || above.contains_key(ANY) {
            found.insert(policy, HashSet::from([policy]));
        }
    }
    if named.contains(ANY) && allows_any {
        for policy in above.values().flatten().copied() {
            found.entry(policy).or_insert_with(|| HashSet::from([policy]));
        }
    }
    found
}

/// Has those below know policies by the names that a certificate maps them to, or by none.
fn map<'c>(valid: &mut Valid<'c>, certificate: &'c Certificate<'_>, is_allowed: bool) {
    let mut mapped: HashMap<&[u8], HashSet<&[u8]>> = HashMap::new();
    for (of_issuer, of_subject) in &certificate.policies.mapped {
        if is_allowed {
            mapped.entry(bytes(of_issuer)).or_default().insert(bytes(of_subject));
        } else {
            valid.remove(bytes(of_issuer));
        }
    }
    for (of_issuer, of_subject) in mapped {
        if valid.contains_key(of_issuer) || valid.contains_key(ANY) {
            valid.insert(of_issuer, of_subject);
        }
    }
}
