//! Identities of certificates by `openssl`, without a server. A certificate that differs in one
//! thing has another identity or none. `certificates.rs` repeats the most important cases with a
//! server.

use nico_rewrap::auth::identity::{
    Anchor, Attribute, Caller, CliCerts, Component, Identity, TrustRules,
};
use nico_rewrap::auth::refusal::Rule;
use proptest::prelude::*;

use crate::ca::Ca;
use crate::certs::{self, MACHINE_BASE, SERVICE_BASE, admin_cert, admin_issuer, root_ca};
use crate::patch::first_der;
use crate::pki::{Cert, Leaf, Strings};

fn rules() -> TrustRules {
    TrustRules {
        trust_domain: "nico.local".to_owned(),
        service_base_paths: vec!["/nico-system/sa/".to_owned()],
        machine_base_path: Some("/nico-system/machine/".to_owned()),
        issuer_cns: vec![certs::ADMIN_ISSUER_CN.to_owned()],
        cli_certs: None,
        admin_issuers_in_root_ca: vec![],
    }
}

/// Rules without a listed issuer, but with these criteria.
fn criteria(required: &[(&str, &str)]) -> TrustRules {
    let component = |name: &str| Component::parse(name).unwrap();
    let required = required.iter();
    TrustRules {
        issuer_cns: vec![],
        cli_certs: Some(CliCerts {
            required_equals: required
                .map(|(name, value)| (component(name), (*value).to_owned()))
                .collect(),
            group_from: Some(Attribute::OrganizationalUnit),
            username_from: Some(Attribute::CommonName),
            username: None,
        }),
        ..rules()
    }
}

fn der(leaf: &Leaf) -> Vec<u8> {
    first_der(&std::fs::read_to_string(&leaf.cert_chain).unwrap())
}

fn identity(leaf: &Leaf, anchor: Anchor, rules: &TrustRules) -> Option<Identity> {
    Caller::from_leaf(&der(leaf), anchor, rules).identity
}

fn user(organization: Option<&str>, group: Option<&str>, name: Option<&str>) -> Option<Identity> {
    Some(Identity::External {
        organization: organization.map(str::to_owned),
        group: group.map(str::to_owned),
        name: name.map(str::to_owned),
    })
}

fn by_listed_issuer(cert: &Cert) -> Option<Identity> {
    identity(&cert.signed_by(admin_issuer()), Anchor::Admin, &rules())
}

#[test]
fn each_of_the_six_components_is_compared_exactly_in_its_own_name() {
    let issuer = Ca::root("/O=An Issuer/OU=Its Unit/CN=Its CA", Strings::Utf8);
    let leaf = Cert::new("/O=Acme/OU=ops/CN=alice").signed_by(&issuer);
    let of = |required: &[(&str, &str)]| identity(&leaf, Anchor::Admin, &criteria(required));
    let alice = user(None, Some("ops"), Some("alice"));
    let all = [
        ("IssuerO", "An Issuer"),
        ("IssuerOU", "Its Unit"),
        ("IssuerCN", "Its CA"),
        ("SubjectO", "Acme"),
        ("SubjectOU", "ops"),
        ("SubjectCN", "alice"),
    ];
    assert_eq!(of(&all), alice);
    for (i, (component, value)) in all.into_iter().enumerate() {
        assert_eq!(of(&[(component, value)]), alice, "{component}");
        let (_, elsewhere) = all[(i + 3) % 6];
        for other in [
            elsewhere,
            "",
            &value
                .to_lowercase()
                .replace("acme", "ACME ")
                .replace("ops", "Ops")
                .replace("alice", "Alice"),
            &format!("{value} "),
            &value[1..],
        ] {
            assert_eq!(of(&[(component, other)]), None, "{component} {other:?}");
            let mut one_differs = all;
            one_differs[i].1 = other;
            assert_eq!(of(&one_differs), None, "{component} {other:?}");
        }
    }
    assert_eq!(of(&[]), None, "no criteria are met by nobody");
}

