//! One connection, from its first byte to its last.

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

/// Requests under way at once on one connection.
const MAX_STREAMS: u32 = 64;

/// Size of a request's headers, in bytes. Beyond it the answer is HTTP 431 or the end of the
/// connection, which gRPC clients report as an odd error. The gate refuses much smaller ones.
const MAX_HEADER_BYTES: u32 = 256 << 10;

/// What all connections have in common.
pub(super) struct Server {
    pub(super) tls: watch::Receiver<Arc<TlsState>>,
    pub(super) trust: Arc<TrustRules>,
    pub(super) guard: Guard,
    pub(super) handshakes: Arc<ConnectionSlots>,
    pub(super) refusals_told: RateLimiter,
    /// Of `max_client_connections`.
    pub(super) connections: Arc<Semaphore>,
    /// Of `max_connections_per_client`.
    pub(super) quota: Arc<ClientQuota>,
    pub(super) options: ServerOptions,
    pub(super) shutdown: CancellationToken,
}

/// A connection whose client is known.
struct Admitted {
    stream: TlsStream<TcpStream>,
    chain: Vec<CertificateDer<'static>>,
    peer: Arc<Peer>,
    /// That by which the chain was last verified is the last that this one has seen.
    tls: watch::Receiver<Arc<TlsState>>,
    /// One of all, and one of the client's.
    _places: (OwnedSemaphorePermit, QuotaGuard),
}

/// Why a connection came to nothing: the label of the metric, and more for the log.
struct Refusal(&'static str, String);

impl Server {
    pub(super) async fn connection(&self, stream: TcpStream, address: SocketAddr, slot: Slot) {
        // Answers are small and their readers wait for them.
        let _ = stream.set_nodelay(true);
        let admitted = tokio::select! {
            () = self.shutdown.cancelled() => return,
            () = slot.evicted() => Err(Refusal(
                "too_many",
                "others came when [rewrap].max_concurrent_handshakes were under way".to_owned(),
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
                // Whoever only looks whether the port is open does so again and again.
                if reason == "closed" || !self.refusals_told.try_acquire() {
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
                let error = "it took longer than [rewrap].handshake_timeout";
                return Err(Refusal("timeout", error.to_owned()));
            }
        };
        let session = stream.get_ref().1;
        if session.alpn_protocol() != Some(b"h2") {
            let error = "the client does not ask for h2 (ALPN)";
            return Err(Refusal("no_h2", error.to_owned()));
        }
        let chain: Vec<_> = session
            .peer_certificates()
            .unwrap_or_default()
            .iter()
            .map(|certificate| certificate.clone().into_owned())
            .collect();
        let slot = timeout_at(deadline, self.connections.clone().acquire_owned()).await;
        let Ok(Ok(slot)) = slot else {
            let error = "all of [rewrap].max_client_connections are there";
            return Err(Refusal("too_many", error.to_owned()));
        };
        // By what the files say now: they may have changed since the handshake began.
        let caller = verify(&mut tls, &chain, &self.trust)
            .map_err(|error| Refusal(tls::reason_of(&error), tls::explain(&error)))?;
        let share = self.quota.take(&caller).ok_or_else(|| {
            let error = "this client has [rewrap].max_connections_per_client of them";
            Refusal("too_many", error.to_owned())
        })?;
        Ok(Admitted {
            stream,
            chain,
            peer: Arc::new(Peer { address, caller }),
            tls,
            _places: (slot, share),
        })
    }

    async fn http2(&self, admitted: Admitted) {
        let Admitted {
            stream,
            chain,
            peer,
            tls,
            _places,
        } = admitted;
        let (calls, calls_under_way) = watch::channel(0_usize);
        let calls = Arc::new(calls);
        let guard = self.guard.for_connection();
        let service = service_fn(|mut request: Request<Incoming>| {
            let call = Call::start(&calls);
            request.extensions_mut().insert(peer.clone());
            let guard = guard.clone();
            async move {
                let response = guard.handle(request).await;
                // The call lasts until its answer is sent, not only begun.
                Ok::<_, Infallible>(response.map(|body| {
                    body.map_frame(move |frame| {
                        let _lasts = &call;
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
        let mut distrusted = std::pin::pin!(self.distrusted(tls, &chain, &peer));

        let idle = idle_for(calls_under_way.clone(), self.options.idle_timeout);
        tokio::select! {
            // Before the connection takes another request.
            biased;
            () = distrusted.as_mut() => return,
            () = self.shutdown.cancelled() => {}
            _ = connection.as_mut() => return,
            () = idle => tracing::debug!(peer = %peer.address, "idle connection closed"),
        }
        connection.as_mut().graceful_shutdown();
        // A client that ignores the farewell loses the connection when it has no
        // call under way any more.
        let ignored = idle_for(calls_under_way, Duration::from_secs(1));
        tokio::select! {
            biased;
            () = distrusted => {}
            _ = connection => {}
            () = ignored => {}
        }
    }

    /// Ends when the client's certificate does not make it who it was any more. The
    /// connection is then dropped, and its calls with it: they stop at the next row.
    async fn distrusted(
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
            telemetry::connection_distrusted(reason);
            tracing::warn!(
                peer = %peer.address,
                reason,
                certificate_serial = peer.caller.serial,
                certificate_issuer = peer.caller.issuer,
                "connection closed: its certificate is not what it was"
            );
            return;
        }
        // The files are looked at no more: the process ends.
        std::future::pending().await
    }
}

/// Who the client is, by what the files say now.
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

/// One call on a connection, counted for as long as it exists.
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

/// Ends when there was no call for `period`.
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
