//! New certificates, bundles and revocation lists in a running server. The server loads good files
//! and ignores bad ones. It closes the connections whose certificate is no longer accepted.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use serde_json::json;
use tokio_postgres::Client;

use crate::certs::{self, admin_root, other_ca, root_ca, server_cert, service, service_cert};
use crate::crl::Crl;
use crate::database::Database;
use crate::faults::{orgs, slow_writes, until_written, written};
use crate::grpcurl::{Call, reencrypt, run};
use crate::handshake::{Connection, handshake};
use crate::pki::Leaf;
use crate::process::{lasting_dir, run as run_command};
use crate::seed;
use crate::server::Server;
use crate::site::{Site, path};

pub(crate) const H2: [&str; 3] = ["-tls1_3", "-alpn", "h2"];

/// TLS files in a directory of their own, which a test replaces.
pub(crate) struct Files(pub(crate) PathBuf);

impl Files {
    pub(crate) fn new() -> Self {
        let files = Self(lasting_dir("tls"));
        files.pair(certs::server());
        files.install("root.pem", &root_ca().cert);
        files.install("admin.pem", &admin_root().cert);
        files.install("crl.pem", &Crl::of(root_ca()).issue());
        files
    }

    pub(crate) fn pair(&self, leaf: &Leaf) {
        self.install("server.pem", &leaf.cert_chain);
        self.install("server.key", &leaf.key);
    }

    /// Replaces a file with a copy of `from`, atomically.
    pub(crate) fn install(&self, name: &str, from: &Path) {
        self.write(name, &fs::read(from).unwrap());
    }

    pub(crate) fn write(&self, name: &str, content: &[u8]) {
        let new = self.0.join("new");
        fs::write(&new, content).unwrap();
        fs::rename(new, self.0.join(name)).unwrap();
    }

    pub(crate) fn site(&self, site: Site) -> Site {
        let file = |name: &str| path(self.0.join(name));
        site.set("tls.identity_pemfile_path", file("server.pem"))
            .set("tls.identity_keyfile_path", file("server.key"))
            .set("tls.root_cafile_path", file("root.pem"))
            .set("tls.admin_root_cafile_path", file("admin.pem"))
            .set("rewrap.crl_files", format!("[{}]", file("crl.pem")))
            .set("rewrap.crl_policy", "\"allow_unknown\"")
            .set("rewrap.tls_reload_interval", "\"50ms\"")
    }
}

pub(crate) fn disabled() -> Site {
    Site::with_url("postgres://nobody@127.0.0.1:1/none").set("machine_identity.enabled", "false")
}

