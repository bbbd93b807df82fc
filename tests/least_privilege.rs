//! The role of `deploy/postgres/role.sql` can re-wrap and can do nothing else.

use serde_json::json;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Config, NoTls};

use crate::adaptive_rate;
use crate::database::Database;
use crate::faults::{before_update, orgs};
use crate::grpcurl::run;
use crate::pg::{self, PASSWORD};
use crate::rewrap_client::{self, ask, migrate_state};
use crate::seal::key_id;
use crate::seed;
use crate::site::Site;

const ROLE: &str = include_str!("../deploy/postgres/role.sql");

/// A database on its own server, since roles belong to the server, and a URL with the role.
async fn site(postgres: &pg::Server) -> (Database, String) {
    let database = Database::migrated_on(postgres).await;
    let url = database.url().replace("//nico:", "//nico_rewrap:");
    (database, url)
}

async fn grant(database: &Database) {
    database.admin().await.batch_execute(ROLE).await.unwrap();
}

/// The optional statements of the file, which are comments there and need a superuser.
fn optional() -> String {
    let lines = ROLE.lines().filter_map(|line| line.strip_prefix("-- "));
    let statements = lines.filter(|line| {
        line.ends_with(';') && (line.starts_with("ALTER ROLE") || line.starts_with("GRANT"))
    });
    statements.collect()
}

/// All privileges of the role on tables and columns.
async fn grants(client: &tokio_postgres::Client) -> Vec<String> {
    let sql = "SELECT DISTINCT privilege_type || ' ' || table_name || '.' || column_name
        FROM information_schema.column_privileges WHERE grantee = 'nico_rewrap' ORDER BY 1";
    let rows = client.query(sql, &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn the_role_is_sufficient_on_the_old_and_the_new_schema() {
    let postgres = pg::Server::start();
    let (database, url) = site(&postgres).await;
    let client = database.client().await;
    seed::add_encryption_key_id(&client).await;
    seed::insert(&client, &orgs(20)).await;
    grant(&database).await;
    // One row has conflicts until it is decided under a lock.
    client
        .batch_execute("CREATE SEQUENCE misses; GRANT USAGE ON SEQUENCE misses TO nico_rewrap")
        .await
        .unwrap();
    let miss = "IF nextval('misses') <= 3 THEN RETURN NULL; END IF;";
    before_update(&client, "miss", "NEW.organization_id = 'org003'", miss).await;

    let server = Site::with_url(&url).start().await;
    assert_eq!(run(&server, true).await.rows_updated, 20);
    let report = run(&server, false).await;
    assert_eq!(
        (report.rows_updated, report.rows_failed),
        (20, 0),
        "{report:?}"
    );
    let rows = seed::snapshot(&client).await;
    for (id, row) in &rows {
        assert_eq!(row.encryption_key_id.as_deref(), Some("kv2"), "{id}");
        assert_eq!(key_id(row.texts[0].as_ref().unwrap()), "kv2", "{id}");
    }

    // The migration of June 2026, with and without running role.sql again.
    seed::drop_encryption_key_id(&client).await;
    for (target, other) in [("kv1", "kv2"), ("kv2", "kv1")] {
        let server = Site::with_url(&url).target(target).start().await;
        assert_eq!(
            run(&server, false).await.rows_updated,
            20,
            "{other} to {target}"
        );
        grant(&database).await;
    }
    for pooler in ["session", "transaction"] {
        let site = Site::with_url(&url).set("rewrap.pool_mode", format!("\"{pooler}\""));
        let server = site.set("rewrap.durability", "\"per_row\"").start().await;
        assert_eq!(run(&server, false).await.rows_failed, 0, "{pooler}");
    }
}

#[tokio::test]
async fn the_role_slows_down_for_sessions_that_it_may_not_inspect() {
    let postgres = pg::Server::start();
    let (database, url) = site(&postgres).await;
    let owner = database.client().await;
    seed::insert(&owner, &orgs(adaptive_rate::ROWS)).await;
    grant(&database).await;
    let server = Site::with_url(&url).start().await;
    let seen = adaptive_rate::watched_run(&server).await;
    assert_eq!(seen.report.rows_updated as usize, adaptive_rate::ROWS);
    assert!(seen.limit > 0.0);
    drop(owner);
}

#[tokio::test]
async fn the_role_has_no_other_privileges() {
    let postgres = pg::Server::start();
    let (database, url) = site(&postgres).await;
    let owner = database.client().await;
    seed::insert(&owner, &orgs(2)).await;
    // As role.sql says for PostgreSQL 14 and older.
    let revoke = "REVOKE CREATE ON SCHEMA public FROM PUBLIC";
    database.admin().await.batch_execute(revoke).await.unwrap();
    grant(&database).await;
    let first = grants(&owner).await;
    assert_eq!(
        first,
        [
            "SELECT tenant_identity_config.auth_method",
            "SELECT tenant_identity_config.encrypted_auth_method_config",
            "SELECT tenant_identity_config.encrypted_signing_key_1",
            "SELECT tenant_identity_config.encrypted_signing_key_2",
            "SELECT tenant_identity_config.organization_id",
            "SELECT tenant_identity_config.signing_key_public_1",
            "SELECT tenant_identity_config.signing_key_public_2",
            "SELECT tenants.organization_id",
            "SELECT tenants.version",
            "UPDATE tenant_identity_config.encrypted_auth_method_config",
            "UPDATE tenant_identity_config.encrypted_signing_key_1",
            "UPDATE tenant_identity_config.encrypted_signing_key_2",
            "UPDATE tenant_identity_config.updated_at",
            "UPDATE tenants.version",
        ]
    );
    // role.sql revokes privileges that were granted by hand.
    owner
        .batch_execute("GRANT ALL ON tenants, tenant_identity_config TO nico_rewrap")
        .await
        .unwrap();
    grant(&database).await;
    assert_eq!(grants(&owner).await, first);

    let config: Config = url.parse().unwrap();
    let (role, connection) = config.connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    role.batch_execute("SELECT version FROM tenants FOR NO KEY UPDATE")
        .await
        .unwrap();
    for sql in [
        "SELECT organization_name FROM tenants",
        "SELECT issuer FROM tenant_identity_config",
        "SELECT * FROM tenant_identity_config",
        "UPDATE tenants SET organization_name = 'x'",
        "UPDATE tenant_identity_config SET enabled = false",
        "UPDATE tenant_identity_config SET organization_id = 'x'",
        "UPDATE tenant_identity_config SET current_signing_key_slot = 'signing_key_2'",
        "INSERT INTO tenants (organization_id, version) VALUES ('x', 'V1-T1')",
        "DELETE FROM tenant_identity_config",
        "TRUNCATE tenant_identity_config",
        "ALTER TABLE tenants ADD COLUMN x int",
        "DROP TABLE tenant_identity_config",
        "CREATE TABLE public.x ()",
        "CREATE SCHEMA x",
        "CREATE ROLE x",
        "CREATE DATABASE x",
        "SELECT pg_read_file('postgresql.conf')",
    ] {
        let error = role.batch_execute(sql).await.unwrap_err();
        assert_eq!(
            error.code(),
            Some(&SqlState::INSUFFICIENT_PRIVILEGE),
            "{sql}: {error:?}"
        );
    }
    assert!(url.contains(PASSWORD), "the fixture's server trusts anyone");
}

#[tokio::test]
async fn the_owner_can_run_role_sql_if_it_may_create_roles() {
    let postgres = pg::Server::start();
    let (database, url) = site(&postgres).await;
    let (owner, admin) = (database.client().await, database.admin().await);
    let error = owner.batch_execute(ROLE).await.unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE));
    owner.batch_execute("ROLLBACK").await.unwrap();
    admin
        .batch_execute("ALTER ROLE nico CREATEROLE")
        .await
        .unwrap();
    // Run it twice: a repetition must succeed.
    for _ in 0..2 {
        owner.batch_execute(ROLE).await.unwrap();
    }
    seed::insert(&owner, &orgs(3)).await;
    let server = Site::with_url(&url).start().await;
    assert_eq!(run(&server, false).await.rows_updated, 3);
}

