//! A configuration error stops the start with exit code 78. The message lists all problems, each
//! with its file, its setting and what to do. The program binds no address and prints no secret.
//!
//! The test occupies both addresses of each site. A program that binds before it has checked
//! everything therefore fails with another exit code.

use std::net::TcpListener;

use crate::database::Database;
use crate::leaks;
use crate::seal::keys;
use crate::site::{Exit, Site, quote};

const CANNOT_LISTEN: &str = "can't listen on";

/// Runs a valid site with the changes of `change`, while the test occupies both addresses.
async fn run(database: &Database, change: impl FnOnce(Site) -> Site) -> Exit {
    let taken = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let [listen, metrics] = taken
        .each_ref()
        .map(|listener| quote(&listener.local_addr().unwrap().to_string()));
    let site = Site::new(database)
        .set("rewrap.listen", listen)
        .set("rewrap.metrics_endpoint", metrics);
    let exit = change(site).run_to_exit().await;
    leaks::assert_none(&exit.stdout);
    leaks::assert_none(&exit.stderr);
    exit
}

/// Runs a site that must not start. Returns its messages, which contain each of `words`.
pub(crate) async fn refused(
    database: &Database,
    words: &[&str],
    change: impl FnOnce(Site) -> Site,
) -> String {
    let Exit { code, stderr, .. } = run(database, change).await;
    assert_eq!(code, 78, "{words:?}: {stderr}");
    assert!(!stderr.contains(CANNOT_LISTEN), "{words:?}: {stderr}");
    assert!(!stderr.contains("panicked"), "{words:?}: {stderr}");
    for word in words {
        assert!(stderr.contains(word), "no {word:?} in: {stderr}");
    }
    stderr
}

/// Runs a site that must have no problem other than the occupied addresses.
pub(crate) async fn accepted(database: &Database, change: impl FnOnce(Site) -> Site) {
    let Exit { code, stderr, .. } = run(database, change).await;
    assert!(code == 1 && stderr.contains(CANNOT_LISTEN), "{stderr}");
}

/// Setting, good value, bad values (separated by ` ; `), and a part of the message for a bad value.
const SETTINGS: &str = r#"
machine_identity.enabled | true | "yes" ; 1 | true or false
machine_identity.algorithm | "ES256" | "RS256" ; "es256" ; 5 |
machine_identity.current_encryption_key_id | "kv1" | "" ; "  " | set it to the id of the key
machine_identity.current_encryption_key_id | "kv1" | 1 | string in quotes
machine_identity.current_encryption_key_id | "kv1" | "kv3" ; "KV1" | (it has "kv1", "kv2")
auth.trust.spiffe_trust_domain | "spiffe://nico.local" | "" ; "spiffe://" ; "NICO.local" ; "a b" | like "nico.local"
auth.trust.spiffe_service_base_paths | [] | "/nico-system/sa/" | list of strings
auth.trust.additional_issuer_cns | [] | "A CA" ; [1] | list of strings
auth.permissive_mode | false | "no" ; 1 | true or false
auth.casbin_policy_file | "" | "/nowhere.csv" ; "." | can't be read (
auth.cli_certs.required_equals | { IssuerCN = "A", SubjectOU = "b" } | {} | every client certificate would be an administrator's
auth.cli_certs.required_equals | { SubjectO = "c" } | "IssuerCN" ; ["IssuerCN"] | table in braces
auth.cli_certs.group_from | "SubjectOU" | "IssuerOU" ; "IssuerCN" ; "subjectOU" ; "OU" | use one of SubjectO, SubjectOU, SubjectCN
auth.cli_certs.username_from | "SubjectCN" | "IssuerCN" ; "Subject" | must be a component of the subject
auth.cli_certs.username | "operator" | 1 | string in quotes
rewrap.admin_issuers_in_root_ca | ["A CA"] | "A CA" ; [""] ; [1] |
rewrap.allowed_services | ["a", "b"] | "a" ; [true] | list of strings
rewrap.lock_timeout | "1500ms" | 2 ; "2" ; "2 parsecs" ; "0s" ; "2h" ; "-1s" | "2s"
rewrap.census_interval | "1s" | 600 ; "500ms" ; "1ns" ; "25h" | must be "0s", or a duration with a unit, from "1s" to "1d"
rewrap.census_interval | "0s" | "-1s" | from "1s" to "1d"
rewrap.statement_timeout | "1m" | "" | "2s"
rewrap.connect_timeout | "5s" | true | "2s"
rewrap.shutdown_grace | "1m 30s" | "soon" | "2s"
rewrap.database_pool_size | 2 | 0 ; -1 ; 257 ; 1.5 ; "many" | from 1 to 256
rewrap.page_size | 10000 | 0 ; 10001 ; 4294967297 | from 1 to 10000
rewrap.max_attempts | 1 | 0 | from 1 to 100
rewrap.crl_files | [] | "a.pem" ; [1] | list of strings
rewrap.crl_files | [] | [" "] | blank entry
rewrap.crl_policy | "allow_unknown" | "none" ; "" | one of "require_valid", "allow_expired"
rewrap.max_concurrent_handshakes | 1 | 0 ; 65537 | from 1 to 65536
rewrap.request_read_timeout | "1s" | 10 | "2s"
rewrap.tls_reload_interval | "1m" | "0s" | "2s"
rewrap.audit_required | false | "yes" | true or false
rewrap.listen | "127.0.0.1:0" | "localhost:1179" ; "1179" ; 1179 ; "[::]" ; "" |
rewrap.metrics_endpoint | "127.0.0.1:0" | "127.0.0.1" | "127.0.0.1:1179"
rewrap.log_filter | "warn,nico_rewrap=info" | "nico_rewrap=noisy" | is not a valid filter
rewrap.log_format | "json" | "xml" ; "JSON" | one of "logfmt", "json"
rewrap.pool_mode | "transaction" | "statement" | one of "session", "transaction"
rewrap.database_sslmode | "disable" | "none" ; "" | verify-full
"#;

