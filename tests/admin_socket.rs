//! The admin socket: who may call there, what such a caller may do, and its limits.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::certs;
use crate::database::Database;
use crate::grpcurl::{Call, GrpcError, run};
use crate::handshake::{ACKNOWLEDGED, Connection, GREETING};
use crate::http2::{DATA, END_HEADERS, HEADERS, frame, headers};
use crate::outcome::seeded;
use crate::process::{lasting_dir, run as run_command};
use crate::rewrap_client::{ended, start_slow};
use crate::seed::Org;
use crate::server::field;
use crate::site::{Site, path, quote};
use crate::transport::assert_refused;

const TIME_LIMIT: Duration = Duration::from_secs(60);

/// The site with a socket, and its path.
pub(crate) fn with_socket(site: Site) -> (Site, PathBuf) {
    let socket = site.dir().join("admin.sock");
    (site.set("rewrap.admin_socket", path(&socket)), socket)
}

/// A site that needs no database.
pub(crate) fn disabled() -> (Site, PathBuf) {
    let site = Site::with_url("postgres://nobody@127.0.0.1:1/none");
    with_socket(site.set("machine_identity.enabled", "false"))
}

/// The answer of a method of `nico.rewrap.v1.Rewrap`.
pub(crate) async fn ask(socket: &Path, method: &str, request: Value) -> Result<Value, GrpcError> {
    let method = format!("nico.rewrap.v1.Rewrap/{method}");
    let call = Call::at_socket(socket);
    Ok(call.unary(&method, &request).await?.0)
}

/// The name of a caller with the user id of this process.
fn own_name() -> String {
    format!(
        "local:uid={}",
        run_command(Command::new("id").arg("-u")).trim()
    )
}

fn orgs() -> Vec<Org> {
    ["a", "b", "c"].map(|id| Org::under(id, "kv1")).into()
}

/// Enough for a run of a minute with one row a second, after the burst.
fn many_orgs() -> Vec<Org> {
    let id = |number| format!("org-{number:03}");
    (0..80)
        .map(|number| Org::under(&id(number), "kv1"))
        .collect()
}

fn request(kind: &str) -> Value {
    json!({"kind": kind, "site": {}, "expectTargetKeyId": "kv2"})
}

