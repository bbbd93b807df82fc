//! TLS to Postgres: what each `sslmode` accepts and refuses. The certificates of the servers are by
//! the real `openssl`.

use std::sync::LazyLock;

use tokio_postgres::Client;

use crate::anchors::version_1;
use crate::ca::Ca;
use crate::certs;
use crate::database::Database;
use crate::grpcurl::run;
use crate::leaks;
use crate::pg;
use crate::pki::{Cert, Leaf};
use crate::seed::Org;
use crate::site::{Site, quote};

/// A server with TLS. Its certificate names only localhost, so it does not match the address.
static BY_NAME: LazyLock<pg::Server> = LazyLock::new(|| {
    let leaf = Cert::new("/CN=localhost")
        .san("DNS:localhost")
        .signed_by(certs::root_ca());
    pg::Server::options().tls(&leaf).start()
});

const PLAIN: &str = "PLAIN";
const TLS: &str = "TLS";

/// A database on this server. The URL has the name of the host if `by_name`, otherwise its address.
async fn url(server: &pg::Server, by_name: bool) -> (Database, String) {
    let database = Database::migrated_on(server).await;
    Org::under("acme", "kv1")
        .insert(&database.client().await)
        .await;
    let url = database.url();
    let url = if by_name {
        url.replace("127.0.0.1", "localhost")
    } else {
        url
    };
    (database, url)
}

/// The URL with the server's own certificate as `sslrootcert`.
fn pinned(sslmode: &str, leaf: &Leaf) -> String {
    format!(
        "?sslmode={sslmode}&sslrootcert={}",
        leaf.cert_chain.display()
    )
}

fn parameters(sslmode: &str, root: Option<&Ca>) -> String {
    let root = root.map_or_else(String::new, |ca| {
        format!("&sslrootcert={}", ca.cert.display())
    });
    format!("?sslmode={sslmode}{root}")
}

/// The TLS state of the service's connection, or why there is no connection.
async fn outcome(site: Site, admin: &Client) -> String {
    let server = site.start_unready().await;
    let outcome = match server.readiness().await {
        (200, _) => {
            assert_eq!(run(&server, true).await.rows_examined, 1);
            let sql = "SELECT bool_and(s.ssl), bool_or(s.ssl) FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid)
                WHERE a.application_name = 'nico-rewrap' AND a.datname = current_database()";
            let row = admin.query_one(sql, &[]).await.unwrap();
            match (row.get(0), row.get(1)) {
                (Some(true), Some(true)) => TLS.to_owned(),
                (Some(false), Some(false)) => PLAIN.to_owned(),
                other => format!("all and any of its connections have TLS: {other:?}"),
            }
        }
        (503, why) => why,
        other => panic!("{other:?}"),
    };
    leaks::assert_none(&server.log_text());
    assert_eq!(server.terminate().await, 0);
    outcome
}

/// Runs the cases one after the other. Each looks at its own connections in `pg_stat_ssl`.
async fn check(server: &pg::Server, by_name: bool, cases: &[(String, &str)]) {
    let (database, url) = url(server, by_name).await;
    let admin = database.admin().await;
    for (parameters, expected) in cases {
        let outcome = outcome(Site::with_url(&format!("{url}{parameters}")), &admin).await;
        assert!(
            outcome.contains(expected),
            "{parameters}: expected {expected}, not {outcome}"
        );
    }
}

const UNKNOWN_ISSUER: &str = "TLS with the server failed: the server's certificate is not issued by a CA of sslrootcert: name the file with the right CA";
const OTHER_NAME: &str =
    "the server's certificate is not for the host \"127.0.0.1\" of database_url";

#[tokio::test]
async fn every_sslmode_accepts_the_right_name_and_ca() {
    let (right, wrong) = (Some(certs::root_ca()), Some(certs::other_ca()));
    let cases = [
        (String::new(), TLS),
        (parameters("disable", right), PLAIN),
        (parameters("prefer", None), TLS),
        (parameters("prefer", wrong), TLS),
        (parameters("require", None), TLS),
        (parameters("require", right), TLS),
        (parameters("require", wrong), UNKNOWN_ISSUER),
        (parameters("verify-ca", right), TLS),
        (parameters("verify-ca", wrong), UNKNOWN_ISSUER),
        (parameters("verify-full", right), TLS),
        (parameters("verify-full", wrong), UNKNOWN_ISSUER),
    ];
    check(&BY_NAME, true, &cases).await;
}

