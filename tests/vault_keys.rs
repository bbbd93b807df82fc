//! Keys that are read from Vault itself, and the order of the sources. For every rule of
//! precedence there is a case that fails if the order changes.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;

use crate::config_sources::warned;
use crate::configuration::refused;
use crate::database::Database;
use crate::grpcurl::run;
use crate::leaks;
use crate::openbao::{KEYS, Vault};
use crate::rewrap_client::migrate_state;
use crate::seal::key;
use crate::seed::{Org, one_under_kv1};
use crate::server::Server;
use crate::site::{Site, path};

/// The source of the key with this id, as the log names it.
fn source(server: &Server, id: &str) -> Option<String> {
    let keys = server.logs_with("key");
    let line = keys.iter().find(|line| line["key_id"] == id)?;
    Some(line["source"].as_str().unwrap().to_owned())
}

/// Adds a secrets file, as nico-api's, with these ids. Each has the bytes of the key `other`.
fn with_file(site: Site, keys: &[(&str, &str)]) -> Site {
    let keys: serde_json::Map<_, _> = keys
        .iter()
        .map(|(id, other)| ((*id).to_owned(), json!(BASE64_STANDARD.encode(key(other)))))
        .collect();
    let file = site.dir().join("nico-api.json");
    let secrets = json!({"machine_identity": {"encryption_keys": keys}});
    std::fs::write(&file, secrets.to_string()).unwrap();
    site.set("credentials.file.path", path(&file))
}

/// Adds the key to the environment, with the bytes of the key `other`.
fn with_variable(site: Site, id: &str, other: &str) -> Site {
    let name = format!("CARBIDE_STATIC_CREDENTIAL__MACHINE_IDENTITY__ENCRYPTION_KEYS__{id}");
    site.env("CARBIDE_CREDENTIALS_ENV_ENABLED", "true")
        .env(&name, &BASE64_STANDARD.encode(key(other)))
}

#[tokio::test]
async fn keys_in_vault_are_used_without_a_setting_of_ours() {
    let database = one_under_kv1().await;
    let vault = Vault::with_tls().with_key("kv1").with_key("kv2");
    let site = vault.site_with_token(&database);
    // Without the schema, a warning would say so.
    migrate_state(&site);
    let server = site.start().await;
    let report = run(&server, false).await;
    assert_eq!((report.rows_updated, report.rows_failed), (1, 0));
    let log = server.log_text();
    for id in ["kv1", "kv2"] {
        let expected = format!("Vault secrets/{KEYS}/{id}");
        assert_eq!(source(&server, id), Some(expected), "{log}");
    }
    leaks::assert_none(&log);
    assert!(!log.contains(&vault.token()[..8]));
    assert!(!log.contains("WARN"), "{log}");
}

#[tokio::test]
async fn mount_and_namespace_are_those_of_nico_api() {
    let database = one_under_kv1().await;
    let vault = Vault::start("site/kv")
        .with_key("kv2")
        .in_namespace("site-a")
        .with_key("kv1")
        .with_key("kv2");
    let server = vault.site_with_token(&database).start().await;
    assert_eq!(run(&server, false).await.rows_updated, 1);
    let expected = format!("Vault site/kv/{KEYS}/kv1");
    assert_eq!(source(&server, "kv1"), Some(expected));
}

