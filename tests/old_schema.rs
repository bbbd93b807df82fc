//! Sites from before June 2026, whose nico-api chooses the key by the column `encryption_key_id`.
//! Also schema changes during a run.

use serde_json::json;
use tokio_postgres::error::SqlState;

use crate::certs;
use crate::database::Database;
use crate::faults::{Guard, before_update, orgs, raise, slow_writes, until, until_written};
use crate::grpcurl::{reencrypt, run};
use crate::seal::{key_id, seal};
use crate::seed::{self, Org};
use crate::site::Site;

/// A database with the old schema and `n` usual organizations.
async fn old_site(n: usize) -> (Database, tokio_postgres::Client) {
    let database = Database::migrated().await;
    let client = database.client().await;
    seed::add_encryption_key_id(&client).await;
    seed::insert(&client, &orgs(n)).await;
    (database, client)
}

#[tokio::test]
async fn the_old_column_is_updated_with_the_texts_but_causes_no_write() {
    let (database, client) = old_site(2).await;
    // Only this row needs a re-wrap. Its column has a wrong key id, but nobody reads the column.
    Org::under("wrong-label", "kv1")
        .encryption_key_id("no-such-key")
        .insert(&client)
        .await;
    Org::under("on-target", "kv2")
        .encryption_key_id("kv1")
        .insert(&client)
        .await;
    Org::new("no-secret")
        .encryption_key_id("kv1")
        .insert(&client)
        .await;
    Org::under("failing", "kv1")
        .text(1, "unreadable")
        .insert(&client)
        .await;
    let before = seed::snapshot(&client).await;

    let server = Site::new(&database).start().await;
    let dry_run = run(&server, true).await;
    assert_eq!(
        seed::snapshot(&client).await,
        before,
        "a dry run writes nothing"
    );
    let report = run(&server, false).await;
    assert_eq!(
        (
            report.rows_updated,
            report.rows_skipped_all_on_target,
            report.rows_failed
        ),
        (3, 2, 1)
    );
    assert_eq!(dry_run.rows_updated, 3);
    let after = seed::snapshot(&client).await;
    for id in ["org000", "org001", "wrong-label"] {
        assert_eq!(after[id].encryption_key_id.as_deref(), Some("kv2"), "{id}");
        assert_eq!(key_id(after[id].texts[0].as_ref().unwrap()), "kv2", "{id}");
        assert_eq!(after[id].others, before[id].others, "{id}");
    }
    for id in ["on-target", "no-secret", "failing"] {
        assert_eq!(after[id], before[id], "{id}");
    }
}

#[tokio::test]
async fn a_row_with_one_text_to_rewrap_gets_the_new_label() {
    let (database, client) = old_site(0).await;
    let mixed = Org::under("mixed", "kv2").text(1, seal("old", "kv1"));
    mixed.encryption_key_id("kv1").insert(&client).await;
    let server = Site::new(&database).start().await;
    let report = run(&server, false).await;
    assert_eq!(
        (report.fields_reencrypted, report.fields_skipped_on_target),
        (1, 2)
    );
    assert_eq!(
        seed::snapshot(&client).await["mixed"]
            .encryption_key_id
            .as_deref(),
        Some("kv2")
    );
}

#[tokio::test]
async fn the_old_column_is_set_under_a_row_lock() {
    let (database, client) = old_site(1).await;
    // Three conflicts, as if the row had changed each time.
    client
        .batch_execute("CREATE SEQUENCE misses")
        .await
        .unwrap();
    let miss = "IF nextval('misses') <= 3 THEN RETURN NULL; END IF;";
    before_update(&client, "miss", "true", miss).await;
    let server = Site::new(&database).start().await;
    assert_eq!(run(&server, false).await.rows_updated, 1);
    assert_eq!(
        seed::snapshot(&client).await["org000"]
            .encryption_key_id
            .as_deref(),
        Some("kv2")
    );
}

#[tokio::test]
async fn an_error_that_resembles_a_dropped_column_affects_one_row_only() {
    let (database, client) = old_site(40).await;
    raise(&client, "org000", "42703", None).await;
    // One row at a time, so that most come after the error.
    let site = Site::new(&database)
        .set("rewrap.database_pool_size", "1")
        .set("rewrap.pipeline_depth", "1");
    let server = site.start().await;
    let report = run(&server, false).await;
    assert_eq!((report.rows_updated, report.rows_failed), (39, 1));
    assert!(report.failures[0].error.contains("42703"), "{report:?}");
    for (id, row) in seed::snapshot(&client).await {
        let key_id = if id == "org000" { "kv1" } else { "kv2" };
        assert_eq!(row.encryption_key_id.as_deref(), Some(key_id), "{id}");
    }
}

