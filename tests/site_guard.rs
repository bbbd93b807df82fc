//! Only one site-wide apply of a site runs at a time, over all instances.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::time::sleep;

use crate::database::Database;
use crate::faults::orgs;
use crate::few_connections::limited;
use crate::grpcurl::{self, GrpcError};
use crate::outcome::seeded;
use crate::pgbouncer::PgBouncer;
use crate::rewrap_client::{ask, ended, migrate_state, reason, try_ask};
use crate::seed::{self, Org};
use crate::server::Server;
use crate::site::Site;

const NO_CONNECTION: &str = "Postgres allows no further connection, so other instances can do a \
    site-wide apply at the same time. Raise the CONNECTION LIMIT of the role";
const NO_SCHEMA: &str = "with pool_mode = \"transaction\" and without the schema nico_rewrap, other \
    instances can do a site-wide apply at the same time: run `nico-rewrap state migrate`";

/// An instance, `kv1` or `kv2`, whose target is its name.
async fn instance(site: Site, target: &str) -> Server {
    site.set("rewrap.instance_name", format!("\"{target}\""))
        .set("rewrap.adaptive_rate", "false")
        .set("rewrap.statement_timeout", "\"5s\"")
        .target(target)
        .start()
        .await
}

/// Organizations under both keys, so that an apply to either of them has much to write.
fn both_keys() -> Vec<Org> {
    (0..400)
        .map(|i| Org::under(&format!("org{i:03}"), ["kv1", "kv2"][i % 2]))
        .collect()
}

async fn apply(server: &Server, target: &str) -> Result<Value, GrpcError> {
    let request = json!({
        "kind": "RUN_KIND_APPLY", "site": {}, "expectTargetKeyId": target, "maxRowsPerSecond": 10,
    });
    try_ask(server, "StartRun", request).await
}

/// Starts an apply as soon as it is not refused.
async fn apply_when_free(server: &Server, target: &str) -> Value {
    let deadline = Instant::now() + Duration::from_secs(90);
    loop {
        match apply(server, target).await {
            Ok(run) => return run,
            Err(error) => assert_eq!(error.reason().as_deref(), Some("APPLY_UNDER_WAY")),
        }
        assert!(Instant::now() < deadline, "{}", server.log_text());
        sleep(Duration::from_millis(100)).await;
    }
}

fn assert_refused(refused: GrpcError, holder: &Value) {
    let info = refused.error_info().unwrap();
    assert_eq!(
        (refused.code.as_str(), info.reason.as_str()),
        ("FAILED_PRECONDITION", "APPLY_UNDER_WAY")
    );
    assert_eq!(json!(info.metadata["run_id"]), holder["id"], "{info:?}");
    assert_eq!(
        json!(info.metadata["instance"]),
        holder["instance"],
        "{info:?}"
    );
    assert_eq!(info.metadata["caller"], "alice");
}

/// Two applies with opposite targets at once, then the end of the holder's process.
async fn opposite_targets(site: impl Fn() -> Site) {
    let (kv1, kv2) = (instance(site(), "kv1").await, instance(site(), "kv2").await);
    for _ in 0..3 {
        let both = tokio::join!(apply(&kv1, "kv1"), apply(&kv2, "kv2"));
        let (server, holder, refused) = match both {
            (Ok(holder), Err(refused)) => (&kv1, holder, refused),
            (Err(refused), Ok(holder)) => (&kv2, holder, refused),
            both => panic!("{both:?}"),
        };
        assert_refused(refused, &holder);
        ask(server, "StopRun", json!({"runId": holder["id"]})).await;
        assert_eq!(ended(server, &holder).await["state"], "RUN_STATE_STOPPED");
        // The server releases the guard before it publishes the end, or soon after.
        sleep(Duration::from_millis(300)).await;
    }
    let holder = apply_when_free(&kv1, "kv1").await;
    assert_refused(apply(&kv2, "kv2").await.unwrap_err(), &holder);
    kv1.signal("KILL");
    let next = apply_when_free(&kv2, "kv2").await;
    ask(&kv2, "StopRun", json!({"runId": next["id"]})).await;
    ended(&kv2, &next).await;
}

#[tokio::test]
async fn of_two_applies_with_opposite_targets_one_is_refused() {
    let (database, _client) = seeded(&both_keys()).await;
    let site = || Site::new(&database);
    migrate_state(&site());
    opposite_targets(site).await;
}

#[tokio::test]
async fn the_same_holds_behind_a_pooler_in_transaction_mode() {
    let (database, _client) = seeded(&both_keys()).await;
    migrate_state(&Site::new(&database));
    let bouncer = PgBouncer::with_pool_size(8, &database).await;
    let url = bouncer.url(&database);
    let site = || Site::with_url(&url).set("rewrap.pool_mode", "\"transaction\"");
    opposite_targets(site).await;
}

