//! A synchronous standby that does not answer, and a cancelled wait for it.

use std::time::Duration;

use serde_json::json;
use tokio_postgres::Client;

use crate::certs;
use crate::database::Database;
use crate::faults::{orgs, until, until_commits_wait, until_written};
use crate::grpcurl::{Call, reencrypt, run};
use crate::pg;
use crate::seed;
use crate::server::Server;
use crate::site::{Site, quote};

/// The number of sessions of the service that wait for a standby.
const WAITING: &str = "(SELECT count(*) FROM pg_stat_activity
    WHERE application_name = 'nico-rewrap' AND wait_event = 'SyncRep')";

async fn without_its_standby(rows: usize, statement_timeout: &str) -> (pg::Server, Client, Server) {
    let postgres = pg::Server::start();
    let database = Database::migrated_on(&postgres).await;
    let admin = database.admin().await;
    seed::insert(&database.client().await, &orgs(rows)).await;
    // This session never waits for the standby.
    for sql in [
        "SET synchronous_commit = local",
        "ALTER SYSTEM SET synchronous_standby_names = 'gone'",
        "SELECT pg_reload_conf()",
    ] {
        admin.batch_execute(sql).await.unwrap();
    }
    until(
        &admin,
        "current_setting('synchronous_standby_names') = 'gone'",
    )
    .await;
    until_commits_wait(&database, &admin).await;
    let site = Site::new(&database).set("rewrap.statement_timeout", quote(statement_timeout));
    let server = site.start().await;
    (postgres, admin, server)
}

#[tokio::test]
async fn a_run_says_that_it_waits_for_a_standby_and_leaves_no_session_behind() {
    let (_postgres, admin, server) = without_its_standby(20, "60s").await;
    let call = Call::new(&server, certs::admin()).max_time(12.0);
    let request = json!({});
    let look = async {
        let deadline = std::time::Instant::now() + Duration::from_secs(11);
        loop {
            let (status, text) = server.get("/readyz").await;
            if text.contains("synchronous standby") && text.contains("gone") {
                assert_eq!(status, 200, "{text}");
                break;
            }
            assert!(std::time::Instant::now() < deadline, "{text}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(
            server.metric("nico_rewrap_run_stalled", &[]).await,
            Some(1.0)
        );
    };
    let (answer, ()) = tokio::join!(call.reencrypt(&request), look);
    assert_eq!(answer.unwrap_err().code, "DEADLINE_EXCEEDED");
    let record = server.wait_log("call").await;
    assert_eq!(record["durable"], json!(false), "{record}");
    assert_eq!(record["rows_updated"], json!(20), "{record}");
    until(&admin, &format!("{WAITING} = 0")).await;
    assert_eq!(
        server.metric("nico_rewrap_run_stalled", &[]).await,
        Some(0.0)
    );
    assert!(server.log_text().contains("synchronous_standby_names"));
    let error = record["error"].as_str().unwrap();
    assert!(error.contains("synchronous_standby_names"), "{error}");
    // The note of the probe ends with the run.
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while server.get("/readyz").await != (200, "ready\n".to_owned()) {
        assert!(std::time::Instant::now() < deadline, "the note stays");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The limit of the run passes before the deadline of the client.
#[tokio::test]
async fn a_caller_is_told_which_standby_the_run_waited_for() {
    let (_postgres, _admin, server) = without_its_standby(3, "500ms").await;
    for dry_run in [true, false] {
        let request = json!({"dryRun": dry_run});
        let error = reencrypt(&server, certs::admin(), request).await;
        let error = error.unwrap_err();
        assert_eq!(
            error.reason().as_deref(),
            Some("DATABASE_UNAVAILABLE"),
            "{error:?}"
        );
        let waited = "it waits for a synchronous standby (synchronous_standby_names = \"gone\")";
        assert!(error.message.contains(waited), "{}", error.message);
        let metadata = error.error_info().unwrap().metadata;
        assert!(metadata["waiting_for"].contains(waited), "{metadata:?}");
        assert_eq!(metadata["durable"], "false");
    }
}

#[tokio::test]
async fn rows_are_written_although_the_measurement_before_the_run_waits_for_the_standby() {
    let (_postgres, admin, server) = without_its_standby(20, "60s").await;
    tokio::select! {
        report = run(&server, false) => panic!("without its standby: {report:?}"),
        () = until_written(&admin, 20) => {}
    }
}

#[tokio::test]
async fn a_cancelled_wait_for_the_standby_makes_no_report() {
    let (_postgres, admin, server) = without_its_standby(20, "60s").await;
    let cancel = async {
        // Only the barrier: the run does not need the measurements of the commit latency before it.
        let barrier = "EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE '-- barrier%')";
        until(&admin, barrier).await;
        let sql = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity
            WHERE wait_event = 'SyncRep' AND query LIKE '-- barrier%'";
        admin.batch_execute(sql).await.unwrap();
    };
    let (answer, ()) = tokio::join!(reencrypt(&server, certs::admin(), json!({})), cancel);
    let error = answer.unwrap_err();
    assert_eq!(
        error.reason().as_deref(),
        Some("NOT_REPLICATED"),
        "{error:?}"
    );
    assert_eq!(server.wait_log("call").await["durable"], json!(false));
    for sql in [
        "ALTER SYSTEM RESET synchronous_standby_names",
        "SELECT pg_reload_conf()",
    ] {
        admin.batch_execute(sql).await.unwrap();
    }
    until(&admin, "current_setting('synchronous_standby_names') = ''").await;
    assert_eq!(run(&server, false).await.rows_skipped_all_on_target, 20);
}
