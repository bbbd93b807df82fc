//! Which certificates may re-wrap. Most cases are in the table of `certificates.rs`. The cases here
//! need their own configuration. All certificates here verify.

use serde_json::json;

use crate::certs::{self, admin_cert, admin_root, root_ca, service};
use crate::database::Database;
use crate::grpcurl::Call;
use crate::pki::Leaf;
use crate::server::Server;
use crate::site::{Site, quote};

pub(crate) const OK: &str = "OK";
pub(crate) const NO_IDENTITY: &str = "UNAUTHENTICATED NO_IDENTITY";
const NOT_ALLOWED: &str = "PERMISSION_DENIED NOT_ALLOWED";

pub(crate) async fn site() -> Site {
    Site::new(&Database::migrated().await)
}

/// The result of a dry run of the site, or of this organization: `OK`, or code and reason.
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

#[tokio::test]
async fn no_service_may_where_none_is_allowed() {
    let none = site().await.set("rewrap.allowed_services", "[]");
    let server = none.start().await;
    let table = [
        ("no service at all", service("nico-api"), NOT_ALLOWED),
        ("an administrator", certs::admin().clone(), OK),
    ];
    assert_outcomes(&server, &table).await;
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
