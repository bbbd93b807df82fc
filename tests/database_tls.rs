//! TLS to Postgres: what each `sslmode` accepts and refuses, against servers with certificates of the real `openssl`.

use std::sync::LazyLock;

use tokio_postgres::Client;

use crate::ca::Ca;
use crate::certs;
use crate::database::Database;
use crate::grpcurl::run;
use crate::leaks;
use crate::pg;
use crate::pki::Cert;
use crate::seed::Org;
use crate::site::{Site, quote};

/// Offers TLS, with a certificate for localhost alone: by its address it is a host of another name.
static BY_NAME: LazyLock<pg::Server> = LazyLock::new(|| {
    let leaf = Cert::new("/CN=localhost")
        .san("DNS:localhost")
        .signed_by(certs::root_ca());
    pg::Server::options().tls(&leaf).start()
});

const PLAIN: &str = "PLAIN";
const TLS: &str = "TLS";

/// A database on this server, by the name of the host and not its address if `by_name`.
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

fn parameters(sslmode: &str, root: Option<&Ca>) -> String {
    let root = root.map_or_else(String::new, |ca| {
        format!("&sslrootcert={}", ca.cert.display())
    });
    format!("?sslmode={sslmode}{root}")
}

/// How the service is connected, or why it is not.
async fn outcome(site: Site, admin: &Client) -> String {
    let server = site.start_unready().await;
    // The database was tried before the server listens; the latch of the listener falls a moment after.
    let mut answer = server.get("/readyz").await;
    while answer.1.contains("not ready: grpc") {
        answer = server.get("/readyz").await;
    }
    let outcome = match answer {
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

/// Runs the cases one by one: each looks at its own connections in `pg_stat_ssl`.
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

const UNKNOWN_ISSUER: &str = "not ready: database: the database can't be used: error performing TLS handshake: invalid peer certificate: UnknownIssuer";
const OTHER_NAME: &str = "invalid peer certificate: certificate not valid for name \"127.0.0.1\"";

#[tokio::test]
async fn by_its_name_a_server_passes_every_check_against_the_right_ca() {
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
async fn by_another_name_only_verify_full_minds() {
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
async fn a_server_with_tls_only_refuses_to_do_without() {
    let server = pg::Server::options()
        .tls(certs::server())
        .tls_only()
        .start();
    let cases = [
        (
            parameters("disable", None),
            "nor with this sslmode (SQLSTATE 28000)",
        ),
        (String::new(), TLS),
        (parameters("verify-full", Some(certs::root_ca())), TLS),
    ];
    check(&server, false, &cases).await;
}

#[tokio::test]
async fn a_server_without_tls_serves_those_who_do_not_insist() {
    let no_tls = "not ready: database: the database can't be used: error performing TLS handshake: server does not support TLS";
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

#[tokio::test]
async fn an_expired_certificate_of_another_name_is_not_let_through_by_verify_ca() {
    // The name is looked at last: what else is wrong must not be lost behind it.
    let leaf = Cert::new("/CN=elsewhere")
        .san("DNS:elsewhere")
        .expired()
        .signed_by(certs::root_ca());
    let server = pg::Server::options().tls(&leaf).start();
    let cases = [
        (parameters("require", None), TLS),
        (
            parameters("verify-ca", Some(certs::root_ca())),
            "invalid peer certificate: certificate expired",
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

#[tokio::test]
async fn database_sslmode_wins_over_the_url() {
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
