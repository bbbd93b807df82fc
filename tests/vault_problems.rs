//! The server waits for a Vault that does not answer. If waiting cannot solve a problem, the
//! start ends with exit code 78.

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::certs;
use crate::config_sources::warned;
use crate::configuration::refused;
use crate::database::Database;
use crate::grpcurl::{reencrypt, run};
use crate::leaks;
use crate::openbao::{KEYS, Vault};
use crate::pg_host::free_port;
use crate::pki::Cert;
use crate::proxy::Proxy;
use crate::seal::key;
use crate::seed::one_under_kv1;
use crate::server::Server;
use crate::site::Site;

/// A text that must never be in a message.
const MARKER: &str = "c2VjcmV0";

/// Checks that the site does not start and that the log has these words.
async fn ends(site: Site, words: &[&str]) {
    let exit = site.run_to_exit().await;
    let said = exit.stderr.replace("\\\"", "\"");
    assert_eq!(exit.code, 78, "{said}");
    for words in words {
        assert!(said.contains(words), "no {words:?} in {said}");
    }
    leaks::assert_none(&said);
    assert!(!said.contains(MARKER), "{said}");
}

/// Waits until `/readyz` shows these words.
async fn waits(server: &Server, words: &str) {
    loop {
        let (status, body) = server.get("/readyz").await;
        assert_eq!(status, 503, "{body}");
        assert_eq!(server.get("/livez").await.0, 200);
        if body.contains(words) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn is_unavailable(server: &Server) {
    let call = reencrypt(server, certs::admin(), json!({"dryRun": true})).await;
    let error = call.unwrap_err();
    assert_eq!(error.reason().as_deref(), Some("NOT_READY"));
    assert_eq!(error.code, "UNAVAILABLE");
    assert!(
        error.message.contains("Vault at http://127.0.0.1:"),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_server_that_comes_up_late_is_waited_for() {
    let database = one_under_kv1().await;
    let vault = Vault::start("secrets").with_key("kv1").with_key("kv2");
    // Nothing listens here yet.
    let port = free_port();
    let site = vault
        .site_with_token(&database)
        .env("VAULT_ADDR", &format!("http://127.0.0.1:{port}"));
    let server = site.start_unready().await;
    waits(&server, "keys: Vault at http://127.0.0.1:").await;
    waits(&server, "is not reachable (").await;
    is_unavailable(&server).await;
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let target = vault.port;
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut server = TcpStream::connect(("127.0.0.1", target)).await.unwrap();
            tokio::spawn(
                async move { tokio::io::copy_bidirectional(&mut client, &mut server).await },
            );
        }
    });
    server.wait_ready().await;
    assert_eq!(run(&server, false).await.rows_updated, 1);
}

#[tokio::test]
async fn a_server_that_is_silent_is_waited_for() {
    let database = one_under_kv1().await;
    let vault = Vault::start("secrets").with_key("kv1").with_key("kv2");
    let proxy = Proxy::to(vault.port).await;
    proxy.hold_answers();
    let site = vault
        .site_with_token(&database)
        .env("VAULT_ADDR", &format!("http://127.0.0.1:{}", proxy.port));
    let server = site.start_unready().await;
    waits(&server, "does not answer: a request takes longer than 10s").await;
    proxy.cut();
    server.wait_ready().await;
    assert_eq!(run(&server, false).await.rows_updated, 1);
}

#[tokio::test]
async fn a_sealed_server_is_waited_for() {
    let database = one_under_kv1().await;
    let vault = Vault::start("secrets").with_key("kv1").with_key("kv2");
    let site = vault.site_with_token(&database);
    vault.root(&["operator", "seal"]);
    let server = site.start_unready().await;
    waits(&server, "is sealed or in maintenance (HTTP 503): unseal it").await;
    is_unavailable(&server).await;
    let log = vault.log();
    let unseal_key = log.split_once("Unseal Key: ").unwrap().1;
    let unseal_key = unseal_key.split_whitespace().next().unwrap();
    vault.root(&["operator", "unseal", unseal_key]);
    server.wait_ready().await;
    assert_eq!(run(&server, false).await.rows_updated, 1);
    leaks::assert_none(&server.log_text());
}

#[tokio::test]
async fn a_certificate_of_another_ca_is_refused() {
    let database = Database::migrated().await;
    let vault = Vault::with_tls().with_key("kv2");
    let site = vault.site_with_token(&database);
    let site = site.env("VAULT_CACERT", &certs::root_ca().cert);
    let words = [
        "Vault at https://127.0.0.1:",
        "its certificate was refused (",
        "set VAULT_CACERT to the CA of Vault",
    ];
    ends(site, &words).await;
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused() {
    let database = Database::migrated().await;
    let leaf = Cert::new("/CN=vault")
        .san("DNS:vault.example")
        .signed_by(certs::root_ca());
    let (vault, address) = Vault::with_certificate(&leaf);
    let site = vault
        .site_with_token(&database)
        .env("VAULT_ADDR", &address)
        .env("VAULT_CACERT", &certs::root_ca().cert);
    let words = [
        "its certificate was refused (",
        "vault.example",
        "VAULT_ADDR to a name of its certificate",
    ];
    ends(site, &words).await;
}

/// Somebody renews the certificate while the server waits.
#[tokio::test]
async fn an_expired_certificate_is_waited_for() {
    let database = Database::migrated().await;
    let leaf = Cert::new("/CN=vault")
        .san("IP:127.0.0.1")
        .expired()
        .signed_by(certs::root_ca());
    let (vault, address) = Vault::with_certificate(&leaf);
    let site = vault
        .site_with_token(&database)
        .env("VAULT_ADDR", &address)
        .env("VAULT_CACERT", &certs::root_ca().cert);
    let server = site.start_unready().await;
    waits(&server, "its certificate is not valid now (").await;
    let words = "renew it, or set the clock";
    waits(&server, words).await;
}

#[tokio::test]
async fn an_address_with_the_other_scheme_is_refused() {
    let database = Database::migrated().await;
    let vault = Vault::with_tls();
    let plain = vault.address.replace("https://", "http://");
    let site = vault.site_with_token(&database).env("VAULT_ADDR", &plain);
    let words = "the server expects TLS: set VAULT_ADDR to an address that begins with https";
    ends(site, &[words]).await;
    let vault = Vault::start("secrets");
    let tls = vault.address.replace("http://", "https://");
    let site = vault
        .site_with_token(&database)
        .env("VAULT_ADDR", &tls)
        .env("VAULT_CACERT", &certs::root_ca().cert);
    let words = "the server does not answer with TLS: correct the port in VAULT_ADDR";
    ends(site, &[words]).await;
}

/// The token must not go to a server that no setting names.
#[tokio::test]
async fn a_redirect_is_not_followed() {
    let database = Database::migrated().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let answer = "HTTP/1.1 307 Temporary Redirect\r\nlocation: http://127.0.0.1:1/\r\n\
                          content-length: 0\r\n\r\n";
            tokio::spawn(async move {
                let mut request = [0; 1024];
                let received = client.read(&mut request).await?;
                assert!(received > 0);
                client.write_all(answer.as_bytes()).await
            });
        }
    });
    let server = Site::new(&database)
        .env("VAULT_ADDR", &format!("http://{address}"))
        .env("VAULT_TOKEN", "x")
        .start_unready()
        .await;
    waits(
        &server,
        "redirects to another server (HTTP 307): set VAULT_ADDR",
    )
    .await;
}

