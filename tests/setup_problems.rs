//! Problems with the database that a retry cannot solve, at the start and later.

use serde_json::json;
use tokio_postgres::Client;

use crate::certs;
use crate::database::Database;
use crate::faults::{orgs, until};
use crate::grpcurl::{reencrypt, run};
use crate::pg;
use crate::pg::PASSWORD;
use crate::seed;
use crate::server::Server;
use crate::site::Site;
use crate::start_up::until_probes_answer;

/// Runs the statements, with `ROLE` and `DATABASE` replaced.
async fn execute(admin: &Client, database: &Database, sql: &str) {
    let role = format!("rewrapper_of_{}", database.name());
    let sql = sql
        .replace("ROLE_NAME", &role)
        .replace("DATABASE_NAME", database.name());
    admin.batch_execute(&sql).await.unwrap();
}

/// A database with a role of its own, and a URL with that role.
async fn with_role(database: &Database, admin: &Client) -> String {
    let grant = format!(
        "CREATE ROLE ROLE_NAME LOGIN PASSWORD '{PASSWORD}';
        GRANT SELECT, UPDATE ON tenants, tenant_identity_config TO ROLE_NAME;
        REVOKE CONNECT ON DATABASE DATABASE_NAME FROM PUBLIC;
        GRANT CONNECT ON DATABASE DATABASE_NAME TO ROLE_NAME"
    );
    execute(admin, database, &grant).await;
    let role = format!("//rewrapper_of_{}:", database.name());
    database.url().replace("//nico:", &role)
}

async fn refusal(server: &Server) -> (String, String, String) {
    let error = reencrypt(server, certs::admin(), json!({"dryRun": true}))
        .await
        .unwrap_err();
    let info = error.error_info().unwrap();
    let cause = info.metadata.get("cause").cloned().unwrap_or_default();
    assert!(error.message.contains(&cause), "{error:?}");
    (error.code, info.reason, cause)
}

#[tokio::test]
async fn a_login_that_postgres_refuses_at_the_start_has_its_own_reason() {
    let postgres = pg::Server::options().passwords().start();
    let good = format!("ALTER ROLE ROLE_NAME LOGIN PASSWORD '{PASSWORD}'");
    let cases = [
        (
            "ALTER ROLE ROLE_NAME PASSWORD 'another'",
            good.as_str(),
            "28P01",
        ),
        ("ALTER ROLE ROLE_NAME NOLOGIN", &good, "28000"),
        (
            "REVOKE CONNECT ON DATABASE DATABASE_NAME FROM ROLE_NAME",
            "GRANT CONNECT ON DATABASE DATABASE_NAME TO ROLE_NAME",
            "42501",
        ),
    ];
    for (problem, remedy, sqlstate) in cases {
        let database = Database::migrated_on(&postgres).await;
        let admin = database.admin().await;
        seed::insert(&database.client().await, &orgs(2)).await;
        let url = with_role(&database, &admin).await;
        execute(&admin, &database, problem).await;
        let server = Site::with_url(&url).start_unready().await;
        server.wait_log("waiting for the database").await;
        until_probes_answer(&server, 503, sqlstate).await;
        let (code, reason, cause) = refusal(&server).await;
        assert_eq!(code, "FAILED_PRECONDITION", "{problem}");
        assert_eq!(reason, "DATABASE_LOGIN", "{problem}");
        assert!(cause.contains(sqlstate), "{problem}: {cause}");
        execute(&admin, &database, remedy).await;
        server.wait_ready().await;
        assert_eq!(run(&server, false).await.rows_updated, 2, "{problem}");
    }
}

#[tokio::test]
async fn a_refusal_by_pg_hba_at_the_start_has_its_own_reason() {
    let certificate = certs::server();
    let postgres = pg::Server::options().tls(certificate).tls_only().start();
    let database = Database::migrated_on(&postgres).await;
    let url = format!("{}?sslmode=disable", database.url());
    let server = Site::with_url(&url).start_unready().await;
    until_probes_answer(&server, 503, "28000").await;
    let (code, reason, cause) = refusal(&server).await;
    assert_eq!(
        (code.as_str(), reason.as_str()),
        ("FAILED_PRECONDITION", "DATABASE_LOGIN")
    );
    assert!(cause.contains("pg_hba.conf"), "{cause}");
}

#[tokio::test]
async fn a_problem_that_appears_after_the_start_ends_readiness_until_it_is_gone() {
    let on = "ALTER TABLE tenant_identity_config ENABLE ROW LEVEL SECURITY";
    let off = "ALTER TABLE tenant_identity_config DISABLE ROW LEVEL SECURITY";
    let cases = [
        (
            on,
            off,
            "row-level security on tenant_identity_config",
            "ROWS_NOT_VISIBLE",
        ),
        (
            "ALTER ROLE ROLE_NAME SET default_transaction_read_only = on",
            "ALTER ROLE ROLE_NAME RESET default_transaction_read_only",
            "read-only",
            "",
        ),
        (
            "REVOKE SELECT ON tenants FROM ROLE_NAME",
            "GRANT SELECT ON tenants TO ROLE_NAME",
            "SELECT on tenants.version",
            "DATABASE_PRIVILEGE",
        ),
        (
            "ALTER ROLE ROLE_NAME NOLOGIN",
            "ALTER ROLE ROLE_NAME LOGIN",
            "28000",
            "",
        ),
    ];
    let postgres = pg::Server::start();
    let database = Database::migrated_on(&postgres).await;
    let admin = database.admin().await;
    let url = with_role(&database, &admin).await;
    // A problem that Postgres reports itself counts at once.
    let site = Site::with_url(&url).set("rewrap.pool_acquire_timeout", "\"1h\"");
    let server = site.start().await;
    // The first ping sets what later ones are compared with. It is over when the second one begins.
    let pings = "FROM pg_stat_activity WHERE query LIKE '-- ping%'";
    until(&admin, &format!("EXISTS (SELECT {pings})")).await;
    // Another statement can be the last one of the session.
    let first = format!("SELECT coalesce(max(query_start), now())::text {pings}");
    let first: String = admin.query_one(&first, &[]).await.unwrap().get(0);
    let second = format!(
        "EXISTS (SELECT {pings} AND query_start > '{first}'::timestamptz + interval '1 s')"
    );
    until(&admin, &second).await;
    for (problem, remedy, words, reason) in cases {
        execute(&admin, &database, problem).await;
        until_probes_answer(&server, 503, words).await;
        if !reason.is_empty() {
            let (code, found, _) = refusal(&server).await;
            assert_eq!(
                (code.as_str(), found.as_str()),
                ("FAILED_PRECONDITION", reason)
            );
        }
        execute(&admin, &database, remedy).await;
        until_probes_answer(&server, 200, "ready").await;
    }
}
