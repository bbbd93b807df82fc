//! Binds the listeners.

use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::Path,
};

use tokio::net::{TcpListener, TcpSocket};

use super::error::AppError;
use crate::server::{ServerOptions, admin_socket::AdminSocket};

/// Maximum number of connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// The bound listeners.
#[derive(Debug)]
pub struct Listeners {
    /// The listener for gRPC.
    pub grpc: TcpListener,
    /// The listener for probes and metrics.
    pub http: TcpListener,
    /// The admin socket, if one is configured.
    pub admin_socket: Option<AdminSocket>,
}

impl Listeners {
    /// Binds the configured addresses.
    ///
    /// # Errors
    ///
    /// [`AppError::Bind`] with the setting whose address cannot be bound, or
    /// [`AppError::AdminSocket`].
    pub async fn bind(options: &ServerOptions) -> Result<Self, AppError> {
        Ok(Self {
            grpc: bind("listen", options.listen).await?,
            http: bind("metrics_endpoint", options.metrics_endpoint).await?,
            admin_socket: options
                .admin_socket
                .as_deref()
                .map(bind_admin)
                .transpose()?,
        })
    }
}

fn bind_admin(path: &Path) -> Result<AdminSocket, AppError> {
    let socket = AdminSocket::bind(path).map_err(|problem| AppError::AdminSocket {
        path: path.to_owned(),
        problem,
    })?;
    if !socket.users().include_own() {
        tracing::warn!(
            "[rewrap].admin_socket: only root may connect: this process runs as the user that the \
             kernel shows for all users without an id in this user namespace; run it as another user"
        );
    }
    Ok(socket)
}

async fn bind(setting: &'static str, address: SocketAddr) -> Result<TcpListener, AppError> {
    let listener = if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        bind_both(address)
    } else {
        TcpListener::bind(address).await
    };
    listener.map_err(|source| AppError::Bind {
        setting,
        address,
        source,
    })
}

/// Binds `[::]` for IPv6 and IPv4, regardless of the system's `net.ipv6.bindv6only`.
fn bind_both(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v6()?;
    rustix::net::sockopt::set_ipv6_v6only(&socket, false)?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

pub(super) fn log_listening(listeners: &Listeners) {
    let address = |listener: &TcpListener| {
        listener
            .local_addr()
            .map_or_else(|error| error.to_string(), |address| address.to_string())
    };
    tracing::info!(
        grpc = address(&listeners.grpc),
        http = address(&listeners.http),
        admin_socket = listeners
            .admin_socket
            .as_ref()
            .map(|socket| socket.path().display().to_string()),
        "listening"
    );
}
