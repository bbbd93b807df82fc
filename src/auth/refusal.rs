//! Why a caller is refused: the rule that refused it, the value that the rule saw, and the value
//! that the rule expected. The log and the audit record have all three. The client gets only the
//! reason.

use super::distinguished_name::is_deceptive;

/// Length limit of a text, in characters. A certificate can contain texts of any length.
const MAX_TEXT: usize = 512;

/// The rule that refused a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rule {
    /// The bytes are not exactly one certificate.
    Certificate,
    /// The certificate has a `spiffe:` URI but is not a valid X.509-SVID.
    Svid,
    /// The SPIFFE id belongs to another trust domain.
    TrustDomain,
    /// The path of the SPIFFE id is below no base path.
    BasePath,
    /// Neither the issuer nor the criteria match.
    ExternalUser,
    /// The chain of an external user does not end in the admin bundle.
    AdminBundle,
    /// The admin bundle is configured, but its file is absent or empty.
    AdminBundleMissing,
    /// The identity is neither an external user nor a listed service.
    AllowedServices,
    /// The Casbin policy denies the call.
    CasbinPolicy,
    /// The admin socket may not start an apply.
    SocketMayApply,
}

impl Rule {
    /// The setting that holds the rule, for the log and the audit record.
    #[must_use]
    pub fn setting(self) -> &'static str {
        match self {
            Self::Certificate => "X.509 certificate",
            Self::Svid => "X.509-SVID",
            Self::TrustDomain => "[auth.trust].spiffe_trust_domain",
            Self::BasePath => "[auth.trust].spiffe_service_base_paths and spiffe_machine_base_path",
            Self::ExternalUser => "[auth.trust].additional_issuer_cns and [auth.cli_certs]",
            Self::AdminBundle | Self::AdminBundleMissing => "[tls].admin_root_cafile_path",
            Self::AllowedServices => "[rewrap].allowed_services",
            Self::CasbinPolicy => "[auth].casbin_policy_file",
            Self::SocketMayApply => "[rewrap].admin_socket_may_apply",
        }
    }
}

/// A rule that refused a caller, with its reason.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Refusal {
    /// The rule.
    pub rule: Rule,
    /// The value that the rule saw.
    pub seen: String,
    /// The value that the rule expected.
    pub expected: String,
}

impl Refusal {
    pub(super) fn new(rule: Rule, seen: &str, expected: &str) -> Self {
        Self {
            rule,
            seen: printable(seen),
            expected: printable(expected),
        }
    }
}

/// The text without characters that could disguise a log line, and with limited length. A
/// certificate can contain any text.
fn printable(text: &str) -> String {
    let character = |c: char| if is_deceptive(c) { '?' } else { c };
    text.chars().take(MAX_TEXT).map(character).collect()
}

/// The items with quotes around each, for a [`Refusal`].
pub(super) fn quoted<'a>(items: impl IntoIterator<Item = &'a str>) -> String {
    let items: Vec<_> = items
        .into_iter()
        .map(|item| format!("\"{item}\""))
        .collect();
    if items.is_empty() {
        "nothing".to_owned()
    } else {
        items.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_a_certificate_are_cut_and_disguise_no_line() {
        let refusal = Refusal::new(Rule::Svid, "a\nb\u{9b}\u{202e}", &"x".repeat(1000));
        assert_eq!(refusal.seen, "a?b??");
        assert_eq!(refusal.expected.len(), MAX_TEXT);
    }
}
