//! What a server reveals about itself in logs, metrics and core files: enough to compare two
//! instances, and nothing secret.

use std::collections::BTreeSet;
use std::net::TcpListener;

use ring::digest::{Context, SHA256};
use serde_json::{Value, json};

use crate::certs::{self, ADMIN_ISSUER_CN};
use crate::database::Database;
use crate::grpcurl::{reencrypt, run};
use crate::leaks;
use crate::seal::{Key, key, keys};
use crate::seed::{self, Org};
use crate::site::{Exit, Site, quote, run_binary};

/// The first eight hex digits of SHA-256 over the label and the key, as documented in
/// docs/reference/configuration.md.
fn key_check_value(key: &Key) -> String {
    let mut hash = Context::new(&SHA256);
    hash.update(b"nico-rewrap key check value v1\0");
    hash.update(key);
    hash.finish().as_ref()[..4]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

async fn version() -> String {
    let exit = run_binary(&["--version".to_owned()], &[]).await;
    exit.stdout
        .trim()
        .strip_prefix("nico-rewrap ")
        .unwrap()
        .to_owned()
}

/// Whether the kernel lists the instructions: `flags` on x86-64, `Features` on aarch64.
fn kernel_sees_aes_instructions() -> bool {
    let cpu_info = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let words: BTreeSet<_> = cpu_info.split_whitespace().collect();
    let needed: &[_] = match std::env::consts::ARCH {
        "x86_64" => &["aes", "pclmulqdq", "avx"],
        "aarch64" => &["aes", "pmull"],
        _ => return false,
    };
    needed.iter().all(|flag| words.contains(flag))
}

#[tokio::test]
async fn the_start_log_tells_version_configuration_and_key_check_values() {
    let database = Database::migrated().await;
    let site = Site::new(&database)
        .unset("rewrap.metrics_endpoint")
        .env("NICO_REWRAP__METRICS_ENDPOINT", "127.0.0.1:0");
    let server = site.start().await;
    let start = server.wait_log("starting").await;
    assert_eq!(start["version"], version().await);
    assert_eq!(start["aes_hardware"], kernel_sees_aes_instructions());
    let port = database
        .url()
        .rsplit_once('/')
        .unwrap()
        .0
        .rsplit_once(':')
        .unwrap()
        .1
        .to_owned();
    let (leaf, root, admin_root) = (certs::server(), certs::root_ca(), certs::admin_root());
    let expected = format!(
        "Config {{ machine_identity: Some(MachineIdentity {{ \
         keys: Complete(Keyring {{ keks: {{KeyId(\"kv1\"): Kek(kv1 {}), KeyId(\"kv2\"): Kek(kv2 {})}}, target: KeyId(\"kv2\") }}), \
         database: Database {{ hosts: [Tcp(\"127.0.0.1\")], ports: [{port}], dbname: Some({:?}), user: Some(\"nico\"), ssl_mode: Prefer, .. }}, \
         store: StoreOptions {{ ",
        key_check_value(&key("kv1")),
        key_check_value(&key("kv2")),
        database.name(),
    );
    let config = start["config"].as_str().unwrap();
    assert!(config.starts_with(&expected), "{config}\n{expected}");
    let rest = [
        format!(
            "tls: TlsFiles {{ certificate: {:?}, key: {:?}, root_ca: {:?}, admin_root_ca: Some({:?}), crls: [], crl_policy: RequireValid }}, ",
            leaf.cert_chain, leaf.key, root.cert, admin_root.cert
        ),
        format!("issuer_cns: [{ADMIN_ISSUER_CN:?}]"),
        r#"allowed_services: ["nico-api", "carbide-api"]"#.to_owned(),
        "listen: 127.0.0.1:0, metrics_endpoint: 127.0.0.1:0".to_owned(),
        "audit: AuditOptions { file: None, required: false }".to_owned(),
        "lock_timeout: 2s".to_owned(),
    ];
    rest.iter()
        .for_each(|words| assert!(config.contains(words), "no {words} in {config}"));

    let told: Vec<_> = server
        .logs_with("key")
        .into_iter()
        .map(|line| ["key_id", "key_check_value", "is_target"].map(|name| line[name].clone()))
        .collect();
    let line = |id: &str| {
        [
            json!(id),
            json!(key_check_value(&key(id))),
            json!(id == "kv2"),
        ]
    };
    assert_eq!(told, [line("kv1"), line("kv2")]);
    assert!(!server.log_text().contains("SAME KEY BYTES"));
    leaks::assert_none(&server.log_text());
}

#[tokio::test]
async fn two_ids_with_the_same_key_are_warned_about() {
    let database = Database::migrated().await;
    let mut same = keys(&["kv1", "kv2", "kv3"]);
    same.insert("kv2".to_owned(), key("kv1"));
    let server = Site::new(&database).keys(&same).start().await;
    let warnings: Vec<Value> = server
        .logs()
        .into_iter()
        .filter(|line| {
            line["message"]
                .as_str()
                .is_some_and(|text| text.contains("SAME KEY BYTES"))
        })
        .collect();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert_eq!(
        [
            &warnings[0]["level"],
            &warnings[0]["key_id"],
            &warnings[0]["other_key_id"]
        ],
        ["WARN", "kv1", "kv2"]
    );
}

#[tokio::test]
async fn logfmt_tells_the_same_and_no_secrets() {
    let database = Database::migrated().await;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = quote(&taken.local_addr().unwrap().to_string());
    // The default form; the start ends where the addresses are bound, after all that is of interest here.
    let site = Site::new(&database)
        .unset("rewrap.log_format")
        .set("rewrap.log_filter", "\"trace\"")
        .set("rewrap.listen", address);
    let Exit {
        code,
        stdout,
        stderr,
    } = site.run_to_exit().await;
    assert_eq!((code, stdout.as_str()), (1, ""), "{stderr}");
    let line = |words: &[&str]| {
        stderr
            .lines()
            .any(|line| words.iter().all(|word| line.contains(word)))
    };
    assert!(
        line(&[
            "level=info",
            "message=starting",
            &format!("version=\"{}\"", version().await)
        ]),
        "{stderr}"
    );
    for id in ["kv1", "kv2"] {
        assert!(
            line(&[
                "level=info",
                "message=key",
                &format!("key_id={id}"),
                &format!("key_check_value={}", key_check_value(&key(id)))
            ]),
            "{stderr}"
        );
    }
    leaks::assert_none(&stderr);
}

#[tokio::test]
async fn even_the_finest_log_has_no_key_no_password_and_no_plaintext() {
    let database = Database::migrated().await;
    Org::under("acme", "kv1")
        .insert(&database.client().await)
        .await;
    let server = Site::new(&database)
        .set("rewrap.log_filter", "\"trace\"")
        .start()
        .await;
    assert_eq!(run(&server, true).await.rows_updated, 1);
    assert_eq!(run(&server, false).await.rows_updated, 1);
    assert!(server.log_text().contains(r#""level":"TRACE""#));
    leaks::assert_none(&server.log_text());
    assert_eq!(server.terminate().await, 0);
}

#[tokio::test]
async fn metrics_count_rows_and_calls_and_name_nobody() {
    let database = Database::migrated().await;
    let orgs = [
        Org::under("org-of-interest", "kv1"),
        Org::under("b", "kv2"),
        Org::new("c").text(0, "garbage"),
    ];
    seed::insert(&database.client().await, &orgs).await;
    let server = Site::new(&database).start().await;
    run(&server, true).await;
    run(&server, false).await;
    reencrypt(
        &server,
        &certs::service("nico-api"),
        json!({"organizationId": "org-of-interest"}),
    )
    .await
    .unwrap();
    for (leaf, request) in [
        (certs::machine(), json!({})),
        (certs::admin(), json!({"organizationId": "nobody-here"})),
    ] {
        reencrypt(&server, leaf, request).await.unwrap_err();
    }
    let rows = async |mode: &str| {
        server
            .metric("nico_rewrap_rows_processed_total", &[("mode", mode)])
            .await
    };
    assert_eq!(
        (rows("dry_run").await, rows("apply").await),
        (Some(3.0), Some(4.0))
    );
    for (outcome, kind, count) in [
        ("OK", "external", 2.0),
        ("OK", "service", 1.0),
        ("NOT_ALLOWED", "machine", 1.0),
        ("UNKNOWN_ORGANIZATION", "external", 1.0),
    ] {
        let labels = [("outcome", outcome), ("identity_kind", kind)];
        assert_eq!(
            server.metric("nico_rewrap_calls_total", &labels).await,
            Some(count),
            "{outcome} {kind}"
        );
    }
    assert_eq!(
        server
            .metric(
                "nico_rewrap_call_duration_seconds_count",
                &[("outcome", "OK")]
            )
            .await,
        Some(3.0)
    );
    let metrics = server.metrics().await;
    assert!(
        metrics.contains("# TYPE nico_rewrap_rows_processed_total counter"),
        "{metrics}"
    );
    for name in [
        "org-of-interest",
        "nobody-here",
        "alice",
        "nico-api",
        "Acme",
        "fm100ht",
    ] {
        assert!(!metrics.contains(name), "{name}: {metrics}");
    }
}

#[tokio::test]
async fn every_counter_is_there_before_the_first_event() {
    let server = Site::new(&Database::migrated().await).start().await;
    let labels: [(&str, &[(&str, &str)]); 7] = [
        (
            "calls_total",
            &[
                ("outcome", "DATABASE_UNAVAILABLE"),
                ("identity_kind", "external"),
            ],
        ),
        (
            "authorization_decisions_total",
            &[("outcome", "not_allowed")],
        ),
        (
            "rows_processed_total",
            &[("mode", "apply"), ("outcome", "failed")],
        ),
        ("tls_handshake_failures_total", &[("reason", "revoked")]),
        (
            "connections_revoked_total",
            &[("reason", "identity_changed")],
        ),
        ("tls_reloads_total", &[("outcome", "failure")]),
        ("log_lines_dropped_total", &[]),
    ];
    for (name, labels) in labels {
        let count = server.metric(&format!("nico_rewrap_{name}"), labels).await;
        assert_eq!(count, Some(0.0), "{name}{labels:?}");
    }
}

#[tokio::test]
async fn no_core_file_is_written() {
    let database = Database::migrated().await;
    let server = Site::new(&database).start().await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.pid())).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    assert_eq!(
        core.split_whitespace().collect::<Vec<_>>()[4..6],
        ["0", "0"],
        "soft and hard: {core}"
    );
}