#[test]
fn a_missing_unreadable_or_repeated_component_is_not_equal() {
    let required = criteria(&[("SubjectO", "Acme")]);
    let of = |subject: &str| {
        let leaf = Cert::new(subject).strings(Strings::Utf8);
        identity(&leaf.signed_by(root_ca()), Anchor::Admin, &required)
    };
    let alice = user(None, None, Some("alice"));
    for subject in [
        "/O=Acme/CN=alice",
        "/O=Acme/O=Acme/CN=alice",
        "/O=Acme+CN=alice",
        "/C=US/O=Acme/CN=alice",
    ] {
        assert_eq!(of(subject), alice, "{subject}");
    }
    for subject in [
        "/CN=alice",
        "/OU=Acme/CN=alice",
        "/O=Acme/O=Other/CN=alice",
        "/O=Other/O=Acme/CN=alice",
        "/O=Acme+O=Other/CN=alice",
        "/O=Acme/O=A\u{1}/CN=alice",
        "/O=A\u{202e}/O=Acme/CN=alice",
        "/O=Acme\n/CN=alice",
        "/CN=alice/CN=O=Acme",
    ] {
        assert_eq!(of(subject), None, "{subject:?}");
    }
}

#[test]
fn names_of_users_come_from_the_subject_or_the_configuration() {
    let leaf = |subject: &str| {
        Cert::new(subject)
            .strings(Strings::Utf8)
            .signed_by(root_ca())
    };
    let full = leaf("/O=Acme/OU=ops/OU=oncall/CN=alice/CN=Alice A");
    let bare = leaf("/O=Acme");
    let unreadable = leaf("/O=Acme/OU=ops/OU=x\u{7}/CN=alice/CN=a\u{7}");
    let rules = |from: Option<Attribute>, username: Option<&str>| {
        let mut rules = criteria(&[("SubjectO", "Acme")]);
        let criteria = rules.cli_certs.as_mut().unwrap();
        criteria.group_from = from;
        criteria.username_from = from;
        criteria.username = username.map(str::to_owned);
        rules
    };
    let (ou, cn) = (
        Some(Attribute::OrganizationalUnit),
        Some(Attribute::CommonName),
    );
    for (leaf, from, username, group, name) in [
        (&full, ou, None, Some("oncall"), Some("oncall")),
        (&full, cn, Some("op"), Some("Alice A"), Some("Alice A")),
        (&full, None, Some("op"), None, Some("op")),
        (&full, None, None, None, None),
        (&bare, ou, None, None, None),
        (&bare, cn, Some("op"), None, Some("op")),
        // The last one counts, and it is unreadable.
        (&unreadable, ou, None, None, None),
        (&unreadable, cn, Some("op"), None, Some("op")),
    ] {
        let found = identity(leaf, Anchor::Admin, &rules(from, username));
        assert_eq!(found, user(None, group, name), "{from:?} {username:?}");
    }
}

#[test]
fn spiffe_precedes_a_listed_issuer_and_that_precedes_the_criteria() {
    let both = TrustRules {
        issuer_cns: rules().issuer_cns,
        ..criteria(&[("SubjectO", "Acme")])
    };
    let of = |cert: Cert, issuer: &Ca| identity(&cert.signed_by(issuer), Anchor::Admin, &both);
    let by_issuer = user(Some("Acme"), Some("site-admins"), Some("alice"));
    assert_eq!(of(admin_cert(), admin_issuer()), by_issuer);
    // Below a listed issuer, a certificate need not meet the criteria.
    let bob = Cert::new("/O=Other/CN=bob");
    assert_eq!(
        of(bob.clone(), admin_issuer()),
        user(Some("Other"), None, Some("bob"))
    );
    assert_eq!(of(bob, root_ca()), None);
    let by_criteria = user(None, Some("site-admins"), Some("alice"));
    assert_eq!(of(admin_cert(), root_ca()), by_criteria);

    let with = |uri: &str| admin_cert().san(&format!("URI:{uri}"));
    let dhcp = with(&format!("{SERVICE_BASE}nico-dhcp"));
    let name = "nico-dhcp".to_owned();
    assert_eq!(of(dhcp, admin_issuer()), Some(Identity::Service { name }));
    for issuer in [admin_issuer(), root_ca()] {
        assert_eq!(of(with("spiffe://nico.local/elsewhere"), issuer), None);
        assert_eq!(
            of(with("spiffe://other.local/nico-system/sa/x"), issuer),
            None
        );
    }
}

