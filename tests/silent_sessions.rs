//! Postgres is silent in one session and answers in others: the row at which the session is stuck
//! fails, and the other rows are re-wrapped. A paused service, or a pooler without a free server
//! connection, only looks like a silent session: then no row fails.

use std::time::Duration;

use serde_json::json;
use tokio_postgres::Client;

use crate::certs;
use crate::database::Database;
use crate::faults::{before_update, orgs, until, until_blocked, until_written, written};
use crate::grpcurl::{reencrypt, run};
use crate::pgbouncer::PgBouncer;
use crate::seed::{self, snapshot};
use crate::site::{Site, quote};

/// The usual site, whose statements may run for a second.
fn impatient(url: &str, pooler: &str) -> Site {
    Site::with_url(url)
        .set("rewrap.pool_mode", quote(pooler))
        .set("rewrap.statement_timeout", "\"1s\"")
        .set("rewrap.lock_timeout", "\"300ms\"")
        .set("rewrap.adaptive_rate", "false")
}

/// Makes the UPDATE of an organization take a minute, regardless of `statement_timeout`.
async fn stuck_update(client: &Client, organization: &str) {
    let body = "BEGIN
            PERFORM pg_sleep(60);
        EXCEPTION WHEN query_canceled THEN
            PERFORM pg_sleep(60);
        END;";
    let when = format!("OLD.organization_id = '{organization}'");
    before_update(client, &format!("stuck_{organization}"), &when, body).await;
}

/// Makes the COMMIT of an organization take a minute. This trigger is deferred again after it was
/// made to run before the COMMIT.
async fn stuck_commit(client: &Client, organization: &str) {
    let sql = format!(
        "CREATE TABLE later (id text);
        CREATE FUNCTION again() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            SET CONSTRAINTS ALL DEFERRED;
            INSERT INTO later VALUES (NEW.organization_id);
            RETURN NULL;
        END $$;
        CREATE FUNCTION sleep() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM pg_sleep(60); RETURN NULL; END $$;
        CREATE CONSTRAINT TRIGGER sleep AFTER INSERT ON later DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION sleep();
        CREATE CONSTRAINT TRIGGER again AFTER UPDATE ON tenant_identity_config DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW WHEN (OLD.organization_id = '{organization}') EXECUTE FUNCTION again()"
    );
    client.batch_execute(&sql).await.unwrap();
}

#[tokio::test]
async fn a_write_that_does_not_end_fails_alone() {
    for (pooler, through_pgbouncer) in [
        ("session", None),
        ("transaction", None),
        ("transaction", Some(2)),
    ] {
        for is_commit in [false, true] {
            let case = format!("{pooler} {through_pgbouncer:?} {is_commit}");
            let database = Database::migrated().await;
            let client = database.client().await;
            seed::insert(&client, &orgs(60)).await;
            if is_commit {
                stuck_commit(&client, "org005").await;
            } else {
                stuck_update(&client, "org005").await;
                stuck_update(&client, "org040").await;
            }
            let stuck: &[&str] = if is_commit {
                &["org005"]
            } else {
                &["org005", "org040"]
            };
            let before = snapshot(&client).await;
            let bouncer = match through_pgbouncer {
                Some(size) => Some(PgBouncer::with_pool_size(size, &database).await),
                None => None,
            };
            let url = bouncer
                .as_ref()
                .map_or_else(|| database.url(), |bouncer| bouncer.url(&database));
            let server = impatient(&url, pooler).start().await;
            let answer = reencrypt(&server, certs::admin(), json!({})).await;
            let report = answer.unwrap_or_else(|error| panic!("{case}: {error:?}"));
            let failed: Vec<_> = report
                .failures
                .iter()
                .map(|failure| failure.organization_id.as_str())
                .collect();
            assert_eq!(failed, stuck, "{case}: {:?}", report.failures);
            for failure in &report.failures {
                assert!(failure.error.contains("took longer"), "{case}: {failure:?}");
            }
            assert_eq!(
                usize::try_from(report.rows_updated).unwrap(),
                60 - stuck.len()
            );
            let after = snapshot(&client).await;
            for id in stuck {
                assert_eq!(after[*id], before[*id], "{case}");
            }
            let ended =
                "NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()
                AND application_name = 'nico-rewrap' AND state = 'active')";
            until(&client, ended).await;
            let one = json!({"organizationId": stuck[0]});
            let report = reencrypt(&server, certs::admin(), one).await.unwrap();
            assert_eq!(report.rows_failed, 1, "{case}");
        }
    }
}

