//! The JSON that the client prints, and its exit codes.

use serde_json::{Value, json};

use crate::certs;
use crate::operator::{Operator, members};
use crate::outcome::seeded;
use crate::rewrap_client::{self, start_slow};
use crate::seal::seal;
use crate::seed::{self, Org, signing_key_pem};
use crate::server::Server;
use crate::site::Site;

/// Organizations under `kv1`, and one whose key nobody has.
fn orgs() -> [Org; 4] {
    [
        Org::under("a", "kv1"),
        Org::under("b", "kv1"),
        Org::under("done", "kv2"),
        Org::new("lost").text(0, seal(signing_key_pem(), "kv9")),
    ]
}

async fn served(orgs: &[Org]) -> (crate::database::Database, tokio_postgres::Client, Server) {
    let (database, client) = seeded(orgs).await;
    let site = Site::new(&database).set("rewrap.soak", "\"1ms\"");
    let server = site.start().await;
    (database, client, server)
}

#[tokio::test]
async fn keys_have_the_members_of_the_contract() {
    let (_database, _client, server) = served(&orgs()).await;
    let operator = Operator::of(&server);
    let (code, before) = operator.json(&["keys", "list"]).await;
    assert_eq!((code, &before["census"]), (0, &Value::Null));
    let census = operator
        .clone()
        .option(&["-o", "json"])
        .call(&["census"])
        .await;
    assert_eq!(census.code, 0, "{census:?}");
    let exit = operator
        .clone()
        .option(&["-o", "json"])
        .call(&["keys", "list"])
        .await;
    assert_eq!(exit.stdout, census.stdout, "the census prints the same");
    assert_eq!(
        members(&exit.stdout, 2),
        ["kind", "version", "census", "keys"]
    );
    let names = ["time", "rows", "secrets", "unreadable"];
    assert_eq!(members(&exit.stdout, 4)[..4], names);
    let key = [
        "keyId",
        "inSecrets",
        "checkValue",
        "target",
        "secrets",
        "organizations",
        "verdict",
    ];
    assert_eq!(members(&exit.stdout, 6)[..7], key);
    let verdict = [
        "state",
        "explanation",
        "cleanSince",
        "removableAt",
        "stragglers",
    ];
    assert_eq!(members(&exit.stdout, 8)[..5], verdict);
    let keys: Value = serde_json::from_str(&exit.stdout).unwrap();
    assert_eq!(
        (&keys["kind"], &keys["version"]),
        (&json!("Keys"), &json!(1))
    );
    assert_eq!(keys["census"]["rows"], 4);
    assert_eq!(keys["keys"][0]["keyId"], "kv1");
    assert_eq!(keys["keys"][0]["verdict"]["state"], "IN_USE");
    assert_eq!(keys["keys"][0]["verdict"]["cleanSince"], Value::Null);
    assert_eq!(keys["keys"][2]["inSecrets"], false);
    // The numbers of the server.
    let kv1 = rewrap_client::key(&server, "kv1").await;
    assert_eq!(
        keys["keys"][0]["secrets"].to_string(),
        kv1["secrets"].as_str().unwrap()
    );
}

#[tokio::test]
async fn a_run_has_the_members_of_the_contract_with_zeros() {
    let (_database, _client, server) = served(&orgs()).await;
    let operator = Operator::of(&server);
    let exit = operator
        .clone()
        .option(&["-o", "json"])
        .call(&["reencrypt", "--dry-run", "--org", "done"])
        .await;
    assert_eq!(exit.code, 0, "{exit:?}");
    let run = [
        "kind",
        "version",
        "id",
        "runKind",
        "scope",
        "state",
        "targetKeyId",
        "startTime",
        "endTime",
        "caller",
        "instance",
        "durable",
        "progress",
        "report",
        "failureGroups",
        "error",
        "failures",
    ];
    assert_eq!(members(&exit.stdout, 2), run);
    let document: Value = serde_json::from_str(&exit.stdout).unwrap();
    assert_eq!(
        (&document["kind"], &document["version"]),
        (&json!("Run"), &json!(1))
    );
    assert_eq!(document["runKind"], "DRY_RUN");
    assert_eq!(document["scope"], json!({"organizationId": "done"}));
    assert_eq!(
        (&document["state"], &document["error"]),
        (&json!("FINISHED"), &Value::Null)
    );
    assert_eq!(
        (&document["failureGroups"], &document["failures"]),
        (&json!([]), &json!([]))
    );
    let report = json!({
        "rowsExamined": 1, "rowsUpdated": 0, "rowsOnTarget": 1, "rowsFailed": 0, "rowsInDoubt": 0,
        "secretsRewrapped": 0, "secretsOnTarget": document["report"]["secretsOnTarget"], "secretsVerified": 0,
    });
    assert_eq!(document["report"], report);
    assert!(document["startTime"].as_str().unwrap().ends_with('Z'));
    let id = document["id"].as_str().unwrap();
    let (code, shown) = operator.json(&["runs", "show", id]).await;
    assert_eq!((code, shown), (0, document.clone()));
    let (code, list) = operator.json(&["runs", "list"]).await;
    assert_eq!((code, &list["kind"]), (0, &json!("Runs")));
    assert_eq!(list["runs"][0]["id"], document["id"]);
}

