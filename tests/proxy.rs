//! A TCP relay between the service and Postgres, which simulates network faults.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::database::Database;
use crate::pg::OWNER;

/// What the relay does with its connections.
#[derive(Clone, Copy, PartialEq)]
enum Relay {
    BothWays,
    /// Holds back the server's answers.
    RequestsOnly,
    /// Relays the first message of the server on a new connection, so that it can be established,
    /// and nothing after that.
    Greeting,
}

/// A relay. It ends with its test.
pub(crate) struct Proxy {
    /// The TCP port on 127.0.0.1.
    pub(crate) port: u16,
    relay: watch::Sender<Relay>,
    connections: watch::Sender<u32>,
    loses_cancel_requests: Arc<AtomicBool>,
}

/// The beginning of a cancel request: its length and code (PostgreSQL, "Message Formats").
const CANCEL_REQUEST: [u8; 8] = [0, 0, 0, 16, 0x04, 0xd2, 0x16, 0x2e];

impl Proxy {
    /// Starts a relay to this port.
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
                // While the server is down, new connections end at once.
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else {
                    continue;
                };
                tokio::spawn(connection(client, server, relay.clone(), cut.clone()));
            }
        });
        proxy
    }

    /// The service's `database_url`. Without TLS, so that the first message of the server is the
    /// greeting.
    pub(crate) fn url(&self, database: &Database) -> String {
        format!(
            "postgres://{OWNER}@127.0.0.1:{}/{}?sslmode=disable",
            self.port,
            database.name()
        )
    }

    /// From now on, the server's answers do not arrive.
    pub(crate) fn hold_answers(&self) {
        self.relay.send_replace(Relay::RequestsOnly);
    }

    /// From now on, a new connection is established but then gets no data.
    pub(crate) fn silence_new_connections(&self) {
        self.relay.send_replace(Relay::Greeting);
    }

    /// From now on, cancel requests do not arrive.
    pub(crate) fn lose_cancel_requests(&self) {
        self.loses_cancel_requests.store(true, Ordering::Relaxed);
    }

    /// Delivers the held data and relays new connections again. The silenced connections stay
    /// silent.
    pub(crate) fn relay(&self) {
        self.relay.send_replace(Relay::BothWays);
    }

    /// Closes all connections and drops held data. Relays new connections again.
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