/// Schema changes that nico-api's migrations could make. None removes a column that the service
/// needs.
const CHANGES: [&str; 4] = [
    "ALTER TABLE tenants ALTER COLUMN version TYPE text",
    "ALTER TABLE tenant_identity_config DROP COLUMN encryption_key_id",
    "ALTER TABLE tenant_identity_config ALTER COLUMN encrypted_signing_key_1 TYPE varchar",
    "ALTER TABLE tenant_identity_config ADD COLUMN more text; ALTER TABLE tenants ADD COLUMN more text",
];

/// More organizations, with `round` in their ids.
fn more(round: usize) -> Vec<Org> {
    (0..30)
        .map(|i| Org::under(&format!("round{round}-{i}"), "kv1"))
        .collect()
}

#[tokio::test]
async fn schema_changes_during_a_run_make_no_row_fail() {
    let (database, client) = old_site(0).await;
    slow_writes(&client, 0.02).await;
    let site = Site::new(&database).set("rewrap.page_size", "10");
    let server = site.set("rewrap.database_pool_size", "2").start().await;
    for (round, change) in CHANGES.iter().enumerate() {
        seed::insert(&client, &more(round)).await;
        let migrate = async {
            until_written(&client, 30 * i64::try_from(round).unwrap() + 5).await;
            // Postgres may end a deadlock by aborting this transaction, which locks several tables.
            while let Err(e) = client.batch_execute(change).await {
                assert_eq!(e.code(), Some(&SqlState::T_R_DEADLOCK_DETECTED), "{e:?}");
            }
        };
        let (report, ()) = tokio::join!(run(&server, false), migrate);
        assert_eq!(
            (report.rows_updated, report.failures),
            (30, vec![]),
            "{change}"
        );
    }
}

#[tokio::test]
async fn schema_changes_between_runs_make_no_row_fail() {
    let (database, client) = old_site(30).await;
    // One row of each round has three conflicts and is locked for the fourth attempt, so that these
    // statements are cached, too.
    client
        .batch_execute("CREATE SEQUENCE misses")
        .await
        .unwrap();
    let miss = "IF nextval('misses') % 4 <> 0 THEN RETURN NULL; END IF;";
    let some = "OLD.organization_id IN ('org000', 'round0-0', 'round1-0', 'round2-0', 'round3-0')";
    before_update(&client, "miss", some, miss).await;
    let server = Site::new(&database)
        .set("rewrap.database_pool_size", "1")
        .start()
        .await;
    assert_eq!(run(&server, false).await.rows_updated, 30);
    for (round, change) in CHANGES.iter().enumerate() {
        client.batch_execute(change).await.unwrap();
        seed::insert(&client, &more(round)).await;
        let dry_run = run(&server, true).await;
        assert_eq!(
            (dry_run.rows_updated, dry_run.failures),
            (30, vec![]),
            "{change}"
        );
        let report = run(&server, false).await;
        assert_eq!(
            (report.rows_updated, report.failures),
            (30, vec![]),
            "{change}"
        );
    }
}

#[tokio::test]
async fn a_schema_change_between_two_attempts_makes_no_row_fail() {
    let database = Database::migrated().await;
    let (rival, migration, watch) =
        tokio::join!(database.client(), database.client(), database.client());
    seed::insert(&rival, &orgs(1)).await;
    let server = Site::new(&database)
        .set("rewrap.database_pool_size", "1")
        .start()
        .await;
    // This call prepares the statement that reads the row again after a conflict.
    let request = json!({"organizationId": "org000"});
    reencrypt(&server, certs::admin(), request.clone())
        .await
        .unwrap();
    rival.batch_execute(&changed()).await.unwrap();
    let gate = Guard::closed(&database).await;
    let change = async {
        gate.reached().await;
        rival.batch_execute(&changed()).await.unwrap();
        let open = async {
            // The change waits behind the statement at the gate and before the next statement.
            let queued = "EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()
                AND query LIKE 'ALTER TABLE%' AND wait_event_type = 'Lock')";
            until(&watch, queued).await;
            gate.open().await;
        };
        tokio::join!(migration.batch_execute(CHANGES[0]), open)
            .0
            .unwrap();
    };
    let (report, ()) = tokio::join!(reencrypt(&server, certs::admin(), request), change);
    let report = report.unwrap();
    assert_eq!((report.rows_updated, report.failures), (1, vec![]));
}

/// A change by another client.
fn changed() -> String {
    format!(
        "UPDATE tenant_identity_config SET encrypted_signing_key_2 = '{}'",
        seal("new", "kv1")
    )
}
