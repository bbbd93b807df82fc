//! nico-api's optional rules, with a server: `[auth.cli_certs]`, the Casbin policy and the
//! permissive mode.

use serde_json::{Value, json};

use crate::ca::Ca;
use crate::certs::{self, ADMIN_ISSUER_CN, admin_cert, admin_issuer, admin_issuer_named, service};
use crate::config_sources::warned;
use crate::configuration::{accepted, refused};
use crate::database::Database;
use crate::grpcurl::{Call, reencrypt};
use crate::pki::{Cert, Leaf, Strings};
use crate::server::{Server, field};
use crate::site::{Site, path, quote};

const OK: &str = "OK";
const NO_IDENTITY: &str = "UNAUTHENTICATED NO_IDENTITY";
const NOT_ALLOWED: &str = "PERMISSION_DENIED NOT_ALLOWED";
const DENIED: &str = "PERMISSION_DENIED DENIED_BY_POLICY";

async fn outcome(server: &Server, leaf: &Leaf) -> String {
    match reencrypt(server, leaf, json!({"dryRun": true})).await {
        Ok(_) => OK.to_owned(),
        Err(error) => format!("{} {}", error.code, error.reason().unwrap_or_default()),
    }
}

async fn assert_outcomes(server: &Server, table: &[(&str, Leaf, &str)]) {
    for (what, leaf, expected) in table {
        assert_eq!(outcome(server, leaf).await, *expected, "{what}");
    }
}

/// A site with this policy file.
fn with_policy(site: Site, policy: &str) -> Site {
    let file = site.dir().join("policy.csv");
    std::fs::write(&file, policy).unwrap();
    site.set("auth.casbin_policy_file", path(file))
}

fn in_group(group: &str) -> Leaf {
    Cert::new(&format!("/O=Acme/OU={group}/CN=alice")).signed_by(admin_issuer())
}

fn texts<'a>(record: &'a Value, names: [&str; 4]) -> [Option<&'a str>; 4] {
    names.map(|name| field(record, name).and_then(Value::as_str))
}

const IDENTITY: [&str; 4] = [
    "identity_kind",
    "identity",
    "identity_organization",
    "identity_group",
];

#[tokio::test]
async fn a_certificate_that_meets_cli_certs_is_an_administrators() {
    let database = Database::migrated().await;
    let required = format!(
        "{{ IssuerO = \"Acme\", IssuerCN = {}, SubjectO = \"Acme\" }}",
        quote(ADMIN_ISSUER_CN)
    );
    let site = || {
        Site::new(&database)
            .set("auth.trust.additional_issuer_cns", "[]")
            .set("auth.cli_certs.required_equals", required.as_str())
            .set("auth.cli_certs.group_from", "\"SubjectOU\"")
            .set("auth.cli_certs.username_from", "\"SubjectCN\"")
    };
    let server = site().start().await;
    let issued_by = |issuer: &Ca| admin_cert().signed_by(issuer);
    let named = |subject: &str| Cert::new(subject).signed_by(admin_issuer());
    let no_issuer_o =
        certs::admin_root().intermediate(&format!("/CN={ADMIN_ISSUER_CN}"), Strings::Utf8);
    let uri = |uri: &str| admin_cert().san(uri).signed_by(admin_issuer());
    let table = [
        ("meets them all", issued_by(admin_issuer()), OK),
        (
            "has no subject O",
            named("/OU=site-admins/CN=alice"),
            NO_IDENTITY,
        ),
        (
            "has another",
            named("/O=Acme2/OU=site-admins/CN=alice"),
            NO_IDENTITY,
        ),
        (
            "has another too",
            named("/O=Acme/O=Acme2/CN=alice"),
            NO_IDENTITY,
        ),
        ("has it twice", named("/O=Acme/O=Acme/CN=alice"), OK),
        (
            "has another issuer CN",
            issued_by(&admin_issuer_named("Another", Strings::Utf8)),
            NO_IDENTITY,
        ),
        ("has no issuer O", issued_by(&no_issuer_o), NO_IDENTITY),
        (
            "has a foreign SPIFFE id",
            uri("URI:spiffe://other.local/x"),
            NO_IDENTITY,
        ),
        ("has a web address", uri("URI:https://acme.example/"), OK),
        ("is nico-api", service("nico-api"), OK),
    ];
    assert_outcomes(&server, &table).await;
    let records = server.logs_with("call");
    assert_eq!(
        texts(&records[0], IDENTITY),
        [Some("external"), Some("alice"), None, Some("site-admins")]
    );
    assert_eq!(
        texts(&records[1], IDENTITY),
        [Some("none"), None, None, None]
    );

    let nobody = site().set("auth.cli_certs.required_equals", "{ IssuerO = \"acme\" }");
    let server = nobody.start().await;
    let table = [
        ("in another case", issued_by(admin_issuer()), NO_IDENTITY),
        ("is nico-api", service("nico-api"), OK),
    ];
    assert_outcomes(&server, &table).await;
}

