//! The audit log in a file: one record for each call, no run without a record, and log rotation.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use serde_json::{Value, json};

use crate::certs::{self, admin_cert, admin_issuer, service};
use crate::configuration::{accepted, refused};
use crate::database::Database;
use crate::grpcurl::{Call, GrpcError, Report, run};
use crate::handshake::Connection;
use crate::http2::{APPLY, DATA, END_HEADERS, END_STREAM, HEADERS, frame, headers};
use crate::pki::{Leaf, Strings};
use crate::process::temp_dir;
use crate::seed::{self, Org};
use crate::server::Server;
use crate::site::{Site, path};

async fn site(database: &Database, file: &Path) -> Server {
    let site = Site::new(database).set("rewrap.audit_log", path(file));
    site.start().await
}

/// The records of the file. Checks that every line is an object with the target `audit`.
fn records(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).unwrap();
    let parse = |line: &str| {
        let record: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert_eq!(record["target"], "audit");
        record
    };
    text.lines().map(parse).collect()
}

fn texts(records: &[Value], fields: [&str; 4]) -> Vec<String> {
    let text = |value: &Value| {
        value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned)
    };
    let tell = |record: &Value| fields.map(|field| text(&record[field])).join(" ");
    records.iter().map(tell).collect()
}

async fn call(server: &Server, leaf: &Leaf, request: Value) -> Result<Report, GrpcError> {
    let call = Call::new(server, leaf).without_reflection();
    call.reencrypt(&request).await
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "still not: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn every_call_has_one_record_and_one_before_it_touches_anything() {
    let database = Database::migrated().await;
    seed::insert(&database.client().await, &[Org::under("acme", "kv1")]).await;
    let dir = temp_dir("audit");
    let file = dir.path().join("audit.log");
    let server = site(&database, &file).await;
    let dhcp = service("nico-dhcp");
    let report = call(&server, certs::admin(), json!({"organizationId": "acme"}))
        .await
        .unwrap();
    call(&server, &dhcp, json!({})).await.unwrap_err();
    call(
        &server,
        certs::admin(),
        json!({"organizationId": "a b", "dryRun": true}),
    )
    .await
    .unwrap_err();
    let records = records(&file);
    let fields = ["message", "identity", "dry_run", "outcome"];
    let expected = [
        "call started alice false null",
        "call alice false OK",
        "call nico-dhcp false NOT_ALLOWED",
        "call alice true INVALID_ORGANIZATION_ID",
    ];
    assert_eq!(texts(&records, fields), expected);
    let fields = ["run_id", "certificate_issuer", "scope", "rows_updated"];
    let run_id = report.run_id.unwrap();
    let issuer = records[1]["certificate_issuer"].as_str().unwrap();
    assert!(issuer.contains(certs::ADMIN_ISSUER_CN), "{issuer}");
    let scope = records[1]["scope"].as_str().unwrap();
    assert!(scope.contains("acme"), "{scope}");
    assert_eq!(
        texts(&records[..2], fields),
        [
            format!("{run_id} {issuer} {scope} null"),
            format!("{run_id} {issuer} {scope} 1")
        ]
    );
    assert!(server.logs_with("call").is_empty(), "{}", server.log_text());
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o137, 0, "{mode:o}: nobody else reads or writes it");
}

#[tokio::test]
async fn a_certificate_cannot_forge_a_log_line() {
    let database = Database::migrated().await;
    let dir = temp_dir("audit");
    let file = dir.path().join("audit.log");
    let server = site(&database, &file).await;
    let names = [
        r#"x","outcome":"OK","target":"audit"#,
        r#"x\\\\"}{"target":"audit"}"#,
        "x\u{2028}{\"outcome\":\"OK\"}\u{85}\u{2029}",
        "\u{202e}KO",
    ];
    for name in names {
        let escaped = name.replace('\\', r"\\").replace('/', r"\/");
        let cert = crate::pki::Cert::new(&format!("/O=Acme/OU={escaped}/CN={escaped}"));
        let leaf = cert.strings(Strings::Utf8).signed_by(admin_issuer());
        let _ = call(&server, &leaf, json!({"organizationId": "none"})).await;
    }
    let records = records(&file);
    let calls: Vec<_> = records
        .iter()
        .filter(|record| record["message"] == "call")
        .collect();
    assert_eq!(calls.len(), names.len(), "one each: {records:?}");
    for record in calls {
        assert_ne!(record["outcome"], "OK", "{record}");
    }
    assert!(std::fs::read(&file).unwrap().is_ascii());
    assert!(admin_cert().signed_by(admin_issuer()).key.exists());
}

