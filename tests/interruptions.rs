//! Runs that end early: the client disconnects, the deadline passes, or the server shuts down.
//! Committed rows stay committed and are complete, and the next run does the rest. Also runs that
//! the server refuses because of another run.

use serde_json::json;
use tokio_postgres::Client;

use crate::certs;
use crate::database::Database;
use crate::faults::{Guard, orgs, slow_writes, until_blocked, until_written, written};
use crate::grpcurl::{Call, GrpcError, Report, reencrypt, run};
use crate::handshake::Connection;
use crate::http2::{APPLY, DATA, END_HEADERS, END_STREAM, HEADERS, frame, headers};
use crate::process::signal;
use crate::seal::key_id;
use crate::seed;
use crate::server::Server;
use crate::site::Site;

/// HTTP/2 values (RFC 9113, section 6) with which a client delays an answer.
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;

/// The number of rows of a run that takes ten seconds, one row at a time.
const ROWS: i64 = 200;

async fn long_run() -> (Client, Server) {
    let database = Database::migrated().await;
    let client = database.client().await;
    seed::insert(&client, &orgs(usize::try_from(ROWS).unwrap())).await;
    slow_writes(&client, 0.05).await;
    (client, one_at_a_time(&database).start().await)
}

/// A site that writes one row at a time and waits for locks longer than any test.
fn one_at_a_time(database: &Database) -> Site {
    Site::new(database)
        .set("rewrap.database_pool_size", "1")
        .set("rewrap.pipeline_depth", "1")
        .set("rewrap.lock_timeout", "\"60s\"")
        .set("rewrap.statement_timeout", "\"60s\"")
}

/// Checks that exactly `updated` complete rows are committed, and that another run does the rest.
async fn assert_the_rest_is_done(client: &Client, server: &Server, updated: i64) {
    assert_eq!(
        written(client).await,
        updated,
        "the audit record says what was committed"
    );
    assert!(
        (1..ROWS).contains(&updated),
        "{updated} rows are not a part of the run"
    );
    client
        .batch_execute("DROP TRIGGER slow ON tenant_identity_config")
        .await
        .unwrap();
    let report = run(server, false).await;
    assert_eq!(i64::from(report.rows_updated), ROWS - updated);
    assert_eq!(i64::from(report.rows_skipped_all_on_target), updated);
    assert_eq!(report.rows_failed, 0);
}

#[tokio::test]
async fn a_client_that_leaves_stops_its_run() {
    let (client, server) = long_run().await;
    tokio::select! {
        report = run(&server, false) => panic!("{report:?}"),
        () = until_written(&client, 3) => {}
    }
    let updated = server.audited_rows("CANCELLED").await;
    assert_the_rest_is_done(&client, &server, updated).await;
}

#[tokio::test]
async fn a_deadline_that_passes_stops_the_run_even_if_the_client_says_nothing() {
    let (client, server) = long_run().await;
    let call = Call::new(&server, certs::admin())
        .max_time(3.0)
        .start(&json!({}));
    until_written(&client, 1).await;
    // The client can't cancel: only the deadline in its request ends the run.
    signal(&[call.id().unwrap()], "STOP");
    let updated = server.audited_rows("DEADLINE_EXCEEDED").await;
    drop(call);
    assert_the_rest_is_done(&client, &server, updated).await;
}

#[tokio::test]
async fn a_caller_learns_that_its_deadline_has_passed() {
    let (client, server) = long_run().await;
    let call = Call::new(&server, certs::admin()).max_time(2.0);
    let error = call.reencrypt(&json!({})).await.unwrap_err();
    assert_eq!(error.code, "DEADLINE_EXCEEDED", "{error:?}");
    server.wait_log("call").await;
    let updated = written(&client).await;
    assert_the_rest_is_done(&client, &server, updated).await;
}

#[tokio::test]
async fn a_server_told_to_stop_finishes_the_row_in_hand_and_no_other() {
    for name in ["TERM", "INT"] {
        let database = Database::migrated().await;
        let (rival, watch) = (database.client().await, database.client().await);
        seed::insert(&rival, &orgs(10)).await;
        let before = seed::snapshot(&rival).await;
        let server = one_at_a_time(&database).start().await;
        let lock = "BEGIN; SELECT FROM tenants WHERE organization_id = 'org005' FOR UPDATE";
        rival.batch_execute(lock).await.unwrap();
        let stop = async {
            until_blocked(&watch).await;
            server.signal(name);
            server.wait_log("shutting down").await;
            rival.batch_execute("COMMIT").await.unwrap();
        };
        let (answer, ()) = tokio::join!(reencrypt(&server, certs::admin(), json!({})), stop);
        assert_refused(answer, "UNAVAILABLE", "SHUTTING_DOWN", "call again");
        assert_eq!(server.wait_exit().await, 0, "{name}");
        assert_eq!(server.audited_rows("SHUTTING_DOWN").await, 6, "{name}");
        for (id, row) in seed::snapshot(&rival).await {
            if *id <= *"org005" {
                let keys: Vec<_> = row
                    .texts
                    .iter()
                    .flatten()
                    .map(|text| key_id(text))
                    .collect();
                assert_eq!(keys, ["kv2", "kv2"], "{name}: {id}");
                assert!(row.version.starts_with("V8-"), "{name}: {id}");
            } else {
                assert_eq!(row, before[&id], "{name}: {id}");
            }
        }
        let next = one_at_a_time(&database).start().await;
        assert_eq!(run(&next, false).await.rows_updated, 4, "{name}");
    }
}