/// Waits until a metric has this value.
pub(crate) async fn until(server: &Server, name: &str, labels: &[(&str, &str)], expected: f64) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while server.metric(name, labels).await.unwrap_or_default() != expected {
        assert!(
            Instant::now() < deadline,
            "{name} is not {expected}:\n{}",
            server.log_text()
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) async fn until_reloaded(server: &Server, outcome: &str, times: f64) {
    let name = "nico_rewrap_tls_reloads_total";
    until(server, name, &[("outcome", outcome)], times).await;
}

pub(crate) async fn until_closed(server: &Server, reason: &str, connections: f64) {
    let name = "nico_rewrap_connections_revoked_total";
    until(server, name, &[("reason", reason)], connections).await;
}

/// Whether the server presents this certificate.
async fn shows(server: &Server, leaf: &Leaf) -> bool {
    let session = handshake(server, Some(&service("nico-api")), &[])
        .await
        .unwrap();
    let own = fs::read_to_string(leaf.key.with_file_name("cert.pem")).unwrap();
    session.contains(own.trim())
}

fn renewed() -> Leaf {
    server_cert().signed_by(root_ca())
}

#[tokio::test]
async fn a_renewed_pair_is_loaded_and_half_of_a_pair_is_not() {
    let files = Files::new();
    let server = files.site(disabled()).start().await;
    let failing = "nico_rewrap_tls_reload_failing";
    let (first, second) = (certs::server(), renewed());
    assert!(shows(&server, first).await);
    files.install("server.pem", &second.cert_chain);
    until_reloaded(&server, "failure", 1.0).await;
    assert!(shows(&server, first).await);
    assert_eq!(server.metric(failing, &[]).await, Some(1.0));
    // After many checks, the log has one line.
    tokio::time::sleep(Duration::from_millis(500)).await;
    failure(&server, 1).await;
    files.install("server.key", &second.key);
    until_reloaded(&server, "success", 1.0).await;
    assert!(shows(&server, &second).await);
    assert_eq!(server.metric(failing, &[]).await, Some(0.0));
    until_reloaded(&server, "failure", 1.0).await;
}

#[tokio::test]
async fn a_swap_of_the_kubernetes_symlink_is_noticed() {
    let files = Files::new();
    let mount = lasting_dir("mount");
    let fill = |name: &str, leaf: &Leaf| {
        fs::create_dir(mount.join(name)).unwrap();
        fs::copy(&leaf.cert_chain, mount.join(name).join("tls.crt")).unwrap();
        fs::copy(&leaf.key, mount.join(name).join("tls.key")).unwrap();
    };
    let second = renewed();
    fill("..2026_01", certs::server());
    fill("..2026_02", &second);
    symlink("..2026_01", mount.join("..data")).unwrap();
    for file in ["tls.crt", "tls.key"] {
        symlink(Path::new("..data").join(file), mount.join(file)).unwrap();
    }
    let server = files
        .site(disabled())
        .set("tls.identity_pemfile_path", path(mount.join("tls.crt")))
        .set("tls.identity_keyfile_path", path(mount.join("tls.key")))
        .start()
        .await;
    assert!(shows(&server, certs::server()).await);
    symlink("..2026_02", mount.join("..data_tmp")).unwrap();
    fs::rename(mount.join("..data_tmp"), mount.join("..data")).unwrap();
    fs::remove_dir_all(mount.join("..2026_01")).unwrap();
    until_reloaded(&server, "success", 1.0).await;
    assert!(shows(&server, &second).await);
}

#[tokio::test]
async fn sighup_reloads_at_once_and_does_nothing_else() {
    let files = Files::new();
    let site = files.site(disabled());
    let server = site
        .set("rewrap.tls_reload_interval", "\"1h\"")
        .start()
        .await;
    server.signal("HUP");
    server
        .wait_log("the TLS files have not changed since they were last loaded")
        .await;
    let second = renewed();
    files.pair(&second);
    assert!(!shows(&server, &second).await);
    server.signal("HUP");
    until_reloaded(&server, "success", 1.0).await;
    assert!(shows(&server, &second).await);
    assert_eq!(server.logs_with("starting").len(), 1);
    assert_eq!(server.terminate().await, 0);
}

/// The log line of this failure. A test may read it a moment after the server counts the failure.
async fn failure(server: &Server, number: usize) -> String {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let told = server
            .logs_with("TLS files not reloaded: the files that were loaded before stay in use");
        if let Some(line) = told.get(number - 1) {
            assert_eq!(told.len(), number, "once each");
            return line["error"].as_str().unwrap().to_owned();
        }
        assert!(Instant::now() < deadline, "failure {number} is not told");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn bad_files_are_not_loaded_and_are_named() {
    let files = Files::new();
    let server = files.site(disabled()).start().await;
    let expired = server_cert().expired().signed_by(root_ca());
    let pretender = crate::ca::Ca::root("/O=NICo/CN=site-root", crate::pki::Strings::Printable);
    let read = |path: &Path| fs::read(path).unwrap();
    let not_ours = read(&certs::admin().key);
    let table = [
        ("server.key", not_ours, "is not the key of the certificate"),
        ("server.key", b"".to_vec(), "holds no PEM private key"),
        ("server.pem", b"".to_vec(), "holds no PEM certificate"),
        (
            "server.pem",
            read(&expired.cert_chain),
            "is valid from 2020-01-01T00:00:00Z to",
        ),
        (
            "root.pem",
            b"\n".to_vec(),
            "root.pem holds no PEM certificate",
        ),
        (
            "admin.pem",
            b"\n".to_vec(),
            "admin.pem no longer has an admin bundle",
        ),
        (
            "admin.pem",
            b"-".to_vec(),
            "admin.pem holds no PEM certificate",
        ),
        (
            "crl.pem",
            b"".to_vec(),
            "crl.pem holds no certificate revocation list",
        ),
        (
            "crl.pem",
            read(&Crl::of(&pretender).issue()),
            "is not signed by that issuer",
        ),
    ];
    for (count, (name, content, words)) in (1_u32..).zip(table) {
        let good = fs::read(files.0.join(name)).unwrap();
        files.write(name, &content);
        until_reloaded(&server, "failure", count.into()).await;
        let error = failure(&server, usize::try_from(count).unwrap()).await;
        assert!(error.contains(words) && error.contains(name), "{error}");
        assert!(shows(&server, certs::server()).await, "{error}");
        files.write(name, &good);
        until(&server, "nico_rewrap_tls_reload_failing", &[], 0.0).await;
    }
    fs::remove_file(files.0.join("root.pem")).unwrap();
    until_reloaded(&server, "failure", 10.0).await;
    assert!(
        handshake(&server, None, &[]).await.is_err(),
        "still with certificates only"
    );
    assert!(shows(&server, certs::server()).await);
    until_reloaded(&server, "success", 0.0).await;
}

#[tokio::test]
async fn a_connection_of_a_revoked_leaf_is_closed_and_its_sibling_stays() {
    let files = Files::new();
    let server = files.site(disabled()).start().await;
    let (good, bad) = (service("nico-api"), service("nico-api"));
    let mut stays = Call::new(&server, &good).watch();
    let mut goes = Connection::open(&server, Some(&bad), &H2);
    assert!(goes.greet().await);
    // An administrator's connection. Its CA has no list.
    let mut admin = Call::new(&server, certs::admin()).watch();
    files.install("crl.pem", &Crl::of(root_ca()).revokes(&bad.key).issue());
    goes.closed().await;
    until_closed(&server, "revoked", 1.0).await;
    assert!(handshake(&server, Some(&bad), &[]).await.is_err());
    assert!(handshake(&server, Some(&good), &[]).await.is_ok());
    assert!(stays.is_open() && admin.is_open());
    until(&server, "nico_rewrap_connections_open", &[], 2.0).await;
}

/// A server that writes one row after the other, at most twenty per second.
async fn with_slow_writes(
    files: &Files,
    database: &Database,
    client: &Client,
    organizations: usize,
) -> Server {
    seed::insert(client, &orgs(organizations)).await;
    slow_writes(client, 0.05).await;
    let site = files
        .site(Site::new(database))
        .set("rewrap.database_pool_size", "1");
    site.set("rewrap.pipeline_depth", "1").start().await
}

#[tokio::test]
async fn a_run_of_a_revoked_caller_stops_at_the_next_row() {
    let database = Database::migrated().await;
    let client = database.client().await;
    let files = Files::new();
    let server = with_slow_writes(&files, &database, &client, 200).await;
    let bad = service("nico-api");
    let request = json!({});
    let mut called = std::pin::pin!(reencrypt(&server, &bad, request));
    tokio::select! {
        report = &mut called => panic!("{report:?}"),
        () = until_written(&client, 3) => {}
    }
    files.install("crl.pem", &Crl::of(root_ca()).revokes(&bad.key).issue());
    let error = called.await.unwrap_err();
    assert_ne!(error.code, "OK", "{error:?}");
    let updated = server.audited_rows("CANCELLED").await;
    assert!((3..200).contains(&updated), "{updated}");
    assert_eq!(written(&client).await, updated);
    until_closed(&server, "revoked", 1.0).await;
}

#[tokio::test]
async fn a_run_of_another_caller_continues_through_reloads() {
    let database = Database::migrated().await;
    let client = database.client().await;
    let files = Files::new();
    let server = with_slow_writes(&files, &database, &client, 60).await;
    let mut called = std::pin::pin!(run(&server, false));
    tokio::select! {
        report = &mut called => panic!("{report:?}"),
        () = until_written(&client, 3) => {}
    }
    files.install(
        "crl.pem",
        &Crl::of(root_ca()).revokes(&service("x").key).issue(),
    );
    until_reloaded(&server, "success", 1.0).await;
    files.pair(&renewed());
    assert_eq!(called.await.rows_updated, 60);
    until_closed(&server, "revoked", 0.0).await;
}

#[tokio::test]
async fn connections_under_a_removed_ca_are_closed() {
    let files = Files::new();
    let server = files.site(disabled()).start().await;
    let mut service = Call::new(&server, &service("nico-api")).watch();
    let mut admin = Connection::open(&server, Some(certs::admin()), &H2);
    assert!(admin.greet().await);
    files.install("admin.pem", &other_ca().cert);
    admin.closed().await;
    until_closed(&server, "unknown_ca", 1.0).await;
    assert!(handshake(&server, Some(certs::admin()), &[]).await.is_err());
    assert!(service.is_open());
}

#[tokio::test]
async fn a_connection_whose_identity_changes_is_closed() {
    let files = Files::new();
    let both = [root_ca(), admin_root()].map(|ca| fs::read_to_string(&ca.cert).unwrap());
    files.write("root.pem", both.concat().as_bytes());
    let server = files.site(disabled()).start().await;
    let mut service = Call::new(&server, &service("nico-api")).watch();
    let call = || Call::new(&server, certs::admin()).without_reflection();
    let allowed = call().reencrypt(&json!({})).await.unwrap_err();
    assert_eq!(allowed.reason().unwrap(), "MACHINE_IDENTITY_DISABLED");
    let mut admin = Connection::open(&server, Some(certs::admin()), &H2);
    assert!(admin.greet().await);
    // The certificate is still valid, because of the other bundle.
    files.install("admin.pem", &other_ca().cert);
    admin.closed().await;
    until_closed(&server, "identity_changed", 1.0).await;
    let denied = call().reencrypt(&json!({})).await.unwrap_err();
    assert_eq!(denied.reason().unwrap(), "NO_IDENTITY");
    assert!(service.is_open());
}

#[tokio::test]
async fn a_certificate_that_expires_ends_its_connection() {
    let files = Files::new();
    let server = files.site(disabled()).start().await;
    let brief = service_cert("nico-api").valid_for(Duration::from_secs(10));
    let brief = brief.signed_by(root_ca());
    let mut stays = Call::new(&server, &service("nico-api")).watch();
    let mut goes = Connection::open(&server, Some(&brief), &H2);
    assert!(goes.greet().await);
    goes.closed().await;
    until_closed(&server, "expired", 1.0).await;
    assert!(stays.is_open());
}

/// The clock may not be set yet, or the certificate expired while the machine was off. A restart
/// would not help.
#[tokio::test]
async fn the_server_is_not_ready_until_its_certificate_is_valid() {
    for (cert, from) in [
        (server_cert().expired(), "2020-01-01T00:00:00Z"),
        (server_cert().not_yet_valid(), "2090-01-01T00:00:00Z"),
    ] {
        let files = Files::new();
        files.pair(&cert.signed_by(root_ca()));
        let server = files.site(disabled()).start_unready().await;
        let words = format!(
            "certificate: the server's certificate of [tls].identity_pemfile_path is valid from {from}"
        );
        // Probes are answered before the files are read.
        let told = async {
            while !server.get("/readyz").await.1.contains(&words) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let in_time = tokio::time::timeout(Duration::from_secs(60), told).await;
        assert!(in_time.is_ok(), "{:?}", server.get("/readyz").await);
        assert_eq!(server.get("/readyz").await.0, 503);
        assert_eq!(server.get("/livez").await.0, 200);
        let good = renewed();
        files.pair(&good);
        server.wait_ready().await;
        assert!(shows(&server, &good).await);
        assert_eq!(server.terminate().await, 0);
    }
}

/// A certificate can also become valid without a reload.
#[tokio::test]
async fn a_server_certificate_becomes_valid_without_a_reload() {
    let from = SystemTime::now() + Duration::from_secs(8);
    let files = Files::new();
    files.pair(&server_cert().valid_from(from).signed_by(root_ca()));
    let site = files.site(disabled());
    let site = site.set("rewrap.tls_reload_interval", "\"1h\"");
    let server = site.start_unready().await;
    server.wait_ready().await;
    // A certificate counts whole seconds.
    assert!(SystemTime::now() + Duration::from_secs(1) >= from);
}

#[tokio::test]
async fn an_expired_server_certificate_does_not_block_a_new_revocation_list() {
    let files = Files::new();
    let end = Instant::now() + Duration::from_secs(15);
    let brief = server_cert().valid_for(Duration::from_secs(15));
    files.pair(&brief.signed_by(root_ca()));
    let server = files.site(disabled()).start().await;
    let (good, bad) = (service("nico-api"), service("nico-api"));
    let mut stays = Call::new(&server, &good).watch();
    let mut goes = Connection::open(&server, Some(&bad), &H2);
    assert!(goes.greet().await);
    tokio::time::sleep_until((end + Duration::from_secs(1)).into()).await;
    assert!(handshake(&server, Some(&good), &[]).await.is_err());

    files.install("crl.pem", &Crl::of(root_ca()).revokes(&bad.key).issue());
    goes.closed().await;
    until_closed(&server, "revoked", 1.0).await;
    assert!(stays.is_open());
    // These clients accept the expired certificate of the server.
    let careless = ["-tls1_2", "-no_check_time"];
    assert!(handshake(&server, Some(&bad), &careless).await.is_err());
    assert!(handshake(&server, Some(&good), &careless).await.is_ok());
    let warning = "the server's certificate of [tls].identity_pemfile_path has expired: renew it";
    server.wait_log(warning).await;

    let expired = server_cert().expired().signed_by(root_ca());
    files.pair(&expired);
    until_reloaded(&server, "failure", 1.0).await;
    assert!(
        failure(&server, 1)
            .await
            .contains("is valid from 2020-01-01")
    );
}

#[tokio::test]
async fn unreadable_files_do_not_keep_a_revoked_connection_open() {
    let files = Files::new();
    let server = files.site(disabled()).start().await;
    let brief = service_cert("nico-api").valid_for(Duration::from_secs(10));
    let brief = brief.signed_by(root_ca());
    let mut goes = Connection::open(&server, Some(&brief), &H2);
    assert!(goes.greet().await);
    // Not a regular file: a plain read would block forever.
    let fifo = files.0.join("fifo");
    run_command(Command::new("mkfifo").arg(&fifo));
    symlink(&fifo, files.0.join("link")).unwrap();
    fs::rename(files.0.join("link"), files.0.join("crl.pem")).unwrap();
    until_reloaded(&server, "failure", 1.0).await;
    let said = failure(&server, 1).await;
    assert!(said.contains("it is a FIFO, not a regular file"), "{said}");
    goes.closed().await;
    until_closed(&server, "expired", 1.0).await;
    assert!(shows(&server, certs::server()).await);
    files.install("crl.pem", &Crl::of(root_ca()).issue());
    until(&server, "nico_rewrap_tls_reload_failing", &[], 0.0).await;
}

#[tokio::test]
async fn metrics_give_the_expiry_times() {
    let files = Files::new();
    let brief = server_cert().valid_for(Duration::from_secs(86_400));
    files.pair(&brief.signed_by(root_ca()));
    let server = files.site(disabled()).start().await;
    let name = "nico_rewrap_certificate_expiry_timestamp_seconds";
    let expiry = async |of| server.metric(name, &[("certificate", of)]).await.unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let days = |time: f64| (time - now.as_ref().unwrap().as_secs_f64()) / 86_400.0;
    assert!((0.9..1.1).contains(&days(expiry("server").await)));
    for bundle in ["root_ca", "admin_root_ca"] {
        assert!(
            (3_649.0..3_651.0).contains(&days(expiry(bundle).await)),
            "{bundle}"
        );
    }
    let crl = server
        .metric("nico_rewrap_crl_next_update_timestamp_seconds", &[])
        .await;
    assert_eq!(crl, Some(3_786_912_000.0));
    files.pair(certs::server());
    until_reloaded(&server, "success", 1.0).await;
    assert!(days(expiry("server").await) > 3_649.0);
}
