//! `check` and `rotate`: at a terminal and without one.

use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;

use crate::certs;
use crate::database::Database;
use crate::operator::{Operator, json_lines};
use crate::outcome::seeded;
use crate::rewrap_client::{ask, migrate_state};
use crate::seal::{key_id, seal};
use crate::seed::{self, Org, signing_key_pem, snapshot};
use crate::server::Server;
use crate::site::{BINARY, Site};
use crate::terminal::Terminal;

/// Organizations under `kv1`, and one with a secret that nico-api wrote under `kv2`.
fn orgs(count: usize) -> Vec<Org> {
    let mut orgs: Vec<_> = (0..count)
        .map(|i| Org::under(&format!("org{i:03}"), "kv1"))
        .collect();
    orgs.push(Org::under("written", "kv2"));
    orgs
}

async fn served(count: usize) -> (Database, tokio_postgres::Client, Server) {
    let (database, client) = seeded(&orgs(count)).await;
    let site = Site::new(&database);
    migrate_state(&site);
    let server = site.start().await;
    (database, client, server)
}

/// A limit of the rate, so that the test can act during the run.
async fn slow(count: usize) -> (Database, tokio_postgres::Client, Server) {
    let (database, client) = seeded(&orgs(count)).await;
    let site = Site::new(&database).set("rewrap.max_rows_per_second", "20");
    migrate_state(&site);
    let server = site.start().await;
    (database, client, server)
}

/// The key ids of all secrets.
async fn key_ids(client: &tokio_postgres::Client) -> Vec<String> {
    let rows = snapshot(client).await;
    let texts = rows.values().flat_map(|row| row.texts.iter().flatten());
    let mut ids: Vec<_> = texts.map(|text| key_id(text)).collect();
    ids.sort();
    ids.dedup();
    ids
}

fn check<'a>(document: &'a Value, name: &str) -> &'a Value {
    let mut checks = document["checks"].as_array().unwrap().iter();
    checks
        .find(|check| check["name"] == name)
        .unwrap_or_else(|| panic!("{document}"))
}

#[tokio::test]
async fn a_check_says_what_prevents_a_rotation() {
    let (_database, client, server) = served(3).await;
    let operator = Operator::of(&server);
    let before = snapshot(&client).await;
    let (code, good) = operator.json(&["check"]).await;
    assert_eq!(
        (code, &good["kind"], &good["ok"]),
        (0, &json!("Check"), &json!(true)),
        "{good}"
    );
    assert_eq!(check(&good, "same-bytes")["result"], "OK");
    assert_eq!(good["dryRun"]["report"]["rowsUpdated"], 3);
    assert_eq!(snapshot(&client).await, before);
    let text = operator.call(&["check"]).await;
    assert!(
        text.stdout
            .contains("✓ dry run: 3 of 4 rows would be re-wrapped"),
        "{}",
        text.stdout
    );

    // A row that fails.
    seed::insert(
        &client,
        &[Org::new("lost").text(0, seal(signing_key_pem(), "kv9"))],
    )
    .await;
    let (code, bad) = operator.json(&["check"]).await;
    assert_eq!(
        (code, &check(&bad, "dry-run")["result"]),
        (3, &json!("FAILED"))
    );
    let link = "docs/troubleshooting.md#check-dry-run";
    assert_eq!(check(&bad, "dry-run")["link"], link);
    let text = operator.call(&["check", "--ascii"]).await;
    assert!(
        text.stdout.contains("x dry run: KEY_NOT_IN_SECRETS"),
        "{}",
        text.stdout
    );
    assert!(text.stdout.contains(link), "{}", text.stdout);
}