#[test]
fn administrators_must_chain_to_the_admin_bundle_unless_their_issuer_is_listed() {
    let subject = format!("/O=NICo/CN={}", certs::ADMIN_ISSUER_CN);
    let service_ca = root_ca().intermediate(&subject, Strings::Utf8);
    let second = format!("/CN=Else/CN={}", certs::ADMIN_ISSUER_CN);
    let two_names = root_ca().intermediate(&second, Strings::Utf8);
    let excepting = |rules: TrustRules, cns: &[&str]| TrustRules {
        admin_issuers_in_root_ca: cns.iter().map(|cn| (*cn).to_owned()).collect(),
        ..rules
    };
    for rules in [rules(), criteria(&[("SubjectO", "Acme")])] {
        for issuer in [&service_ca, &two_names] {
            let leaf = admin_cert().signed_by(issuer);
            let of = |anchor, excepted: &[&str]| {
                identity(&leaf, anchor, &excepting(rules.clone(), excepted)).is_some()
            };
            assert!(of(Anchor::Admin, &[]));
            assert!(of(Anchor::NoAdminBundle, &[]));
            assert!(!of(Anchor::RootOnly, &[]));
            assert!(!of(Anchor::AdminBundleMissing, &[]));
            assert!(of(Anchor::AdminBundleMissing, &[certs::ADMIN_ISSUER_CN]));
            assert!(of(Anchor::RootOnly, &[certs::ADMIN_ISSUER_CN]));
            assert!(!of(
                Anchor::RootOnly,
                &["site admin issuing ca", "NICo", "alice", ""]
            ));
        }
    }
    // The exception does not make an administrator: another rule must match first.
    let excepted = excepting(rules(), &["site-root"]);
    let leaf = admin_cert().signed_by(root_ca());
    assert_eq!(identity(&leaf, Anchor::RootOnly, &excepted), None);
    // The exception has no effect on services and machines.
    let service = certs::service("nico-api");
    for leaf in [&service, certs::machine()] {
        assert!(identity(leaf, Anchor::RootOnly, &rules()).is_some());
    }
}

#[test]
fn texts_are_read_in_every_string_type() {
    for strings in [Strings::Utf8, Strings::T61, Strings::Bmp] {
        let cert = Cert::new("/O=Søn & Co/OU=ops/CN=Zoë").strings(strings);
        let found = by_listed_issuer(&cert);
        let expected = user(Some("Søn & Co"), Some("ops"), Some("Zoë"));
        assert_eq!(found, expected, "{strings:?}");
    }
    for strings in [Strings::Printable, Strings::Ia5] {
        let cert = Cert::new("/O=Acme/OU=ops/CN=zoe").strings(strings);
        let found = by_listed_issuer(&cert);
        assert_eq!(
            found,
            user(Some("Acme"), Some("ops"), Some("zoe")),
            "{strings:?}"
        );
    }
    let cert = Cert::new("/O=Acme/CN=日本").strings(Strings::Bmp);
    assert_eq!(
        by_listed_issuer(&cert),
        user(Some("Acme"), None, Some("日本"))
    );
}

#[test]
fn the_last_of_several_names_counts() {
    for (subject, expected) in [
        (
            "/O=A/O=B/OU=x/OU=y/CN=1/CN=2",
            user(Some("B"), Some("y"), Some("2")),
        ),
        ("/CN=2/OU=y/O=B", user(Some("B"), Some("y"), Some("2"))),
        ("/O=B+OU=y+CN=2", user(Some("B"), Some("y"), Some("2"))),
        ("/O=B/OU=x/OU=y\u{7}/CN=2", user(Some("B"), None, Some("2"))),
        ("/C=US/emailAddress=a@b.c", user(None, None, None)),
        ("/", user(None, None, None)),
    ] {
        let cert = Cert::new(subject).strings(Strings::Utf8).san("DNS:x");
        assert_eq!(by_listed_issuer(&cert), expected, "{subject:?}");
    }
}

