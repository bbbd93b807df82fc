//! The gRPC listener: accept, TLS handshake, HTTP/2, until told to stop.
//!
//! Everything is bounded: how many handshakes and connections there are, how long a
//! handshake takes, how long a connection may sit idle or leave a ping unanswered. A
//! connection takes one of the places of `max_client_connections` only once its
//! certificate is verified, so that who has none can't take any, and nobody has more
//! than `max_connections_per_client` of them. What a client's certificate says is read
//! once for each connection and travels with every request as [`crate::auth::peer::Peer`]; whether it still
//! holds is asked again whenever the files of TLS are looked at.

mod client_quota;
mod connection;
mod options;
pub mod probes;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::sleep,
};
use tokio_util::sync::CancellationToken;

pub use self::options::ServerOptions;
use self::{client_quota::ClientQuota, connection::Server};
use crate::{
    api::guard::Guard,
    auth::identity::TrustRules,
    limits::{connection_slots::ConnectionSlots, rate_limit::RateLimiter},
    tls::TlsState,
};

/// Handshakes that came to nothing and have a line in the log, a second: anybody can
/// make as many as the network bears.
const REFUSALS_TOLD: u32 = 10;

/// Serves what is behind `guard` until `shutdown`, then lets the calls under way end, and have their
/// records.
pub async fn serve(
    listener: TcpListener,
    tls: watch::Receiver<Arc<TlsState>>,
    trust: Arc<TrustRules>,
    guard: Guard,
    options: ServerOptions,
    shutdown: CancellationToken,
) {
    let server = Arc::new(Server {
        tls,
        trust,
        guard,
        handshakes: ConnectionSlots::new(options.max_concurrent_handshakes),
        refusals_told: RateLimiter::new(REFUSALS_TOLD),
        quota: ClientQuota::new(options.max_connections_per_client),
        connections: Arc::new(Semaphore::new(options.max_client_connections as usize)),
        options,
        shutdown: shutdown.clone(),
    });
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(ended) = connections.join_next() => log_panic(ended),
            accepted = accept(&listener) => {
                if let Some((stream, address)) = accepted {
                    let server = server.clone();
                    // Here, where they are still in the order in which they came.
                    let slot = server.handshakes.acquire(address.ip());
                    connections.spawn(async move {
                        server.connection(stream, address, slot).await;
                    });
                }
            }
        }
    }
    drop(listener);
    while let Some(ended) = connections.join_next().await {
        log_panic(ended);
    }
    server.guard.drain().await;
}

fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!("a connection's task panicked: this is a bug");
    }
}

pub(crate) async fn accept(listener: &TcpListener) -> Option<(TcpStream, SocketAddr)> {
    match listener.accept().await {
        Ok(accepted) => Some(accepted),
        Err(error) => {
            tracing::warn!(%error, "accept failed");
            // Out of file descriptors, most likely: an immediate retry would spin.
            sleep(Duration::from_millis(100)).await;
            None
        }
    }
}