#[tokio::test]
async fn a_casbin_policy_must_also_allow_the_call() {
    let database = Database::migrated().await;
    let policy = include_str!("nico_api/casbin-policy.csv");
    let server = with_policy(Site::new(&database), policy).start().await;
    let no_group = Cert::new("/O=Acme/CN=alice").signed_by(admin_issuer());
    let table = [
        ("in an allowed group", in_group("site-admins"), OK),
        ("in another one", in_group("viewers"), DENIED),
        ("in one that no rule names", in_group("site-admin"), DENIED),
        ("in upper case", in_group("SITE-ADMINS"), DENIED),
        ("in none", no_group, DENIED),
        ("an allowed service", service("nico-api"), OK),
        (
            "one that only our setting allows",
            service("carbide-api"),
            DENIED,
        ),
        (
            "one that may do something else",
            service("nico-dhcp"),
            NOT_ALLOWED,
        ),
        ("a machine", certs::machine().clone(), NOT_ALLOWED),
        (
            "nobody",
            admin_cert().signed_by(certs::root_ca()),
            NO_IDENTITY,
        ),
    ];
    assert_outcomes(&server, &table).await;
    for (kind, outcome, count) in [
        ("external", "allowed", 1.0),
        ("external", "denied_by_policy", 4.0),
        ("service", "allowed", 1.0),
        ("service", "denied_by_policy", 1.0),
        ("service", "not_allowed", 1.0),
        ("machine", "not_allowed", 1.0),
        ("none", "no_identity", 1.0),
    ] {
        let labels = [("identity_kind", kind), ("outcome", outcome)];
        let name = "nico_rewrap_authorization_decisions_total";
        assert_eq!(
            server.metric(name, &labels).await,
            Some(count),
            "{labels:?}"
        );
    }
    let metrics = server.metrics().await;
    for name in [
        "alice",
        "Acme",
        "site-admin",
        "viewers",
        "nico-api",
        "carbide-api",
    ] {
        assert!(!metrics.contains(name), "{name}: {metrics}");
    }
    // Under any policy, public services are open to every certificate, and other methods are not.
    let denied = in_group("viewers");
    let health = Call::new(&server, &denied);
    let answer = health
        .unary("grpc.health.v1.Health/Check", &json!({}))
        .await;
    assert_eq!(answer.unwrap().0["status"], "SERVING");
    let proto = tempfile::NamedTempFile::with_suffix(".proto").unwrap();
    let text = "syntax = \"proto3\"; package forge; message M {} service Forge { rpc Other(M) returns (M); }";
    std::fs::write(proto.path(), text).unwrap();
    for (leaf, code) in [
        (&denied, "PERMISSION_DENIED"),
        (&in_group("site-admins"), "UNIMPLEMENTED"),
    ] {
        let other = Call::new(&server, leaf).proto(proto.path());
        let error = other
            .unary("forge.Forge/Other", &json!({}))
            .await
            .unwrap_err();
        assert_eq!(error.code, code);
    }
}

