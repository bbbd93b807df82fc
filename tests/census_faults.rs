//! Censuses at the same time, and censuses during faults of the database.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::time::sleep;
use tokio_postgres::Client;

use crate::database::Database;
use crate::faults::{orgs, until};
use crate::grpcurl;
use crate::outcome::seeded;
use crate::pg;
use crate::rewrap_client::{ask, ended, key, migrate_state, reason, run, start_slow, verdict};
use crate::seed::{self, Org};
use crate::server::Server;
use crate::site::Site;

const CENSUS: &str = "RUN_KIND_CENSUS";
/// A census waits for its rate limit after the first 2,000 rows, with this rate for 5 s.
const ROWS: usize = 2100;
const RATE: u32 = 400;

const AGAIN: &str = "the census begins again";

/// The session lock of automatic censuses.
const LOCK: &str = "pg_advisory_lock(1852400495, 1667591795)";

/// The number of sessions that hold the lock of automatic censuses in this database.
const HOLDERS: &str = "(SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted
    AND classid = 1852400495 AND objid = 1667591795
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))";

fn site(database: &Database) -> Site {
    Site::new(database).set("rewrap.soak", "\"1ms\"")
}

/// A site whose instances take automatic censuses.
fn with_background(database: &Database) -> Site {
    site(database).set("rewrap.census_interval", "\"1h\"")
}

/// A server whose history says that kv1 may be deleted.
async fn with_a_removable_key() -> (Server, Client) {
    let orgs = ["org0", "org1", "org2"].map(|id| Org::under(id, "kv2"));
    let (database, client) = seeded(&orgs).await;
    let site = site(&database);
    migrate_state(&site);
    let server = site.start().await;
    run(&server, CENSUS).await;
    sleep(Duration::from_millis(10)).await;
    run(&server, CENSUS).await;
    assert_eq!(verdict(&server, "kv1").await, "REMOVABLE");
    (server, client)
}

/// Waits until the scan of a census waits for its rate limit.
async fn until_scanning(watch: &Client) {
    let scanning = "EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()
        AND application_name = 'nico-rewrap' AND state = 'idle in transaction'
        AND query LIKE '%FROM rewrap_census')";
    until(watch, scanning).await;
}

