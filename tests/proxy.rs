//! A TCP relay on the way to Postgres, for what the network may do to a connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::database::Database;
use crate::pg::OWNER;

/// What happens to the connections that exist.
#[derive(Clone, Copy, PartialEq)]
enum Relay {
    BothWays,
    /// Answers of the server are kept back.
    RequestsOnly,
    /// A new connection gets the server's first word, with which it comes about, and nothing after it for good.
    Greeting,
}

/// A relay; it ends with its test.
pub(crate) struct Proxy {
    /// The TCP port on 127.0.0.1.
    pub(crate) port: u16,
    relay: watch::Sender<Relay>,
    connections: watch::Sender<u32>,
    loses_cancel_requests: Arc<AtomicBool>,
}

/// What a cancel request begins with: its length and its code (PostgreSQL, "Message Formats").
const CANCEL_REQUEST: [u8; 8] = [0, 0, 0, 16, 0x04, 0xd2, 0x16, 0x2e];

impl Proxy {
    /// Relays to this port.
    pub(crate) async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Self {
            port: listener.local_addr().unwrap().port(),
            relay: watch::Sender::new(Relay::BothWays),
            connections: watch::Sender::new(0),
            loses_cancel_requests: Arc::default(),
        };
        let loses_cancel_requests = proxy.loses_cancel_requests.clone();
        let (relay, cut) = (proxy.relay.subscribe(), proxy.connections.subscribe());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let mut first = [0; 8];
                if loses_cancel_requests.load(Ordering::Relaxed)
                    && client.peek(&mut first).await.is_ok()
                    && first == CANCEL_REQUEST
                {
                    continue;
                }
                let server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                tokio::spawn(connection(client, server, relay.clone(), cut.clone()));
            }
        });
        proxy
    }

    /// What the service gets as `database_url`: without TLS, so that the server's first word is the greeting.
    pub(crate) fn url(&self, database: &Database) -> String {
        format!(
            "postgres://{OWNER}@127.0.0.1:{}/{}?sslmode=disable",
            self.port,
            database.name()
        )
    }

    /// From now on, what the server answers does not arrive.
    pub(crate) fn hold_answers(&self) {
        self.relay.send_replace(Relay::RequestsOnly);
    }

    /// From now on, a connection that comes about never hears anything again.
    pub(crate) fn silence_new_connections(&self) {
        self.relay.send_replace(Relay::Greeting);
    }

    /// From now on, requests to cancel a statement do not arrive.
    pub(crate) fn lose_cancel_requests(&self) {
        self.loses_cancel_requests.store(true, Ordering::Relaxed);
    }

    /// What was held arrives, and new connections are relayed again; the silenced ones stay silent.
    pub(crate) fn relay(&self) {
        self.relay.send_replace(Relay::BothWays);
    }

    /// Ends all connections, what was held included; new ones are relayed again.
    pub(crate) fn cut(&self) {
        self.connections.send_modify(|cuts| *cuts += 1);
        self.relay.send_replace(Relay::BothWays);
    }
}

async fn connection(
    client: TcpStream,
    server: TcpStream,
    mut relay: watch::Receiver<Relay>,
    mut cut: watch::Receiver<u32>,
) {
    cut.mark_unchanged();
    let (mut from_client, mut to_client) = client.into_split();
    let (from_server, mut to_server) = server.into_split();
    let silent = *relay.borrow() == Relay::Greeting;
    let answers = async {
        let mut buffer = [0; 4096];
        let mut greeted = false;
        loop {
            from_server.readable().await?;
            if silent && greeted {
                std::future::pending::<()>().await;
            }
            let passes = |relay: &Relay| *relay != Relay::RequestsOnly;
            if relay.wait_for(passes).await.is_err() {
                return Ok(());
            }
            greeted = true;
            match from_server.try_read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => to_client.write_all(&buffer[..n]).await?,
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
    };
    tokio::select! {
        biased; // What was held must not slip through in the end.
        _ = cut.changed() => {}
        _ = tokio::io::copy(&mut from_client, &mut to_server) => {}
        _ = answers => {}
    }
}
