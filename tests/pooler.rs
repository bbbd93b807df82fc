//! A transaction-mode pooler between the service and Postgres. Each transaction may use another
//! connection, which other clients also use. The service must therefore prepare no named statement
//! and leave no session setting there.

use tokio_postgres::SimpleQueryMessage::Row;

use crate::database::Database;
use crate::faults::{before_update, orgs, until, until_blocked, until_written, written};
use crate::grpcurl::run;
use crate::pg;
use crate::pgbouncer::{POOL_SIZE, PgBouncer};
use crate::proxy::Proxy;
use crate::seed;
use crate::site::{Site, quote};

const SETTINGS: &str = "SELECT pg_backend_pid(), current_setting('lock_timeout') || ' ' ||
    current_setting('statement_timeout') || ' ' || current_setting('idle_in_transaction_session_timeout')";

/// The session settings of all connections from the pooler to Postgres.
async fn settings(bouncer: &PgBouncer, database: &Database) -> Vec<String> {
    let mut clients = Vec::new();
    let mut pids = Vec::new();
    let mut settings = Vec::new();
    for _ in 0..POOL_SIZE {
        let client = bouncer.client(database).await;
        // Open until the end, so that each transaction has its own connection.
        client.batch_execute("BEGIN").await.unwrap();
        let messages = client.simple_query(SETTINGS).await.unwrap();
        let row = messages.iter().find_map(|message| {
            if let Row(row) = message {
                Some(row)
            } else {
                None
            }
        });
        pids.push(row.unwrap().get(0).unwrap().to_owned());
        settings.push(row.unwrap().get(1).unwrap().to_owned());
        clients.push(client);
    }
    pids.dedup();
    assert_eq!(pids.len(), POOL_SIZE);
    settings
}

#[tokio::test]
async fn the_whole_procedure_works_through_a_transaction_mode_pooler() {
    let database = Database::migrated().await;
    let client = database.client().await;
    seed::insert(&client, &orgs(120)).await;
    // One row needs the lock. Another client has locked another row.
    client
        .batch_execute("CREATE SEQUENCE misses")
        .await
        .unwrap();
    let miss = "IF nextval('misses') <= 3 THEN RETURN NULL; END IF;";
    before_update(&client, "miss", "OLD.organization_id = 'org007'", miss).await;
    let lock = "BEGIN; SELECT FROM tenants WHERE organization_id = 'org100' FOR UPDATE";
    client.batch_execute(lock).await.unwrap();

    let bouncer = PgBouncer::start(&database).await;
    let site = Site::with_url(&bouncer.url(&database)).set("rewrap.pool_mode", "\"transaction\"");
    let site = site
        .set("rewrap.lock_timeout", "\"300ms\"")
        .set("rewrap.page_size", "50");
    let server = site.start().await;
    let dry_run = run(&server, true).await;
    assert_eq!((dry_run.rows_updated, dry_run.rows_failed), (120, 0));
    let report = run(&server, false).await;
    assert_eq!(
        (report.rows_updated, report.rows_failed),
        (119, 1),
        "{report:?}"
    );
    assert_eq!(report.failures[0].organization_id, "org100");
    assert!(
        report.failures[0].error.contains("lock_timeout"),
        "{report:?}"
    );
    client.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(run(&server, false).await.rows_updated, 1);
    assert_eq!(run(&server, true).await.rows_skipped_all_on_target, 120);
    assert_eq!(settings(&bouncer, &database).await, ["0 0 0", "0 0 0"]);
}

/// `PgBouncer` before 1.21 releases a session at the end of a transaction, although a part of the
/// next one has arrived and was sent on. The session then gets messages of two clients.
#[tokio::test]
async fn behind_a_pooler_no_transaction_follows_on_a_connection_before_the_answer() {
    let database = Database::migrated().await;
    let (gate, watch) = (database.client().await, database.client().await);
    seed::insert(&watch, &orgs(10)).await;
    let wait = "PERFORM pg_advisory_xact_lock(1);";
    before_update(&watch, "gate", "OLD.organization_id = 'org000'", wait).await;
    let close = "SELECT pg_advisory_lock(1)";
    gate.batch_execute(close).await.unwrap();
    let proxy = Proxy::to(pg::Server::shared().port()).await;
    let site = Site::with_url(&proxy.url(&database))
        .set("rewrap.pool_mode", quote("transaction"))
        .set("rewrap.pipeline_depth", "32")
        .set("rewrap.database_pool_size", "1")
        .set("rewrap.adaptive_rate", "false")
        .set("rewrap.lock_timeout", quote("100s"))
        .set("rewrap.statement_timeout", quote("100s"));
    let server = site.start().await;
    let answers_held = async {
        until_blocked(&watch).await;
        proxy.hold_answers();
        gate.batch_execute("SELECT pg_advisory_unlock(1)")
            .await
            .unwrap();
        until_written(&watch, 1).await;
        // Postgres has processed all that it has received.
        let idle_for_a_while = "NOT EXISTS (SELECT FROM pg_stat_activity
            WHERE datname = current_database() AND application_name = 'nico-rewrap'
            AND (state <> 'idle' OR state_change > clock_timestamp() - interval '500ms'))";
        until(&watch, idle_for_a_while).await;
        let only_the_first = written(&watch).await;
        proxy.relay();
        only_the_first
    };
    let (report, only_the_first) = tokio::join!(run(&server, false), answers_held);
    assert_eq!(only_the_first, 1);
    assert_eq!((report.rows_updated, report.rows_failed), (10, 0));
}

#[tokio::test]
async fn without_pool_mode_transaction_our_session_settings_leak_to_others() {
    let database = Database::migrated().await;
    let bouncer = PgBouncer::start(&database).await;
    let site = Site::with_url(&bouncer.url(&database)).set("rewrap.pool_mode", quote("session"));
    let _server = site.set("rewrap.statement_timeout", "\"7s\"").start().await;
    let settings = settings(&bouncer, &database).await;
    assert!(settings.contains(&"2s 7s 7s".to_owned()), "{settings:?}");
}
