//! Wrong bytes under the id of the target key are named before an apply writes its first row.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::certs;
use crate::database::Database;
use crate::grpcurl::{GrpcError, reencrypt};
use crate::outcome::seeded;
use crate::rewrap_client::{ask, ended, migrate_state, reason, run, try_ask};
use crate::seal::seal_with;
use crate::seed::{self, Org, Row};
use crate::server::Server;
use crate::site::Site;

const CENSUS: &str = "RUN_KIND_CENSUS";

/// A site whose `kv2` has other bytes than the secrets under `kv2`. It takes no census by itself.
fn wrong_site(database: &Database) -> Site {
    let mut keys = crate::seal::keys(&["kv1", "kv2"]);
    keys.insert("kv2".to_owned(), [9; 32]);
    Site::new(database)
        .keys(&keys)
        .set("rewrap.census_interval", "\"0s\"")
}

fn under(key_id: &str, name: &str, count: usize) -> Vec<Org> {
    let org = |i| Org::under(&format!("{name}{i}"), key_id);
    (0..count).map(org).collect()
}

/// How an apply of the site ends.
async fn apply(server: &Server) -> Value {
    run(server, "RUN_KIND_APPLY").await
}

/// How an apply of one organization ends.
async fn apply_one(server: &Server, id: &str) -> Value {
    let request =
        json!({"kind": "RUN_KIND_APPLY", "organizationId": id, "expectTargetKeyId": "kv2"});
    let started = ask(server, "StartRun", request).await;
    ended(server, &started).await
}

async fn forge_error(server: &Server, request: Value) -> GrpcError {
    let answer = reencrypt(server, certs::admin(), request).await;
    answer.unwrap_err()
}

/// Asserts that every form of an apply is refused, and that nothing was written since `before`.
async fn assert_refused(server: &Server, client: &Client, before: &BTreeMap<String, Row>) {
    for ended in [apply(server).await, apply_one(server, "old0").await] {
        assert_eq!(
            (ended["state"].as_str(), reason(&ended)),
            (Some("RUN_STATE_FAILED"), "WRONG_KEY_MATERIAL"),
            "{ended}"
        );
    }
    for request in [json!({}), json!({"organizationId": "old0"})] {
        let info = forge_error(server, request).await.error_info().unwrap();
        assert_eq!(info.reason, "WRONG_KEY_MATERIAL");
        assert_eq!(info.metadata["key_id"], "kv2");
    }
    assert_eq!(&seed::snapshot(client).await, before);
}

#[tokio::test]
async fn an_apply_before_the_first_census_is_checked() {
    let (database, client) = seeded(&under("kv1", "old", 3)).await;
    seed::insert(&client, &under("kv2", "new", 4)).await;
    let before = seed::snapshot(&client).await;
    let server = wrong_site(&database).start().await;
    // The apply of one organization comes first: it finds no result of an earlier check.
    let ended = apply_one(&server, "old1").await;
    assert_eq!(reason(&ended), "WRONG_KEY_MATERIAL", "{ended}");
    assert_refused(&server, &client, &before).await;
    let census = try_ask(&server, "ListKeys", json!({})).await.unwrap();
    assert_eq!(census["census"], Value::Null, "the check records no census");
}

#[tokio::test]
async fn a_sample_that_no_longer_exists_is_replaced() {
    let (database, client) = seeded(&under("kv1", "old", 3)).await;
    seed::insert(&client, &under("kv2", "gone", 12)).await;
    let server = wrong_site(&database).start().await;
    run(&server, CENSUS).await;
    client
        .batch_execute("DELETE FROM tenants WHERE organization_id LIKE 'gone%'")
        .await
        .unwrap();
    seed::insert(&client, &under("kv2", "new", 4)).await;
    let before = seed::snapshot(&client).await;
    assert_refused(&server, &client, &before).await;
}

#[tokio::test]
async fn a_canary_proves_nothing() {
    let (database, client) = seeded(&under("kv1", "old", 5)).await;
    let site = wrong_site(&database);
    migrate_state(&site);
    let server = site.start().await;
    // Nothing is under kv2, so nothing shows that its bytes are wrong.
    let canary = apply_one(&server, "old4").await;
    assert_eq!(canary["report"]["rowsUpdated"], "1", "{canary}");
    seed::insert(&client, &under("kv2", "new", 4)).await;
    run(&server, CENSUS).await;
    let before = seed::snapshot(&client).await;
    assert_refused(&server, &client, &before).await;
    drop(server);
    // Another process knows the canary by the history.
    let server = wrong_site(&database).start().await;
    assert_refused(&server, &client, &before).await;
}

#[tokio::test]
async fn rows_of_an_interrupted_apply_prove_nothing() {
    let (database, client) = seeded(&under("kv1", "early", 2)).await;
    let server = wrong_site(&database).start().await;
    let first = apply(&server).await;
    assert_eq!(first["report"]["rowsUpdated"], "2", "{first}");
    let mut orgs = under("kv2", "new", 4);
    orgs.extend(under("kv1", "old", 1));
    seed::insert(&client, &orgs).await;
    run(&server, CENSUS).await;
    let before = seed::snapshot(&client).await;
    assert_refused(&server, &client, &before).await;
}

#[tokio::test]
async fn right_keys_are_not_refused() {
    let (database, client) = seeded(&under("kv1", "old", 5)).await;
    // Some broken secrets do not make the key of all others wrong.
    let broken = |i| Org::new(&format!("broken{i}")).text(0, seal_with("x", "kv2", &[7; 32]));
    let broken: Vec<_> = (0..4).map(broken).collect();
    seed::insert(&client, &broken).await;
    seed::insert(&client, &under("kv2", "new", 1)).await;
    let server = Site::new(&database)
        .set("rewrap.census_interval", "\"0s\"")
        .start()
        .await;
    assert_eq!(
        apply_one(&server, "old0").await["report"]["rowsUpdated"],
        "1"
    );
    let report = &apply(&server).await["report"];
    assert_eq!(
        (&report["rowsUpdated"], &report["rowsFailed"]),
        (&"4".into(), &"4".into())
    );
}
