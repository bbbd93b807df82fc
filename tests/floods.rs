//! Misuse of HTTP/2 by a client with a certificate: the server closes its connection, carries out
//! no call, and still serves the other clients.

use crate::certs;
use crate::database::Database;
use crate::grpcurl::run;
use crate::handshake::Connection;
use crate::http2::{
    APPLY, CANCEL, DATA, END_HEADERS, END_STREAM, HEADERS, RST_STREAM, frame, headers, literal,
};
use crate::server::Server;
use crate::site::Site;

const CONTINUATION: u8 = 9;

async fn administrator(server: &Server) -> Connection {
    let options = ["-tls1_3", "-alpn", "h2"];
    let mut connection = Connection::open(server, Some(certs::admin()), &options);
    assert!(connection.greet().await);
    connection
}

fn call() -> Vec<u8> {
    headers(&[("content-type", "application/grpc")])
}

/// Sends `first`, then `again` repeatedly until the server closes the connection.
async fn assert_closed_by(server: &Server, first: &[u8], mut again: impl FnMut() -> Vec<u8>) {
    let mut connection = administrator(server).await;
    connection.send(first).await;
    let flood = async { while connection.try_send(&again()).await {} };
    let patience = std::time::Duration::from_secs(60);
    let closed = tokio::time::timeout(patience, flood).await;
    assert!(closed.is_ok(), "the connection takes all of it");
    connection.closed().await;
    assert_eq!(run(server, true).await.rows_examined, 0);
}

#[tokio::test]
async fn endless_headers_end_the_connection() {
    let server = Site::new(&Database::migrated().await).start().await;
    let begin = frame(HEADERS, 0, 1, &call());
    let more = literal("x-more", &"x".repeat(1000));
    for more in [more, Vec::new()] {
        let more = frame(CONTINUATION, 0, 1, &more).repeat(100);
        assert_closed_by(&server, &begin, || more.clone()).await;
    }
    assert_eq!(server.logs_with("run started").len(), 2, "of the others");
}

#[tokio::test]
async fn rapid_stream_resets_end_the_connection() {
    let server = Site::new(&Database::migrated().await).start().await;
    let mut stream = 1;
    assert_closed_by(&server, b"", || {
        let mut resets = Vec::new();
        for _ in 0..100 {
            resets.extend(frame(HEADERS, END_HEADERS, stream, &call()));
            resets.extend(frame(RST_STREAM, 0, stream, &CANCEL));
            stream += 2;
        }
        resets
    })
    .await;
    assert_eq!(server.logs_with("run started").len(), 1, "of the other");
}

#[tokio::test]
async fn incomplete_headers_hold_a_connection_no_longer_than_the_idle_timeout() {
    let site = Site::new(&Database::migrated().await);
    let server = site.set("rewrap.idle_timeout", "\"1s\"").start().await;
    let mut connection = administrator(&server).await;
    connection.send(&frame(HEADERS, 0, 1, &call())).await;
    connection.closed().await;
    // Complete headers in pieces are a normal request.
    let mut connection = administrator(&server).await;
    let call = call();
    let (one, other) = call.split_at(20);
    let pieces = [
        frame(HEADERS, 0, 1, one),
        frame(CONTINUATION, END_HEADERS, 1, other),
        frame(DATA, END_STREAM, 1, &APPLY),
    ];
    connection.send(&pieces.concat()).await;
    assert_eq!(server.wait_log("call").await["outcome"], "OK");
}
