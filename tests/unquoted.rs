//! Messages about files, variables and rows that do not parse never quote their content. Each
//! broken text contains a marker, which must not be in any output.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::configuration::refused;
use crate::database::Database;
use crate::grpcurl::run;
use crate::outcome::seeded;
use crate::seed::Org;
use crate::site::Site;

/// Base64 of 12 bytes, so it is a possible piece of a key.
const MARKER: &str = "bWFya2VyLW1hcms5";

/// Names and values of other variables.
type Variables<'a> = &'a [(&'a str, &'a str)];

async fn is_silent(database: &Database, name: &str, change: impl FnOnce(Site) -> Site) -> String {
    let said = refused(database, &[], change).await;
    assert!(!said.contains(MARKER), "{name}: {said}");
    assert!(!said.contains("marker-mark9"), "{name}, decoded: {said}");
    said
}

/// Secrets files that are not JSON or YAML, or have another structure. All are refused with a
/// position.
const STRUCTURE: [&str; 19] = [
    r#"{"machine_identity": {"encryption_keys": {"kv1": "@"}}"#,
    r#"{"machine_identity": {"encryption_keys": {"kv1": "@" "kv2": "@"}}}"#,
    r#"{"machine_identity": {"encryption_keys": {"kv1": ["@"]}}}"#,
    r#"{"machine_identity": {"encryption_keys": {"kv1": {"password": "@"}}}}"#,
    r#"{"machine_identity": {"encryption_keys": ["@"]}}"#,
    r#"{"machine_identity": {"encryption_keys": "@"}}"#,
    r#"{"machine_identity": "@"}"#,
    r#"{"machine_identity": {"encryption_keys": {"kv1": "\x@"}}}"#,
    r#"{"bmc": "@, "machine_identity": {}}"#,
    "\"@",
    "@",
    "machine_identity:\n  encryption_keys:\n    kv1: [@, @\n",
    "machine_identity:\n  encryption_keys:\n    kv1: *@\n",
    "machine_identity:\n  encryption_keys:\n    kv1: !@ x\n    kv2: {@: @}\n",
    "machine_identity:\n  encryption_keys:\n    kv1: @\n   kv2: @\n",
    "machine_identity:\n  encryption_keys:\n    kv1: @\n    kv1: @\n",
    "machine_identity:\n  encryption_keys:\n\tkv1: @\n",
    "machine_identity:\n  encryption_keys:\n    kv1: \"@\n",
    "machine_identity: {encryption_keys: {kv1: @}\nbmc: @\n---\nx: @",
];

/// Secrets files with keys that cannot be used. The message names the id.
const KEYS: [&str; 6] = [
    // JSON with a comma too many is YAML.
    r#"{"machine_identity": {"encryption_keys": {"kv1": "@", }}}"#,
    r#"{"machine_identity": {"encryption_keys": {"kv1": "@"}}}"#,
    r#"{"machine_identity": {"encryption_keys": {"kv1": "@!"}}}"#,
    r#"{"machine_identity": {"encryption_keys": {"kv1": "'@'"}}}"#,
    r#"{"machine_identity": {"encryption_keys": {"kv1": "${@}"}}}"#,
    "machine_identity:\n  encryption_keys:\n    kv1: |\n      @\n      @\n",
];

#[tokio::test]
async fn no_message_quotes_a_secrets_file() {
    let database = Database::migrated().await;
    for text in STRUCTURE {
        let text = text.replace('@', MARKER);
        let said = is_silent(&database, &text, |site| site.secrets("secrets", &text)).await;
        let words = "is not the expected JSON or YAML at line ";
        assert!(
            said.contains(words) && said.contains(" column "),
            "{text}: {said}"
        );
    }
    for text in KEYS {
        let text = text.replace('@', MARKER);
        let said = is_silent(&database, &text, |site| site.secrets("secrets", &text)).await;
        assert!(said.contains("key \"kv1\" "), "{text}: {said}");
    }
    // Not UTF-8.
    let said = is_silent(&database, "bytes", |site| {
        let file = site.dir().join("bytes");
        std::fs::write(&file, [MARKER.as_bytes(), b"\xff"].concat()).unwrap();
        site.set("rewrap.secrets_file", crate::site::path(file))
    })
    .await;
    assert!(said.contains("is not UTF-8"), "{said}");
}

#[tokio::test]
async fn no_message_quotes_a_config_file() {
    let database = Database::migrated().await;
    for text in [
        "x = \"@",
        "x = @",
        "@",
        "[@",
        "@ = 1\n@ = 2",
        "x = {@ = 1",
        "x = [\"@\" \"@\"]",
        "x = \"\\q@\"",
        "[rewrap]\npage_size = 1\n[rewrap]\n@ = 1",
    ] {
        let text = text.replace('@', MARKER);
        let said = is_silent(&database, &text, |site| site.second_config(&text)).await;
        assert!(
            said.contains("second.toml: is not TOML at line ") && said.contains(" column "),
            "{text}: {said}"
        );
    }
}

