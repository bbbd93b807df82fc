//! Traces, with a collector of this test.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::trace::v1::{Span, span::SpanKind};
use serde_json::json;
use tokio::net::TcpListener;

use crate::certs;
use crate::collector::{Collector, attributes};
use crate::database::Database;
use crate::documents::read;
use crate::grpcurl::{Call, reencrypt, run};
use crate::leaks;
use crate::rewrap_client::{ended, start};
use crate::seed::{self, Org};
use crate::server::Server;
use crate::site::{Site, quote};

const CALL: &str = "forge.Forge/ReencryptTenantIdentitySecrets";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";
const ORGANIZATIONS: usize = 300;

/// A database with secrets under `kv1`.
async fn database() -> Database {
    let database = Database::migrated().await;
    let names = (0..ORGANIZATIONS).map(|number| format!("quokka{number}"));
    let organizations: Vec<_> = names.map(|name| Org::under(&name, "kv1")).collect();
    seed::insert(&database.client().await, &organizations).await;
    database
}

fn site(database: &Database) -> Site {
    Site::new(database)
        .set("rewrap.page_size", "100")
        .env("OTEL_BSP_SCHEDULE_DELAY", "50")
}

/// A site with this address of a collector.
fn traced(database: &Database, endpoint: &str) -> Site {
    site(database).set("rewrap.otlp_endpoint", quote(endpoint))
}

fn http(collector: &Collector) -> String {
    format!("http://{}", collector.address)
}

/// The call of an apply with these headers.
async fn apply_with(server: &Server, headers: &[&str]) {
    let mut call = Call::new(server, certs::admin());
    for header in headers {
        call = call.header(header);
    }
    let report = call.reencrypt(&json!({"dryRun": false})).await.unwrap();
    assert_eq!(report.rows_examined as usize, ORGANIZATIONS);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sum(spans: &[&Span], key: &str) -> usize {
    let number = |span: &&Span| attributes(&span.attributes)[key].parse::<usize>().unwrap();
    spans.iter().map(number).sum()
}

#[tokio::test]
async fn a_run_is_one_tree_of_spans_in_the_trace_of_the_caller() {
    let database = database().await;
    let collector = Collector::start().await;
    let server = traced(&database, &http(&collector)).start().await;
    apply_with(&server, &[&format!("traceparent: 00-{TRACE}-{PARENT}-01")]).await;
    assert_eq!(server.terminate().await, 0);

    let spans = collector.spans();
    let spans: Vec<_> = spans
        .iter()
        .filter(|span| hex(&span.trace_id) == TRACE)
        .collect();
    let named = |name: &str| -> Vec<_> {
        let all = spans.iter().filter(|span| span.name == name);
        all.copied().collect()
    };
    let by_id: BTreeMap<_, _> = spans.iter().map(|span| (&span.span_id, *span)).collect();
    assert_eq!(by_id.len(), spans.len());
    for span in &spans {
        let parent = by_id.get(&span.parent_span_id);
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano);
        match parent {
            Some(parent) => {
                assert!(parent.start_time_unix_nano <= span.start_time_unix_nano);
                assert!(span.end_time_unix_nano <= parent.end_time_unix_nano);
                assert_eq!(span.kind(), SpanKind::Internal);
            }
            None => {
                assert_eq!((span.name.as_str(), span.kind()), (CALL, SpanKind::Server));
                assert_eq!(hex(&span.parent_span_id), PARENT);
            }
        }
    }
    let below = |name: &str, parent: &Span| -> Vec<_> {
        let mut all = named(name);
        all.retain(|span| span.parent_span_id == parent.span_id);
        all
    };
    let [call] = named(CALL)[..] else { panic!() };
    let [run] = below("run", call)[..] else {
        panic!()
    };
    assert_eq!(attributes(&call.attributes)["rpc.grpc.status_code"], "0");
    let end = attributes(&run.attributes);
    let wanted = [
        ("kind", "apply"),
        ("dry_run", "false"),
        ("scope", "site"),
        ("target_key_id", "kv2"),
        ("state", "FINISHED"),
        ("durable", "true"),
        ("rows", "300"),
        ("rows_updated", "300"),
        ("rows_failed", "0"),
    ];
    for (key, value) in wanted {
        assert_eq!(end[&format!("nico_rewrap.{key}")], value, "{key}");
    }
    let logged = server.wait_log("run started").await;
    let run_id = crate::server::field(&logged, "run_id").unwrap();
    assert_eq!(end["nico_rewrap.run_id"], run_id.as_str().unwrap());
    assert_eq!(sum(&below("page", run), "nico_rewrap.rows"), ORGANIZATIONS);
    assert!(below("page", run).len() >= 3);
    let batches = below("batch", run);
    assert!(batches.len() >= 3);
    for key in ["nico_rewrap.rows", "nico_rewrap.rows_updated"] {
        assert_eq!(sum(&batches, key), ORGANIZATIONS);
    }
    for name in ["sweep", "barrier", "key_check"] {
        assert_eq!(below(name, run).len(), 1, "{name}");
    }

    let requests = collector.requests();
    let resource = requests[0].resource_spans[0].resource.as_ref().unwrap();
    let resource = attributes(&resource.attributes);
    assert_eq!(resource["service.name"], "nico-rewrap");
    let everything = format!("{requests:?}");
    leaks::assert_none(&everything);
    // Organizations, and the caller.
    for name in ["quokka", "alice"] {
        assert!(!everything.contains(name), "{name}");
    }
}

