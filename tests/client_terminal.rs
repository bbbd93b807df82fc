//! The client in narrow terminals, and with readers that leave.

use std::process::{Command, Stdio};

use crate::certs;
use crate::database::Database;
use crate::operator::Operator;
use crate::outcome::{seeded, serve};
use crate::picture::Screen;
use crate::rewrap_client::migrate_state;
use crate::seed::Org;
use crate::server::Server;
use crate::site::{BINARY, Site};
use crate::terminal::Terminal;

async fn served() -> (Database, Server) {
    let mut orgs: Vec<_> = (0..40)
        .map(|index| Org::under(&format!("org-{index:02}"), "kv1"))
        .collect();
    orgs.push(Org::under("written", "kv2"));
    let (database, client) = seeded(&orgs).await;
    // An estimate of the number of rows.
    client.batch_execute("ANALYZE").await.unwrap();
    let site = Site::new(&database)
        .set("rewrap.max_rows_per_second", "20")
        .set("rewrap.page_size", "5");
    migrate_state(&site);
    let server = site.start().await;
    (database, server)
}

#[tokio::test]
async fn a_rotation_in_a_narrow_terminal() {
    const COLUMNS: u16 = 40;
    let (_database, server) = served().await;
    let args = Operator::of(&server).args(&["rotate", "--ascii"]);
    let mut terminal = Terminal::sized(&args, &[], 200, COLUMNS);
    terminal.wait_for("Type yes to start:").await;
    terminal.type_in("yes\n");
    // A narrow terminal has no room for a bar.
    terminal.wait_after("Type yes", "%  apply: ").await;
    assert_eq!(terminal.exit_code().await, 0, "{}", terminal.screen());
    let screen = Screen::of(&terminal.screen(), 200, COLUMNS).text();
    assert!(screen.is_ascii(), "{screen}");
    // The bars are gone, and none has left a line.
    assert!(!screen.contains("%  "), "{screen}");
    // Sentences break between words.
    let line = "+ the files on disk are those that the\n  server has read\n";
    assert!(screen.contains(line), "{screen}");
    let line = "  To go back: set\n  current_encryption_key_id = \"kv1\",\n  restart nico-api";
    assert!(screen.contains(line), "{screen}");
}

#[tokio::test]
async fn an_expired_certificate_is_named() {
    let (_database, _client, server) = serve(&[]).await;
    let expired = certs::admin_cert()
        .expired()
        .signed_by(certs::admin_issuer());
    let operator = Operator::with(&[&server], &expired);
    for command in [&["status"][..], &["check"], &["rotate", "--yes"]] {
        let exit = operator.call(command).await;
        assert_eq!(exit.code, 7, "{exit:?}");
        let text = exit.stdout + &exit.stderr;
        assert!(text.contains("CertificateExpired"), "{text}");
    }
}

#[tokio::test]
async fn a_name_without_an_address_is_an_instance_that_does_not_answer() {
    let (_database, _client, server) = serve(&[]).await;
    let both = format!("{},instance.invalid:1179", server.grpc);
    let operator = Operator::at(&both, certs::admin());
    let status = operator.call(&["status"]).await;
    assert_eq!(status.code, 0, "{status:?}");
    let line = "1 of 2 addresses do not answer";
    assert!(status.stdout.contains(line), "{}", status.stdout);
    assert!(status.stdout.contains("instance.invalid:1179"));
    let alone = Operator::at("instance.invalid", certs::admin());
    let exit = alone.call(&["keys", "list"]).await;
    assert_eq!(exit.code, 6, "{exit:?}");
    assert!(exit.stderr.contains("check the name and DNS"), "{exit:?}");
}

/// Runs the program with a standard output that nobody reads. Returns the exit code and standard
/// error.
fn unread(args: &[String]) -> (Option<i32>, String) {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = Command::new(BINARY)
        .args(args)
        .env_clear()
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
        .wait_with_output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!text.contains("panicked"), "{args:?}: {text}");
    (output.status.code(), text)
}

#[tokio::test]
async fn no_command_panics_if_nobody_reads() {
    let (database, server) = served().await;
    let operator = Operator::of(&server);
    for (command, code) in [
        (&["status"][..], 0),
        (&["status", "--watch"], 0),
        (&["check", "-o", "json"], 0),
        (&["can-i-delete", "kv1"], 8),
        (&["rotate", "--yes", "-o", "jsonl"], 0),
        (&["runs", "list"], 0),
    ] {
        let args = operator.args(command);
        let (exit, said) = tokio::task::spawn_blocking(move || unread(&args))
            .await
            .unwrap();
        assert_eq!(exit, Some(code), "{command:?}: {said}");
    }
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    for command in [&["completion", "zsh"][..], &["man"], &["context", "list"]] {
        let args: Vec<String> = words(command);
        assert_eq!(unread(&args).0, Some(0), "{command:?}");
    }
    let site = Site::new(&database);
    for (command, sub) in [("config", "check"), ("state", "migrate")] {
        let mut args = site.write(command);
        args.insert(1, sub.to_owned());
        assert_eq!(unread(&args).0, Some(0), "{command} {sub}");
    }
    // A key that nobody has read is lost.
    let (code, said) = unread(&words(&["keys", "generate", "--id", "kv3"]));
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains("the key was not printed"), "{said}");
}
