//! Runs whose instance ends or whose client disconnects, and the stream of `WatchRun`.

use std::time::Duration;

use serde_json::{Value, json};

use crate::certs;
use crate::database::Database;
use crate::faults::{orgs, until_blocked, until_written};
use crate::grpcurl::Call;
use crate::outcome::seeded;
use crate::rewrap_client::{
    ask, ended, migrate_state, number, reason, run, start_slow, try_ask, watch,
};
use crate::server::Server;
use crate::site::Site;

const APPLY: &str = "RUN_KIND_APPLY";

fn site(database: &Database) -> Site {
    Site::new(database).set("rewrap.adaptive_rate", "false")
}

/// Two instances with one history. The first one is called "one".
async fn two_instances(database: &Database) -> (Server, Server) {
    let first = site(database).set("rewrap.instance_name", "\"one\"");
    migrate_state(&first);
    (first.start().await, site(database).start().await)
}

/// The newest run, when it has ended.
async fn newest(server: &Server) -> Value {
    let runs = ask(server, "ListRuns", json!({})).await;
    ended(server, &runs["runs"][0]).await
}

#[tokio::test]
async fn a_watch_at_another_instance_ends_when_the_instance_is_killed() {
    let (database, client) = seeded(&orgs(400)).await;
    let (one, two) = two_instances(&database).await;
    let started = start_slow(&one, APPLY, 100).await;
    let kill = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        one.signal("KILL");
    };
    let (states, ()) = tokio::join!(watch(&two, &started), kill);
    let last = states.last().unwrap();
    assert_eq!(
        (last["state"].as_str(), reason(last)),
        (Some("RUN_STATE_FAILED"), "INSTANCE_GONE"),
        "{last}"
    );
    assert_eq!(last["error"]["code"], 14);
    assert!(
        last["error"]["message"]
            .as_str()
            .unwrap()
            .contains("instance one"),
        "{last}"
    );
    // The report has what the instance wrote last, and the run has an end.
    let updated = number(&last["report"]["rowsUpdated"]);
    assert!((1..400).contains(&updated), "{last}");
    assert!(
        last["endTime"].as_str() > last["startTime"].as_str(),
        "{last}"
    );
    assert_eq!(last["durable"], false);
    let stored = "SELECT state FROM nico_rewrap.runs WHERE id = $1";
    let id = started["id"].as_str().unwrap();
    let state: String = client.query_one(stored, &[&id]).await.unwrap().get(0);
    assert_eq!(state, "FAILED");
    let rising: Vec<_> = states
        .iter()
        .map(|run| number(&run["progress"]["rowsDone"]))
        .collect();
    assert!(rising.is_sorted(), "{rising:?}");
    // The site still works.
    assert_eq!(run(&two, APPLY).await["state"], "RUN_STATE_FINISHED");
    let seen = ask(&two, "GetRun", json!({"runId": started["id"]})).await;
    assert_eq!(reason(&seen), "INSTANCE_GONE");
}