#[tokio::test]
async fn an_error_about_a_bad_value_names_setting_and_file() {
    let database = Database::migrated().await;
    let mut all_good = Site::new(&database);
    for line in SETTINGS.trim().lines() {
        let columns: Vec<_> = line.split('|').map(str::trim).collect();
        let [setting, good, bad, advice] = columns[..] else {
            panic!("{line}")
        };
        let (section, name) = setting.rsplit_once('.').unwrap();
        let spelled = format!("[{section}].{name}: ");
        for value in bad.split(" ; ") {
            let words = ["site.toml: ", &spelled, advice];
            let said = refused(&database, &words, |site| {
                let beside = match setting.starts_with("auth.cli_certs.") {
                    true => site.set("auth.cli_certs.required_equals", "{ IssuerO = \"A\" }"),
                    false => site,
                };
                beside.set(setting, value)
            })
            .await;
            assert_eq!(said.lines().count(), 1, "one problem, one line: {said}");
        }
        all_good = all_good.set(setting, good);
    }
    all_good.start().await;
}

#[tokio::test]
async fn an_error_about_a_missing_setting_names_it() {
    let database = Database::migrated().await;
    for setting in [
        "database_url",
        "machine_identity.current_encryption_key_id",
        "tls.identity_pemfile_path",
        "tls.identity_keyfile_path",
        "tls.root_cafile_path",
        "auth.trust.spiffe_trust_domain",
        "rewrap.secrets_file",
    ] {
        let name = setting.rsplit('.').next().unwrap();
        refused(&database, &["site.toml: ", name, "is missing; "], |site| {
            site.unset(setting)
        })
        .await;
    }
    for optional in [
        "machine_identity.algorithm",
        "tls.admin_root_cafile_path",
        "auth.permissive_mode",
    ] {
        accepted(&database, |site| site.unset(optional)).await;
    }
}

#[tokio::test]
async fn an_old_name_of_a_setting_is_an_error_that_gives_the_new_name() {
    let database = Database::migrated().await;
    for (old, new) in [
        ("back_off", "adaptive_rate"),
        ("commit", "durability"),
        ("max_connections", "database_pool_size"),
        ("max_handshakes", "max_concurrent_handshakes"),
        ("pool_wait", "pool_acquire_timeout"),
        ("pooler", "pool_mode"),
        ("request_timeout", "request_read_timeout"),
    ] {
        let words = format!("this setting was renamed; write {new}");
        let in_file = format!("site.toml: [rewrap].{old}: {words}");
        refused(&database, &[&in_file], |site| {
            site.set(&format!("rewrap.{old}"), "1")
        })
        .await;
        let variable = format!("NICO_REWRAP__{}", old.to_uppercase());
        let in_variable = format!("environment variable {variable}: [rewrap].{old}: {words}");
        refused(&database, &[&in_variable], |site| site.env(&variable, "1")).await;
    }
}