#[tokio::test]
async fn json_lines_end_with_the_result() {
    let (_database, _client, server) = served(&orgs()).await;
    let operator = Operator::of(&server);
    let (code, lines) = operator
        .lines(&["reencrypt", "--expect-target", "kv2"])
        .await;
    assert_eq!(code, 3, "{lines:?}");
    let types: Vec<_> = lines
        .iter()
        .map(|line| line["type"].as_str().unwrap())
        .collect();
    assert_eq!(
        (types[0], types[types.len() - 2]),
        ("progress", "failure"),
        "{types:?}"
    );
    let last = lines.last().unwrap();
    assert_eq!(
        (&last["type"], &last["exitCode"]),
        (&json!("result"), &json!(3))
    );
    assert_eq!(last["result"]["report"]["rowsUpdated"], 2);
    assert_eq!(lines[lines.len() - 2]["reason"], "KEY_NOT_IN_SECRETS");
    let (code, lines) = operator
        .lines(&["reencrypt", "--expect-target", "kv7"])
        .await;
    let last = lines.last().unwrap();
    assert_eq!(
        (code, &last["type"], &last["exitCode"]),
        (4, &json!("error"), &json!(4))
    );
    assert_eq!(last["reason"], "UNEXPECTED_TARGET_KEY");
}

#[tokio::test]
async fn failures_are_grouped_for_people_and_complete_in_json() {
    let (_database, _client, server) = served(&orgs()).await;
    let operator = Operator::of(&server);
    let exit = operator.call(&["reencrypt", "--dry-run"]).await;
    assert_eq!(exit.code, 3);
    for words in [
        "Dry run of site: finished",
        "KEY_NOT_IN_SECRETS (key id kv9): 1 secret of 1 organization",
        "what to do: Add the key",
        "organizations: lost",
        "4 examined: 2 would be re-wrapped, 1 on target, 1 failed",
    ] {
        assert!(exit.stdout.contains(words), "{words}: {}", exit.stdout);
    }
    let (code, run) = operator.json(&["reencrypt", "--dry-run"]).await;
    assert_eq!(code, 3);
    let failure = &run["failures"][0];
    assert_eq!(failure["organizationId"], "lost");
    assert_eq!(failure["field"], "encrypted_signing_key_1");
    let (code, verified) = operator.json(&["verify"]).await;
    assert_eq!((code, &verified["runKind"]), (3, &json!("VERIFY")));
}

