//! The receipt of an apply: its content, and the chain of receipts.

use std::time::{Duration, Instant};

use nico_rewrap::run::receipt::verify_chain;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::time::sleep;
use tokio_postgres::Client;

use crate::grpcurl;
use crate::outcome::seeded;
use crate::rewrap_client::migrate_state;
use crate::seed::{self, COLUMNS, Org};
use crate::site::{Site, path};

fn sha256(text: &str) -> String {
    Sha256::digest(text)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The lines of a file, when it has this many.
async fn lines(file: &std::path::Path, count: usize) -> Vec<String> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let lines: Vec<_> = text.lines().map(str::to_owned).collect();
        if lines.len() >= count {
            return lines;
        }
        assert!(Instant::now() < deadline, "{text}");
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn each_apply_that_writes_has_a_receipt_in_one_chain() {
    for persistent in [true, false] {
        let orgs: Vec<_> = (0..5)
            .map(|i| Org::under(&format!("org-{i}"), "kv1"))
            .collect();
        let (database, client) = seeded(&orgs).await;
        let site = Site::new(&database);
        let file = site.dir().join("receipts.jsonl");
        let site = site
            .set("rewrap.receipt_log", path(&file))
            .set("rewrap.census_interval", "\"1h\"");
        if persistent {
            migrate_state(&site);
        }
        let server = site.start().await;
        let before = seed::snapshot(&client).await;
        let first = grpcurl::run(&server, false).await;
        let after = seed::snapshot(&client).await;
        let receipt: Value = serde_json::from_str(&lines(&file, 1).await[0]).unwrap();
        assert_eq!(receipt["runId"].as_str(), first.run_id.as_deref());
        assert_eq!(
            (&receipt["kind"], &receipt["version"]),
            (&"Receipt".into(), &1.into())
        );
        assert_eq!(receipt["caller"], "alice");
        assert_eq!(receipt["targetKeyId"], "kv2");
        assert_eq!(receipt["censusAfter"]["kv2"], 10);
        assert_eq!(receipt["previous"], "");

        // The same hash, from the rows before and after the run.
        let mut changes = Vec::new();
        for (id, old) in &before {
            let texts = COLUMNS.iter().zip(old.texts.iter().zip(&after[id].texts));
            for (column, (old, new)) in texts {
                if let (Some(old), Some(new)) = (old, new) {
                    changes.push(format!("{id},{column},{},{}\n", sha256(old), sha256(new)));
                }
            }
        }
        changes.sort();
        assert_eq!(receipt["changesSha256"], sha256(&changes.concat()).as_str());

        // A run that writes nothing has no receipt. The receipt of the next run that writes
        // follows the first receipt.
        grpcurl::run(&server, false).await;
        seed::insert(&client, &[Org::under("late", "kv1")]).await;
        grpcurl::run(&server, false).await;
        let lines = lines(&file, 2).await;
        assert_eq!(
            verify_chain(&lines.join("\n")),
            Ok(2),
            "persistent: {persistent}"
        );
        let second: Value = serde_json::from_str(&lines[1]).unwrap();
        assert_eq!(second["previous"], sha256(&lines[0]).as_str());
        if persistent {
            // The file does not wait for the database.
            until_stored(&client, 2).await;
            let all = "SELECT document, sha256 FROM nico_rewrap.receipts ORDER BY sequence";
            let rows = client.query(all, &[]).await.unwrap();
            let stored: Vec<(String, String)> =
                rows.iter().map(|row| (row.get(0), row.get(1))).collect();
            // With one instance, both chains are the same.
            let expected: Vec<_> = lines
                .iter()
                .map(|line| (line.clone(), sha256(line)))
                .collect();
            assert_eq!(stored, expected);
        }
        assert_eq!(server.terminate().await, 0);
    }
}

#[tokio::test]
async fn the_census_after_a_run_began_after_its_end() {
    let orgs: Vec<_> = (0..5)
        .map(|i| Org::under(&format!("org-{i}"), "kv1"))
        .collect();
    let (database, client) = seeded(&orgs).await;
    let site = Site::new(&database).set("rewrap.census_interval", "\"1h\"");
    migrate_state(&site);
    let server = site.start().await;
    crate::faults::until(&client, "(SELECT sequence FROM nico_rewrap.ledger) = 1").await;
    // Another instance takes a census, which has begun before the run.
    let rival = database.client().await;
    rival
        .batch_execute("SELECT pg_advisory_lock(1852400495, 1667591795)")
        .await
        .unwrap();
    grpcurl::run(&server, false).await;
    sleep(Duration::from_secs(1)).await;
    drop(rival);
    crate::faults::until(&client, "EXISTS (SELECT FROM nico_rewrap.receipts)").await;
    let receipt = "SELECT document FROM nico_rewrap.receipts";
    let receipt: String = client.query_one(receipt, &[]).await.unwrap().get(0);
    let receipt: Value = serde_json::from_str(&receipt).unwrap();
    assert_eq!(receipt["censusBefore"]["kv1"], 10, "{receipt}");
    assert_eq!(receipt["censusAfter"]["kv1"], Value::Null, "{receipt}");
    assert_eq!(receipt["censusAfter"]["kv2"], 10, "{receipt}");
}

#[tokio::test]
async fn an_apply_of_one_organization_makes_a_census_due() {
    let (database, client) = seeded(&[Org::under("a", "kv1"), Org::under("b", "kv1")]).await;
    let site = Site::new(&database).set("rewrap.census_interval", "\"1h\"");
    migrate_state(&site);
    let server = site.start().await;
    crate::faults::until(&client, "(SELECT sequence FROM nico_rewrap.ledger) = 1").await;
    let request = serde_json::json!({"organizationId": "a"});
    let admin = crate::certs::admin();
    let report = grpcurl::reencrypt(&server, admin, request).await.unwrap();
    assert_eq!(report.rows_updated, 1);
    crate::faults::until(&client, "EXISTS (SELECT FROM nico_rewrap.receipts)").await;
    crate::faults::until(&client, "(SELECT sequence FROM nico_rewrap.ledger) = 2").await;
}

/// The receipts in the database, in their order.
async fn stored(client: &Client) -> Vec<String> {
    let all = "SELECT document FROM nico_rewrap.receipts ORDER BY sequence";
    let rows = client.query(all, &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

async fn until_stored(client: &Client, count: usize) -> Vec<String> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let stored = stored(client).await;
        if stored.len() >= count {
            return stored;
        }
        assert!(Instant::now() < deadline, "{stored:?}");
        sleep(Duration::from_millis(100)).await;
    }
}

fn assert_chain(lines: &[String], count: usize) {
    assert_eq!(verify_chain(&lines.join("\n")), Ok(count));
}

#[tokio::test]
async fn applies_at_the_same_time_keep_every_chain_whole() {
    const APPLIES: usize = 12;
    let orgs: Vec<_> = (0..2 * APPLIES)
        .map(|i| Org::under(&format!("org{i:02}"), "kv1"))
        .collect();
    let (database, client) = seeded(&orgs).await;
    let site = |name: &str| {
        let site = Site::new(&database);
        let file = site.dir().join(name);
        let site = site
            .set("rewrap.receipt_log", path(&file))
            .set("rewrap.max_runs", "50");
        (site, file)
    };
    let (first, first_file) = site("one.jsonl");
    let (second, second_file) = site("two.jsonl");
    migrate_state(&first);
    let servers = [first.start().await, second.start().await];
    let apply = |i: usize| {
        let (server, id) = (&servers[i % 2], format!("org{i:02}"));
        async move {
            let request = serde_json::json!({"organizationId": id});
            let report = grpcurl::reencrypt(server, crate::certs::admin(), request).await;
            assert_eq!(report.unwrap().rows_updated, 1);
        }
    };
    futures_util::future::join_all((0..2 * APPLIES).map(apply)).await;
    // The database has the receipts of both instances, and each file those of one instance.
    assert_chain(&until_stored(&client, 2 * APPLIES).await, 2 * APPLIES);
    for file in [&first_file, &second_file] {
        assert_chain(&lines(file, APPLIES).await, APPLIES);
    }
}

#[tokio::test]
async fn a_part_of_a_line_is_removed() {
    let (database, _client) = seeded(&[Org::under("a", "kv1"), Org::under("b", "kv1")]).await;
    let site = Site::new(&database);
    let file = site.dir().join("receipts.jsonl");
    let server = site.set("rewrap.receipt_log", path(&file)).start().await;
    let apply = async |id: &str| {
        let request = serde_json::json!({"organizationId": id});
        let report = grpcurl::reencrypt(&server, crate::certs::admin(), request).await;
        assert_eq!(report.unwrap().rows_updated, 1);
    };
    apply("a").await;
    let mut text = lines(&file, 1).await.join("\n") + "\n";
    // As if a process was killed, or as after a short write on a full disk.
    text += "{\"kind\":\"Rec";
    std::fs::write(&file, text).unwrap();
    apply("b").await;
    server
        .wait_log("the last line of [rewrap].receipt_log is not complete, so it is removed")
        .await;
    let deadline = Instant::now() + Duration::from_secs(30);
    while lines(&file, 1).await.len() < 2 {
        assert!(Instant::now() < deadline);
        sleep(Duration::from_millis(50)).await;
    }
    assert_chain(&lines(&file, 2).await, 2);
}

#[tokio::test]
async fn a_receipt_waits_for_a_database_that_is_away() {
    let (database, client) = seeded(&[Org::under("a", "kv1"), Org::under("b", "kv1")]).await;
    let site = Site::new(&database).set("rewrap.census_interval", "\"0s\"");
    migrate_state(&site);
    let server = site.start().await;
    // The table of the receipts is away, but the run ends.
    let hide = "ALTER TABLE nico_rewrap.receipts RENAME TO hidden";
    client.batch_execute(hide).await.unwrap();
    for id in ["a", "b"] {
        let request = serde_json::json!({"organizationId": id});
        let report = grpcurl::reencrypt(&server, crate::certs::admin(), request).await;
        assert_eq!(report.unwrap().rows_updated, 1);
    }
    server
        .wait_log("cannot write the receipt to the schema nico_rewrap yet: trying again")
        .await;
    let show = "ALTER TABLE nico_rewrap.hidden RENAME TO receipts";
    client.batch_execute(show).await.unwrap();
    let stored = until_stored(&client, 2).await;
    assert_chain(&stored, 2);
    let scope = |document: &String| {
        let receipt: Value = serde_json::from_str(document).unwrap();
        receipt["scope"].as_str().unwrap().to_owned()
    };
    let scopes: Vec<_> = stored.iter().map(scope).collect();
    assert_eq!(scopes, ["organization a", "organization b"]);
}
