//! Files that change after the start: a warning, a metric and a line in `/readyz`. The server
//! does not reload them.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::certs;
use crate::database::Database;
use crate::grpcurl::{reencrypt, run};
use crate::leaks;
use crate::process::lasting_dir;
use crate::reload::until;
use crate::seal::{Keys, key, keys};
use crate::server::Server;
use crate::site::{Site, path};

const METRIC: &str = "nico_rewrap_configuration_changed_on_disk";
const LINE: &str = "changed on disk since the start: ";

/// Waits until the metric of the source is 0 or 1 and checks `/readyz`. Returns its text.
async fn shows(server: &Server, source: &str, is_changed: bool) -> String {
    until(
        server,
        METRIC,
        &[("source", source)],
        f64::from(u8::from(is_changed)),
    )
    .await;
    // The text follows the metric at once.
    loop {
        let (status, text) = server.get("/readyz").await;
        assert_eq!(status, 200, "{text}");
        if text.contains(LINE) == is_changed {
            return text;
        }
    }
}

fn write(file: &Path, text: &str) {
    let new = file.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, file).unwrap();
}

/// A secrets file with these keys and another credential.
fn secrets(keys: &Keys, other: &str) -> String {
    use base64::{Engine, prelude::BASE64_STANDARD};
    let keys: serde_json::Map<_, _> = keys
        .iter()
        .map(|(id, key)| (id.clone(), json!(BASE64_STANDARD.encode(key))))
        .collect();
    json!({"bmc": other, "machine_identity": {"encryption_keys": keys}}).to_string()
}

/// A server with a secrets file that a test replaces.
async fn with_secrets(database: &Database) -> (Server, PathBuf) {
    let file = lasting_dir("secrets").join("secrets.json");
    write(&file, &secrets(&keys(&["kv1", "kv2"]), "x"));
    let server = Site::new(database)
        .set("rewrap.secrets_file", path(&file))
        .set("rewrap.tls_reload_interval", "\"50ms\"")
        .start()
        .await;
    (server, file)
}

#[tokio::test]
async fn every_source_is_present_from_the_start() {
    let server = crate::reload::disabled().start().await;
    for source in ["site_config", "secrets_file"] {
        let value = server.metric(METRIC, &[("source", source)]).await;
        assert_eq!(value, Some(0.0), "{source}");
    }
}

#[tokio::test]
async fn a_changed_key_is_told_until_it_is_as_before() {
    let database = Database::migrated().await;
    let (server, file) = with_secrets(&database).await;
    let source = "secrets_file";
    let mut other = keys(&["kv1", "kv2"]);
    other.insert("kv1".to_owned(), key("another"));
    for (changed, ids) in [
        (secrets(&other, "x"), "changed: \"kv1\""),
        (secrets(&keys(&["kv2"]), "x"), "changed: \"kv1\""),
        (
            secrets(&keys(&["kv1", "kv2", "kv3"]), "x"),
            "changed: \"kv3\"",
        ),
        ("{".to_owned(), "is not the expected JSON or YAML at line 1"),
    ] {
        write(&file, &changed);
        let text = shows(&server, source, true).await;
        assert!(text.contains(ids), "{text}");
        assert!(
            text.contains(LINE) && text.contains(file.to_str().unwrap()),
            "{text}"
        );
        write(&file, &secrets(&keys(&["kv1", "kv2"]), "y"));
        shows(&server, source, false).await;
    }
    std::fs::remove_file(&file).unwrap();
    let text = shows(&server, source, true).await;
    assert!(text.contains("can't be read ("), "{text}");
    assert_eq!(
        server.metric(METRIC, &[("source", "site_config")]).await,
        Some(0.0)
    );
    // Once for each change, not once for each comparison.
    let words = "changed on disk since the start: restart nico-rewrap to read it";
    let warnings = server.logs_with(words);
    assert_eq!(warnings.len(), 5, "{warnings:?}");
    assert_eq!(warnings[0]["level"], "WARN");
    assert_eq!(run(&server, true).await.rows_failed, 0);
    leaks::assert_none(&server.log_text());
}

/// nico-api's file holds the credentials of many machines, and settings that nico-rewrap does
/// not read.
#[tokio::test]
async fn other_credentials_and_settings_may_change() {
    let database = Database::migrated().await;
    let file = lasting_dir("secrets").join("secrets.json");
    write(&file, &secrets(&keys(&["kv1", "kv2"]), "x"));
    let site = Site::new(&database)
        .set("rewrap.secrets_file", path(&file))
        .set("rewrap.tls_reload_interval", "\"50ms\"")
        .set("rewrap.max_runs", "3")
        .env("NICO_REWRAP__MAX_RUNS", "5");
    let config = site.dir().join("site.toml");
    let text = site.toml();
    let server = site.start().await;
    // A variable replaces max_runs.
    let unrelated = text
        .replace("max_runs = 3", "max_runs = 4")
        .replace("token_ttl_max_sec = 86400", "token_ttl_max_sec = 1\nx = 1")
        + "[more]\ny = 1\n";
    write(&config, &unrelated);
    write(&file, &secrets(&keys(&["kv1", "kv2"]), "y"));
    let looked = unrelated.replace("= \"kv2\"", "= \"kv1\"");
    for source in ["site_config", "secrets_file"] {
        let metric = server.metric(METRIC, &[("source", source)]).await;
        assert_eq!(metric, Some(0.0), "{source}: {}", server.log_text());
    }
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let words = "changed on disk since the start: restart nico-rewrap to read it";
    assert!(server.logs_with(words).is_empty(), "{}", server.log_text());

    write(&config, &looked);
    let text = shows(&server, "site_config", true).await;
    assert!(text.contains("site.toml have changed"), "{text}");
    // The target stays that of the start.
    let report = reencrypt(&server, certs::admin(), json!({"dryRun": true})).await;
    assert_eq!(report.unwrap().current_encryption_key_id, "kv2");
    write(&config, "[");
    let broken = "is not TOML at line 1 column ";
    while !server.get("/readyz").await.1.contains(broken) {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    write(&config, &unrelated);
    shows(&server, "site_config", false).await;
}

#[tokio::test]
async fn sighup_compares_the_files_at_once() {
    let database = Database::migrated().await;
    let site = Site::new(&database).set("rewrap.tls_reload_interval", "\"1h\"");
    let file = site.dir().join("secrets.json");
    let server = site.start().await;
    write(&file, &secrets(&keys(&["kv2"]), "x"));
    server.signal("HUP");
    shows(&server, "secrets_file", true).await;
}