async fn wait_for_census(server: &Server) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while ask(server, "ListKeys", json!({})).await["census"].is_null() {
        assert!(Instant::now() < deadline, "{}", server.log_text());
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_census_that_is_recorded_after_a_later_one_does_not_count_a_key_as_unused() {
    for persistent in [false, true] {
        let orgs: Vec<_> = (0..ROWS)
            .map(|i| Org::under(&format!("org{i:04}"), "kv2"))
            .collect();
        let (database, client) = seeded(&orgs).await;
        let site = site(&database);
        if persistent {
            migrate_state(&site);
        }
        let server = site.start().await;
        let first = start_slow(&server, CENSUS, RATE).await;
        until_scanning(&client).await;
        seed::insert(&client, &[Org::under("late", "kv1")]).await;
        let second = run(&server, CENSUS).await;
        assert_eq!(second["state"], "RUN_STATE_FINISHED");
        assert_eq!(verdict(&server, "kv1").await, "IN_USE");
        let first = ended(&server, &first).await;
        assert_eq!(first["state"], "RUN_STATE_FINISHED", "{first}");
        assert_eq!(first["report"]["rowsExamined"], "2100", "{first}");
        assert_eq!(
            verdict(&server, "kv1").await,
            "IN_USE",
            "persistent: {persistent}"
        );
        // It is not the last census either: its counts are older than the verdict.
        let keys = ask(&server, "ListKeys", json!({})).await;
        assert_eq!(keys["census"]["runId"], second["id"], "{keys}");
        run(&server, CENSUS).await;
        assert_eq!(verdict(&server, "kv1").await, "IN_USE");
    }
}

#[tokio::test]
async fn a_late_census_that_has_seen_a_clean_key_ends_its_soak() {
    for persistent in [false, true] {
        let orgs: Vec<_> = (0..ROWS)
            .map(|i| Org::under(&format!("org{i:04}"), "kv2"))
            .collect();
        let (database, client) = seeded(&orgs).await;
        let site = site(&database);
        if persistent {
            migrate_state(&site);
        }
        let server = site.start().await;
        run(&server, CENSUS).await;
        sleep(Duration::from_millis(10)).await;
        run(&server, CENSUS).await;
        assert_eq!(verdict(&server, "kv1").await, "REMOVABLE");
        seed::insert(&client, &[Org::under("late", "kv1")]).await;
        let late = start_slow(&server, CENSUS, RATE).await;
        until_scanning(&client).await;
        seed::delete(&client, "late").await;
        let last = run(&server, CENSUS).await;
        assert_eq!(verdict(&server, "kv1").await, "REMOVABLE");
        ended(&server, &late).await;
        let seen = key(&server, "kv1").await;
        assert_eq!(
            (&seen["verdict"]["state"], &seen["verdict"]["stragglers"]),
            (&json!("VERDICT_STATE_CANNOT_SAY"), &json!("2")),
            "persistent: {persistent}, {seen}"
        );
        let keys = ask(&server, "ListKeys", json!({})).await;
        assert_eq!(keys["census"]["runId"], last["id"], "{keys}");
        run(&server, CENSUS).await;
        assert_eq!(verdict(&server, "kv1").await, "SOAKING");
    }
}

/// Changes the first times in the documents of a table to an hour from now.
async fn into_the_future(client: &Client, table: &str) {
    let change = format!(
        "UPDATE nico_rewrap.{table} SET document = regexp_replace(document,
            '\"secs_since_epoch\":\\d+',
            '\"secs_since_epoch\":' || (extract(epoch FROM now())::bigint + 3600))"
    );
    client.batch_execute(&change).await.unwrap();
}

#[tokio::test]
async fn a_census_in_the_future_is_no_reason_to_wait() {
    let (database, client) = seeded(&orgs(3)).await;
    let site = with_background(&database);
    migrate_state(&site);
    let server = site.start().await;
    wait_for_census(&server).await;
    server.terminate().await;
    // The clock of the database was wrong during this census.
    into_the_future(&client, "censuses").await;
    let server = with_background(&database).start().await;
    until(&client, "(SELECT sequence FROM nico_rewrap.ledger) = 2").await;
    drop(server);
}

#[tokio::test]
async fn a_key_is_not_removable_by_a_census_in_the_future() {
    let (server, client) = with_a_removable_key().await;
    // The first time in the ledger is that of the last census.
    into_the_future(&client, "ledger").await;
    assert_eq!(verdict(&server, "kv1").await, "SOAKING");
}

#[tokio::test]
async fn other_instances_see_a_background_census_and_can_stop_it() {
    let (database, client) = seeded(&orgs(5)).await;
    let slow = with_background(&database).set("rewrap.lock_timeout", "\"100s\"");
    migrate_state(&slow);
    let other = site(&database).start().await;
    client
        .batch_execute("BEGIN; LOCK TABLE tenant_identity_config IN ACCESS EXCLUSIVE MODE")
        .await
        .unwrap();
    let watch = database.client().await;
    let server = slow.start_unready().await;
    let lives = "EXISTS (SELECT FROM nico_rewrap.runs
        WHERE state = 'RUNNING' AND heartbeat > started + interval '2 s')";
    until(&watch, lives).await;
    let runs = ask(&other, "GetStatus", json!({})).await["activeRuns"].clone();
    assert_eq!(runs[0]["state"], "RUN_STATE_RUNNING", "{runs}");
    ask(&other, "StopRun", json!({"runId": runs[0]["id"]})).await;
    let run = ended(&other, &runs[0]).await;
    assert_eq!(
        (run["state"].as_str(), reason(&run)),
        (Some("RUN_STATE_STOPPED"), "STOPPED"),
        "{run}"
    );
    client.batch_execute("ROLLBACK").await.unwrap();
    drop(server);
}

