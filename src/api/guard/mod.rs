//! Before and behind the routes: who is let through to what, and the answers that
//! no handler gave.
//!
//! Reflection and health checks are open to every verified certificate; every other
//! method needs a permit, also one that does not exist. What is refused before a
//! handler runs (an unknown method, a request that can't be decoded) gets the same
//! treatment as everything else: an audit record, a run id, a status of ours.
//!
//! Everybody with a certificate can be denied, as often as the network bears, and each
//! time leaves a record. So those who will be wait for their turn before their request
//! is looked at; nobody else waits with them. One call of each connection waits in a task
//! of its own, so that its record does not depend on the client's patience.

mod compression;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    body::{Bytes, HttpBody},
    http::{HeaderName, HeaderValue, Method, Request, Response, header::CONTENT_TYPE},
};
use http_body_util::{BodyExt, Full, Limited};
use tokio::{
    sync::{Mutex, Semaphore},
    time::timeout,
};
use tokio_util::task::TaskTracker;
use tonic::{Code, Status, body::Body, codegen::StdError, service::Routes};
use tower::ServiceExt;
use tracing::Instrument;

use super::{
    admission::decide,
    error::ServiceError,
    run_id::{RUN_ID_HEADER, run_id},
};
use crate::{
    audit::{AuditLog, Record},
    auth::{
        authorize::{Policy, authorize},
        peer::Peer,
    },
    limits::rate_limit::RateLimiter,
    telemetry,
};

/// Calls that are denied, a second: with a kilobyte or so for a record, not a gigabyte
/// a day.
const DENIALS_PER_SECOND: u32 = 10;

/// Calls that wait for their turn even if their clients go: as many as ten seconds have.
const MAX_QUEUED_DENIALS: usize = 100;

/// Services that any verified certificate may use.
const PUBLIC_SERVICES: [&str; 2] = ["/grpc.health.v1.Health/", "/grpc.reflection."];

/// Size of a request's headers, in bytes, as HTTP/2 counts them (RFC 9113, 6.5.2). The listener
/// takes some more, so that the answer can be one of gRPC.
const MAX_HEADER_BYTES: usize = 16 << 10;

/// The largest request. A request has two small fields.
pub(super) const MAX_REQUEST_BYTES: usize = 16 << 10;

/// What stands before a message: whether it is compressed, and its length (gRPC over
/// HTTP/2, "Length-Prefixed-Message").
const MESSAGE_HEADER_LEN: usize = 5;

/// The routes of the server, guarded.
#[derive(Clone)]
pub struct Guard {
    routes: Routes,
    policy: Policy,
    audit: AuditLog,
    request_read_timeout: Duration,
    denials: Arc<RateLimiter>,
    /// Of `MAX_QUEUED_DENIALS`.
    waiting: Arc<Semaphore>,
    /// Held by the one call of a connection that waits to be denied.
    denial: Arc<Mutex<()>>,
    tasks: TaskTracker,
}

impl Guard {
    /// Guards `routes` with `policy`; refusals go to `audit`. A request that is not
    /// complete within `request_read_timeout` is refused, but for the open services, which
    /// have requests that go on.
    #[must_use]
    pub fn new(
        routes: Routes,
        policy: Policy,
        audit: AuditLog,
        request_read_timeout: Duration,
    ) -> Self {
        Self {
            routes: routes.prepare(),
            policy,
            audit,
            request_read_timeout,
            denials: Arc::new(RateLimiter::new(DENIALS_PER_SECOND)),
            waiting: Arc::new(Semaphore::new(MAX_QUEUED_DENIALS)),
            denial: Arc::default(),
            tasks: TaskTracker::new(),
        }
    }

    /// The guard for the calls of one connection.
    #[must_use]
    pub fn for_connection(&self) -> Self {
        Self {
            denial: Arc::default(),
            ..self.clone()
        }
    }

