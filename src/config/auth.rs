//! Who may call: `[auth]` of the site config, and what `[rewrap]` adds to it.

use super::settings::Settings;
use crate::{authorize::Policy, identity::TrustRules};

/// Reads `[auth.trust]`.
pub(super) fn trust(settings: &mut Settings) -> Option<TrustRules> {
    const DOMAIN: &str = "auth.trust.spiffe_trust_domain";
    let domain = settings.required_string(
        DOMAIN,
        "set it to the site's SPIFFE trust domain, like \"nico.local\"",
    );
    let domain = domain.map(|domain| bare_trust_domain(&domain).to_owned());
    if domain
        .as_ref()
        .is_some_and(|domain| !is_trust_domain(domain))
    {
        settings.fault(
            DOMAIN,
            "must be lower-case letters, digits, dots, dashes and underscores, like \"nico.local\"",
        );
    }
    let service_base_paths = settings.filled_list("auth.trust.spiffe_service_base_paths");
    let machine_base_path = settings.filled_string("auth.trust.spiffe_machine_base_path");
    let issuer_cns = settings.filled_list("auth.trust.additional_issuer_cns");
    Some(TrustRules {
        trust_domain: domain?,
        service_base_paths: service_base_paths
            .iter()
            .map(|path| with_slashes(path))
            .collect(),
        machine_base_path: machine_base_path.map(|path| with_slashes(&path)),
        issuer_cns,
    })
}

/// Reads who may re-wrap.
pub(super) fn policy(settings: &mut Settings) -> Policy {
    Policy {
        allowed_services: settings
            .list("rewrap.allowed_services")
            .unwrap_or_else(|| vec!["nico-api".to_owned(), "carbide-api".to_owned()]),
    }
}

/// The setting may be spelled as a SPIFFE id, as nico-api allows.
fn bare_trust_domain(setting: &str) -> &str {
    let rest = setting.strip_prefix("spiffe://").unwrap_or(setting);
    rest.split('/').next().unwrap_or(rest)
}

/// SPIFFE-ID, section 2.1. Another one would be matched by no certificate at all.
fn is_trust_domain(domain: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
    (1..=255).contains(&domain.len()) && domain.bytes().all(allowed)
}

/// A base path ends where a segment ends, whether or not it is spelled so.
fn with_slashes(path: &str) -> String {
    match path.trim_matches('/') {
        "" => "/".to_owned(),
        segments => format!("/{segments}/"),
    }
}
