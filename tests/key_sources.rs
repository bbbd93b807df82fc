//! The sources of keys, and the warnings if nico-api uses other sources. For every rule of
//! precedence there is a case that fails if the order changes.

use std::path::PathBuf;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;

use crate::config_sources::warned;
use crate::configuration::refused;
use crate::database::Database;
use crate::grpcurl::run;
use crate::leaks;
use crate::seal::key;
use crate::seed::one_under_kv1;
use crate::server::Server;
use crate::site::{Site, path};

const LEGACY: &str = "CARBIDE_CREDENTIALS_FILE_PATH";
const LEGACY_ON: &str = "CARBIDE_CREDENTIALS_FILE_ENABLED";
const OURS: &str = "NICO_REWRAP__SECRETS_FILE";

fn text(id: &str) -> String {
    BASE64_STANDARD.encode(key(id))
}

/// A site without `[rewrap].secrets_file`, and two other files: `good` has the keys of nico-api,
/// `stale` has another kv2.
struct Files {
    site: Site,
    good: PathBuf,
    stale: PathBuf,
}

impl Files {
    fn new(database: &Database) -> Self {
        let site = Site::new(database).unset("rewrap.secrets_file");
        let file = |name: &str, kv2: &str| {
            let keys = json!({"kv1": text("kv1"), "kv2": text(kv2)});
            let file = site.dir().join(name);
            let secrets = json!({"machine_identity": {"encryption_keys": keys}});
            std::fs::write(&file, secrets.to_string()).unwrap();
            file
        };
        let (good, stale) = (file("good.json", "kv2"), file("stale.json", "another"));
        Self { site, good, stale }
    }
}

/// Checks that the server uses the kv2 of the good file, so that nico-api can open what the server
/// writes, and that the log names this source.
async fn has_good(site: Site, source: &str) -> Server {
    let server = site.start().await;
    assert_eq!(run(&server, true).await.rows_failed, 0);
    let keys = server.logs_with("key");
    let kv2 = keys.iter().find(|line| line["key_id"] == "kv2").unwrap();
    let log = server.log_text();
    assert!(kv2["source"].as_str().unwrap().ends_with(source), "{log}");
    leaks::assert_none(&log);
    server
}

#[tokio::test]
async fn the_file_of_nico_api_is_found_without_a_setting_of_ours() {
    let database = one_under_kv1().await;
    let Files { site, good, .. } = Files::new(&database);
    let server = has_good(site.set("credentials.file.path", path(&good)), "good.json").await;
    assert!(!warned(&server, "secrets file"), "{}", server.log_text());

    let Files { site, good, .. } = Files::new(&database);
    let site = site.env(LEGACY_ON, "true").env(LEGACY, &good);
    let server = has_good(site, "good.json").await;
    assert!(!warned(&server, "CARBIDE"), "{}", server.log_text());
}

#[tokio::test]
async fn the_site_config_of_nico_api_wins_over_its_variable() {
    let database = one_under_kv1().await;
    for (switch, words) in [
        (
            None,
            "is not read without CARBIDE_CREDENTIALS_FILE_ENABLED=true",
        ),
        (
            Some("false"),
            "is not read without CARBIDE_CREDENTIALS_FILE_ENABLED=true",
        ),
        (Some("true"), "is overridden by [credentials.file].path"),
    ] {
        let Files {
            mut site,
            good,
            stale,
        } = Files::new(&database);
        if let Some(switch) = switch {
            site = site.env(LEGACY_ON, switch);
        }
        let site = site
            .set("credentials.file.path", path(&good))
            .env(LEGACY, &stale);
        let server = has_good(site, "good.json").await;
        let words = format!("environment variable {LEGACY} {words}");
        assert!(warned(&server, &words), "{}", server.log_text());
    }
}

#[tokio::test]
async fn a_file_of_ours_wins_and_a_difference_from_nico_api_is_told() {
    let database = one_under_kv1().await;
    // The variable precedes the setting, and each of them precedes both settings of nico-api.
    let ours: [(&str, Vary); 3] = [
        ("[rewrap].secrets_file", |files, good, _| {
            files.set("rewrap.secrets_file", path(good))
        }),
        ("[rewrap].secrets_file", |files, good, _| {
            files.env(OURS, good)
        }),
        ("[rewrap].secrets_file", |files, good, stale| {
            files
                .set("rewrap.secrets_file", path(stale))
                .env(OURS, good)
        }),
    ];
    let theirs: [(&str, Vary); 2] = [
        ("[credentials.file].path", |files, _, stale| {
            files.set("credentials.file.path", path(stale))
        }),
        (LEGACY, |files, _, stale| {
            files.env(LEGACY_ON, "true").env(LEGACY, stale)
        }),
    ];
    for (our_name, ours) in ours {
        for (their_name, theirs) in theirs {
            let Files { site, good, stale } = Files::new(&database);
            let site = theirs(ours(site, &good, &stale), &good, &stale);
            let server = has_good(site, "good.json").await;
            let log = server.log_text();
            let files = format!(
                "the secrets file is {} ({our_name}), and nico-api is configured to read {} ({their_name})",
                good.display(),
                stale.display()
            );
            assert!(warned(&server, &files), "no {files:?} in {log}");
            let keys = server.logs_with("key");
            let kv2 = keys.iter().find(|line| line["key_id"] == "kv2").unwrap();
            let check = kv2["key_check_value"].as_str().unwrap();
            let difference = format!(
                "key \"kv2\" has key check value {check} in file {}, which is used here, and ",
                good.display()
            );
            assert!(warned(&server, &difference), "no {difference:?} in {log}");
            assert!(!warned(&server, "key \"kv1\""), "the same bytes: {log}");
        }
    }
}

