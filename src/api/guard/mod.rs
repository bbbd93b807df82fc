//! Authorization in front of the routes, and the answers that no handler gives.
//!
//! Every verified certificate and every accepted local user may use reflection and health checks.
//! Every other method needs a permit, even an unknown one. The permit for an apply is that of the
//! handler: only it knows what the request asks for. If a call fails before a handler runs (an
//! unknown method, a malformed request), the guard writes the audit record and answers with a run
//! id and an error of this server. If a handler does not mark its response as `Audited`, the guard
//! writes the record of the call.
//!
//! Every certificate holder can cause denied calls, and each writes an audit record. Denied
//! calls are therefore rate-limited before the guard reads their requests. Allowed calls are
//! not affected. The oldest denied call of each connection waits in a task of its own, so that
//! its record is written even if the client disconnects.

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
    audited::Audited,
    error::{ServiceError, outcome_of},
    run_id::{RUN_ID_HEADER, run_id},
};
use crate::{
    audit::{AuditLog, Outcome, Record},
    auth::{
        authorize::{Access, Policy, authorize},
        peer::Peer,
    },
    limits::rate_limit::RateLimiter,
    telemetry,
};

/// Rate limit of denied calls, per second. A record has about one kilobyte, so the audit log
/// grows by less than one gigabyte a day.
const DENIALS_PER_SECOND: u32 = 10;

/// Maximum number of denied calls that stay queued if their clients disconnect: as many as
/// the rate limit passes in ten seconds.
const MAX_QUEUED_DENIALS: usize = 100;

/// Prefixes of the services that every verified certificate may use.
const PUBLIC_SERVICES: [&str; 3] = [
    "/grpc.health.v1.Health/",
    "/grpc.reflection.",
    "/nico.rewrap.v1.Rewrap/WhoAmI",
];

/// Size limit of a request's headers in bytes, counted as in HTTP/2 (RFC 9113, 6.5.2). The
/// listener accepts larger headers, so that the guard can answer with a gRPC status.
const MAX_HEADER_BYTES: usize = 16 << 10;

/// Size limit of a request in bytes. A request has two small fields.
pub(super) const MAX_REQUEST_BYTES: usize = 16 << 10;

/// Length of the prefix of a message: the compression flag and the length (gRPC over HTTP/2,
/// "Length-Prefixed-Message").
const MESSAGE_HEADER_LEN: usize = 5;

/// The routes of the server behind the authorization.
#[derive(Clone)]
pub struct Guard {
    routes: Routes,
    policy: Policy,
    audit: AuditLog,
    request_read_timeout: Duration,
    denials: Arc<RateLimiter>,
    /// Has `MAX_QUEUED_DENIALS` permits.
    waiting: Arc<Semaphore>,
    /// The oldest denied call of the connection holds this lock while it waits.
    denial: Arc<Mutex<()>>,
    tasks: TaskTracker,
}

impl Guard {
    /// Guards `routes` with `policy`, and writes the records of refused calls to `audit`. A
    /// request that is not complete within `request_read_timeout` is refused. Public services are
    /// exempt, since their requests can be streams.
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

    /// Returns the guard for the calls of one connection.
    #[must_use]
    pub fn for_connection(&self) -> Self {
        Self {
            denial: Arc::default(),
            ..self.clone()
        }
    }

