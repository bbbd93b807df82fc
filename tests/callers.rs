//! Who may re-wrap: certificates in, statuses out. Every certificate here verifies unless its test says otherwise.

use serde_json::json;

use crate::ca::Ca;
use crate::certs::{
    self, ADMIN_ISSUER_CN, MACHINE_BASE, SERVICE_BASE, admin_cert, admin_issuer,
    admin_issuer_named, admin_root, root_ca, service, service_cert,
};
use crate::database::Database;
use crate::grpcurl::Call;
use crate::handshake::handshake;
use crate::pki::{Cert, Leaf, Strings};
use crate::server::Server;
use crate::site::{Site, quote};

pub(crate) const OK: &str = "OK";
pub(crate) const NO_IDENTITY: &str = "UNAUTHENTICATED NO_IDENTITY";
const NOT_ALLOWED: &str = "PERMISSION_DENIED NOT_ALLOWED";

pub(crate) async fn site() -> Site {
    Site::new(&Database::migrated().await)
}

/// What a site-wide dry run comes to, or one with this organization id: `OK`, or the code and its reason.
pub(crate) async fn outcome_of(
    server: &Server,
    leaf: &Leaf,
    organization_id: Option<&str>,
) -> String {
    let mut request = json!({"dryRun": true});
    if let Some(id) = organization_id {
        request["organizationId"] = id.into();
    }
    let call = Call::new(server, leaf).without_reflection();
    match call.reencrypt(&request).await {
        Ok(_) => OK.to_owned(),
        Err(error) => format!("{} {}", error.code, error.reason().unwrap_or_default()),
    }
}

pub(crate) async fn assert_outcomes(server: &Server, table: &[(&str, Leaf, &str)]) {
    for (what, leaf, expected) in table {
        assert_eq!(outcome_of(server, leaf, None).await, *expected, "{what}");
    }
}

/// A certificate with these URIs and an administrator's subject.
fn with_uris(uris: &[&str]) -> Cert {
    let add = |cert: Cert, uri: &&str| cert.san(&format!("URI:{uri}"));
    uris.iter().fold(admin_cert(), add)
}

#[tokio::test]
async fn nico_api_may_under_both_its_names_and_nobody_else_of_the_site() {
    let server = site().await.start().await;
    let nico_api = format!("{SERVICE_BASE}nico-api");
    let signed = |cert: Cert| cert.signed_by(root_ca());
    let dns = service_cert("nico-api").san("DNS:nico-api.nico-system.svc");
    let machine = |id: &str| signed(with_uris(&[&format!("{MACHINE_BASE}{id}")]));
    let table = [
        ("nico-api", service("nico-api"), OK),
        ("its old name", service("carbide-api"), OK),
        (
            "the other base path",
            signed(with_uris(&["spiffe://nico.local/default/sa/nico-api"])),
            OK,
        ),
        ("with a DNS name too", signed(dns), OK),
        ("with a subject too", signed(with_uris(&[&nico_api])), OK),
        ("another service", service("nico-dhcp"), NOT_ALLOWED),
        ("a longer name", service("nico-api2"), NOT_ALLOWED),
        ("a shorter name", service("nico-ap"), NOT_ALLOWED),
        ("in upper case", service("NICO-API"), NOT_ALLOWED),
        ("something below it", service("nico-api/x"), NOT_ALLOWED),
        ("a machine", certs::machine().clone(), NOT_ALLOWED),
        ("a machine of that name", machine("nico-api"), NOT_ALLOWED),
        (
            "the name in the subject only",
            signed(Cert::new("/O=NICo/CN=nico-api").san("DNS:nico-api")),
            NO_IDENTITY,
        ),
        (
            "an administrator's subject, under the service CA",
            signed(admin_cert()),
            NO_IDENTITY,
        ),
    ];
    assert_outcomes(&server, &table).await;
}

#[tokio::test]
async fn allowed_services_says_which_services_may() {
    let list = |names: &str| format!("[{names}]");
    let dhcp_only = site()
        .await
        .set("rewrap.allowed_services", list("\"nico-dhcp\""));
    let server = dhcp_only.start().await;
    let table = [
        ("listed", service("nico-dhcp"), OK),
        ("not any more", service("nico-api"), NOT_ALLOWED),
        ("neither", service("carbide-api"), NOT_ALLOWED),
        ("a machine", certs::machine().clone(), NOT_ALLOWED),
        ("an administrator", certs::admin().clone(), OK),
    ];
    assert_outcomes(&server, &table).await;

    let none = site().await.set("rewrap.allowed_services", list(""));
    let server = none.start().await;
    let table = [
        ("no service at all", service("nico-api"), NOT_ALLOWED),
        ("an administrator", certs::admin().clone(), OK),
    ];
    assert_outcomes(&server, &table).await;
}