type Vary = fn(Site, &PathBuf, &PathBuf) -> Site;

#[tokio::test]
async fn the_same_file_under_another_name_is_no_difference() {
    let database = one_under_kv1().await;
    let Files { site, good, .. } = Files::new(&database);
    let link = site.dir().join("link");
    std::os::unix::fs::symlink(&good, &link).unwrap();
    let site = site
        .set("credentials.file.path", path(&good))
        .env(OURS, &link);
    let server = has_good(site, "link").await;
    assert!(!warned(&server, "secrets file"), "{}", server.log_text());
    // A file of nico-api that can't be read causes a warning, and the server starts.
    let Files { site, good, .. } = Files::new(&database);
    let site = site
        .set("credentials.file.path", "\"/nowhere\"")
        .env(OURS, &good);
    let server = has_good(site, "good.json").await;
    let words = "(No such file or directory (os error 2))";
    assert!(warned(&server, words), "{}", server.log_text());
    assert!(
        warned(&server, "so the keys were not compared"),
        "{}",
        server.log_text()
    );
}

#[tokio::test]
async fn our_switch_and_prefix_win_over_those_of_nico_api() {
    let database = one_under_kv1().await;
    let variable = |prefix: &str| format!("{prefix}__MACHINE_IDENTITY__ENCRYPTION_KEYS__KV2");
    let Files { site, stale, .. } = Files::new(&database);
    let site = site
        .set("credentials.file.path", path(&stale))
        .env("NICO_REWRAP__SECRETS_FROM_ENVIRONMENT", "true")
        .env("NICO_REWRAP__SECRETS_ENVIRONMENT_PREFIX", "MINE")
        .env("CARBIDE_CREDENTIALS_ENV_ENABLED", "false")
        .env("CARBIDE_CREDENTIALS_ENV_PREFIX", "THEIRS")
        .env(&variable("MINE"), &text("kv2"))
        .env(&variable("THEIRS"), &text("another"));
    let server = has_good(site, &variable("MINE")).await;
    for words in [
        "[rewrap].secrets_from_environment is true, and nico-api's CARBIDE_CREDENTIALS_ENV_ENABLED is false",
        "[rewrap].secrets_environment_prefix differs from nico-api's",
    ] {
        assert!(
            warned(&server, words),
            "no {words:?} in {}",
            server.log_text()
        );
    }

    // nico-api has another kv2 in its environment.
    let Files { site, good, .. } = Files::new(&database);
    let site = site
        .set("credentials.file.path", path(&good))
        .set("rewrap.secrets_from_environment", "false")
        .env("CARBIDE_CREDENTIALS_ENV_ENABLED", "true")
        .env("CARBIDE_CREDENTIALS_ENV_PREFIX", "THEIRS")
        .env(&variable("THEIRS"), &text("another"));
    let server = has_good(site, "good.json").await;
    let words = format!(
        "in environment variable {}, which nico-api reads",
        variable("THEIRS")
    );
    assert!(
        warned(&server, &words),
        "no {words:?} in {}",
        server.log_text()
    );
}

#[tokio::test]
async fn a_variable_that_is_not_enabled_is_named_where_no_file_is() {
    let database = Database::migrated().await;
    let words = [
        "site.toml: [rewrap].secrets_file: is missing; set it, or [credentials.file].path",
        "CARBIDE_CREDENTIALS_FILE_PATH is set, but not read without CARBIDE_CREDENTIALS_FILE_ENABLED=true",
    ];
    refused(&database, &words, |site| {
        site.unset("rewrap.secrets_file").env(LEGACY, "/nowhere")
    })
    .await;
    // nico-api's default.
    let words = "environment variable CARBIDE_CREDENTIALS_FILE_PATH: secrets.yaml can't be read (";
    refused(&database, &[words], |site| {
        site.unset("rewrap.secrets_file").env(LEGACY_ON, "true")
    })
    .await;
    let words = "environment variable CARBIDE_CREDENTIALS_FILE_ENABLED: must be true or false";
    refused(&database, &[words], |site| site.env(LEGACY_ON, "yes")).await;
}
