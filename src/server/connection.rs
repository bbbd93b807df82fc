//! A connection with TLS: handshake, admission, and repeated verification of the client's
//! certificate.

use std::{net::SocketAddr, sync::Arc};

use rustls::pki_types::CertificateDer;
use tokio::{
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, timeout_at},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{
    client_quota::{ClientQuota, QuotaGuard},
    http2::Http2,
};
use crate::{
    auth::identity::{Caller, TrustRules},
    auth::peer::{Peer, PeerAddress},
    limits::{
        connection_slots::{ConnectionSlots, Slot},
        rate_limit::RateLimiter,
    },
    telemetry,
    tls::{self, TlsState},
};

/// The state that all connections with TLS share.
pub(super) struct TlsServer {
    pub(super) tls: watch::Receiver<Arc<TlsState>>,
    pub(super) trust: Arc<TrustRules>,
    pub(super) handshakes: Arc<ConnectionSlots>,
    pub(super) refusal_log_limit: RateLimiter,
    /// The limit of `max_client_connections`.
    pub(super) connections: Arc<Semaphore>,
    /// The limit of `max_connections_per_client`.
    pub(super) quota: Arc<ClientQuota>,
    pub(super) http2: Arc<Http2>,
}

/// A connection whose client is verified and within the limits.
struct Admitted {
    stream: TlsStream<TcpStream>,
    chain: Vec<CertificateDer<'static>>,
    peer: Arc<Peer>,
    /// The last state that this receiver has seen is the state with which the chain was verified.
    tls: watch::Receiver<Arc<TlsState>>,
    /// Count the connection towards the limits while it is open.
    _permits: (OwnedSemaphorePermit, QuotaGuard),
}

/// Why a connection was refused: the label for the metric and the text for the log.
struct Refusal(&'static str, String);

impl TlsServer {
    pub(super) async fn connection(&self, stream: TcpStream, address: SocketAddr, slot: Slot) {
        // Responses are small, and clients wait for them.
        let _ = stream.set_nodelay(true);
        let admitted = tokio::select! {
            () = self.http2.shutdown.cancelled() => return,
            () = slot.evicted() => Err(Refusal(
                "too_many",
                "[rewrap].max_concurrent_handshakes was reached, and a newer connection took the slot"
                    .to_owned(),
            )),
            admitted = self.admit(stream, address) => admitted,
        };
        drop(slot);
        match admitted {
            Ok(admitted) => {
                let revoked = self.until_revoked(admitted.tls, &admitted.chain, &admitted.peer);
                let peer = admitted.peer.clone();
                self.http2.serve(admitted.stream, peer, revoked).await;
            }
            Err(Refusal(reason, error)) => {
                telemetry::handshake_refused(reason);
                // Port checks connect and close at once. They would fill the log.
                if reason == "closed" || !self.refusal_log_limit.try_acquire() {
                    tracing::debug!(peer = %address, reason, error, "TLS handshake refused");
                } else {
                    tracing::info!(peer = %address, reason, error, "TLS handshake refused");
                }
            }
        }
    }

    async fn admit(&self, stream: TcpStream, address: SocketAddr) -> Result<Admitted, Refusal> {
        let deadline = Instant::now() + self.http2.options.handshake_timeout;
        let mut tls = self.tls.clone();
        let acceptor = TlsAcceptor::from(tls.borrow().server_config());
        let stream = match timeout_at(deadline, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                return Err(Refusal(tls::reason_of_io(&error), tls::explain_io(&error)));
            }
            Err(_) => {
                let error = "the handshake took longer than [rewrap].handshake_timeout";
                return Err(Refusal("timeout", error.to_owned()));
            }
        };
        let session = stream.get_ref().1;
        if session.alpn_protocol() != Some(b"h2") {
            let error = "the client does not offer h2 (ALPN)";
            return Err(Refusal("no_h2", error.to_owned()));
        }
        let chain: Vec<_> = session
            .peer_certificates()
            .unwrap_or_default()
            .iter()
            .map(|certificate| certificate.clone().into_owned())
            .collect();
        let permit = timeout_at(deadline, self.connections.clone().acquire_owned()).await;
        let Ok(Ok(permit)) = permit else {
            let error = "[rewrap].max_client_connections is reached";
            return Err(Refusal("too_many", error.to_owned()));
        };
        // The TLS files may have changed since the handshake began.
        let caller = verify(&mut tls, &chain, &self.trust)
            .map_err(|error| Refusal(tls::reason_of(&error), tls::explain(&error)))?;
        let quota = self.quota.take(&caller).ok_or_else(|| {
            let error = "this client has reached [rewrap].max_connections_per_client";
            Refusal("too_many", error.to_owned())
        })?;
        Ok(Admitted {
            stream,
            chain,
            peer: Arc::new(Peer {
                address: PeerAddress::Tcp(address),
                caller,
            }),
            tls,
            _permits: (permit, quota),
        })
    }

    /// Returns when the client's certificate is no longer valid or gives another identity.
    async fn until_revoked(
        &self,
        mut tls: watch::Receiver<Arc<TlsState>>,
        chain: &[CertificateDer<'_>],
        peer: &Peer,
    ) {
        while tls.changed().await.is_ok() {
            let reason = match verify(&mut tls, chain, &self.trust) {
                Ok(caller) if caller == peer.caller => continue,
                Ok(_) => "identity_changed",
                Err(error) => tls::reason_of(&error),
            };
            telemetry::connection_revoked(reason);
            tracing::warn!(
                peer = %peer.address,
                reason,
                certificate_serial = peer.caller.serial,
                certificate_issuer = peer.caller.issuer,
                "connection closed: its certificate is no longer valid, or gives another identity"
            );
            return;
        }
        // The reload task has ended, so the process is about to end.
        std::future::pending().await
    }
}

/// Verifies the chain with the current TLS files, and returns the client.
fn verify(
    tls: &mut watch::Receiver<Arc<TlsState>>,
    chain: &[CertificateDer<'_>],
    trust: &TrustRules,
) -> Result<Caller, rustls::Error> {
    let state = tls.borrow_and_update().clone();
    let anchor = state.verify(chain)?;
    let leaf = chain.first().map_or(&[][..], |leaf| leaf);
    Ok(Caller::from_leaf(leaf, anchor, trust))
}
