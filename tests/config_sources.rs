//! The sources of settings: nico-api's own files, several files, environment variables.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;

use crate::certs;
use crate::configuration::refused;
use crate::database::Database;
use crate::grpcurl::{reencrypt, run};
use crate::leaks;
use crate::pki::Leaf;
use crate::seal::key;
use crate::seed::{self, Org};
use crate::server::Server;
use crate::site::{Site, path};

const OUR_SECTION: &str = r#"
[rewrap]
listen = "127.0.0.1:0"
metrics_endpoint = "127.0.0.1:0"
log_format = "json"
"#;

const POLICY: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/nico_api/casbin-policy.csv"
);

/// nico-api's file with the paths and addresses of this site.
fn nico_api_site(database: &Database) -> String {
    let leaf = certs::server();
    let mut text = include_str!("nico_api/site.toml").replace("@DATABASE_URL@", &database.url());
    for (name, file) in [
        ("\"@CERTIFICATE@\"", &leaf.cert_chain),
        ("\"@KEY@\"", &leaf.key),
        ("\"@ROOT_CA@\"", &certs::root_ca().cert),
        ("\"@ADMIN_ROOT_CA@\"", &certs::admin_root().cert),
        ("\"@CASBIN_POLICY@\"", &POLICY.into()),
    ] {
        text = text.replace(name, &path(file));
    }
    text
}

fn with_keys(secrets: &str) -> String {
    let key = |id| BASE64_STANDARD.encode(key(id));
    secrets
        .replace("@KV1@", &key("kv1"))
        .replace("@KV2@", &key("kv2"))
}

#[tokio::test]
async fn the_files_of_nico_api_are_accepted_unchanged() {
    let database = Database::migrated().await;
    seed::insert(
        &database.client().await,
        &[Org::under("acme", "kv1"), Org::under("b", "kv2")],
    )
    .await;
    for (name, secrets) in [
        ("secrets.json", include_str!("nico_api/secrets.json")),
        // The content of the file counts, not its name.
        ("secrets.json", include_str!("nico_api/secrets.yaml")),
        ("secrets", include_str!("nico_api/secrets.yaml")),
    ] {
        let site = Site::new(&database).secrets(name, &with_keys(secrets));
        let secrets_file = site.dir().join(name);
        let server = site
            .whole_config(&nico_api_site(&database))
            .second_config(OUR_SECTION)
            .env("CARBIDE_CREDENTIALS_FILE_ENABLED", "true")
            .env(
                "CARBIDE_CREDENTIALS_FILE_PATH",
                secrets_file.to_str().unwrap(),
            )
            .start()
            .await;
        let report = run(&server, true).await;
        assert_eq!(
            (
                report.rows_examined,
                report.rows_updated,
                report.rows_failed
            ),
            (2, 1, 0)
        );
        assert_eq!(report.current_encryption_key_id, "kv2");
        leaks::assert_none(&server.log_text());
        assert!(!server.log_text().contains("unrelated"));
    }
}

