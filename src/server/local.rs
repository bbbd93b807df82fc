//! A connection at the admin socket: the kernel says who the client is.

use std::{future::pending, sync::Arc};

use tokio::net::UnixStream;

use super::{client_quota::ClientQuota, http2::Http2};
use crate::{
    auth::{
        local::LocalUsers,
        peer::{Peer, PeerAddress},
    },
    limits::rate_limit::RateLimiter,
    telemetry,
};

/// The state that all connections at the admin socket share.
pub(super) struct LocalServer {
    /// The limit of `max_connections_per_client`.
    pub(super) quota: Arc<ClientQuota>,
    pub(super) refusal_log_limit: RateLimiter,
    pub(super) http2: Arc<Http2>,
}

impl LocalServer {
    /// Serves the connection if its user may use the socket. Otherwise closes it, as the TLS
    /// listener does with a client without an accepted certificate.
    pub(super) async fn connection(&self, stream: UnixStream, users: LocalUsers) {
        // The kernel recorded these credentials when the process connected. The client cannot
        // change them.
        let credentials = match stream.peer_cred() {
            Ok(credentials) => credentials,
            Err(error) => {
                telemetry::handshake_refused("internal");
                tracing::error!(%error, "admin socket: the kernel does not say who the client is");
                return;
            }
        };
        let pid = credentials.pid().and_then(|pid| u32::try_from(pid).ok());
        let address = PeerAddress::Local {
            // Zero means that the client is outside of the PID namespace of this process.
            pid: pid.filter(|pid| *pid != 0),
        };
        let uid = credentials.uid();
        let Some(caller) = users.caller(uid) else {
            let expected = "root or the user of the service";
            return self.refuse("not_accepted_uid", address, uid, expected);
        };
        let Some(_quota) = self.quota.take(&caller) else {
            let expected = "no more connections than [rewrap].max_connections_per_client";
            return self.refuse("too_many", address, uid, expected);
        };
        let peer = Arc::new(Peer { address, caller });
        // Nothing revokes the identity of a local user.
        self.http2.serve(stream, peer, pending()).await;
    }

    fn refuse(&self, reason: &'static str, peer: PeerAddress, uid: u32, expected: &str) {
        telemetry::handshake_refused(reason);
        if self.refusal_log_limit.try_acquire() {
            tracing::info!(%peer, reason, uid, expected, "admin socket: connection refused");
        } else {
            tracing::debug!(%peer, reason, uid, expected, "admin socket: connection refused");
        }
    }
}
