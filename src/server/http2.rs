//! HTTP/2 on an admitted connection, until its client is gone, idle or no longer accepted, or the
//! server shuts down.

use std::{convert::Infallible, sync::Arc, time::Duration};

use http_body_util::BodyExt;
use hyper::{Request, body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use super::ServerOptions;
use crate::{api::guard::Guard, auth::peer::Peer, telemetry};

/// The maximum number of concurrent requests on one connection.
const MAX_STREAMS: u32 = 64;

/// The maximum size of a request's headers, in bytes. hyper answers larger headers with HTTP 431
/// or closes the connection, and gRPC clients show that as an unclear error. The guard therefore
/// refuses headers at a much lower limit, with a proper gRPC status.
const MAX_HEADER_BYTES: u32 = 256 << 10;

/// What all connections share, with TLS or at the admin socket.
pub(super) struct Http2 {
    pub(super) guard: Guard,
    pub(super) options: ServerOptions,
    pub(super) shutdown: CancellationToken,
}

impl Http2 {
    /// Serves one connection. When `revoked` returns, drops the connection with its calls, which
    /// stop at the next row.
    pub(super) async fn serve(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        peer: Arc<Peer>,
        revoked: impl Future<Output = ()>,
    ) {
        let _open = telemetry::connection_opened();
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
        let mut revoked = std::pin::pin!(revoked);

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
