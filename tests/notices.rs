//! Notices of Postgres. Triggers and settings can put rows and SQL into a notice, so the server
//! must not log its text.

use std::time::Duration;

use nico_rewrap::store::database::Database as Target;
use nico_rewrap::store::{PoolMode, Store};

use crate::database::Database;
use crate::faults::orgs;
use crate::grpcurl::run;
use crate::leaks;
use crate::locked_rows::options;
use crate::pg;
use crate::seed::{self, snapshot};
use crate::server::Server;
use crate::site::Site;

/// A trigger that raises a notice with the whole old and new row, as after debugging.
const TALKATIVE: &str = "
    CREATE FUNCTION talkative() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        RAISE NOTICE 'update % -> %', OLD, NEW;
        RAISE WARNING USING MESSAGE = NEW::text, DETAIL = OLD::text, HINT = NEW::text, ERRCODE = 'XX001';
        RETURN NEW;
    END $$;
    CREATE TRIGGER talkative BEFORE UPDATE ON tenant_identity_config
        FOR EACH ROW EXECUTE FUNCTION talkative()";

/// The ciphertexts of all rows.
async fn texts(client: &tokio_postgres::Client) -> Vec<String> {
    let rows = snapshot(client).await.into_values();
    rows.flat_map(|row| row.texts.into_iter().flatten())
        .collect()
}

fn assert_nothing_of_a_row(server: &Server, texts: &[String]) {
    let log = server.log_text();
    leaks::assert_none(&log);
    for text in texts {
        assert!(!log.contains(text.as_str()), "a ciphertext in:\n{log}");
    }
    for sql in ["UPDATE ", "SELECT ", "replace_row", "V8-"] {
        assert!(!log.contains(sql), "{sql} in:\n{log}");
    }
}

#[tokio::test]
async fn rows_in_notices_are_not_logged() {
    let database = Database::migrated().await;
    let client = database.client().await;
    seed::insert(&client, &orgs(60)).await;
    client.batch_execute(TALKATIVE).await.unwrap();
    let server = Site::new(&database)
        .set("rewrap.log_filter", "\"trace\"")
        .start()
        .await;
    let mut all = texts(&client).await;
    assert_eq!(run(&server, false).await.rows_updated, 60);
    all.extend(texts(&client).await);
    let notice = server
        .wait_log("Postgres sent a notice; its text is not logged, since it can hold secrets")
        .await;
    let known = [("NOTICE", "00000"), ("WARNING", "XX001")];
    let said = (notice["severity"].as_str(), notice["sqlstate"].as_str());
    assert!(
        known.contains(&(said.0.unwrap(), said.1.unwrap())),
        "{notice}"
    );
    // The server had 120 notices.
    let lines = server.log_text().matches("Postgres sent a notice").count();
    assert!(lines < 10, "{lines} lines");
    assert_eq!(server.terminate().await, 0);
    assert_nothing_of_a_row(&server, &all);
}

#[tokio::test]
async fn statements_that_the_server_sends_back_are_not_logged() {
    let database = Database::migrated().await;
    let client = database.client().await;
    seed::insert(&client, &orgs(5)).await;
    let echo = format!(
        "ALTER DATABASE {0} SET client_min_messages = 'debug1';
         ALTER DATABASE {0} SET log_statement = 'all';
         ALTER DATABASE {0} SET debug_print_parse = on",
        database.name()
    );
    database.admin().await.batch_execute(&echo).await.unwrap();
    // The most specific directive of the filter is the one for the driver.
    let server = Site::new(&database)
        .set(
            "rewrap.log_filter",
            "\"info,tokio_postgres::connection=trace,tokio_postgres=trace\"",
        )
        .start()
        .await;
    let mut all = texts(&client).await;
    assert_eq!(run(&server, false).await.rows_updated, 5);
    all.extend(texts(&client).await);
    assert_eq!(server.terminate().await, 0);
    assert_nothing_of_a_row(&server, &all);
}

#[tokio::test]
async fn a_collation_that_changed_is_a_warning_with_a_remedy() {
    let database = Database::migrated().await;
    let other_version = format!(
        "UPDATE pg_database SET datcollversion = '0.1' WHERE datname = '{}'",
        database.name()
    );
    let admin = database.admin().await;
    admin.batch_execute(&other_version).await.unwrap();
    let server = Site::new(&database).start().await;
    server.wait_ready().await;
    let warned = async {
        loop {
            let logs = server.logs();
            let warning = logs.into_iter().find(|line| {
                line["message"]
                    .as_str()
                    .is_some_and(|text| text.contains("collation version mismatch"))
            });
            match warning {
                Some(warning) => return warning,
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    let warning = tokio::time::timeout(Duration::from_secs(30), warned).await;
    let warning = warning.expect("a warning at the start");
    assert_eq!(warning["level"], "WARN");
    assert!(warning["message"].as_str().unwrap().contains("REINDEX"));
}

#[tokio::test]
async fn a_commit_that_did_not_wait_for_its_standby_is_counted() {
    let postgres = pg::Server::options()
        .setting("max_wal_senders", "4")
        .start();
    let database = Database::migrated_on(&postgres).await;
    let target = Target::parse(&database.url(), None, Duration::from_secs(10)).unwrap();
    let store = Store::new(&target, options(PoolMode::Session)).unwrap();
    let server = store.incarnation().await.unwrap();
    store.barrier(&server).await.unwrap();
    assert_eq!(store.unreplicated_commits(), 0);

    let admin = database.admin().await;
    for sql in [
        "SET synchronous_commit = off",
        "ALTER SYSTEM SET synchronous_standby_names = 'nowhere'",
        "SELECT pg_reload_conf()",
    ] {
        admin.batch_execute(sql).await.unwrap();
    }
    crate::faults::until(
        &admin,
        "current_setting('synchronous_standby_names') = 'nowhere'",
    )
    .await;
    crate::faults::until_commits_wait(&database, &admin).await;
    let cancel = async {
        let waits = "pg_stat_activity WHERE wait_event = 'SyncRep'";
        crate::faults::until(&admin, &format!("EXISTS (SELECT FROM {waits})")).await;
        let sql = format!("SELECT pg_cancel_backend(pid) FROM {waits}");
        admin.query(&sql, &[]).await.unwrap();
    };
    let (barrier, ()) = tokio::join!(store.barrier(&server), cancel);
    // Postgres does not report an error for such a commit.
    drop(barrier);
    assert_eq!(store.unreplicated_commits(), 1);
}