#[tokio::test]
async fn each_exit_code_says_what_happened() {
    let (database, _client, server) = served(&orgs()).await;
    let operator = Operator::of(&server);
    let stranger = Operator::with(&[&server], certs::machine());
    let absent = "/nonexistent";
    let unreadable = Operator::without_options().option(&[
        "--endpoint",
        &server.grpc,
        "--cacert",
        absent,
        "--cert",
        absent,
        "--key",
        absent,
    ]);
    let nobody = Operator::at("127.0.0.1:1", certs::admin());
    let cases: &[(&Operator, &[&str], i32, &str)] = &[
        (&operator, &["whoami"], 0, ""),
        (
            &operator,
            &["reencrypt", "--org", "a"],
            2,
            "--expect-target <KEY>",
        ),
        (
            &operator,
            &["reencrypt", "--dry-run", "--org", ""],
            2,
            "organization_id is blank",
        ),
        (&operator, &["reencrypt", "--dry-run"], 3, ""),
        (
            &operator,
            &["reencrypt", "--expect-target", "kv1"],
            4,
            "this server re-wraps to key id \"kv2\", but the call expects \"kv1\"",
        ),
        (
            &operator,
            &["reencrypt", "--dry-run", "--org", "nobody"],
            4,
            "organization nobody has no machine identity",
        ),
        (&operator, &["runs", "show", "x"], 4, "there is no run x"),
        (&nobody, &["status"], 6, "cannot connect to 127.0.0.1:1"),
        (&stranger, &["whoami"], 7, ""),
        (&stranger, &["status"], 7, "this identity may not re-wrap"),
        (&operator, &["can-i-delete", "kv2"], 8, ""),
        (&operator, &["can-i-delete", "kv1"], 9, ""),
        (&unreadable, &["status"], 78, "/nonexistent can't be read"),
    ];
    for (operator, command, code, words) in cases {
        let exit = operator.call(command).await;
        assert_eq!(exit.code, *code, "{command:?}: {exit:?}");
        assert!(exit.stderr.contains(words), "{command:?}: {}", exit.stderr);
        if *code == 0 {
            assert_eq!(exit.stderr, "", "{command:?}");
        }
    }
    // 5: the run is incomplete.
    let many: Vec<_> = (0..100)
        .map(|i| Org::under(&format!("m{i:03}"), "kv1"))
        .collect();
    seed::insert(&database.client().await, &many).await;
    let run = start_slow(&server, "RUN_KIND_APPLY", 10).await;
    let id = run["id"].as_str().unwrap();
    let watched = operator
        .clone()
        .option(&["--timeout", "1s"])
        .call(&["runs", "watch", id])
        .await;
    assert_eq!(watched.code, 5, "{watched:?}");
    assert!(watched.stderr.contains(id), "{watched:?}");
    let second = operator
        .call(&["reencrypt", "--expect-target", "kv2"])
        .await;
    assert_eq!(second.code, 4);
    assert!(second.stderr.contains(id), "{second:?}");
    let (code, stopped) = operator.json(&["runs", "stop", id]).await;
    assert_eq!(
        (code, &stopped["state"]),
        (0, &json!("STOPPED")),
        "{stopped}"
    );
    assert_eq!(stopped["error"]["reason"], "STOPPED");
    let (code, _) = operator.json(&["runs", "show", id]).await;
    assert_eq!(code, 5);
    assert_eq!(server.terminate().await, 0);
}

#[tokio::test]
async fn the_verdict_is_yes_after_the_soak() {
    let (_database, client, server) = served(&[Org::under("a", "kv1")]).await;
    let operator = Operator::of(&server);
    assert_eq!(operator.json(&["census"]).await.0, 0);
    let (code, no) = operator.json(&["can-i-delete", "kv1"]).await;
    assert_eq!(
        (code, &no["answer"], &no["state"]),
        (8, &json!("NO"), &json!("IN_USE"))
    );
    assert_eq!(
        (&no["secrets"], &no["sampleOrganizationIds"]),
        (&json!(2), &json!(["a"]))
    );
    let apply = operator
        .call(&["reencrypt", "--expect-target", "kv2"])
        .await;
    assert_eq!(apply.code, 0, "{apply:?}");
    assert!(
        apply.stdout.contains("Apply of site: finished"),
        "{}",
        apply.stdout
    );
    operator.json(&["census"]).await;
    // The server takes no census by itself, so the command asks for one.
    let waiting = operator.clone().option(&["--timeout", "60s"]);
    let yes = waiting.call(&["can-i-delete", "kv1", "--wait"]).await;
    assert_eq!(yes.code, 0, "{yes:?}");
    assert!(
        yes.stdout.starts_with("Yes: kv1 is REMOVABLE"),
        "{}",
        yes.stdout
    );
    let (code, unknown) = operator.json(&["can-i-delete", "kv-typo"]).await;
    assert_eq!((code, &unknown["answer"]), (9, &json!("CANNOT_SAY")));
    // A straggler.
    seed::insert(&client, &[Org::under("late", "kv1")]).await;
    operator.json(&["census"]).await;
    let short = operator.clone().option(&["--timeout", "1s"]);
    let no = short.call(&["can-i-delete", "kv1", "--wait"]).await;
    assert_eq!(no.code, 8, "{no:?}");
    assert!(no.stderr.contains("--timeout has passed"), "{}", no.stderr);
}
