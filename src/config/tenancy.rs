//! Who a write belongs to.

use http::HeaderName;

use crate::config::error::ConfigError;
use crate::config::settings::Settings;
use crate::model::tenant::TenantId;

/// Who a write belongs to.
#[derive(Clone, Debug)]
pub struct TenancyConfig {
    /// Looked at before `THANOS-TENANT`, which always works.
    pub tenant_header: HeaderName,
    pub default_tenant: TenantId,
    pub tenant_label_name: String,
    pub replica_header: HeaderName,
    pub tenants_max: usize,
}

/// The header that counts whatever the flag says.
const THANOS_TENANT: HeaderName = HeaderName::from_static("thanos-tenant");

impl TenancyConfig {
    pub(super) fn of(settings: &mut Settings<'_>) -> Option<TenancyConfig> {
        let tenant_header = match settings.values.text("receive.tenant-header").as_str() {
            "" => Some(THANOS_TENANT),
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
            tenant_header: tenant_header?,
            default_tenant: default_tenant?,
            tenant_label_name: tenant_label_name?,
            replica_header: replica_header?,
            tenants_max: tenants_max?,
        })
    }
}
