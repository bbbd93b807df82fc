//! Plain HTTP for probes, Prometheus and people: `/livez`, `/readyz`, `/metrics` and `/status`.
//!
//! These endpoints need no authentication. They expose no secrets and change no state. The
//! number of connections is limited.

use std::time::Duration;

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    limits::connection_slots::{ConnectionSlots, Slot},
    server::{
        accept,
        status::{StatusPage, status},
    },
    telemetry::{Metrics, readiness::Readiness},
};

/// The maximum number of connections. When it is reached, a new connection evicts the oldest one
/// of the busiest address.
const MAX_CONNECTIONS: u32 = 64;

/// How long a request may take to arrive, and how long a connection may stay idle.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves until `shutdown`.
pub async fn serve(
    listener: TcpListener,
    readiness: Readiness,
    metrics: Metrics,
    page: StatusPage,
    shutdown: CancellationToken,
) {
    let router = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/status", get(status).with_state(page))
        .route("/readyz", get(ready).with_state(readiness))
        .route(
            "/metrics",
            get(move || async move {
                (
                    [(CONTENT_TYPE, "text/plain; version=0.0.4")],
                    metrics.render(),
                )
            }),
        );
    let slots = ConnectionSlots::new(MAX_CONNECTIONS);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next() => {}
            accepted = accept(&listener) => {
                if let Some((stream, address)) = accepted {
                    let slot = slots.acquire(address.ip());
                    let (router, shutdown) = (router.clone(), shutdown.clone());
                    connections.spawn(connection(stream, slot, router, shutdown));
                }
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn connection(stream: TcpStream, slot: Slot, router: Router, shutdown: CancellationToken) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(READ_TIMEOUT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return,
        () = slot.evicted() => return,
        () = shutdown.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    tokio::select! {
        _ = connection => {}
        () = slot.evicted() => {}
    }
}

async fn ready(State(readiness): State<Readiness>) -> impl IntoResponse {
    let (status, mut text) = match readiness.probe() {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(reason) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("not ready: {reason}\n"),
        ),
    };
    if let Some(note) = readiness.note() {
        text.push_str(&format!("a run makes no progress: {note}\n"));
    }
    for change in readiness.changed_on_disk() {
        text.push_str(&format!(
            "changed on disk since the start: {change}. Restart nico-rewrap to read it\n"
        ));
    }
    (status, text)
}
