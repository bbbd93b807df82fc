//! A table of certificates by `openssl`. The test shows each to a real server with one of a few
//! configurations, and compares the result. Every allowed certificate has a twin that differs in
//! one thing and is denied.
//!
//! `identities.rs` has more cases of the same function without a server. `callers.rs`, `anchors.rs`
//! and `revocation.rs` have the cases that need their own configuration.

use std::collections::BTreeMap;
use std::fs;

use crate::ca::Ca;
use crate::certificate_table::{
    CONFIGS, CRITERIA, Config, Make, Outcome, Revoked, Table, below, by, show_all,
};
use crate::certs::{
    ADMIN_ISSUER_CN, MACHINE_BASE, SERVICE_BASE, admin_cert, admin_issuer, admin_root, other_ca,
    root_ca, service_cert,
};
use crate::patch::patched;
use crate::pki::{Cert, Leaf, Strings};

/// The identities of the usual certificates.
const API: &str = "service nico-api";
const ALICE: &str = "external alice in site-admins";

/// The service CA.
fn site_ca() -> Ca {
    root_ca().clone()
}

/// The listed issuer below the administrators' root.
fn listed() -> Ca {
    admin_issuer().clone()
}

/// Another issuer below the administrators' root.
fn issuer(subject: &str) -> impl Fn() -> Ca + use<> {
    let subject = subject.to_owned();
    move || below(admin_root(), &subject, Strings::Utf8)
}

/// An issuer below the service CA.
fn site_issuer(cn: &str) -> impl Fn() -> Ca + use<> {
    let subject = format!("/O=Acme/CN={cn}");
    move || below(root_ca(), &subject, Strings::Utf8)
}

/// A certificate whose only name is this URI.
fn svid(uri: &str) -> Cert {
    Cert::new("/").san(&format!("URI:{uri}"))
}

/// A certificate that would be an administrator's without this URI.
fn admin_with(uri: &str) -> Cert {
    admin_cert().san(&format!("URI:{uri}"))
}

fn nico_api() -> Cert {
    admin_with(&format!("{SERVICE_BASE}nico-api"))
}

fn services_and_machines(t: &mut Table) {
    let service = |name: &str| by(service_cert(name), site_ca);
    let other = "another service";
    t.config = Config::Usual;
    t.allow("nico-api", other, API, service("nico-api"));
    let old = "service carbide-api";
    t.allow("its old name", other, old, service("carbide-api"));
    let default = svid("spiffe://nico.local/default/sa/nico-api");
    let twin = "below no base path";
    t.allow("the other base path", twin, API, by(default, site_ca));
    let twin = "a subject and a DNS name alone";
    let named = nico_api().san("DNS:nico-api");
    t.allow("a subject and a DNS name", twin, API, by(named, site_ca));
    t.nobody(twin, by(admin_cert().san("DNS:nico-api"), site_ca));
    let named = Cert::new("/O=NICo/CN=nico-api").san("DNS:nico-api");
    t.nobody("the name in the subject alone", by(named, site_ca));
    for (what, name) in [
        (other, "nico-dhcp"),
        ("a longer name", "nico-api2"),
        ("a shorter name", "nico-ap"),
        ("a longer path", "nico-api/x"),
        ("a name in upper case", "NICO-API"),
    ] {
        t.not_allowed(what, &format!("service {name}"), service(name));
    }
    for (what, id) in [
        ("a machine", "fm100"),
        ("a machine of that name", "nico-api"),
    ] {
        let machine = by(svid(&format!("{MACHINE_BASE}{id}")), site_ca);
        t.not_allowed(what, &format!("machine {id}"), machine);
    }

    t.config = Config::Mixed;
    let twin = "a service that is listed elsewhere";
    let dhcp = "service nico-dhcp";
    t.allow("a listed service", twin, dhcp, service("nico-dhcp"));
    t.not_allowed(twin, API, service("nico-api"));
}