/// The schema is made by the owner, before or after the role.
#[tokio::test]
async fn the_role_may_use_the_schema_and_not_change_it() {
    let postgres = pg::Server::start();
    for role_first in [true, false] {
        let (database, url) = site(&postgres).await;
        let owner = database.client().await;
        seed::insert(&owner, &orgs(3)).await;
        if role_first {
            grant(&database).await;
            migrate_state(&Site::new(&database));
        } else {
            migrate_state(&Site::new(&database));
            grant(&database).await;
        }
        for pooler in ["session", "transaction"] {
            let site = Site::with_url(&url).set("rewrap.pool_mode", format!("\"{pooler}\""));
            let server = site.start().await;
            let status = ask(&server, "GetStatus", json!({})).await;
            assert_eq!(
                status["historyPersistent"], true,
                "role first: {role_first}"
            );
            for kind in ["RUN_KIND_CENSUS", "RUN_KIND_APPLY", "RUN_KIND_VERIFY"] {
                let run = rewrap_client::run(&server, kind).await;
                assert_eq!(run["state"], "RUN_STATE_FINISHED", "{run}");
            }
            let log = server.log_text();
            assert!(!log.contains("the schema nico_rewrap:"), "{log}");
            assert_eq!(server.terminate().await, 0);
        }
        let runs = "SELECT count(*) FROM nico_rewrap.runs WHERE state = 'FINISHED'";
        assert_eq!(
            owner.query_one(runs, &[]).await.unwrap().get::<_, i64>(0),
            6
        );

        let config: Config = url.parse().unwrap();
        let (role, connection) = config.connect(NoTls).await.unwrap();
        tokio::spawn(connection);
        for sql in [
            "UPDATE nico_rewrap.schema_version SET version = 9",
            "INSERT INTO nico_rewrap.schema_version VALUES (9)",
            "DELETE FROM nico_rewrap.schema_version",
            "TRUNCATE nico_rewrap.runs",
            "DROP TABLE nico_rewrap.receipts",
            "CREATE TABLE nico_rewrap.x ()",
        ] {
            let error = role.batch_execute(sql).await.unwrap_err();
            let code = error.code();
            assert_eq!(
                code,
                Some(&SqlState::INSUFFICIENT_PRIVILEGE),
                "{sql}: {error:?}"
            );
        }
    }
}

#[tokio::test]
async fn the_optional_grant_shows_replicas_and_nothing_else() {
    let postgres = pg::Server::start();
    let (database, _) = site(&postgres).await;
    let admin = database.admin().await;
    grant(&database).await;
    let sees = "SELECT pg_has_role('nico_rewrap', 'pg_read_all_stats', 'USAGE')";
    let sees = async || admin.query_one(sees, &[]).await.unwrap().get::<_, bool>(0);
    assert!(!sees().await);
    let statements = optional();
    assert_eq!(statements.matches(';').count(), 2, "{statements}");
    admin.batch_execute(&statements).await.unwrap();
    grant(&database).await;
    assert!(sees().await, "and running the file again leaves it");
    let roles = "SELECT string_agg(roleid::regrole::text, ' ') FROM pg_auth_members
        WHERE member = 'nico_rewrap'::regrole";
    let roles: String = admin.query_one(roles, &[]).await.unwrap().get(0);
    assert_eq!(roles, "pg_read_all_stats");
}
