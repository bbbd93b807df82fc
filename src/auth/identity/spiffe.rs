//! SPIFFE identities, by sections 2 to 5 of the X.509-SVID specification and section 2 of the
//! SPIFFE-ID specification.

use x509_parser::{
    extensions::{GeneralName, ParsedExtension},
    oid_registry::OID_X509_EXT_BASIC_CONSTRAINTS,
    prelude::X509Certificate,
};

use super::{Identity, TrustRules};
use crate::auth::refusal::{Refusal, Rule, quoted};

/// The SPIFFE id of a certificate.
pub(super) enum Claim<'a> {
    /// The certificate has no `spiffe:` URI.
    None,
    /// The certificate has a `spiffe:` URI but is not a valid X.509-SVID, or it has names that
    /// can't be read.
    Invalid(Refusal),
    /// The only URI of a valid X.509-SVID.
    Id(&'a str),
}

/// Checks a leaf by the X.509-SVID specification: section 2 (exactly one URI SAN), 4.1 (a leaf
/// is not a CA) and 4.3 (the key usage has digitalSignature, but neither keyCertSign nor
/// cRLSign). Like section 5.2, it accepts a leaf without key usage, because not all issuers set
/// it. The TLS verifier checks extended key usages (4.4).
pub(super) fn claim<'a>(leaf: &'a X509Certificate<'_>) -> Claim<'a> {
    // `Err`: the extension occurs twice, or can't be read.
    let Ok(names) = leaf.subject_alternative_name() else {
        return invalid("subject alternative names that cannot be read", "one URI");
    };
    let names = names.map_or(&[][..], |names| &names.value.general_names);
    // A name that can't be read could be a SPIFFE id.
    if names
        .iter()
        .any(|name| matches!(name, GeneralName::Invalid(..)))
    {
        return invalid("a subject alternative name that cannot be read", "one URI");
    }
    let uris: Vec<&str> = names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect();
    if !uris.iter().any(|uri| has_spiffe_scheme(uri)) {
        return Claim::None;
    }
    match uris.as_slice() {
        [_] if !is_not_ca(leaf) => invalid(
            "basicConstraints CA:TRUE, or basicConstraints that cannot be read",
            "a certificate that is not a CA",
        ),
        [_] if !has_leaf_key_usage(leaf) => invalid(
            "another key usage",
            "a key usage with digitalSignature and without keyCertSign and cRLSign",
        ),
        [uri] => Claim::Id(uri),
        uris => invalid(&format!("{} URIs", uris.len()), "one URI"),
    }
}

fn invalid<'a>(seen: &str, expected: &str) -> Claim<'a> {
    Claim::Invalid(Refusal::new(Rule::Svid, seen, expected))
}

/// Ignores the case of the scheme. Otherwise a certificate with `SPIFFE:` would pass as one
/// without a SPIFFE id.
fn has_spiffe_scheme(uri: &str) -> bool {
    uri.get(..7)
        .is_some_and(|scheme| scheme.eq_ignore_ascii_case("spiffe:"))
}

/// Whether the leaf is certainly not a CA. The parser's accessor returns nothing for an
/// extension that it can't read, so the leaf would look like a certificate that is not a CA.
fn is_not_ca(leaf: &X509Certificate<'_>) -> bool {
    match leaf.get_extension_unique(&OID_X509_EXT_BASIC_CONSTRAINTS) {
        Ok(None) => true,
        Ok(Some(found)) => matches!(
            found.parsed_extension(),
            ParsedExtension::BasicConstraints(constraints) if !constraints.ca
        ),
        Err(_) => false,
    }
}

fn has_leaf_key_usage(leaf: &X509Certificate<'_>) -> bool {
    leaf.key_usage().is_ok_and(|found| {
        found.is_none_or(|usage| {
            let usage = usage.value;
            usage.digital_signature() && !usage.key_cert_sign() && !usage.crl_sign()
        })
    })
}

/// The service or machine of this site that a SPIFFE id names.
pub(super) fn identify(uri: &str, rules: &TrustRules) -> Result<Identity, Refusal> {
    let (domain, path) = parse(uri).ok_or_else(|| {
        let seen = format!("the URI {}", quoted([uri]));
        Refusal::new(Rule::Svid, &seen, "a valid SPIFFE id")
    })?;
    if domain != rules.trust_domain {
        let expected = quoted([rules.trust_domain.as_str()]);
        return Err(Refusal::new(
            Rule::TrustDomain,
            &quoted([domain]),
            &expected,
        ));
    }
    let below = |base: &String| {
        path.strip_prefix(base.as_str())
            .filter(|rest| !rest.is_empty())
    };
    if let Some(name) = rules.service_base_paths.iter().find_map(below) {
        return Ok(Identity::Service {
            name: name.to_owned(),
        });
    }
    let id = rules.machine_base_path.as_ref().and_then(below);
    let id = id.ok_or_else(|| {
        let bases = rules.service_base_paths.iter();
        let bases = bases.chain(&rules.machine_base_path).map(String::as_str);
        let expected = format!("a path below {}", quoted(bases));
        Refusal::new(Rule::BasePath, &quoted([path]), &expected)
    })?;
    Ok(Identity::Machine { id: id.to_owned() })
}

