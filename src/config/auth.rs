//! Reads the authentication and authorization settings: `[auth]`, and the related
//! settings of `[rewrap]`.

use std::{path::Path, sync::Arc};

use super::settings::Settings;
use crate::{
    auth::{
        authorize::Policy,
        casbin_policy::CasbinPolicy,
        identity::{Attribute, CliCerts, Component, Name, TrustRules},
    },
    regular_file,
};

/// Size limit in bytes, far above any policy written by hand.
const MAX_POLICY_BYTES: u64 = 16 << 20;

/// Reads `[auth.trust]` and `[auth.cli_certs]`.
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
        settings.problem(
            DOMAIN,
            "must be lower-case letters, digits, dots, dashes and underscores, like \"nico.local\"",
        );
    }
    let service_base_paths = settings.non_empty_list("auth.trust.spiffe_service_base_paths");
    let machine_base_path = settings.non_empty_string("auth.trust.spiffe_machine_base_path");
    let issuer_cns = settings.non_empty_list("auth.trust.additional_issuer_cns");
    let cli_certs = cli_certs(settings);
    Some(TrustRules {
        trust_domain: domain?,
        service_base_paths: service_base_paths
            .iter()
            .map(|path| with_slashes(path))
            .collect(),
        machine_base_path: machine_base_path.map(|path| with_slashes(&path)),
        issuer_cns,
        cli_certs,
        admin_issuers_in_root_ca: settings.non_empty_list("rewrap.admin_issuers_in_root_ca"),
    })
}

/// Reads which identities may re-wrap.
pub(super) fn policy(settings: &mut Settings, warnings: &mut Vec<String>) -> Policy {
    let permissive = settings.bool_or(PERMISSIVE, false);
    if permissive {
        warnings.push(format!(
            "{}: [auth].permissive_mode is true: calls that the Casbin policy denies are allowed; \
             set it to false once the policy is correct",
            settings.source(PERMISSIVE)
        ));
    }
    let local_may_apply = settings.bool(LOCAL_MAY_APPLY);
    if local_may_apply && !settings.is_set("rewrap.admin_socket") {
        warnings.push(format!(
            "{}: [rewrap].admin_socket_may_apply is true, but there is no admin socket; set \
             [rewrap].admin_socket, or remove this setting",
            settings.source(LOCAL_MAY_APPLY)
        ));
    }
    Policy {
        allowed_services: allowed_services(settings),
        casbin: casbin_policy(settings, warnings).map(Arc::new),
        permissive,
        local_may_apply,
    }
}

fn allowed_services(settings: &mut Settings) -> Vec<String> {
    const ALLOWED: &str = "rewrap.allowed_services";
    let names = settings.list(ALLOWED).unwrap_or_default();
    // SPIFFE-ID, section 2.2: a certificate cannot contain any other character.
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-._/".contains(c);
    if names
        .iter()
        .any(|name| name.is_empty() || !name.chars().all(allowed))
    {
        settings.problem(
            ALLOWED,
            "has an entry that is not a service name: write the part of the SPIFFE id after the \
             base path, like \"nico-api\"",
        );
    }
    names
}

const LOCAL_MAY_APPLY: &str = "rewrap.admin_socket_may_apply";
const PERMISSIVE: &str = "auth.permissive_mode";
const POLICY_FILE: &str = "auth.casbin_policy_file";

fn casbin_policy(settings: &mut Settings, warnings: &mut Vec<String>) -> Option<CasbinPolicy> {
    let path = settings.non_empty_string(POLICY_FILE)?;
    let text = match regular_file::read_text(Path::new(&path), MAX_POLICY_BYTES) {
        Ok(text) => text,
        Err(error) => {
            settings.problem(
                POLICY_FILE,
                format!("{path} can't be read ({error}): correct the path or the file"),
            );
            return None;
        }
    };
    match CasbinPolicy::parse(&text) {
        Ok(policy) => {
            if policy.allows_nothing() {
                warnings.push(format!(
                    "{}: [auth].casbin_policy_file: {path} has no \"p\" rule, so the policy denies \
                     every call; add a rule",
                    settings.source(POLICY_FILE)
                ));
            }
            Some(policy)
        }
        Err(problems) => {
            for problem in problems {
                settings.problem(POLICY_FILE, format!("{path} {problem}"));
            }
            None
        }
    }
}