#[tokio::test]
async fn a_local_caller_may_read_everything_and_start_no_apply() {
    let (database, _client) = seeded(&orgs()).await;
    let (site, socket) = with_socket(Site::new(&database));
    let server = site.start().await;
    let call = Call::at_socket(&socket);
    let services = call.verb(&["list"]).await.unwrap();
    for service in [
        "forge.Forge",
        "grpc.health.v1.Health",
        "nico.rewrap.v1.Rewrap",
    ] {
        assert!(services.contains(service), "{services}");
    }
    let health = call.unary("grpc.health.v1.Health/Check", &json!({})).await;
    assert_eq!(health.unwrap().0["status"], "SERVING");

    let caller = ask(&socket, "WhoAmI", json!({})).await.unwrap();
    let reason = caller["reason"].as_str().unwrap();
    assert!(reason.contains("admin_socket_may_apply"), "{reason}");
    let expected = json!({
        "kind": "local", "name": own_name(), "organization": "", "group": "",
        "rule": "[rewrap].admin_socket", "allowed": true, "reason": reason,
    });
    assert_eq!(caller, expected);
    let status = ask(&socket, "GetStatus", json!({})).await.unwrap();
    assert_eq!(status["targetKeyId"], "kv2");
    for kind in ["RUN_KIND_DRY_RUN", "RUN_KIND_VERIFY", "RUN_KIND_CENSUS"] {
        let run = ask(&socket, "StartRun", request(kind)).await.unwrap();
        assert_eq!(run["caller"], own_name());
        let run = ended(&server, &run).await;
        assert_eq!(run["state"], "RUN_STATE_FINISHED", "{run}");
        let by_id = json!({"runId": run["id"]});
        assert_eq!(ask(&socket, "GetRun", by_id.clone()).await.unwrap(), run);
        let failures = ask(&socket, "ListFailures", by_id).await.unwrap();
        // The public keys of these rows are none, which only a verify sees.
        let expected = if kind == "RUN_KIND_VERIFY" { 3 } else { 0 };
        assert_eq!(failures["failures"].as_array().unwrap().len(), expected);
    }
    let keys = ask(&socket, "ListKeys", json!({})).await.unwrap();
    assert_eq!(keys["keys"][0]["secrets"], "6", "{keys}");
    let runs = ask(&socket, "ListRuns", json!({})).await.unwrap();
    assert_eq!(runs["runs"].as_array().unwrap().len(), 3);

    let one = json!({"kind": "RUN_KIND_APPLY", "organizationId": "a", "expectTargetKeyId": "kv2"});
    for apply in [request("RUN_KIND_APPLY"), one] {
        let error = ask(&socket, "StartRun", apply).await.unwrap_err();
        assert_read_only(&error);
    }
    for apply in [json!({}), json!({"organizationId": "a"})] {
        let error = call.reencrypt(&apply).await.unwrap_err();
        assert_read_only(&error);
    }
    // No run was made of it, and nothing was written.
    let runs = ask(&socket, "ListRuns", json!({})).await.unwrap();
    assert_eq!(runs["runs"].as_array().unwrap().len(), 3);
    let report = call.reencrypt(&json!({"dryRun": true})).await.unwrap();
    assert_eq!((report.rows_updated, report.rows_failed), (3, 0));

    let mut records = server.logs_with("call");
    // `ended` asks with a certificate.
    records.retain(|record| record["identity"] != "alice");
    assert!(records.iter().all(is_ours), "{records:?}");
    let refused = |record: &&Value| record["outcome"] == "ADMIN_SOCKET_READ_ONLY";
    let refused: Vec<_> = records.iter().filter(refused).collect();
    assert_eq!(refused.len(), 4);
    for record in refused {
        assert_eq!(record["denied_by"], "[rewrap].admin_socket_may_apply");
        assert_eq!(record["kind"], "apply");
        assert_eq!(record["rows_examined"], 0);
    }
    let count = async |name: &str, outcome: &str| {
        let labels = [("identity_kind", "local"), ("outcome", outcome)];
        server.metric(name, &labels).await
    };
    let calls = "nico_rewrap_calls_total";
    assert_eq!(count(calls, "ADMIN_SOCKET_READ_ONLY").await, Some(4.0));
    let decisions = "nico_rewrap_authorization_decisions_total";
    assert_eq!(count(decisions, "socket_read_only").await, Some(4.0));
}

fn assert_read_only(error: &GrpcError) {
    assert_eq!(error.code, "PERMISSION_DENIED", "{error:?}");
    assert_eq!(error.reason().unwrap(), "ADMIN_SOCKET_READ_ONLY");
    assert!(error.message.contains("[rewrap].admin_socket_may_apply"));
}

/// Whether an audit record names the local caller and no certificate.
fn is_ours(record: &Value) -> bool {
    let peer = record["peer"].as_str().unwrap_or_default();
    record["identity_kind"] == "local"
        && record["identity"] == own_name()
        && peer.starts_with("local:pid=")
        && record.get("certificate_serial").is_none()
        && record.get("certificate_issuer").is_none()
}

#[tokio::test]
async fn with_the_setting_an_apply_runs_and_names_its_caller() {
    let (database, _client) = seeded(&orgs()).await;
    let (site, socket) = with_socket(Site::new(&database));
    let site = site.set("rewrap.admin_socket_may_apply", "true");
    let server = site.start().await;
    let caller = ask(&socket, "WhoAmI", json!({})).await.unwrap();
    assert_eq!(
        (&caller["allowed"], &caller["reason"]),
        (&json!(true), &json!(""))
    );
    let one = json!({"organizationId": "a"});
    let report = Call::at_socket(&socket).reencrypt(&one).await.unwrap();
    assert_eq!(report.rows_updated, 1);
    let started = ask(&socket, "StartRun", request("RUN_KIND_APPLY")).await;
    let run = ended(&server, &started.unwrap()).await;
    assert_eq!(run["state"], "RUN_STATE_FINISHED", "{run}");
    assert_eq!(run["report"]["rowsUpdated"], "2");
    assert_eq!(run["caller"], own_name());
    // Certificates have nothing to do with the setting.
    let denied = Call::new(&server, certs::machine()).without_reflection();
    let denied = denied.reencrypt(&json!({})).await.unwrap_err();
    assert_eq!(denied.reason().unwrap(), "NOT_ALLOWED");
    let records = server.wait_logs("call", 4).await;
    let applies = records.iter().filter(|record| record["kind"] == "apply");
    assert_eq!(applies.filter(|record| is_ours(record)).count(), 2);
}

