//! The operator's client at the admin socket.

use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::admin_socket::{disabled, with_socket};
use crate::operator::Operator;
use crate::outcome::seeded;
use crate::process::{lasting_dir, run};
use crate::seed::Org;
use crate::server::Server;
use crate::site::Site;

fn at(socket: &Path) -> Operator {
    Operator::without_options().option(&["--socket", socket.to_str().unwrap()])
}

fn own_name() -> String {
    format!("local:uid={}", run(Command::new("id").arg("-u")).trim())
}

#[tokio::test]
async fn the_client_shows_everything_and_is_refused_an_apply() {
    let (database, _client) = seeded(&[Org::under("a", "kv1"), Org::under("b", "kv1")]).await;
    let (site, socket) = with_socket(Site::new(&database));
    let server = site.start().await;
    let operator = at(&socket);
    let (code, caller) = operator.json(&["whoami"]).await;
    assert_eq!((code, &caller["name"]), (0, &json!(own_name())), "{caller}");
    let status = operator.call(&["status"]).await;
    assert_eq!(status.code, 0, "{status:?}");
    assert!(status.stdout.contains(&own_name()), "{}", status.stdout);
    let (code, dry) = operator.json(&["reencrypt", "--dry-run"]).await;
    assert_eq!(
        (code, &dry["report"]["rowsUpdated"]),
        (0, &json!(2)),
        "{dry}"
    );
    assert_eq!(operator.call(&["census"]).await.code, 0);
    let (code, keys) = operator.json(&["keys", "list"]).await;
    assert_eq!(
        (code, &keys["keys"][0]["secrets"]),
        (0, &json!(4)),
        "{keys}"
    );
    assert_eq!(operator.call(&["can-i-delete", "kv1"]).await.code, 8);

    let apply = operator
        .call(&["reencrypt", "--expect-target", "kv2"])
        .await;
    assert_eq!(apply.code, 7, "{apply:?}");
    let words = "[rewrap].admin_socket_may_apply = true";
    assert!(apply.stderr.contains(words), "{}", apply.stderr);
    let (code, lines) = operator
        .lines(&["reencrypt", "--expect-target", "kv2"])
        .await;
    let error = lines.last().unwrap();
    assert_eq!((code, &error["type"]), (7, &json!("error")), "{error}");
    assert_eq!(error["reason"], "ADMIN_SOCKET_READ_ONLY", "{error}");
    let (_, dry) = operator.json(&["reencrypt", "--dry-run"]).await;
    assert_eq!(dry["report"]["rowsUpdated"], 2, "nothing was written");
    assert_names_the_caller(&server);
}

#[tokio::test]
async fn with_the_setting_the_client_applies() {
    let (database, _client) = seeded(&[Org::under("a", "kv1"), Org::under("b", "kv1")]).await;
    let (site, socket) = with_socket(Site::new(&database));
    let site = site.set("rewrap.admin_socket_may_apply", "true");
    let server = site.start().await;
    let operator = Operator::without_options().env("REWRAP_SOCKET", &socket);
    let (code, run) = operator
        .json(&["reencrypt", "--expect-target", "kv2"])
        .await;
    assert_eq!(
        (code, &run["report"]["rowsUpdated"]),
        (0, &json!(2)),
        "{run}"
    );
    assert_eq!(run["caller"], own_name());
    assert_names_the_caller(&server);
}

fn assert_names_the_caller(server: &Server) {
    let records = server.logs_with("call");
    assert!(!records.is_empty());
    for record in records {
        assert_eq!(record["identity"], own_name(), "{record}");
    }
}

#[tokio::test]
async fn a_socket_without_a_server_is_named() {
    let (site, socket) = disabled();
    let missing = at(&socket).call(&["status"]).await;
    assert_eq!(missing.code, 6, "{missing:?}");
    assert!(missing.stderr.contains(socket.to_str().unwrap()));
    let server = site.start().await;
    assert_eq!(at(&socket).call(&["status"]).await.code, 0);
    server.signal("KILL");
    server.wait_exit().await;
    drop(server);
    let other = lasting_dir("socket").join("admin.sock");
    let site = disabled()
        .0
        .set("rewrap.admin_socket", crate::site::path(&other));
    let killed = site.start().await;
    killed.signal("KILL");
    killed.wait_exit().await;
    assert!(other.exists());
    let stale = at(&other).call(&["status"]).await;
    assert_eq!(stale.code, 6, "{stale:?}");
    assert!(stale.stderr.contains("refused"), "{}", stale.stderr);
}