#[tokio::test]
async fn without_the_schema_the_lock_still_refuses_the_second_apply() {
    let (database, _client) = seeded(&both_keys()).await;
    let (kv1, kv2) = (
        instance(Site::new(&database), "kv1").await,
        instance(Site::new(&database), "kv2").await,
    );
    let holder = apply(&kv1, "kv1").await.unwrap();
    let refused = apply(&kv2, "kv2").await.unwrap_err();
    assert_eq!(refused.reason().as_deref(), Some("APPLY_UNDER_WAY"));
    ask(&kv1, "StopRun", json!({"runId": holder["id"]})).await;
    ended(&kv1, &holder).await;
    apply_when_free(&kv2, "kv2").await;
}

/// Ends the session that holds the lock of the site.
const END_HOLDER: &str = "SELECT pg_terminate_backend(pid) FROM pg_locks \
    WHERE locktype = 'advisory' AND granted AND classid = 1852400495 AND objid = 1936290917 \
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";

#[tokio::test]
async fn an_apply_whose_session_ends_takes_the_lock_again() {
    let (database, client) = seeded(&orgs(60)).await;
    let site = Site::new(&database);
    migrate_state(&site);
    let server = instance(site, "kv2").await;
    let run = apply(&server, "kv2").await.unwrap();
    assert_eq!(client.query(END_HOLDER, &[]).await.unwrap().len(), 1);
    // The lock has another holder when the query ends another session.
    let deadline = Instant::now() + Duration::from_secs(60);
    while client.query(END_HOLDER, &[]).await.unwrap().is_empty() {
        assert!(Instant::now() < deadline, "{}", server.log_text());
        sleep(Duration::from_millis(20)).await;
    }
    let run = ended(&server, &run).await;
    assert_eq!(run["state"], "RUN_STATE_FINISHED", "{run}");
    assert_eq!(run["report"]["rowsUpdated"], "60", "{run}");
}

#[tokio::test]
async fn an_apply_whose_lock_goes_to_another_session_ends_unavailable() {
    let (database, client) = seeded(&orgs(400)).await;
    let site = Site::new(&database);
    migrate_state(&site);
    let server = instance(site, "kv2").await;
    let run = apply(&server, "kv2").await.unwrap();
    // This session waits for the lock, so Postgres gives it the lock before anybody else.
    let other = database.client().await;
    let waiting = tokio::spawn(async move {
        let lock = "SELECT pg_advisory_lock(1852400495, 1936290917)";
        other.execute(lock, &[]).await.unwrap();
        other
    });
    let waiters = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted \
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    while client.query(waiters, &[]).await.unwrap().is_empty() {
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(client.query(END_HOLDER, &[]).await.unwrap().len(), 1);
    let other = waiting.await.unwrap();
    let run = ended(&server, &run).await;
    drop(other);
    assert_eq!(
        (run["state"].as_str(), reason(&run)),
        (Some("RUN_STATE_FAILED"), "DATABASE_UNAVAILABLE"),
        "{run}"
    );
    assert_eq!(run["error"]["code"], 14);
    apply_when_free(&server, "kv2").await;
}

#[tokio::test]
async fn an_apply_whose_lease_is_lost_ends_unavailable() {
    let (database, client) = seeded(&orgs(400)).await;
    let site = Site::new(&database).set("rewrap.pool_mode", "\"transaction\"");
    migrate_state(&site);
    let server = instance(site, "kv2").await;
    let run = apply(&server, "kv2").await.unwrap();
    let steal =
        "UPDATE nico_rewrap.leases SET holder = 'another', expires = now() + interval '1 h'";
    assert_eq!(client.execute(steal, &[]).await.unwrap(), 1);
    let run = ended(&server, &run).await;
    assert_eq!(
        (run["state"].as_str(), reason(&run)),
        (Some("RUN_STATE_FAILED"), "DATABASE_UNAVAILABLE"),
        "{run}"
    );
    let refused = apply(&server, "kv2").await.unwrap_err();
    assert_eq!(refused.reason().as_deref(), Some("APPLY_UNDER_WAY"));
}

#[tokio::test]
async fn an_apply_without_a_guard_works_and_logs_a_warning() {
    let (database, _client) = seeded(&orgs(10)).await;
    let server = Site::new(&database)
        .set("rewrap.pool_mode", "\"transaction\"")
        .start()
        .await;
    assert_eq!(grpcurl::run(&server, false).await.rows_updated, 10);
    assert_eq!(server.wait_log(NO_SCHEMA).await["level"], "WARN");

    let database = Database::migrated().await;
    seed::insert(&database.client().await, &orgs(10)).await;
    let server = limited(1, &database).await.start().await;
    assert_eq!(grpcurl::run(&server, false).await.rows_updated, 10);
    assert_eq!(server.wait_log(NO_CONNECTION).await["level"], "WARN");
}