fn spiffe_ids(t: &mut Table) {
    t.config = Config::Usual;
    let web = admin_with("https://acme.example/");
    let twin = "another trust domain";
    t.allow("a web address", twin, ALICE, by(web, listed));
    for (what, rest) in [
        (twin, "other.local/nico-system/sa/nico-api"),
        (
            "a longer trust domain",
            "nico.local.example/nico-system/sa/nico-api",
        ),
        (
            "a trust domain in upper case",
            "NICO.LOCAL/nico-system/sa/nico-api",
        ),
        (
            "a trust domain with a port",
            "nico.local:443/nico-system/sa/nico-api",
        ),
        ("a trust domain alone", "nico.local"),
        ("below no base path", "nico.local/other-system/sa/nico-api"),
        (
            "a base path in upper case",
            "nico.local/NICO-SYSTEM/sa/nico-api",
        ),
        (
            "a base path that ends within a segment",
            "nico.local/nico-system/sax/nico-api",
        ),
        ("a base path alone", "nico.local/nico-system/sa/"),
        ("a dot segment", "nico.local/nico-system/sa/./nico-api"),
        ("two dots", "nico.local/nico-system/x/../sa/nico-api"),
        ("an empty segment", "nico.local/nico-system/sa//nico-api"),
        ("a slash at the end", "nico.local/nico-system/sa/nico-api/"),
        ("a percent sign", "nico.local/nico-system/sa/nico%2Dapi"),
        (
            "a NUL behind a percent sign",
            "nico.local/nico-system/sa/nico-api%00",
        ),
        ("a query", "nico.local/nico-system/sa/nico-api?x"),
    ] {
        t.nobody(what, by(admin_with(&format!("spiffe://{rest}")), listed));
    }
    for (what, scheme) in [
        ("a scheme in upper case", "SPIFFE://"),
        ("a scheme without slashes", "spiffe:"),
    ] {
        let uri = format!("{scheme}nico.local/nico-system/sa/nico-api");
        t.nobody(what, by(admin_with(&uri), listed));
    }
    let longest = "a".repeat(2048 - SERVICE_BASE.len());
    let of = |name: &str| by(admin_with(&format!("{SERVICE_BASE}{name}")), listed);
    t.not_allowed("2048 bytes", &format!("service {longest}"), of(&longest));
    t.nobody("2049 bytes", of(&format!("{longest}a")));
    for (what, second) in [
        ("two ids", "spiffe://nico.local/default/sa/nico-api"),
        ("an id twice", "spiffe://nico.local/nico-system/sa/nico-api"),
        ("an id and a web address", "https://acme.example/"),
    ] {
        t.nobody(what, by(nico_api().san(&format!("URI:{second}")), listed));
    }
}

fn key_usages(t: &mut Table) {
    t.config = Config::Usual;
    let using = |cert: Cert, usage: &str| by(cert.key_usage(Some(usage)), listed);
    let (certs, lists) = ("signs certificates", "signs lists");
    let usage = "critical,digitalSignature";
    t.allow("signs for itself", certs, API, using(nico_api(), usage));
    let usage = "digitalSignature,keyEncipherment";
    t.allow("more usages", lists, API, using(nico_api(), usage));
    let usage = "critical,digitalSignature,keyCertSign";
    t.nobody(certs, using(nico_api(), usage));
    t.allow(
        "signs certificates, without an id",
        certs,
        ALICE,
        using(admin_cert(), usage),
    );
    let usage = "digitalSignature,keyEncipherment,cRLSign";
    t.nobody(lists, using(nico_api(), usage));
    t.nobody(
        "signs nothing",
        using(nico_api(), "critical,keyEncipherment"),
    );
    t.refused("a CA", "bad_certificate", by(nico_api().ca(), listed));
}

