//! The client of a connection.

use std::net::SocketAddr;

use super::identity::Caller;

/// The client of a connection. It is read once, and is the same for all calls of the connection.
#[derive(Debug)]
pub struct Peer {
    /// The remote address.
    pub address: SocketAddr,
    /// What the verified certificate says.
    pub caller: Caller,
}