#[tokio::test]
async fn a_call_without_a_record_is_refused_before_anything_is_touched() {
    let database = Database::migrated().await;
    let client = database.client().await;
    seed::insert(&client, &[Org::under("acme", "kv1")]).await;
    let before = seed::snapshot(&client).await;
    let dir = temp_dir("audit");
    let link = dir.path().join("audit.log");
    // A full disk, until the test replaces the link.
    std::os::unix::fs::symlink("/dev/full", &link).unwrap();
    let server = site(&database, &link).await;
    for dry_run in [true, false] {
        let error = call(&server, certs::admin(), json!({"dryRun": dry_run}))
            .await
            .unwrap_err();
        assert_eq!(error.code, "UNAVAILABLE");
        assert_eq!(error.reason().unwrap(), "AUDIT_UNAVAILABLE");
        assert!(
            error.message.contains("[rewrap].audit_log"),
            "{}",
            error.message
        );
    }
    let denied = call(&server, &service("nico-dhcp"), json!({}))
        .await
        .unwrap_err();
    assert_eq!(denied.reason().unwrap(), "NOT_ALLOWED");
    assert_eq!(seed::snapshot(&client).await, before);
    assert!(server.logs_with("run started").is_empty());
    // The server writes the records to the log instead.
    let outcomes = |server: &Server| {
        texts(
            &server.logs_with("call"),
            ["outcome", "target", "identity", "message"],
        )
    };
    eventually("three records", || server.logs_with("call").len() == 3).await;
    assert_eq!(
        outcomes(&server),
        [
            "AUDIT_UNAVAILABLE audit alice call",
            "AUDIT_UNAVAILABLE audit alice call",
            "NOT_ALLOWED audit nico-dhcp call"
        ]
    );
    let failures = server.metric("nico_rewrap_audit_failures_total", &[]).await;
    assert_eq!(failures, Some(5.0));

    // There is room again.
    let file = dir.path().join("real.log");
    std::fs::write(&file, "").unwrap();
    std::fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    server.signal("HUP");
    server.wait_log("audit log reopened").await;
    assert_eq!(run(&server, false).await.rows_updated, 1);
    assert_eq!(records(&file).len(), 2);
}

#[tokio::test]
async fn a_record_that_is_not_required_goes_to_the_log_instead() {
    let database = Database::migrated().await;
    let client = database.client().await;
    seed::insert(&client, &[Org::under("acme", "kv1")]).await;
    let server = Site::new(&database)
        .set("rewrap.audit_log", "\"/dev/full\"")
        .set("rewrap.audit_required", "false")
        .start()
        .await;
    assert_eq!(run(&server, false).await.rows_updated, 1);
    assert_eq!(server.audited_rows("OK").await, 1);
    let failures = server.metric("nico_rewrap_audit_failures_total", &[]).await;
    assert_eq!(failures, Some(2.0));
}

