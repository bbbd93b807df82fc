//! Every row that a report counts is on disk: a crash of Postgres cannot undo it.

use serde_json::json;

use crate::certs;
use crate::database::Database;
use crate::faults::{until, until_written};
use crate::grpcurl::{reencrypt, run};
use crate::pg;
use crate::process::signal;
use crate::seal::key_id;
use crate::seed::{self, Org, snapshot};
use crate::server::Server;
use crate::site::Site;

/// A Postgres that flushes so late that nothing is flushed unless a client waits for it.
fn lazy_postgres() -> pg::Server {
    pg::Server::options()
        .setting("wal_writer_delay", "10s")
        .setting("wal_writer_flush_after", "1GB")
        .setting("bgwriter_lru_maxpages", "0")
        .setting("shared_buffers", "64MB")
        .setting("fsync", "on")
        .start()
}

async fn site_of(
    postgres: &pg::Server,
    organizations: usize,
) -> (Database, tokio_postgres::Client) {
    let database = Database::migrated_on(postgres).await;
    let client = database.client().await;
    let orgs: Vec<_> = (0..organizations)
        .map(|i| Org::under(&format!("org-{i:03}"), "kv1"))
        .collect();
    seed::insert(&client, &orgs).await;
    (database, client)
}

/// The organizations whose first secret is under `key`.
async fn under(database: &Database, key: &str) -> usize {
    let rows = snapshot(&database.client().await).await;
    let texts = rows.values().filter_map(|row| row.texts[0].as_ref());
    texts.filter(|text| key_id(text) == key).count()
}

#[tokio::test]
async fn a_crash_right_after_the_report_undoes_no_row() {
    const ORGANIZATIONS: usize = 40;
    let postgres = lazy_postgres();
    let (database, _client) = site_of(&postgres, ORGANIZATIONS).await;
    let site = |target: &str| Site::new(&database).target(target);
    let servers: [Server; 2] = [site("kv2").start().await, site("kv1").start().await];
    for round in 0..10 {
        let server = &servers[round % 2];
        let report = run(server, false).await;
        postgres.stop_immediate();
        postgres.restart();
        assert_eq!(report.rows_updated as usize, ORGANIZATIONS, "round {round}");
        let target = &report.current_encryption_key_id;
        assert_eq!(
            under(&database, target).await,
            ORGANIZATIONS,
            "round {round}"
        );
    }
}

#[tokio::test]
async fn a_run_for_one_organization_is_durable() {
    let postgres = lazy_postgres();
    let (database, _client) = site_of(&postgres, 2).await;
    let server = Site::new(&database).start().await;
    let request = json!({"organizationId": "org-001"});
    let report = reencrypt(&server, certs::admin(), request).await.unwrap();
    postgres.stop_immediate();
    postgres.restart();
    assert_eq!(report.rows_updated, 1);
    assert_eq!(under(&database, "kv2").await, 1);
}

/// Creates rows that an apply wrote but did not flush: its process was killed before the barrier.
/// Returns their number.
async fn left_unflushed(database: &Database, client: &tokio_postgres::Client) -> usize {
    // Even with these settings, the WAL writer flushes every ten seconds, so stop it. Postgres
    // kills it at shutdown.
    let writer = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'";
    let admin = database.admin().await;
    let writer: i32 = admin.query_one(writer, &[]).await.unwrap().get(0);
    signal(&[writer.try_into().unwrap()], "STOP");
    // A locked row keeps the apply from finishing. The row is deleted afterwards.
    let hold = "SET synchronous_commit = off;
        BEGIN; DELETE FROM tenants WHERE organization_id = 'org-039'";
    client.batch_execute(hold).await.unwrap();
    let server = without_load_probes(database)
        .set("rewrap.statement_timeout", "\"100s\"")
        .set("rewrap.lock_timeout", "\"100s\"")
        .start()
        .await;
    let written = tokio::select! {
        report = run(&server, false) => panic!("past a row that is held: {report:?}"),
        () = until_written(client, 39) => 39,
    };
    server.signal("KILL");
    server.wait_exit().await;
    client.batch_execute("COMMIT").await.unwrap();
    let gone = "NOT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'nico-rewrap')";
    until(client, gone).await;
    written
}