    /// Waits for the records of calls whose clients are gone.
    pub async fn drain(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Answers one request.
    pub async fn handle<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<StdError> + Send,
    {
        let path = request.uri().path().to_owned();
        let is_open =
            is_grpc(&request) && PUBLIC_SERVICES.iter().any(|open| path.starts_with(open));
        let peer = request.extensions().get::<Arc<Peer>>().cloned();
        // Headers of unreasonable size are dropped at once, and not kept until somebody's turn.
        let request = check(request);
        if is_open {
            return self.open(request).await;
        }
        match peer {
            Some(peer) if authorize(&self.policy, &peer.caller).is_err() => {
                self.throttle_denied(request, peer, path).await
            }
            peer => self.dispatch(request, peer, path).await,
        }
    }

    /// Answers a call of an open service, which leaves no record.
    async fn open<B>(&self, request: Result<Request<B>, ServiceError>) -> Response<Body>
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<StdError> + Send,
    {
        let request = match request {
            Ok(request) if compression::is_announced(&request) => {
                compression::check_first(request, self.request_read_timeout).await
            }
            Ok(request) => return self.route(request).await,
            Err(error) => Err(error),
        };
        match request {
            Ok(request) => self.route(request).await,
            Err(error) => error.into_status(&run_id()).into_http(),
        }
    }

    /// Answers a call that will be denied, when it has its turn.
    async fn throttle_denied<B>(
        &self,
        request: Result<Request<B>, ServiceError>,
        peer: Arc<Peer>,
        path: String,
    ) -> Response<Body>
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<StdError> + Send,
    {
        let unrecorded = telemetry::denial_waits();
        // One of each connection, or its others would stand before everybody else.
        let first = self.denial.clone().lock_owned().await;
        let place = self.waiting.clone().acquire_owned().await;
        unrecorded.over();
        let guard = self.clone();
        self.spawn_detached(async move {
            guard.denials.acquire().await;
            drop((first, place));
            guard.dispatch(request, Some(peer), path).await
        })
        .await
    }

    /// Answers a call, and leaves its record if no handler does.
    async fn dispatch<B>(
        &self,
        request: Result<Request<B>, ServiceError>,
        peer: Option<Arc<Peer>>,
        path: String,
    ) -> Response<Body>
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<StdError> + Send,
    {
        let started = Instant::now();
        let request = match request {
            Ok(request) => self.buffer_body(request).await,
            Err(error) => Err(error),
        };
        let error = match request {
            Ok(request) => {
                let response = self.route(request).await;
                if response.headers().contains_key(RUN_ID_HEADER) {
                    return response;
                }
                match Status::from_header_map(response.headers()).map(|status| status.code()) {
                    Some(Code::Unimplemented) => ServiceError::UnknownMethod,
                    _ => ServiceError::MalformedRequest,
                }
            }
            Err(error) => error,
        };
        let error = match peer.as_ref().map(|peer| decide(&self.policy, &peer.caller)) {
            None => ServiceError::Internal,
            Some(Err(denial)) => denial.into(),
            Some(Ok(_)) => error,
        };
        let run_id = run_id();
        let span = tracing::error_span!("rewrap", run_id);
        let record = Record::new(&run_id, peer, &path);
        let (audit, duration) = (self.audit.clone(), started.elapsed());
        let recorded = async move {
            audit.ended(record, duration, &error.outcome()).await;
            error.into_status(&run_id).into_http()
        };
        self.spawn_detached(recorded.instrument(span)).await
    }

    /// In a task of its own: a client that goes takes the futures of its calls with it.
    async fn spawn_detached(
        &self,
        handle: impl Future<Output = Response<Body>> + Send + 'static,
    ) -> Response<Body> {
        self.tasks.spawn(handle).await.unwrap_or_else(|error| {
            tracing::error!(%error, "a call panicked: this is a bug");
            ServiceError::Internal.into_status(&run_id()).into_http()
        })
    }

    async fn route<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<StdError> + Send,
    {
        match self.routes.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }

    /// The request with all of its body, which is small. One that never ends would hold
    /// its connection for ever, as a call that is under way.
    async fn buffer_body<B>(
        &self,
        request: Request<B>,
    ) -> Result<Request<Full<Bytes>>, ServiceError>
    where
        B: HttpBody<Data = Bytes>,
        B::Error: Into<StdError>,
    {
        let (mut head, body) = request.into_parts();
        let body = Limited::new(body, MESSAGE_HEADER_LEN + MAX_REQUEST_BYTES).collect();
        match timeout(self.request_read_timeout, body).await {
            Err(_) => Err(ServiceError::SlowRequest),
            Ok(Err(_)) => Err(ServiceError::MalformedRequest),
            Ok(Ok(body)) => {
                let body = body.to_bytes();
                compression::check(&mut head.headers, &body)?;
                Ok(Request::from_parts(head, Full::new(body)))
            }
        }
    }
}

/// Refuses what no handler has to see.
fn check<B>(request: Request<B>) -> Result<Request<B>, ServiceError> {
    let size = |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() + 32;
    let headers: usize = request.headers().iter().map(size).sum();
    if headers > MAX_HEADER_BYTES {
        Err(ServiceError::MetadataTooLarge)
    } else if is_grpc(&request) {
        Ok(request)
    } else {
        Err(ServiceError::UnknownMethod)
    }
}

/// What gRPC over HTTP/2 ("Requests") wants of a request, and tonic does not look at. A
/// web page in a browser that holds a certificate can make it send any other kind to
/// us; this one it may not without asking first, which is never answered (Fetch
/// standard, "CORS-safelisted request-header").
fn is_grpc<B>(request: &Request<B>) -> bool {
    let kind = request.headers().get(CONTENT_TYPE);
    let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim_end();
    request.method() == Method::POST
        && matches!(kind, "application/grpc" | "application/grpc+proto")
}