#[tokio::test]
async fn no_message_quotes_a_variable() {
    let database = Database::migrated().await;
    let id = "CARBIDE_STATIC_CREDENTIAL__MACHINE_IDENTITY__ENCRYPTION_KEYS";
    let (kv1, section) = (format!("{id}__KV1"), id.to_owned());
    let https = [("VAULT_ADDR", "https://vault.example")];
    let cases: [(&str, &str, Variables); 13] = [
        (&kv1, "@", &[("CARBIDE_CREDENTIALS_ENV_ENABLED", "true")]),
        (&kv1, "{@}", &[("CARBIDE_CREDENTIALS_ENV_ENABLED", "true")]),
        (
            &section,
            "{kv1=\"@\"}",
            &[("CARBIDE_CREDENTIALS_ENV_ENABLED", "true")],
        ),
        ("CARBIDE_CREDENTIALS_ENV_ENABLED", "@", &[]),
        ("CARBIDE_CREDENTIALS_FILE_ENABLED", "@", &[]),
        ("CARBIDE_CREDENTIAL_STORE", "@", &[]),
        ("NICO_API_DATABASE_URL", "postgres://u:@@h:port/d", &[]),
        ("NICO_REWRAP__PAGE_SIZE", "@", &[]),
        ("NICO_REWRAP__VAULT_KEY_IDS", "[\"@\"]", &[]),
        (
            "VAULT_ADDR",
            "https://user:@@vault",
            &[("VAULT_TOKEN", "x")],
        ),
        ("VAULT_ADDR", "@", &[("VAULT_TOKEN", "x")]),
        ("VAULT_ROLE_ID", "@", &https),
        ("VAULT_SECRET_ID", "@", &https),
    ];
    for (name, value, others) in cases {
        // The marker has no character that ends a user name.
        let value = value.replacen('@', MARKER, 1);
        is_silent(&database, name, |site| {
            let mut site = site.env(name, &value);
            for (name, value) in others {
                site = site.env(name, value);
            }
            site
        })
        .await;
    }
    // A header cannot have a line break. The message says so only after the connection.
    let vault = crate::openbao::Vault::start("secrets").with_key("kv2");
    let site = vault.site(&database);
    let exit = site
        .env("VAULT_TOKEN", &format!("{MARKER}\n{MARKER}"))
        .run_to_exit()
        .await;
    assert!(exit.code == 78 && !exit.stderr.contains(MARKER), "{exit:?}");
    assert!(
        exit.stderr.contains("the token contains characters"),
        "{exit:?}"
    );
}

/// Envelopes that do not parse: in the report, the log and the audit record.
#[tokio::test]
async fn no_message_quotes_an_envelope() {
    let nonce = "[1,2,3,4,5,6,7,8,9,10,11,12]";
    let ciphertext = "[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17]";
    let envelope = |version: &str, nonce: &str, ciphertext: &str| {
        format!(
            r#"{{"scheme_version": {version}, "key_id": "kv1", "nonce": {nonce}, "ciphertext": {ciphertext}}}"#
        )
    };
    let objects = [
        envelope("\"@\"", nonce, ciphertext),
        envelope("@", nonce, ciphertext),
        envelope("1", "\"@\"", ciphertext),
        envelope("1", nonce, "\"@\""),
        envelope("1", nonce, "[\"@\"]"),
        envelope("1, \"@\": 1", nonce, ciphertext),
        envelope("1", nonce, ciphertext) + "@",
        "\"@\"".to_owned(),
        "@".to_owned(),
    ];
    let encoded = objects
        .iter()
        .map(|object| BASE64_STANDARD.encode(object.replace('@', MARKER)));
    let texts = encoded.chain(["!@", "@=", "@\n@"].map(|text| text.replace('@', MARKER)));
    let orgs: Vec<_> = texts
        .enumerate()
        .map(|(number, text)| Org::new(&format!("org-{number:02}")).text(0, text))
        .collect();
    let (database, _client) = seeded(&orgs).await;
    let server = Site::new(&database)
        .set("rewrap.log_filter", "\"trace\"")
        .start()
        .await;
    let report = run(&server, true).await;
    assert_eq!(report.failures.len(), orgs.len());
    for failure in &report.failures {
        assert!(
            failure.error.starts_with("unreadable envelope: ")
                || failure.error.starts_with("unsupported scheme version"),
            "{failure:?}"
        );
        assert!(!failure.error.contains(MARKER), "{failure:?}");
    }
    assert!(!server.log_text().contains(MARKER));
    assert!(!server.log_text().contains(&BASE64_STANDARD.encode(MARKER)));
}
