//! The client of a connection.

use std::{fmt, net::SocketAddr};

use super::identity::Caller;

/// The client of a connection. It is read once, and is the same for all calls of the connection.
#[derive(Debug)]
pub struct Peer {
    /// The address of the client.
    pub address: PeerAddress,
    /// The caller: from the verified certificate, or from the kernel.
    pub caller: Caller,
}

/// The address of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerAddress {
    /// A client with TLS.
    Tcp(SocketAddr),
    /// A process at the admin socket.
    Local {
        /// The id of the process that connected. `None` if this process can't see it.
        pid: Option<u32>,
    },
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Local { pid: Some(pid) } => write!(f, "local:pid={pid}"),
            Self::Local { pid: None } => f.write_str("local"),
        }
    }
}
