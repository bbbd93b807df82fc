//! Who a verified certificate says its holder is.
//!
//! A pure function of the leaf and the site's trust rules, tried in this order:
//! the SPIFFE id (SPIFFE X.509-SVID, sections 2 to 5), then the issuer's common
//! name. A certificate that carries a `spiffe:` URI and is not a valid SVID of
//! the site's trust domain has no identity; it does not fall through to the laxer
//! rule.

use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer, X509Certificate},
};

use crate::distinguished_name::{Attribute, DistinguishedName};

/// Who calls, as far as a certificate tells.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// A person, by a certificate of an issuer that the site lists: what nico-api
    /// calls a Forge Admin CLI certificate.
    External {
        /// Subject O.
        organization: Option<String>,
        /// Subject OU.
        group: Option<String>,
        /// Subject CN.
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
}

/// The site's rules, from `[auth.trust]`.
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
}

/// Which of the site's bundles a verified chain ends in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anchor {
    /// The site has no admin bundle: an external user is bound to nothing.
    NoAdminBundle,
    /// A CA of the admin bundle, whether or not one of `root_cafile_path` does too.
    Admin,
    /// Only CAs of `root_cafile_path`, which makes no external user.
    RootOnly,
}

/// A caller's certificate: what of it goes into the audit record, and the identity
/// that it gives, if any.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// ends in `anchor`.
    #[must_use]
    pub fn from_leaf(der: &[u8], anchor: Anchor, rules: &TrustRules) -> Self {
        match X509Certificate::from_der(der) {
            Ok((_, leaf)) => Self {
                identity: identify(&leaf, anchor, rules),
                serial: leaf.raw_serial_as_string(),
                issuer: DistinguishedName::new(leaf.issuer()).to_string(),
            },
            // It passed rustls' own parser; still, what can't be read is nobody.
            Err(_) => Self {
                identity: None,
                serial: String::new(),
                issuer: String::new(),
            },
        }
    }
}

fn identify(leaf: &X509Certificate<'_>, anchor: Anchor, rules: &TrustRules) -> Option<Identity> {
    match spiffe_claim(leaf) {
        SpiffeClaim::None if anchor == Anchor::RootOnly => None,
        SpiffeClaim::None => external(leaf, rules),
        SpiffeClaim::Invalid => None,
        SpiffeClaim::Id(uri) => spiffe_identity(uri, rules),
    }
}

enum SpiffeClaim<'a> {
    /// The certificate says nothing of SPIFFE.
    None,
    /// It does, and is no valid X.509-SVID.
    Invalid,
    Id(&'a str),
}

/// X.509-SVID section 2 (exactly one URI SAN), 4.1 (a leaf is no CA) and 4.3 (no
/// keyCertSign, no cRLSign).
fn spiffe_claim<'a>(leaf: &'a X509Certificate<'_>) -> SpiffeClaim<'a> {
    // `Err`: the extension is there twice, or can't be read.
    let Ok(names) = leaf.subject_alternative_name() else {
        return SpiffeClaim::Invalid;
    };
    let uris: Vec<&str> = names
        .iter()
        .flat_map(|names| &names.value.general_names)
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect();
    // A name that can't be read might be the one that matters.
    let unreadable = names
        .iter()
        .flat_map(|names| &names.value.general_names)
        .any(|name| matches!(name, GeneralName::Invalid(..)));
    if unreadable {
        return SpiffeClaim::Invalid;
    }
    if !uris.iter().any(|uri| has_spiffe_scheme(uri)) {
        return SpiffeClaim::None;
    }
    let is_leaf = leaf
        .basic_constraints()
        .is_ok_and(|found| found.is_none_or(|constraints| !constraints.value.ca));
    let signs_nothing = leaf.key_usage().is_ok_and(|found| {
        found.is_none_or(|usage| !usage.value.key_cert_sign() && !usage.value.crl_sign())
    });
    match uris.as_slice() {
        [uri] if is_leaf && signs_nothing => SpiffeClaim::Id(uri),
        _ => SpiffeClaim::Invalid,
    }
}

fn has_spiffe_scheme(uri: &str) -> bool {
    uri.get(..7)
        .is_some_and(|scheme| scheme.eq_ignore_ascii_case("spiffe:"))
}

