//! Settings in environment variables: lists, empty values, misspelled names and values that are not
//! UTF-8.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use crate::configuration::{accepted, refused};
use crate::database::Database;
use crate::pg::PASSWORD;
use crate::site::quote;

#[tokio::test]
async fn a_list_in_the_environment_is_separated_by_commas() {
    let database = Database::migrated().await;
    for (name, setting) in [
        ("NICO_REWRAP__ALLOWED_SERVICES", "[rewrap].allowed_services"),
        (
            "NICO_REWRAP__ADMIN_ISSUERS_IN_ROOT_CA",
            "[rewrap].admin_issuers_in_root_ca",
        ),
        ("NICO_REWRAP__CRL_FILES", "[rewrap].crl_files"),
    ] {
        for value in [
            r#"["a","b"]"#,
            "[a, b]",
            "['a']",
            r#""a","b""#,
            "'a'",
            "a\nb",
            "- a\n- b",
        ] {
            let words = format!(
                "environment variable {name}: {setting}: must be names separated by commas, like \
                 a,b"
            );
            let said = refused(&database, &[&words], |site| site.env(name, value)).await;
            assert_eq!(said.lines().count(), 1, "one problem, one line: {said}");
        }
    }
    let words = "[rewrap].allowed_services: has an entry that is not a service name";
    for value in ["nico-api carbide-api", "spiffe://nico.local/a", "a;b"] {
        refused(&database, &[words], |site| {
            site.env("NICO_REWRAP__ALLOWED_SERVICES", value)
        })
        .await;
        let list = format!("[{}]", quote(value));
        refused(&database, &["site.toml: ", words], |site| {
            site.set("rewrap.allowed_services", list)
        })
        .await;
    }
    accepted(&database, |site| {
        site.env("NICO_REWRAP__ALLOWED_SERVICES", "nico-api, a_b.c/d")
            .env(
                "NICO_REWRAP__ADMIN_ISSUERS_IN_ROOT_CA",
                "Site \"Root\" [CA],b",
            )
    })
    .await;
}

#[tokio::test]
async fn an_empty_or_misspelled_variable_is_an_error() {
    let database = Database::migrated().await;
    let problem = |name: &str, what: &str| format!("environment variable {name}: {what}");
    let empty = |name: &str| problem(name, "is empty: unset it or set it to a value");
    let not_read =
        |name: &str, right: &str| problem(name, &format!("is not read: rename it to {right}"));
    let audit_log = "NICO_REWRAP__AUDIT_LOG";
    let cases = [
        (
            "NICO_REWRAP__CRL_FILES",
            "",
            empty("NICO_REWRAP__CRL_FILES"),
        ),
        (
            "NICO_REWRAP__CRL_FILES",
            " , ",
            empty("NICO_REWRAP__CRL_FILES"),
        ),
        (audit_log, " ", empty(audit_log)),
        (
            "NICO_REWRAP__LOCK_TIMEOUT",
            "",
            empty("NICO_REWRAP__LOCK_TIMEOUT"),
        ),
        (
            "NICO_REWRAP_AUDIT_LOG",
            "/x",
            not_read("NICO_REWRAP_AUDIT_LOG", audit_log),
        ),
        (
            "NICO_REWRAP_AUDIT_LOG",
            "",
            not_read("NICO_REWRAP_AUDIT_LOG", audit_log),
        ),
        (
            "nico_rewrap__audit_log",
            "/x",
            not_read("nico_rewrap__audit_log", audit_log),
        ),
    ];
    for (name, value, words) in &cases {
        let said = refused(&database, &[words], |site| site.env(name, value)).await;
        assert_eq!(said.lines().count(), 1, "one problem, one line: {said}");
    }
    let all = ["NICO_REWRAP__CRL_FILES", audit_log, "NICO_REWRAP__LISTEN"];
    let words = all.map(empty);
    let words = words.each_ref().map(String::as_str);
    let said = refused(&database, &words, |site| {
        all.iter().fold(site, |site, name| site.env(name, ""))
    })
    .await;
    assert_eq!(said.lines().count(), all.len(), "{said}");
    // Kubernetes sets these variables for a Service with the name nico-rewrap.
    accepted(&database, |site| {
        site.env("NICO_REWRAP_SERVICE_HOST", "10.0.0.1")
            .env("NICO_REWRAP_PORT", "tcp://10.0.0.1:1179")
    })
    .await;
}

#[tokio::test]
async fn a_variable_that_is_not_utf_8_is_an_error_if_it_is_read() {
    let database = Database::migrated().await;
    let url = database.url();
    let broken = |text: &str| OsString::from_vec([text.as_bytes(), b"\xff"].concat());
    let switch = "CARBIDE_CREDENTIALS_ENV_ENABLED";
    let key = "CARBIDE_STATIC_CREDENTIAL__MACHINE_IDENTITY__ENCRYPTION_KEYS__kv1";
    for (variable, value, what) in [
        ("NICO_API_DATABASE_URL", url.as_str(), "is not UTF-8"),
        ("CARBIDE_CREDENTIALS_FILE_PATH", "/x", "is not UTF-8"),
        ("NICO_REWRAP__CRL_FILES", "/x", "is not UTF-8"),
        (key, PASSWORD, "key \"kv1\" is not UTF-8"),
    ] {
        let words = format!("environment variable {variable}: {what}");
        let said = refused(&database, &[&words], |site| {
            site.env(switch, "true")
                .env("CARBIDE_CREDENTIALS_FILE_ENABLED", "true")
                .env(variable, &broken(value))
        })
        .await;
        assert_eq!(said.lines().count(), 1, "one problem, one line: {said}");
    }
    let legacy = "CARBIDE_CREDENTIALS_FILE_PATH";
    for unread in [key, legacy, "NICO_API_LISTEN", "LESS"] {
        accepted(&database, |site| site.env(unread, &broken("x"))).await;
    }
}
