//! The schema `nico_rewrap`: its creation, its problems, and a database from a backup.

use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::json;
use tokio::time::sleep;

use crate::database::Database;
use crate::faults::orgs;
use crate::few_connections::limited;
use crate::grpcurl;
use crate::outcome::seeded;
use crate::rewrap_client::{ask, key, migrate_state, run, try_ask, try_migrate_state, verdict};
use crate::seed::{self, Org};
use crate::server::field;
use crate::site::Site;

const CENSUS: &str = "RUN_KIND_CENSUS";
const MEMORY_ONLY: &str = "runs and censuses are kept in memory only, and verdicts use only the \
                           censuses of this process";

#[tokio::test]
async fn a_schema_that_cannot_be_used_is_named_and_runs_are_kept_in_memory() {
    let table = [
        ("DROP SCHEMA nico_rewrap CASCADE", "does not exist"),
        (
            "DROP SCHEMA nico_rewrap CASCADE; CREATE SCHEMA nico_rewrap",
            "has version 0",
        ),
        (
            "DROP SCHEMA nico_rewrap CASCADE; CREATE SCHEMA nico_rewrap; CREATE TABLE nico_rewrap.x ()",
            "has version 0",
        ),
        ("DELETE FROM nico_rewrap.schema_version", "has version 0"),
        (
            "DROP TABLE nico_rewrap.runs CASCADE; DROP TABLE nico_rewrap.leases",
            "lacks the tables runs, leases: `nico-rewrap state migrate`",
        ),
        (
            "INSERT INTO nico_rewrap.schema_version VALUES (99)",
            "use a newer nico-rewrap",
        ),
        (
            "REVOKE INSERT ON nico_rewrap.runs FROM nico",
            "lacks privileges on the schema nico_rewrap",
        ),
        (
            "REVOKE SELECT ON nico_rewrap.schema_version FROM nico",
            "lacks privileges on the schema nico_rewrap",
        ),
        (
            "REVOKE USAGE ON SCHEMA nico_rewrap FROM nico",
            "lacks privileges on the schema nico_rewrap",
        ),
    ];
    for (change, words) in table {
        let (database, client) = seeded(&orgs(3)).await;
        let site = Site::new(&database);
        migrate_state(&site);
        client.batch_execute(change).await.unwrap();
        let server = site.start().await;
        let line = server.wait_log(MEMORY_ONLY).await;
        let reason = field(&line, "reason").unwrap().as_str().unwrap().to_owned();
        assert!(reason.contains(words), "{change}: {reason}");
        let status = ask(&server, "GetStatus", json!({})).await;
        assert_eq!(status["historyPersistent"], false, "{change}");
        for kind in [CENSUS, "RUN_KIND_APPLY", CENSUS] {
            assert_eq!(
                run(&server, kind).await["state"],
                "RUN_STATE_FINISHED",
                "{change}"
            );
        }
        assert_eq!(verdict(&server, "kv2").await, "TARGET");
        // Other instances may use a schema that this one cannot use, and know more.
        let exists = words != "does not exist";
        let expected = if exists { "CANNOT_SAY" } else { "SOAKING" };
        assert_eq!(verdict(&server, "kv1").await, expected, "{change}");
        let runs = ask(&server, "ListRuns", json!({})).await;
        assert_eq!(runs["runs"].as_array().unwrap().len(), 3, "{change}");
    }
}

#[tokio::test]
async fn a_privilege_that_is_lost_during_the_operation_ends_no_run() {
    let (database, client) = seeded(&orgs(3)).await;
    let site = Site::new(&database);
    migrate_state(&site);
    let server = site.start().await;
    run(&server, CENSUS).await;
    let revoke = "REVOKE ALL ON ALL TABLES IN SCHEMA nico_rewrap FROM nico";
    client.batch_execute(revoke).await.unwrap();
    assert_eq!(grpcurl::run(&server, false).await.rows_updated, 3);
    assert_eq!(run(&server, CENSUS).await["state"], "RUN_STATE_FINISHED");
    // The change is noticed within 30 s.
    server.wait_log(MEMORY_ONLY).await;
    // Other instances may still use the schema, and know more.
    assert_eq!(verdict(&server, "kv1").await, "CANNOT_SAY");
}

