//! Malformed requests that no gRPC client sends. The server carries out none of them and records
//! each.

use serde_json::Value;

use crate::certs;
use crate::database::Database;
use crate::handshake::Connection;
use crate::http2::{APPLY, DATA, END_HEADERS, END_STREAM, HEADERS, METHOD, frame, headers};
use crate::pki::Leaf;
use crate::seed::{self, Org};
use crate::server::Server;
use crate::site::Site;

const GRPC: (&str, &str) = ("content-type", "application/grpc");

/// Sends a site-wide apply with these header fields. Returns its audit record.
async fn record(server: &Server, leaf: &Leaf, fields: &[(&str, &str)]) -> Value {
    record_of(server, leaf, fields, &APPLY).await
}

/// The same, with these bytes as the body of the request.
async fn record_of(server: &Server, leaf: &Leaf, fields: &[(&str, &str)], body: &[u8]) -> Value {
    let before = server.logs_with("call").len();
    let options = ["-tls1_3", "-alpn", "h2"];
    let mut connection = Connection::open(server, Some(leaf), &options);
    assert!(connection.greet().await);
    let request = [
        frame(HEADERS, END_HEADERS, 1, &headers(fields)),
        frame(DATA, END_STREAM, 1, body),
    ];
    connection.send(&request.concat()).await;
    server.wait_logs("call", before + 1).await.pop().unwrap()
}

#[tokio::test]
async fn a_request_that_a_web_page_can_send_is_refused() {
    let database = Database::migrated().await;
    let client = database.client().await;
    seed::insert(&client, &[Org::under("acme", "kv1")]).await;
    let before = seed::snapshot(&client).await;
    let server = Site::new(&database).start().await;
    let refused: [&[(&str, &str)]; 9] = [
        &[],
        &[("content-type", "text/plain")],
        &[("content-type", "application/x-www-form-urlencoded")],
        &[(
            "content-type",
            "multipart/form-data; boundary=application/grpc",
        )],
        &[("content-type", "application/grpc-web")],
        &[("content-type", "application/grpc-web+proto")],
        &[("content-type", "application/grpc+json")],
        &[(":method", "GET"), GRPC],
        &[(":method", "PUT"), GRPC],
    ];
    for fields in refused {
        let record = record(&server, certs::admin(), fields).await;
        assert_eq!(record["outcome"], "UNKNOWN_METHOD", "{fields:?}: {record}");
        assert_eq!(record["identity"], "alice");
    }
    assert_eq!(seed::snapshot(&client).await, before);
    for (times, kind) in (0..).zip([
        "application/grpc",
        "application/grpc+proto",
        "application/grpc; charset=utf-8",
    ]) {
        let record = record(&server, certs::admin(), &[("content-type", kind)]).await;
        assert_eq!(record["outcome"], "OK", "{kind}: {record}");
        assert_eq!(record["rows_updated"], i32::from(times == 0), "{kind}");
    }
}

#[tokio::test]
async fn a_path_similar_to_the_methods_is_unimplemented() {
    let server = Site::new(&Database::migrated().await).start().await;
    let double = format!("/{METHOD}");
    let closed = format!("{METHOD}/");
    let lower = METHOD.to_lowercase();
    let encoded = METHOD.replace("Forge/", "Forge%2F");
    let below_open = format!("/grpc.health.v1.Health/..{METHOD}");
    for path in [&*double, &closed, &lower, &encoded, "*"] {
        let fields = [(":path", path), GRPC];
        let admins = record(&server, certs::admin(), &fields).await;
        assert_eq!(admins["outcome"], "UNKNOWN_METHOD", "{path}: {admins}");
        let machines = record(&server, certs::machine(), &fields).await;
        assert_eq!(machines["outcome"], "NOT_ALLOWED", "{path}: {machines}");
        assert_eq!(machines["method"], path);
    }
    let long = format!("/{}", "x".repeat(1000));
    let record_of_long = record(&server, certs::admin(), &[(":path", &long), GRPC]).await;
    assert_eq!(record_of_long["method"], long[..256]);
    // There is nothing below the path of a public service. A call of the method itself follows.
    let options = ["-tls1_3", "-alpn", "h2"];
    let mut connection = Connection::open(&server, Some(certs::admin()), &options);
    assert!(connection.greet().await);
    let fields = headers(&[(":path", &below_open), GRPC]);
    let lost = frame(HEADERS, END_HEADERS, 1, &fields);
    connection.send(&lost).await;
    connection.send(&frame(DATA, END_STREAM, 1, &APPLY)).await;
    let records = server.logs_with("call").len();
    let record = record(&server, certs::admin(), &[GRPC]).await;
    assert_eq!(record["outcome"], "OK");
    assert_eq!(server.logs_with("call").len(), records + 1);
    assert_eq!(server.logs_with("run started").len(), 1);
}

#[tokio::test]
async fn a_compressed_message_is_refused_but_a_message_that_only_allows_compression_is_not() {
    let server = Site::new(&Database::migrated().await).start().await;
    let gzip = |encoding| [GRPC, ("grpc-encoding", encoding)];
    // gzip of an empty message.
    let nothing = [
        0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    let compressed = [&[1, 0, 0, 0, 20][..], &nothing].concat();
    for encoding in ["gzip", "deflate", "x"] {
        let record = record_of(&server, certs::admin(), &gzip(encoding), &compressed).await;
        assert_eq!(record["outcome"], "COMPRESSION_NOT_SUPPORTED", "{record}");
    }
    let record = record_of(&server, certs::machine(), &gzip("gzip"), &compressed).await;
    assert_eq!(record["outcome"], "NOT_ALLOWED", "{record}");
    let record = record_of(&server, certs::admin(), &[GRPC], &compressed).await;
    assert_eq!(record["outcome"], "MALFORMED_REQUEST", "{record}");
    // Clients send small messages uncompressed, even if the header names a compression.
    for encoding in ["gzip", "identity"] {
        let record = record_of(&server, certs::admin(), &gzip(encoding), &APPLY).await;
        assert_eq!(record["outcome"], "OK", "{record}");
    }
}
