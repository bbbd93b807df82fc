//! May a key be deleted? Censuses, verdicts, and the history after a restart.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::time::sleep;

use crate::database::Database;
use crate::grpcurl;
use crate::outcome::seeded;
use crate::rewrap_client::{ask, key, migrate_state, reason, run, verdict};
use crate::seal::seal;
use crate::seed::{self, COLUMNS, DELEGATION, Org, signing_key_pem};
use crate::server::Server;
use crate::site::Site;

const CENSUS: &str = "RUN_KIND_CENSUS";

const STRAGGLER: &str = "a census found secrets under a key that was clean before: an old process \
    or a race with nico-api wrote them. The soak starts again";

const MEMORY_ONLY: &str = "runs and censuses are kept in memory only, and verdicts use only the \
                           censuses of this process";

fn site(database: &Database) -> Site {
    Site::new(database)
        .set("rewrap.census_interval", "\"0s\"")
        .set("rewrap.soak", "\"1ms\"")
}

#[tokio::test]
async fn a_census_counts_every_secret_once() {
    let spaced = format!("  {}\n", seal(DELEGATION, "kv1"));
    let long_id = "k".repeat(255);
    let orgs = [
        Org::under("a", "kv1"),
        Org::under("b", "kv1").text(1, seal(signing_key_pem(), "kv2")),
        Org::under("c", "kv2").text(2, "no envelope").text(1, ""),
        Org::new("d").text(2, spaced),
        Org::new("e").text(0, seal(signing_key_pem(), "not-loaded")),
        Org::new("f").text(0, seal(signing_key_pem(), &long_id)),
        Org::new("g"),
    ];
    let (database, _client) = seeded(&orgs).await;
    let server = site(&database).start().await;
    assert_eq!(verdict(&server, "kv1").await, "CANNOT_SAY");
    let run = run(&server, CENSUS).await;
    assert_eq!(run["state"], "RUN_STATE_FINISHED", "{run}");
    let keys = ask(&server, "ListKeys", json!({})).await;
    let census = &keys["census"];
    assert_eq!(census["runId"], run["id"]);
    assert_eq!(
        (&census["rows"], &census["unreadable"]),
        (&json!("7"), &json!("1"))
    );
    assert_eq!(census["unreadableOrganizationIds"], json!(["c"]));
    let ids: Vec<_> = keys["keys"]
        .as_array()
        .unwrap()
        .iter()
        .map(|key| &key["keyId"])
        .collect();
    assert_eq!(ids, [long_id.as_str(), "kv1", "kv2", "not-loaded"]);
    let number = |text: &serde_json::Value| text.as_str().unwrap().parse::<u64>().unwrap();
    let sum: u64 = keys["keys"]
        .as_array()
        .unwrap()
        .iter()
        .map(|key| number(&key["secrets"]))
        .sum();
    assert_eq!(sum + 1, number(&census["secrets"]));
    let kv1 = key(&server, "kv1").await;
    assert_eq!(
        (&kv1["secrets"], &kv1["organizations"]),
        (&json!("5"), &json!("3"))
    );
    assert_eq!(kv1["secretsByColumn"][COLUMNS[0]], "2");
    assert_eq!(kv1["secretsByColumn"][COLUMNS[2]], "3");
    assert_eq!(kv1["inSecrets"], true);
    assert_eq!(key(&server, "not-loaded").await["inSecrets"], false);
}