#[tokio::test]
async fn a_token_that_has_expired_is_told_from_a_policy() {
    let database = Database::migrated().await;
    let vault = Vault::start("secrets").with_key("kv2");
    let token = vault.token();
    vault.root(&["token", "revoke", &token]);
    let site = vault.site(&database).env("VAULT_TOKEN", &token);
    let words = [
        "refuses the token VAULT_TOKEN (HTTP 403): the token is unknown or has expired",
        "renew it",
    ];
    ends(site, &words).await;
}

#[tokio::test]
async fn the_missing_line_of_the_policy_is_named() {
    let database = Database::migrated().await;
    let vault = Vault::start("secrets").with_key("kv2");
    let list = format!("path \"secrets/metadata/{KEYS}\" {{ capabilities = [\"list\"] }}");
    let read = format!("path \"secrets/data/{KEYS}/*\" {{ capabilities = [\"read\"] }}");
    for (present, missing, more) in [
        (&read, &list, "or name the ids in [rewrap].vault_key_ids"),
        (&list, &read, "to the policy of the token VAULT_TOKEN"),
    ] {
        vault.write_policy(present);
        ends(
            vault.site_with_token(&database),
            &["(HTTP 403)", missing, more],
        )
        .await;
        // The two lines are enough: nothing is written.
        vault.write_policy(&format!("{present}\n{missing}"));
        vault.site_with_token(&database).start().await;
    }
}