const CLI_CERTS: &str = "auth.cli_certs";
const REQUIRED: &str = "auth.cli_certs.required_equals";

/// Reads `[auth.cli_certs]`, which decides who is an administrator. An unknown key is a
/// problem: ignoring a misspelled restriction would admit more administrators.
fn cli_certs(settings: &mut Settings) -> Option<CliCerts> {
    const KNOWN: [&str; 4] = ["group_from", "required_equals", "username", "username_from"];
    for key in settings.keys(CLI_CERTS)? {
        if !KNOWN.contains(&key.as_str()) {
            settings.problem(
                &format!("{CLI_CERTS}.{key}"),
                format!("no such setting; use one of {}", KNOWN.join(", ")),
            );
        }
    }
    Some(CliCerts {
        required_equals: required_equals(settings),
        group_from: subject_attribute(settings, "auth.cli_certs.group_from"),
        username_from: subject_attribute(settings, "auth.cli_certs.username_from"),
        username: settings.non_empty_string("auth.cli_certs.username"),
    })
}

fn required_equals(settings: &mut Settings) -> Vec<(Component, String)> {
    let keys = if settings.is_set(REQUIRED) {
        settings.keys(REQUIRED)
    } else {
        Some(Vec::new())
    };
    if keys.as_ref().is_some_and(Vec::is_empty) {
        settings.missing(
            REQUIRED,
            "is missing or empty, so every client certificate would be an administrator's; set it, \
             like { IssuerCN = \"Site Admin CA\" }, or remove [auth.cli_certs]",
        );
    }
    let mut required = Vec::new();
    for key in keys.unwrap_or_default() {
        let setting = format!("{REQUIRED}.{key}");
        let Some(component) = Component::parse(&key) else {
            settings.problem(&setting, format!("no such component; {}", components(true)));
            continue;
        };
        let what_to_do = "set it to the value that the certificate must have";
        if let Some(value) = settings.required_string(&setting, what_to_do) {
            required.push((component, value));
        }
    }
    required
}

/// Reads a component of the subject. nico-api also accepts a component of the issuer
/// here, but never finds it in a certificate.
fn subject_attribute(settings: &mut Settings, key: &str) -> Option<Attribute> {
    let display_key = settings.non_empty_string(key)?;
    match Component::parse(&display_key) {
        Some(Component {
            name: Name::Subject,
            attribute,
        }) => Some(attribute),
        _ => {
            settings.problem(
                key,
                format!("must be a component of the subject; {}", components(false)),
            );
            None
        }
    }
}

fn components(with_issuer: bool) -> String {
    let display_key: Vec<_> = Component::ALL
        .iter()
        .filter(|(_, component)| with_issuer || component.name == Name::Subject)
        .map(|(display_key, _)| *display_key)
        .collect();
    format!("use one of {}", display_key.join(", "))
}

/// Returns the trust domain alone. Like nico-api, this accepts a full SPIFFE id.
fn bare_trust_domain(setting: &str) -> &str {
    let rest = setting.strip_prefix("spiffe://").unwrap_or(setting);
    rest.split('/').next().unwrap_or(rest)
}

/// SPIFFE-ID, section 2.1. No certificate could match any other text.
fn is_trust_domain(domain: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
    (1..=255).contains(&domain.len()) && domain.bytes().all(allowed)
}

/// Adds the slashes that make a base path match whole segments only.
fn with_slashes(path: &str) -> String {
    match path.trim_matches('/') {
        "" => "/".to_owned(),
        segments => format!("/{segments}/"),
    }
}