#[tokio::test]
async fn only_verify_full_checks_the_name() {
    let (right, wrong) = (Some(certs::root_ca()), Some(certs::other_ca()));
    let cases = [
        (parameters("require", None), TLS),
        (parameters("require", right), TLS),
        (parameters("require", wrong), UNKNOWN_ISSUER),
        (parameters("verify-ca", right), TLS),
        (parameters("verify-ca", wrong), UNKNOWN_ISSUER),
        (parameters("verify-full", right), OTHER_NAME),
        (parameters("verify-full", wrong), UNKNOWN_ISSUER),
    ];
    check(&BY_NAME, false, &cases).await;
}

#[tokio::test]
async fn a_server_that_requires_tls_refuses_sslmode_disable() {
    let server = pg::Server::options()
        .tls(certs::server())
        .tls_only()
        .start();
    let cases = [
        (
            parameters("disable", None),
            "does not allow the role from this address with this sslmode (SQLSTATE 28000)",
        ),
        (String::new(), TLS),
        (parameters("verify-full", Some(certs::root_ca())), TLS),
    ];
    check(&server, false, &cases).await;
}

#[tokio::test]
async fn a_server_without_tls_works_unless_sslmode_requires_tls() {
    let no_tls = "the server does not offer TLS, but sslmode=";
    let root = Some(certs::root_ca());
    let cases = [
        (String::new(), PLAIN),
        (parameters("disable", None), PLAIN),
        (parameters("prefer", root), PLAIN),
        (parameters("require", None), no_tls),
        (parameters("verify-ca", root), no_tls),
        (parameters("verify-full", root), no_tls),
    ];
    check(pg::Server::shared(), false, &cases).await;
}

/// On Linux, connections to 0.0.0.0 reach this host. For the program it is a remote address.
const REMOTE: &str = "0.0.0.0";

#[tokio::test]
async fn without_sslmode_a_remote_host_needs_tls_and_a_local_host_does_not() {
    let server = pg::Server::shared();
    let (database, local) = url(server, false).await;
    let admin = database.admin().await;
    let remote = local.replace("127.0.0.1", REMOTE);
    let port = server.port();
    let also = |host: &str| local.replace("127.0.0.1", &format!("127.0.0.1:{port},{host}"));
    let socket = local.replace(&format!("127.0.0.1:{port}"), "");
    let socket = format!(
        "{socket}?host={}&port={port}",
        server.socket_dir().display()
    );
    let default = "the server does not offer TLS, but sslmode=require, the default for remote \
                   hosts, requires it: turn on TLS in the server (ssl = on in postgresql.conf), or \
                   allow plain text with [rewrap].database_sslmode = \"prefer\"";
    for (url, expected) in [
        (remote.clone(), default),
        (also(REMOTE), default),
        (also("localhost"), PLAIN),
        (socket, PLAIN),
        (format!("{remote}?sslmode=prefer"), PLAIN),
        (
            format!(
                "{remote}?sslmode=verify-full&sslrootcert={}",
                certs::root_ca().cert.display()
            ),
            "but sslmode=verify-full of database_url requires it",
        ),
    ] {
        let outcome = outcome(Site::with_url(&url), &admin).await;
        assert!(
            outcome.contains(expected),
            "{url}: {expected}, not {outcome}"
        );
    }
    for (mode, expected) in [
        ("prefer", PLAIN),
        (
            "verify-full",
            "but [rewrap].database_sslmode = \"verify-full\" requires it",
        ),
    ] {
        let root = certs::root_ca().cert.display();
        let site = Site::with_url(&format!("{remote}?sslrootcert={root}"));
        let outcome = outcome(site.set("rewrap.database_sslmode", quote(mode)), &admin).await;
        assert!(
            outcome.contains(expected),
            "{mode}: {expected}, not {outcome}"
        );
    }
}

