//! The database loses connections, crashes, hangs and recovers. A run survives this if it can.
//! Otherwise its call soon ends with `UNAVAILABLE`. The service needs no restart.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio_postgres::Client;

use crate::certs;
use crate::database::Database;
use crate::faults::{
    before_update, orgs, slow_writes, until, until_blocked, until_written, written,
};
use crate::grpcurl::{GrpcError, Report, reencrypt, run};
use crate::pg;
use crate::process::signal;
use crate::proxy::Proxy;
use crate::seal::{key_id, seal};
use crate::seed::{self, Org};
use crate::server::Server;
use crate::site::{Site, quote};

/// Generous for a busy machine, but far below the duration of an unlimited call.
const SECONDS_NOT_MINUTES: Duration = Duration::from_secs(20);

const SERVICE_BACKENDS: &str =
    "pg_stat_activity WHERE datname = current_database() AND application_name = 'nico-rewrap'";

async fn apply(server: &Server) -> Result<Report, GrpcError> {
    reencrypt(server, certs::admin(), json!({})).await
}

fn assert_unavailable(answer: Result<Report, GrpcError>) {
    let error = answer.unwrap_err();
    assert_eq!(error.code, "UNAVAILABLE", "{error:?}");
    assert_eq!(error.reason().as_deref(), Some("DATABASE_UNAVAILABLE"));
    assert!(error.message.contains("call again"), "{}", error.message);
}

#[tokio::test]
async fn a_run_survives_the_loss_of_every_connection_and_counts_each_row_once() {
    let database = Database::migrated().await;
    let client = database.client().await;
    seed::insert(&client, &orgs(200)).await;
    slow_writes(&client, 0.02).await;
    let server = Site::new(&database)
        .set("rewrap.database_pool_size", "4")
        .start()
        .await;
    let terminate = async {
        for progress in [20, 80, 140] {
            until_written(&client, progress).await;
            let sql = format!("SELECT count(pg_terminate_backend(pid)) FROM {SERVICE_BACKENDS}");
            let terminated: i64 = client.query_one(&sql, &[]).await.unwrap().get(0);
            assert!(terminated > 0, "no connection of the service at {progress}");
        }
    };
    let (report, ()) = tokio::join!(run(&server, false), terminate);
    assert_eq!(
        (
            report.rows_updated,
            report.fields_reencrypted,
            report.rows_failed
        ),
        (200, 400, 0)
    );
    assert_eq!(report.rows_examined, 200);
    for (id, row) in seed::snapshot(&client).await {
        assert!(
            row.version.starts_with("V8-"),
            "{id} was written once: {}",
            row.version
        );
    }
}

/// One row that the first client has locked, and a server that waits long for the lock. A proxy can
/// cut the connections of the server. The second client is for observation.
async fn behind_a_lock() -> (Client, Client, Proxy, Server) {
    let database = Database::migrated().await;
    let (rival, watch) = (database.client().await, database.client().await);
    seed::insert(&rival, &orgs(1)).await;
    let proxy = Proxy::to(pg::Server::shared().port()).await;
    let site = Site::with_url(&proxy.url(&database)).set("rewrap.statement_timeout", "\"60s\"");
    let server = site.set("rewrap.lock_timeout", "\"60s\"").start().await;
    rival
        .batch_execute("BEGIN; SELECT FROM tenant_identity_config FOR UPDATE")
        .await
        .unwrap();
    (rival, watch, proxy, server)
}

#[tokio::test]
async fn a_write_whose_answer_was_lost_is_checked_and_not_repeated() {
    let rewritten = seal("the rival's", "kv1");
    // The change of another client before the service reconnects, and the final version of the row.
    let table = [
        (String::new(), "V8-"),
        (
            format!("UPDATE tenant_identity_config SET encrypted_signing_key_2 = '{rewritten}'"),
            "V9-",
        ),
    ];
    for (change, version) in table {
        let (rival, watch, proxy, server) = behind_a_lock().await;
        let lose = async {
            until_blocked(&watch).await;
            proxy.hold_answers();
            rival.batch_execute("COMMIT").await.unwrap();
            until_written(&watch, 1).await;
            rival.batch_execute(&change).await.unwrap();
            proxy.cut();
        };
        let (report, ()) = tokio::join!(run(&server, false), lose);
        assert_eq!(
            (
                report.rows_examined,
                report.rows_updated,
                report.rows_failed
            ),
            (1, 1, 0),
            "{change}"
        );
        let row = &seed::snapshot(&rival).await["org000"];
        assert!(
            row.version.starts_with(version),
            "{change}: {}",
            row.version
        );
        for text in row.texts.iter().flatten() {
            assert_eq!(key_id(text), "kv2", "{change}");
        }
    }
}