/// For each span of the reference, its parents and its attributes.
fn reference() -> BTreeMap<String, [BTreeSet<String>; 2]> {
    let words = |cell: &str| -> BTreeSet<String> {
        let words = cell.split('`').skip(1).step_by(2);
        words.map(str::to_owned).collect()
    };
    let page = read("docs/reference/traces.md");
    let (_, table) = page
        .split_once("| span | below | attributes | meaning |\n")
        .unwrap();
    let (table, _) = table.split_once("\n\n").unwrap();
    let mut spans = BTreeMap::new();
    for row in table.lines().skip(1) {
        let cells: Vec<_> = row.split('|').collect();
        for name in words(cells[1]) {
            spans.insert(name, [words(cells[2]), words(cells[3])]);
        }
    }
    spans
}

#[tokio::test]
async fn the_reference_has_every_span_and_every_attribute() {
    let database = database().await;
    let collector = Collector::start().await;
    let server = traced(&database, &http(&collector)).start().await;
    run(&server, true).await;
    for kind in ["DRY_RUN", "APPLY", "VERIFY", "CENSUS"] {
        let started = start(&server, &format!("RUN_KIND_{kind}")).await;
        let run = ended(&server, &started).await;
        assert_eq!(run["state"], "RUN_STATE_FINISHED", "{run}");
    }
    let unknown = json!({"organizationId": "quokka", "dryRun": true});
    reencrypt(&server, certs::admin(), unknown)
        .await
        .unwrap_err();
    assert_eq!(server.terminate().await, 0);

    let spans = collector.spans();
    let names: BTreeMap<_, _> = spans
        .iter()
        .map(|span| (&span.span_id, &span.name))
        .collect();
    let mut sent: BTreeMap<String, [BTreeSet<String>; 2]> = BTreeMap::new();
    for span in &spans {
        let entry = sent.entry(span.name.clone()).or_default();
        let parent = names.get(&span.parent_span_id);
        entry[0].extend(parent.map(|name| (*name).clone()));
        entry[1].extend(attributes(&span.attributes).into_keys());
    }
    assert_eq!(sent, reference());

    let failed = spans.iter().filter(|span| {
        let status = span.status.as_ref().unwrap();
        status.message == "UNKNOWN_ORGANIZATION"
    });
    let failed: BTreeSet<_> = failed.map(|span| span.name.as_str()).collect();
    assert_eq!(failed, BTreeSet::from([CALL, "run"]));
}