#[tokio::test]
async fn a_mount_or_a_key_that_does_not_exist_is_named() {
    let database = Database::migrated().await;
    let vault = Vault::start("secrets").with_key("kv2");
    let root = || vault.site(&database).env("VAULT_TOKEN", "root");
    let words = [
        "Vault at http://127.0.0.1:",
        "other/metadata/machine_identity/encryption_keys does not exist (HTTP 404)",
        "VAULT_KV_MOUNT_LOCATION",
    ];
    ends(root().env("VAULT_KV_MOUNT_LOCATION", "/other/"), &words).await;
    let words = [
        "site.toml: [machine_identity].current_encryption_key_id: key id \"kv3\" is not among the \
         keys of Vault at http://127.0.0.1:",
        "(secrets/machine_identity/encryption_keys) (it has \"kv2\"): add the key there, or correct \
         the id",
    ];
    ends(root().target("kv3"), &words).await;
    let site = root().set("rewrap.vault_key_ids", r#"["kv9"]"#);
    ends(
        site,
        &["/kv9 does not exist: remove the id from [rewrap].vault_key_ids"],
    )
    .await;
    // The store after Vault is named too.
    let site = root()
        .target("kv3")
        .set("secrets.backends", r#"["vault", "postgres"]"#);
    ends(site, &["the key may be in nico-api's store \"postgres\""]).await;
    let empty = Vault::start("secrets");
    let words = ["is not among the keys of Vault at ", "(it has no keys)"];
    ends(empty.site_with_token(&database), &words).await;
}

/// nico-api does not have a deleted key either, and a key that was retired must not stop the start.
#[tokio::test]
async fn a_deleted_version_is_no_key() {
    let database = Database::migrated().await;
    let vault = Vault::start("secrets").with_key("kv1").with_key("kv2");
    let delete = |id: &str| {
        vault.root(&["kv", "delete", "-mount=secrets", &format!("{KEYS}/{id}")]);
    };
    delete("kv1");
    let server = vault.site_with_token(&database).start().await;
    assert_eq!(server.logs_with("key").len(), 1);
    let words = "key \"kv1\" was deleted from Vault (secrets/machine_identity/encryption_keys/kv1)";
    assert!(warned(&server, words), "{}", server.log_text());
    delete("kv2");
    let words = ["it was deleted from Vault: restore it with vault kv undelete"];
    ends(vault.site_with_token(&database), &words).await;
}

#[tokio::test]
async fn a_value_of_another_shape_is_named_and_not_quoted() {
    let database = Database::migrated().await;
    let vault = Vault::start("secrets").with_key("kv2");
    let path = format!("{KEYS}/kv1");
    for (value, words) in [
        (
            json!({"password": MARKER}),
            "has another shape than nico-api's: write it as {",
        ),
        (
            json!({"UsernamePassword": {"username": MARKER, "password": 1}}),
            "has another shape than nico-api's",
        ),
        (
            json!({"UsernamePassword": {"username": "x", "password": MARKER}}),
            "decodes to 6 bytes instead of 32",
        ),
    ] {
        vault.put(&path, &json!({ "data": value }));
        let place = format!("secrets/{path} {words}");
        ends(vault.site_with_token(&database), &[&place]).await;
    }
    // An earlier source has the id, so nico-api does not read this value.
    let name = "CARBIDE_STATIC_CREDENTIAL__MACHINE_IDENTITY__ENCRYPTION_KEYS__kv1";
    let server = vault
        .site_with_token(&database)
        .env("CARBIDE_CREDENTIALS_ENV_ENABLED", "true")
        .env(name, &BASE64_STANDARD.encode(key("kv1")))
        .start()
        .await;
    assert!(
        warned(&server, "The key of an earlier source is used"),
        "{}",
        server.log_text()
    );
    assert!(!server.log_text().contains(MARKER));
}

#[tokio::test]
async fn variables_that_cannot_work_are_refused_before_the_start() {
    let database = Database::migrated().await;
    let https = "https://vault.example:8200";
    let ca = &certs::root_ca().cert;
    refused(
        &database,
        &["environment variable VAULT_ADDR: must be an address like https://vault.example:8200"],
        |site| site.env("VAULT_ADDR", "vault:8200"),
    )
    .await;
    refused(
        &database,
        &["environment variable VAULT_CACERT: is missing: set it to the file with the CA of Vault"],
        |site| site.env("VAULT_ADDR", https).env("VAULT_TOKEN", "x"),
    )
    .await;
    refused(
        &database,
        &["the CA of Vault (VAULT_CACERT): /nowhere can't be read ("],
        |site| {
            site.env("VAULT_ADDR", https)
                .env("VAULT_TOKEN", "x")
                .env("VAULT_CACERT", "/nowhere")
        },
    )
    .await;
    refused(
        &database,
        &[
            "there is no way to log in",
            "VAULT_ROLE_ID and VAULT_SECRET_ID, or VAULT_TOKEN",
        ],
        |site| site.env("VAULT_ADDR", https).env("VAULT_CACERT", ca),
    )
    .await;
    refused(
        &database,
        &["environment variable VAULT_SECRET_ID: is missing: an AppRole needs"],
        |site| {
            site.env("VAULT_ADDR", https)
                .env("VAULT_CACERT", ca)
                .env("VAULT_ROLE_ID", "x")
        },
    )
    .await;
    refused(
        &database,
        &["environment variable VAULT_SECRET_ID_FILE: /nowhere can't be read ("],
        |site| {
            site.env("VAULT_ADDR", https)
                .env("VAULT_CACERT", ca)
                .env("VAULT_ROLE_ID", "x")
                .env("VAULT_SECRET_ID_FILE", "/nowhere")
        },
    )
    .await;
}