/// nico-api asks its sources for one key id at a time.
#[tokio::test]
async fn each_key_comes_from_the_first_source_that_has_its_id() {
    let database = Database::migrated().await;
    let vault = Vault::start("secrets");
    vault.put_key("kv2", "of-vault");
    vault.put_key("kv3", "of-vault");
    vault.put_key("kv4", "of-vault");
    let site = with_file(
        vault.site_with_token(&database),
        &[("kv1", "of-file"), ("kv2", "of-file"), ("kv3", "of-file")],
    );
    let server = with_variable(site, "kv2", "of-environment").start().await;
    let log = server.log_text();
    for (id, start) in [
        ("kv1", "file "),
        ("kv2", "environment variable "),
        ("kv3", "file "),
        ("kv4", "Vault "),
    ] {
        let source = source(&server, id).unwrap();
        assert!(source.starts_with(start), "{id}: {source}\n{log}");
    }
    let check = |id: &str| {
        let keys = server.logs_with("key");
        let line = keys.iter().find(|line| line["key_id"] == id).unwrap();
        line["key_check_value"].as_str().unwrap().to_owned()
    };
    // Every difference between two sources is a warning with both check values.
    for (id, other_source, other) in [
        ("kv2", "in file ", check("kv3")),
        ("kv2", "in Vault ", check("kv4")),
        ("kv3", "in Vault ", check("kv4")),
    ] {
        let lines = server.logs();
        let found = lines.iter().any(|line| {
            let text = line["message"].as_str().unwrap_or_default();
            text.starts_with(&format!("key {id:?} has key check value {}", check(id)))
                && text.contains(&format!("{other} {other_source}"))
        });
        assert!(found, "{id} {other_source}: {log}");
    }
}

#[tokio::test]
async fn a_file_with_the_target_does_not_replace_vault() {
    let database = Database::migrated().await;
    Org::under("acme", "kv1")
        .insert(&database.client().await)
        .await;
    let vault = Vault::start("secrets").with_key("kv1");
    let site = with_file(vault.site_with_token(&database), &[("kv2", "kv2")]);
    let server = site.start().await;
    assert_eq!(run(&server, false).await.rows_updated, 1);
    assert!(source(&server, "kv2").unwrap().starts_with("file "));
}

