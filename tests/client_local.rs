//! Commands that need no server: receipts, check values, the configuration.

use std::io::Write;
use std::process::{Command, Stdio};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;

use crate::database::Database;
use crate::operator::Operator;
use crate::outcome::seeded;
use crate::process::temp_dir;
use crate::rewrap_client::migrate_state;
use crate::seal::keys;
use crate::seed::Org;
use crate::site::{BINARY, Site, run_binary};

/// Runs the binary with this input. Returns the exit code, stdout and stderr.
fn with_input(args: &[&str], input: &[u8]) -> (Option<i32>, String, String) {
    let mut process = Command::new(BINARY)
        .args(args)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    process.stdin.take().unwrap().write_all(input).unwrap();
    let output = process.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

#[tokio::test]
async fn receipts_are_shown_and_verified() {
    let (database, _client) = seeded(&[Org::under("a", "kv1"), Org::under("b", "kv1")]).await;
    let site = Site::new(&database);
    migrate_state(&site);
    let server = site.start().await;
    let operator = Operator::of(&server);
    let mut chain = String::new();
    for organization in ["a", "b"] {
        let command = ["reencrypt", "--org", organization, "--expect-target", "kv2"];
        let (code, run) = operator.json(&command).await;
        assert_eq!(code, 0, "{run}");
        let id = run["id"].as_str().unwrap();
        // The receipt is written after the run.
        let mut shown = operator.call(&["receipt", "show", id]).await;
        for _ in 0..100 {
            if shown.code == 0 {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            shown = operator.call(&["receipt", "show", id]).await;
        }
        assert_eq!(shown.code, 0, "{shown:?}");
        let receipt: Value = serde_json::from_str(&shown.stdout).unwrap();
        assert_eq!(receipt["runId"], id);
        chain += &shown.stdout;
    }
    let dry = operator.json(&["reencrypt", "--dry-run"]).await.1;
    let none = operator
        .call(&["receipt", "show", dry["id"].as_str().unwrap()])
        .await;
    assert_eq!(none.code, 4, "{none:?}");
    assert!(none.stderr.contains("this run has no receipt"), "{none:?}");

    let file = temp_dir("receipts").path().join("receipts.jsonl");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, &chain).unwrap();
    let verify = |input: &str| with_input(&["receipt", "verify", "-"], input.as_bytes());
    let good = verify(&chain);
    assert_eq!(
        (good.0, good.1.as_str()),
        (Some(0), "2 receipts in an unbroken chain\n")
    );
    let changed = chain.replacen("alice", "bob", 1);
    let bad = verify(&changed);
    assert_eq!((bad.0, bad.1.as_str()), (Some(3), ""));
    assert!(bad.2.contains("line 2 does not follow"), "{}", bad.2);
    assert_eq!(verify("").0, Some(3));
    let missing = with_input(&["receipt", "verify", "/nonexistent"], b"");
    assert_eq!(missing.0, Some(2), "{missing:?}");
}

#[tokio::test]
async fn the_check_value_of_a_key_is_the_one_of_the_server() {
    let database = Database::migrated().await;
    let server = Site::new(&database).start().await;
    let (_, status) = Operator::of(&server).json(&["status"]).await;
    let key = BASE64_STANDARD.encode(keys(&["kv1"])["kv1"]);
    let (code, value, _) = with_input(&["keys", "check-value"], format!(" {key}\n").as_bytes());
    assert_eq!(code, Some(0));
    assert_eq!(
        status["instances"][0]["keys"][0]["checkValue"],
        value.trim()
    );
    for (wrong, words) in [("not base64!", "is not base64"), ("AAAA", "3 bytes")] {
        let (code, stdout, stderr) = with_input(&["keys", "check-value"], wrong.as_bytes());
        assert_eq!((code, stdout.as_str()), (Some(2), ""));
        assert!(
            stderr.contains(words) && !stderr.contains(wrong),
            "{stderr}"
        );
    }
}

#[tokio::test]
async fn the_configuration_is_checked_without_a_server() {
    let database = Database::new().await;
    let site = Site::new(&database);
    let check = |site: &Site| {
        let mut args = site.write("config");
        args.insert(1, "check".to_owned());
        args
    };
    let good = run_binary(&check(&site), &[]).await;
    assert_eq!(good.code, 0, "{good:?}");
    assert!(
        good.stdout.contains("The configuration is valid"),
        "{}",
        good.stdout
    );
    assert!(
        good.stdout.contains("kv2") && good.stdout.contains("the target key"),
        "{}",
        good.stdout
    );
    let wrong = Site::new(&database).target("kv9");
    let bad = run_binary(&check(&wrong), &[]).await;
    assert_eq!((bad.code, bad.stdout.as_str()), (78, ""), "{}", bad.stderr);
    assert!(bad.stderr.contains("kv9"), "{}", bad.stderr);
    let mut migrate = site.write("dev");
    migrate.insert(1, "migrate".to_owned());
    let migrated = run_binary(&migrate, &[]).await;
    assert_eq!(
        (migrated.code, migrated.stdout.as_str()),
        (0, "2 migrations applied\n")
    );
}