#[tokio::test]
async fn a_rule_for_trusted_certificates_adds_no_callers() {
    let database = Database::migrated().await;
    let served = async |policy: &str| {
        let server = with_policy(Site::new(&database), policy).start().await;
        outcome(&server, certs::admin()).await
    };
    assert_eq!(served("p, trusted-certificate, forge/*").await, OK);
    assert_eq!(served("p, trusted-certificate, nico/*").await, DENIED);
    assert_eq!(served("p, trusted-certificate, *").await, DENIED);
    assert_eq!(served("p, anonymous, forge/*").await, DENIED);
    let everybody = "p, trusted-certificate, **\np, spiffe-service-id/nico-dhcp, **";
    let server = with_policy(Site::new(&database), everybody).start().await;
    let table = [
        ("a service that may not", service("nico-dhcp"), NOT_ALLOWED),
        (
            "nobody",
            admin_cert().signed_by(certs::root_ca()),
            NO_IDENTITY,
        ),
    ];
    assert_outcomes(&server, &table).await;
}

#[tokio::test]
async fn permissive_mode_ignores_only_the_policy_and_is_logged() {
    let database = Database::migrated().await;
    let permissive = |site: Site| site.set("auth.permissive_mode", "true");
    let policy = "p, external-role/site-admins, forge/*";
    let server = with_policy(permissive(Site::new(&database)), policy)
        .start()
        .await;
    assert!(warned(&server, "[auth].permissive_mode is true"));
    let let_pass = "the Casbin policy denies this call, but [auth].permissive_mode allows it";

    assert_eq!(outcome(&server, certs::admin()).await, OK);
    assert!(!warned(&server, let_pass), "the policy allows it");
    let table = [
        ("denied by the policy", in_group("viewers"), OK),
        ("a service that may not", service("nico-dhcp"), NOT_ALLOWED),
        ("a machine", certs::machine().clone(), NOT_ALLOWED),
        (
            "nobody",
            admin_cert().signed_by(certs::root_ca()),
            NO_IDENTITY,
        ),
    ];
    assert_outcomes(&server, &table).await;
    let warnings = server.logs_with(let_pass);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    let text = |name: &str| field(&warnings[0], name).and_then(Value::as_str).unwrap();
    assert_eq!(text("level"), "WARN");
    assert_eq!(text("identity_kind"), "external");
    assert_eq!(text("action"), "forge/ReencryptTenantIdentitySecrets");
    let labels = [("outcome", "allowed_by_permissive_mode")];
    let counted = server.metric("nico_rewrap_authorization_decisions_total", &labels);
    assert_eq!(counted.await, Some(1.0));

    let server = with_policy(Site::new(&database), policy).start().await;
    assert!(!warned(&server, "permissive_mode"));
    assert_eq!(outcome(&server, &in_group("viewers")).await, DENIED);
}

#[tokio::test]
async fn an_unreadable_or_invalid_policy_stops_the_start() {
    let database = Database::migrated().await;
    let bad = [
        ("p, a", "policy.csv line 1 has 2 fields"),
        (
            "# ok\np, a, forge/*\nallow all",
            "policy.csv line 3 is not a rule",
        ),
        (
            "p, a, forge/[",
            "policy.csv line 1 has an action that is not a glob",
        ),
        ("p, \"a, forge/*", "policy.csv line 1 has quotes"),
    ];
    for (policy, words) in bad {
        let words = ["site.toml: [auth].casbin_policy_file: ", words];
        refused(&database, &words, |site| with_policy(site, policy)).await;
    }
    let all = [
        "policy.csv line 1 has 2 fields",
        "policy.csv line 2 is not a rule",
    ];
    let said = refused(&database, &all, |site| with_policy(site, "p, a\nq, a, b")).await;
    assert_eq!(said.lines().count(), 2, "{said}");
    // The policy must be valid even if it is not enforced.
    refused(&database, &["policy.csv line 1"], |site| {
        with_policy(site, "p, a").set("auth.permissive_mode", "true")
    })
    .await;
    refused(&database, &["can't be read ("], |site| {
        let site = with_policy(site, "");
        std::fs::write(site.dir().join("policy.csv"), b"p, a, \xff").unwrap();
        site
    })
    .await;
    accepted(&database, |site| with_policy(site, "p, a, forge/*")).await;

    let server = with_policy(Site::new(&database), "# nothing yet")
        .start()
        .await;
    assert!(
        warned(&server, "has no \"p\" rule"),
        "{}",
        server.log_text()
    );
    assert_eq!(outcome(&server, certs::admin()).await, DENIED);
}
