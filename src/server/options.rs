//! What the site sets of the listeners.

use std::{net::SocketAddr, time::Duration};

/// Addresses and limits.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Where gRPC is served.
    pub listen: SocketAddr,
    /// Where `/livez`, `/readyz` and `/metrics` are served.
    pub metrics_endpoint: SocketAddr,
    /// Time for what is under way after SIGTERM.
    pub shutdown_grace: Duration,
    /// Time for a TLS handshake.
    pub handshake_timeout: Duration,
    /// Time for a request to be complete.
    pub request_read_timeout: Duration,
    /// The certificate files are looked at this often.
    pub tls_reload_interval: Duration,
    /// A connection without a call for this long is closed.
    pub idle_timeout: Duration,
    /// HTTP/2 pings are sent this often.
    pub keepalive_interval: Duration,
    /// A ping that is not answered for this long ends the connection.
    pub keepalive_timeout: Duration,
    /// TLS handshakes at once.
    pub max_concurrent_handshakes: u32,
    /// Connections at once, after their handshake.
    pub max_client_connections: u32,
    /// Of these, those of one client.
    pub max_connections_per_client: u32,
    /// Runs at once.
    pub max_runs: u32,
}
