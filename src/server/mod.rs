//! The gRPC listener and the admin socket: the server accepts connections, does the TLS handshake
//! or asks the kernel who the client is, and serves HTTP/2 until the shutdown.
//!
//! Everything has a limit: the number of handshakes and connections, the time for a handshake,
//! the idle time, and the time to answer a ping. A connection counts towards
//! `max_client_connections` only after its certificate is verified, so that clients without a
//! certificate can't fill that limit. `max_connections_per_client` limits each client.
//!
//! The server reads a client's certificate once per connection and passes the result to every
//! request as [`crate::auth::peer::Peer`]. It verifies the certificate again at every poll of the TLS files.
//!
//! Connections of the admin socket count towards `max_connections_per_client` and not towards
//! `max_client_connections`: network clients must not lock out the operator of the machine.

pub mod admin_socket;
mod client_quota;
mod connection;
mod http2;
mod local;
mod options;
pub mod probes;
pub mod status;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream, UnixStream},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::sleep,
};
use tokio_util::sync::CancellationToken;

pub use self::options::ServerOptions;
use self::{
    admin_socket::AdminSocket, client_quota::ClientQuota, connection::TlsServer, http2::Http2,
    local::LocalServer,
};
use crate::{
    api::guard::Guard,
    auth::{identity::TrustRules, local::LocalUsers},
    limits::{connection_slots::ConnectionSlots, rate_limit::RateLimiter},
    tls::TlsState,
};

/// How many refused handshakes the log shows per second. Anybody who reaches the port can cause
/// any number of them.
const REFUSALS_LOGGED_PER_SECOND: u32 = 10;

/// Serves the routes behind `guard` until `shutdown`. Then waits until the running calls have
/// ended and have their audit records.
pub async fn serve(
    listener: TcpListener,
    admin_socket: Option<AdminSocket>,
    tls: watch::Receiver<Arc<TlsState>>,
    trust: Arc<TrustRules>,
    guard: Guard,
    options: ServerOptions,
    shutdown: CancellationToken,
) {
    let http2 = Arc::new(Http2 {
        guard,
        options,
        shutdown: shutdown.clone(),
    });
    let options = &http2.options;
    let quota = ClientQuota::new(options.max_connections_per_client);
    let local = Arc::new(LocalServer {
        quota: quota.clone(),
        refusal_log_limit: RateLimiter::new(REFUSALS_LOGGED_PER_SECOND),
        http2: http2.clone(),
    });
    let server = Arc::new(TlsServer {
        tls,
        trust,
        handshakes: ConnectionSlots::new(options.max_concurrent_handshakes),
        refusal_log_limit: RateLimiter::new(REFUSALS_LOGGED_PER_SECOND),
        quota,
        connections: Arc::new(Semaphore::new(options.max_client_connections as usize)),
        http2: http2.clone(),
    });
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(ended) = connections.join_next() => log_panic(ended),
            accepted = accept(&listener) => {
                if let Some((stream, address)) = accepted {
                    let server = server.clone();
                    // Here and not in the task, so that connections get their slots in the order of
                    // arrival.
                    let slot = server.handshakes.acquire(address.ip());
                    connections.spawn(async move {
                        server.connection(stream, address, slot).await;
                    });
                }
            }
            accepted = accept_local(admin_socket.as_ref()) => {
                if let Some((stream, users)) = accepted {
                    let local = local.clone();
                    connections.spawn(async move { local.connection(stream, users).await });
                }
            }
        }
    }
    drop((listener, admin_socket));
    while let Some(ended) = connections.join_next().await {
        log_panic(ended);
    }
    http2.guard.drain().await;
}

fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!("the task of a connection panicked: this is a bug");
    }
}

pub(crate) async fn accept(listener: &TcpListener) -> Option<(TcpStream, SocketAddr)> {
    or_pause(listener.accept().await).await
}

/// Accepts a connection at the admin socket. Never returns without an admin socket.
async fn accept_local(socket: Option<&AdminSocket>) -> Option<(UnixStream, LocalUsers)> {
    let Some(socket) = socket else {
        return std::future::pending().await;
    };
    let (stream, _) = or_pause(socket.listener().accept().await).await?;
    Some((stream, socket.users()))
}

async fn or_pause<T>(accepted: io::Result<T>) -> Option<T> {
    match accepted {
        Ok(accepted) => Some(accepted),
        Err(error) => {
            tracing::warn!(%error, "accept failed");
            // The usual cause is that no file descriptor is free. An immediate retry would use a
            // whole processor.
            sleep(Duration::from_millis(100)).await;
            None
        }
    }
}
