//! Which tenant a request names: the configured header, else `THANOS-TENANT`, else the default.

use http::HeaderMap;
use http::header::HeaderName;

use crate::model::tenant::{TenantId, TenantNameError};

/// Thanos' own tenant header. It counts even when `--receive.tenant-header` names another.
pub const THANOS_TENANT_HEADER: HeaderName = HeaderName::from_static("thanos-tenant");

/// How the tenant of a request is found.
#[derive(Clone, Debug)]
pub struct TenantRules {
    header: HeaderName,
    default_tenant: TenantId,
}

impl TenantRules {
    /// `header` is `--receive.tenant-header`, `default_tenant` `--receive.default-tenant-id`.
    pub fn new(header: HeaderName, default_tenant: TenantId) -> TenantRules {
        TenantRules { header, default_tenant }
    }

    /// The name as sent, not judged yet. Of a repeated header the first counts; spaces around it
    /// are cut; an empty one counts as absent.
    pub fn name<'a>(&'a self, headers: &'a HeaderMap) -> &'a [u8] {
        let first = |header: &HeaderName| {
            let name = headers.get(header)?.as_bytes().trim_ascii();
            (!name.is_empty()).then_some(name)
        };
        first(&self.header)
            .or_else(|| first(&THANOS_TENANT_HEADER))
            .unwrap_or(self.default_tenant.as_str().as_bytes())
    }

    /// The tenant of that name, if it is one.
    pub fn id(&self, headers: &HeaderMap) -> Result<TenantId, TenantNameError> {
        TenantId::parse(self.name(headers))
    }

    /// Looked at before `THANOS-TENANT`, which always works.
    pub fn header(&self) -> &HeaderName {
        &self.header
    }

    /// Whose requests without a tenant are.
    pub fn default_tenant(&self) -> &TenantId {
        &self.default_tenant
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::from_static(name), http::HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn the_first_header_that_names_a_tenant_counts() {
        let rules = TenantRules::new(
            HeaderName::from_static("x-scope-orgid"),
            TenantId::parse(b"nobody").unwrap(),
        );
        let cases: &[(&[(&str, &str)], &str)] = &[
            (&[], "nobody"),
            (&[("x-scope-orgid", "one")], "one"),
            (&[("thanos-tenant", "two")], "two"),
            (&[("thanos-tenant", "four"), ("x-scope-orgid", "three")], "three"),
            (&[("x-scope-orgid", ""), ("thanos-tenant", "seven")], "seven"),
            (&[("x-scope-orgid", " "), ("thanos-tenant", "")], "nobody"),
            (&[("thanos-tenant", "  team-b  ")], "team-b"),
            (&[("thanos-tenant", "first"), ("thanos-tenant", "second")], "first"),
            (&[("thanos-tenant", ""), ("thanos-tenant", "second")], "nobody"),
            (&[("tenant_id", "ten")], "nobody"),
        ];
        for (pairs, name) in cases {
            let headers = headers(pairs);
            assert_eq!(rules.name(&headers), name.as_bytes(), "{pairs:?}");
            assert_eq!(rules.id(&headers).unwrap().as_str(), *name, "{pairs:?}");
        }
    }
}