#[tokio::test]
async fn a_census_that_is_due_waits_for_the_census_of_another_instance() {
    let (database, _client) = seeded(&orgs(3)).await;
    let server = with_background(&database).start().await;
    wait_for_census(&server).await;
    let rival = database.client().await;
    rival
        .batch_execute(&format!("SELECT {LOCK}"))
        .await
        .unwrap();
    grpcurl::run(&server, false).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(verdict(&server, "kv1").await, "IN_USE");
    drop(rival);
    let deadline = Instant::now() + Duration::from_secs(30);
    while verdict(&server, "kv1").await != "SOAKING" {
        assert!(Instant::now() < deadline, "{}", server.log_text());
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn only_one_instance_takes_a_background_census_at_a_time() {
    let (database, client) = seeded(&orgs(10)).await;
    let first = with_background(&database).set("rewrap.lock_timeout", "\"3s\"");
    migrate_state(&first);
    // Every scan waits for this lock.
    let rival = database.client().await;
    let lock = "BEGIN; LOCK TABLE tenant_identity_config";
    rival.batch_execute(lock).await.unwrap();
    let second = with_background(&database).set("rewrap.lock_timeout", "\"3s\"");
    let (one, two) = tokio::join!(first.start_unready(), second.start_unready());
    until(&client, &format!("{HOLDERS} > 0")).await;
    for _ in 0..40 {
        let holders: i64 = client
            .query_one(&format!("SELECT {HOLDERS}"), &[])
            .await
            .unwrap()
            .get(0);
        assert!(holders <= 1, "{holders}");
        sleep(Duration::from_millis(50)).await;
    }
    rival.batch_execute("ROLLBACK").await.unwrap();
    for server in [&one, &two] {
        server.wait_ready().await;
        wait_for_census(server).await;
    }
}

#[tokio::test]
async fn no_background_census_begins_while_another_session_has_the_lock() {
    let (database, client) = seeded(&orgs(10)).await;
    let rival = database.client().await;
    rival
        .batch_execute(&format!("SELECT {LOCK}"))
        .await
        .unwrap();
    let site = with_background(&database).set("rewrap.census_interval", "\"1s\"");
    let server = site.start().await;
    sleep(Duration::from_secs(3)).await;
    let keys = ask(&server, "ListKeys", json!({})).await;
    assert!(keys["census"].is_null(), "{keys}");
    // A census that somebody starts does not wait for it.
    assert_eq!(run(&server, CENSUS).await["state"], "RUN_STATE_FINISHED");
    drop(rival);
    let runs = async || {
        ask(&server, "ListRuns", json!({})).await["runs"]
            .as_array()
            .unwrap()
            .len()
    };
    while runs().await < 2 {
        sleep(Duration::from_millis(50)).await;
    }
    drop(client);
}

#[tokio::test]
async fn a_census_whose_session_is_killed_begins_again() {
    let (database, client) = seeded(&orgs(ROWS)).await;
    let server = site(&database).start().await;
    let census = start_slow(&server, CENSUS, RATE).await;
    until_scanning(&client).await;
    let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = current_database() AND query LIKE '%FROM rewrap_census'
        AND application_name = 'nico-rewrap'";
    client.batch_execute(kill).await.unwrap();
    server.wait_log(AGAIN).await;
    let census = ended(&server, &census).await;
    assert_eq!(census["state"], "RUN_STATE_FINISHED", "{census}");
    assert_eq!(census["report"]["rowsExamined"], "2100");
    assert_eq!(census["progress"]["rowsDone"], "2100");
    assert_eq!(verdict(&server, "kv1").await, "IN_USE");
}

#[tokio::test]
async fn a_census_ends_with_the_database_and_the_next_one_works() {
    let postgres = pg::Server::start();
    let database = Database::migrated_on(&postgres).await;
    let client = database.client().await;
    seed::insert(&client, &orgs(ROWS)).await;
    let site = site(&database).set("rewrap.pool_acquire_timeout", "\"500ms\"");
    migrate_state(&site);
    let server = site.start().await;
    let census = start_slow(&server, CENSUS, RATE).await;
    until_scanning(&client).await;
    postgres.stop_immediate();
    let census = ended(&server, &census).await;
    assert_eq!(
        (census["state"].as_str(), reason(&census)),
        (Some("RUN_STATE_FAILED"), "DATABASE_UNAVAILABLE"),
        "{census}"
    );
    assert_eq!(census["error"]["code"], 14);
    postgres.restart();
    server.wait_ready().await;
    let next = run(&server, CENSUS).await;
    assert_eq!(next["state"], "RUN_STATE_FINISHED", "{next}");
    // The end of the first one is in the database by now, or soon.
    let client = database.client().await;
    until(
        &client,
        "NOT EXISTS (SELECT FROM nico_rewrap.runs WHERE state = 'RUNNING')",
    )
    .await;
}

#[tokio::test]
async fn a_census_waits_for_a_table_that_is_locked_for_a_moment() {
    let (database, client) = seeded(&orgs(5)).await;
    let server = site(&database)
        .set("rewrap.lock_timeout", "\"300ms\"")
        .start()
        .await;
    client
        .batch_execute("BEGIN; LOCK TABLE tenant_identity_config")
        .await
        .unwrap();
    let release = async {
        server.wait_log(AGAIN).await;
        client.batch_execute("ROLLBACK").await.unwrap();
    };
    let (census, ()) = tokio::join!(run(&server, CENSUS), release);
    assert_eq!(census["state"], "RUN_STATE_FINISHED", "{census}");
}

#[tokio::test]
async fn a_shutdown_during_a_background_census_leaves_a_stopped_run() {
    let (database, client) = seeded(&orgs(5)).await;
    let site = with_background(&database).set("rewrap.lock_timeout", "\"20s\"");
    migrate_state(&site);
    client
        .batch_execute("BEGIN; LOCK TABLE tenant_identity_config")
        .await
        .unwrap();
    let watch = database.client().await;
    let server = site.start_unready().await;
    until(
        &watch,
        "EXISTS (SELECT FROM nico_rewrap.runs WHERE state = 'RUNNING')",
    )
    .await;
    until(&watch, &format!("{HOLDERS} = 1")).await;
    assert_eq!(server.terminate().await, 0);
    let states = "SELECT string_agg(state, ' ') FROM nico_rewrap.runs";
    let states: String = watch.query_one(states, &[]).await.unwrap().get(0);
    assert_eq!(states, "STOPPED");
}

#[tokio::test]
async fn a_census_that_cannot_be_written_still_counts_against_a_key() {
    let (server, client) = with_a_removable_key().await;
    // A straggler, in a census that cannot be written.
    seed::insert(&client, &[Org::under("late", "kv1")]).await;
    let refuse = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE 'made by a test'; END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON nico_rewrap.censuses
            FOR EACH ROW EXECUTE FUNCTION refuse()";
    client.batch_execute(refuse).await.unwrap();
    run(&server, CENSUS).await;
    assert_ne!(verdict(&server, "kv1").await, "REMOVABLE");
    grpcurl::run(&server, false).await;
    client
        .batch_execute("DROP TRIGGER refuse ON nico_rewrap.censuses")
        .await
        .unwrap();
    // Without the straggler, this census would only extend the series.
    run(&server, CENSUS).await;
    assert_eq!(verdict(&server, "kv1").await, "SOAKING");
}

#[tokio::test]
async fn censuses_that_cannot_be_read_end_no_run() {
    let (database, client) = seeded(&orgs(3)).await;
    let site = site(&database);
    migrate_state(&site);
    let server = site.start().await;
    run(&server, CENSUS).await;
    client
        .batch_execute("ALTER TABLE nico_rewrap.censuses RENAME document TO other")
        .await
        .unwrap();
    let census = run(&server, CENSUS).await;
    assert_eq!(census["state"], "RUN_STATE_FINISHED", "{census}");
    assert_eq!(verdict(&server, "kv1").await, "IN_USE");
}