#[tokio::test]
async fn one_server_connection_of_a_pooler_is_enough_behind_locked_rows() {
    for pool_size in [1, 2] {
        let database = Database::migrated().await;
        let (rival, client) = (database.client().await, database.client().await);
        seed::insert(&client, &orgs(400)).await;
        let bouncer = PgBouncer::with_pool_size(pool_size, &database).await;
        let server = impatient(&bouncer.url(&database), "transaction")
            .set("rewrap.page_size", "100")
            .set("rewrap.pool_acquire_timeout", "\"1s\"")
            .start()
            .await;
        let lock = "BEGIN; SELECT FROM tenant_identity_config ORDER BY organization_id LIMIT 40 FOR UPDATE";
        rival.batch_execute(lock).await.unwrap();
        let report = run(&server, false).await;
        let counted = (report.rows_updated, report.rows_failed);
        assert_eq!(counted, (360, 40), "{pool_size}");
        rival.batch_execute("ROLLBACK").await.unwrap();
        assert_eq!(run(&server, false).await.rows_updated, 40, "{pool_size}");
    }
}

#[tokio::test]
async fn a_service_that_is_paused_ends_no_run() {
    for pooler in ["session", "transaction"] {
        let database = Database::migrated().await;
        let client = database.client().await;
        seed::insert(&client, &orgs(300)).await;
        let server = impatient(&database.url(), pooler)
            .set("rewrap.page_size", "20")
            .set("rewrap.pipeline_depth", "4")
            .start()
            .await;
        before_update(&client, "slow", "true", "PERFORM pg_sleep(0.01);").await;
        let pauses = async {
            for rows in [10, 80, 150, 220] {
                until_written(&client, rows).await;
                server.signal("STOP");
                // Longer than any limit for one answer.
                tokio::time::sleep(Duration::from_secs(4)).await;
                server.signal("CONT");
            }
        };
        let (report, ()) = tokio::join!(run(&server, false), pauses);
        let counted = (report.rows_updated, report.rows_failed);
        assert_eq!(counted, (300, 0), "{pooler}: {:?}", report.failures);
    }
}

#[tokio::test]
async fn a_service_that_is_paused_while_it_holds_a_row_lock_writes_the_row_after_all() {
    let database = Database::migrated().await;
    let (rival, client) = (database.client().await, database.client().await);
    seed::insert(&client, &orgs(3)).await;
    client
        .batch_execute("CREATE SEQUENCE misses")
        .await
        .unwrap();
    let miss = "IF nextval('misses') <= 3 THEN RETURN NULL; END IF;";
    before_update(&client, "miss", "OLD.organization_id = 'org001'", miss).await;
    let server = impatient(&database.url(), "session").start().await;
    // The fourth attempt waits for the second table, under the lock of the first.
    let lock =
        "BEGIN; SELECT FROM tenant_identity_config WHERE organization_id = 'org001' FOR UPDATE";
    rival.batch_execute(lock).await.unwrap();
    let pause = async {
        until_blocked(&client).await;
        server.signal("STOP");
        rival.batch_execute("ROLLBACK").await.unwrap();
        tokio::time::sleep(Duration::from_secs(4)).await;
        server.signal("CONT");
    };
    let (report, ()) = tokio::join!(run(&server, false), pause);
    let counted = (report.rows_updated, report.rows_failed);
    assert_eq!(counted, (3, 0), "{:?}", report.failures);
    assert_eq!(written(&client).await, 3);
}
