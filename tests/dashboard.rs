//! The dashboard for Grafana: every metric that it names exists, and every expression gives data
//! from a real Prometheus that scraped a real run.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::time::sleep;

use crate::adaptive_rate::Busy;
use crate::certs;
use crate::crl::Crl;
use crate::documents::{metrics, read};
use crate::grpcurl::{Call, reencrypt};
use crate::prometheus::Prometheus;
use crate::replicas::Replicated;
use crate::rewrap_client::{ended, run, start_slow};
use crate::seal::seal;
use crate::seed::{self, Org};
use crate::site::{Site, path};

const FILE: &str = "deploy/grafana/nico-rewrap.json";
const JOB: &str = "rewrap of the site";

fn dashboard() -> Value {
    serde_json::from_str(&read(FILE)).unwrap()
}

/// Panels and their expressions.
fn expressions() -> Vec<(String, String)> {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().unwrap();
    let of_panel = |panel: &Value| {
        let title = panel["title"].as_str().unwrap().to_owned();
        let targets = panel["targets"].as_array().unwrap().clone();
        let expr = |target: Value| target["expr"].as_str().unwrap().to_owned();
        targets
            .into_iter()
            .map(move |target| (title.clone(), expr(target)))
    };
    panels.iter().flat_map(of_panel).collect()
}

#[test]
fn the_dashboard_names_only_metrics_of_the_program() {
    let metrics = metrics();
    for (panel, expr) in expressions() {
        let words = expr.split(|c: char| !(c.is_alphanumeric() || c == '_'));
        let named: Vec<_> = words
            .filter(|word| word.starts_with("nico_rewrap_") || word.starts_with("carbide_"))
            .collect();
        assert!(!named.is_empty(), "{panel}: {expr}");
        for metric in named {
            assert!(metrics.contains(metric), "{panel}: {metric}");
        }
    }
}

#[test]
fn the_panels_fill_one_page_without_overlap() {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut taken = BTreeSet::new();
    for panel in panels {
        let number = |part: &str| panel["gridPos"][part].as_u64().unwrap();
        assert!(number("x") + number("w") <= 24, "{}", panel["title"]);
        for x in number("x")..number("x") + number("w") {
            for y in number("y")..number("y") + number("h") {
                assert!(taken.insert((x, y)), "{} overlaps", panel["title"]);
            }
        }
        assert!(!panel["description"].as_str().unwrap().is_empty());
    }
    let height = taken.iter().map(|(_, y)| y + 1).max().unwrap();
    assert_eq!(taken.len() as u64, 24 * height, "no gap");
    assert!(height <= 40, "{height}");
}

#[tokio::test]
async fn every_expression_gives_data_of_a_run() {
    let replicated = Replicated::with(150).await;
    let broken = Org::new("broken").text(0, seal("x", "gone"));
    seed::insert(&replicated.client, &[broken]).await;
    replicated.client.batch_execute("ANALYZE").await.unwrap();
    let busy = Busy::with(replicated.database.client().await);
    let crl = Crl::of(certs::admin_issuer()).issue();
    let server = Site::new(&replicated.database)
        .set("rewrap.crl_files", format!("[{}]", path(crl)))
        .set("rewrap.crl_policy", "\"allow_unknown\"")
        .start()
        .await;
    let prometheus = Prometheus::scraping(&server.http, JOB);
    run(&server, "RUN_KIND_CENSUS").await;
    let slow = start_slow(&server, "RUN_KIND_APPLY", 20).await;
    let denied = reencrypt(&server, certs::machine(), json!({})).await;
    assert_eq!(denied.unwrap_err().code, "PERMISSION_DENIED");
    let stranger = certs::service_cert("x").signed_by(certs::other_ca());
    let refused = Call::new(&server, &stranger).reencrypt(&json!({})).await;
    refused.unwrap_err();
    ended(&server, &slow).await;
    drop(busy);
    let deadline = Instant::now() + Duration::from_secs(60);
    for (panel, expr) in expressions() {
        let query = expr.replace("$job", JOB).replace("$__rate_interval", "1m");
        assert!(!query.contains('$'), "{query}");
        // The last scrape may be a moment away.
        while prometheus.range(&query, 5).is_empty() {
            assert!(Instant::now() < deadline, "{panel}: no data of {query}");
            sleep(Duration::from_millis(500)).await;
        }
    }
    let done = prometheus.range("max(nico_rewrap_run_rows_done)", 5);
    assert!(done[0]["values"].as_array().unwrap().len() >= 3, "{done:?}");
}
