//! The identity that a verified certificate gives to its holder.
//!
//! The identity depends on the leaf, the bundle that its chain ends in, and the site's rules.
//! The rules apply in this order: the SPIFFE id, the issuer's common name, the criteria of
//! `[auth.cli_certs]`. A certificate with a `spiffe:` URI that is not a valid SVID of the
//! site's trust domain has no identity. The later, weaker rules do not apply to it.

mod external;
mod spiffe;

use x509_parser::prelude::{FromDer, X509Certificate};

pub use self::external::{CliCerts, Component, Name};
use self::spiffe::Claim;
pub use crate::auth::distinguished_name::Attribute;
use crate::auth::{
    distinguished_name::DistinguishedName,
    refusal::{Refusal, Rule},
};

/// The identity of a caller.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Identity {
    /// A service of the site.
    Service {
        /// The part of its SPIFFE path after the base path, such as `nico-api`.
        name: String,
    },
    /// A machine of the site.
    Machine {
        /// The part of its SPIFFE path after the base path.
        id: String,
    },
    /// A person. The site lists the issuer of the certificate, or the certificate meets the
    /// criteria of `[auth.cli_certs]`. nico-api calls it a Forge Admin CLI certificate.
    External {
        /// Subject O. `None` for users by `[auth.cli_certs]`, which has no setting for it.
        organization: Option<String>,
        /// Subject OU, or the attribute of `group_from`.
        group: Option<String>,
        /// Subject CN, or the name by `username_from` or `username`.
        name: Option<String>,
    },
    /// A user of this machine, at the admin socket. No certificate gives this identity.
    Local {
        /// `local:uid=` and the user id.
        name: String,
    },
}

impl Identity {
    /// `service`, `machine`, `external` or `local`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Service { .. } => "service",
            Self::Machine { .. } => "machine",
            Self::External { .. } => "external",
            Self::Local { .. } => "local",
        }
    }

    /// The name for the audit record.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Service { name } | Self::Local { name } => name,
            Self::Machine { id } => id,
            Self::External { name, .. } => name.as_deref().unwrap_or_default(),
        }
    }

    /// An external user's organization.
    #[must_use]
    pub fn organization(&self) -> Option<&str> {
        match self {
            Self::External { organization, .. } => organization.as_deref(),
            Self::Service { .. } | Self::Machine { .. } | Self::Local { .. } => None,
        }
    }

    /// An external user's group.
    #[must_use]
    pub fn group(&self) -> Option<&str> {
        match self {
            Self::External { group, .. } => group.as_deref(),
            Self::Service { .. } | Self::Machine { .. } | Self::Local { .. } => None,
        }
    }

    /// The names of the caller in a Casbin policy, in nico-api's spelling. Every caller with a
    /// certificate is also `trusted-certificate`, and no caller is `anonymous`. A user without a
    /// group has no role; nico-api would use `external-role/`. A local user has no name in a policy.
    #[must_use]
    pub fn principals(&self) -> Vec<String> {
        let own = match self {
            Self::Local { .. } => return Vec::new(),
            Self::Service { name } => Some(format!("spiffe-service-id/{name}")),
            Self::Machine { .. } => Some("spiffe-machine-id".to_owned()),
            Self::External { group, .. } => group
                .as_ref()
                .filter(|group| !group.is_empty())
                .map(|group| format!("external-role/{group}")),
        };
        own.into_iter()
            .chain(["trusted-certificate".to_owned()])
            .collect()
    }
}

/// The site's rules, from `[auth.trust]`, `[auth.cli_certs]` and `[rewrap]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustRules {
    /// `spiffe_trust_domain`: the site's trust domain.
    pub trust_domain: String,
    /// `spiffe_service_base_paths`, each with a slash at both ends.
    pub service_base_paths: Vec<String>,
    /// `spiffe_machine_base_path`, with a slash at both ends.
    pub machine_base_path: Option<String>,
    /// `additional_issuer_cns`: common names of the issuers of external users.
    pub issuer_cns: Vec<String>,
    /// `[auth.cli_certs]`: criteria for certificates of external users.
    pub cli_certs: Option<CliCerts>,
    /// `[rewrap].admin_issuers_in_root_ca`: common names of issuers. Chains of external users
    /// from these issuers need not end in the admin bundle.
    pub admin_issuers_in_root_ca: Vec<String>,
}