fn spiffe_identity(uri: &str, rules: &TrustRules) -> Option<Identity> {
    let path = spiffe_path(uri, &rules.trust_domain)?;
    let below = |base: &String| {
        path.strip_prefix(base.as_str())
            .filter(|rest| !rest.is_empty())
    };
    if let Some(name) = rules.service_base_paths.iter().find_map(below) {
        return Some(Identity::Service {
            name: name.to_owned(),
        });
    }
    let id = rules.machine_base_path.as_ref().and_then(below)?;
    Some(Identity::Machine { id: id.to_owned() })
}

/// The path of a SPIFFE id of this trust domain (SPIFFE-ID section 2): at most 2048
/// bytes, segments of letters, digits, dots, dashes and underscores, none of them
/// empty or a dot segment.
fn spiffe_path<'a>(uri: &'a str, trust_domain: &str) -> Option<&'a str> {
    let rest = uri.strip_prefix("spiffe://")?;
    let slash = rest.find('/')?;
    let (domain, path) = rest.split_at(slash);
    let segment_ok = |segment: &str| {
        !matches!(segment, "" | "." | "..")
            && segment
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
    };
    let valid = uri.len() <= 2048 && domain == trust_domain && path[1..].split('/').all(segment_ok);
    valid.then_some(path)
}

fn external(leaf: &X509Certificate<'_>, rules: &TrustRules) -> Option<Identity> {
    let issuer = DistinguishedName::new(leaf.issuer());
    let listed = issuer
        .all(Attribute::CommonName)
        .flatten()
        .any(|cn| rules.issuer_cns.contains(&cn));
    if !listed {
        return None;
    }
    let subject = DistinguishedName::new(leaf.subject());
    Some(Identity::External {
        organization: subject.last(Attribute::Organization),
        group: subject.last(Attribute::OrganizationalUnit),
        name: subject.last(Attribute::CommonName),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> TrustRules {
        TrustRules {
            trust_domain: "nico.local".to_owned(),
            service_base_paths: vec!["/nico-system/sa/".to_owned(), "/default/sa/".to_owned()],
            machine_base_path: Some("/nico-system/machine/".to_owned()),
            issuer_cns: vec![],
        }
    }

    #[test]
    fn base_paths_name_services_and_machines() {
        let service = |name: &str| {
            Some(Identity::Service {
                name: name.to_owned(),
            })
        };
        let of = |uri| spiffe_identity(uri, &rules());
        assert_eq!(
            of("spiffe://nico.local/nico-system/sa/nico-api"),
            service("nico-api")
        );
        assert_eq!(of("spiffe://nico.local/default/sa/x"), service("x"));
        assert_eq!(
            of("spiffe://nico.local/nico-system/machine/m1"),
            Some(Identity::Machine {
                id: "m1".to_owned()
            })
        );
    }

    #[test]
    fn anything_that_differs_in_one_thing_is_nobody() {
        for uri in [
            "spiffe://other.local/nico-system/sa/nico-api",
            "spiffe://nico.local.evil/nico-system/sa/nico-api",
            "spiffe://nico.local/nico-system/sax/nico-api",
            "spiffe://nico.local/nico-system/sa/",
            "spiffe://nico.local/nico-system/sa",
            "spiffe://nico.local/nico-system//sa/nico-api",
            "spiffe://nico.local/nico-system/sa/../sa/nico-api",
            "spiffe://nico.local/nico-system/sa/./nico-api",
            "spiffe://nico.local/nico-system/sa/nico%2dapi",
            "spiffe://nico.local/nico-system/sa/nico-api/",
            "spiffe://nico.local/nico-system/sa/nico-api?x",
            "spiffe://nico.local/nico-system/sa/nico-api#x",
            "spiffe://nico.local:443/nico-system/sa/nico-api",
            "spiffe://u@nico.local/nico-system/sa/nico-api",
            "SPIFFE://nico.local/nico-system/sa/nico-api",
            "spiffe://NICO.local/nico-system/sa/nico-api",
            "spiffe://nico.local",
            "spiffe:///nico-system/sa/nico-api",
            "https://nico.local/nico-system/sa/nico-api",
        ] {
            assert_eq!(spiffe_identity(uri, &rules()), None, "{uri}");
        }
        let long = format!("spiffe://nico.local/default/sa/{}", "a".repeat(2048));
        assert_eq!(spiffe_identity(&long, &rules()), None);
    }

    #[test]
    fn the_scheme_is_seen_in_any_case() {
        // So that an odd spelling can't slip past as "no SPIFFE id".
        assert!(has_spiffe_scheme("SPIFFE://x"));
        assert!(has_spiffe_scheme("spiffe:x"));
        assert!(!has_spiffe_scheme("https://spiffe:"));
        assert!(!has_spiffe_scheme("é"));
    }
}