#[tokio::test]
async fn a_key_is_removable_only_after_the_soak() {
    let (database, client) = seeded(&[Org::under("a", "kv1"), Org::under("b", "kv1")]).await;
    let server = site(&database).start().await;
    run(&server, CENSUS).await;
    assert_eq!(verdict(&server, "kv1").await, "IN_USE");
    assert_eq!(verdict(&server, "kv2").await, "TARGET");
    grpcurl::run(&server, false).await;
    run(&server, CENSUS).await;
    assert_eq!(verdict(&server, "kv1").await, "SOAKING");
    sleep(Duration::from_millis(10)).await;
    assert_eq!(
        verdict(&server, "kv1").await,
        "SOAKING",
        "no census since the soak"
    );
    run(&server, CENSUS).await;
    let removable = key(&server, "kv1").await;
    assert_eq!(removable["verdict"]["state"], "VERDICT_STATE_REMOVABLE");
    assert!(
        removable["verdict"]["explanation"]
            .as_str()
            .unwrap()
            .contains("Backups")
    );

    // A straggler.
    seed::insert(&client, &[Org::under("late", "kv1")]).await;
    run(&server, CENSUS).await;
    let straggler = key(&server, "kv1").await;
    assert_eq!(straggler["verdict"]["state"], "VERDICT_STATE_IN_USE");
    assert_eq!(straggler["verdict"]["stragglers"], "2");
    server.wait_log(STRAGGLER).await;
    grpcurl::run(&server, false).await;
    run(&server, CENSUS).await;
    assert_eq!(verdict(&server, "kv1").await, "SOAKING");
}

#[tokio::test]
async fn an_apply_that_rewraps_a_secret_during_the_soak_starts_it_again() {
    let (database, client) = seeded(&[Org::under("a", "kv2")]).await;
    let persistent = site(&database);
    for with_schema in [false, true] {
        if with_schema {
            migrate_state(&persistent);
        }
        let server = site(&database).start().await;
        let soaked = async || {
            run(&server, CENSUS).await;
            sleep(Duration::from_millis(10)).await;
            run(&server, CENSUS).await;
            verdict(&server, "kv1").await
        };
        assert_eq!(soaked().await, "REMOVABLE");
        // No census sees this secret.
        seed::insert(
            &client,
            &[Org::under(&format!("late-{with_schema}"), "kv1")],
        )
        .await;
        assert_eq!(grpcurl::run(&server, false).await.rows_updated, 1);
        assert_eq!(verdict(&server, "kv1").await, "CANNOT_SAY");
        run(&server, CENSUS).await;
        assert_eq!(verdict(&server, "kv1").await, "SOAKING");
        assert_eq!(soaked().await, "REMOVABLE");
        // An apply that finds nothing changes nothing.
        assert_eq!(grpcurl::run(&server, false).await.rows_updated, 0);
        assert_eq!(verdict(&server, "kv1").await, "REMOVABLE");
    }
}

#[tokio::test]
async fn verdicts_are_the_same_at_every_instance_and_survive_a_restart() {
    let (database, _client) = seeded(&[Org::under("a", "kv2")]).await;
    let first = site(&database);
    migrate_state(&first);
    let one = first.start().await;
    run(&one, CENSUS).await;
    sleep(Duration::from_millis(10)).await;
    let two = site(&database).start().await;
    run(&two, CENSUS).await;
    let said = key(&one, "kv1").await;
    assert_eq!(
        said["verdict"]["state"], "VERDICT_STATE_REMOVABLE",
        "{said}"
    );
    assert_eq!(key(&two, "kv1").await, said);
    one.terminate().await;
    let again = site(&database).start().await;
    assert_eq!(key(&again, "kv1").await, said);
    assert_eq!(
        ask(&again, "GetStatus", json!({})).await["historyPersistent"],
        true
    );
}

#[tokio::test]
async fn without_the_schema_a_verdict_says_what_it_knows() {
    let (database, _client) = seeded(&[Org::under("a", "kv2")]).await;
    let server = site(&database).start().await;
    let explanation = key(&server, "kv1").await["verdict"]["explanation"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        explanation.contains("only what it has seen since its start"),
        "{explanation}"
    );
    assert_eq!(
        ask(&server, "GetStatus", json!({})).await["historyPersistent"],
        false
    );
    server.wait_log(MEMORY_ONLY).await;
}

