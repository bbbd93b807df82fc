//! The life of one connection: TLS handshake, admission, HTTP/2, and repeated verification of
//! the client's certificate.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use http_body_util::BodyExt;
use hyper::{Request, body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::CertificateDer;
use tokio::{
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, sleep, timeout_at},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;

use super::{
    ServerOptions,
    client_quota::{ClientQuota, QuotaGuard},
};
use crate::{
    api::guard::Guard,
    auth::identity::{Caller, TrustRules},
    auth::peer::Peer,
    limits::{
        connection_slots::{ConnectionSlots, Slot},
        rate_limit::RateLimiter,
    },
    telemetry,
    tls::{self, TlsState},
};

/// The maximum number of concurrent requests on one connection.
const MAX_STREAMS: u32 = 64;

/// The maximum size of a request's headers, in bytes. hyper answers larger headers with HTTP 431
/// or closes the connection, and gRPC clients show that as an unclear error. The guard therefore
/// refuses headers at a much lower limit, with a proper gRPC status.
const MAX_HEADER_BYTES: u32 = 256 << 10;

/// The state that all connections share.
pub(super) struct Server {
    pub(super) tls: watch::Receiver<Arc<TlsState>>,
    pub(super) trust: Arc<TrustRules>,
    pub(super) guard: Guard,
    pub(super) handshakes: Arc<ConnectionSlots>,
    pub(super) refusal_log_limit: RateLimiter,
    /// The limit of `max_client_connections`.
    pub(super) connections: Arc<Semaphore>,
    /// The limit of `max_connections_per_client`.
    pub(super) quota: Arc<ClientQuota>,
    pub(super) options: ServerOptions,
    pub(super) shutdown: CancellationToken,
}

/// A connection whose client is verified and within the limits.
struct Admitted {
    stream: TlsStream<TcpStream>,
    chain: Vec<CertificateDer<'static>>,
    peer: Arc<Peer>,
    /// The last state that this receiver has seen is the one that verified the chain last.
    tls: watch::Receiver<Arc<TlsState>>,
    /// Count the connection towards the limits while it is open.
    _permits: (OwnedSemaphorePermit, QuotaGuard),
}

/// Why a connection was refused: the label for the metric and the text for the log.
struct Refusal(&'static str, String);

impl Server {
    pub(super) async fn connection(&self, stream: TcpStream, address: SocketAddr, slot: Slot) {
        // Responses are small, and clients wait for them.
        let _ = stream.set_nodelay(true);
        let admitted = tokio::select! {
            () = self.shutdown.cancelled() => return,
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
                let _open = telemetry::connection_opened();
                self.http2(admitted).await;
            }
            Err(Refusal(reason, error)) => {
                telemetry::handshake_refused(reason);
                // Port checks connect and close again and again: they would fill the log.
                if reason == "closed" || !self.refusal_log_limit.try_acquire() {
                    tracing::debug!(peer = %address, reason, error, "TLS handshake refused");
                } else {
                    tracing::info!(peer = %address, reason, error, "TLS handshake refused");
                }
            }
        }
    }

    async fn admit(&self, stream: TcpStream, address: SocketAddr) -> Result<Admitted, Refusal> {
        let deadline = Instant::now() + self.options.handshake_timeout;
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
            peer: Arc::new(Peer { address, caller }),
            tls,
            _permits: (permit, quota),
        })
    }

    async fn http2(&self, admitted: Admitted) {
        let Admitted {
            stream,
            chain,
            peer,
            tls,
            _permits,
        } = admitted;
        let (calls, running_calls) = watch::channel(0_usize);
        let calls = Arc::new(calls);
        let guard = self.guard.for_connection();
        let service = service_fn(|mut request: Request<Incoming>| {
            let call = Call::start(&calls);
            request.extensions_mut().insert(peer.clone());
            let guard = guard.clone();
            async move {
                let response = guard.handle(request).await;
                // The call ends when its whole response is sent, so the body owns `call`.
                Ok::<_, Infallible>(response.map(|body| {
                    body.map_frame(move |frame| {
                        let _owned = &call;
                        frame
                    })
                }))
            }
        });
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(self.options.keepalive_interval)
            .keep_alive_timeout(self.options.keepalive_timeout)
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(MAX_HEADER_BYTES)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let mut revoked = std::pin::pin!(self.until_revoked(tls, &chain, &peer));

        let idle = idle_for(running_calls.clone(), self.options.idle_timeout);
        tokio::select! {
            // Check the certificate before the connection takes another request.
            biased;
            () = revoked.as_mut() => return,
            () = self.shutdown.cancelled() => {}
            _ = connection.as_mut() => return,
            () = idle => tracing::debug!(peer = %peer.address, "idle connection closed"),
        }
        connection.as_mut().graceful_shutdown();
        // If the client ignores GOAWAY, the server closes the connection when no call is running.
        let ignored = idle_for(running_calls, Duration::from_secs(1));
        tokio::select! {
            biased;
            () = revoked => {}
            _ = connection => {}
            () = ignored => {}
        }
    }

    /// Returns when the client's certificate is no longer valid or gives another identity. The
    /// caller then drops the connection with its calls, which stop at the next row.
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

/// Counts one call on a connection until it is dropped.
struct Call(Arc<watch::Sender<usize>>);

impl Call {
    fn start(calls: &Arc<watch::Sender<usize>>) -> Self {
        calls.send_modify(|calls| *calls += 1);
        Self(calls.clone())
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.0.send_modify(|calls| *calls -= 1);
    }
}

/// Returns when there has been no call for `period`.
async fn idle_for(mut calls: watch::Receiver<usize>, period: Duration) {
    loop {
        if calls.wait_for(|calls| *calls == 0).await.is_err() {
            return;
        }
        tokio::select! {
            () = sleep(period) => return,
            changed = calls.changed() => if changed.is_err() { return },
        }
    }
}
