//! The JSON of every command of the client: one document, whatever the result.

use serde_json::{Value, json};

use crate::certs;
use crate::operator::{Operator, members};
use crate::outcome::{seeded, serve};
use crate::pki::Cert;
use crate::process::temp_dir;
use crate::rewrap_client::migrate_state;
use crate::seal::seal;
use crate::seed::{self, Org, signing_key_pem};
use crate::site::Site;

/// The exit code and the document. It is the only thing on standard output.
async fn document(operator: &Operator, command: &[&str]) -> (i32, Value) {
    let exit = operator.clone().option(&["-o", "json"]).call(command).await;
    let document: Value = serde_json::from_str(&exit.stdout)
        .unwrap_or_else(|error| panic!("{command:?}: {error}: {exit:?}"));
    assert_eq!(members(&exit.stdout, 2)[..2], ["kind", "version"]);
    assert_eq!(document["version"], 1, "{command:?}");
    (exit.code, document)
}

#[tokio::test]
async fn every_command_prints_one_document() {
    let (database, client) = seeded(&[Org::under("a", "kv1"), Org::under("b", "kv2")]).await;
    seed::set_public_keys(&client).await;
    let site = Site::new(&database).set("rewrap.soak", "\"1h\"");
    migrate_state(&site);
    let server = site.start().await;
    let operator = Operator::of(&server);
    let (code, run) = document(&operator, &["reencrypt", "--dry-run"]).await;
    assert_eq!((code, &run["kind"]), (0, &json!("Run")));
    let id = run["id"].as_str().unwrap();
    let commands: [(&[&str], i32, &str); 16] = [
        (&["whoami"], 0, "Caller"),
        (&["status"], 0, "Status"),
        (&["check"], 0, "Check"),
        (&["check", "--expect-target", "kv9"], 3, "Check"),
        (
            &["rotate", "--yes", "--expect-target", "kv9"],
            4,
            "Rotation",
        ),
        (&["rotate", "--yes"], 0, "Rotation"),
        (&["reencrypt", "--expect-target", "kv2"], 0, "Run"),
        (&["verify"], 0, "Run"),
        (&["census"], 0, "Keys"),
        (&["keys", "list"], 0, "Keys"),
        (&["can-i-delete", "kv1"], 8, "Verdict"),
        (&["can-i-delete", "no-such-key"], 9, "Verdict"),
        (&["runs", "list"], 0, "Runs"),
        (&["runs", "show", id], 0, "Run"),
        (&["runs", "watch", id], 0, "Run"),
        (&["runs", "stop", id], 0, "Run"),
    ];
    for (command, code, kind) in commands {
        let (exit, document) = document(&operator, command).await;
        assert_eq!(
            (exit, document["kind"].as_str()),
            (code, Some(kind)),
            "{command:?}: {document}"
        );
    }
    // The checks that refuse a rotation are in its document.
    let (_, refused) = document(&operator, &["rotate", "--yes", "--expect-target", "kv9"]).await;
    let checks = refused["checks"].as_array().unwrap();
    let failed = checks.iter().find(|check| check["result"] == "FAILED");
    assert_eq!(failed.unwrap()["name"], "expected-target", "{refused}");
    assert_eq!(refused["applies"], json!([]));
    let (code, lines) = operator
        .lines(&["rotate", "--yes", "--expect-target", "kv9"])
        .await;
    let last = lines.last().unwrap();
    assert_eq!(
        (code, &last["type"], &last["exitCode"]),
        (4, &json!("result"), &json!(4))
    );
    // Rows that fail.
    let lost = Org::new("lost").text(0, seal(signing_key_pem(), "kv9"));
    seed::insert(&client, &[lost]).await;
    let (code, run) = document(&operator, &["verify"]).await;
    assert_eq!(
        (code, &run["failures"][0]["organizationId"]),
        (3, &json!("lost"))
    );
}

#[tokio::test]
async fn a_problem_is_a_document_too() {
    let (_database, _client, server) = serve(&[]).await;
    let operator = Operator::of(&server);
    let stranger = Cert::new("/CN=stranger").signed_by(certs::root_ca());
    let stranger = Operator::with(&[&server], &stranger);
    let unreachable = Operator::at("127.0.0.1:1", certs::admin());
    let no_server = Operator::without_options();
    let no_context = Operator::without_options().option(&["--context", "nowhere"]);
    let cases: [(&Operator, &[&str], i32); 9] = [
        (&unreachable, &["status"], 6),
        (&unreachable, &["check"], 6),
        (&no_server, &["keys", "list"], 6),
        (&no_context, &["status"], 78),
        (&stranger, &["keys", "list"], 7),
        (&stranger, &["rotate", "--yes"], 7),
        (&operator, &["runs", "show", "no-such-run"], 4),
        (&operator, &["receipt", "show", "no-such-run"], 4),
        (&operator, &["reencrypt", "--expect-target", "kv9"], 4),
    ];
    for (operator, command, code) in cases {
        let (exit, problem) = document(operator, command).await;
        assert_eq!(
            (exit, problem["kind"].as_str(), &problem["exitCode"]),
            (code, Some("Error"), &json!(code)),
            "{command:?}: {problem}"
        );
        let message = problem["message"].as_str().unwrap();
        assert!(message.len() > 20, "{problem}");
        for member in ["reason", "runId", "metadata"] {
            assert!(!problem[member].is_null(), "{member}: {problem}");
        }
    }
}

#[tokio::test]
async fn the_commands_about_contexts_print_one_document() {
    let home = temp_dir("home");
    let config = home.path().join("nico-rewrap/config.toml");
    std::fs::create_dir_all(config.parent().unwrap()).unwrap();
    std::fs::write(
        &config,
        "[context.fra]\nendpoint = \"a\"\ncacert = \"ca.pem\"\n",
    )
    .unwrap();
    let operator = Operator::without_options().env("XDG_CONFIG_HOME", home.path());
    for (command, code, kind) in [
        (&["context", "list"][..], 0, "Contexts"),
        (&["context", "show", "fra"], 0, "Context"),
        (&["context", "use", "fra"], 0, "Context"),
        (&["context", "use", "nowhere"], 78, "Error"),
    ] {
        let (exit, document) = document(&operator, command).await;
        assert_eq!((exit, document["kind"].as_str()), (code, Some(kind)));
    }
    std::fs::write(&config, "[context.fra\n").unwrap();
    let (code, problem) = document(&operator, &["context", "list"]).await;
    assert_eq!(code, 78);
    let message = problem["message"].as_str().unwrap();
    assert!(
        message.contains("config.toml") && message.contains("line 1"),
        "{message}"
    );
}