#[tokio::test]
async fn an_unknown_name_in_our_section_is_an_error() {
    let database = Database::migrated().await;
    let typo = |site: Site| site.set("rewrap.lock_timout", "\"2s\"");
    refused(
        &database,
        &[
            "site.toml: [rewrap].lock_timout: no such setting",
            "lock_timeout",
        ],
        typo,
    )
    .await;
    let nested = |site: Site| site.set("rewrap.limits.page_size", "5");
    refused(&database, &["[rewrap].limits: no such setting"], nested).await;
    let variable = |site: Site| site.env("NICO_REWRAP__PAGESIZE", "5");
    refused(
        &database,
        &[
            "environment variable NICO_REWRAP__PAGESIZE: ",
            "no such setting",
        ],
        variable,
    )
    .await;
    let nameless = |site: Site| site.env("NICO_REWRAP__", "5");
    refused(
        &database,
        &["environment variable NICO_REWRAP__: "],
        nameless,
    )
    .await;
    let value = |site: Site| site.env("NICO_REWRAP__PAGE_SIZE", "5 rows");
    refused(
        &database,
        &[
            "environment variable NICO_REWRAP__PAGE_SIZE: ",
            "from 1 to 10000",
        ],
        value,
    )
    .await;
    refused(&database, &["rewrap: must be a section"], |site| {
        let text = site.toml().replace("\n[rewrap]", "\n[not_rewrap]");
        site.whole_config(&format!("rewrap = 5\n{text}"))
    })
    .await;
    accepted(&database, |site| site.env("NICO_REWRAP__PAGE_SIZE", "5")).await;
}

