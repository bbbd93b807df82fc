//! The client at a server without `nico.rewrap.v1`, and at a server that dies.

use std::time::Duration;

use serde_json::json;

use crate::certs;
use crate::old_server::OldServer;
use crate::operator::Operator;
use crate::outcome::{seeded, serve};
use crate::rewrap_client::migrate_state;
use crate::seal::seal;
use crate::seed::{Org, signing_key_pem};
use crate::site::Site;

#[tokio::test]
async fn an_old_server_is_named_and_reencrypt_still_works() {
    let orgs = [
        Org::under("a", "kv1"),
        Org::new("lost").text(0, seal(signing_key_pem(), "kv9")),
    ];
    let (_database, _client, server) = serve(&orgs).await;
    let old = OldServer::before(&server).await;
    let operator = Operator::without_options().option(&["--socket", old.socket.to_str().unwrap()]);
    for command in [
        &["status"][..],
        &["whoami"],
        &["keys", "list"],
        &["census"],
        &["verify"],
        &["can-i-delete", "kv1"],
        &["runs", "list"],
    ] {
        let exit = operator.call(command).await;
        assert_eq!(exit.code, 4, "{command:?}: {exit:?}");
        let words = "does not have the service nico.rewrap.v1";
        assert!(exit.stderr.contains(words), "{command:?}: {}", exit.stderr);
        assert!(
            exit.stderr.contains("`nico-rewrap reencrypt` still works"),
            "{}",
            exit.stderr
        );
    }
    let (code, report) = operator.json(&["reencrypt", "--dry-run"]).await;
    assert_eq!(code, 3, "{report}");
    assert_eq!(
        (&report["kind"], &report["dryRun"]),
        (&json!("Report"), &json!(true))
    );
    assert_eq!(
        (&report["rowsExamined"], &report["rowsUpdated"]),
        (&json!(2), &json!(1))
    );
    assert_eq!(report["failures"][0]["organizationId"], "lost");
    let wrong = operator
        .call(&["reencrypt", "--expect-target", "kv1"])
        .await;
    assert_eq!(wrong.code, 4, "{wrong:?}");
    let done = operator
        .call(&["reencrypt", "--org", "a", "--expect-target", "kv2"])
        .await;
    assert_eq!(done.code, 0, "{done:?}");
    assert!(
        done.stdout.contains("1 examined: 1 re-wrapped"),
        "{}",
        done.stdout
    );
}

/// Organizations for a run that takes seconds.
fn many() -> Vec<Org> {
    (0..200)
        .map(|i| Org::under(&format!("org{i:03}"), "kv1"))
        .collect()
}

#[tokio::test]
async fn a_server_that_dies_leaves_the_run_id() {
    let (database, _client) = seeded(&many()).await;
    let server = Site::new(&database).start().await;
    let operator = Operator::of(&server).option(&["--timeout", "8s"]);
    let command = [
        "reencrypt",
        "--expect-target",
        "kv2",
        "--max-rows-per-second",
        "20",
    ];
    let call = operator.lines(&command);
    let killed = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        server.signal("KILL");
    };
    let ((code, lines), ()) = tokio::join!(call, killed);
    assert_eq!(code, 5, "{lines:?}");
    let last = lines.last().unwrap();
    assert_eq!(
        (&last["type"], &last["exitCode"]),
        (&json!("error"), &json!(5))
    );
    assert_eq!(last["runId"], lines[0]["runId"]);
    assert!(
        last["runId"].as_str().is_some_and(|id| id.len() == 36),
        "{last}"
    );
}

#[tokio::test]
async fn the_client_reconnects_to_a_server_that_comes_back() {
    let (database, _client) = seeded(&many()).await;
    let first = Site::new(&database);
    migrate_state(&first);
    let one = first.start().await;
    let listen = format!("\"{}\"", one.grpc);
    let operator = Operator::of(&one).option(&["--timeout", "50s"]);
    let command = [
        "reencrypt",
        "--expect-target",
        "kv2",
        "--max-rows-per-second",
        "20",
    ];
    let call = operator.call(&command);
    let restarted = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(one.terminate().await, 0);
        Site::new(&database)
            .set("rewrap.listen", listen)
            .start()
            .await
    };
    let (exit, two) = tokio::join!(call, restarted);
    assert_eq!(exit.code, 5, "{exit:?}\n{}", two.log_text());
    assert!(exit.stdout.contains("Apply of site: stopped"), "{exit:?}");
    assert!(
        exit.stderr.contains("trying to reconnect") || exit.stderr.is_empty(),
        "{exit:?}"
    );
    // Run again, as the exit code says.
    let again = Operator::with(&[&two], certs::admin());
    let (code, run) = again.json(&["reencrypt", "--expect-target", "kv2"]).await;
    assert_eq!(code, 0, "{run}");
    assert_eq!(run["report"]["rowsExamined"], 200);
}