/// The trust domain and the path of a SPIFFE id, if the id is valid.
///
/// A valid id has at most 2048 bytes (2.3), only the trust domain as its authority (2.1), and no
/// query or fragment. Path segments consist of letters, digits, dots, dashes and underscores.
/// They are not empty, `.` or `..` (2.2). The configured trust domain is valid, so no other
/// characters of the domain need a check.
fn parse(uri: &str) -> Option<(&str, &str)> {
    let rest = uri.strip_prefix("spiffe://")?;
    let slash = rest.find('/')?;
    let (domain, path) = rest.split_at(slash);
    let segment_ok = |segment: &str| {
        !matches!(segment, "" | "." | "..")
            && segment
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
    };
    let valid = uri.len() <= 2048
        && (1..=255).contains(&domain.len())
        && path[1..].split('/').all(segment_ok);
    valid.then_some((domain, path))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rules() -> TrustRules {
        TrustRules {
            trust_domain: "nico.local".to_owned(),
            service_base_paths: vec!["/nico-system/sa/".to_owned(), "/default/sa/".to_owned()],
            machine_base_path: Some("/nico-system/machine/".to_owned()),
            issuer_cns: vec![],
            cli_certs: None,
            admin_issuers_in_root_ca: vec![],
        }
    }

    fn service(name: &str) -> Option<Identity> {
        Some(Identity::Service {
            name: name.to_owned(),
        })
    }

    #[test]
    fn base_paths_name_services_and_machines() {
        let of = |uri| identify(uri, &rules()).ok();
        assert_eq!(
            of("spiffe://nico.local/nico-system/sa/nico-api"),
            service("nico-api")
        );
        assert_eq!(of("spiffe://nico.local/default/sa/x"), service("x"));
        assert_eq!(of("spiffe://nico.local/default/sa/x/y"), service("x/y"));
        assert_eq!(of("spiffe://nico.local/default/sa/..x"), service("..x"));
        assert_eq!(of("spiffe://nico.local/default/sa/A-9_."), service("A-9_."));
        assert_eq!(
            of("spiffe://nico.local/nico-system/machine/m1"),
            Some(Identity::Machine {
                id: "m1".to_owned()
            })
        );
        let no_machines = TrustRules {
            machine_base_path: None,
            ..rules()
        };
        assert_eq!(
            identify("spiffe://nico.local/nico-system/machine/m1", &no_machines).ok(),
            None
        );
    }

    #[test]
    fn an_id_with_any_single_deviation_has_no_identity() {
        for uri in [
            "spiffe://other.local/nico-system/sa/nico-api",
            "spiffe://nico.local.evil/nico-system/sa/nico-api",
            "spiffe://nico.loca/nico-system/sa/nico-api",
            "spiffe://nico.local/nico-system/sax/nico-api",
            "spiffe://nico.local/nico-system/s/nico-api",
            "spiffe://nico.local/NICO-system/sa/nico-api",
            "spiffe://nico.local/x/nico-system/sa/nico-api",
            "spiffe://nico.local/nico-system/sa/",
            "spiffe://nico.local/nico-system/sa",
            "spiffe://nico.local/nico-system//sa/nico-api",
            "spiffe://nico.local//nico-system/sa/nico-api",
            "spiffe://nico.local/nico-system/sa//nico-api",
            "spiffe://nico.local/nico-system/sa/../sa/nico-api",
            "spiffe://nico.local/nico-system/sa/./nico-api",
            "spiffe://nico.local/nico-system/sa/nico-api/..",
            "spiffe://nico.local/nico-system/sa/nico-api/.",
            "spiffe://nico.local/nico-system/sa/nico%2dapi",
            "spiffe://nico.local/nico-system%2fsa/nico-api",
            "spiffe://nico.local/nico-system/sa/nico-api%00",
            "spiffe://nico.local/nico-system/sa/nico-api\0",
            "spiffe://nico.local/nico-system/sa/nico-api\n",
            "spiffe://nico.local/nico-system/sa/nico-api ",
            " spiffe://nico.local/nico-system/sa/nico-api",
            "spiffe://nico.local/nico-system/sa/nicö-api",
            "spiffe://nico.local/nico-system/sa/nico:api",
            "spiffe://nico.local/nico-system/sa/nico~api",
            "spiffe://nico.local/nico-system/sa\\nico-api",
            "spiffe://nico.local/nico-system/sa/nico-api/",
            "spiffe://nico.local/nico-system/sa/nico-api?x",
            "spiffe://nico.local/nico-system/sa/nico-api?",
            "spiffe://nico.local/nico-system/sa/nico-api#x",
            "spiffe://nico.local/nico-system/sa/nico-api#",
            "spiffe://nico.local?/nico-system/sa/nico-api",
            "spiffe://nico.local:443/nico-system/sa/nico-api",
            "spiffe://nico.local:/nico-system/sa/nico-api",
            "spiffe://u@nico.local/nico-system/sa/nico-api",
            "spiffe://@nico.local/nico-system/sa/nico-api",
            "spiffe://nico%2elocal/nico-system/sa/nico-api",
            "SPIFFE://nico.local/nico-system/sa/nico-api",
            "Spiffe://nico.local/nico-system/sa/nico-api",
            "spiffe://NICO.local/nico-system/sa/nico-api",
            "spiffe:/nico.local/nico-system/sa/nico-api",
            "spiffe:///nico-system/sa/nico-api",
            "spiffe:nico.local/nico-system/sa/nico-api",
            "spiffe://nico.local/",
            "spiffe://nico.local",
            "spiffe://",
            "",
            "https://nico.local/nico-system/sa/nico-api",
        ] {
            assert!(identify(uri, &rules()).is_err(), "{uri:?}");
        }
    }

    #[test]
    fn a_refusal_names_the_rule_and_what_it_saw() {
        let of = |uri| {
            let Refusal {
                rule,
                seen,
                expected,
            } = identify(uri, &rules()).unwrap_err();
            (rule, seen, expected)
        };
        assert_eq!(
            of("spiffe://other.local/nico-system/sa/nico-api"),
            (
                Rule::TrustDomain,
                "\"other.local\"".to_owned(),
                "\"nico.local\"".to_owned()
            )
        );
        assert_eq!(
            of("spiffe://nico.local/other/sa/nico-api"),
            (
                Rule::BasePath,
                "\"/other/sa/nico-api\"".to_owned(),
                "a path below \"/nico-system/sa/\", \"/default/sa/\", \"/nico-system/machine/\""
                    .to_owned()
            )
        );
        let (rule, seen, _) = of("spiffe://nico.local/default/sa/\n");
        assert_eq!(rule, Rule::Svid);
        assert_eq!(seen, "the URI \"spiffe://nico.local/default/sa/?\"");
    }

    #[test]
    fn an_id_has_2048_bytes_and_its_trust_domain_255_at_most() {
        let base = "spiffe://nico.local/default/sa/";
        let longest = "a".repeat(2048 - base.len());
        assert_eq!(
            identify(&format!("{base}{longest}"), &rules()).ok(),
            service(&longest)
        );
        assert!(identify(&format!("{base}{longest}a"), &rules()).is_err());

        let in_domain = |length: usize| {
            let rules = TrustRules {
                trust_domain: "d".repeat(length),
                ..rules()
            };
            identify(
                &format!("spiffe://{}/default/sa/x", "d".repeat(length)),
                &rules,
            )
            .ok()
        };
        assert_eq!(in_domain(255), service("x"));
        assert_eq!(in_domain(256), None);
        assert_eq!(in_domain(0), None);
    }

    #[test]
    fn the_scheme_is_recognized_in_any_case() {
        assert!(has_spiffe_scheme("SPIFFE://x"));
        assert!(has_spiffe_scheme("spiffe:x"));
        assert!(!has_spiffe_scheme("https://spiffe:"));
        assert!(!has_spiffe_scheme("é"));
    }

    proptest! {
        #[test]
        fn only_valid_ids_below_a_base_path_have_an_identity(
            uri in "(spiffe://nico.local/|spiffe:/)?(default/sa/|nico-system/machine/|/)?[a-c./%?#:@é\0-]{0,12}"
        ) {
            let found = identify(&uri, &rules()).ok();
            let name = found.as_ref().map(Identity::name);
            let expected = uri
                .strip_prefix("spiffe://nico.local/default/sa/")
                .or_else(|| uri.strip_prefix("spiffe://nico.local/nico-system/machine/"))
                .filter(|name| name.split('/').all(|segment| {
                    !["", ".", ".."].contains(&segment)
                        && segment.chars().all(|c| "abc.-".contains(c))
                }));
            prop_assert_eq!(name, expected);
        }
    }
}
