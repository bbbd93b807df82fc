//! `/metrics` as a real Prometheus reads it: which series exist before the first event, what
//! they show after it, and which are absent because nobody knows their value.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::json;
use tokio::time::sleep;

use crate::database::Database;
use crate::documents::{failure_reasons, first_cells, read};
use crate::faults::{orgs, until_blocked};
use crate::outcome::seeded;
use crate::prometheus::promtool;
use crate::rewrap_client::{ask, ended, migrate_state, run, start, start_slow};
use crate::seal::{keys, seal};
use crate::seed::{self, Org, signing_key_pem};
use crate::server::Server;
use crate::site::Site;

/// The label sets of each metric in a scrape. The buckets of a histogram count as one metric.
fn series(scrape: &str) -> BTreeMap<String, Vec<BTreeMap<String, String>>> {
    let mut series: BTreeMap<String, Vec<_>> = BTreeMap::new();
    for line in scrape.lines().filter(|line| !line.starts_with('#')) {
        let Some((sample, _)) = line.rsplit_once(' ') else {
            continue;
        };
        let (name, labels) = sample.split_once('{').unwrap_or((sample, ""));
        let labels = labels.trim_end_matches('}').split(',');
        let labels = labels.filter_map(|label| label.split_once('='));
        let labels =
            labels.map(|(label, value)| (label.to_owned(), value.trim_matches('"').into()));
        series
            .entry(name.trim_end_matches("_bucket").to_owned())
            .or_default()
            .push(labels.collect());
    }
    series
}

/// The values of a label of a metric.
fn values(scrape: &str, name: &str, label: &str) -> BTreeSet<String> {
    let series = series(scrape);
    let found = series.get(name).into_iter().flatten();
    found
        .filter_map(|labels| labels.get(label).cloned())
        .collect()
}

fn now() -> f64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
    since_epoch.unwrap().as_secs_f64()
}