#[tokio::test]
async fn without_a_file_records_are_on_stderr_in_json_whatever_is_logged_and_how() {
    let database = Database::migrated().await;
    let site = Site::new(&database).set("rewrap.log_format", "\"logfmt\"");
    let filter = "info,nico_rewrap::api::execute=off";
    let server = site
        .set("rewrap.log_filter", format!("\"{filter},audit=off\""))
        .start()
        .await;
    run(&server, true).await;
    let records = || -> Vec<Value> {
        let log = server.log_text();
        let json = log.lines().filter(|line| line.starts_with('{'));
        json.map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    eventually("a record", || !records().is_empty()).await;
    let fields = ["target", "message", "outcome", "identity"];
    assert_eq!(texts(&records(), fields), ["audit call OK alice"]);
    assert!(server.logs_with("run started").is_empty());
    assert!(!server.logs_with("listening").is_empty());
}

#[tokio::test]
async fn a_file_that_is_renamed_is_left_when_there_is_none_or_at_the_next_sighup() {
    let database = Database::migrated().await;
    let dir = temp_dir("audit");
    let (file, old) = (dir.path().join("audit.log"), dir.path().join("audit.log.1"));
    std::fs::write(
        &file,
        "{\"target\":\"audit\",\"message\":\"from before\"}\n",
    )
    .unwrap();
    let server = site(&database, &file).await;
    run(&server, true).await;
    std::fs::rename(&file, &old).unwrap();
    run(&server, true).await;
    assert_eq!((records(&old).len(), records(&file).len()), (3, 2));

    // A new file in its place, as after logrotate.
    std::fs::rename(&file, &old).unwrap();
    std::fs::write(&file, "").unwrap();
    run(&server, true).await;
    assert_eq!(records(&old).len(), 4, "nothing is lost in between");
    server.signal("HUP");
    server.wait_log("audit log reopened").await;
    run(&server, true).await;
    assert_eq!((records(&old).len(), records(&file).len()), (4, 2));

    // If the file can't be opened again, the server continues to use the open file.
    std::fs::rename(&file, &old).unwrap();
    std::fs::create_dir(&file).unwrap();
    server.signal("HUP");
    server
        .wait_log(
            "[rewrap].audit_log can't be reopened: records continue in the open file while a file exists at this path; correct the path or its permissions, then send SIGHUP",
        )
        .await;
    run(&server, true).await;
    assert_eq!(records(&old).len(), 4);
}

#[tokio::test]
async fn a_file_that_is_deleted_is_made_anew_or_no_call_is_carried_out() {
    let database = Database::migrated().await;
    let dir = temp_dir("audit");
    let (below, file) = (dir.path().join("below"), dir.path().join("below/audit.log"));
    std::fs::create_dir(&below).unwrap();
    let server = site(&database, &file).await;
    run(&server, true).await;
    assert_eq!(records(&file).len(), 2);
    std::fs::remove_file(&file).unwrap();
    run(&server, true).await;
    assert_eq!(records(&file).len(), 2);
    std::fs::remove_dir_all(&below).unwrap();
    let error = call(&server, certs::admin(), json!({})).await.unwrap_err();
    assert_eq!(error.reason().unwrap(), "AUDIT_UNAVAILABLE");
    std::fs::create_dir(&below).unwrap();
    run(&server, true).await;
    assert_eq!(records(&file).len(), 2);
}

#[tokio::test]
async fn a_file_that_can_not_be_opened_stops_the_start() {
    let database = Database::migrated().await;
    let dir = temp_dir("audit");
    let words = [
        "site.toml: [rewrap].audit_log: ",
        "can't be opened for appending (",
    ];
    for bad in [dir.path().to_owned(), dir.path().join("missing/audit.log")] {
        refused(&database, &words, |site| {
            site.set("rewrap.audit_log", path(&bad))
        })
        .await;
    }
    let words =
        ["[rewrap].audit_required: is true, but there is no audit log: set [rewrap].audit_log"];
    refused(&database, &words, |site| {
        site.set("rewrap.audit_required", "true")
    })
    .await;
    let good = dir.path().join("audit.log");
    accepted(&database, |site| {
        site.set("rewrap.audit_log", path(&good))
            .set("rewrap.audit_required", "true")
    })
    .await;
    accepted(&database, |site| site.set("rewrap.audit_required", "false")).await;
}

fn fifo(dir: &Path) -> PathBuf {
    let fifo = dir.join("audit.fifo");
    crate::process::run(std::process::Command::new("mkfifo").arg(&fifo));
    fifo
}

/// Fills a pipe that no process reads. Returns the open pipe and the number of bytes in it.
fn filled(fifo: &Path) -> (File, usize) {
    let mut options = std::fs::OpenOptions::new();
    options.read(true).write(true);
    options.custom_flags(OFlags::NONBLOCK.bits().cast_signed());
    let mut pipe = options.open(fifo).unwrap();
    let mut filled = 0;
    while let Ok(length) = pipe.write(&[b'x'; 4096]) {
        filled += length;
    }
    (pipe, filled)
}

#[tokio::test]
async fn a_refusal_has_its_record_if_the_client_goes_while_it_is_written() {
    let database = Database::migrated().await;
    let dir = temp_dir("audit");
    let fifo = fifo(dir.path());
    let _pipe = filled(&fifo);
    let server = site(&database, &fifo).await;
    let options = ["-tls1_3", "-alpn", "h2"];
    let mut connection = Connection::open(&server, Some(certs::admin()), &options);
    assert!(connection.greet().await);
    let path = (":path", "/forge.Forge/Nothing");
    let call = headers(&[path, ("content-type", "application/grpc")]);
    let frames = [
        frame(HEADERS, END_HEADERS, 1, &call),
        frame(DATA, END_STREAM, 1, &APPLY),
    ];
    connection.send(&frames.concat()).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    drop(connection);
    let record = server.wait_log("call").await;
    assert_eq!(record["outcome"], "UNKNOWN_METHOD", "{record}");
}

#[tokio::test]
async fn an_audit_log_that_hangs_counts_as_failed() {
    let database = Database::migrated().await;
    let client = database.client().await;
    seed::insert(&client, &[Org::under("acme", "kv1")]).await;
    let before = seed::snapshot(&client).await;
    let dir = temp_dir("audit");
    let fifo = fifo(dir.path());
    let words = [
        "site.toml: [rewrap].audit_log: ",
        "can't be opened for appending (",
    ];
    refused(&database, &words, |site| {
        site.set("rewrap.audit_log", path(&fifo))
    })
    .await;

    let (mut pipe, filled) = filled(&fifo);
    let server = site(&database, &fifo).await;
    let error = call(&server, certs::admin(), json!({})).await.unwrap_err();
    assert_eq!(error.reason().unwrap(), "AUDIT_UNAVAILABLE");
    assert_eq!(seed::snapshot(&client).await, before);
    assert_eq!(
        server.wait_log("call").await["outcome"],
        "AUDIT_UNAVAILABLE"
    );
    // After a read, the pending line arrives, and calls succeed.
    let mut old = vec![0; filled];
    pipe.read_exact(&mut old).unwrap();
    assert_eq!(run(&server, false).await.rows_updated, 1);
    let mut text = vec![0; 16_384];
    let length = pipe.read(&mut text).unwrap();
    let text = String::from_utf8_lossy(&text[..length]);
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let fields = ["message", "outcome", "identity", "dry_run"];
    let expected = [
        "call started null alice false",
        "call started null alice false",
        "call OK alice false",
    ];
    assert_eq!(texts(&lines, fields), expected);
}