#[tokio::test]
async fn the_emergency_stop_needs_no_right_to_apply() {
    let (database, _client) = seeded(&many_orgs()).await;
    let (site, socket) = with_socket(Site::new(&database));
    let server = site.start().await;
    let run = start_slow(&server, "RUN_KIND_APPLY", 1).await;
    let id = json!({"runId": run["id"]});
    ask(&socket, "StopRun", id).await.unwrap();
    let run = ended(&server, &run).await;
    assert_eq!(run["state"], "RUN_STATE_STOPPED", "{run}");
    assert_eq!(run["caller"], "alice");
}

#[tokio::test]
async fn a_casbin_policy_is_about_certificates_and_not_about_local_callers() {
    let policy = lasting_dir("policy").join("policy.csv");
    std::fs::write(&policy, "p, external-role/nobody, forge/*\n").unwrap();
    let database = Database::migrated().await;
    let (site, socket) = with_socket(Site::new(&database));
    let site = site.set("auth.casbin_policy_file", path(&policy));
    let server = site.start().await;
    let dry_run = json!({"dryRun": true});
    let by_certificate = Call::new(&server, certs::admin());
    let error = by_certificate.reencrypt(&dry_run).await.unwrap_err();
    assert_eq!(error.reason().unwrap(), "DENIED_BY_POLICY");
    let local = Call::at_socket(&socket);
    let report = local.reencrypt(&dry_run).await.unwrap();
    assert_eq!(report.rows_examined, 0);
    let error = local.reencrypt(&json!({})).await.unwrap_err();
    assert_read_only(&error);
}

/// In a user namespace, as in a container, the kernel gives the ids of that namespace.
#[tokio::test]
async fn in_a_namespace_the_own_user_is_known_by_its_id_there() {
    let namespace = [
        "unshare",
        "-U",
        "--map-user=1234",
        "--pid",
        "--fork",
        "--kill-child",
    ];
    let (site, socket) = disabled();
    let server = site.prefix(&namespace).start().await;
    let caller = ask(&socket, "WhoAmI", json!({})).await.unwrap();
    assert_eq!(caller["name"], "local:uid=1234");
    let error = Call::at_socket(&socket).reencrypt(&json!({})).await;
    assert_read_only(&error.unwrap_err());
    let record = server.wait_log("call").await;
    assert_eq!(record["identity"], "local:uid=1234");
    // The client is outside of the namespace of processes, so it has no id there.
    assert_eq!(record["peer"], "local");
}

/// In a user namespace without a mapping, all users have the same id: that of nobody.
#[tokio::test]
async fn the_id_of_unmapped_users_is_not_accepted_even_if_the_server_has_it() {
    let (site, socket) = disabled();
    let server = site.prefix(&["unshare", "-U"]).start().await;
    let warnings = server.logs();
    let warned = |line: &&Value| {
        let message = field(line, "message").and_then(Value::as_str);
        message.is_some_and(|text| text.contains("[rewrap].admin_socket: only root may connect"))
    };
    assert_eq!(
        warnings.iter().filter(warned).count(),
        1,
        "{}",
        server.log_text()
    );
    let mut stream = UnixStream::connect(&socket).await.unwrap();
    assert!(!greet(&mut stream).await);
    assert_refused(&server, "not_accepted_uid", 1).await;
    let refusal = server.wait_log("admin socket: connection refused").await;
    assert_eq!(field(&refusal, "uid").unwrap(), 65_534);
    assert_eq!(server.logs_with("call"), Vec::<Value>::new());
}