#[tokio::test]
async fn settings_are_not_called_missing_if_a_file_cannot_be_read() {
    let database = Database::migrated().await;
    for (broken, what) in [
        ("= 1", "second.toml: is not TOML at line 1"),
        ("a = 1\nb", "at line 2"),
    ] {
        let said = refused(&database, &[what], |site| {
            site.second_config(broken)
                .unset("machine_identity.current_encryption_key_id")
                .unset("database_url")
                .unset("tls.root_cafile_path")
                .unset("auth.trust.spiffe_trust_domain")
                .set("auth.cli_certs.username", "\"operator\"")
                .set("rewrap.audit_required", "true")
                .unset("rewrap.secrets_file")
        })
        .await;
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    // The problems of the other values are still reported.
    let words = ["second.toml: is not TOML", "[rewrap].page_size: must be"];
    let said = refused(&database, &words, |site| {
        site.second_config("= 1").set("rewrap.page_size", "0")
    })
    .await;
    assert_eq!(said.lines().count(), 2, "{said}");
}

#[tokio::test]
async fn a_section_of_another_type_is_an_error() {
    let database = Database::migrated().await;
    for section in ["machine_identity", "tls", "auth", "rewrap"] {
        let list = format!("{section}: must be one section, [{section}], not a list of sections");
        let said = refused(&database, &["site.toml: ", &list], |site| {
            let text = site
                .toml()
                .replace(&format!("[{section}]"), &format!("[[{section}]]"));
            let text = text.replace(&format!("[{section}."), "[elsewhere.");
            site.whole_config(&text)
        })
        .await;
        assert!(!said.contains("is missing"), "{said}");
        for value in ["true", "\"x\"", "5"] {
            let words = format!("{section}: must be a section, [{section}], not a value");
            let said = refused(&database, &["site.toml: ", &words], |site| {
                let text = site.toml().replace(&format!("[{section}"), "[elsewhere");
                site.whole_config(&format!("{section} = {value}\n{text}"))
            })
            .await;
            assert!(!said.contains("is missing"), "{said}");
        }
    }
    let words = "[auth].trust: must be a section, [auth.trust], not a value";
    refused(&database, &[words], |site| {
        let text = site.toml().replace("[auth.trust]", "[elsewhere.trust]");
        site.whole_config(&text.replace("[auth]", "[auth]\ntrust = \"nico.local\""))
    })
    .await;
}

#[tokio::test]
async fn our_section_in_a_file_that_denies_unknown_fields_is_an_error() {
    let database = Database::migrated().await;
    let words = "site.toml: [rewrap]: is in a file with deny_unknown_fields = true, with which nico-api \
                 does not start; move the section to another file";
    let denies = |site: Site, value: &str| {
        let text = site.toml();
        site.whole_config(&format!("deny_unknown_fields = {value}\n{text}"))
    };
    let said = refused(&database, &[words], |site| denies(site, "true")).await;
    assert_eq!(said.lines().count(), 1, "{said}");
    accepted(&database, |site| denies(site, "false")).await;
    accepted(&database, |site| {
        let text = format!("deny_unknown_fields = true\n{}", site.toml());
        let (theirs, ours) = text.split_once("[rewrap]").unwrap();
        let (ours, more) = ours.split_once("\n[").unwrap();
        site.whole_config(&format!("{theirs}\n[{more}"))
            .second_config(&format!("[rewrap]{ours}"))
    })
    .await;
}

#[tokio::test]
async fn cli_certs_with_an_unknown_or_empty_criterion_is_an_error() {
    let database = Database::migrated().await;
    let criteria = "auth.cli_certs.required_equals";
    for (key, value, words) in [
        (
            "auth.cli_certs.username",
            "\"operator\"",
            "[auth.cli_certs].required_equals: is missing or empty",
        ),
        (
            "auth.cli_certs.require_equals",
            "{ IssuerO = \"A\" }",
            "[auth.cli_certs].require_equals: no such setting; use one of group_from, required_equals",
        ),
        (
            criteria,
            "{ IssuerO = \"A\", issuerCN = \"B\" }",
            "[auth.cli_certs.required_equals].issuerCN: no such component; use one of IssuerO, IssuerOU, IssuerCN",
        ),
        (
            criteria,
            "{ IssuerO = \"A\", SubjectL = \"B\" }",
            "[auth.cli_certs.required_equals].SubjectL: no such component",
        ),
        (
            criteria,
            "{ IssuerO = \"\" }",
            "[auth.cli_certs.required_equals].IssuerO: is missing; set it to the value",
        ),
        (
            criteria,
            "{ IssuerO = [\"A\"] }",
            "[auth.cli_certs.required_equals].IssuerO: must be a string in quotes",
        ),
        ("auth.cli_certs", "5", "[auth].cli_certs: must be a section"),
    ] {
        refused(&database, &["site.toml: ", words], |site| {
            site.set(key, value)
        })
        .await;
    }
    let good = "{ IssuerO = \"A\", \"SubjectCN\" = \"B\" }";
    accepted(&database, |site| site.set(criteria, good)).await;
    // Files are merged key by key here, too.
    let split = |site: Site| {
        site.set("auth.cli_certs.username", "\"operator\"")
            .second_config("[auth.cli_certs.required_equals]\nIssuerO = \"A\"")
    };
    accepted(&database, split).await;
}

#[tokio::test]
async fn all_problems_are_reported_at_once() {
    let database = Database::migrated().await;
    let words = [
        "environment variable NICO_REWRAP__PAGE_SIZE: [rewrap].page_size: must be a number",
        "[rewrap].lock_timout: no such setting",
        "[rewrap].lock_timeout: must be a duration",
        "[rewrap].listen: must be an address",
        "[machine_identity].algorithm: must be \"ES256\"",
        "[machine_identity].current_encryption_key_id: is missing",
        "[rewrap].secrets_file: ",
        "database_url: sslmode must be one of",
        "[tls].identity_pemfile_path: ",
        "[tls].identity_keyfile_path: ",
        "[tls].root_cafile_path: is missing",
        "[auth.trust].spiffe_trust_domain: is missing",
    ];
    let said = refused(&database, &words, |site| {
        site.env("NICO_REWRAP__PAGE_SIZE", "0")
            .set("rewrap.lock_timout", "\"2s\"")
            .set("rewrap.lock_timeout", "2")
            .set("rewrap.listen", "\"here\"")
            .set("machine_identity.algorithm", "\"none\"")
            .unset("machine_identity.current_encryption_key_id")
            .secrets("secrets.json", "{}")
            .set(
                "database_url",
                quote(&format!("{}?sslmode=no", database.url())),
            )
            .set("tls.identity_pemfile_path", "\"/nowhere.pem\"")
            .set("tls.identity_keyfile_path", "\"/nowhere.key\"")
            .unset("tls.root_cafile_path")
            .unset("auth.trust.spiffe_trust_domain")
    })
    .await;
    assert_eq!(said.lines().count(), words.len(), "{said}");
    accepted(&database, |site| site.keys(&keys(&["kv1", "kv2"]))).await;
}