#[tokio::test]
async fn a_check_proves_that_nico_api_has_the_same_bytes() {
    // Nothing is under the target key.
    let (database, _client) = seeded(&[Org::under("a", "kv1")]).await;
    let server = Site::new(&database).start().await;
    let (code, unproven) = Operator::of(&server).json(&["check"]).await;
    let same_bytes = check(&unproven, "same-bytes");
    assert_eq!(
        (code, &same_bytes["result"]),
        (0, &json!("WARNING")),
        "{unproven}"
    );
    let message = same_bytes["message"].as_str().unwrap();
    assert!(
        message.contains("rotate the signing key of a test organization"),
        "{message}"
    );
    assert_eq!(check(&unproven, "history")["result"], "WARNING");
    // After an apply, secrets are under the target key, but nico-rewrap wrote them.
    let operator = Operator::of(&server);
    assert_eq!(
        operator
            .call(&["reencrypt", "--expect-target", "kv2"])
            .await
            .code,
        0
    );
    let client = database.client().await;
    seed::insert(&client, &[Org::under("late", "kv1")]).await;
    let (_, own) = operator.json(&["check"]).await;
    assert_eq!(check(&own, "same-bytes")["result"], "WARNING", "{own}");

    // Other bytes.
    let (database, _client) = seeded(&orgs(2)).await;
    let mut keys = crate::seal::keys(&["kv1", "kv2"]);
    keys.insert("kv2".to_owned(), [9; 32]);
    let server = Site::new(&database).keys(&keys).start().await;
    let operator = Operator::of(&server);
    let (code, wrong) = operator.json(&["check"]).await;
    assert_eq!(
        (code, &check(&wrong, "same-bytes")["result"]),
        (3, &json!("FAILED")),
        "{wrong}"
    );
    let rotate = operator.call(&["rotate", "--yes"]).await;
    assert_eq!(rotate.code, 4, "{rotate:?}");
    assert!(rotate.stderr.contains("nothing was changed"), "{rotate:?}");
}

#[tokio::test]
async fn a_rotation_at_a_terminal() {
    let (_database, client, server) = slow(60).await;
    let operator = Operator::of(&server);
    let args = operator.args(&[
        "rotate",
        "--canary",
        "org001",
        "--canary-check",
        "test \"$REWRAP_CANARY\" = org001",
    ]);
    let mut terminal = Terminal::start(&args, &[]);
    terminal.wait_for("What will happen").await;
    terminal.wait_for("Type yes to start:").await;
    assert!(
        terminal
            .screen()
            .contains("To go back: set current_encryption_key_id = \"kv1\"")
    );
    assert_eq!(key_ids(&client).await, ["kv1", "kv2"]);
    terminal.type_in("yes\n");
    terminal.wait_for("canary check of org001").await;
    // The bar of the apply of the site.
    terminal.wait_after("canary check of", "of 61 rows").await;
    terminal.type_in("\x03");
    terminal.wait_for("Type d, s or c, and Enter:").await;
    terminal.type_in("c\n");
    let code = terminal.exit_code().await;
    let screen = terminal.screen();
    assert_eq!(code, 0, "{screen}");
    assert!(
        screen.contains("nico-rewrap can-i-delete kv1 --wait"),
        "{screen}"
    );
    assert!(screen.contains('\u{1b}'), "a terminal has colors: {screen}");
    assert_eq!(key_ids(&client).await, ["kv2"]);
}

#[tokio::test]
async fn an_operator_can_stop_or_leave_a_rotation() {
    for (answer, state) in [("s\n", "RUN_STATE_STOPPED"), ("d\n", "RUN_STATE_RUNNING")] {
        let (_database, client, server) = slow(100).await;
        let args = Operator::of(&server).args(&["rotate", "--yes"]);
        let mut terminal = Terminal::start(&args, &[("NO_COLOR", "1")]);
        terminal.wait_for("apply: ").await;
        terminal.type_in("\x03");
        terminal.wait_for("Type d, s or c, and Enter:").await;
        terminal.type_in(answer);
        assert_eq!(terminal.exit_code().await, 5, "{}", terminal.screen());
        let runs = ask(&server, "ListRuns", json!({})).await;
        let apply = runs["runs"].as_array().unwrap().iter();
        let apply = apply
            .clone()
            .find(|run| run["kind"] == "RUN_KIND_APPLY")
            .unwrap();
        assert_eq!(apply["state"], state, "{}", terminal.screen());
        let id = apply["id"].as_str().unwrap();
        assert!(terminal.screen().contains(id), "{}", terminal.screen());
        assert_eq!(key_ids(&client).await, ["kv1", "kv2"]);
    }
}

