//! A run reads every row, or reports that it did not.

use serde_json::json;
use tokio_postgres::Client;

use crate::certs;
use crate::database::Database;
use crate::faults::{orgs, slow_writes, until_written, written};
use crate::grpcurl::{GrpcError, Report, reencrypt, run};
use crate::outcome::{seeded, serve};
use crate::pg;
use crate::seed::{self, Org};
use crate::server::Server;
use crate::site::Site;

const ROLE: &str = include_str!("../deploy/postgres/role.sql");

const NO_RUN: &str = "no run can do its work before the database or the role is changed";
const COLLATION: &str =
    "the collation of the organization ids has changed since their index was built";

async fn call(server: &Server, request: serde_json::Value) -> Result<Report, GrpcError> {
    reencrypt(server, certs::admin(), request).await
}

fn assert_refused(answer: Result<Report, GrpcError>, reason: &str, words: &str, case: &str) {
    let error = answer.expect_err(case);
    assert_eq!(error.code, "FAILED_PRECONDITION", "{case}: {error:?}");
    assert_eq!(error.reason().as_deref(), Some(reason), "{case}: {error:?}");
    assert!(error.message.contains(words), "{case}: {}", error.message);
}

/// A database on its own server, with the role of `role.sql`, and a URL with that role.
pub(crate) async fn with_role(postgres: &pg::Server) -> (Database, Client, String) {
    let database = Database::migrated_on(postgres).await;
    let admin = database.admin().await;
    admin.batch_execute(ROLE).await.unwrap();
    let url = database.url().replace("//nico:", "//nico_rewrap:");
    (database, admin, url)
}