#[tokio::test]
async fn a_write_that_survives_its_connection_is_counted_and_not_repeated() {
    let (rival, watch, proxy, server) = behind_a_lock().await;
    proxy.lose_cancel_requests();
    let outlive = async {
        until_blocked(&watch).await;
        proxy.cut();
        // The first write waits for the lock without a client, and the second write waits behind
        // it.
        let both =
            format!("2 = (SELECT count(*) FROM {SERVICE_BACKENDS} AND wait_event_type = 'Lock')");
        until(&watch, &both).await;
        rival.batch_execute("COMMIT").await.unwrap();
    };
    let (report, ()) = tokio::join!(run(&server, false), outlive);
    assert_eq!(
        (report.rows_examined, report.rows_updated),
        (1, 1),
        "{report:?}"
    );
    let row = &seed::snapshot(&rival).await["org000"];
    assert!(row.version.starts_with("V8-"), "{}", row.version);
}

#[tokio::test]
async fn the_audit_record_counts_the_rows_committed_before_the_database_failed() {
    let database = Database::migrated().await;
    let client = database.client().await;
    seed::insert(&client, &orgs(200)).await;
    slow_writes(&client, 0.01).await;
    // Every write of one row ends its connection.
    let hang_up = "PERFORM pg_terminate_backend(pg_backend_pid());";
    before_update(
        &client,
        "hang_up",
        "OLD.organization_id = 'org010'",
        hang_up,
    )
    .await;
    // More batches than connections, so that at the end some are in progress and some have not
    // begun.
    let server = Site::new(&database)
        .set("rewrap.max_attempts", "2")
        .set("rewrap.database_pool_size", "3")
        .start()
        .await;
    assert_unavailable(apply(&server).await);
    let committed = written(&client).await;
    assert!((1..200).contains(&committed), "{committed}");
    assert_eq!(server.audited_rows("DATABASE_UNAVAILABLE").await, committed);
}

#[tokio::test]
async fn a_crash_of_the_database_ends_the_call_but_not_the_service() {
    let postgres = pg::Server::start();
    let database = Database::migrated_on(&postgres).await;
    let client = database.client().await;
    seed::insert(&client, &orgs(100)).await;
    slow_writes(&client, 0.1).await;
    let server = Site::new(&database)
        .set("rewrap.database_pool_size", "2")
        .start()
        .await;
    let die = async {
        until_written(&client, 5).await;
        postgres.stop_immediate();
        Instant::now()
    };
    let (answer, died) = tokio::join!(apply(&server), die);
    assert!(died.elapsed() < SECONDS_NOT_MINUTES, "{:?}", died.elapsed());
    assert_unavailable(answer);
    assert_unavailable(apply(&server).await);
    assert_eq!(server.get("/livez").await.0, 200);

    postgres.restart();
    let client = database.client().await;
    client
        .batch_execute("DROP TRIGGER slow ON tenant_identity_config")
        .await
        .unwrap();
    let already = u32::try_from(written(&client).await).unwrap();
    let report = run(&server, false).await;
    assert_eq!(
        (
            report.rows_updated,
            report.rows_skipped_all_on_target,
            report.rows_failed
        ),
        (100 - already, already, 0)
    );
}

/// The processes of a database server, which a test stops and continues. From outside, this looks
/// like a hung machine.
async fn processes(postgres: &pg::Server, client: &Client) -> Vec<u32> {
    let pids = client
        .query("SELECT pid FROM pg_stat_activity", &[])
        .await
        .unwrap();
    let backends = pids.iter().map(|row| row.get::<_, i32>(0).unsigned_abs());
    backends.chain([postgres.pid()]).collect()
}

#[tokio::test]
async fn a_hanging_database_ends_the_call_soon_even_with_a_large_pool() {
    let postgres = pg::Server::start();
    let database = Database::migrated_on(&postgres).await;
    let client = database.client().await;
    seed::insert(&client, &orgs(40)).await;
    slow_writes(&client, 0.3).await;
    // One row for each page, so that the pool fills, and one attempt for each connection.
    let site = Site::new(&database)
        .set("rewrap.database_pool_size", "20")
        .set("rewrap.page_size", "1");
    let site = site
        .set("rewrap.max_attempts", "20")
        .set("rewrap.pipeline_depth", "1");
    let server = site.set("rewrap.statement_timeout", "\"1s\"").start().await;
    assert_eq!(run(&server, false).await.rows_updated, 40);
    let pooled = format!("SELECT count(*) FROM {SERVICE_BACKENDS}");
    let pooled: i64 = client.query_one(&pooled, &[]).await.unwrap().get(0);
    assert!(pooled > 15, "{pooled} connections are no full pool");
    seed::insert(&client, &[Org::under("new", "kv1")]).await;
    client
        .batch_execute("BEGIN; SELECT FROM tenants WHERE organization_id = 'new' FOR UPDATE")
        .await
        .unwrap();
    let watch = database.client().await;

    let hang = async {
        until_blocked(&watch).await;
        let pids = processes(&postgres, &watch).await;
        signal(&pids, "STOP");
        (pids, Instant::now())
    };
    let new = json!({"organizationId": "new"});
    let call = reencrypt(&server, certs::admin(), new.clone());
    let (writing, (pids, hung)) = tokio::join!(call, hang);
    assert!(hung.elapsed() < SECONDS_NOT_MINUTES, "{:?}", hung.elapsed());
    assert_unavailable(writing);
    let before_reading = Instant::now();
    assert_unavailable(reencrypt(&server, certs::admin(), new.clone()).await);
    assert!(
        before_reading.elapsed() < SECONDS_NOT_MINUTES,
        "{:?}",
        before_reading.elapsed()
    );

    signal(&pids, "CONT");
    client.batch_execute("ROLLBACK").await.unwrap();
    let report = run(&server, false).await;
    assert_eq!((report.rows_examined, report.rows_failed), (41, 0));
}

