//! A stopped run ends soon, even if its rows are locked, and reports what it did.

use std::time::Duration;

use serde_json::json;
use tokio_postgres::Client;

use crate::certs;
use crate::database::Database;
use crate::faults::{orgs, until, until_blocked, until_written, written};
use crate::grpcurl::{Call, reencrypt, run};
use crate::pg;
use crate::process::signal;
use crate::proxy::Proxy;
use crate::seed::{self, Org};
use crate::server::{Server, field};
use crate::site::Site;

/// The sessions of the service, as a table with a condition.
const SESSIONS: &str =
    "pg_stat_activity WHERE datname = current_database() AND application_name = 'nico-rewrap'";

/// Far longer than a stop takes, but shorter than one lock timeout of the pipeline.
const SOON: Duration = Duration::from_secs(20);

/// A site whose first rows are locked for minutes, as many as all pipelines can hold.
async fn behind_locked_rows(rows: usize, locked: usize) -> (Database, Client, Client, Server) {
    let database = Database::migrated().await;
    let (rival, watch) = (database.client().await, database.client().await);
    seed::insert(&rival, &orgs(rows)).await;
    let server = Site::new(&database)
        .set("rewrap.lock_timeout", "\"60s\"")
        .set("rewrap.statement_timeout", "\"60s\"")
        .start()
        .await;
    let lock = format!(
        "BEGIN; SELECT FROM tenant_identity_config ORDER BY organization_id LIMIT {locked} FOR UPDATE"
    );
    rival.batch_execute(&lock).await.unwrap();
    (database, rival, watch, server)
}

async fn soon<T>(what: &str, wait: impl Future<Output = T>) -> T {
    let ended = tokio::time::timeout(SOON, wait).await;
    ended.unwrap_or_else(|_| panic!("{what} takes longer than {SOON:?}"))
}

fn number(record: &serde_json::Value, name: &str) -> i64 {
    field(record, name)
        .and_then(serde_json::Value::as_i64)
        .unwrap()
}

#[tokio::test]
async fn a_deadline_ends_a_run_behind_locked_rows_with_every_row_accounted_for() {
    let (_database, rival, watch, server) = behind_locked_rows(300, 200).await;
    let call = Call::new(&server, certs::admin()).max_time(3.0);
    let error = call.reencrypt(&json!({})).await.unwrap_err();
    assert_eq!(error.code, "DEADLINE_EXCEEDED", "{error:?}");
    let record = soon("the record", server.wait_log("call")).await;
    assert_eq!(number(&record, "rows_updated"), written(&watch).await);
    assert_eq!(number(&record, "rows_in_doubt"), 0, "{record}");
    // Nobody waits for the locks.
    let nobody = format!("NOT EXISTS (SELECT FROM {SESSIONS} AND wait_event_type = 'Lock')");
    soon("the end of the sessions", until(&watch, &nobody)).await;
    let before = seed::snapshot(&watch).await;
    rival.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(seed::snapshot(&watch).await, before, "no write followed");
    let report = run(&server, false).await;
    assert_eq!((report.rows_examined, report.rows_failed), (300, 0));
}

#[tokio::test]
async fn a_shutdown_behind_locked_rows_is_soon_and_leaves_its_record() {
    let (_database, rival, watch, server) = behind_locked_rows(300, 200).await;
    let stop = async {
        until_blocked(&watch).await;
        soon("the shutdown", server.terminate()).await
    };
    let (answer, code) = tokio::join!(reencrypt(&server, certs::admin(), json!({})), stop);
    assert_eq!(
        answer.unwrap_err().reason().as_deref(),
        Some("SHUTTING_DOWN")
    );
    assert_eq!(code, 0);
    let record = server.wait_log("call").await;
    assert_eq!(number(&record, "rows_updated"), written(&watch).await);
    assert_eq!(number(&record, "rows_in_doubt"), 0, "{record}");
    rival.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(number(&record, "rows_updated"), written(&watch).await);
}