#[tokio::test]
async fn without_sslmode_sslrootcert_verifies_a_remote_host() {
    let (database, url) = url(&BY_NAME, false).await;
    let admin = database.admin().await;
    let url = url.replace("127.0.0.1", REMOTE);
    for (root, expected) in [
        (String::new(), TLS),
        (
            format!("?sslrootcert={}", certs::root_ca().cert.display()),
            TLS,
        ),
        (
            format!("?sslrootcert={}", certs::other_ca().cert.display()),
            UNKNOWN_ISSUER,
        ),
    ] {
        let outcome = outcome(Site::with_url(&format!("{url}{root}")), &admin).await;
        assert!(
            outcome.contains(expected),
            "{root}: {expected}, not {outcome}"
        );
    }
}

#[tokio::test]
async fn verify_ca_refuses_an_expired_certificate_with_another_name() {
    // The name is checked last. An error about the name must not hide another error.
    let leaf = Cert::new("/CN=elsewhere")
        .san("DNS:elsewhere")
        .expired()
        .signed_by(certs::root_ca());
    let server = pg::Server::options().tls(&leaf).start();
    let cases = [
        (parameters("require", None), TLS),
        (
            parameters("verify-ca", Some(certs::root_ca())),
            "the server's certificate, or one of its CAs, expired at 2020-12-31T00:00:00Z: renew it",
        ),
    ];
    check(&server, false, &cases).await;
}

#[tokio::test]
async fn a_chain_with_an_intermediate_is_verified_up_to_the_root() {
    let intermediate =
        certs::root_ca().intermediate("/O=NICo/CN=database CA", crate::pki::Strings::Utf8);
    let server = pg::Server::options()
        .tls(&certs::server_cert().signed_by(&intermediate))
        .start();
    let cases = [
        (parameters("verify-full", Some(certs::root_ca())), TLS),
        (
            parameters("verify-full", Some(certs::admin_root())),
            UNKNOWN_ISSUER,
        ),
    ];
    check(&server, true, &cases).await;
}

/// A certificate as from the instructions of the PostgreSQL manual with OpenSSL before 3.4: version
/// 1, so without subjectAltName.
#[tokio::test]
async fn a_version_1_certificate_is_accepted_only_without_verification() {
    let leaf = version_1("/CN=localhost");
    let version = "the server's certificate has X.509 version 1, which can't be verified here";
    for tls in ["TLSv1.2", "TLSv1.3"] {
        let server = pg::Server::options()
            .tls(&leaf)
            .setting("ssl_max_protocol_version", tls)
            .start();
        let root = Some(certs::root_ca());
        let cases = [
            (String::new(), TLS),
            (parameters("require", None), TLS),
            (parameters("verify-ca", root), version),
            (parameters("verify-full", root), version),
            (pinned("verify-ca", &leaf), TLS),
            (pinned("verify-full", &leaf), TLS),
        ];
        check(&server, true, &cases).await;
    }
}

#[tokio::test]
async fn a_self_signed_certificate_is_accepted_if_sslrootcert_contains_it() {
    let own = |cn: &str| Cert::new(&format!("/CN={cn}")).ca();
    let leaf = own("localhost").self_signed();
    let server = pg::Server::options().tls(&leaf).start();
    let root = Some(certs::root_ca());
    let not_there = "the server's certificate is marked as a CA certificate and is not in sslrootcert: \
                     put the certificate itself into sslrootcert";
    let cases = [
        (pinned("require", &leaf), TLS),
        (pinned("verify-ca", &leaf), TLS),
        (pinned("verify-full", &leaf), TLS),
        (parameters("verify-ca", root), not_there),
        // Another certificate with the same name.
        (
            pinned("verify-ca", &own("localhost").self_signed()),
            not_there,
        ),
    ];
    check(&server, true, &cases).await;
    let other_host = "the server's certificate is not for the host \"127.0.0.1\" of database_url";
    let cases = [
        (pinned("verify-ca", &leaf), TLS),
        (pinned("verify-full", &leaf), other_host),
    ];
    check(&server, false, &cases).await;

    // Its names and dates are checked like those of any other certificate.
    let named = own("localhost").san("DNS:elsewhere").self_signed();
    let server = pg::Server::options().tls(&named).start();
    let elsewhere = "is not for the host \"localhost\" of database_url";
    let cases = [
        (pinned("verify-ca", &named), TLS),
        (pinned("verify-full", &named), elsewhere),
    ];
    check(&server, true, &cases).await;
    let old = own("localhost").expired().self_signed();
    let server = pg::Server::options().tls(&old).start();
    let over =
        "the server's certificate is valid from 2020-01-01T00:00:00Z to 2020-12-31T00:00:00Z only";
    check(&server, true, &[(pinned("verify-full", &old), over)]).await;
}