#[tokio::test]
async fn a_hanging_database_costs_one_timeout_and_not_one_for_each_row() {
    let postgres = pg::Server::start();
    let database = Database::migrated_on(&postgres).await;
    let client = database.client().await;
    seed::insert(&client, &orgs(80)).await;
    slow_writes(&client, 0.2).await;
    let site = Site::new(&database)
        .set("rewrap.database_pool_size", "2")
        .set("rewrap.pipeline_depth", "4")
        // A rate limit would allow only four rows on the connection.
        .set("rewrap.adaptive_rate", "false");
    let server = site.set("rewrap.statement_timeout", "\"1s\"").start().await;
    let hang = async {
        until_written(&client, 4).await;
        let pids = processes(&postgres, &client).await;
        signal(&pids, "STOP");
        (pids, Instant::now())
    };
    let (answer, (pids, hung)) = tokio::join!(apply(&server), hang);
    assert!(hung.elapsed() < SECONDS_NOT_MINUTES, "{:?}", hung.elapsed());
    assert_unavailable(answer);
    signal(&pids, "CONT");
    let report = run(&server, false).await;
    assert_eq!((report.rows_examined, report.rows_failed), (80, 0));
}

#[tokio::test]
async fn a_database_that_hangs_in_a_commit_under_lock_ends_the_call() {
    let postgres = pg::Server::start();
    let database = Database::migrated_on(&postgres).await;
    let client = database.client().await;
    seed::insert(&client, &orgs(1)).await;
    // Three conflicts, so that the fourth attempt locks the row. Then the commit hangs.
    let miss = "IF nextval('misses') <= 3 THEN RETURN NULL; END IF;";
    client
        .batch_execute("CREATE SEQUENCE misses")
        .await
        .unwrap();
    before_update(&client, "miss", "true", miss).await;
    let slow_commit = "CREATE FUNCTION slow_commit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            PERFORM pg_advisory_xact_lock(1);
            RETURN NULL;
        END $$;
        CREATE CONSTRAINT TRIGGER slow_commit AFTER UPDATE ON tenants DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION slow_commit();
        SELECT pg_advisory_lock(1)";
    client.batch_execute(slow_commit).await.unwrap();
    let site = Site::new(&database)
        .set("rewrap.pipeline_depth", "1")
        .set("rewrap.max_attempts", "2");
    let site = site
        .set("rewrap.statement_timeout", "\"2s\"")
        .set("rewrap.lock_timeout", "\"2s\"");
    let server = site.start().await;
    let watch = database.client().await;
    let hang = async {
        until_blocked(&watch).await;
        let pids = processes(&postgres, &watch).await;
        signal(&pids, "STOP");
        (pids, Instant::now())
    };
    let (answer, (pids, hung)) = tokio::join!(apply(&server), hang);
    assert!(hung.elapsed() < SECONDS_NOT_MINUTES, "{:?}", hung.elapsed());
    assert_unavailable(answer);
    signal(&pids, "CONT");
    client
        .batch_execute("SELECT pg_advisory_unlock(1)")
        .await
        .unwrap();
    let report = run(&server, false).await;
    assert_eq!((report.rows_examined, report.rows_failed), (1, 0));
}

#[tokio::test]
async fn a_start_replaces_a_connection_that_hangs() {
    // In session mode, the first statement on a new connection is SET. In transaction mode, it is
    // the schema check.
    for pooler in ["session", "transaction"] {
        let database = Database::migrated().await;
        let proxy = Proxy::to(pg::Server::shared().port()).await;
        proxy.silence_new_connections();
        let site = Site::with_url(&proxy.url(&database)).set("rewrap.pool_mode", quote(pooler));
        let site = site
            .set("rewrap.connect_timeout", "\"500ms\"")
            .set("rewrap.pipeline_depth", "1");
        let server = site
            .set("rewrap.statement_timeout", "\"500ms\"")
            .start_unready()
            .await;
        server.wait_log("waiting for the database").await;
        let (status, body) = server.get("/readyz").await;
        assert!(
            status == 503 && body.contains("database"),
            "{pooler}: {status} {body}"
        );
        proxy.relay();
        server.wait_ready().await;
        assert_eq!(run(&server, false).await.rows_examined, 0, "{pooler}");
    }
}