#[tokio::test]
async fn a_question_without_an_answer_changes_nothing() {
    let (_database, client, server) = served(3).await;
    let operator = Operator::of(&server);
    let before = snapshot(&client).await;
    // No terminal.
    let exit = operator.call(&["rotate"]).await;
    assert_eq!(exit.code, 4, "{exit:?}");
    assert!(exit.stderr.contains("add --yes"), "{exit:?}");
    // A terminal, and --no-input.
    let args = operator.args(&["rotate", "--no-input"]);
    let mut terminal = Terminal::start(&args, &[]);
    assert_eq!(terminal.exit_code().await, 4, "{}", terminal.screen());
    // "no", and Ctrl-C at the question.
    for answer in ["no\n", "\x03"] {
        let mut terminal = Terminal::start(&operator.args(&["rotate"]), &[]);
        terminal.wait_for("Type yes to start:").await;
        terminal.type_in(answer);
        assert_eq!(terminal.exit_code().await, 4, "{}", terminal.screen());
        assert!(
            terminal.screen().contains("Nothing was changed"),
            "{}",
            terminal.screen()
        );
    }
    assert_eq!(snapshot(&client).await, before);
}

#[tokio::test]
async fn a_context_with_a_site_asks_for_its_name() {
    let (_database, _client, server) = served(2).await;
    let home = crate::process::temp_dir("home");
    let config = home.path().join("nico-rewrap/config.toml");
    std::fs::create_dir_all(config.parent().unwrap()).unwrap();
    let path = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    let text = format!(
        "current = \"x\"\n[context.x]\nsite = \"fra-1\"\nendpoint = \"{}\"\ncacert = \"{}\"\ncert = \"{}\"\nkey = \"{}\"\n",
        server.grpc,
        path(&certs::root_ca().cert),
        path(&certs::admin().cert_chain),
        path(&certs::admin().key),
    );
    std::fs::write(&config, text).unwrap();
    let operator = Operator::without_options().env("XDG_CONFIG_HOME", home.path());
    let yes = operator.call(&["rotate", "--yes"]).await;
    assert_eq!(yes.code, 4, "{yes:?}");
    assert!(yes.stderr.contains("add --confirm fra-1"), "{yes:?}");
    let wrong = operator.call(&["rotate", "--confirm", "fra-2"]).await;
    assert_eq!(wrong.code, 4, "{wrong:?}");
    assert_eq!(wrong.stdout, "", "before the checks");
    let right = operator.call(&["rotate", "--confirm", "fra-1"]).await;
    assert_eq!(right.code, 0, "{right:?}");
}

#[tokio::test]
async fn a_rotation_without_a_terminal() {
    let (_database, client, server) = served(5).await;
    let operator = Operator::of(&server);
    // A canary check that fails stops it: only the canary is under the target key.
    let stopped = operator
        .call(&[
            "rotate",
            "--yes",
            "--canary",
            "org000",
            "--canary-check",
            "exit 7",
        ])
        .await;
    assert_eq!(stopped.code, 3, "{stopped:?}");
    assert!(
        stopped.stderr.contains("the canary check of org000 failed"),
        "{stopped:?}"
    );
    let rows = snapshot(&client).await;
    let under = |id: &str| key_id(rows[id].texts[0].as_deref().unwrap());
    assert_eq!(
        (under("org000"), under("org001")),
        ("kv2".to_owned(), "kv1".to_owned())
    );

    // A canary that is refused after another one was changed: something was changed.
    let refused = operator
        .call(&["rotate", "--yes", "--canary", "org001", "--canary", "nope"])
        .await;
    assert_eq!(refused.code, 5, "{refused:?}");

    let (code, lines) = operator.lines(&["rotate", "--yes"]).await;
    assert_eq!(code, 0, "{lines:?}");
    let last = lines.last().unwrap();
    assert_eq!(
        (&last["type"], &last["exitCode"]),
        (&json!("result"), &json!(0))
    );
    let rotation = &last["result"];
    assert_eq!(rotation["kind"], "Rotation");
    assert_eq!(rotation["applies"][0]["report"]["rowsUpdated"], 3);
    assert_eq!(rotation["census"]["secrets"], 12);
    assert_eq!(
        rotation["next"],
        json!(["nico-rewrap can-i-delete kv1 --wait"])
    );
    assert_eq!(key_ids(&client).await, ["kv2"]);
    // Nothing is left to do.
    let (code, again) = operator.json(&["rotate", "--yes"]).await;
    assert_eq!((code, &again["applies"]), (0, &json!([])));
    // A row that fails.
    seed::insert(
        &client,
        &[
            Org::under("late", "kv1"),
            Org::new("lost").text(0, seal(signing_key_pem(), "kv9")),
        ],
    )
    .await;
    let (code, failed) = operator.json(&["rotate", "--yes"]).await;
    assert_eq!(code, 3, "{failed}");
    assert_eq!(failed["applies"][0]["report"]["rowsFailed"], 1);
}

