//! Calls of `nico.rewrap.v1.Rewrap` by `grpcurl`, and the schema `nico_rewrap`.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::time::sleep;

use crate::certs;
use crate::grpcurl::{Call, GrpcError};
use crate::server::Server;
use crate::site::{BINARY, Site};

const TIME_LIMIT: Duration = Duration::from_secs(60);

/// The answer of a method to the usual administrator.
pub(crate) async fn ask(server: &Server, method: &str, request: Value) -> Value {
    try_ask(server, method, request)
        .await
        .unwrap_or_else(|e| panic!("{method}: {e:?}\n{}", server.log_text()))
}

/// As [`ask`], but returns the error.
pub(crate) async fn try_ask(
    server: &Server,
    method: &str,
    request: Value,
) -> Result<Value, GrpcError> {
    let call = Call::new(server, certs::admin());
    let method = format!("nico.rewrap.v1.Rewrap/{method}");
    Ok(call.unary(&method, &request).await?.0)
}

/// Every state of a run that `WatchRun` sends, to the end of the stream.
pub(crate) async fn watch(server: &Server, run: &Value) -> Vec<Value> {
    let call = Call::new(server, certs::admin());
    let request = json!({"runId": run["id"]});
    let states = call
        .stream("nico.rewrap.v1.Rewrap/WatchRun", &request)
        .await;
    states
        .unwrap_or_else(|e| panic!("{e:?}\n{}", server.log_text()))
        .0
}

/// The reason of the error with which a run has ended.
pub(crate) fn reason(run: &Value) -> &str {
    run["error"]["details"][0]["reason"]
        .as_str()
        .unwrap_or_default()
}

/// A number in an answer. JSON has 64-bit numbers as texts.
pub(crate) fn number(value: &Value) -> u64 {
    value.as_str().and_then(|text| text.parse().ok()).unwrap()
}

/// Starts a site-wide run of this kind to `kv2`, with a limit of its rate.
pub(crate) async fn start_slow(server: &Server, kind: &str, rows_per_second: u32) -> Value {
    let request = json!({
        "kind": kind, "site": {}, "expectTargetKeyId": "kv2", "maxRowsPerSecond": rows_per_second,
    });
    ask(server, "StartRun", request).await
}

/// Starts a site-wide run of this kind to `kv2`.
pub(crate) async fn start(server: &Server, kind: &str) -> Value {
    let request = json!({"kind": kind, "site": {}, "expectTargetKeyId": "kv2"});
    ask(server, "StartRun", request).await
}

/// Waits until a run has ended, and returns it.
pub(crate) async fn ended(server: &Server, run: &Value) -> Value {
    let deadline = Instant::now() + TIME_LIMIT;
    loop {
        let run = ask(server, "GetRun", json!({"runId": run["id"]})).await;
        if run["state"] != "RUN_STATE_RUNNING" {
            return run;
        }
        assert!(Instant::now() < deadline, "{run}\n{}", server.log_text());
        sleep(Duration::from_millis(50)).await;
    }
}

/// A site-wide run of this kind, from its start to its end.
pub(crate) async fn run(server: &Server, kind: &str) -> Value {
    let run = start(server, kind).await;
    ended(server, &run).await
}

/// The entry of a key in `ListKeys`.
pub(crate) async fn key(server: &Server, id: &str) -> Value {
    let keys = ask(server, "ListKeys", json!({})).await;
    let found = keys["keys"].as_array().unwrap().iter();
    let mut found = found.filter(|key| key["keyId"] == id);
    found.next().unwrap_or_else(|| panic!("{keys}")).clone()
}

/// The state of a key's verdict, without its prefix.
pub(crate) async fn verdict(server: &Server, id: &str) -> String {
    let key = key(server, id).await;
    let state = key["verdict"]["state"].as_str().unwrap();
    state.strip_prefix("VERDICT_STATE_").unwrap().to_owned()
}

/// Runs `nico-rewrap state migrate` for this site.
pub(crate) fn migrate_state(site: &Site) {
    let output = try_migrate_state(site).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// The command `nico-rewrap state migrate` for this site.
pub(crate) fn try_migrate_state(site: &Site) -> std::process::Command {
    let mut args = site.write("state");
    args.insert(1, "migrate".to_owned());
    let mut command = std::process::Command::new(BINARY);
    command.args(args).env_clear();
    command
}