#[test]
fn an_svid_is_a_leaf_without_signing_rights_and_with_exactly_one_uri() {
    let id = |name: &str| format!("URI:{SERVICE_BASE}{name}");
    let svid = || admin_cert().san(&id("nico-api"));
    let nico_api = Some(Identity::Service {
        name: "nico-api".to_owned(),
    });
    let usage = |usage: &str| svid().key_usage(Some(usage));
    for (what, cert) in [
        ("as usual", svid()),
        ("not marked critical", usage("digitalSignature")),
        (
            "for RSA",
            usage("critical,digitalSignature,keyEncipherment,keyAgreement"),
        ),
        ("without a key usage", svid().key_usage(None)),
        (
            "with other kinds of names",
            svid().san("DNS:a").san("IP:::1").san("email:a@b.c"),
        ),
    ] {
        assert_eq!(by_listed_issuer(&cert), nico_api, "{what}");
    }
    for (what, cert) in [
        ("two ids", svid().san(&id("nico-dhcp"))),
        ("one id twice", svid().san(&id("nico-api"))),
        ("another URI", svid().san("URI:https://acme.example/")),
        ("a CA", svid().ca()),
        ("a CA that signs certificates", usage("keyCertSign").ca()),
        (
            "signs certificates",
            usage("critical,digitalSignature,keyCertSign"),
        ),
        ("signs CRLs", usage("critical,digitalSignature,cRLSign")),
        ("signs nothing at all", usage("critical,keyEncipherment")),
        (
            "a key usage that can't be read",
            svid().key_usage(None).extension("2.5.29.15 = DER:0500"),
        ),
        (
            "an alternative name that can't be read",
            admin_cert().extension("2.5.29.17 = DER:0500"),
        ),
        (
            "a URI that can't be read",
            admin_cert().extension("2.5.29.17 = DER:3004860261ff"),
        ),
    ] {
        assert_eq!(by_listed_issuer(&cert), None, "{what}");
    }
    // `openssl` writes no extension twice, so change the id of another extension. The TLS verifier
    // checks signatures, not this function.
    for (what, value, last_arc) in [
        ("key usage", "DER:03020780", 15),
        ("basic constraints", "DER:30030101ff", 19),
        ("alternative name", "DER:3003820161", 17),
        ("policy", "DER:0500", 32),
    ] {
        let cert = svid().extension(&format!("2.5.29.9 = {value}"));
        let mut der = der(&cert.signed_by(admin_issuer()));
        let read = |der: &[u8]| Caller::from_leaf(der, Anchor::Admin, &rules()).identity;
        assert_eq!(read(&der), nico_api, "{what}");
        let at = der.windows(3).position(|oid| oid == [0x55, 0x1d, 9]);
        der[at.unwrap() + 2] = last_arc;
        let expected = nico_api.clone().filter(|_| what == "policy");
        assert_eq!(read(&der), expected, "a second {what}");
    }
    let machine = admin_cert().san(&format!("URI:{MACHINE_BASE}m1"));
    let id = "m1".to_owned();
    assert_eq!(by_listed_issuer(&machine), Some(Identity::Machine { id }));
}

#[test]
fn serial_and_issuer_are_formatted_as_by_openssl() {
    let issuer = Ca::root("/O=Acme, Inc./OU=a\u{7}b/CN=A \"CA\"", Strings::Utf8);
    let leaf = Cert::new("/CN=x").signed_by(&issuer);
    let caller = Caller::from_leaf(&der(&leaf), Anchor::Admin, &rules());
    assert_eq!(caller.issuer, r#"O=Acme\, Inc., OU=?, CN=A \"CA\""#);
    let mut openssl = std::process::Command::new("openssl");
    openssl
        .args(["x509", "-noout", "-serial", "-in"])
        .arg(&leaf.cert_chain);
    let serial = format!("serial={}", caller.serial.replace(':', "").to_uppercase());
    assert_eq!(crate::process::run(&mut openssl).trim(), serial);
    assert_eq!(caller.kind(), "none");
}

/// Flipped bits, truncated certificates and random bytes.
#[test]
fn invalid_certificates_have_no_identity() {
    let admin = der(certs::admin());
    let service = der(&certs::service("nico-api"));
    let read = |der: &[u8]| Caller::from_leaf(der, Anchor::Admin, &rules());
    assert!(read(&admin).identity.is_some());
    let is_nobody = |der: &[u8]| {
        let caller = read(der);
        let rule = caller.refusal.clone().map(|refusal| refusal.rule);
        let rest = Caller {
            refusal: None,
            ..caller
        };
        rest == Caller::default() && rule == Some(Rule::Certificate)
    };
    for length in 0..admin.len() {
        assert!(is_nobody(&admin[..length]), "{length}");
    }
    assert!(is_nobody(&[&admin[..], b"\0"].concat()));
    assert!(is_nobody(&[&admin[..], &service[..]].concat()));
    for good in [&admin, &service] {
        for i in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[i] ^= 1 << bit;
                // Any result is fine, but the function must return.
                let caller = read(&bad);
                let text = format!("{caller:?}");
                assert!(!text.contains(|c: char| c.is_control()), "{text}");
            }
        }
    }
    proptest!(|(bytes in proptest::collection::vec(any::<u8>(), 0..300))| {
        prop_assert!(is_nobody(&bytes));
    });
}
