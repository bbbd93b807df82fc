//! A configuration error stops the start with exit code 78. The message lists all problems, each
//! with its file, its setting and what to do. The program binds no address and prints no secret.
//!
//! The test occupies both addresses of each site. A program that binds before it has checked
//! everything therefore fails with another exit code.

use std::ffi::OsString;
use std::net::TcpListener;
use std::os::unix::ffi::OsStringExt;

use crate::config_sources::warned;
use crate::database::Database;
use crate::leaks;
use crate::pg::PASSWORD;
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
            assert_eq!(said.lines().count(), 1, "one fault, one line: {said}");
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
    // Faults of what is there are told all the same.
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
            assert_eq!(said.lines().count(), 1, "one fault, one line: {said}");
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
    let fault = |name: &str, what: &str| format!("environment variable {name}: {what}");
    let empty = |name: &str| fault(name, "is empty: unset it or set it to a value");
    let not_read =
        |name: &str, right: &str| fault(name, &format!("is not read: rename it to {right}"));
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
        assert_eq!(said.lines().count(), 1, "one fault, one line: {said}");
    }
    let all = ["NICO_REWRAP__CRL_FILES", audit_log, "NICO_REWRAP__LISTEN"];
    let words = all.map(empty);
    let words = words.each_ref().map(String::as_str);
    let said = refused(&database, &words, |site| {
        all.iter().fold(site, |site, name| site.env(name, ""))
    })
    .await;
    assert_eq!(said.lines().count(), all.len(), "{said}");
    // Kubernetes tells of a Service called nico-rewrap.
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
        assert_eq!(said.lines().count(), 1, "one fault, one line: {said}");
    }
    let legacy = "CARBIDE_CREDENTIALS_FILE_PATH";
    for unread in [key, legacy, "NICO_API_LISTEN", "LESS"] {
        accepted(&database, |site| site.env(unread, &broken("x"))).await;
    }
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
    // Joined key by key over the files, as everything.
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

#[tokio::test]
async fn an_error_about_a_bad_database_url_does_not_quote_it() {
    let database = Database::migrated().await;
    let (p, url) = (PASSWORD, database.url());
    let bad = [
        (
            format!("mysql://u:{p}@h/d"),
            "is not of the form postgres://",
        ),
        (
            format!("host=h password={p}"),
            "is not of the form postgres://",
        ),
        (p.to_owned(), "is not of the form postgres://"),
        (
            format!("postgres://u:{p}@h:{p}/d"),
            "is not of the form postgres://",
        ),
        (
            format!("postgres://u:{p}%ff@h/%ff"),
            "is not of the form postgres://",
        ),
        (format!("postgres://u:{p}@/d"), "names no host"),
        (
            format!("postgres://u:{p}@fd00::5:6432/d"),
            "write the IPv6 address in brackets",
        ),
        (
            format!("{url}?sslmode={p}"),
            "sslmode must be one of disable, allow, prefer, require, verify-ca and verify-full",
        ),
        (
            format!("{url}?sslmode=verify-full"),
            "need sslrootcert=FILE in the URL",
        ),
        (
            format!("{url}?sslmode=verify-ca&sslrootcert="),
            "sslrootcert: ",
        ),
        (
            format!("{url}?sslmode=verify-ca&sslrootcert=/nowhere.pem"),
            "sslrootcert: /nowhere.pem can't be read (",
        ),
        (
            format!("{url}?sslmode=require&sslrootcert=/dev/null"),
            "sslrootcert: /dev/null can't be read (it is a device, not a regular file)",
        ),
        (
            format!("{url}?connect_timeout={p}"),
            "is not of the form postgres://",
        ),
    ];
    for (url, words) in bad {
        refused(&database, &["site.toml: database_url: ", words], |site| {
            site.set("database_url", quote(&url))
        })
        .await;
        let variable = |site: Site| site.env("NICO_API_DATABASE_URL", &url);
        refused(
            &database,
            &[
                "environment variable NICO_API_DATABASE_URL: database_url: ",
                words,
            ],
            variable,
        )
        .await;
    }
    refused(&database, &["database_url: ", "need sslrootcert"], |site| {
        site.set("rewrap.database_sslmode", "\"verify-full\"")
    })
    .await;
    let good = format!("{url}?sslmode=prefer&connect_timeout=3&statement-cache-capacity=7");
    accepted(&database, |site| site.set("database_url", quote(&good))).await;
}

#[tokio::test]
async fn variables_of_libpq_that_would_matter_are_named() {
    let database = Database::migrated().await;
    let not_read = "environment variables PGHOST, PGHOSTADDR are not read here, but nico-api \
                    reads such variables: write their values into database_url";
    refused(
        &database,
        &["site.toml: database_url: names no host", not_read],
        |site| {
            site.set("database_url", quote("postgres:///nico"))
                .env("PGHOST", "localhost")
                .env("PGHOSTADDR", "::1")
                .env("PGPORT", "")
        },
    )
    .await;
    let url = database.url();
    let server = Site::with_url(&url)
        .env("PGPASSWORD", PASSWORD)
        .env("PGOPTIONS", PASSWORD)
        .start()
        .await;
    let words = "environment variable PGOPTIONS is not read here";
    assert!(warned(&server, words), "{}", server.log_text());
    assert!(!server.log_text().contains("PGPASSWORD"), "the URL has one");
    leaks::assert_none(&server.log_text());

    let nowhere = || Site::with_url("postgres://nico@127.0.0.1:1/nico").env("PGPASSWORD", PASSWORD);
    let words = "environment variable PGPASSWORD is not read here";
    let exit = nowhere().run("migrate").await;
    let said = exit.stderr;
    assert!(
        exit.code == 1 && said.contains("refused") && said.contains(words),
        "{said}"
    );
    let server = nowhere().start_unready().await;
    let (_, body) = server.readiness().await;
    assert!(body.contains("refused") && body.contains(words), "{body}");
    leaks::assert_none(&(said + &server.log_text()));
}

/// The server accepts every URL that nico-api's own parser accepts.
#[tokio::test]
async fn urls_are_parsed_as_in_nico_api() {
    let database = Database::migrated().await;
    let url = database.url();
    let end = |text: &str| format!("{url}{text}");
    for url in [
        end("\n"),
        format!(" {url}\r\n"),
        url.replace(PASSWORD, &format!("{PASSWORD}\n")),
        url.replace(":5", "\n:5"),
        end("?options[search_path]=public"),
        end("?options%5Bsearch_path%5D=public&options=-c+work_mem%3D1MB"),
        end("?currentSchema=public&SSLMODE=verify-full&sslmode=allow"),
    ] {
        let server = Site::new(&database)
            .env("NICO_API_DATABASE_URL", &url)
            .start()
            .await;
        leaks::assert_none(&server.log_text());
        if url.contains("SSLMODE") {
            let words = "database_url: parameter \"SSLMODE\" is unknown and ignored; names \
                         are case-sensitive, did you mean \"sslmode\"?";
            assert!(warned(&server, words), "{}", server.log_text());
        }
    }
}

#[tokio::test]
async fn a_password_in_the_wrong_part_of_the_url_is_not_logged() {
    // nico-api's own parser takes everything up to the last @ for the password.
    let url = Database::migrated()
        .await
        .url()
        .replace(PASSWORD, &format!("p@{PASSWORD}@x"));
    let server = Site::with_url(&url).start().await;
    leaks::assert_none(&server.log_text());
}
