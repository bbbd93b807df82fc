//! The alerts: `promtool test rules` shows a case in which each fires and one in which it does
//! not. Each names a paragraph that exists, and the manifests have the same alerts.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::documents::{anchors, metrics, read};
use crate::kubelet::rendered;
use crate::process::temp_dir;
use crate::prometheus::promtool;

const RULES: &str = "deploy/prometheus/rules.yaml";

/// Series with their values, one value a minute, in the notation of promtool.
type Series = &'static [(&'static str, &'static str)];

/// An alert, the time of the question, series that make the alert fire, and series that do not.
struct Case(&'static str, &'static str, Series, Series);

const CASES: &[Case] = &[
    Case(
        "NicoRewrapSecretsDoNotOpen",
        "20m",
        &[(
            r#"carbide_machine_identity_stored_secret_decryption_failures_total{job="a",secret_kind="signing_key"}"#,
            "0x10 2x10",
        )],
        &[
            (
                r#"carbide_machine_identity_stored_secret_decryption_failures_total{job="a",secret_kind="signing_key"}"#,
                "2x30",
            ),
            (
                r#"nico_rewrap_stored_secrets{job="a",key_id="unreadable"}"#,
                "0x30",
            ),
        ],
    ),
    Case(
        "NicoRewrapSecretsDoNotOpen",
        "20m",
        &[(
            r#"nico_rewrap_stored_secrets{job="a",key_id="unreadable"}"#,
            "1x30",
        )],
        &[(
            r#"nico_rewrap_stored_secrets{job="a",key_id="kv1"}"#,
            "1x30",
        )],
    ),
    Case(
        "NicoRewrapTwoCheckValues",
        "5m",
        &[
            (
                r#"nico_rewrap_key_info{job="a",instance="1",key_id="kv1",check_value="00000000",role="target"}"#,
                "1x10",
            ),
            (
                r#"nico_rewrap_key_info{job="a",instance="2",key_id="kv1",check_value="ffffffff",role="target"}"#,
                "1x10",
            ),
        ],
        // The same bytes at two instances of a site, and other bytes at another site.
        &[
            (
                r#"nico_rewrap_key_info{job="a",instance="1",key_id="kv1",check_value="00000000",role="target"}"#,
                "1x10",
            ),
            (
                r#"nico_rewrap_key_info{job="a",instance="2",key_id="kv1",check_value="00000000",role="other"}"#,
                "1x10",
            ),
            (
                r#"nico_rewrap_key_info{job="b",instance="3",key_id="kv1",check_value="ffffffff",role="target"}"#,
                "1x10",
            ),
        ],
    ),
    Case(
        "NicoRewrapStoredKeyNotInSecrets",
        "10m",
        &[(
            r#"nico_rewrap_stored_secrets{job="a",key_id="not_in_secrets"}"#,
            "3x20",
        )],
        &[
            (
                r#"nico_rewrap_stored_secrets{job="a",key_id="not_in_secrets"}"#,
                "0x20",
            ),
            (
                r#"nico_rewrap_stored_secrets{job="a",key_id="kv1"}"#,
                "3x20",
            ),
        ],
    ),
    Case(
        "NicoRewrapTargetsDisagree",
        "15m",
        &[
            (
                r#"nico_rewrap_key_info{job="a",instance="1",key_id="kv1",role="target"}"#,
                "1x20",
            ),
            (
                r#"nico_rewrap_key_info{job="a",instance="2",key_id="kv2",role="target"}"#,
                "1x20",
            ),
        ],
        &[
            (
                r#"nico_rewrap_key_info{job="a",instance="1",key_id="kv2",role="target"}"#,
                "1x20",
            ),
            (
                r#"nico_rewrap_key_info{job="a",instance="1",key_id="kv1",role="other"}"#,
                "1x20",
            ),
            (
                r#"nico_rewrap_key_info{job="a",instance="2",key_id="kv2",role="target"}"#,
                "1x20",
            ),
            (
                r#"nico_rewrap_key_info{job="b",instance="3",key_id="kv9",role="target"}"#,
                "1x20",
            ),
        ],
    ),
    Case(
        "NicoRewrapStraggler",
        "20m",
        &[(r#"nico_rewrap_stragglers_total{job="a"}"#, "0x10 1x10")],
        &[(r#"nico_rewrap_stragglers_total{job="a"}"#, "1x20")],
    ),
    Case(
        "NicoRewrapRowsFailed",
        "20m",
        &[(
            r#"nico_rewrap_rows_processed_total{job="a",mode="apply",outcome="failed"}"#,
            "0x10 7x10",
        )],
        &[
            (
                r#"nico_rewrap_rows_processed_total{job="a",mode="apply",outcome="failed"}"#,
                "7x20",
            ),
            (
                r#"nico_rewrap_rows_processed_total{job="a",mode="apply",outcome="updated"}"#,
                "0+9x20",
            ),
            (
                r#"nico_rewrap_rows_processed_total{job="a",mode="dry_run",outcome="failed"}"#,
                "0+9x20",
            ),
        ],
    ),
    Case(
        "NicoRewrapRunStalled",
        "10m",
        &[(r#"nico_rewrap_run_stalled{job="a",instance="1"}"#, "1x20")],
        &[(
            r#"nico_rewrap_run_stalled{job="a",instance="1"}"#,
            "1x3 0 1x3 0x9",
        )],
    ),
    Case(
        "NicoRewrapOldKeyLingers",
        "73h",
        &[
            (
                r#"nico_rewrap_key_info{job="a",instance="1",key_id="kv1",role="other"}"#,
                "1x4500",
            ),
            (
                r#"nico_rewrap_stored_secrets{job="a",instance="1",key_id="kv1"}"#,
                "4x4500",
            ),
        ],
        &[
            (
                r#"nico_rewrap_key_info{job="a",instance="1",key_id="kv1",role="other"}"#,
                "1x4500",
            ),
            (
                r#"nico_rewrap_stored_secrets{job="a",instance="1",key_id="kv1"}"#,
                "4x3000 0x1500",
            ),
            (
                r#"nico_rewrap_key_info{job="a",instance="1",key_id="kv2",role="target"}"#,
                "1x4500",
            ),
            (
                r#"nico_rewrap_stored_secrets{job="a",instance="1",key_id="kv2"}"#,
                "4x4500",
            ),
        ],
    ),
    Case(
        "NicoRewrapOldKeyLingers",
        "73h",
        &[(
            r#"nico_rewrap_key_removable{job="a",key_id="kv1"}"#,
            "1x4500",
        )],
        &[(
            r#"nico_rewrap_key_removable{job="a",key_id="kv1"}"#,
            "0x4500",
        )],
    ),
    Case(
        "NicoRewrapCensusStale",
        "90m",
        &[(
            r#"nico_rewrap_census_last_success_timestamp_seconds{job="a"}"#,
            "0x100",
        )],
        // One instance has not read the last census yet.
        &[
            (
                r#"nico_rewrap_census_last_success_timestamp_seconds{job="a",instance="1"}"#,
                "0+60x100",
            ),
            (
                r#"nico_rewrap_census_last_success_timestamp_seconds{job="a",instance="2"}"#,
                "0x100",
            ),
            (r#"nico_rewrap_key_info{job="a",instance="1"}"#, "1x100"),
        ],
    ),
    Case(
        "NicoRewrapCensusStale",
        "30m",
        &[(r#"nico_rewrap_key_info{job="a",instance="1"}"#, "1x60")],
        // A site without machine identity.
        &[(r#"nico_rewrap_ready{job="a",latch="database"}"#, "1x60")],
    ),
    Case(
        "NicoRewrapAuditLogFailing",
        "20m",
        &[(
            r#"nico_rewrap_audit_failures_total{job="a",instance="1"}"#,
            "0x10 1x10",
        )],
        &[(
            r#"nico_rewrap_audit_failures_total{job="a",instance="1"}"#,
            "1x20",
        )],
    ),
    Case(
        "NicoRewrapTlsReloadFailing",
        "10m",
        &[(
            r#"nico_rewrap_tls_reload_failing{job="a",instance="1"}"#,
            "1x20",
        )],
        &[(
            r#"nico_rewrap_tls_reload_failing{job="a",instance="1"}"#,
            "1x3 0x20",
        )],
    ),
    Case(
        "NicoRewrapConfigurationChangedOnDisk",
        "20m",
        &[(
            r#"nico_rewrap_configuration_changed_on_disk{job="a",instance="1",source="secrets"}"#,
            "1x30",
        )],
        &[(
            r#"nico_rewrap_configuration_changed_on_disk{job="a",instance="1",source="secrets"}"#,
            "1x9 0x30",
        )],
    ),
    Case(
        "NicoRewrapCertificateExpires",
        "20m",
        &[(
            r#"nico_rewrap_certificate_expiry_timestamp_seconds{job="a",instance="1",certificate="server"}"#,
            "600000x30",
        )],
        &[(
            r#"nico_rewrap_certificate_expiry_timestamp_seconds{job="a",instance="1",certificate="server"}"#,
            "700000x30",
        )],
    ),
    Case(
        "NicoRewrapRevocationListExpires",
        "20m",
        &[(
            r#"nico_rewrap_crl_next_update_timestamp_seconds{job="a",instance="1"}"#,
            "80000x30",
        )],
        &[(
            r#"nico_rewrap_crl_next_update_timestamp_seconds{job="a",instance="1"}"#,
            "90000x30",
        )],
    ),
    Case(
        "NicoRewrapRotationOverdue",
        "2h",
        &[(
            r#"nico_rewrap_last_apply_success_timestamp_seconds{job="a"}"#,
            "-31550000x150",
        )],
        &[(
            r#"nico_rewrap_last_apply_success_timestamp_seconds{job="a"}"#,
            "-31500000x150",
        )],
    ),
];

fn rules() -> Vec<Value> {
    let file: Value = serde_saphyr::from_str(&read(RULES)).unwrap();
    file["groups"][0]["rules"].as_array().unwrap().clone()
}

/// A test of promtool: whether the alert fires at `time`.
fn test((alert, time): (&str, &str), series: Series, fires: bool) -> String {
    let mut text = "  - interval: 1m\n    input_series:\n".to_owned();
    for (series, values) in series {
        text += &format!("      - series: '{series}'\n        values: '{values}'\n");
    }
    text += &format!(
        "    promql_expr_test:\n      - expr: 'count(ALERTS{{alertname=\"{alert}\",alertstate=\"firing\"}})'\n        \
         eval_time: {time}\n"
    );
    if fires {
        text += "        exp_samples:\n          - labels: '{}'\n            value: 1\n";
    }
    text
}

#[test]
fn each_alert_fires_when_it_must_and_only_then() {
    let dir = temp_dir("alerts");
    let mut tests = format!(
        "rule_files:\n  - {}/{RULES}\nevaluation_interval: 1m\ntests:\n",
        env!("CARGO_MANIFEST_DIR")
    );
    for Case(alert, time, firing, quiet) in CASES {
        tests += &test((alert, time), firing, true);
        tests += &test((alert, time), quiet, false);
    }
    let file = dir.path().join("tests.yaml");
    std::fs::write(&file, tests).unwrap();
    promtool(&["test", "rules", file.to_str().unwrap()], "");
    let tested: BTreeSet<_> = CASES.iter().map(|case| case.0).collect();
    let rules = rules();
    let alerts: BTreeSet<_> = rules
        .iter()
        .map(|rule| rule["alert"].as_str().unwrap())
        .collect();
    assert_eq!(tested, alerts);
}

#[test]
fn each_alert_names_a_metric_and_a_paragraph_that_exist() {
    promtool(
        &[
            "check",
            "rules",
            &format!("{}/{RULES}", env!("CARGO_MANIFEST_DIR")),
        ],
        "",
    );
    let page = read("docs/troubleshooting.md");
    let (anchors, metrics) = (anchors(&page), metrics());
    let reference = read("docs/reference/metrics.md");
    for rule in rules() {
        let alert = rule["alert"].as_str().unwrap();
        let expr = rule["expr"].as_str().unwrap();
        let words = expr.split(|c: char| !(c.is_alphanumeric() || c == '_'));
        let named: BTreeSet<_> = words
            .filter(|word| word.starts_with("nico_rewrap_") || word.starts_with("carbide_"))
            .collect();
        assert!(!named.is_empty(), "{alert}");
        for metric in named {
            assert!(metrics.contains(metric), "{alert}: {metric}");
        }
        let annotations = &rule["annotations"];
        let url = annotations["runbook_url"].as_str().unwrap();
        let (file, anchor) = url.split_once('#').unwrap();
        assert_eq!(
            file,
            "file:///usr/share/doc/nico-rewrap/docs/troubleshooting.md"
        );
        assert!(anchors.contains(anchor), "{alert}: {anchor}");
        for text in ["summary", "description"] {
            assert!(annotations[text].is_string(), "{alert}");
        }
        let severity = rule["labels"]["severity"].as_str().unwrap();
        let row = format!("| `{alert}` | {severity} | ");
        assert!(reference.contains(&row), "{row}");
    }
}

#[test]
fn the_manifests_have_the_same_alerts() {
    for folder in ["standalone", "sidecar"] {
        let manifests = rendered(folder);
        let groups = &manifests["PrometheusRule"]["spec"]["groups"];
        let file: Value = serde_saphyr::from_str(&read(RULES)).unwrap();
        assert_eq!(*groups, file["groups"], "{folder}");
    }
}
