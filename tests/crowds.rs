//! Many clients at once, and slow clients: they cannot affect other clients. `floods.rs` tests
//! the content of their requests.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::certs;
use crate::database::Database;
use crate::grpcurl::{Call, run};
use crate::handshake::Connection;
use crate::http2::{
    APPLY, CANCEL, DATA, END_HEADERS, END_STREAM, HEADERS, RST_STREAM, frame, headers,
};
use crate::pki::Leaf;
use crate::server::Server;
use crate::site::Site;
use crate::transport::assert_refused;

fn site() -> Site {
    Site::with_url("postgres://nobody@127.0.0.1:1/none")
        .set("machine_identity.enabled", "false")
        .set("rewrap.handshake_timeout", "\"10m\"")
        .set("rewrap.max_concurrent_handshakes", "8")
}

/// A client at this loopback address that connects and sends nothing.
async fn silent(server: &Server, from: &str) -> TcpStream {
    knock(&server.grpc, from).await
}

async fn knock(at: &str, from: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
    socket.connect(at.parse().unwrap()).await.unwrap()
}

/// Waits until the server closes this connection.
async fn ended(stream: &mut TcpStream) {
    let mut nothing = [0];
    let end = tokio::time::timeout(Duration::from_secs(60), stream.read(&mut nothing)).await;
    // The connection ends or is reset.
    assert_eq!(end.expect("the connection stays open").unwrap_or(0), 0);
}

fn is_open(stream: &TcpStream) -> bool {
    let error = stream.try_read(&mut [0]).map_err(|error| error.kind());
    error == Err(std::io::ErrorKind::WouldBlock)
}

async fn assert_served(server: &Server) {
    let call = Call::new(server, certs::admin()).without_reflection();
    let error = call.reencrypt(&json!({})).await.unwrap_err();
    assert_eq!(error.reason().unwrap(), "MACHINE_IDENTITY_DISABLED");
}

#[tokio::test]
async fn silent_clients_lose_their_slots_to_others() {
    let server = site()
        .set("rewrap.max_client_connections", "1")
        .start()
        .await;
    let mut clients = Vec::new();
    for _ in 0..30 {
        clients.push(silent(&server, "127.0.0.1").await);
    }
    assert_served(&server).await;
    // The server closes the oldest connections first. The last closed connection made room for the
    // call.
    let (gone, staying) = clients.split_at_mut(23);
    for client in gone {
        ended(client).await;
    }
    assert!(staying.iter().all(is_open));
    assert_refused(&server, "too_many", 23).await;
    assert_refused(&server, "timeout", 0).await;
}

#[tokio::test]
async fn many_connections_from_one_address_do_not_affect_another() {
    let server = site().start().await;
    let patient = silent(&server, "127.0.0.2").await;
    let mut crowd = Vec::new();
    for _ in 0..30 {
        crowd.push(silent(&server, "127.0.0.1").await);
    }
    for client in &mut crowd[..23] {
        ended(client).await;
    }
    assert!(is_open(&patient), "it came before all of them");
    assert_served(&server).await;
    assert!(is_open(&patient));
}

#[tokio::test]
async fn connections_beyond_the_limit_are_refused() {
    let server = Site::new(&Database::migrated().await)
        .set("rewrap.max_client_connections", "20")
        .set("rewrap.handshake_timeout", "\"2s\"")
        .start()
        .await;
    let leaf = certs::service("nico-api");
    let open = || Connection::open(&server, Some(&leaf), &["-tls1_3", "-alpn", "h2"]);
    let mut connections = Vec::new();
    for _ in 0..19 {
        let mut connection = open();
        assert!(connection.greet().await);
        connections.push(connection);
    }
    // One connection over the limit, and another one.
    assert_eq!(run(&server, true).await.rows_examined, 0);
    let mut last = open();
    assert!(last.greet().await);
    assert!(!open().greet().await);
    assert_refused(&server, "too_many", 1).await;
    let count = async || server.metric("nico_rewrap_connections_open", &[]).await;
    assert_eq!(count().await, Some(20.0));
    drop(connections);
    let one = async { while count().await != Some(1.0) {} };
    tokio::time::timeout(Duration::from_secs(60), one)
        .await
        .unwrap();
    assert_eq!(run(&server, true).await.rows_examined, 0);
}