#[tokio::test]
async fn rows_whose_answer_was_lost_before_a_stop_are_counted() {
    let database = Database::migrated().await;
    let client = database.client().await;
    seed::insert(&client, &orgs(100)).await;
    let proxy = Proxy::to(pg::Server::shared().port()).await;
    let server = Site::with_url(&proxy.url(&database))
        .set("rewrap.max_rows_per_second", "50")
        .set("rewrap.adaptive_rate", "false")
        .start()
        .await;
    let lose = async {
        until_written(&client, 8).await;
        proxy.hold_answers();
        // The next rows are committed, but their answers do not arrive.
        let heard = written(&client).await;
        until_written(&client, heard + 12).await;
        server.signal("TERM");
        proxy.cut();
    };
    let (answer, ()) = tokio::join!(reencrypt(&server, certs::admin(), json!({})), lose);
    assert_eq!(
        answer.unwrap_err().reason().as_deref(),
        Some("SHUTTING_DOWN")
    );
    assert_eq!(server.wait_exit().await, 0);
    let record = server.wait_log("call").await;
    assert_eq!(number(&record, "rows_updated"), written(&client).await);
    assert_eq!(number(&record, "rows_in_doubt"), 0, "{record}");
}

#[tokio::test]
async fn a_frozen_database_does_not_hold_a_stop_up_and_leaves_rows_in_doubt() {
    let postgres = pg::Server::start();
    let database = Database::migrated_on(&postgres).await;
    let client = database.client().await;
    seed::insert(&client, &orgs(300)).await;
    let server = Site::new(&database)
        .set("rewrap.max_rows_per_second", "100")
        .set("rewrap.adaptive_rate", "false")
        .start()
        .await;
    let stop = async {
        until_written(&client, 20).await;
        let frozen = Frozen::all_of(&postgres);
        // Rows are sent on without an answer.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let code = soon("the shutdown", server.terminate()).await;
        drop(frozen);
        code
    };
    let (answer, code) = tokio::join!(reencrypt(&server, certs::admin(), json!({})), stop);
    assert!(answer.is_err());
    assert_eq!(code, 0);
    let record = server.wait_log("call").await;
    let (updated, in_doubt) = (
        number(&record, "rows_updated"),
        number(&record, "rows_in_doubt"),
    );
    assert!(in_doubt > 0, "{record}");
    assert_eq!(field(&record, "durable"), Some(&json!(false)), "{record}");
    // The sessions have ended. The outcome of the rows in doubt is unknown to the run.
    let gone = format!("NOT EXISTS (SELECT FROM {SESSIONS})");
    until(&client, &gone).await;
    let really = written(&client).await;
    assert!(
        (updated..=updated + in_doubt).contains(&really),
        "{really} of {record}"
    );
}

/// The processes of a Postgres server, stopped until this value is dropped.
struct Frozen(Vec<u32>);

impl Frozen {
    fn all_of(postgres: &pg::Server) -> Self {
        let postmaster = postgres.pid();
        let children = format!("/proc/{postmaster}/task/{postmaster}/children");
        let children = std::fs::read_to_string(children).unwrap();
        let mut pids = vec![postmaster];
        pids.extend(
            children
                .split_whitespace()
                .map(|pid| pid.parse::<u32>().unwrap()),
        );
        signal(&pids, "STOP");
        Self(pids)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        signal(&self.0, "CONT");
    }
}

#[tokio::test]
async fn a_frozen_database_is_noticed_before_all_statements_under_way_time_out() {
    let postgres = pg::Server::start();
    let database = Database::migrated_on(&postgres).await;
    let client = database.client().await;
    seed::insert(&client, &orgs(100)).await;
    let server = Site::new(&database)
        .set("rewrap.statement_timeout", "\"1s\"")
        .set("rewrap.lock_timeout", "\"1s\"")
        .set("rewrap.max_rows_per_second", "100")
        .set("rewrap.adaptive_rate", "false")
        .start()
        .await;
    let freeze = async {
        until_written(&client, 20).await;
        let frozen = Frozen::all_of(&postgres);
        // Not after pipeline_depth times statement_timeout, which is 32 s.
        soon("the end of the call", server.wait_log("call")).await;
        drop(frozen);
    };
    let (answer, ()) = tokio::join!(reencrypt(&server, certs::admin(), json!({})), freeze);
    assert_eq!(
        answer.unwrap_err().reason().as_deref(),
        Some("DATABASE_UNAVAILABLE")
    );
}

