//! Who a write belongs to.

use http::HeaderName;

use crate::config::error::ConfigError;
use crate::config::settings::Settings;
use crate::http::tenant::{THANOS_TENANT_HEADER, TenantRules};
use crate::model::tenant::TenantId;

/// Who a write belongs to.
#[derive(Clone, Debug)]
pub struct TenancyConfig {
    pub tenants: TenantRules,
    pub tenant_label_name: String,
    pub replica_header: HeaderName,
    pub tenants_max: usize,
}

impl TenancyConfig {
    pub(super) fn of(settings: &mut Settings<'_>) -> Option<TenancyConfig> {
        let tenant_header = match settings.values.text("receive.tenant-header").as_str() {
            "" => Some(THANOS_TENANT_HEADER),
            _ => settings.header_name("receive.tenant-header"),
        };
        let default_tenant = settings.values.text("receive.default-tenant-id");
        let default_tenant = settings.check(TenantId::parse(default_tenant.as_bytes()));
        let name = settings.values.text("receive.tenant-label-name");
        let tenant_label_name =
            settings.require(!name.is_empty(), name, ConfigError::TenantLabelName);
        let replica_header = settings.header_name("receive.replica-header");
        let tenants_max = settings.positive_count("receive.tenants-max");
        Some(TenancyConfig {
            tenants: TenantRules::new(tenant_header?, default_tenant?),
            tenant_label_name: tenant_label_name?,
            replica_header: replica_header?,
            tenants_max: tenants_max?,
        })
    }
}