/// Only root can connect as another user, so this test has less to do for a normal user.
#[tokio::test]
async fn another_user_is_refused_even_if_the_file_is_open_to_everybody() {
    let directory = lasting_dir("open");
    std::fs::set_permissions(&directory, PermissionsExt::from_mode(0o755)).unwrap();
    let socket = directory.join("admin.sock");
    let site = Site::with_url("postgres://nobody@127.0.0.1:1/none");
    let site = site.set("machine_identity.enabled", "false");
    let server = site.set("rewrap.admin_socket", path(&socket)).start().await;
    std::fs::set_permissions(&socket, PermissionsExt::from_mode(0o666)).unwrap();
    let connect = r#"use IO::Socket::UNIX; $SIG{PIPE} = 'IGNORE';
        my $socket = IO::Socket::UNIX->new(Peer => $ARGV[0]) or die "$!";
        syswrite $socket, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        print sysread($socket, my $answer, 1) || 0"#;
    let answered = |before: &[&str]| {
        let words = [before, &["perl", "-e", connect, socket.to_str().unwrap()]].concat();
        run_command(Command::new(words[0]).args(&words[1..])) == "1"
    };
    assert!(answered(&[]));
    if own_name() == "local:uid=0" {
        assert!(!answered(&["setpriv", "--reuid=12345", "--clear-groups"]));
        assert_refused(&server, "not_accepted_uid", 1).await;
    }
}

/// Starts HTTP/2. Returns false if the server closes the connection instead.
async fn greet(stream: &mut UnixStream) -> bool {
    // Fails if the server has ended the connection already.
    let _ = stream.write_all(GREETING).await;
    let mut seen = Vec::new();
    let reading = async {
        while !seen
            .windows(ACKNOWLEDGED.len())
            .any(|found| found == ACKNOWLEDGED)
        {
            if stream.read_buf(&mut seen).await.unwrap_or(0) == 0 {
                return false;
            }
        }
        true
    };
    timeout(TIME_LIMIT, reading).await.unwrap()
}

/// Waits until the server closes the connection.
async fn closed(stream: &mut UnixStream) {
    let end = timeout(TIME_LIMIT, stream.read_to_end(&mut Vec::new())).await;
    let _ = end.expect("the connection stays open");
}

#[tokio::test]
async fn a_local_user_has_a_quota_and_no_share_of_the_connections_of_the_network() {
    let (site, socket) = disabled();
    let limits = site
        .set("rewrap.max_client_connections", "1")
        .set("rewrap.max_connections_per_client", "2");
    let server = limits.start().await;
    let mut remote = Connection::open(&server, Some(certs::admin()), &["-alpn", "h2"]);
    assert!(remote.greet().await);
    let mut local = Vec::new();
    for _ in 0..2 {
        let mut stream = UnixStream::connect(&socket).await.unwrap();
        assert!(greet(&mut stream).await);
        local.push(stream);
    }
    let mut third = UnixStream::connect(&socket).await.unwrap();
    assert!(!greet(&mut third).await);
    assert_refused(&server, "too_many", 1).await;
    let open = server.metric("nico_rewrap_connections_open", &[]).await;
    assert_eq!(open, Some(3.0));
    drop(local);
    let again = async { while !greet(&mut UnixStream::connect(&socket).await.unwrap()).await {} };
    timeout(TIME_LIMIT, again).await.unwrap();
}

#[tokio::test]
async fn a_slow_request_and_an_idle_connection_end_as_with_tls() {
    let (site, socket) = disabled();
    let limits = site
        .set("rewrap.request_read_timeout", "\"1s\"")
        .set("rewrap.idle_timeout", "\"1s\"");
    let server = limits.start().await;
    let mut stream = UnixStream::connect(&socket).await.unwrap();
    assert!(greet(&mut stream).await);
    let head = headers(&[("content-type", "application/grpc"), (":scheme", "http")]);
    let half = [
        frame(HEADERS, END_HEADERS, 1, &head),
        frame(DATA, 0, 1, &[0, 0, 0]),
    ];
    stream.write_all(&half.concat()).await.unwrap();
    let record = server.wait_log("call").await;
    assert_eq!(record["outcome"], "SLOW_REQUEST", "{record}");
    assert!(is_ours(&record), "{record}");
    closed(&mut stream).await;
    // Without a single byte.
    closed(&mut UnixStream::connect(&socket).await.unwrap()).await;
}