#[tokio::test]
async fn a_malformed_parent_is_ignored_and_an_unsampled_one_sends_nothing() {
    let database = database().await;
    let collector = Collector::start().await;
    let server = traced(&database, &http(&collector)).start().await;
    apply_with(&server, &[&format!("traceparent: 00-{TRACE}-{PARENT}-00")]).await;
    apply_with(&server, &[&format!("traceparent: 00-{TRACE}-{PARENT}")]).await;
    collector.wait_for(CALL, 1).await;
    assert_eq!(server.terminate().await, 0);
    let spans = collector.spans();
    let calls: Vec<_> = spans.iter().filter(|span| span.name == CALL).collect();
    assert_eq!(calls.len(), 1);
    assert!(calls[0].parent_span_id.is_empty());
    assert!(spans.iter().all(|span| hex(&span.trace_id) != TRACE));
}

/// Runs an apply and ends the server. Both must be quick.
async fn assert_undisturbed(server: &Server) {
    apply_with(server, &[]).await;
    assert!(server.metric("nico_rewrap_trace_spans_total", &[]).await > Some(10.0));
    let began = Instant::now();
    assert_eq!(server.terminate().await, 0);
    // The limit is two seconds. The machine of the test may be busy.
    assert!(
        began.elapsed() < Duration::from_secs(8),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn a_collector_that_is_absent_or_hangs_delays_neither_runs_nor_the_shutdown() {
    let database = database().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    // The kernel accepts connections, and nobody reads them.
    let server = traced(&database, &format!("http://{address}"))
        .start()
        .await;
    assert_undisturbed(&server).await;
    drop(listener);

    let server = traced(&database, &format!("http://{address}"))
        .start()
        .await;
    apply_with(&server, &[]).await;
    let message = "spans cannot be sent to the collector and are lost";
    let logged = server.wait_log(message).await;
    assert_eq!(
        crate::server::field(&logged, "collector").unwrap(),
        &format!("http://{address}")
    );
    assert_undisturbed(&server).await;
    assert_eq!(server.logs_with(message).len(), 1, "{}", server.log_text());
}

#[tokio::test]
async fn spans_are_counted_until_the_collector_has_them() {
    let database = database().await;
    let collector = Collector::start().await;
    let server = traced(&database, &http(&collector)).start().await;
    apply_with(&server, &[]).await;
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let ended = server.metric("nico_rewrap_trace_spans_total", &[]).await;
        let exported = server
            .metric("nico_rewrap_trace_spans_exported_total", &[])
            .await;
        if ended == exported && ended > Some(10.0) {
            break;
        }
        assert!(Instant::now() < deadline, "{ended:?} {exported:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(server.terminate().await, 0);
}

/// Whether the program has the thread that sends spans.
fn has_thread(server: &Server) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap();
    let names = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")));
    names
        .into_iter()
        .any(|name| name.unwrap().starts_with("OpenTelemetry"))
}

#[tokio::test]
async fn the_setting_comes_before_the_variables_and_without_both_nothing_is_sent() {
    let database = database().await;
    let collector = Collector::start().await;
    let address = http(&collector);
    let other = Collector::start().await;

    let server = site(&database).start().await;
    apply_with(&server, &[]).await;
    assert!(!has_thread(&server));
    let spans = server.metric("nico_rewrap_trace_spans_total", &[]).await;
    assert_eq!(spans, Some(0.0));
    drop(server);

    let cases = [
        (
            traced(&database, &address).env("OTEL_EXPORTER_OTLP_ENDPOINT", &http(&other)),
            true,
        ),
        (
            site(&database).env("NICO_REWRAP__OTLP_ENDPOINT", &address),
            true,
        ),
        (
            site(&database)
                .env("OTEL_EXPORTER_OTLP_ENDPOINT", &http(&other))
                .env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &address),
            true,
        ),
        (
            traced(&database, &address).env("OTEL_SDK_DISABLED", "true"),
            false,
        ),
        (
            traced(&database, &address).env("OTEL_TRACES_EXPORTER", "none"),
            false,
        ),
        (
            traced(&database, &address).env("OTEL_TRACES_SAMPLER", "always_off"),
            false,
        ),
    ];
    for (number, (site, is_sent)) in cases.into_iter().enumerate() {
        let before = collector.spans().len();
        let server = site
            .env("OTEL_SERVICE_NAME", "rewrap-west")
            .env("OTEL_RESOURCE_ATTRIBUTES", "site=west")
            .start()
            .await;
        run(&server, true).await;
        assert_eq!(server.terminate().await, 0);
        assert_eq!(collector.spans().len() > before, is_sent, "{number}");
    }
    assert_eq!(other.spans().len(), 0);
    for request in collector.requests() {
        let resource = request.resource_spans[0].resource.as_ref().unwrap();
        let resource = attributes(&resource.attributes);
        assert_eq!(resource["service.name"], "rewrap-west");
        assert_eq!(resource["site"], "west");
    }
}

#[tokio::test]
async fn a_wrong_address_is_an_error_of_the_setting_and_a_warning_of_a_variable() {
    let database = Database::migrated().await;
    let rule = "must be the address of an OTLP collector for gRPC, like http://collector:4317";
    for address in ["collector:4317", "http://collector:4318/v1/traces"] {
        let exit = traced(&database, address).run_to_exit().await;
        assert_eq!(exit.code, 78, "{}", exit.stderr);
        let said = format!("site.toml: [rewrap].otlp_endpoint: {rule}");
        assert!(exit.stderr.contains(&said), "{}", exit.stderr);
    }
    let exit = traced(&database, "https://collector:4317")
        .run_to_exit()
        .await;
    assert_eq!(exit.code, 78, "{}", exit.stderr);
    let said = "[rewrap].otlp_endpoint: is an https address: set the environment variable \
                OTEL_EXPORTER_OTLP_CERTIFICATE";
    assert!(exit.stderr.contains(said), "{}", exit.stderr);

    const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
    let good = "http://127.0.0.1:9";
    let cases = [
        (site(&database).env(ENDPOINT, "http://collector:4318/v1"), format!("{ENDPOINT}: {rule}: no traces are sent")),
        (
            site(&database)
                .env(ENDPOINT, "http://collector:4318")
                .env("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
            "OTEL_EXPORTER_OTLP_PROTOCOL: is not grpc, the only protocol for traces here: no traces \
             are sent"
                .to_owned(),
        ),
        (
            traced(&database, good).env("OTEL_EXPORTER_OTLP_HEADERS", "a=b"),
            "OTEL_EXPORTER_OTLP_HEADERS: is not supported: traces are sent without headers".to_owned(),
        ),
        (
            traced(&database, good).env("OTEL_TRACES_SAMPLER", "xray"),
            "OTEL_TRACES_SAMPLER: is not one of always_on, ".to_owned(),
        ),
        (
            traced(&database, good)
                .env("OTEL_TRACES_SAMPLER", "traceidratio")
                .env("OTEL_TRACES_SAMPLER_ARG", "2"),
            "OTEL_TRACES_SAMPLER_ARG: is not a number from 0 to 1: all traces are sent".to_owned(),
        ),
    ];
    for (site, said) in cases {
        let server = site.start().await;
        assert!(
            server.log_text().contains(&said),
            "{said}: {}",
            server.log_text()
        );
    }
}

#[tokio::test]
async fn an_https_collector_must_have_a_certificate_of_the_given_ca() {
    let database = database().await;
    let collector = Collector::start_tls(certs::server()).await;
    let address = format!("https://{}", collector.address);
    for (ca, is_sent) in [(certs::other_ca(), false), (certs::root_ca(), true)] {
        let server = traced(&database, &address)
            .env("OTEL_EXPORTER_OTLP_CERTIFICATE", &ca.cert)
            .start()
            .await;
        apply_with(&server, &[]).await;
        if !is_sent {
            let message = "spans cannot be sent to the collector and are lost";
            let line = server.wait_log(message).await.to_string();
            assert!(line.contains("UnknownIssuer"), "{line}");
        }
        assert_eq!(server.terminate().await, 0);
        assert_eq!(!collector.spans().is_empty(), is_sent);
    }
    let missing = traced(&database, &address).env("OTEL_EXPORTER_OTLP_CERTIFICATE", "/missing.pem");
    let exit = missing.run_to_exit().await;
    assert_eq!(exit.code, 78, "{}", exit.stderr);
    assert!(
        exit.stderr
            .contains("[rewrap].otlp_endpoint: OTEL_EXPORTER_OTLP_CERTIFICATE: /missing.pem"),
        "{}",
        exit.stderr
    );
}