#[tokio::test]
async fn one_organization_does_not_wait_for_the_rows_of_a_site_wide_run() {
    let (_database, rival, watch, server) = behind_locked_rows(1000, 500).await;
    let one = async {
        until_blocked(&watch).await;
        for dry_run in [true, false] {
            let request = json!({"organization_id": "org900", "dry_run": dry_run});
            let report = soon(
                "one organization",
                reencrypt(&server, certs::admin(), request),
            )
            .await;
            assert_eq!(report.unwrap().rows_updated, 1, "{dry_run}");
        }
        rival.batch_execute("ROLLBACK").await.unwrap();
    };
    let (report, ()) = tokio::join!(run(&server, false), one);
    assert_eq!((report.rows_examined, report.rows_failed), (1000, 0));
}

#[tokio::test]
async fn locked_rows_with_long_secrets_are_failures_of_their_own() {
    let database = Database::migrated().await;
    let (rival, client) = (database.client().await, database.client().await);
    let long = crate::seal::seal("s".repeat(20_000), "kv1");
    let orgs: Vec<_> = (0..60)
        .map(|i| Org::under(&format!("org{i:03}"), "kv1").text(2, long.clone()))
        .collect();
    seed::insert(&client, &orgs).await;
    let server = Site::new(&database)
        .set("rewrap.lock_timeout", "\"300ms\"")
        .set("rewrap.statement_timeout", "\"4s\"")
        .set("rewrap.adaptive_rate", "false")
        .start()
        .await;
    let lock =
        "BEGIN; SELECT FROM tenant_identity_config ORDER BY organization_id LIMIT 40 FOR UPDATE";
    rival.batch_execute(lock).await.unwrap();
    // One pipeline of them takes longer than a single statement may.
    let report = run(&server, false).await;
    assert_eq!(
        (report.rows_failed, report.rows_updated),
        (40, 20),
        "{report:?}"
    );
    assert!(
        report
            .failures
            .iter()
            .all(|failure| failure.error.contains("locked")),
        "{report:?}"
    );
}

#[tokio::test]
async fn a_rate_limit_lets_a_row_go_before_the_one_ahead_is_answered() {
    let database = Database::migrated().await;
    let client = database.client().await;
    seed::insert(&client, &orgs(100)).await;
    let proxy = Proxy::to(pg::Server::shared().port()).await;
    let server = Site::with_url(&proxy.url(&database))
        .set("rewrap.max_rows_per_second", "100")
        .set("rewrap.database_pool_size", "2")
        .set("rewrap.adaptive_rate", "false")
        .start()
        .await;
    let without_answers = async {
        until_written(&client, 4).await;
        proxy.hold_answers();
        let before = written(&client).await;
        // More than one group of rows.
        until_written(&client, before + 16).await;
        proxy.relay();
    };
    let (report, ()) = tokio::join!(run(&server, false), without_answers);
    assert_eq!(report.rows_updated, 100);
}

#[tokio::test]
async fn an_apply_waits_for_one_that_is_being_stopped() {
    let postgres = pg::Server::start();
    let database = Database::migrated_on(&postgres).await;
    let client = database.client().await;
    seed::insert(&client, &orgs(300)).await;
    let server = Site::new(&database)
        .set("rewrap.max_rows_per_second", "100")
        .set("rewrap.adaptive_rate", "false")
        .start()
        .await;
    let first = Call::new(&server, certs::admin())
        .max_time(2.0)
        .start(&json!({}));
    server.wait_log("run started").await;
    let frozen = Frozen::all_of(&postgres);
    // Its deadline has passed, and it still finds out the outcome of the rows that it sent.
    tokio::time::sleep(Duration::from_millis(2300)).await;
    let again = async {
        let report = run(&server, false).await;
        assert_eq!((report.rows_examined, report.rows_failed), (300, 0));
    };
    let thaw = async {
        server.wait_log("call").await;
        drop(frozen);
    };
    tokio::join!(again, thaw);
    drop(first);
}