/// A call that announces a message of one byte: its headers and the beginning of the message.
fn half_a_request() -> Vec<u8> {
    let headers = headers(&[("content-type", "application/grpc")]);
    [
        frame(HEADERS, END_HEADERS, 1, &headers),
        frame(DATA, 0, 1, &[0, 0, 0]),
    ]
    .concat()
}

#[tokio::test]
async fn an_incomplete_request_does_not_hold_its_connection() {
    let server = Site::new(&Database::migrated().await)
        .set("rewrap.request_read_timeout", "\"1s\"")
        .set("rewrap.idle_timeout", "\"1s\"")
        .start()
        .await;
    let options = ["-tls1_3", "-alpn", "h2"];
    let mut connection = Connection::open(&server, Some(certs::admin()), &options);
    assert!(connection.greet().await);
    connection.send(&half_a_request()).await;
    // Sending a byte now and then does not extend the time.
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(400)).await;
        connection.send(&frame(DATA, 0, 1, &[0])).await;
    }
    let record = server.wait_log("call").await;
    assert_eq!(record["outcome"], "SLOW_REQUEST", "{record}");
    assert_eq!(record["identity"], "alice");
    connection.closed().await;
    // The answer to a complete request may take longer than that.
    let watch = Call::new(&server, certs::admin()).watch();
    assert_eq!(run(&server, true).await.rows_examined, 0);
    drop(watch);
}

#[tokio::test]
async fn one_client_cannot_exceed_its_quota_of_connections() {
    let site = site().set("rewrap.max_connections_per_client", "2");
    let server = site.start().await;
    let open = |leaf: &Leaf| Connection::open(&server, Some(leaf), &["-tls1_3", "-alpn", "h2"]);
    let (first, renewed) = (certs::service("nico-dhcp"), certs::service("nico-dhcp"));
    let mut own = [open(&first), open(&renewed)];
    for connection in &mut own {
        assert!(connection.greet().await);
    }
    for leaf in [&first, &renewed] {
        assert!(!open(leaf).greet().await);
    }
    assert_refused(&server, "too_many", 2).await;
    // Other clients have their own quota.
    assert_served(&server).await;
    let others = [certs::service("nico-api"), certs::machine().clone()];
    for leaf in &others {
        assert!(open(leaf).greet().await);
    }
    drop(own);
    let again = async { while !open(&first).greet().await {} };
    tokio::time::timeout(Duration::from_secs(60), again)
        .await
        .unwrap();
}

#[tokio::test]
async fn silent_connections_to_the_probes_lose_their_slots_to_others() {
    let server = site().start().await;
    let patient = knock(&server.http, "127.0.0.2").await;
    let mut crowd = Vec::new();
    for _ in 0..200 {
        crowd.push(knock(&server.http, "127.0.0.1").await);
    }
    // 64 connections have a slot. One of them is from the other address.
    for client in &mut crowd[..137] {
        ended(client).await;
    }
    assert!(is_open(&patient));
    assert_eq!(server.get("/livez").await, (200, "ok\n".to_owned()));
    // A slow connection loses its slot, too.
    let mut slow = knock(&server.http, "127.0.0.3").await;
    slow.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\nX: ")
        .await
        .unwrap();
    ended(&mut slow).await;
}