fn issuers(t: &mut Table) {
    let cn = ADMIN_ISSUER_CN;
    let of = |subject: &str| by(admin_cert(), issuer(subject));
    t.config = Config::Usual;
    let twin = "an issuer in lower case";
    t.allow("an administrator", twin, ALICE, by(admin_cert(), listed));
    let groupless = || Cert::new("/O=Acme/CN=alice");
    let twin = "without a group, of another issuer";
    t.allow(
        "without a group",
        twin,
        "external alice",
        by(groupless(), listed),
    );
    t.nobody(twin, by(groupless(), issuer("/O=Acme/CN=Another")));
    let twin = "an issuer with two other names";
    t.allow(
        "an issuer's first name of two",
        twin,
        ALICE,
        of(&format!("/CN={cn}/CN=Else")),
    );
    t.allow(
        "an issuer's second name of two",
        twin,
        ALICE,
        of(&format!("/CN=Else/CN={cn}")),
    );
    let twin = "another multi-valued RDN of an issuer";
    t.allow(
        "a multi-valued RDN of an issuer",
        twin,
        ALICE,
        of(&format!("/O=Acme+CN={cn}")),
    );
    t.nobody(twin, of(&format!("/O={cn}+CN=Acme")));
    for (what, subject) in [
        (
            "an issuer in lower case",
            "/O=Acme/CN=site admin issuing ca".to_owned(),
        ),
        ("a space after the issuer", format!("/O=Acme/CN={cn} ")),
        ("a space before the issuer", format!("/O=Acme/CN= {cn}")),
        ("a shorter issuer", "/O=Acme/CN=Site Admin".to_owned()),
        ("the issuer's name in its O", format!("/O={cn}/CN=CA")),
        (
            "the issuer's name within another",
            format!("/O=Acme/CN=X, CN={cn}"),
        ),
        ("an issuer without a name", "/O=Acme/OU=CA".to_owned()),
        (
            "an issuer with two other names",
            "/CN=Else/CN=Site Admin".to_owned(),
        ),
        (
            "an issuer with a control character",
            format!("/O=Acme/CN={cn}\u{1}"),
        ),
    ] {
        t.nobody(what, of(&subject));
    }
    t.nobody(
        "an issuer with a NUL after its name",
        Box::new(of_an_issuer_with_a_nul),
    );
    let claims_it = Cert::new(&format!("/O=Acme/OU=site-admins/CN={cn}"));
    t.nobody(
        "the issuer's name in the subject",
        by(claims_it, issuer("/O=Acme/CN=Another")),
    );
    for (strings, name) in STRING_TYPES {
        let of = |cn: &str| {
            let subject = format!("/O=Acme/CN={cn}");
            let issuer = move || below(admin_root(), &subject, strings);
            by(admin_cert().strings(strings), issuer)
        };
        let twin = format!("another issuer in {name}");
        t.allow(&format!("the issuer in {name}"), &twin, ALICE, of(cn));
        t.nobody(&twin, of("Site Admin Issuing CB"));
    }
}

const STRING_TYPES: [(Strings, &str); 5] = [
    (Strings::Utf8, "UTF8String"),
    (Strings::Printable, "PrintableString"),
    (Strings::Ia5, "IA5String"),
    (Strings::T61, "T61String"),
    (Strings::Bmp, "BMPString"),
];

fn of_an_issuer_with_a_nul() -> Leaf {
    let marked = issuer(&format!("/O=Acme/CN={ADMIN_ISSUER_CN}~.example"))();
    let (from, to) = (
        format!("{ADMIN_ISSUER_CN}~"),
        format!("{ADMIN_ISSUER_CN}\0"),
    );
    let (from, to) = (from.as_bytes(), to.as_bytes());
    let of_root = Leaf {
        cert_chain: marked.cert.clone(),
        key: marked.key.clone(),
    };
    let of_root = patched(&of_root, admin_root(), from, to).cert_chain;
    let issuer = Ca {
        chain: fs::read_to_string(of_root).unwrap(),
        ..marked.clone()
    };
    patched(&admin_cert().signed_by(&marked), &issuer, from, to)
}

/// Rows about the bundle in which a chain ends, and about the certificates between.
fn chains(t: &mut Table) {
    let cn = ADMIN_ISSUER_CN;
    t.config = Config::Usual;
    t.nobody(
        "the issuer's name below the service CA",
        by(admin_cert(), site_issuer(cn)),
    );
    t.nobody(
        "the administrators' root itself",
        by(admin_cert(), || admin_root().clone()),
    );
    let two_down = |cn: &str| {
        let subject = format!("/O=Acme/CN={cn}");
        let middle = issuer("/O=Acme/CN=Middle CA");
        by(admin_cert(), move || {
            below(&middle(), &subject, Strings::Utf8)
        })
    };
    let twin = "another issuer two levels down";
    t.allow("the issuer two levels down", twin, ALICE, two_down(cn));
    t.nobody(twin, two_down("Another"));
    let sub_ca = || below(admin_issuer(), "/O=Acme/CN=Sub CA", Strings::Utf8);
    t.nobody("a CA below the issuer", by(admin_cert(), sub_ca));
    let foreign = || {
        below(
            other_ca(),
            &format!("/O=Acme/CN={ADMIN_ISSUER_CN}"),
            Strings::Utf8,
        )
    };
    t.refused(
        "the issuer's name below a foreign root",
        "unknown_ca",
        by(admin_cert(), foreign),
    );
    t.refused(
        "self-signed",
        "unknown_ca",
        Box::new(|| admin_cert().self_signed()),
    );
    let alone = || {
        let leaf = admin_cert().signed_by(admin_issuer());
        Leaf {
            cert_chain: leaf.key.with_file_name("cert.pem"),
            ..leaf
        }
    };
    t.refused("without the intermediate", "unknown_ca", Box::new(alone));

    t.config = Config::NoAdminBundle;
    let twin = "another name, without an admin bundle";
    let what = "the issuer's name, without an admin bundle";
    t.allow(what, twin, ALICE, by(admin_cert(), site_issuer(cn)));
    t.nobody(twin, by(admin_cert(), site_issuer("Another")));
    let what = "an administrator, without an admin bundle";
    t.refused(what, "unknown_ca", by(admin_cert(), listed));

    t.config = Config::Mixed;
    let twin = "an issuer below the service CA";
    let excepted = by(admin_cert(), site_issuer("Legacy Admin CA"));
    t.allow(
        "an excepted issuer below the service CA",
        twin,
        ALICE,
        excepted,
    );
    t.nobody(twin, by(admin_cert(), site_issuer(cn)));
}