#[tokio::test]
async fn policies_that_can_hide_rows_are_refused_and_others_are_not() {
    let on = "ALTER TABLE tenant_identity_config ENABLE ROW LEVEL SECURITY";
    let hiding = [
        on.to_owned(),
        format!("{on}; CREATE POLICY p ON tenant_identity_config USING (organization_id < 'org003')"),
        format!("{on}; CREATE POLICY p ON tenant_identity_config FOR SELECT USING (true)"),
        format!("{on}; CREATE POLICY p ON tenant_identity_config USING (current_setting('x.y', true) IS NULL)"),
        format!("{on}; CREATE POLICY p ON tenant_identity_config TO nico USING (true)"),
        format!(
            "{on}; CREATE POLICY p ON tenant_identity_config USING (true);
            CREATE POLICY q ON tenant_identity_config AS RESTRICTIVE USING (organization_id < 'org003')"
        ),
        "ALTER TABLE tenants ENABLE ROW LEVEL SECURITY".to_owned(),
        format!(
            "{on}; ALTER TABLE tenant_identity_config FORCE ROW LEVEL SECURITY;
            ALTER TABLE tenant_identity_config OWNER TO nico_rewrap"
        ),
        "ALTER TABLE tenant_identity_config RENAME TO t;
            CREATE VIEW tenant_identity_config AS SELECT * FROM t WHERE organization_id < 'org003';
            GRANT SELECT, UPDATE ON tenant_identity_config TO nico_rewrap"
            .to_owned(),
    ];
    let postgres = pg::Server::start();
    for change in hiding {
        let (database, admin, url) = with_role(&postgres).await;
        seed::insert(&database.client().await, &orgs(5)).await;
        let before = written(&admin).await;
        admin.batch_execute(&change).await.unwrap();
        for pooler in ["session", "transaction"] {
            let site = Site::with_url(&url).set("rewrap.pool_mode", format!("\"{pooler}\""));
            let server = site.start().await;
            for request in [
                json!({"dryRun": true}),
                json!({}),
                json!({"organizationId": "org004"}),
                json!({"organizationId": "org001", "dryRun": true}),
            ] {
                let case = format!("{change} {request}");
                let answer = call(&server, request).await;
                assert_refused(answer, "ROWS_NOT_VISIBLE", "can hide rows", &case);
            }
            server.wait_log(NO_RUN).await;
        }
        assert_eq!(written(&admin).await, before, "{change}");
    }
    let harmless = [
        format!("{on}; CREATE POLICY p ON tenant_identity_config TO nico_rewrap USING (true)"),
        format!(
            "{on}; CREATE POLICY p ON tenant_identity_config FOR SELECT USING (true);
            CREATE POLICY q ON tenant_identity_config FOR UPDATE USING (true);
            ALTER ROLE nico_rewrap SET row_security = off"
        ),
        format!("{on}; ALTER ROLE nico_rewrap BYPASSRLS"),
    ];
    for change in harmless {
        let (database, admin, url) = with_role(&postgres).await;
        seed::insert(&database.client().await, &orgs(5)).await;
        admin.batch_execute(&change).await.unwrap();
        let server = Site::with_url(&url).start().await;
        assert_eq!(run(&server, true).await.rows_updated, 5, "{change}");
        assert_eq!(run(&server, false).await.rows_updated, 5, "{change}");
        admin
            .batch_execute("ALTER ROLE nico_rewrap RESET row_security")
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_policy_created_during_a_run_prevents_a_clean_report() {
    let postgres = pg::Server::start();
    let (database, admin, url) = with_role(&postgres).await;
    let owner = database.client().await;
    seed::insert(&owner, &orgs(60)).await;
    slow_writes(&owner, 0.02).await;
    let site = Site::with_url(&url).set("rewrap.page_size", "10");
    let server = site.set("rewrap.database_pool_size", "2").start().await;
    let hide = async {
        until_written(&admin, 5).await;
        let hide = "ALTER TABLE tenant_identity_config ENABLE ROW LEVEL SECURITY";
        admin.batch_execute(hide).await.unwrap();
    };
    let (answer, ()) = tokio::join!(call(&server, json!({})), hide);
    let info = answer.as_ref().unwrap_err().error_info().unwrap();
    assert_refused(answer.clone(), "ROWS_NOT_VISIBLE", "BYPASSRLS", "mid-run");
    let audited = server.audited_rows("ROWS_NOT_VISIBLE").await;
    assert_eq!(audited, written(&admin).await);
    assert_eq!(info.metadata["rows_updated"], audited.to_string());
    let words = format!("rows: {audited} updated, 0 failed; 0 in doubt");
    assert_refused(answer, "ROWS_NOT_VISIBLE", &words, "mid-run");
}

/// Makes Postgres use an index for tables that are too small for one.
pub(crate) async fn follow_the_index(database: &Database) {
    // With enable_seqscan off, a plan that must scan a table has such a high cost that Postgres
    // would compile it.
    for setting in ["enable_seqscan", "jit"] {
        let sql = format!("ALTER DATABASE {} SET {setting} = off", database.name());
        database.admin().await.batch_execute(&sql).await.unwrap();
    }
}

/// Inserts an organization that is missing in the index of the primary key.
pub(crate) async fn insert_past_the_index(database: &Database, id: &str) {
    let admin = database.admin().await;
    let ready = |ready: bool| {
        format!(
            "UPDATE pg_index SET indisready = {ready}
            WHERE indexrelid = 'tenant_identity_config_pkey'::regclass"
        )
    };
    admin.batch_execute(&ready(false)).await.unwrap();
    seed::insert(&database.client().await, &[Org::under(id, "kv1")]).await;
    admin.batch_execute(&ready(true)).await.unwrap();
}

#[tokio::test]
async fn a_row_missing_from_the_index_is_reported() {
    let (database, client) = seeded(&orgs(20)).await;
    follow_the_index(&database).await;
    insert_past_the_index(&database, "lost").await;
    for pooler in ["session", "transaction"] {
        let site = Site::new(&database).set("rewrap.pool_mode", format!("\"{pooler}\""));
        let server = site.set("rewrap.page_size", "7").start().await;
        for request in [
            json!({"dryRun": true}),
            json!({}),
            json!({"organizationId": "lost"}),
        ] {
            let case = request.to_string();
            let answer = call(&server, request).await;
            let remedy = "REINDEX INDEX tenant_identity_config_pkey";
            assert_refused(answer, "ROWS_NOT_VISIBLE", remedy, &case);
        }
        assert_eq!(written(&client).await, 20, "what the index shows is done");
        let answer = call(&server, json!({"organizationId": "nobody"})).await;
        assert_eq!(answer.unwrap_err().code, "NOT_FOUND");
    }
    let reindex = "REINDEX INDEX tenant_identity_config_pkey";
    client.batch_execute(reindex).await.unwrap();
    let server = Site::new(&database).start().await;
    let report = run(&server, false).await;
    assert_eq!(
        (report.rows_updated, report.rows_skipped_all_on_target),
        (1, 20)
    );
}

#[tokio::test]
async fn an_index_with_another_order_than_the_collation_is_reported() {
    let (database, client) = seeded(&[]).await;
    let by_bytes =
        "ALTER TABLE tenant_identity_config ALTER organization_id TYPE text COLLATE \"C\"";
    client.batch_execute(by_bytes).await.unwrap();
    let orgs: Vec<_> = (0..120)
        .map(|i| {
            Org::under(
                &format!("{}{i:03}", ["a-", "a_", "A", "aB", "ab"][i % 5]),
                "kv1",
            )
        })
        .collect();
    seed::insert(&client, &orgs).await;
    // An upgrade of the C library or of ICU has this effect on an index.
    let linguistic = "UPDATE pg_attribute SET attcollation = '\"en-x-icu\"'::regcollation
            WHERE attname = 'organization_id' AND attrelid IN
                ('tenant_identity_config'::regclass, 'tenant_identity_config_pkey'::regclass);
        UPDATE pg_index SET indcollation = ('\"en-x-icu\"'::regcollation::oid::text)::oidvector
            WHERE indexrelid = 'tenant_identity_config_pkey'::regclass";
    follow_the_index(&database).await;
    let admin = database.admin().await;
    admin.batch_execute(linguistic).await.unwrap();
    let server = Site::new(&database)
        .set("rewrap.page_size", "10")
        .start()
        .await;
    for request in [json!({"dryRun": true}), json!({})] {
        let answer = call(&server, request).await;
        assert_refused(answer, "ROWS_NOT_VISIBLE", "REINDEX", "wrong order");
    }
    let reindex = "REINDEX INDEX tenant_identity_config_pkey";
    admin.batch_execute(reindex).await.unwrap();
    assert_eq!(run(&server, false).await.rows_failed, 0);
    assert_eq!(run(&server, true).await.rows_skipped_all_on_target, 120);
}

#[tokio::test]
async fn rows_deleted_during_a_run_are_no_problem_and_new_rows_are_rewrapped() {
    let (database, client) = seeded(&orgs(60)).await;
    slow_writes(&client, 0.02).await;
    let site = Site::new(&database).set("rewrap.page_size", "10");
    let server = site.set("rewrap.database_pool_size", "2").start().await;
    let meanwhile = async {
        until_written(&client, 15).await;
        // One id is before the position of the run, and one is after it.
        let new = [Org::under("aaa", "kv1"), Org::under("zzz", "kv1")];
        seed::insert(&client, &new).await;
        let gone = "DELETE FROM tenants WHERE organization_id IN ('org000', 'org059')";
        client.batch_execute(gone).await.unwrap();
    };
    let (report, ()) = tokio::join!(run(&server, false), meanwhile);
    assert_eq!(report.rows_failed, 0, "{report:?}");
    assert_eq!(run(&server, true).await.rows_skipped_all_on_target, 60);
}

#[tokio::test]
async fn a_collation_version_mismatch_causes_a_warning() {
    let (database, _client) = seeded(&orgs(1)).await;
    let admin = database.admin().await;
    let older = "UPDATE pg_database SET datcollversion = '0' WHERE datname = current_database()";
    admin.batch_execute(older).await.unwrap();
    let server = Site::new(&database).start().await;
    run(&server, true).await;
    let warnings = server.wait_logs(COLLATION, 2).await;
    assert_eq!(warnings[0]["level"], "WARN", "at the start, and in the run");
}

#[tokio::test]
async fn a_missing_privilege_is_reported_before_the_first_row() {
    let nothing = None;
    // The missing privilege, and the answers to an apply and to a dry run, which needs fewer
    // privileges.
    let table = [
        (
            "REVOKE UPDATE (version) ON tenants FROM nico_rewrap",
            ("DATABASE_PRIVILEGE", "UPDATE on tenants.version"),
            nothing,
        ),
        (
            "REVOKE SELECT (encrypted_signing_key_2) ON tenant_identity_config FROM nico_rewrap",
            ("DATABASE_PRIVILEGE", "encrypted_signing_key_2"),
            Some("DATABASE_PRIVILEGE"),
        ),
        (
            // The function has another signature since PostgreSQL 17.
            "DO $$ DECLARE f regprocedure; BEGIN
                FOR f IN SELECT oid FROM pg_proc WHERE proname = 'pg_logical_emit_message'
                LOOP EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', f); END LOOP; END $$",
            ("DATABASE_PRIVILEGE", "pg_logical_emit_message"),
            Some("DATABASE_PRIVILEGE"),
        ),
        (
            "ALTER TABLE tenant_identity_config DROP encrypted_signing_key_1",
            ("DATABASE_SCHEMA", "encrypted_signing_key_1 is missing"),
            Some("DATABASE_SCHEMA"),
        ),
        (
            "ALTER TABLE tenant_identity_config ALTER encrypted_signing_key_1 TYPE bytea
                USING convert_to(encrypted_signing_key_1, 'UTF8')",
            ("DATABASE_SCHEMA", "not of type text"),
            Some("DATABASE_SCHEMA"),
        ),
        (
            "DROP TABLE tenant_identity_config",
            ("DATABASE_SCHEMA", "tenant_identity_config is missing"),
            Some("DATABASE_SCHEMA"),
        ),
        (
            "ALTER TABLE tenants REPLICA IDENTITY NOTHING; CREATE PUBLICATION p FOR TABLE tenants",
            ("DATABASE_REFUSES_UPDATES", "replica identity"),
            nothing,
        ),
        (
            "ALTER ROLE nico_rewrap SET default_transaction_read_only = on",
            ("DATABASE_READ_ONLY", "read-only"),
            nothing,
        ),
        (
            "ALTER ROLE nico_rewrap RESET ALL; ALTER ROLE nico_rewrap NOLOGIN",
            ("DATABASE_LOGIN", "28000"),
            Some("DATABASE_LOGIN"),
        ),
    ];
    let postgres = pg::Server::start();
    for (change, (reason, words), dry_run) in table {
        let (database, admin, url) = with_role(&postgres).await;
        seed::insert(&database.client().await, &orgs(2)).await;
        let server = Site::with_url(&url).start().await;
        admin.batch_execute(change).await.unwrap();
        let disconnect =
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'nico_rewrap'";
        admin.batch_execute(disconnect).await.unwrap();
        assert_refused(call(&server, json!({})).await, reason, words, change);
        let answer = call(&server, json!({"dryRun": true})).await;
        match dry_run {
            Some(reason) => assert_refused(answer, reason, words, change),
            None => {
                assert_eq!(answer.unwrap().rows_updated, 2, "{change}");
                server.wait_log("no row could be written").await;
            }
        }
    }
}

#[tokio::test]
async fn two_rows_with_one_id_prevent_a_clean_report() {
    for page_size in ["1", "2", "1000"] {
        let (database, client) = seeded(&orgs(3)).await;
        let duplicate =
            "ALTER TABLE tenant_identity_config DROP CONSTRAINT tenant_identity_config_pkey;
            CREATE INDEX ON tenant_identity_config (organization_id);
            INSERT INTO tenant_identity_config SELECT * FROM tenant_identity_config
                WHERE organization_id = 'org001'";
        client.batch_execute(duplicate).await.unwrap();
        let site = Site::new(&database).set("rewrap.page_size", page_size);
        let server = site.start().await;
        for request in [json!({"dryRun": true}), json!({})] {
            let case = format!("{page_size}: {request}");
            let answer = call(&server, request).await;
            assert_refused(answer, "ROWS_NOT_VISIBLE", "there more than once", &case);
        }
    }
}

#[tokio::test]
async fn a_row_without_an_id_is_named_and_the_others_are_written() {
    let (_database, client, server) = serve(&orgs(3)).await;
    let sql = "ALTER TABLE tenant_identity_config DROP CONSTRAINT tenant_identity_config_pkey;
        ALTER TABLE tenant_identity_config ALTER organization_id DROP NOT NULL;
        INSERT INTO tenant_identity_config
            SELECT (jsonb_populate_record(c, '{\"organization_id\": null}')).*
            FROM tenant_identity_config c WHERE organization_id = 'org001'";
    client.batch_execute(sql).await.unwrap();
    let answer = call(&server, json!({})).await;
    assert_refused(
        answer,
        "DATABASE_SCHEMA",
        "whose organization_id is NULL",
        sql,
    );
    assert_eq!(written(&client).await, 3);
}
