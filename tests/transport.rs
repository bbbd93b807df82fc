//! Connections before any call: which TLS handshakes succeed, and how long a client can hold a
//! connection without a call.
//!
//! Authorization is not the subject here. Most sites have the feature disabled and need no
//! database.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::certs::{self, root_ca, service_cert};
use crate::database::Database;
use crate::grpcurl::Call;
use crate::handshake::{Connection, handshake};
use crate::pki::Leaf;
use crate::server::Server;
use crate::site::Site;

/// The options for each protocol version, with ALPN.
const VERSIONS: [&[&str]; 2] = [&["-tls1_2", "-alpn", "h2"], &["-tls1_3", "-alpn", "h2"]];

fn site() -> Site {
    Site::with_url("postgres://nobody@127.0.0.1:1/none").set("machine_identity.enabled", "false")
}

/// The reasons for which the server has refused handshakes so far.
async fn refused(server: &Server) -> Vec<String> {
    let name = "nico_rewrap_tls_handshake_failures_total{";
    let metrics = server.metrics().await;
    let samples = metrics.lines();
    let samples = samples.filter(|line| line.starts_with(name) && !line.ends_with(" 0"));
    samples.map(str::to_owned).collect()
}

/// Waits until the server has refused this number of handshakes for this reason. A client may know
/// of a refusal a moment before the server counts it.
pub(crate) async fn assert_refused(server: &Server, reason: &str, expected: u32) {
    let name = "nico_rewrap_tls_handshake_failures_total";
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let count = server.metric(name, &[("reason", reason)]).await;
        let count = count.unwrap_or_default();
        if count == f64::from(expected) {
            return;
        }
        assert!(
            count < f64::from(expected) && Instant::now() < deadline,
            "{reason}: {count}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Checks that the server answers a call with the error of a disabled feature.
async fn assert_served(server: &Server) {
    let call = Call::new(server, certs::admin()).without_reflection();
    let error = call.reencrypt(&json!({})).await.unwrap_err();
    assert_eq!(error.reason().unwrap(), "MACHINE_IDENTITY_DISABLED");
}

#[tokio::test]
async fn only_verified_client_certificates_are_accepted() {
    let server = site().start().await;
    let leaf = || service_cert("nico-api");
    let allowed = [
        ("without EKU", leaf()),
        ("for clients", leaf().eku("clientAuth")),
        ("for clients too", leaf().eku("serverAuth,clientAuth")),
        ("with an RSA key", leaf().rsa()),
    ];
    for (what, cert) in allowed {
        let leaf = cert.signed_by(root_ca());
        for version in VERSIONS {
            let mut connection = Connection::open(&server, Some(&leaf), version);
            assert!(connection.greet().await, "{what}, {version:?}");
        }
    }
    assert_eq!(refused(&server).await, Vec::<String>::new());

    let denied: [(&str, Option<Leaf>, &str, &str); 8] = [
        ("none", None, "certificate required", "no_certificate"),
        (
            "of another CA",
            Some(leaf().signed_by(certs::other_ca())),
            "unknown ca",
            "unknown_ca",
        ),
        (
            "self-signed",
            Some(leaf().self_signed()),
            "unknown ca",
            "unknown_ca",
        ),
        (
            "expired",
            Some(leaf().expired().signed_by(root_ca())),
            "certificate expired",
            "expired",
        ),
        (
            "not yet valid",
            Some(leaf().not_yet_valid().signed_by(root_ca())),
            "certificate expired",
            "not_yet_valid",
        ),
        (
            "for servers",
            Some(leaf().eku("serverAuth").signed_by(root_ca())),
            "unsupported certificate",
            "bad_eku",
        ),
        (
            "for anything but by name",
            Some(leaf().eku("anyExtendedKeyUsage").signed_by(root_ca())),
            "unsupported certificate",
            "bad_eku",
        ),
        (
            "of a CA itself",
            Some(leaf().ca().signed_by(root_ca())),
            "certificate unknown",
            "bad_certificate",
        ),
    ];
    let mut counts = BTreeMap::new();
    for (what, leaf, alert, reason) in denied {
        *counts.entry(reason).or_default() += 2;
        // In TLS 1.3, the client's handshake ends first. The client must wait for the alert.
        for options in [&["-tls1_2"][..], &["-tls1_3", "-ign_eof"]] {
            let error = handshake(&server, leaf.as_ref(), options).await;
            let error = error.expect_err(what);
            assert!(error.contains(alert), "{what}, {options:?}: {error}");
        }
    }
    for (reason, count) in &counts {
        assert_refused(&server, reason, *count).await;
    }
    assert_eq!(refused(&server).await.len(), counts.len(), "and no other");
    assert_served(&server).await;
}

#[tokio::test]
async fn tls_1_2_and_1_3_with_aead_suites_and_nothing_older() {
    let server = site().start().await;
    let leaf = certs::service("nico-api");
    let weakest = "ALL:COMPLEMENTOFALL:@SECLEVEL=0";
    let without_aead = "ALL:COMPLEMENTOFALL:!AESGCM:!CHACHA20:!AESCCM:!ARIAGCM:@SECLEVEL=0";
    let ok: [(&[&str], &str); 5] = [
        (&["-tls1_2", "-cipher", weakest], "New, TLSv1.2, Cipher is "),
        (&["-tls1_2", "-cipher", "AESGCM+AES128"], "-AES128-GCM-"),
        (&["-tls1_2", "-cipher", "AESGCM+AES256"], "-AES256-GCM-"),
        (&["-tls1_2", "-cipher", "CHACHA20"], "-CHACHA20-POLY1305"),
        (&["-tls1_3"], "New, TLSv1.3, Cipher is TLS_"),
    ];
    for (options, expected) in ok {
        let session = handshake(&server, Some(&leaf), options).await.unwrap();
        assert!(session.contains(expected), "{options:?}: {session}");
    }
    // openssl offers these two only with its weakest settings, as in the first line above.
    for options in [
        &["-tls1", "-cipher", weakest][..],
        &["-tls1_1", "-cipher", weakest],
        &["-tls1_2", "-cipher", without_aead],
    ] {
        let error = handshake(&server, Some(&leaf), options).await.unwrap_err();
        assert!(error.contains(" alert "), "{options:?}: {error}");
    }
    assert_refused(&server, "incompatible", 3).await;
}

#[tokio::test]
async fn a_client_without_alpn_h2_is_refused() {
    let server = site().start().await;
    let leaf = certs::service("nico-api");
    let offers = [
        ("h2", true),
        ("http/1.1,h2", true),
        ("http/1.1", false),
        ("h2c", false),
    ];
    for (offer, expected) in offers {
        let options = ["-tls1_2", "-alpn", offer];
        let session = handshake(&server, Some(&leaf), &options).await;
        match session {
            Ok(session) => assert!(expected && session.contains("ALPN protocol: h2"), "{offer}"),
            Err(error) => assert!(!expected && error.contains("no application protocol")),
        }
    }
    assert_refused(&server, "no_h2", 2).await;
    // Without ALPN, the handshake succeeds.
    let mut silent = Connection::open(&server, Some(&leaf), &["-tls1_2"]);
    assert!(!silent.greet().await);
    assert_refused(&server, "no_h2", 3).await;
}

#[tokio::test]
async fn tls_sessions_are_not_resumed() {
    let server = site().set("rewrap.idle_timeout", "\"1s\"").start().await;
    let leaf = certs::service("nico-api");
    // A resumed session would use a certificate that was valid at its start and may be revoked now.
    let options = ["-tls1_2", "-reconnect"];
    let sessions = handshake(&server, Some(&leaf), &options).await.unwrap();
    let count = |what: &str| sessions.matches(what).count();
    assert_eq!((count("New, TLSv1.2"), count("Reused, ")), (6, 0));

    let mut connection = Connection::open(&server, Some(&leaf), VERSIONS[1]);
    assert!(connection.greet().await);
    let session = connection.closed().await;
    assert!(session.contains("New, TLSv1.3"), "{session}");
    assert!(!session.contains("New Session Ticket"), "{session}");
}

#[tokio::test]
async fn an_unfinished_handshake_times_out_and_does_not_affect_others() {
    let server = site()
        .set("rewrap.handshake_timeout", "\"1s\"")
        .start()
        .await;
    let mut silent = TcpStream::connect(&server.grpc).await.unwrap();
    let mut halting = TcpStream::connect(&server.grpc).await.unwrap();
    // A TLS record whose header announces more bytes than follow.
    halting.write_all(b"\x16\x03\x01\x02\x00").await.unwrap();
    assert_served(&server).await;
    for connection in [&mut silent, &mut halting] {
        let mut answer = Vec::new();
        let end = connection.read_to_end(&mut answer);
        let end = tokio::time::timeout(Duration::from_secs(60), end).await;
        // The connection ends or is reset, and no byte arrives before.
        let _ = end.expect("the connection stays open");
        assert_eq!(answer, b"");
    }
    assert_refused(&server, "timeout", 2).await;
    assert_eq!(refused(&server).await.len(), 1, "and for no other reason");
}

#[tokio::test]
async fn invalid_tls_and_closed_connections_are_counted_separately() {
    let server = site().start().await;
    let mut plain = TcpStream::connect(&server.grpc).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert_refused(&server, "protocol_error", 1).await;
    drop(TcpStream::connect(&server.grpc).await.unwrap());
    assert_refused(&server, "closed", 1).await;
    // A client that does not trust the CA of the server's certificate.
    let wrong = ["-CAfile", certs::other_ca().cert.to_str().unwrap()];
    let leaf = certs::service("nico-api");
    for options in [[&["-tls1_2"][..], &wrong].concat(), wrong.to_vec()] {
        let session = handshake(&server, Some(&leaf), &options).await;
        session.expect_err("it trusts another CA");
    }
    assert_refused(&server, "client_alert", 2).await;
    assert_eq!(refused(&server).await.len(), 3, "and for no other reason");
    assert_served(&server).await;
    // Every line is logged before the process ends.
    assert_eq!(server.terminate().await, 0);
    let logged = server.logs_with("TLS handshake refused");
    assert_eq!(
        logged.len(),
        3,
        "closed connections are not logged: {logged:?}"
    );
}

#[tokio::test]
async fn an_idle_connection_is_closed() {
    let server = site().set("rewrap.idle_timeout", "\"1s\"").start().await;
    let leaf = certs::service("nico-api");
    let silent = Connection::open(&server, Some(&leaf), VERSIONS[1]);
    let mut greeted = Connection::open(&server, Some(&leaf), VERSIONS[0]);
    assert!(greeted.greet().await);
    assert_served(&server).await;
    silent.closed().await;
    greeted.closed().await;
}

#[tokio::test]
async fn a_connection_over_the_limit_waits_for_a_slot_and_affects_no_other() {
    let server = site()
        .set("rewrap.max_client_connections", "2")
        .start()
        .await;
    let call = || Call::new(&server, certs::admin());
    let (mut first, second) = (call().watch(), call().watch());
    let third = call()
        .without_reflection()
        .option(&["-connect-timeout", "60"]);
    let (request, two) = (json!({}), Duration::from_secs(2));
    let mut third = std::pin::pin!(third.reencrypt(&request));
    let early = tokio::time::timeout(two, &mut third).await;
    assert!(early.is_err(), "a third connection: {early:?}");
    assert!(first.is_open());
    drop(second);
    let answer = third.await.unwrap_err();
    assert_eq!(answer.reason().unwrap(), "MACHINE_IDENTITY_DISABLED");
    assert!(first.is_open());
}

#[tokio::test]
async fn a_client_that_does_not_answer_pings_is_disconnected() {
    let server = site()
        .set("rewrap.max_client_connections", "2")
        .set("rewrap.keepalive_interval", "\"1s\"")
        .set("rewrap.keepalive_timeout", "\"3s\"")
        .start()
        .await;
    let call = || Call::new(&server, certs::admin());
    let (mut live, mut frozen) = (call().watch(), call().watch());
    frozen.freeze();
    // A third connection gets a slot only when one of the two ends.
    let third = call()
        .without_reflection()
        .option(&["-connect-timeout", "60"]);
    let answer = third.reencrypt(&json!({})).await.unwrap_err();
    assert_eq!(answer.reason().unwrap(), "MACHINE_IDENTITY_DISABLED");
    assert!(live.is_open() && frozen.is_open());
}

#[tokio::test]
async fn a_request_or_headers_of_unreasonable_size_are_refused() {
    let server = Site::new(&Database::migrated().await).start().await;
    let call = || Call::new(&server, certs::admin()).without_reflection();
    let with_id = |length: usize| json!({"organizationId": "a".repeat(length), "dryRun": true});
    let largest = call().reencrypt(&with_id(16_000)).await.unwrap_err();
    assert_eq!(largest.code, "NOT_FOUND");
    let larger = call().reencrypt(&with_id(17_000)).await.unwrap_err();
    assert_eq!(larger.code, "INVALID_ARGUMENT");
    assert_eq!(larger.reason().unwrap(), "MALFORMED_REQUEST");
    let denied = Call::new(&server, certs::machine()).without_reflection();
    let denied = denied.reencrypt(&with_id(17_000)).await.unwrap_err();
    assert_eq!(denied.reason().unwrap(), "NOT_ALLOWED");
    let longest = server
        .logs_with("call")
        .iter()
        .map(|record| record.to_string().len())
        .max();
    assert!(
        longest.unwrap() < 2000,
        "what a caller likes is not all recorded"
    );

    let header = |length: usize| format!("x-unrelated: {}", "a".repeat(length));
    let health = crate::process::lasting_dir("health").join("health.proto");
    std::fs::write(&health, HEALTH).unwrap();
    let request = json!({"dryRun": true});
    call()
        .header(&header(15_000))
        .reencrypt(&request)
        .await
        .unwrap();
    for (length, times) in [(17_000, 1), (60_000, 1), (60_000, 4)] {
        let with_headers =
            |call: Call| (0..times).fold(call, |call, _| call.header(&header(length)));
        let error = with_headers(call()).reencrypt(&request).await;
        let error = error.unwrap_err();
        assert_eq!(error.code, "RESOURCE_EXHAUSTED", "{error:?}");
        assert_eq!(error.reason().unwrap(), "METADATA_TOO_LARGE");
        let denied = Call::new(&server, certs::machine()).without_reflection();
        let denied = with_headers(denied).reencrypt(&request).await;
        assert_eq!(denied.unwrap_err().reason().unwrap(), "NOT_ALLOWED");
        let health = with_headers(Call::new(&server, certs::admin()).proto(&health));
        let health = health
            .unary("grpc.health.v1.Health/Check", &json!({}))
            .await;
        assert_eq!(health.unwrap_err().code, "RESOURCE_EXHAUSTED");
    }
    call().reencrypt(&request).await.unwrap();
}

const HEALTH: &str = r#"syntax = "proto3";
package grpc.health.v1;
message HealthCheckRequest { string service = 1; }
message HealthCheckResponse { int32 status = 1; }
service Health { rpc Check(HealthCheckRequest) returns (HealthCheckResponse); }
"#;
