//! The secrets file that Vault Agent makes out of `deploy/vault/secrets.json.ctmpl`.
//!
//! There is no Vault here. What is real: the template, Go's `text/template` that executes it in Vault Agent, and the
//! program that reads the result. What stands in: the functions that ask Vault, which `vault/render.go` answers with data
//! in the shape of Vault's KV v2 API and of nico-api's `Credentials`.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::database::Database;
use crate::grpcurl::run;
use crate::leaks;
use crate::process::temp_dir;
use crate::seal::key;
use crate::seed::Org;
use crate::site::Site;

fn below(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A Vault whose KV v2 engine is at `mount`, with these keys.
fn vault(mount: &str, ids: &[&str]) -> Value {
    let path = |kind: &str| format!("{mount}/{kind}/machine_identity/encryption_keys");
    let mut answers = json!({path("metadata"): {"keys": ids}});
    for id in ids {
        let pair = json!({"username": id, "password": BASE64_STANDARD.encode(key(id))});
        answers[format!("{}/{id}", path("data"))] = json!({
            "data": {"UsernamePassword": pair},
            "metadata": {"version": 1, "destroyed": false, "deletion_time": ""},
        });
    }
    answers
}

fn render(answers: &Value, environment: &[(&str, &str)]) -> Output {
    let dir = temp_dir("vault");
    let file = dir.path().join("answers.json");
    std::fs::write(&file, answers.to_string()).unwrap();
    let go = std::env::var_os("GO").unwrap_or_else(|| "go".into());
    let mut command = Command::new(go);
    command.arg("run").arg(below("tests/vault/render.go"));
    command
        .arg(below("deploy/vault/secrets.json.ctmpl"))
        .arg(&file);
    command.env("GOCACHE", below("target/tools/go-cache"));
    command
        .env("GO111MODULE", "off")
        .env_remove("VAULT_KV_MOUNT_LOCATION");
    command.envs(environment.iter().copied()).output().unwrap()
}

fn rendered(answers: &Value, environment: &[(&str, &str)]) -> String {
    let output = render(answers, environment);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn the_rendered_file_is_read() {
    let database = Database::migrated().await;
    Org::under("acme", "kv1")
        .insert(&database.client().await)
        .await;
    let text = rendered(&vault("secrets", &["kv1", "kv2"]), &[]);
    let file: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        file["machine_identity"]["encryption_keys"]
            .as_object()
            .unwrap()
            .len(),
        2,
        "{text}"
    );
    let server = Site::new(&database)
        .secrets("secrets.json", &text)
        .start()
        .await;
    let report = run(&server, false).await;
    assert_eq!((report.rows_updated, report.rows_failed), (1, 0));
    leaks::assert_none(&server.log_text());
}

#[test]
fn the_mount_is_the_one_that_nico_api_is_told() {
    let elsewhere = vault("site/kv", &["only"]);
    let text = rendered(&elsewhere, &[("VAULT_KV_MOUNT_LOCATION", "site/kv")]);
    let file: Value = serde_json::from_str(&text).unwrap();
    let expected = json!({"only": BASE64_STANDARD.encode(key("only"))});
    assert_eq!(file["machine_identity"]["encryption_keys"], expected);
}

/// Vault lists a deleted key until its metadata is deleted, too.
#[test]
fn a_key_that_is_listed_and_cannot_be_read_makes_no_file() {
    let mut deleted = vault("secrets", &["kv1", "kv2"]);
    deleted["secrets/data/machine_identity/encryption_keys/kv2"]["data"] = Value::Null;
    let mut gone = vault("secrets", &["kv1", "kv2"]);
    gone.as_object_mut()
        .unwrap()
        .remove("secrets/data/machine_identity/encryption_keys/kv1");
    for answers in [deleted, gone] {
        assert!(!render(&answers, &[]).status.success());
    }
}
