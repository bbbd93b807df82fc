//! The gRPC listener: accept, TLS handshake, HTTP/2, until told to stop.
//!
//! Everything is bounded: how many connections there are, how long a handshake
//! takes, how long a connection may sit idle or leave a ping unanswered. What a
//! client's certificate says is read once for each connection and travels with
//! every request as [`Peer`].

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use http_body_util::BodyExt;
use hyper::{Request, body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::{
    config::ServerOptions,
    gate::Gate,
    identity::{Anchor, Caller, TrustRules},
    telemetry,
};

/// Requests under way at once on one connection.
const MAX_STREAMS: u32 = 64;

/// Size of a request's headers, in bytes.
const MAX_HEADER_BYTES: u32 = 16 << 10;

/// Who is at the other end of a connection.
#[derive(Debug)]
pub struct Peer {
    /// The remote address.
    pub address: SocketAddr,
    /// What the verified certificate says.
    pub caller: Caller,
}

/// Serves what is behind `gate` until `shutdown`, then lets the calls under way end.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    trust: Arc<TrustRules>,
    gate: Gate,
    options: ServerOptions,
    shutdown: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(options.max_client_connections as usize));
    let server = Arc::new(Server {
        acceptor: TlsAcceptor::from(tls),
        trust,
        gate,
        options,
        shutdown: shutdown.clone(),
    });
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(ended) = connections.join_next() => noticed(ended),
            accepted = accept(&listener, &places) => {
                if let Some((stream, address, place)) = accepted {
                    let server = server.clone();
                    connections.spawn(async move {
                        server.connection(stream, address).await;
                        drop(place);
                    });
                }
            }
        }
    }
    drop(listener);
    while let Some(ended) = connections.join_next().await {
        noticed(ended);
    }
}

fn noticed(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!("a connection's task panicked: this is a bug");
    }
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    // A place first: whoever finds none waits in the kernel's queue.
    let place = places.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, address)) => Some((stream, address, place)),
        Err(error) => {
            tracing::warn!(%error, "accept failed");
            // Out of file descriptors, most likely: an immediate retry would spin.
            sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

struct Server {
    acceptor: TlsAcceptor,
    trust: Arc<TrustRules>,
    gate: Gate,
    options: ServerOptions,
    shutdown: CancellationToken,
}

impl Server {
    async fn connection(&self, stream: TcpStream, address: SocketAddr) {
        // Answers are small and their readers wait for them.
        let _ = stream.set_nodelay(true);
        let handshake = timeout(self.options.handshake_timeout, self.acceptor.accept(stream));
        let handshake = tokio::select! {
            () = self.shutdown.cancelled() => return,
            handshake = handshake => handshake,
        };
        let stream = match handshake {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                telemetry::handshake_refused("refused");
                tracing::info!(peer = %address, %error, "TLS handshake refused");
                return;
            }
            Err(_) => {
                telemetry::handshake_refused("timeout");
                tracing::info!(peer = %address, "TLS handshake took too long");
                return;
            }
        };
        let session = stream.get_ref().1;
        let Some(leaf) = session.peer_certificates().and_then(<[_]>::first) else {
            // rustls lets nobody in without one; if it ever did, we do not.
            telemetry::handshake_refused("no_certificate");
            return;
        };
        if session.alpn_protocol() != Some(b"h2") {
            telemetry::handshake_refused("no_h2");
            tracing::info!(peer = %address, "connection without ALPN h2 refused");
            return;
        }
        let peer = Arc::new(Peer {
            address,
            caller: Caller::from_leaf(leaf, Anchor::NoAdminBundle, &self.trust),
        });
        self.http2(TokioIo::new(stream), peer).await;
    }

    async fn http2<T>(&self, io: T, peer: Arc<Peer>)
    where
        T: hyper::rt::Read + hyper::rt::Write + Unpin + Send,
    {
        let (calls, calls_under_way) = watch::channel(0_usize);
        let calls = Arc::new(calls);
        let service = service_fn(|mut request: Request<Incoming>| {
            let call = Call::start(&calls);
            request.extensions_mut().insert(peer.clone());
            let gate = self.gate.clone();
            async move {
                let response = gate.answer(request).await;
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
            .serve_connection(io, service);
        let mut connection = std::pin::pin!(connection);

        let idle = idle_for(calls_under_way.clone(), self.options.idle_timeout);
        tokio::select! {
            _ = connection.as_mut() => return,
            () = self.shutdown.cancelled() => {}
            () = idle => tracing::debug!(peer = %peer.address, "idle connection closed"),
        }
        connection.as_mut().graceful_shutdown();
        // A client that ignores the farewell loses the connection when it has no
        // call under way any more.
        let ignored = idle_for(calls_under_way, Duration::from_secs(1));
        tokio::select! {
            _ = connection => {}
            () = ignored => {}
        }
    }
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
