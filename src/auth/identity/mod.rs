//! Who a verified certificate says its holder is.
//!
//! A pure function of the leaf and the site's rules, tried in this order: the SPIFFE
//! id, then the issuer's common name, then the criteria of `[auth.cli_certs]`. A
//! certificate that carries a `spiffe:` URI and is not a valid SVID of the site's
//! trust domain has no identity; it does not fall through to the laxer rules.

mod external;
mod spiffe;

use x509_parser::prelude::{FromDer, X509Certificate};

pub use self::external::{CliCerts, Component, Name};
use self::spiffe::Claim;
pub use crate::auth::distinguished_name::Attribute;
use crate::auth::distinguished_name::DistinguishedName;

/// Who calls, as far as a certificate tells.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Identity {
    /// A service of the site, by the rest of its SPIFFE path.
    Service {
        /// `nico-api`, for example.
        name: String,
    },
    /// A machine of the site.
    Machine {
        /// The rest of its SPIFFE path.
        id: String,
    },
    /// A person, by a certificate of an issuer that the site lists or that meets its
    /// criteria: what nico-api calls a Forge Admin CLI certificate.
    External {
        /// Subject O; none by `[auth.cli_certs]`, which has no word for it.
        organization: Option<String>,
        /// Subject OU, or what `group_from` says.
        group: Option<String>,
        /// Subject CN, or what `username_from` or `username` says.
        name: Option<String>,
    },
}

impl Identity {
    /// `service`, `machine` or `external`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Service { .. } => "service",
            Self::Machine { .. } => "machine",
            Self::External { .. } => "external",
        }
    }

    /// The name that stands in the audit record.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Service { name } => name,
            Self::Machine { id } => id,
            Self::External { name, .. } => name.as_deref().unwrap_or_default(),
        }
    }

    /// An external user's organization.
    #[must_use]
    pub fn organization(&self) -> Option<&str> {
        match self {
            Self::External { organization, .. } => organization.as_deref(),
            Self::Service { .. } | Self::Machine { .. } => None,
        }
    }

    /// An external user's group.
    #[must_use]
    pub fn group(&self) -> Option<&str> {
        match self {
            Self::External { group, .. } => group.as_deref(),
            Self::Service { .. } | Self::Machine { .. } => None,
        }
    }

    /// What the holder is called in a Casbin policy, as nico-api spells it. Who has a
    /// verified certificate is that, too; nobody here is `anonymous`. A user without
    /// a group has no role, where nico-api would look for `external-role/`.
    #[must_use]
    pub fn principals(&self) -> Vec<String> {
        let own = match self {
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
    /// `spiffe_trust_domain`.
    pub trust_domain: String,
    /// `spiffe_service_base_paths`, each with a slash at both ends.
    pub service_base_paths: Vec<String>,
    /// `spiffe_machine_base_path`, likewise.
    pub machine_base_path: Option<String>,
    /// `additional_issuer_cns`.
    pub issuer_cns: Vec<String>,
    /// `[auth.cli_certs]`.
    pub cli_certs: Option<CliCerts>,
    /// `[rewrap].admin_issuers_in_root_ca`: issuer CNs whose external users need not
    /// chain to the admin bundle.
    pub admin_issuers_in_root_ca: Vec<String>,
}

/// Which of the site's bundles a verified chain ends in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anchor {
    /// The site has no admin bundle: an external user is bound to nothing.
    NoAdminBundle,
    /// A CA of the admin bundle, whether or not one of `root_cafile_path` does too.
    Admin,
    /// Only CAs of `root_cafile_path`, which makes no external user, unless
    /// [`TrustRules::admin_issuers_in_root_ca`] lists the issuer.
    RootOnly,
}

/// A caller's certificate: what of it goes into the audit record, and the identity
/// that it gives, if any.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Caller {
    /// Who it is; `None` when no rule gives the certificate an identity.
    pub identity: Option<Identity>,
    /// Serial number, hexadecimal with colons.
    pub serial: String,
    /// Issuer, in the order of the certificate.
    pub issuer: String,
}

impl Caller {
    /// Reads a leaf certificate that the TLS handshake has verified, with a chain that
    /// ends in `anchor`. Whatever is not exactly one certificate is nobody's: it
    /// passed rustls' own parser, but not this one.
    #[must_use]
    pub fn from_leaf(der: &[u8], anchor: Anchor, rules: &TrustRules) -> Self {
        match X509Certificate::from_der(der) {
            Ok(([], leaf)) => Self {
                identity: identify(&leaf, anchor, rules),
                serial: leaf.raw_serial_as_string(),
                issuer: DistinguishedName::new(leaf.issuer()).to_string(),
            },
            _ => Self::default(),
        }
    }

    /// The kind of the identity, or `none`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        self.identity.as_ref().map_or("none", Identity::kind)
    }
}

fn identify(leaf: &X509Certificate<'_>, anchor: Anchor, rules: &TrustRules) -> Option<Identity> {
    match spiffe::claim(leaf) {
        Claim::None => external::identify(leaf, anchor, rules),
        Claim::Invalid => None,
        Claim::Id(uri) => spiffe::identify(uri, rules),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn principals_are_those_of_nico_api_and_never_anonymous() {
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
