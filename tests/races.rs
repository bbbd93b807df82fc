//! TLS files that change at a bad moment, or to unusual content.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::json;

use crate::anchors::issuing;
use crate::certs::{self, ADMIN_ISSUER_CN, admin_cert, root_ca, service};
use crate::crl::Crl;
use crate::database::Database;
use crate::faults::{orgs, slow_writes, until_written, written};
use crate::grpcurl::{Call, reencrypt, run};
use crate::handshake::{Connection, handshake};
use crate::pki::Cert;
use crate::process::temp_dir;
use crate::reload::{Files, H2, disabled, until, until_closed, until_reloaded};
use crate::seed;
use crate::site::{Site, path};
use crate::transport::assert_refused;

#[tokio::test]
async fn a_client_revoked_while_it_waits_for_a_slot_gets_none() {
    let files = Files::new();
    let site = files
        .site(disabled())
        .set("rewrap.max_client_connections", "1")
        .set("rewrap.handshake_timeout", "\"1m\"");
    let server = site.start().await;
    let first = Call::new(&server, certs::admin()).watch();
    // For the clients, these two handshakes have ended. The server has no free slot yet.
    let bad = service("nico-api");
    let waiting = [&bad, &service("nico-dhcp")].map(|leaf| {
        let mut connection = Connection::open(&server, Some(leaf), &H2);
        tokio::spawn(async move { connection.greet().await })
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    files.install("crl.pem", &Crl::of(root_ca()).revokes(&bad.key).issue());
    until_reloaded(&server, "success", 1.0).await;
    assert!(waiting.iter().all(|greeting| !greeting.is_finished()));
    drop(first);
    let [revoked, other] = waiting;
    assert!(!revoked.await.unwrap());
    assert!(other.await.unwrap());
    assert_refused(&server, "revoked", 1).await;
}

#[tokio::test]
async fn many_sighups_do_not_affect_a_run_or_its_record() {
    let database = Database::migrated().await;
    let client = database.client().await;
    seed::insert(&client, &orgs(40)).await;
    slow_writes(&client, 0.05).await;
    let (files, dir) = (Files::new(), temp_dir("audit"));
    let audit_log = dir.path().join("audit.log");
    let server = files
        .site(Site::new(&database))
        .set("rewrap.database_pool_size", "1")
        .set("rewrap.pipeline_depth", "1")
        .set("rewrap.audit_log", path(&audit_log))
        .start()
        .await;
    let mut run = std::pin::pin!(run(&server, false));
    let report = loop {
        tokio::select! {
            report = &mut run => break report,
            () = tokio::time::sleep(Duration::from_millis(2)) => server.signal("HUP"),
        }
    };
    assert_eq!(report.rows_updated, 40);
    let records = fs::read_to_string(&audit_log).unwrap();
    let messages: Vec<_> = records
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["message"].clone())
        .collect();
    assert_eq!(messages, ["call started", "call"]);
    until_closed(&server, "revoked", 0.0).await;
    server.wait_logs("audit log reopened", 10).await;
}

#[tokio::test]
async fn a_run_stops_when_its_caller_is_no_longer_an_administrator() {
    let database = Database::migrated().await;
    let client = database.client().await;
    seed::insert(&client, &orgs(200)).await;
    slow_writes(&client, 0.05).await;
    let files = Files::new();
    let both = [root_ca(), certs::admin_root()].map(|ca| fs::read_to_string(&ca.cert).unwrap());
    files.write("root.pem", both.concat().as_bytes());
    let site = files
        .site(Site::new(&database))
        .set("rewrap.database_pool_size", "1");
    let server = site.set("rewrap.pipeline_depth", "1").start().await;
    let mut called = std::pin::pin!(reencrypt(&server, certs::admin(), json!({})));
    tokio::select! {
        report = &mut called => panic!("{report:?}"),
        () = until_written(&client, 3) => {}
    }
    // The certificate is still valid but no longer an administrator's.
    files.install("admin.pem", &certs::other_ca().cert);
    called.await.unwrap_err();
    let updated = server.audited_rows("CANCELLED").await;
    assert!((3..200).contains(&updated), "{updated}");
    assert_eq!(written(&client).await, updated);
    until_closed(&server, "identity_changed", 1.0).await;
}

#[tokio::test]
async fn an_intermediate_that_expires_ends_the_connections_of_its_leaves() {
    let files = Files::new();
    let server = files.site(disabled()).start().await;
    let brief = Cert::new(&format!("/O=Acme/CN={ADMIN_ISSUER_CN}")).ca();
    let brief = issuing(&brief.valid_for(Duration::from_secs(10)));
    let leaf = admin_cert().signed_by(&brief);
    let mut stays = Call::new(&server, certs::admin()).watch();
    let mut goes = Connection::open(&server, Some(&leaf), &H2);
    assert!(goes.greet().await);
    goes.closed().await;
    until_closed(&server, "expired", 1.0).await;
    assert!(stays.is_open());
}

/// A name, and a function that changes a file.
type Odd<'a> = (&'a str, &'a dyn Fn(&Path));

#[tokio::test]
async fn a_file_that_becomes_invalid_changes_nothing() {
    let files = Files::new();
    let server = files.site(disabled()).start().await;
    let mut stays = Call::new(&server, certs::admin()).watch();
    let failing = "nico_rewrap_tls_reload_failing";
    // Exchange the two in one step, even if one is a directory, so that the file is never absent.
    let replace = |name: &str, with: &dyn Fn(&Path)| {
        let (file, new) = (files.0.join(name), files.0.join("odd"));
        with(&new);
        renameat_with(CWD, &new, CWD, &file, RenameFlags::EXCHANGE).unwrap();
        if new.is_dir() {
            fs::remove_dir(new).unwrap();
        } else {
            fs::remove_file(new).unwrap();
        }
    };
    for name in [
        "server.pem",
        "server.key",
        "root.pem",
        "admin.pem",
        "crl.pem",
    ] {
        let file = files.0.join(name);
        let good = fs::read(&file).unwrap();
        let half = &good[..good.len() - 40];
        let odd: [Odd<'_>; 6] = [
            ("a directory", &|at| fs::create_dir(at).unwrap()),
            ("a loop", &|at| symlink(&file, at).unwrap()),
            ("nothing", &|at| symlink("missing", at).unwrap()),
            ("without an end", &|at| symlink("/dev/zero", at).unwrap()),
            ("half of it", &|at| fs::write(at, half).unwrap()),
            ("empty", &|at| fs::write(at, "").unwrap()),
        ];
        for (what, with) in odd {
            replace(name, with);
            until(&server, failing, &[], 1.0).await;
            let session = handshake(&server, Some(&service("nico-api")), &[]).await;
            assert!(session.is_ok(), "{name} becomes {what}");
            replace(name, &|at| fs::write(at, &good).unwrap());
            until(&server, failing, &[], 0.0).await;
        }
    }
    until_reloaded(&server, "failure", 30.0).await;
    until_reloaded(&server, "success", 0.0).await;
    assert!(stays.is_open());
}