#[tokio::test]
async fn somebody_who_writes_under_the_old_key_is_a_no() {
    let (_database, client, server) = served(2).await;
    // As if a nico-api still wrote under the old key.
    let operator = Operator::of(&server);
    let old = snapshot(&client).await["org000"].texts[0].clone().unwrap();
    let writer = async {
        loop {
            let sql = "UPDATE tenant_identity_config SET encrypted_signing_key_1 = $1 WHERE organization_id = 'org000'";
            client.execute(sql, &[&old]).await.unwrap();
            sleep(Duration::from_millis(5)).await;
        }
    };
    let rotate = operator.json(&["rotate", "--yes"]);
    let (code, rotation) = tokio::select! {
        result = rotate => result,
        () = writer => unreachable!(),
    };
    assert_eq!(code, 8, "{rotation}");
    assert_eq!(rotation["applies"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn sigterm_leaves_the_run_to_the_server() {
    let (_database, _client, server) = slow(100).await;
    let mut process = tokio::process::Command::new(BINARY);
    process
        .args(Operator::of(&server).args(&["rotate", "--yes", "-o", "jsonl"]))
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let process = process.spawn().unwrap();
    let pid = process.id().unwrap();
    let id = loop {
        let status = ask(&server, "GetStatus", json!({})).await;
        let runs = status["activeRuns"].as_array().unwrap().clone();
        if let Some(run) = runs.iter().find(|run| run["kind"] == "RUN_KIND_APPLY") {
            break run["id"].as_str().unwrap().to_owned();
        }
        sleep(Duration::from_millis(50)).await;
    };
    sleep(Duration::from_secs(1)).await;
    crate::process::signal(&[pid], "TERM");
    let output = process.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    let lines = json_lines(&String::from_utf8(output.stdout).unwrap());
    let last = lines.last().unwrap();
    assert_eq!(
        (&last["type"], &last["runId"]),
        (&json!("error"), &json!(id))
    );
    let run = ask(&server, "GetRun", json!({"runId": id})).await;
    assert_eq!(run["state"], "RUN_STATE_RUNNING");
}

#[tokio::test]
async fn a_status_can_be_watched() {
    let (_database, _client, server) = served(1).await;
    let operator = Operator::of(&server);
    let watch = operator
        .clone()
        .option(&["--timeout", "3s"])
        .call(&["status", "--watch"])
        .await;
    assert_eq!(watch.code, 0, "{watch:?}");
    let lines = json_lines(&watch.stdout);
    assert!(
        lines.len() >= 2 && lines[1]["kind"] == "Status",
        "{}",
        watch.stdout
    );
    let mut terminal = Terminal::start(&operator.args(&["status", "--watch"]), &[]);
    terminal.wait_for("Instances").await;
    terminal.wait_for("\u{1b}[H\u{1b}[2J").await;
    terminal.type_in("\x03");
    assert_eq!(terminal.exit_code().await, 0, "{}", terminal.screen());
}

#[tokio::test]
async fn help_is_at_most_100_columns_wide() {
    for command in [
        "--help",
        "rotate --help",
        "status --help",
        "serve -h",
        "can-i-delete --help",
    ] {
        let args: Vec<_> = command.split(' ').map(str::to_owned).collect();
        let mut terminal = Terminal::start(&args, &[("NO_COLOR", "1")]);
        assert_eq!(terminal.exit_code().await, 0);
        sleep(Duration::from_millis(200)).await;
        let screen = terminal.screen();
        let widest = screen
            .lines()
            .map(|line| line.trim_end().chars().count())
            .max();
        assert!(widest.unwrap() <= 100, "{command}: {screen}");
        assert!(screen.contains("Usage"), "{screen}");
    }
}