#[tokio::test]
async fn a_frozen_instance_is_named_and_corrects_its_run_when_it_comes_back() {
    let (database, _client) = seeded(&orgs(400)).await;
    let (one, two) = two_instances(&database).await;
    let started = start_slow(&one, APPLY, 50).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    one.signal("STOP");
    tokio::time::sleep(Duration::from_secs(32)).await;
    let request = json!({"kind": APPLY, "site": {}, "expectTargetKeyId": "kv2"});
    let refused = try_ask(&two, "StartRun", request).await.unwrap_err();
    let info = refused.error_info().unwrap();
    assert_eq!(info.reason, "APPLY_UNDER_WAY");
    assert_eq!(info.metadata["run_id"], started["id"].as_str().unwrap());
    assert_eq!(info.metadata["instance"], "one");
    for part in ["caller", "start_time"] {
        assert!(!info.metadata[part].is_empty(), "{info:?}");
    }
    let at_two = async || ask(&two, "GetRun", json!({"runId": started["id"]})).await;
    assert_eq!(reason(&at_two().await), "INSTANCE_GONE");
    one.signal("CONT");
    // Until its end at the first instance, the run stays FAILED at the second one.
    let is_over = async {
        let end = ended(&one, &started).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        end
    };
    let watch = async {
        loop {
            assert_ne!(at_two().await["state"], "RUN_STATE_RUNNING");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let end = tokio::select! {
        end = is_over => end,
        () = watch => unreachable!(),
    };
    let corrected = at_two().await;
    for part in ["state", "report", "endTime", "error"] {
        assert_eq!(corrected[part], end[part], "{corrected}");
    }
    assert_ne!(reason(&corrected), "INSTANCE_GONE");
}

#[tokio::test]
async fn a_watch_shows_the_progress_and_ends_with_the_final_state() {
    let (database, client) = seeded(&orgs(250)).await;
    client
        .batch_execute("ANALYZE tenant_identity_config")
        .await
        .unwrap();
    let server = site(&database).set("rewrap.page_size", "50").start().await;
    for kind in ["RUN_KIND_DRY_RUN", APPLY] {
        let started = start_slow(&server, kind, 100).await;
        let states = watch(&server, &started).await;
        let done: Vec<_> = states
            .iter()
            .map(|run| number(&run["progress"]["rowsDone"]))
            .collect();
        assert!(done.is_sorted(), "{done:?}");
        let last = states.last().unwrap();
        assert_eq!(last["state"], "RUN_STATE_FINISHED");
        assert_eq!(done.last(), Some(&250));
        if kind == APPLY {
            let between = done.iter().filter(|done| (1..250).contains(*done)).count();
            assert!(between > 0, "{done:?}");
            let with_estimate = |run: &&Value| {
                let progress = &run["progress"];
                progress["rowsTotal"] == "250"
                    && progress["rateLimitRowsPerSecond"] == 100.0
                    && !progress["remaining"].is_null()
            };
            assert!(states.iter().any(|run| with_estimate(&run)), "{states:?}");
        }
        assert_eq!(last["progress"]["rowsTotal"], "250", "{last}");
    }
}

#[tokio::test]
async fn a_client_that_reads_nothing_delays_nobody() {
    let (database, _client) = seeded(&orgs(300)).await;
    let server = site(&database).start().await;
    let started = start_slow(&server, APPLY, 100).await;
    let id = started["id"].as_str().unwrap();
    let mut frozen: Vec<_> = (0..3)
        .map(|_| Call::new(&server, certs::admin()).watch_run(id))
        .collect();
    frozen.iter_mut().for_each(crate::grpcurl::Watch::freeze);
    let states = watch(&server, &started).await;
    assert_eq!(states.last().unwrap()["state"], "RUN_STATE_FINISHED");
    assert_eq!(run(&server, APPLY).await["state"], "RUN_STATE_FINISHED");
    assert!(frozen.iter_mut().all(crate::grpcurl::Watch::is_open));
    assert_eq!(server.terminate().await, 0);
}

#[tokio::test]
async fn a_client_of_the_old_method_that_goes_away_leaves_a_stopped_run() {
    let (database, client) = seeded(&orgs(200)).await;
    let first = site(&database).set("rewrap.max_rows_per_second", "20");
    migrate_state(&first);
    let server = first.start().await;
    let mut call = Call::new(&server, certs::admin()).start(&json!({}));
    until_written(&client, 3).await;
    call.kill().await.unwrap();
    let run = newest(&server).await;
    assert_eq!(
        (run["state"].as_str(), reason(&run)),
        (Some("RUN_STATE_STOPPED"), "CANCELLED"),
        "{run}"
    );
    assert_eq!((&run["kind"], &run["site"]), (&json!(APPLY), &json!({})));
    assert!(number(&run["report"]["rowsUpdated"]) >= 3, "{run}");

    // One organization, whose row somebody has locked.
    let lock =
        "BEGIN; SELECT FROM tenant_identity_config WHERE organization_id = 'org199' FOR UPDATE";
    client.batch_execute(lock).await.unwrap();
    let watch = database.client().await;
    let mut call = Call::new(&server, certs::admin()).start(&json!({"organizationId": "org199"}));
    until_blocked(&watch).await;
    call.kill().await.unwrap();
    let run = newest(&server).await;
    assert_eq!(
        (run["state"].as_str(), reason(&run)),
        (Some("RUN_STATE_STOPPED"), "CANCELLED"),
        "{run}"
    );
    assert_eq!(run["organizationId"], "org199");
    client.batch_execute("ROLLBACK").await.unwrap();
    let stored = "SELECT count(*) FROM nico_rewrap.runs WHERE state = 'STOPPED'";
    crate::faults::until(&client, &format!("({stored}) = 2")).await;
}

#[tokio::test]
async fn a_client_that_goes_away_during_the_key_check_stops_the_run() {
    let (database, client) = seeded(&orgs(5)).await;
    let server = site(&database)
        .set("rewrap.lock_timeout", "\"20s\"")
        .start()
        .await;
    // The census of the key check waits for this lock.
    client
        .batch_execute("BEGIN; LOCK TABLE tenant_identity_config")
        .await
        .unwrap();
    let watch = database.client().await;
    let mut call = Call::new(&server, certs::admin()).start(&json!({}));
    until_blocked(&watch).await;
    call.kill().await.unwrap();
    let run = newest(&server).await;
    assert_eq!(
        (run["state"].as_str(), reason(&run)),
        (Some("RUN_STATE_STOPPED"), "CANCELLED"),
        "{run}"
    );
    client.batch_execute("ROLLBACK").await.unwrap();
}