#[tokio::test]
async fn a_shutdown_waits_for_the_calls_at_the_socket() {
    let (database, _client) = seeded(&many_orgs()).await;
    let (site, socket) = with_socket(Site::new(&database));
    let slow = site
        .set("rewrap.admin_socket_may_apply", "true")
        .set("rewrap.max_rows_per_second", "1");
    let server = slow.start().await;
    let client = Call::at_socket(&socket).start(&json!({}));
    server.wait_log("run started").await;
    assert_eq!(server.terminate().await, 0);
    drop(client);
    assert!(server.audited_rows("SHUTTING_DOWN").await < 80);
    assert!(is_ours(&server.wait_log("call").await));
}

#[tokio::test]
async fn without_the_setting_there_is_no_socket_and_the_right_to_apply_is_pointless() {
    let site = Site::with_url("postgres://nobody@127.0.0.1:1/none");
    let site = site
        .set("machine_identity.enabled", "false")
        .set("rewrap.admin_socket_may_apply", "true");
    let directory = site.dir().to_owned();
    let server = site.start().await;
    let listening = server.wait_log("listening").await;
    assert_eq!(field(&listening, "admin_socket"), None, "{listening}");
    let expected = quote("[rewrap].admin_socket_may_apply is true, but there is no admin socket");
    let expected = expected.trim_matches('"');
    assert!(
        server.log_text().contains(expected),
        "{}",
        server.log_text()
    );
    let files = std::fs::read_dir(directory).unwrap().flatten();
    assert!(
        files
            .map(|file| file.file_name())
            .all(|name| name != "admin.sock")
    );
    let call = Call::new(&server, certs::admin()).without_reflection();
    let error = call.reencrypt(&json!({})).await.unwrap_err();
    assert_eq!(error.reason().unwrap(), "MACHINE_IDENTITY_DISABLED");
}

/// When no certificate works any longer, the operator of the machine still sees why.
#[tokio::test]
async fn the_socket_needs_no_valid_server_certificate() {
    let expired = certs::server_cert().expired().signed_by(certs::root_ca());
    let database = Database::migrated().await;
    let (site, socket) = with_socket(Site::new(&database));
    let site = site
        .set("tls.identity_pemfile_path", path(&expired.cert_chain))
        .set("tls.identity_keyfile_path", path(&expired.key));
    let server = site.start_unready().await;
    server.wait_log("database reached").await;
    assert_eq!(server.get("/readyz").await.0, 503);
    let status = ask(&socket, "GetStatus", json!({})).await.unwrap();
    assert_eq!(status["database"]["reachable"], true);
    let error = ask(&socket, "StartRun", request("RUN_KIND_DRY_RUN")).await;
    let error = error.unwrap_err();
    assert_eq!(error.reason().unwrap(), "NOT_READY");
    assert!(error.message.contains("certificate"), "{}", error.message);
}

#[tokio::test]
async fn runs_of_both_kinds_of_callers_share_their_limit() {
    let (database, _client) = seeded(&many_orgs()).await;
    let (site, socket) = with_socket(Site::new(&database));
    let server = site.set("rewrap.max_runs", "1").start().await;
    let slow = start_slow(&server, "RUN_KIND_APPLY", 1).await;
    let error = ask(&socket, "StartRun", request("RUN_KIND_DRY_RUN")).await;
    assert_eq!(error.unwrap_err().reason().unwrap(), "TOO_MANY_RUNS");
    ask(&socket, "StopRun", json!({"runId": slow["id"]}))
        .await
        .unwrap();
    ended(&server, &slow).await;
    assert_eq!(run(&server, true).await.rows_examined, 80);
}