#[tokio::test]
async fn a_row_in_hand_does_not_outlast_the_grace_period() {
    let database = Database::migrated().await;
    let (rival, watch) = (database.client().await, database.client().await);
    seed::insert(&rival, &orgs(1)).await;
    let before = seed::snapshot(&rival).await;
    let server = one_at_a_time(&database)
        .set("rewrap.shutdown_grace", "\"500ms\"")
        .start()
        .await;
    rival
        .batch_execute("BEGIN; SELECT FROM tenants FOR UPDATE")
        .await
        .unwrap();
    let stop = async {
        until_blocked(&watch).await;
        // The lock is still held: a run that waited for it would never end.
        server.terminate().await
    };
    let (answer, code) = tokio::join!(reencrypt(&server, certs::admin(), json!({})), stop);
    assert!(answer.is_err());
    assert_eq!(code, 0);
    rival.batch_execute("ROLLBACK").await.unwrap();
    let gone = "NOT EXISTS (SELECT FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'nico-rewrap')";
    crate::faults::until(&watch, gone).await;
    let after = seed::snapshot(&rival).await;
    let whole = after["org000"].version.starts_with("V8-");
    assert!(
        after == before || whole,
        "untouched or written, nothing in between: {after:?}"
    );
}

#[tokio::test]
async fn an_answer_that_a_client_is_slow_to_take_may_outlast_the_grace_period() {
    let database = Database::migrated().await;
    let site = Site::new(&database).set("rewrap.shutdown_grace", "\"100ms\"");
    let server = site.start().await;
    let options = ["-tls1_3", "-alpn", "h2"];
    let mut connection = Connection::open(&server, Some(certs::admin()), &options);
    assert!(connection.greet().await);
    let call = headers(&[("content-type", "application/grpc")]);
    let no_window = [0, 4, 0, 0, 0, 0];
    let frames = [
        frame(SETTINGS, 0, 0, &no_window),
        frame(HEADERS, END_HEADERS, 1, &call),
        frame(DATA, END_STREAM, 1, &APPLY),
    ];
    connection.send(&frames.concat()).await;
    server.audited_rows("OK").await;
    server.signal("TERM");
    server.wait_log("shutting down").await;
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    let window = 1_000_u32.to_be_bytes();
    connection.send(&frame(WINDOW_UPDATE, 0, 1, &window)).await;
    let told = connection.closed().await;
    assert!(
        told.contains("kv2"),
        "the target stands in the answer: {told}"
    );
    assert_eq!(server.wait_exit().await, 0);
}

fn assert_refused(answer: Result<Report, GrpcError>, code: &str, reason: &str, advice: &str) {
    let error = answer.unwrap_err();
    assert_eq!(
        (error.code.as_str(), error.reason().as_deref()),
        (code, Some(reason)),
        "{error:?}"
    );
    assert!(error.message.contains(advice), "{}", error.message);
}

#[tokio::test]
async fn runs_that_would_be_too_many_are_refused_and_are_not_afterwards() {
    let apply = json!({});
    let dry_run = json!({"dryRun": true});
    // A setting, a call during a site-wide apply, and its error. `None` means that it succeeds.
    let table = [
        (
            "max_runs",
            "8",
            &apply,
            Some(("FAILED_PRECONDITION", "APPLY_UNDER_WAY", "call again")),
        ),
        ("max_runs", "8", &dry_run, None),
        (
            "max_runs",
            "1",
            &dry_run,
            Some(("RESOURCE_EXHAUSTED", "TOO_MANY_RUNS", "max_runs")),
        ),
        (
            "database_pool_size",
            "1",
            &dry_run,
            Some((
                "UNAVAILABLE",
                "DATABASE_UNAVAILABLE",
                "pool_acquire_timeout",
            )),
        ),
        ("database_pool_size", "2", &dry_run, None),
    ];
    for (setting, value, request, refusal) in table {
        let case = format!("{setting} = {value}, {request}");
        let database = Database::migrated().await;
        let client = database.client().await;
        seed::insert(&client, &orgs(3)).await;
        let site = Site::new(&database).set(&format!("rewrap.{setting}"), value);
        let site = site
            .set("rewrap.pool_acquire_timeout", "\"300ms\"")
            .set("rewrap.statement_timeout", "\"60s\"");
        let server = site.start().await;
        let gate = Guard::closed(&database).await;
        let beside = async {
            gate.reached().await;
            let answer = reencrypt(&server, certs::admin(), request.clone()).await;
            match refusal {
                Some((code, reason, advice)) => assert_refused(answer, code, reason, advice),
                None => assert_eq!(answer.unwrap().rows_updated, 3, "{case}"),
            }
            gate.open().await;
        };
        let (report, ()) = tokio::join!(run(&server, false), beside);
        assert_eq!((report.rows_updated, report.rows_failed), (3, 0), "{case}");
        let answer = reencrypt(&server, certs::admin(), request.clone()).await;
        assert_eq!(answer.unwrap().rows_skipped_all_on_target, 3, "{case}");
    }
}
