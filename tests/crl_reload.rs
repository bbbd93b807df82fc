//! A reload to a revocation list that is older than the loaded one.

use crate::certs::{admin_issuer, root_ca, service};
use crate::crl::Crl;
use crate::handshake::handshake;
use crate::reload::{Files, disabled, until, until_reloaded};

const NOT_RELOADED: &str = "TLS files not reloaded: the files that were loaded before stay in use";

#[tokio::test]
async fn an_older_list_is_refused_and_the_loaded_one_stays_in_use() {
    let files = Files::new();
    let bad = service("nico-api");
    let newest = || Crl::of(root_ca()).revokes(&bad.key).number(7);
    files.install("crl.pem", &newest().issue());
    let server = files.site(disabled()).start().await;
    let is_refused = async || handshake(&server, Some(&bad), &[]).await.is_err();
    assert!(is_refused().await);
    let older = [
        (
            Crl::of(root_ca()).number(6),
            "(cRLNumber 6, thisUpdate 2024-01-01T00:00:00Z)",
        ),
        (
            Crl::of(root_ca()).number(7).old(),
            "(cRLNumber 7, thisUpdate 2023-01-01T00:00:00Z)",
        ),
        (
            Crl::of(root_ca()).number(8).old(),
            "(cRLNumber 8, thisUpdate 2023-01-01T00:00:00Z)",
        ),
    ];
    for (failures, (list, found)) in (1_u32..).zip(older) {
        files.install("crl.pem", &list.issue());
        until_reloaded(&server, "failure", failures.into()).await;
        until(&server, "nico_rewrap_tls_reload_failing", &[], 1.0).await;
        let errors = server.wait_logs(NOT_RELOADED, failures as usize).await;
        let error = errors.last().unwrap()["error"].to_string();
        for words in [
            found,
            "has a list of O=NICo, CN=site-root",
            "older than the loaded one (cRLNumber 7, thisUpdate 2024-01-01T00:00:00Z)",
        ] {
            assert!(error.contains(words), "no {words:?} in {error}");
        }
        assert!(is_refused().await, "{found}");
        files.install("crl.pem", &newest().issue());
        until(&server, "nico_rewrap_tls_reload_failing", &[], 0.0).await;
    }
    // A newer list that no longer revokes the certificate is used.
    let reloads = server
        .metric("nico_rewrap_tls_reloads_total", &[("outcome", "success")])
        .await;
    files.install("crl.pem", &Crl::of(root_ca()).number(8).issue());
    until_reloaded(&server, "success", reloads.unwrap_or_default() + 1.0).await;
    assert!(!is_refused().await);
}

#[tokio::test]
async fn a_list_that_disappears_stays_in_use_and_an_older_one_cannot_take_its_place() {
    let files = Files::new();
    let bad = service("nico-api");
    let newest = || Crl::of(root_ca()).revokes(&bad.key).number(7);
    files.install("crl.pem", &newest().issue());
    let server = files.site(disabled()).start().await;
    let is_refused = async || handshake(&server, Some(&bad), &[]).await.is_err();
    files.install("crl.pem", &Crl::of(admin_issuer()).number(1).issue());
    until_reloaded(&server, "success", 1.0).await;
    let words = "[rewrap].crl_files no longer has the list of this issuer and key: the loaded list stays in use until \
                 a restart. Put the list back, or restart nico-rewrap";
    let warning = server.wait_log(words).await;
    assert_eq!(warning["issuer"], "O=NICo, CN=site-root");
    // The policy accepts an issuer without a list.
    assert!(is_refused().await);

    // The list of the third state is that of the first.
    files.install("crl.pem", &Crl::of(admin_issuer()).number(2).issue());
    until_reloaded(&server, "success", 2.0).await;
    assert!(is_refused().await);

    files.install("crl.pem", &Crl::of(root_ca()).number(6).issue());
    until_reloaded(&server, "failure", 1.0).await;
    let error = server.wait_log(NOT_RELOADED).await["error"].to_string();
    assert!(error.contains("older than the loaded one"), "{error}");
    files.install("crl.pem", &newest().issue());
    until_reloaded(&server, "success", 3.0).await;
    assert!(is_refused().await);
}

#[tokio::test]
async fn a_start_uses_the_list_that_is_there() {
    let files = Files::new();
    let bad = service("nico-api");
    files.install(
        "crl.pem",
        &Crl::of(root_ca()).revokes(&bad.key).number(2).issue(),
    );
    let first = files.site(disabled()).start().await;
    assert_eq!(first.terminate().await, 0);
    files.install("crl.pem", &Crl::of(root_ca()).number(1).issue());
    let second = files.site(disabled()).start().await;
    assert!(handshake(&second, Some(&bad), &[]).await.is_ok());
}
