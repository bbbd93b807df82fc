//! The connection to the server: its address, the client certificate, the transport, and single
//! calls.

pub(super) mod contexts;
mod credentials;
mod endpoint;
mod session;
pub(super) mod settings;
mod source;
mod transport;

use std::time::Duration;

pub(super) use self::session::{Session, Sessions};

/// Time limit for a name, a connection, and a TLS handshake, each.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
