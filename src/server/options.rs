//! The options of the listeners.

use std::{net::SocketAddr, time::Duration};

/// Addresses, timeouts and limits of the listeners.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// The address of the gRPC listener.
    pub listen: SocketAddr,
    /// The address of the plain HTTP listener: `/livez`, `/readyz`, `/metrics` and `/status`.
    pub metrics_endpoint: SocketAddr,
    /// The path of the admin socket.
    pub admin_socket: Option<std::path::PathBuf>,
    /// The file for receipts.
    pub receipt_log: Option<std::path::PathBuf>,
    /// The name of this instance; `None` means host name and port.
    pub instance_name: Option<String>,
    /// How long the server waits for calls in progress after SIGTERM or SIGINT.
    pub shutdown_grace: Duration,
    /// Time limit of a TLS handshake.
    pub handshake_timeout: Duration,
    /// Time limit for a client to send a complete request.
    pub request_read_timeout: Duration,
    /// How often the server checks the TLS files for changes.
    pub tls_reload_interval: Duration,
    /// The server closes a connection that has had no call for this long.
    pub idle_timeout: Duration,
    /// How often the server sends an HTTP/2 ping on each connection.
    pub keepalive_interval: Duration,
    /// The server closes a connection that does not answer a ping within this time.
    pub keepalive_timeout: Duration,
    /// Maximum number of concurrent TLS handshakes.
    pub max_concurrent_handshakes: u32,
    /// Maximum number of open connections, not counting handshakes.
    pub max_client_connections: u32,
    /// Maximum number of open connections of one client.
    pub max_connections_per_client: u32,
    /// Maximum number of concurrent runs.
    pub max_runs: u32,
}