/// A connection of this client with this number of calls.
async fn calling(server: &Server, leaf: &Leaf, calls: u32) -> Connection {
    let mut connection = Connection::open(server, Some(leaf), &["-tls1_3", "-alpn", "h2"]);
    assert!(connection.greet().await);
    let requests = (0..calls).flat_map(|number| {
        let stream = number * 2 + 1;
        let headers = headers(&[("content-type", "application/grpc")]);
        let headers = frame(HEADERS, END_HEADERS, stream, &headers);
        [headers, frame(DATA, END_STREAM, stream, &APPLY)].concat()
    });
    connection.send(&requests.collect::<Vec<_>>()).await;
    connection
}

/// Denied calls on eight connections, on each as many as the server allows.
async fn denied_crowd(server: &Server) -> Vec<Connection> {
    let mut connections = Vec::new();
    for _ in 0..8 {
        connections.push(calling(server, certs::machine(), 64).await);
    }
    connections
}

#[tokio::test]
async fn denied_calls_are_rate_limited_and_allowed_calls_are_not() {
    let server = Site::new(&Database::migrated().await).start().await;
    let _crowd = denied_crowd(&server).await;
    // The burst of the rate limiter is used up.
    server.wait_logs("call", 101).await;
    assert_eq!(run(&server, true).await.rows_examined, 0);
    let dhcp = certs::service("nico-dhcp");
    let denied = Call::new(&server, &dhcp).without_reflection();
    let denied = denied.reencrypt(&json!({})).await.unwrap_err();
    assert_eq!(denied.reason().unwrap(), "NOT_ALLOWED");
    let records = server.logs_with("call");
    let of_crowd = records.iter().filter(|it| it["identity_kind"] == "machine");
    assert!(of_crowd.count() < 8 * 64, "the others are not behind them");
    // A burst of 100, then ten per second.
    let records = server.wait_logs("call", 130).await;
    let time = |record: &serde_json::Value| {
        humantime::parse_rfc3339(record["timestamp"].as_str().unwrap()).unwrap()
    };
    let took = time(&records[128])
        .duration_since(time(&records[0]))
        .unwrap();
    assert!(took > Duration::from_secs(2), "{took:?}");
}

#[tokio::test]
async fn a_denied_client_that_disconnects_still_leaves_a_record() {
    let server = Site::new(&Database::migrated().await).start().await;
    let _crowd = denied_crowd(&server).await;
    server.wait_logs("call", 101).await;
    let soon = Duration::from_millis(50);
    let mut resetting = calling(&server, &certs::service("nico-dhcp"), 3).await;
    tokio::time::sleep(soon).await;
    let resets = [1, 3, 5].map(|stream| frame(RST_STREAM, 0, stream, &CANCEL));
    resetting.send(&resets.concat()).await;
    let leaving = calling(&server, &certs::service("nico-dns"), 1).await;
    tokio::time::sleep(soon).await;
    drop(leaving);

    let records = |identity: &str| {
        let records = server.logs_with("call");
        let theirs = records.iter().filter(|it| it["identity"] == identity);
        theirs.count()
    };
    let all_told = async || {
        let unrecorded = "nico_rewrap_audit_denials_dropped_total";
        let unrecorded = server.metric(unrecorded, &[]).await.unwrap();
        let recorded = records("nico-dhcp");
        (recorded >= 1 && records("nico-dns") == 1).then_some(recorded as f64 + unrecorded)
    };
    let told = async { while all_told().await != Some(3.0) {} };
    let told = tokio::time::timeout(Duration::from_secs(60), told).await;
    assert!(told.is_ok(), "{}", server.log_text());
}

#[tokio::test]
async fn failed_handshakes_are_counted_and_do_not_fill_the_log() {
    let server = site().start().await;
    for _ in 0..1000 {
        let mut client = silent(&server, "127.0.0.1").await;
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        // The server sends an alert first.
        let _ = client.read_to_end(&mut Vec::new()).await;
    }
    assert_refused(&server, "protocol_error", 1000).await;
    let told = server.logs_with("TLS handshake refused").len();
    assert!((100..1000).contains(&told), "{told}");
}
