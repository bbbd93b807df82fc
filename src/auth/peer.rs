//! Who is at the other end of a connection.

use std::net::SocketAddr;

use super::identity::Caller;

/// Who is at the other end of a connection: read once, and the same for all its calls.
#[derive(Debug)]
pub struct Peer {
    /// The remote address.
    pub address: SocketAddr,
    /// What the verified certificate says.
    pub caller: Caller,
}