/// Waits until the metric has this value. `None` means that it is absent.
async fn until(server: &Server, name: &str, labels: &[(&str, &str)], wanted: Option<f64>) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let shown = server.metric(name, labels).await;
        if shown == wanted {
            return;
        }
        assert!(Instant::now() < deadline, "{name}{labels:?} is {shown:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// The page has the labels of each metric in the scrape.
fn assert_documented(scrape: &str) {
    let page = first_cells(&read("docs/reference/metrics.md"), "Metrics");
    let documented: BTreeMap<_, _> = page
        .iter()
        .map(|cell| {
            let (name, labels) = cell.split_once('{').unwrap_or((cell, ""));
            let labels = labels.trim_end_matches('}').split(',');
            let labels = labels.filter(|label| !label.is_empty()).map(str::to_owned);
            (name.to_owned(), labels.collect::<BTreeSet<_>>())
        })
        .collect();
    for (name, series) in series(scrape) {
        let name = ["_sum", "_count"]
            .into_iter()
            .find_map(|part| {
                name.strip_suffix(part)
                    .filter(|name| name.contains("duration"))
            })
            .unwrap_or(&name);
        let page = documented
            .get(name)
            .unwrap_or_else(|| panic!("{name} is not in the page"));
        for labels in series {
            let labels: BTreeSet<_> = labels.into_keys().filter(|label| label != "le").collect();
            assert_eq!(labels, *page, "{name}");
        }
    }
}

const DECRYPTION: &str = "carbide_machine_identity_stored_secret_decryption_failures_total";
const FAILURES: &str = "nico_rewrap_failures_total";
const STORED: &str = "nico_rewrap_stored_secrets";
const REMOVABLE: &str = "nico_rewrap_key_removable";
const CLEAN_SINCE: &str = "nico_rewrap_key_clean_since_timestamp_seconds";
const STRAGGLERS: &str = "nico_rewrap_stragglers_total";
const LAST_CENSUS: &str = "nico_rewrap_census_last_success_timestamp_seconds";
const LAST_APPLY: &str = "nico_rewrap_last_apply_success_timestamp_seconds";
const IN_PROGRESS: &str = "nico_rewrap_run_in_progress";
const DONE: &str = "nico_rewrap_run_rows_done";
const EXPECTED: &str = "nico_rewrap_run_rows_expected";

#[tokio::test]
async fn before_the_first_event_counters_are_zero_and_unknown_gauges_are_absent() {
    let server = Site::new(&Database::migrated().await).start().await;
    let scrape = server.metrics().await;
    promtool(&["check", "metrics"], &scrape);
    assert_documented(&scrape);
    assert_eq!(values(&scrape, FAILURES, "reason"), failure_reasons());
    for (name, labels) in [
        (FAILURES, &[][..]),
        (DECRYPTION, &[("secret_kind", "signing_key")]),
        (DECRYPTION, &[("secret_kind", "token_delegation_auth")]),
        (STRAGGLERS, &[]),
        ("nico_rewrap_rows_raced_total", &[]),
        (
            "nico_rewrap_runs_total",
            &[("kind", "verify"), ("state", "STOPPED")],
        ),
        (IN_PROGRESS, &[("kind", "dry_run")]),
        (IN_PROGRESS, &[("kind", "apply")]),
        (IN_PROGRESS, &[("kind", "verify")]),
        (IN_PROGRESS, &[("kind", "census")]),
        (
            "nico_rewrap_configuration_changed_on_disk",
            &[("source", "site_config")],
        ),
    ] {
        assert_eq!(
            server.metric(name, labels).await,
            Some(0.0),
            "{name}{labels:?}"
        );
    }
    for latch in ["certificate", "database", "grpc", "keys", "process"] {
        let ready = server
            .metric("nico_rewrap_ready", &[("latch", latch)])
            .await;
        assert_eq!(ready, Some(1.0), "{latch}");
    }
    let info = |name: &'static str| series(&scrape)[name].clone();
    assert_eq!(
        info("nico_rewrap_build_info")[0]["version"],
        env!("CARGO_PKG_VERSION")
    );
    let roles: BTreeMap<_, _> = info("nico_rewrap_key_info")
        .into_iter()
        .map(|key| {
            assert_eq!(key["check_value"].len(), 8, "{key:?}");
            (key["key_id"].clone(), key["role"].clone())
        })
        .collect();
    let wanted = [("kv1", "other"), ("kv2", "target")].map(|(id, role)| (id.into(), role.into()));
    assert_eq!(roles, BTreeMap::from(wanted));
    // The target key is never removable. For the other key, this is unknown.
    let kv1 = [("key_id", "kv1")];
    assert_eq!(server.metric(REMOVABLE, &kv1).await, None);
    for absent in [
        STORED,
        CLEAN_SINCE,
        LAST_CENSUS,
        LAST_APPLY,
        DONE,
        EXPECTED,
        "nico_rewrap_rate_limit_rows_per_second",
        "nico_rewrap_database_replica_lag_seconds",
        "nico_rewrap_database_commit_seconds",
        "nico_rewrap_database_commit_baseline_seconds",
    ] {
        assert_eq!(server.metric(absent, &[]).await, None, "{absent}");
        assert!(!scrape.contains(&format!("\n{absent}")), "{absent}");
    }
    assert!(!scrape.contains("NaN"), "{scrape}");
}

#[tokio::test]
async fn a_latch_that_is_held_is_not_ready() {
    let site = Site::with_url("postgres://nobody@127.0.0.1:1/nowhere");
    let server = site.start_unready().await;
    server.readiness().await;
    let ready = |latch| server.metric("nico_rewrap_ready", latch);
    assert_eq!(ready(&[("latch", "database")]).await, Some(0.0));
    assert_eq!(ready(&[("latch", "grpc")]).await, Some(1.0));
}

#[tokio::test]
async fn failures_are_counted_by_reason_and_by_kind_of_secret() {
    let failing = [
        Org::under("a", "kv1"),
        Org::new("b")
            .text(0, seal("x", "gone"))
            .text(1, "no envelope")
            .text(2, seal("{}", "gone")),
        Org::under("c", "kv1").version("no version"),
    ];
    let (database, _client) = seeded(&failing).await;
    let server = Site::new(&database).start().await;
    let report = run(&server, "RUN_KIND_APPLY").await;
    assert_eq!(report["report"]["rowsFailed"], "2", "{report}");
    for (name, labels, wanted) in [
        (FAILURES, ("reason", "KEY_NOT_IN_SECRETS"), 2.0),
        (FAILURES, ("reason", "UNREADABLE_ENVELOPE"), 1.0),
        (FAILURES, ("reason", "TENANT_VERSION"), 1.0),
        (FAILURES, ("reason", "NOT_AUTHENTIC"), 0.0),
        (DECRYPTION, ("secret_kind", "signing_key"), 2.0),
        (DECRYPTION, ("secret_kind", "token_delegation_auth"), 1.0),
    ] {
        let shown = server.metric(name, &[labels]).await;
        assert_eq!(shown, Some(wanted), "{name}{labels:?}");
    }
    assert_eq!(server.metric(LAST_APPLY, &[]).await, None, "rows failed");
    assert_documented(&server.metrics().await);
}

#[tokio::test]
async fn a_run_in_progress_has_gauges_until_its_end() {
    let (database, client) = seeded(&orgs(60)).await;
    client.batch_execute("ANALYZE").await.unwrap();
    let server = Site::new(&database).start().await;
    let slow = start_slow(&server, "RUN_KIND_APPLY", 20).await;
    until(&server, IN_PROGRESS, &[("kind", "apply")], Some(1.0)).await;
    // Beside an apply, a census does not matter.
    ended(&server, &start(&server, "RUN_KIND_CENSUS").await).await;
    assert_eq!(server.metric(EXPECTED, &[]).await, Some(60.0));
    let done = server.metric(DONE, &[]).await;
    assert!(done.is_some_and(|rows| rows < 60.0), "{done:?}");
    promtool(&["check", "metrics"], &server.metrics().await);
    let before = now();
    assert_eq!(ended(&server, &slow).await["state"], "RUN_STATE_FINISHED");
    until(&server, IN_PROGRESS, &[("kind", "apply")], Some(0.0)).await;
    for gauge in [DONE, EXPECTED] {
        assert_eq!(server.metric(gauge, &[]).await, None, "{gauge}");
    }
    let labels = [("kind", "apply"), ("state", "FINISHED")];
    until(&server, "nico_rewrap_runs_total", &labels, Some(1.0)).await;
    let last = server.metric(LAST_APPLY, &[]).await.unwrap();
    assert!((before..=now()).contains(&last), "{last}");
}

#[tokio::test]
async fn a_row_that_a_tenant_changes_is_counted() {
    let (database, client) = seeded(&[Org::under("a", "kv1")]).await;
    let server = Site::new(&database).start().await;
    // The write of the tenant ends after the run has read the row.
    let text = seal(signing_key_pem(), "kv1");
    let update =
        format!("BEGIN; UPDATE tenant_identity_config SET encrypted_signing_key_1 = '{text}'");
    client.batch_execute(&update).await.unwrap();
    let apply = start(&server, "RUN_KIND_APPLY").await;
    until_blocked(&database.client().await).await;
    client.batch_execute("COMMIT").await.unwrap();
    let apply = ended(&server, &apply).await;
    assert_eq!(apply["report"]["rowsUpdated"], "1", "{apply}");
    let raced = server.metric("nico_rewrap_rows_raced_total", &[]).await;
    assert!(raced >= Some(1.0), "{raced:?}");
}

#[tokio::test]
async fn a_census_sets_the_gauges_of_the_keys() {
    let odd = "an \"odd\" \\ id";
    let (database, client) = seeded(&[
        Org::under("a", "kv1"),
        Org::under("b", "kv2"),
        Org::under("c", "foreign").text(1, "no envelope"),
    ])
    .await;
    let server = Site::new(&database)
        .set("rewrap.soak", "\"1ms\"")
        .keys(&keys(&["kv1", "kv2", odd]))
        .start()
        .await;
    let before = now();
    let census = async || run(&server, "RUN_KIND_CENSUS").await;
    let stored = |key_id| {
        let server = &server;
        async move { server.metric(STORED, &[("key_id", key_id)]).await }
    };
    census().await;
    until(&server, STORED, &[("key_id", "kv1")], Some(2.0)).await;
    assert_eq!(stored("kv2").await, Some(2.0));
    assert_eq!(stored("not_in_secrets").await, Some(2.0));
    assert_eq!(stored("unreadable").await, Some(1.0));
    let taken = server.metric(LAST_CENSUS, &[]).await.unwrap();
    assert!((before - 5.0..=now() + 5.0).contains(&taken), "{taken}");
    let removable = |key_id| {
        let server = &server;
        async move { server.metric(REMOVABLE, &[("key_id", key_id)]).await }
    };
    assert_eq!(removable("kv1").await, Some(0.0), "in use");
    assert_eq!(removable("kv2").await, Some(0.0), "target");
    let scrape = server.metrics().await;
    promtool(&["check", "metrics"], &scrape);
    // An unreadable secret may need it: the gauge is absent.
    assert_eq!(
        values(&scrape, REMOVABLE, "key_id"),
        ["kv1", "kv2"].map(Into::into).into()
    );
    assert!(scrape.contains(r#"key_id="an \"odd\" \\ id""#), "{scrape}");

    let clean = "DELETE FROM tenant_identity_config WHERE organization_id IN ('a', 'c')";
    client.batch_execute(clean).await.unwrap();
    census().await;
    sleep(Duration::from_millis(50)).await;
    census().await;
    until(&server, REMOVABLE, &[("key_id", "kv1")], Some(1.0)).await;
    assert_eq!(stored("kv1").await, Some(0.0));
    assert!(
        server
            .metric(CLEAN_SINCE, &[("key_id", "kv1")])
            .await
            .unwrap()
            >= before - 5.0
    );
    assert_eq!(server.metric(STRAGGLERS, &[]).await, Some(0.0));

    seed::insert(&client, &[Org::under("late", "kv1")]).await;
    census().await;
    until(&server, STRAGGLERS, &[], Some(2.0)).await;
    until(&server, REMOVABLE, &[("key_id", "kv1")], Some(0.0)).await;
    assert_eq!(server.metric(CLEAN_SINCE, &[("key_id", "kv1")]).await, None);
}

#[tokio::test]
async fn after_a_restart_the_history_says_what_was_known() {
    let (database, _client) = seeded(&[Org::under("a", "kv1")]).await;
    let site = || {
        Site::new(&database)
            .set("rewrap.soak", "\"1ms\"")
            .set("rewrap.census_interval", "\"1h\"")
    };
    migrate_state(&site());
    let server = site().start().await;
    server
        .wait_log("runs and censuses are kept in the schema nico_rewrap")
        .await;
    until(&server, STORED, &[("key_id", "kv1")], Some(2.0)).await;
    let apply = run(&server, "RUN_KIND_APPLY").await;
    // The receipt has a census after the apply.
    let deadline = Instant::now() + Duration::from_secs(60);
    let client = database.client().await;
    while client
        .query("SELECT FROM nico_rewrap.receipts", &[])
        .await
        .unwrap()
        .is_empty()
    {
        assert!(Instant::now() < deadline, "{}", server.log_text());
        sleep(Duration::from_millis(20)).await;
    }
    let end = server.metric(LAST_APPLY, &[]).await.unwrap();
    assert_eq!(server.terminate().await, 0);
    let again = site().start().await;
    until(&again, STORED, &[("key_id", "kv2")], Some(2.0)).await;
    let deadline = Instant::now() + Duration::from_secs(60);
    let shown = loop {
        match again.metric(LAST_APPLY, &[]).await {
            Some(shown) => break shown,
            None => assert!(Instant::now() < deadline, "{}", again.log_text()),
        }
        sleep(Duration::from_millis(20)).await;
    };
    assert!((shown - end).abs() < 0.01, "{shown} {end}");
    let known = ask(&again, "GetRun", json!({"runId": apply["id"]})).await;
    assert_eq!(known["state"], "RUN_STATE_FINISHED");
}
