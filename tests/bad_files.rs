//! Configured files that are missing, broken or of the wrong kind. The server does not start, and
//! the message names the file but quotes nothing from it. `configuration.rs` checks what all such
//! starts have in common.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::certs;
use crate::configuration::{accepted, refused};
use crate::database::Database;
use crate::pg::PASSWORD;
use crate::pki::Leaf;
use crate::seal::key;
use crate::site::{Site, path, quote};

#[tokio::test]
async fn an_error_about_invalid_toml_names_the_file_and_quotes_nothing() {
    let database = Database::migrated().await;
    let broken = format!("a = 1\n\n database_url = \"postgres://u:{PASSWORD}@h/d\n");
    refused(&database, &["site.toml: is not TOML at line 3"], |site| {
        site.whole_config(&broken)
    })
    .await;
    let no_key = format!("a = 1\n{PASSWORD}\n");
    refused(&database, &["second.toml: is not TOML at line 2"], |site| {
        site.second_config(&no_key)
    })
    .await;
    let twice = "[rewrap]\npage_size = 1\npage_size = 2\n";
    refused(&database, &["second.toml: is not TOML at line 3"], |site| {
        site.second_config(twice)
    })
    .await;
    for empty in ["", "\n", "# nothing\n"] {
        accepted(&database, |site| site.second_config(empty)).await;
    }
}

#[tokio::test]
async fn an_error_about_an_unreadable_config_file_names_it() {
    let dir = crate::process::temp_dir("config");
    let odd = dir.path().join("odd.toml");
    std::fs::write(&odd, b"a = \"\xff\"\n").unwrap();
    for file in [dir.path().join("missing.toml"), dir.path().to_owned(), odd] {
        let file = file.to_str().unwrap().to_owned();
        for subcommand in ["serve", "migrate"] {
            let args = [subcommand.to_owned(), "--config".to_owned(), file.clone()];
            let exit = crate::site::run_binary(&args, &[]).await;
            assert_eq!(exit.code, 78, "{}", exit.stderr);
            assert!(
                exit.stderr.contains(&format!("{file}: can't be read (")),
                "{}",
                exit.stderr
            );
        }
    }
}

/// The format of the file, the keys in it, and the expected message.
const SECRETS: &str = r#"
json | "kv1": "ONE", "kv2": "SHORT" | "kv2" decodes to 29 bytes instead of 32
yaml | kv1: SHORT ; kv2: TWO | "kv1" decodes to 29 bytes instead of 32
json | "kv2": "TWOPASSWORD" | "kv2" is not standard base64
json | "kv1": "UNPADDED", "kv2": "TWO" | "kv1" is not standard base64
json | "kv1": "TWOTWO", "kv2": "*ONE" | "kv2" is not standard base64
yaml | kv1: "PASSWORD" ; kv2: TWO | "kv1" is not standard base64
json | "kv1": "ONE", "kv2": "" | "kv2" decodes to 0 bytes instead of 32
json | "": "ONE", "kv2": "TWO" | key "" can't be used: a key id has 1 to 255 bytes
json | "kv2": "ONE", "kv2": "TWO" | key id "kv2" appears twice: keep only the right entry
yaml | kv2: ONE ; kv2: TWO | is not the expected JSON or YAML at line 5
json | "kv2": {"password": "TWO"} | is not the expected JSON or YAML at line 1
json | "kv2": "TWO", PASSWORD | is not the expected JSON or YAML at line 1
yaml | kv2: [TWO, PASSWORD] | is not the expected JSON or YAML at line 4
json | | has no keys in machine_identity.encryption_keys
yaml | | has no keys in machine_identity.encryption_keys
"#;

/// Puts other secret credentials around the keys.
fn secrets_file(form: &str, keys: &str) -> String {
    let one = BASE64_STANDARD.encode(key("kv1"));
    let keys = keys
        .replace("SHORT", &one[4..])
        .replace("UNPADDED", one.trim_end_matches('='))
        .replace("ONE", &one)
        .replace("TWO", &BASE64_STANDARD.encode(key("kv2")))
        .replace("PASSWORD", PASSWORD);
    match form {
        "json" => format!(
            r#"{{"bmc": {{"password": "{PASSWORD}"}}, "machine_identity": {{"encryption_keys": {{{keys}}}}}}}"#
        ),
        _ => format!(
            "bmc: {{password: {PASSWORD}}}\nmachine_identity:\n  encryption_keys:\n    {}\n",
            keys.replace(" ; ", "\n    ")
        ),
    }
}