/// Our file replaces nico-api's file, which hides a key in Vault from nico-api.
#[tokio::test]
async fn a_key_in_vault_that_nico_api_has_in_its_file_is_compared() {
    let database = Database::migrated().await;
    let vault = Vault::start("secrets").with_key("kv1").with_key("kv2");
    let site = with_file(vault.site_with_token(&database), &[("kv1", "another")])
        .secrets("ours.json", r#"{"machine_identity": {}}"#);
    let server = site.start().await;
    let words = format!("in Vault secrets/{KEYS}/kv1, which is used here, and ");
    assert!(warned(&server, &words), "{}", server.log_text());
}

#[tokio::test]
async fn named_ids_replace_the_list() {
    let database = one_under_kv1().await;
    let vault = Vault::start("secrets")
        .with_key("kv1")
        .with_key("kv2")
        .with_key("kv3");
    vault.write_policy(&format!(
        "path \"secrets/data/{KEYS}/*\" {{ capabilities = [\"read\"] }}"
    ));
    // The target need not be named.
    let site = vault
        .site_with_token(&database)
        .set("rewrap.vault_key_ids", r#"["kv1"]"#);
    let server = site.start().await;
    assert_eq!(run(&server, false).await.rows_updated, 1);
    assert_eq!(server.logs_with("key").len(), 2);

    // An empty list: Vault has no keys and is not asked. Nothing answers at this address.
    let absent = Vault::absent("secrets");
    let site = absent
        .site(&database)
        .env("VAULT_TOKEN", "x")
        .set("rewrap.vault_key_ids", "[]");
    let server = with_file(site, &[("kv1", "kv1"), ("kv2", "kv2")])
        .start()
        .await;
    assert_eq!(server.logs_with("key").len(), 2);
}

#[tokio::test]
async fn ids_with_unusual_characters_are_read() {
    let database = Database::migrated().await;
    let ids = ["a b", "100%", "é?#&", "a+b"];
    let mut vault = Vault::start("secrets");
    for id in ids {
        vault = vault.with_key(id);
    }
    vault.put_key("folder/kv9", "kv9");
    let site = vault.site_with_token(&database).target(ids[2]);
    let server = site.start().await;
    assert_eq!(server.logs_with("key").len(), ids.len());
    let words = format!("the folder secrets/{KEYS}/folder/ was not read");
    assert!(warned(&server, &words), "{}", server.log_text());
}

#[tokio::test]
async fn the_stores_are_those_of_nico_api() {
    let database = Database::migrated().await;
    let vault = Vault::start("secrets").with_key("kv1").with_key("kv2");
    let is_asked = async |change: fn(Site) -> Site| {
        let site = with_file(vault.site_with_token(&database), &[("kv2", "kv2")]);
        let server = change(site).start().await;
        source(&server, "kv1").is_some()
    };
    assert!(is_asked(|site| site).await);
    assert!(is_asked(|site| site.env("CARBIDE_CREDENTIAL_STORE", "vault")).await);
    assert!(!is_asked(|site| site.env("CARBIDE_CREDENTIAL_STORE", "memory")).await);
    // [secrets].backends takes precedence.
    assert!(
        is_asked(|site| site
            .env("CARBIDE_CREDENTIAL_STORE", "memory")
            .set("secrets.backends", r#"["vault"]"#))
        .await
    );
    assert!(
        !is_asked(|site| site
            .env("CARBIDE_CREDENTIAL_STORE", "vault")
            .set("secrets.backends", "[]"))
        .await
    );
    let words = "environment variable CARBIDE_CREDENTIAL_STORE: must be vault or memory";
    refused(&database, &[words], |site| {
        site.env("CARBIDE_CREDENTIAL_STORE", "disk")
    })
    .await;
}

#[tokio::test]
async fn keys_that_only_postgres_may_have_cause_a_warning_or_a_refusal() {
    let database = Database::migrated().await;
    let backends = "secrets.backends";
    // With the target elsewhere, a warning.
    let site = Site::new(&database).set(backends, r#"["postgres"]"#);
    let server = site.start().await;
    let words = "[secrets].backends: nico-api may have keys in its store \"postgres\", which this \
                 program does not read";
    assert!(warned(&server, words), "{}", server.log_text());

    // Without, a refusal with the remedy.
    let words = [
        "[machine_identity].current_encryption_key_id: key id \"kv3\" is not among the keys of ",
        "the key may be in nico-api's store \"postgres\", which this program does not read: write \
         the key into a secrets file too",
    ];
    refused(&database, &words, |site| {
        site.set(backends, r#"["postgres"]"#).target("kv3")
    })
    .await;
    refused(&database, &words[1..], |site| {
        site.set(backends, r#"["postgres"]"#)
            .unset("rewrap.secrets_file")
    })
    .await;
    // The same for Vault without an address: the file of Vault Agent is the alternative.
    let server = Site::new(&database)
        .set(backends, r#"["vault"]"#)
        .start()
        .await;
    let words = "store \"vault\", which is not read here without VAULT_ADDR";
    assert!(warned(&server, words), "{}", server.log_text());
    refused(&database, &[words], |site| {
        site.set(backends, r#"["vault"]"#).target("kv3")
    })
    .await;
}

/// nico-api's first store takes precedence, and this program cannot see it.
#[tokio::test]
async fn a_store_before_vault_is_a_warning_of_its_own() {
    let database = Database::migrated().await;
    let vault = Vault::start("secrets").with_key("kv2");
    let words = "nico-api asks \"postgres\" before Vault";
    for (backends, is_warned) in [
        (r#"["postgres", "vault"]"#, true),
        (r#"["vault", "postgres"]"#, false),
    ] {
        let site = vault
            .site_with_token(&database)
            .set("secrets.backends", backends);
        let server = site.start().await;
        assert_eq!(warned(&server, words), is_warned, "{}", server.log_text());
    }
}

/// `keys generate` does not use the network.
#[tokio::test]
async fn a_new_id_is_not_compared_with_vault_and_says_so() {
    let database = Database::migrated().await;
    let exit = Site::new(&database)
        .unset("rewrap.secrets_file")
        .env("VAULT_ADDR", "https://vault.example:8200")
        .run("keygen")
        .await;
    let words = "the new id was not compared with the ids in nico-api's store \"vault\"";
    assert!(exit.code == 0 && exit.stderr.contains(words), "{exit:?}");
}