#[tokio::test]
async fn a_straggler_is_not_forgotten_when_the_schema_can_be_used_again() {
    let orgs: Vec<_> = (0..3)
        .map(|i| Org::under(&format!("org{i}"), "kv2"))
        .collect();
    let (database, client) = seeded(&orgs).await;
    let site = Site::new(&database).set("rewrap.soak", "\"1ms\"");
    migrate_state(&site);
    let server = site.start().await;
    for _ in 0..2 {
        run(&server, CENSUS).await;
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(verdict(&server, "kv1").await, "REMOVABLE");
    let away = "ALTER SCHEMA nico_rewrap RENAME TO away";
    client.batch_execute(away).await.unwrap();
    server.wait_log(MEMORY_ONLY).await;
    assert_eq!(verdict(&server, "kv1").await, "CANNOT_SAY");
    seed::insert(&client, &[Org::under("late", "kv1")]).await;
    run(&server, CENSUS).await;
    assert_eq!(verdict(&server, "kv1").await, "IN_USE");
    seed::delete(&client, "late").await;
    run(&server, CENSUS).await;
    assert_eq!(verdict(&server, "kv1").await, "CANNOT_SAY");
    let back = "ALTER SCHEMA away RENAME TO nico_rewrap";
    client.batch_execute(back).await.unwrap();
    server
        .wait_logs("runs and censuses are kept in the schema nico_rewrap", 2)
        .await;
    // In the schema, the key is clean without a break.
    assert_eq!(verdict(&server, "kv1").await, "CANNOT_SAY");
    run(&server, CENSUS).await;
    assert_eq!(verdict(&server, "kv1").await, "SOAKING");
    assert_eq!(key(&server, "kv1").await["verdict"]["stragglers"], "2");
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

#[tokio::test]
async fn the_migration_can_be_repeated_at_any_time() {
    let database = Database::migrated().await;
    let site = Site::new(&database);
    // At the same time, and with a role whose transactions have one snapshot.
    let isolation = format!(
        "ALTER DATABASE {} SET default_transaction_isolation = 'serializable'",
        database.name()
    );
    database
        .admin()
        .await
        .batch_execute(&isolation)
        .await
        .unwrap();
    // Each command writes the configuration file anew, so make them all before one reads it.
    let mut commands: Vec<_> = (0..4).map(|_| try_migrate_state(&site)).collect();
    let start = |command: &mut Command| {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let running: Vec<_> = commands.iter_mut().map(start).collect();
    let mut applied = 0;
    for child in running {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        applied += usize::from(text(&output).contains("1 migrations applied"));
    }
    assert_eq!(applied, 1);
    let again = try_migrate_state(&site).output().unwrap();
    assert!(
        text(&again).contains("0 migrations applied"),
        "{}",
        text(&again)
    );
    let server = site.start().await;
    assert_eq!(
        ask(&server, "GetStatus", json!({})).await["historyPersistent"],
        true
    );
}

#[tokio::test]
async fn a_migration_that_is_not_possible_says_why() {
    let database = Database::migrated().await;
    let site = limited(10, &database).await;
    let output = try_migrate_state(&site).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let words = "the database user may not create the schema nico_rewrap (SQLSTATE 42501)";
    assert!(text(&output).contains(words), "{}", text(&output));

    let site = Site::new(&database);
    migrate_state(&site);
    let client = database.client().await;
    let newer = "INSERT INTO nico_rewrap.schema_version VALUES (99)";
    client.batch_execute(newer).await.unwrap();
    let output = try_migrate_state(&site).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(
        text(&output).contains("use a newer nico-rewrap"),
        "{}",
        text(&output)
    );
}

#[tokio::test]
async fn a_table_that_is_dropped_during_the_operation_is_named() {
    let (database, client) = seeded(&orgs(3)).await;
    let site = Site::new(&database);
    migrate_state(&site);
    let server = site.start().await;
    let drop = "DROP TABLE nico_rewrap.runs CASCADE";
    client.batch_execute(drop).await.unwrap();
    let error = try_ask(&server, "ListRuns", json!({})).await.unwrap_err();
    assert_eq!(error.error_info().unwrap().reason, "DATABASE_SCHEMA");
    assert!(
        error.message.contains("schema nico_rewrap") && error.message.contains("state migrate"),
        "{error:?}"
    );
    // The change is noticed within 30 s.
    let line = server.wait_log(MEMORY_ONLY).await;
    let reason = field(&line, "reason").unwrap();
    assert!(
        reason.as_str().unwrap().contains("lacks the tables runs"),
        "{reason}"
    );
    let status = ask(&server, "GetStatus", json!({})).await;
    assert_eq!(status["historyPersistent"], false);
    ask(&server, "ListRuns", json!({})).await;
}

#[tokio::test]
async fn a_migration_of_a_schema_that_was_changed_says_what_to_do() {
    let database = Database::migrated().await;
    let client = database.client().await;
    let site = Site::new(&database);
    let refused = || {
        let output = try_migrate_state(&site).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        text(&output)
    };
    migrate_state(&site);
    client
        .batch_execute("DELETE FROM nico_rewrap.schema_version")
        .await
        .unwrap();
    let said = refused();
    for words in [
        "schema_version has no version",
        "DROP SCHEMA nico_rewrap CASCADE",
    ] {
        assert!(said.contains(words), "{said}");
    }
    // The advice for complete tables works.
    client
        .batch_execute("INSERT INTO nico_rewrap.schema_version (version) VALUES (1)")
        .await
        .unwrap();
    migrate_state(&site);
    client
        .batch_execute("DROP TABLE nico_rewrap.censuses")
        .await
        .unwrap();
    let said = refused();
    for words in [
        "lacks the tables censuses",
        "DROP SCHEMA nico_rewrap CASCADE",
    ] {
        assert!(said.contains(words), "{said}");
    }
    client
        .batch_execute("DROP SCHEMA nico_rewrap CASCADE")
        .await
        .unwrap();
    migrate_state(&site);
}

#[tokio::test]
async fn the_history_has_the_last_100_runs() {
    let (database, client) = seeded(&orgs(3)).await;
    let site = Site::new(&database);
    migrate_state(&site);
    // Ended runs, and runs of instances that were killed.
    let old = "INSERT INTO nico_rewrap.runs (id, started, heartbeat, state, document)
            SELECT 'old' || i, now() - interval '1 day', now() - interval '1 day',
                CASE WHEN i % 2 = 0 THEN 'RUNNING' ELSE 'FINISHED' END, '{}'
            FROM generate_series(1, 150) AS i;
        INSERT INTO nico_rewrap.failures SELECT id, 'a', '', 'X', '', '' FROM nico_rewrap.runs";
    client.batch_execute(old).await.unwrap();
    let server = site.start().await;
    for _ in 0..2 {
        let run = run(&server, CENSUS).await;
        let state = ask(&server, "GetRun", json!({"runId": run["id"]})).await;
        assert_eq!(state["state"], "RUN_STATE_FINISHED");
    }
    let pruned = "(SELECT count(*) FROM nico_rewrap.runs) = 100
        AND (SELECT count(*) FROM nico_rewrap.failures) = 98";
    crate::faults::until(&client, pruned).await;
    let runs = ask(&server, "ListRuns", json!({"pageSize": 100})).await;
    assert_eq!(
        runs["runs"].as_array().unwrap().len(),
        2,
        "the others are in no known form"
    );
}

#[tokio::test]
async fn censuses_of_the_server_do_not_crowd_out_the_runs_of_callers() {
    let (database, client) = seeded(&orgs(3)).await;
    let site = Site::new(&database).set("rewrap.census_interval", "\"1s\"");
    migrate_state(&site);
    // The last run of a caller, and more automatic censuses than there is room for.
    let old = "INSERT INTO nico_rewrap.runs (id, started, state, request, document)
        SELECT 'old' || i, now() - interval '1 day' + i * interval '1 s', 'FINISHED',
            CASE WHEN i > 0 THEN 'automatic' END, '{}'
        FROM generate_series(0, 150) AS i";
    client.batch_execute(old).await.unwrap();
    let server = site.start().await;
    let pruned = "(SELECT count(*) FROM nico_rewrap.runs) = 101
        AND EXISTS (SELECT FROM nico_rewrap.runs WHERE id = 'old0')";
    crate::faults::until(&client, pruned).await;
    drop(server);
}

#[tokio::test]
async fn a_database_from_a_backup_has_its_own_history() {
    let (database, client) = seeded(&orgs(3)).await;
    let site = || Site::new(&database).set("rewrap.soak", "\"1ms\"");
    migrate_state(&site());
    let server = site().start().await;
    let old = run(&server, CENSUS).await;
    assert_eq!(verdict(&server, "kv1").await, "IN_USE");
    server.terminate().await;
    drop(client);
    let admin = Database::new().await.admin().await;
    let name = database.name();
    let copy = async |from: &str, to: &str| {
        let end = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{from}'"
        );
        let copy = format!("CREATE DATABASE {to} OWNER nico TEMPLATE {from}");
        for attempt in 0.. {
            admin.batch_execute(&end).await.unwrap();
            match admin.batch_execute(&copy).await {
                Ok(()) => break,
                Err(error) => assert!(attempt < 50, "{error:?}"),
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    copy(name, &format!("{name}_backup")).await;

    let server = site().start().await;
    grpcurl::run(&server, false).await;
    run(&server, CENSUS).await;
    sleep(Duration::from_millis(10)).await;
    let newest = run(&server, CENSUS).await;
    assert_eq!(verdict(&server, "kv1").await, "REMOVABLE");

    // The running server follows the database.
    let drop = format!("DROP DATABASE {name} WITH (FORCE)");
    admin.batch_execute(&drop).await.unwrap();
    copy(&format!("{name}_backup"), name).await;
    server.wait_ready().await;
    assert_eq!(verdict(&server, "kv1").await, "IN_USE");
    run(&server, CENSUS).await;
    assert_eq!(verdict(&server, "kv1").await, "IN_USE");
    server.terminate().await;
    let server = site().start().await;
    let runs = ask(&server, "ListRuns", json!({})).await;
    let ids: Vec<_> = runs["runs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|run| &run["id"])
        .collect();
    assert!(
        ids.contains(&&old["id"]) && !ids.contains(&&newest["id"]),
        "{ids:?}"
    );
}