    /// Waits until the records of calls of disconnected clients are written.
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
        // Replaces a request with oversized headers by an error before the call waits, so that the
        // headers do not take memory.
        let request = check(request);
        if is_open {
            return self.open(request).await;
        }
        match peer {
            Some(peer) if authorize(&self.policy, &peer.caller, Access::Read).is_err() => {
                self.throttle_denied(request, peer, path).await
            }
            peer => self.dispatch(request, peer, path).await,
        }
    }

    /// Answers a call of a public service, which writes no audit record.
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

    /// Answers a call that will be denied, once the rate limiter admits it.
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
        let unrecorded = telemetry::denial_queued();
        // Only one call of each connection may be queued for the rate limiter: a connection with
        // many calls must not delay other connections.
        let first = self.denial.clone().lock_owned().await;
        let place = self.waiting.clone().acquire_owned().await;
        unrecorded.disarm();
        let guard = self.clone();
        self.spawn_detached(async move {
            guard.denials.acquire().await;
            drop((first, place));
            guard.dispatch(request, Some(peer), path).await
        })
        .await
    }

    /// Answers a call. Writes its audit record if no handler does.
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
        let response = match request {
            Ok(request) => {
                let response = self.route(request).await;
                if Audited::is_on(&response) {
                    return response;
                }
                Ok(response)
            }
            Err(error) => Err(error),
        };
        let run_id = run_id_of(&response);
        let span = tracing::error_span!("rewrap", run_id);
        let denied = span.in_scope(|| {
            let peer = peer.as_ref().ok_or(ServiceError::Internal)?;
            decide(&self.policy, peer, Access::Read).map_err(ServiceError::from)
        });
        let answer = match (denied, response) {
            (Err(error), _) | (Ok(_), Err(error)) => Err(error),
            (Ok(_), Ok(response)) => unrecorded(response),
        };
        let record = Record::new(&run_id, peer, &path);
        let (audit, duration) = (self.audit.clone(), started.elapsed());
        let recorded = async move {
            let (outcome, mut response) = match answer {
                Ok((outcome, response)) => (outcome, response),
                Err(error) => {
                    let outcome = error.outcome();
                    (outcome, error.into_status(&run_id).into_http())
                }
            };
            audit.ended(record, duration, &outcome).await;
            if let Ok(run_id) = run_id.parse() {
                response.headers_mut().insert(RUN_ID_HEADER, run_id);
            }
            response
        };
        self.spawn_detached(recorded.instrument(span)).await
    }

    /// Runs `handle` in a task of its own. If a client disconnects, the server drops the futures
    /// of its calls, but not their tasks.
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

    /// Reads the whole body, within limits of size and time. A body that never ends would keep
    /// its connection open.
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

/// The run id of the response, or a new one.
fn run_id_of(response: &Result<Response<Body>, ServiceError>) -> String {
    let headers = response.as_ref().ok().map(Response::headers);
    let given = headers.and_then(|headers| headers.get(RUN_ID_HEADER)?.to_str().ok());
    given.map_or_else(run_id, str::to_owned)
}

/// The outcome of a response without an audit record. A handler's own response stays as it is.
/// An error that tonic made, because there is no such method or the request cannot be decoded,
/// becomes an error of this server.
fn unrecorded(response: Response<Body>) -> Result<(Outcome, Response<Body>), ServiceError> {
    let outcome = match Status::from_header_map(response.headers()) {
        None => Outcome::OK,
        Some(status) if status.code() == Code::Ok => Outcome::OK,
        Some(status) => match (outcome_of(&status), status.code()) {
            (Some(outcome), _) => outcome,
            (None, Code::Unimplemented) => return Err(ServiceError::UnknownMethod),
            (None, _) => return Err(ServiceError::MalformedRequest),
        },
    };
    Ok((outcome, response))
}

/// Refuses a request with oversized headers, or one that is not gRPC.
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

/// Whether the request has the method and content type of gRPC (gRPC over HTTP/2, "Requests"),
/// which tonic does not check.
///
/// This also protects a browser that holds an administrator's certificate. A web page can make
/// the browser send requests with other content types to this server. For this content type,
/// the browser sends a preflight request first (Fetch standard, "CORS-safelisted
/// request-header"), and the server never permits it.
fn is_grpc<B>(request: &Request<B>) -> bool {
    let kind = request.headers().get(CONTENT_TYPE);
    let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim_end();
    request.method() == Method::POST
        && matches!(kind, "application/grpc" | "application/grpc+proto")
}

#[cfg(test)]
mod tests;