#[tokio::test]
async fn an_error_names_an_unsupported_kind_of_key() {
    for (cert, kind) in [
        (Cert::new("/CN=localhost").p521(), "P-521"),
        (Cert::new("/CN=localhost").rsa_pss(), "RSA-PSS"),
    ] {
        let leaf = cert.san("DNS:localhost").self_signed();
        let server = pg::Server::options().tls(&leaf).start();
        let words = format!("the server's certificate has a key of the kind {kind}, which is not");
        let cases = [
            (String::new(), &words[..]),
            (pinned("verify-full", &leaf), &words),
        ];
        check(&server, true, &cases).await;
    }
}

#[tokio::test]
async fn errors_name_an_unsupported_signature_and_a_missing_name() {
    let sha512 = certs::server_cert().sha512().signed_by(certs::root_ca());
    let server = pg::Server::options().tls(&sha512).start();
    let root = Some(certs::root_ca());
    let words =
        "the server's certificate is signed with ECDSA with SHA-512, which is not supported";
    let cases = [(String::new(), TLS), (parameters("verify-ca", root), words)];
    check(&server, true, &cases).await;
    let nameless = Cert::new("/CN=localhost").signed_by(certs::root_ca());
    let server = pg::Server::options().tls(&nameless).start();
    let words =
        "the server's certificate has no subjectAltName: issue one with the host \"localhost\"";
    let cases = [
        (parameters("verify-ca", root), TLS),
        (parameters("verify-full", root), words),
    ];
    check(&server, true, &cases).await;
}

#[tokio::test]
async fn the_number_of_certificates_in_sslrootcert_is_logged() {
    let (_database, url) = url(&BY_NAME, true).await;
    let root = parameters("verify-full", Some(certs::root_ca()));
    let server = Site::with_url(&format!("{url}{root}")).start().await;
    let read = server.logs_with("TLS file read");
    let of = |line: &&serde_json::Value| line["setting"] == "database_url: sslrootcert";
    assert_eq!(read.iter().find(of).unwrap()["certificates"], 1);
}

#[tokio::test]
async fn database_sslmode_overrides_the_url() {
    let (database, url) = url(&BY_NAME, false).await;
    let admin = database.admin().await;
    let right = certs::root_ca().cert.display();
    let cases = [
        ("disable", "?sslmode=require".to_owned(), PLAIN),
        ("require", "?sslmode=disable".to_owned(), TLS),
        ("verify-full", format!("?sslrootcert={right}"), OTHER_NAME),
        (
            "verify-ca",
            format!("?sslmode=verify-full&sslrootcert={right}"),
            TLS,
        ),
    ];
    for (mode, parameters, expected) in cases {
        let site = Site::with_url(&format!("{url}{parameters}"));
        let outcome = outcome(site.set("rewrap.database_sslmode", quote(mode)), &admin).await;
        assert!(
            outcome.contains(expected),
            "{mode} over {parameters}: expected {expected}, not {outcome}"
        );
    }
    let site = Site::with_url(&format!("{url}?sslmode=require"))
        .env("NICO_REWRAP__DATABASE_SSLMODE", "disable");
    assert_eq!(
        outcome(site, &admin).await,
        PLAIN,
        "from the environment too"
    );
}
