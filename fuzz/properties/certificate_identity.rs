//! `Caller::from_leaf` accepts any bytes. The identity that it returns obeys the rules that
//! hold for every certificate.

use nico_rewrap::auth::identity::{Anchor, Caller, Identity, TrustRules};
use x509_parser::{
    extensions::{GeneralName, ParsedExtension},
    prelude::{FromDer, X509Certificate},
};

/// Checks the properties. Returns the kind of identity of the certificate `der`, with an
/// admin bundle: `service`, `machine`, `external` or `nobody`.
pub(crate) fn check(der: &[u8]) -> &'static str {
    let of = |anchor| Caller::from_leaf(der, anchor, &rules());
    let caller = of(Anchor::Admin);
    let external = matches!(caller.identity, Some(Identity::External { .. }));

    assert_eq!(of(Anchor::NoAdminBundle), caller);
    let expected = caller.identity.clone().filter(|_| !external);
    for anchor in [Anchor::RootOnly, Anchor::AdminBundleMissing] {
        let elsewhere = of(anchor);
        assert_eq!(elsewhere.identity, expected, "{anchor:?}");
        assert_ne!(elsewhere.identity.is_some(), elsewhere.refusal.is_some());
    }

    let no_issuers = TrustRules {
        issuer_cns: vec![],
        ..rules()
    };
    let unlisted = Caller::from_leaf(der, Anchor::Admin, &no_issuers).identity;
    assert_eq!(unlisted, expected, "without a listed issuer");

    if caller.identity.is_some() {
        assert_eq!(speaks_of_spiffe(der), !external, "{caller:?}");
    }
    for text in texts(&caller) {
        assert!(!text.chars().any(char::is_control), "{caller:?}");
    }
    caller.identity.as_ref().map_or("nobody", Identity::kind)
}

/// The rules for which the seeds were made.
fn rules() -> TrustRules {
    TrustRules {
        trust_domain: "nico.local".to_owned(),
        service_base_paths: vec!["/nico-system/sa/".to_owned(), "/default/sa/".to_owned()],
        machine_base_path: Some("/nico-system/machine/".to_owned()),
        issuer_cns: vec!["Site Admin".to_owned()],
        admin_issuers_in_root_ca: vec![],
        cli_certs: None,
    }
}

/// Whether any extension has a URI with the scheme `spiffe`.
fn speaks_of_spiffe(der: &[u8]) -> bool {
    let Ok((_, leaf)) = X509Certificate::from_der(der) else {
        return false;
    };
    let names = leaf
        .extensions()
        .iter()
        .flat_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => names.general_names.as_slice(),
            _ => &[],
        });
    let mut uris = names.filter_map(|name| match name {
        GeneralName::URI(uri) => Some(uri.to_ascii_lowercase()),
        _ => None,
    });
    uris.any(|uri| uri.starts_with("spiffe:"))
}

/// All texts that the audit record contains.
fn texts(caller: &Caller) -> Vec<&str> {
    let mut texts = vec![caller.serial.as_str(), caller.issuer.as_str()];
    if let Some(refusal) = &caller.refusal {
        texts.extend([refusal.seen.as_str(), refusal.expected.as_str()]);
    }
    match &caller.identity {
        None => {}
        Some(Identity::Service { name } | Identity::Machine { id: name }) => texts.push(name),
        Some(Identity::Local { .. }) => panic!("a certificate makes nobody a local user"),
        Some(Identity::External {
            organization,
            group,
            name,
        }) => texts.extend(
            [organization, group, name]
                .into_iter()
                .flatten()
                .map(String::as_str),
        ),
    }
    texts
}
