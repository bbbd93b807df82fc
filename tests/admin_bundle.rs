//! An admin bundle that is configured and missing: it makes no administrators.

use std::path::PathBuf;

use serde_json::json;

use crate::anchors::impostor;
use crate::callers::{NO_IDENTITY, OK, assert_outcomes, outcome_of, site};
use crate::certs::{self, ADMIN_ISSUER_CN, admin_cert, root_ca, service};
use crate::grpcurl::reencrypt;
use crate::process::lasting_dir;
use crate::reload::{Files, disabled, until, until_reloaded};
use crate::server::field;
use crate::site::{path, quote};

const WARNING: &str = "no admin bundle: [tls].admin_root_cafile_path is empty, or names an absent or \
     empty file. Only the issuers of [rewrap].admin_issuers_in_root_ca make administrators";

/// The values of `admin_root_cafile_path` that name no bundle.
fn missing() -> [String; 4] {
    let dir = lasting_dir("bundle");
    let file = |name: &str, text: &str| {
        std::fs::write(dir.join(name), text).unwrap();
        path(dir.join(name))
    };
    [
        path(dir.join("absent.pem")),
        file("empty.pem", ""),
        file("blank.pem", "\n  \n"),
        quote(""),
    ]
}

#[tokio::test]
async fn a_missing_bundle_makes_no_administrators() {
    for bundle in missing() {
        let site = site().await.set("tls.admin_root_cafile_path", &bundle);
        let server = site.start().await;
        let table = [
            (
                "an impostor",
                admin_cert().signed_by(&impostor()),
                NO_IDENTITY,
            ),
            ("a service", service("nico-api"), OK),
        ];
        assert_outcomes(&server, &table).await;
        assert_eq!(server.logs_with(WARNING).len(), 1, "{bundle}");
    }
    let without = site()
        .await
        .unset("tls.admin_root_cafile_path")
        .start()
        .await;
    assert_eq!(without.logs_with(WARNING).len(), 0);
    let table = [("", admin_cert().signed_by(&impostor()), OK)];
    assert_outcomes(&without, &table).await;
}

/// The installation of nico-api's reference chart: administrators below the service root, and
/// the path of a bundle that does not exist.
#[tokio::test]
async fn the_reference_install_needs_one_line() {
    let bundle = &missing()[0];
    let reference = async || {
        let listed = format!("[{}]", quote("site-root"));
        let site = site().await.set("tls.admin_root_cafile_path", bundle);
        site.set("auth.trust.additional_issuer_cns", listed)
    };
    let admin = admin_cert().signed_by(root_ca());
    let server = reference().await.start().await;
    assert_outcomes(&server, &[("without it", admin.clone(), NO_IDENTITY)]).await;
    let line = ("rewrap.admin_issuers_in_root_ca", "[\"site-root\"]");
    let server = reference().await.set(line.0, line.1).start().await;
    let table = [
        ("with it", admin, OK),
        (
            "another issuer",
            admin_cert().signed_by(&impostor()),
            NO_IDENTITY,
        ),
    ];
    assert_outcomes(&server, &table).await;
}

#[tokio::test]
async fn every_refusal_names_the_setting() {
    let site = site()
        .await
        .set("tls.admin_root_cafile_path", &missing()[0]);
    let server = site.start().await;
    let leaf = admin_cert().signed_by(&impostor());
    let error = reencrypt(&server, &leaf, json!({"dryRun": true})).await;
    let error = error.unwrap_err();
    let record = server.wait_log("call").await;
    let denied = server.wait_log("call denied").await;
    assert_eq!(
        field(&record, "denied_by").unwrap(),
        "[tls].admin_root_cafile_path"
    );
    assert_eq!(
        field(&denied, "rule").unwrap(),
        "[tls].admin_root_cafile_path"
    );
    for text in [&error.message, &record.to_string(), &denied.to_string()] {
        for setting in [
            "[tls].admin_root_cafile_path",
            "[rewrap].admin_issuers_in_root_ca",
        ] {
            assert!(text.contains(setting), "no {setting} in {text}");
        }
    }
    assert!(
        !error.message.contains(ADMIN_ISSUER_CN),
        "{}",
        error.message
    );
}

#[tokio::test]
async fn a_bundle_that_appears_is_used_and_one_that_vanishes_stays_in_use() {
    let files = Files::new();
    let bundle: PathBuf = files.0.join("admin.pem");
    std::fs::remove_file(&bundle).unwrap();
    let server = files.site(disabled()).start().await;
    let impostor = admin_cert().signed_by(&impostor());
    // The server knows nobody of the administrators' CA yet.
    assert_eq!(outcome_of(&server, &impostor, None).await, NO_IDENTITY);
    files.install("admin.pem", &certs::admin_root().cert);
    until_reloaded(&server, "success", 1.0).await;
    let allowed = "FAILED_PRECONDITION MACHINE_IDENTITY_DISABLED";
    let assert_bundle = async || {
        assert_eq!(outcome_of(&server, certs::admin(), None).await, allowed);
        assert_eq!(outcome_of(&server, &impostor, None).await, NO_IDENTITY);
    };
    assert_bundle().await;
    std::fs::remove_file(&bundle).unwrap();
    until(&server, "nico_rewrap_tls_reload_failing", &[], 1.0).await;
    assert_bundle().await;
    files.install("admin.pem", &certs::admin_root().cert);
    until(&server, "nico_rewrap_tls_reload_failing", &[], 0.0).await;
    assert_bundle().await;
}