/// All are issued by the administrators' listed CA, and would be administrators but for their SPIFFE id.
#[tokio::test]
async fn a_broken_spiffe_certificate_is_nobody_not_even_an_administrator() {
    let server = site().await.start().await;
    let good = format!("{SERVICE_BASE}nico-api");
    let outcome = async |cert: Cert| {
        let leaf = cert.signed_by(admin_issuer());
        outcome_of(&server, &leaf, None).await
    };
    assert_eq!(outcome(admin_cert()).await, OK);
    assert_eq!(outcome(with_uris(&["https://acme.example/a"])).await, OK);
    assert_eq!(outcome(with_uris(&[&good])).await, OK);
    // A good id of somebody who may not is that somebody, whoever issued it.
    let dhcp = format!("{SERVICE_BASE}nico-dhcp");
    assert_eq!(outcome(with_uris(&[&dhcp])).await, NOT_ALLOWED);

    let broken: [&[&str]; 19] = [
        &[&good, "spiffe://nico.local/default/sa/nico-api"],
        &[&good, &good],
        &[&good, "https://acme.example/a"],
        &["spiffe://other.local/nico-system/sa/nico-api"],
        &["spiffe://nico.local.example/nico-system/sa/nico-api"],
        &["spiffe://NICO.local/nico-system/sa/nico-api"],
        &["SPIFFE://nico.local/nico-system/sa/nico-api"],
        &["spiffe:nico.local/nico-system/sa/nico-api"],
        &["spiffe://nico.local:443/nico-system/sa/nico-api"],
        &["spiffe://nico.local/other-system/sa/nico-api"],
        &["spiffe://nico.local/NICO-SYSTEM/sa/nico-api"],
        &["spiffe://nico.local/nico-system/sax/nico-api"],
        &["spiffe://nico.local/nico-system/sa/"],
        &["spiffe://nico.local/nico-system/sa/./nico-api"],
        &["spiffe://nico.local/nico-system/x/../sa/nico-api"],
        &["spiffe://nico.local/nico-system/sa//nico-api"],
        &["spiffe://nico.local/nico-system/sa/nico%2Dapi"],
        &["spiffe://nico.local/nico-system/sa/nico-api/"],
        &["spiffe://nico.local"],
    ];
    for uris in broken {
        assert_eq!(outcome(with_uris(uris)).await, NO_IDENTITY, "{uris:?}");
    }
    for usage in ["critical,keyCertSign", "digitalSignature,cRLSign"] {
        let cert = with_uris(&[&good]).key_usage(Some(usage));
        assert_eq!(outcome(cert).await, NO_IDENTITY, "{usage}");
    }
    // Without SPIFFE the same usages break nothing.
    let cert = admin_cert().key_usage(Some("digitalSignature,keyCertSign"));
    assert_eq!(outcome(cert).await, OK);
    // A CA as a leaf does not even verify.
    let ca = with_uris(&[&good]).ca().signed_by(admin_issuer());
    handshake(&server, Some(&ca), &[]).await.unwrap_err();
}

#[tokio::test]
async fn an_administrator_is_known_by_the_issuers_name_in_every_string_type() {
    let server = site().await.start().await;
    for strings in [
        Strings::Printable,
        Strings::Utf8,
        Strings::T61,
        Strings::Bmp,
        Strings::Ia5,
    ] {
        let leaf = |cn: &str| {
            let issuer = admin_issuer_named(cn, strings);
            admin_cert().strings(strings).signed_by(&issuer)
        };
        let listed = outcome_of(&server, &leaf(ADMIN_ISSUER_CN), None).await;
        assert_eq!(listed, OK, "{strings:?}");
        let other = outcome_of(&server, &leaf("Another Issuing CA"), None).await;
        assert_eq!(other, NO_IDENTITY, "{strings:?}");
    }
}