#[tokio::test]
async fn an_error_about_a_bad_secrets_file_names_it_and_quotes_nothing() {
    let database = Database::migrated().await;
    for line in SECRETS.trim().lines() {
        let columns: Vec<_> = line.split('|').map(str::trim).collect();
        let words = [
            "site.toml: [rewrap].secrets_file: ",
            "/secrets.any ",
            columns[2],
        ];
        let text = secrets_file(columns[0], columns[1]);
        refused(&database, &words, |site| site.secrets("secrets.any", &text)).await;
    }
    for keyless in ["", "{}", "bmc: 1", "machine_identity:"] {
        let words = [
            "[rewrap].secrets_file: ",
            "has no keys in machine_identity.encryption_keys",
        ];
        refused(&database, &words, |site| site.secrets("s", keyless)).await;
    }
    let missing = [
        "[rewrap].secrets_file: ",
        "/secrets.json ",
        "can't be read (",
        "if the keys are in Vault, Vault Agent writes this file: see docs/install/vault.md",
    ];
    refused(&database, &missing, Site::missing_secrets).await;
    refused(
        &database,
        &["[rewrap].secrets_file: ", "can't be read ("],
        |site| site.set("rewrap.secrets_file", "\"/\""),
    )
    .await;
    let legacy = |site: Site| {
        site.unset("rewrap.secrets_file")
            .env("CARBIDE_CREDENTIALS_FILE_ENABLED", "true")
            .env("CARBIDE_CREDENTIALS_FILE_PATH", "/nowhere/secrets")
    };
    let words =
        "environment variable CARBIDE_CREDENTIALS_FILE_PATH: /nowhere/secrets can't be read (";
    refused(&database, &[words], legacy).await;
    let nico_api = |site: Site| {
        site.unset("rewrap.secrets_file")
            .set("credentials.file.path", "\"/nowhere/secrets\"")
    };
    let words = "site.toml: [credentials.file].path: /nowhere/secrets can't be read (";
    refused(&database, &[words], nico_api).await;

    let good = [
        ("json", "\"kv1\": \" ONE\\n\", \"kv2\": \"\\tTWO\""),
        ("yaml", "kv1: ONE ; \"kv2\": |- ;   TWO"),
    ];
    for (form, keys) in good {
        let text = secrets_file(form, keys);
        accepted(&database, |site| site.secrets("secrets.any", &text)).await;
    }
}

#[tokio::test]
async fn an_error_about_a_bad_certificate_file_names_it() {
    let database = Database::migrated().await;
    let dir = crate::process::temp_dir("tls");
    let file = |name: &str, text: &str| {
        std::fs::write(dir.path().join(name), text).unwrap();
        path(dir.path().join(name))
    };
    let Leaf { cert_chain, key } = certs::server();
    let truncated = std::fs::read_to_string(cert_chain)
        .unwrap()
        .replace("-----END", "");
    let (missing, empty) = (
        path(dir.path().join("missing.pem")),
        file("empty.pem", " \n"),
    );
    let truncated = file("truncated.pem", &truncated);
    let garbage = file(
        "garbage.pem",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    );
    let problems = [
        (
            "identity_pemfile_path",
            &garbage,
            "garbage.pem line 1: this is not an X.509 certificate",
        ),
        (
            "identity_pemfile_path",
            &missing,
            "missing.pem can't be read (",
        ),
        (
            "identity_pemfile_path",
            &empty,
            "empty.pem holds no PEM certificate",
        ),
        (
            "identity_pemfile_path",
            &truncated,
            "truncated.pem line 1: the block that begins here has no END line",
        ),
        (
            "identity_pemfile_path",
            &path(key),
            "holds no PEM certificate",
        ),
        (
            "identity_keyfile_path",
            &missing,
            "missing.pem can't be read (",
        ),
        (
            "identity_keyfile_path",
            &path(cert_chain),
            "holds no PEM private key (PKCS#8, PKCS#1 or SEC1)",
        ),
        (
            "identity_keyfile_path",
            &path(&certs::admin().key),
            "is not the key of the certificate",
        ),
        ("root_cafile_path", &missing, "missing.pem can't be read ("),
        (
            "root_cafile_path",
            &empty,
            "empty.pem holds no PEM certificate",
        ),
        (
            "root_cafile_path",
            &quote("/dev/zero"),
            "/dev/zero can't be read (it is a device, not a regular file)",
        ),
        (
            "root_cafile_path",
            &garbage,
            "garbage.pem line 1: this is not an X.509 certificate",
        ),
        (
            "admin_root_cafile_path",
            &garbage,
            "garbage.pem line 1: this is not an X.509 certificate",
        ),
        (
            "admin_root_cafile_path",
            &path(dir.path()),
            "can't be read (",
        ),
    ];
    for (name, value, words) in problems {
        let spelled = format!("site.toml: [tls].{name}: ");
        refused(&database, &[&spelled, words], |site| {
            site.set(&format!("tls.{name}"), value)
        })
        .await;
    }
    // nico-api's chart names an admin bundle even if the file does not exist.
    for absent in [missing, empty, quote("")] {
        accepted(&database, |site| {
            site.set("tls.admin_root_cafile_path", &absent)
        })
        .await;
    }
    for variant in [
        certs::server_cert().traditional_key(),
        certs::server_cert().rsa(),
        certs::server_cert().rsa().traditional_key(),
    ] {
        let Leaf { cert_chain, key } = variant.signed_by(certs::root_ca());
        accepted(&database, |site| {
            site.set("tls.identity_pemfile_path", path(cert_chain))
                .set("tls.identity_keyfile_path", path(key))
        })
        .await;
    }
}