/// The identity of a certificate that meets the criteria.
const OPS: &str = "external alice in ops";

/// A leaf and its issuer, from the components of both names.
fn by_components(components: &[(&str, &str)], strings: Strings) -> Make {
    let name = |whose: &str| {
        let of = |(component, value): &(&str, &str)| {
            let attribute = component.strip_prefix(whose)?;
            Some(format!("/{attribute}={value}"))
        };
        components.iter().filter_map(of).collect::<String>()
    };
    let issuer = name("Issuer");
    let cert = Cert::new(&name("Subject")).strings(strings);
    by(cert, move || below(admin_root(), &issuer, strings))
}

/// The criteria with one component replaced by none or by several.
fn with(i: usize, values: &[&'static str]) -> Vec<(&'static str, &'static str)> {
    let (component, _) = CRITERIA[i];
    let mut components = CRITERIA.to_vec();
    components.splice(i..=i, values.iter().map(|value| (component, *value)));
    components
}

fn criteria(t: &mut Table) {
    let utf8 = |components: &[(&str, &str)]| by_components(components, Strings::Utf8);
    t.config = Config::Criteria;
    t.allow("all six components", "no SubjectCN", OPS, utf8(&CRITERIA));
    for (i, (component, value)) in CRITERIA.into_iter().enumerate() {
        t.nobody(&format!("no {component}"), utf8(&with(i, &[])));
        t.nobody(&format!("another {component}"), utf8(&with(i, &["Else"])));
        let twin = format!("{component} and another one");
        t.nobody(&twin, utf8(&with(i, &["Else", value])));
        let twice = utf8(&with(i, &[value, value]));
        t.allow(&format!("{component} twice"), &twin, OPS, twice);
    }
    t.nobody("SubjectCN in another case", utf8(&with(5, &["Alice"])));
    t.nobody(
        "SubjectO with a control character",
        utf8(&with(3, &["Acme\u{1}"])),
    );
    t.nobody(
        "SubjectO that turns the line",
        utf8(&with(3, &["Acme\u{202e}"])),
    );
    let marked = utf8(&with(5, &["alice~root"]));
    let acme = issuer("/O=Acme/OU=PKI/CN=Acme Issuing CA");
    let with_nul = move || patched(&marked(), &acme(), b"alice~root", b"alice\0root");
    t.nobody("SubjectCN with a NUL after it", Box::new(with_nul));
    let of_acme = |subject: &str| {
        let acme = issuer("/O=Acme/OU=PKI/CN=Acme Issuing CA");
        by(Cert::new(subject), acme)
    };
    let twin = "a multi-valued RDN with another O";
    t.allow(
        "a multi-valued RDN",
        twin,
        OPS,
        of_acme("/O=Acme+OU=ops+CN=alice"),
    );
    t.nobody(twin, of_acme("/O=Acme+O=Else+OU=ops+CN=alice"));
    for (strings, name) in STRING_TYPES {
        let twin = format!("another SubjectCN in {name}");
        let all = by_components(&CRITERIA, strings);
        t.allow(&format!("all six in {name}"), &twin, OPS, all);
        t.nobody(&twin, by_components(&with(5, &["alicf"]), strings));
    }
}

/// Rows about the rule that counts if several match.
fn order(t: &mut Table) {
    let another = || issuer("/O=Acme/CN=Another");
    let bob = |organization: &str| Cert::new(&format!("/O={organization}/CN=bob"));
    t.config = Config::Mixed;
    let twin = "not listed, criteria not met";
    t.allow(
        "listed, criteria not met",
        twin,
        "external bob",
        by(bob("Else"), listed),
    );
    let operator = "external operator";
    t.allow(
        "not listed, criteria met",
        twin,
        operator,
        by(bob("Acme"), another()),
    );
    t.nobody(twin, by(bob("Else"), another()));
    let twin = "listed, criteria met, a broken id";
    t.allow(
        "listed, criteria met",
        twin,
        ALICE,
        by(admin_cert(), listed),
    );
    t.nobody(
        twin,
        by(admin_with("spiffe://nico.local/elsewhere"), listed),
    );
    let machine = by(admin_with(&format!("{MACHINE_BASE}fm100")), listed);
    t.not_allowed(
        "listed, criteria met, a machine's id",
        "machine fm100",
        machine,
    );
}

/// Rows about certificates that the handshake accepts or refuses.
fn handshakes(t: &mut Table) {
    let api = || service_cert("nico-api");
    t.config = Config::Usual;
    let eku = |usages: &str| by(api().eku(usages), site_ca);
    t.allow("for clients", "for servers", API, eku("clientAuth"));
    let twin = "for servers and mail";
    t.allow(
        "for servers and clients",
        twin,
        API,
        eku("serverAuth,clientAuth"),
    );
    for (what, usages) in [
        ("for servers", "serverAuth"),
        (twin, "serverAuth,emailProtection"),
        ("for any purpose, by that name", "anyExtendedKeyUsage"),
    ] {
        t.refused(what, "bad_eku", eku(usages));
    }
    let twin = "with an RSA key, expired";
    t.allow("with an RSA key", twin, API, by(api().rsa(), site_ca));
    t.refused(twin, "expired", by(api().rsa().expired(), site_ca));
    t.refused("expired", "expired", by(api().expired(), site_ca));
    t.refused(
        "not yet valid",
        "not_yet_valid",
        by(api().not_yet_valid(), site_ca),
    );
    let unknown = api().extension("1.2.3.4 = critical,DER:0500");
    t.refused(
        "an unknown critical extension",
        "bad_certificate",
        by(unknown, site_ca),
    );
    // The signature is by another key.
    let altered = || {
        patched(
            &service_cert("nico-dhcp").signed_by(root_ca()),
            other_ca(),
            b"dhcp",
            b"apis",
        )
    };
    t.refused("altered", "bad_certificate", Box::new(altered));
}

fn revocation(t: &mut Table, revoked: &Revoked) {
    let made = |leaf: &Leaf| -> Make {
        let leaf = leaf.clone();
        Box::new(move || leaf.clone())
    };
    t.config = Config::Revoking;
    let twin = "on its issuer's list";
    t.allow("on no list", twin, ALICE, by(admin_cert(), listed));
    t.refused(twin, "revoked", made(&revoked.admin));
    let twin = "a service on a list";
    t.allow(
        "a service on no list",
        twin,
        API,
        by(service_cert("nico-api"), site_ca),
    );
    t.refused(twin, "revoked", made(&revoked.service));
    t.refused(
        "below an intermediate on a list",
        "revoked",
        made(&revoked.below),
    );
    let unlisted = by(admin_cert(), issuer("/O=Acme/CN=Without a list"));
    t.refused("of an issuer without a list", "crl_missing", unlisted);
}

fn table(revoked: &Revoked) -> Table {
    let mut table = Table {
        rows: Vec::new(),
        config: Config::Usual,
    };
    for rows in [
        services_and_machines,
        spiffe_ids,
        key_usages,
        issuers,
        chains,
        criteria,
        order,
        handshakes,
    ] {
        rows(&mut table);
    }
    revocation(&mut table, revoked);
    table
}

#[tokio::test(flavor = "multi_thread")]
async fn every_certificate_gives_the_result_of_its_row() {
    let revoked = Revoked::make();
    let wrong = show_all(&table(&revoked).rows, &revoked).await;
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_allowed_row_has_a_denied_twin() {
    let rows = table(&Revoked::none()).rows;
    let by_name: BTreeMap<_, _> = rows.iter().map(|row| (row.name.as_str(), row)).collect();
    assert_eq!(by_name.len(), rows.len(), "a name for each");
    assert!(rows.len() >= 60, "{}", rows.len());
    for row in &rows {
        let allowed = matches!(row.expected, Outcome::Permit(_));
        assert_eq!(row.twin.is_some(), allowed, "{}", row.name);
        if let Some(twin) = &row.twin {
            let twin = by_name.get(twin.as_str()).expect(twin);
            assert!(!matches!(twin.expected, Outcome::Permit(_)), "{}", row.name);
            assert_eq!(twin.config, row.config, "{}", row.name);
        }
    }
    for config in CONFIGS {
        let mut of_config = rows.iter().filter(|row| row.config == config);
        assert!(of_config.any(|row| row.twin.is_some()), "{config:?}");
    }
}