#[tokio::test]
async fn an_issuer_that_differs_from_the_listed_one_makes_no_administrator() {
    let server = site().await.start().await;
    let issued_by = |issuer: Ca| admin_cert().signed_by(&issuer);
    let named = |cn: &str| issued_by(admin_issuer_named(cn, Strings::Utf8));
    let below = |subject: &str| issued_by(admin_root().intermediate(subject, Strings::Utf8));
    let claims_it = Cert::new(&format!("/O=Acme/OU=site-admins/CN={ADMIN_ISSUER_CN}"));
    let sub_ca = admin_issuer().intermediate("/O=Acme/CN=Sub CA", Strings::Utf8);
    let twice = |first: &str, second: &str| below(&format!("/O=Acme/CN={first}/CN={second}"));
    let table = [
        ("the listed one", named(ADMIN_ISSUER_CN), OK),
        ("in lower case", named("site admin issuing ca"), NO_IDENTITY),
        (
            "with a space after it",
            named("Site Admin Issuing CA "),
            NO_IDENTITY,
        ),
        (
            "with a space before it",
            named(" Site Admin Issuing CA"),
            NO_IDENTITY,
        ),
        ("the beginning of it", named("Site Admin"), NO_IDENTITY),
        (
            "in another attribute",
            below(&format!("/O={ADMIN_ISSUER_CN}/CN=CA")),
            NO_IDENTITY,
        ),
        (
            "within another value",
            named(&format!("X, CN={ADMIN_ISSUER_CN}")),
            NO_IDENTITY,
        ),
        ("without a CN", below("/O=Acme/OU=CA"), NO_IDENTITY),
        (
            "in the leaf's own subject",
            claims_it.signed_by(&admin_issuer_named("Another", Strings::Utf8)),
            NO_IDENTITY,
        ),
        ("one level up", issued_by(sub_ca), NO_IDENTITY),
        (
            "the root itself",
            issued_by(admin_root().clone()),
            NO_IDENTITY,
        ),
        ("as the first of two", twice(ADMIN_ISSUER_CN, "Else"), OK),
        ("as the second of two", twice("Else", ADMIN_ISSUER_CN), OK),
        ("as none of two", twice("Else", "Site Admin"), NO_IDENTITY),
    ];
    assert_outcomes(&server, &table).await;
}

#[tokio::test]
async fn the_issuing_intermediate_has_to_come_along() {
    let server = site().await.start().await;
    let complete = certs::admin();
    assert_eq!(outcome_of(&server, complete, None).await, OK);
    let alone = Leaf {
        cert_chain: complete.key.with_file_name("cert.pem"),
        key: complete.key.clone(),
    };
    let error = handshake(&server, Some(&alone), &[]).await.unwrap_err();
    assert!(error.contains("unknown ca"), "{error}");
    // Nor does the right name help, below a root that the bundle does not have.
    let subject = format!("/O=Acme/CN={ADMIN_ISSUER_CN}");
    let pretender = certs::other_ca().intermediate(&subject, Strings::Printable);
    let leaf = admin_cert().signed_by(&pretender);
    let error = handshake(&server, Some(&leaf), &[]).await.unwrap_err();
    assert!(error.contains("unknown ca"), "{error}");
}

#[tokio::test]
async fn a_listed_root_makes_administrators_of_its_own_leaves_only() {
    let list = format!("[{}]", quote("Acme Corporate Root"));
    let site = site().await.set("auth.trust.additional_issuer_cns", list);
    let server = site.start().await;
    let table = [
        ("below it", admin_cert().signed_by(admin_root()), OK),
        ("further below", certs::admin().clone(), NO_IDENTITY),
    ];
    assert_outcomes(&server, &table).await;
}

#[tokio::test]
async fn nobody_learns_anything_before_being_allowed() {
    let unreachable = || Site::with_url("postgres://nobody@127.0.0.1:1/none");
    let disabled = unreachable().set("machine_identity.enabled", "false");
    let servers = [
        (
            disabled.start().await,
            "FAILED_PRECONDITION MACHINE_IDENTITY_DISABLED",
        ),
        (unreachable().start_unready().await, "UNAVAILABLE NOT_READY"),
        (site().await.start().await, OK),
    ];
    let nobody = admin_cert().signed_by(root_ca());
    let dhcp = service("nico-dhcp");
    for (server, allowed) in servers {
        let admin = outcome_of(&server, certs::admin(), None).await;
        assert_eq!(admin, allowed);
        let malformed = outcome_of(&server, certs::admin(), Some("a b")).await;
        assert_eq!(malformed, "INVALID_ARGUMENT INVALID_ORGANIZATION_ID");
        for id in [None, Some("a b"), Some(""), Some("no-such-organization")] {
            assert_eq!(outcome_of(&server, &dhcp, id).await, NOT_ALLOWED, "{id:?}");
            assert_eq!(outcome_of(&server, &nobody, id).await, NO_IDENTITY);
        }
    }
}