/// The bundle that a verified chain ends in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anchor {
    /// `admin_root_cafile_path` is not set. The chain of an external user may end in any CA.
    NoAdminBundle,
    /// `admin_root_cafile_path` is set, but its file is absent or empty. No certificate can
    /// identify an external user, unless [`TrustRules::admin_issuers_in_root_ca`] lists its issuer.
    AdminBundleMissing,
    /// The chain ends in a CA of the admin bundle. It may also end in one of `root_cafile_path`.
    Admin,
    /// The chain ends only in a CA of `root_cafile_path`. Such a certificate can't identify an
    /// external user, unless [`TrustRules::admin_issuers_in_root_ca`] lists its issuer.
    RootOnly,
}

/// The caller: the identity that the certificate gives, if any, and the fields of the
/// certificate for the audit record. A local user has no certificate: see
/// [`crate::auth::local`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Caller {
    /// The identity. `None` if no rule gives the certificate one.
    pub identity: Option<Identity>,
    /// The setting whose rule gives the identity. Empty without an identity.
    pub rule: &'static str,
    /// Why the certificate has no identity. `None` if it has one.
    pub refusal: Option<Refusal>,
    /// The serial number, in hexadecimal with colons.
    pub serial: String,
    /// The issuer's name, in the order of the certificate.
    pub issuer: String,
}

impl Caller {
    /// Reads a leaf certificate that the TLS handshake has verified, with a chain that ends in
    /// `anchor`. The caller has no identity if this parser, unlike that of rustls, does not
    /// accept the bytes as exactly one certificate.
    #[must_use]
    pub fn from_leaf(der: &[u8], anchor: Anchor, rules: &TrustRules) -> Self {
        let Ok(([], leaf)) = X509Certificate::from_der(der) else {
            let expected = "exactly one X.509 certificate";
            return Self {
                refusal: Some(Refusal::new(Rule::Certificate, "other bytes", expected)),
                ..Self::default()
            };
        };
        let (identity, refusal) = match identify(&leaf, anchor, rules) {
            Ok(identity) => (Some(identity), None),
            Err(refusal) => (None, Some(refusal)),
        };
        let rule = match &identity {
            // No certificate identifies a local user.
            None | Some(Identity::Local { .. }) => "",
            Some(Identity::Service { .. }) => "[auth.trust].spiffe_service_base_paths",
            Some(Identity::Machine { .. }) => "[auth.trust].spiffe_machine_base_path",
            Some(Identity::External { .. }) => external::rule(&leaf, rules),
        };
        Self {
            identity,
            rule,
            refusal,
            serial: leaf.raw_serial_as_string(),
            issuer: DistinguishedName::new(leaf.issuer()).to_string(),
        }
    }

    /// The serial number and the issuer of the certificate. `None` for a local user, and if the
    /// certificate cannot be read.
    #[must_use]
    pub fn certificate(&self) -> Option<(&str, &str)> {
        (!self.serial.is_empty()).then_some((&self.serial, &self.issuer))
    }

    /// The kind of the identity, or `none`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        self.identity.as_ref().map_or("none", Identity::kind)
    }
}

fn identify(
    leaf: &X509Certificate<'_>,
    anchor: Anchor,
    rules: &TrustRules,
) -> Result<Identity, Refusal> {
    match spiffe::claim(leaf) {
        Claim::None => external::identify(leaf, anchor, rules),
        Claim::Invalid(refusal) => Err(refusal),
        Claim::Id(uri) => spiffe::identify(uri, rules),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn principals_equal_those_of_nico_api_and_are_never_anonymous() {
        let external = |group: Option<&str>| Identity::External {
            organization: Some("Acme".to_owned()),
            group: group.map(str::to_owned),
            name: Some("anonymous".to_owned()),
        };
        let service = Identity::Service {
            name: "nico-api".to_owned(),
        };
        let machine = Identity::Machine {
            id: "m1".to_owned(),
        };
        for (identity, own) in [
            (service, Some("spiffe-service-id/nico-api")),
            (machine, Some("spiffe-machine-id")),
            (
                external(Some("site-admins")),
                Some("external-role/site-admins"),
            ),
            (external(Some("")), None),
            (external(None), None),
        ] {
            let expected: Vec<_> = own.into_iter().chain(["trusted-certificate"]).collect();
            assert_eq!(identity.principals(), expected);
        }
    }
}