#[tokio::test]
async fn the_server_takes_censuses_by_itself() {
    let (database, _client) = seeded(&[Org::under("a", "kv1")]).await;
    let server = site(&database)
        .set("rewrap.census_interval", "\"1h\"")
        .start()
        .await;
    let deadline = Instant::now() + Duration::from_secs(60);
    while verdict(&server, "kv1").await != "IN_USE" {
        assert!(Instant::now() < deadline, "{}", server.log_text());
        sleep(Duration::from_millis(50)).await;
    }
    // An apply makes a census due.
    grpcurl::run(&server, false).await;
    while verdict(&server, "kv1").await != "SOAKING" {
        assert!(Instant::now() < deadline, "{}", server.log_text());
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn wrong_bytes_under_the_target_key_are_named_before_the_first_write() {
    let orgs: Vec<_> = (0..4)
        .map(|i| Org::under(&format!("org{i}"), "kv2"))
        .collect();
    let (database, client) = seeded(&orgs).await;
    seed::insert(&client, &[Org::under("old", "kv1")]).await;
    let before = seed::snapshot(&client).await;
    let mut keys = crate::seal::keys(&["kv1", "kv2"]);
    keys.insert("kv2".to_owned(), [9; 32]);
    let server = site(&database).keys(&keys).start().await;
    run(&server, CENSUS).await;
    let request = json!({"dryRun": false});
    let error = grpcurl::reencrypt(&server, crate::certs::admin(), request)
        .await
        .unwrap_err();
    let info = error.error_info().unwrap();
    assert_eq!(
        (error.code.as_str(), info.reason.as_str()),
        ("FAILED_PRECONDITION", "WRONG_KEY_MATERIAL")
    );
    assert_eq!(info.metadata["key_id"], "kv2");
    assert!(!info.metadata["check_value"].is_empty());
    assert_eq!(seed::snapshot(&client).await, before);
    // A dry run reports every row as before.
    assert_eq!(grpcurl::run(&server, true).await.rows_failed, 4);
}

/// The state and the explanation of the verdict about kv1.
async fn said(server: &Server) -> (String, String) {
    let verdict = key(server, "kv1").await["verdict"].clone();
    let text = |member: &str| verdict[member].as_str().unwrap().to_owned();
    let state = text("state");
    let state = state.strip_prefix("VERDICT_STATE_").unwrap().to_owned();
    (state, text("explanation"))
}

/// Two instances with a history, for which kv1 is removable.
async fn removable(database: &Database) -> [Server; 2] {
    let site = || site(database).set("rewrap.lock_timeout", "\"300ms\"");
    migrate_state(&site());
    let servers = [site().start().await, site().start().await];
    run(&servers[0], CENSUS).await;
    sleep(Duration::from_millis(10)).await;
    run(&servers[0], CENSUS).await;
    for server in &servers {
        assert_eq!(said(server).await.0, "REMOVABLE");
    }
    servers
}

const UNREADABLE: &str = "cannot be read";

#[tokio::test]
async fn a_key_is_never_called_unused_from_memory() {
    let (database, client) = seeded(&[Org::under("a", "kv2")]).await;
    let [one, two] = removable(&database).await;
    let rival = database.client().await;
    let lock = "BEGIN; LOCK TABLE nico_rewrap.ledger";
    rival.batch_execute(lock).await.unwrap();
    for server in [&one, &two] {
        let (state, explanation) = said(server).await;
        assert_eq!(state, "CANNOT_SAY", "{explanation}");
        assert!(explanation.contains(UNREADABLE), "{explanation}");
        assert_eq!(verdict(server, "kv2").await, "TARGET");
    }
    rival.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(verdict(&one, "kv1").await, "REMOVABLE");

    // Another instance finds a secret. Whoever has read that still knows it.
    seed::insert(&client, &[Org::under("late", "kv1")]).await;
    run(&two, CENSUS).await;
    assert_eq!(verdict(&one, "kv1").await, "IN_USE");
    rival.batch_execute(lock).await.unwrap();
    let (state, explanation) = said(&one).await;
    assert_eq!(state, "IN_USE", "{explanation}");
    assert!(explanation.contains(UNREADABLE), "{explanation}");
    // Its own censuses are no proof either, but they can find a secret.
    rival.batch_execute("ROLLBACK").await.unwrap();
    grpcurl::run(&two, false).await;
    run(&two, CENSUS).await;
    sleep(Duration::from_millis(10)).await;
    run(&two, CENSUS).await;
    assert_eq!(verdict(&one, "kv1").await, "REMOVABLE");
    rival.batch_execute(lock).await.unwrap();
    run(&one, CENSUS).await;
    assert_eq!(verdict(&one, "kv1").await, "CANNOT_SAY");
    seed::insert(&client, &[Org::under("later", "kv1")]).await;
    run(&one, CENSUS).await;
    assert_eq!(verdict(&one, "kv1").await, "IN_USE");
    seed::delete(&client, "later").await;
    run(&one, CENSUS).await;
    rival.batch_execute("ROLLBACK").await.unwrap();
    // The schema knows nothing of these censuses, and the key is clean in it. But this instance
    // has seen the secret.
    assert_eq!(verdict(&two, "kv1").await, "REMOVABLE");
    assert_eq!(verdict(&one, "kv1").await, "CANNOT_SAY");
    run(&one, CENSUS).await;
    for server in [&one, &two] {
        assert_eq!(verdict(server, "kv1").await, "SOAKING");
    }
}

#[tokio::test]
async fn a_census_that_could_not_see_every_row_ends_the_proof_at_every_instance() {
    let (database, client) = seeded(&[Org::under("a", "kv2")]).await;
    let [one, two] = removable(&database).await;
    let on = "ALTER TABLE tenant_identity_config ENABLE ROW LEVEL SECURITY;
        ALTER TABLE tenant_identity_config FORCE ROW LEVEL SECURITY";
    client.batch_execute(on).await.unwrap();
    let failed = run(&one, CENSUS).await;
    assert_eq!(reason(&failed), "ROWS_NOT_VISIBLE", "{failed}");
    for server in [&one, &two] {
        let (state, explanation) = said(server).await;
        assert_eq!(state, "CANNOT_SAY", "{explanation}");
        let words = "failed with ROWS_NOT_VISIBLE";
        assert!(explanation.contains(words), "{explanation}");
        assert_eq!(verdict(server, "kv2").await, "TARGET");
    }
    let off = "ALTER TABLE tenant_identity_config DISABLE ROW LEVEL SECURITY";
    client.batch_execute(off).await.unwrap();
    run(&two, CENSUS).await;
    for server in [&one, &two] {
        assert_eq!(verdict(server, "kv1").await, "REMOVABLE");
    }
}

#[tokio::test]
async fn a_verdict_says_that_the_last_census_failed() {
    let (database, _client) = seeded(&[Org::under("a", "kv2")]).await;
    let [one, two] = removable(&database).await;
    let rival = database.client().await;
    let lock = "BEGIN; LOCK TABLE tenant_identity_config";
    rival.batch_execute(lock).await.unwrap();
    let failed = run(&one, CENSUS).await;
    assert_eq!(failed["state"], "RUN_STATE_FAILED", "{failed}");
    rival.batch_execute("ROLLBACK").await.unwrap();
    for server in [&one, &two] {
        let (state, explanation) = said(server).await;
        // The time of the last census is in the explanation.
        assert_eq!(state, "REMOVABLE", "{explanation}");
        let words = format!("failed with {}", reason(&failed));
        assert!(explanation.contains(&words), "{explanation}");
    }
    run(&one, CENSUS).await;
    let (_, explanation) = said(&two).await;
    assert!(!explanation.contains("failed"), "{explanation}");
}