#[tokio::test]
async fn later_files_override_earlier_ones_key_by_key() {
    let database = Database::migrated().await;
    let later = r#"
        [rewrap]
        listen = "127.0.0.1:0"
        allowed_services = ["later"]
        [machine_identity]
        current_encryption_key_id = "kv1"
        [auth.trust]
        additional_issuer_cns = ["Nobody"]
    "#;
    let server = Site::new(&database)
        .set("rewrap.listen", "\"127.0.0.2:0\"")
        .set("rewrap.metrics_endpoint", "\"127.0.0.4:0\"")
        .set("rewrap.allowed_services", r#"["earlier"]"#)
        .second_config(later)
        .start()
        .await;
    assert!(
        server.grpc.starts_with("127.0.0.1:"),
        "set in both: {}",
        server.grpc
    );
    assert!(
        server.http.starts_with("127.0.0.4:"),
        "set in the earlier only: {}",
        server.http
    );
    let call = async |leaf: &Leaf| {
        reencrypt(&server, leaf, json!({"dryRun": true}))
            .await
            .map_err(|e| e.code)
    };
    let report = call(&certs::service("later")).await.unwrap();
    assert_eq!(
        report.current_encryption_key_id, "kv1",
        "beside [machine_identity].enabled of the earlier file"
    );
    assert_eq!(
        call(&certs::service("earlier")).await.unwrap_err(),
        "PERMISSION_DENIED",
        "lists are not joined"
    );
    assert_eq!(
        call(certs::admin()).await.unwrap_err(),
        "UNAUTHENTICATED",
        "issuer CNs are those of the later file"
    );
}

#[tokio::test]
async fn the_environment_overrides_the_files() {
    let database = Database::migrated().await;
    let server = Site::new(&database)
        .set("rewrap.listen", "\"127.0.0.2:0\"")
        .second_config("[rewrap]\nmetrics_endpoint = \"127.0.0.3:0\"\nlock_timeout = \"bad\"")
        .set("rewrap.allowed_services", r#"["in-the-file"]"#)
        .env("NICO_REWRAP__LISTEN", "127.0.0.1:0")
        .env("NICO_REWRAP__METRICS_ENDPOINT", "127.0.0.4:0")
        .env("NICO_REWRAP__LOCK_TIMEOUT", "1234ms")
        .env("NICO_REWRAP__PAGE_SIZE", "77")
        .env("NICO_REWRAP__ALLOWED_SERVICES", "one, two ,")
        .start()
        .await;
    assert!(server.grpc.starts_with("127.0.0.1:"), "{}", server.grpc);
    assert!(server.http.starts_with("127.0.0.4:"), "{}", server.http);
    let config = server.wait_log("starting").await["config"].to_string();
    assert!(
        config.contains("page_size: 77, lock_timeout: 1.234s"),
        "{config}"
    );
    for (name, answer) in [
        ("one", "OK"),
        ("two", "OK"),
        ("in-the-file", "PERMISSION_DENIED"),
        ("nico-api", "PERMISSION_DENIED"),
    ] {
        let called = reencrypt(&server, &certs::service(name), json!({"dryRun": true})).await;
        assert_eq!(
            called.map_or_else(|e| e.code, |_| "OK".to_owned()),
            answer,
            "{name}"
        );
    }
}

#[tokio::test]
async fn the_database_url_can_come_from_either_environment_variable() {
    let [new, old, file] = [
        Database::migrated().await,
        Database::migrated().await,
        Database::migrated().await,
    ];
    for (database, orgs) in [(&new, 3), (&old, 2), (&file, 1)] {
        let orgs: Vec<_> = (0..orgs).map(|n| Org::new(&format!("org-{n}"))).collect();
        seed::insert(&database.client().await, &orgs).await;
    }
    let site = || Site::new(&file);
    let examined = async |site: Site| run(&site.start().await, true).await.rows_examined;
    assert_eq!(examined(site()).await, 1);
    assert_eq!(
        examined(site().env("CARBIDE_API_DATABASE_URL", &old.url())).await,
        2
    );
    assert_eq!(
        examined(site().env("NICO_API_DATABASE_URL", &new.url())).await,
        3
    );
    let both = site()
        .env("NICO_API_DATABASE_URL", &new.url())
        .env("CARBIDE_API_DATABASE_URL", &format!("{}\n", new.url()));
    assert_eq!(examined(both.unset("database_url")).await, 3);
    let words = "environment variable CARBIDE_API_DATABASE_URL: names another database than \
                 NICO_API_DATABASE_URL: unset one of the two";
    refused(&file, &[words], |site| {
        site.env("NICO_API_DATABASE_URL", &new.url())
            .env("CARBIDE_API_DATABASE_URL", &old.url())
    })
    .await;
    let empty = site()
        .env("NICO_API_DATABASE_URL", "")
        .env("CARBIDE_API_DATABASE_URL", &old.url());
    assert_eq!(examined(empty).await, 2, "an empty variable is none");
}

#[tokio::test]
async fn a_variable_that_only_nico_api_reads_causes_a_warning() {
    let database = Database::migrated().await;
    let foreign = [
        "CARBIDE_API_TLS",
        "CARBIDE_API_AUTH",
        "NICO_API_MACHINE_IDENTITY",
        "NICO_API_SECRETS",
        "CARBIDE_API_CREDENTIALS",
        "carbide_api_tls",
    ];
    let unrelated = [
        "CARBIDE_API_PORT",
        "NICO_API_SERVICE_HOST",
        "CARBIDE_API_LISTEN",
        "CARBIDE_WEB_AUTH_TYPE",
        "TLS",
    ];
    let mut site = Site::new(&database);
    for name in foreign.iter().chain(&unrelated) {
        site = site.env(name, r#"{identity_pemfile_path="/elsewhere"}"#);
    }
    let server = site.start().await;
    for name in foreign {
        assert!(
            warned(
                &server,
                &format!("environment variable {name} is not read here")
            ),
            "{name}: {}",
            server.log_text()
        );
    }
    for name in unrelated {
        assert!(
            !warned(&server, &format!("environment variable {name} ")),
            "{name}"
        );
    }
    assert!(
        !server.log_text().contains("/elsewhere"),
        "it is not read, and nobody knows what is in it"
    );
}

/// Whether the server logged a warning with this text.
pub(crate) fn warned(server: &Server, words: &str) -> bool {
    let is_it = |line: &serde_json::Value| {
        line["level"] == "WARN"
            && line["message"]
                .as_str()
                .is_some_and(|text| text.contains(words))
    };
    server.logs().iter().any(is_it)
}