/// The load probe is off, since its commits would also flush.
fn without_load_probes(database: &Database) -> Site {
    Site::new(database).set("rewrap.adaptive_rate", "false")
}

#[tokio::test]
async fn rows_that_were_found_on_target_are_durable_after_the_report() {
    for dry_run in [true, false] {
        let postgres = lazy_postgres();
        let (database, client) = site_of(&postgres, 40).await;
        let written = left_unflushed(&database, &client).await;
        let server = without_load_probes(&database).start().await;
        let report = run(&server, dry_run).await;
        postgres.stop_immediate();
        postgres.restart();
        assert_eq!(report.rows_skipped_all_on_target as usize, written);
        assert_eq!((report.rows_updated, report.rows_failed), (0, 0));
        assert_eq!(under(&database, "kv2").await, written, "dry: {dry_run}");
    }
}

#[tokio::test]
async fn a_crash_that_no_statement_notices_prevents_the_report() {
    let postgres = lazy_postgres();
    let (database, client) = site_of(&postgres, 8).await;
    // The crash comes between the fourth and the fifth row.
    let server = without_load_probes(&database)
        .set("rewrap.max_rows_per_second", "1")
        .start()
        .await;
    let crash = async {
        until_written(&client, 4).await;
        let backend = client.query_one("SELECT pg_backend_pid()", &[]).await;
        let backend: i32 = backend.unwrap().get(0);
        signal(&[backend.try_into().unwrap()], "KILL");
    };
    let apply = reencrypt(&server, certs::admin(), json!({}));
    let (answer, ()) = tokio::join!(apply, crash);
    let error = answer.unwrap_err();
    assert_eq!(error.reason().as_deref(), Some("DATABASE_UNAVAILABLE"));
    let log = server.log_text();
    assert!(log.contains("it was restarted during the run"), "{log}");
    let report = run(&server, false).await;
    assert_eq!((report.rows_examined, report.rows_failed), (8, 0));
}

#[tokio::test]
async fn without_a_report_a_crash_can_undo_rows() {
    let postgres = lazy_postgres();
    let (database, client) = site_of(&postgres, 40).await;
    let written = left_unflushed(&database, &client).await;
    postgres.stop_immediate();
    postgres.restart();
    assert!(under(&database, "kv2").await < written);
}

#[tokio::test]
async fn per_row_durability_flushes_every_row() {
    let postgres = lazy_postgres();
    let (database, client) = site_of(&postgres, 30).await;
    let flushes = async |client: &tokio_postgres::Client| {
        let version = "SELECT current_setting('server_version_num')::int >= 180000";
        let is_18: bool = client.query_one(version, &[]).await.unwrap().get(0);
        let sql = match is_18 {
            true => "SELECT sum(fsyncs)::bigint FROM pg_stat_io WHERE object = 'wal'",
            false => "SELECT wal_sync FROM pg_stat_wal",
        };
        client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0)
    };
    let mut flushed = Vec::new();
    for durability in ["per_row", "per_run"] {
        let site = Site::new(&database).set("rewrap.durability", format!("\"{durability}\""));
        // One row at a time: simultaneous commits share a flush.
        let site = site
            .target(if durability == "per_row" {
                "kv2"
            } else {
                "kv1"
            })
            .set("rewrap.database_pool_size", "1")
            .set("rewrap.pipeline_depth", "1")
            // Its load probe commits and flushes, too.
            .set("rewrap.adaptive_rate", "false");
        let server = site.start().await;
        client
            .batch_execute("SELECT pg_stat_force_next_flush()")
            .await
            .ok();
        let before = flushes(&client).await;
        assert_eq!(run(&server, false).await.rows_updated, 30);
        // A backend reports its statistics at its end at the latest.
        assert_eq!(server.terminate().await, 0);
        let gone =
            "NOT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'nico-rewrap')";
        until(&client, gone).await;
        flushed.push(flushes(&client).await - before);
    }
    assert!(flushed[0] >= 30, "each: {flushed:?}");
    assert!(flushed[1] <= 5, "barrier: {flushed:?}");
}
