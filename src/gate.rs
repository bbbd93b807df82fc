//! Before and behind the routes: who is let through to what, and the answers that
//! no handler gave.
//!
//! Reflection and health checks are open to every verified certificate; every other
//! method needs a permit, also one that does not exist. What is refused before a
//! handler runs (an unknown method, a request that can't be decoded) gets the same
//! treatment as everything else: an audit record, a run id, a status of ours.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::http::{Request, Response};
use http_body_util::BodyExt;
use tonic::{Code, Status, body::Body, service::Routes};
use tower::ServiceExt;
use tower_http::timeout::{TimeoutBody, TimeoutError};
use tracing::Instrument;

use crate::{
    audit::{AuditLog, Record},
    authorize::{Policy, authorize},
    error::ServiceError,
    listener::Peer,
    service::{RUN_ID_HEADER, run_id},
};

/// Services that any verified certificate may use.
const OPEN: [&str; 2] = ["/grpc.health.v1.Health/", "/grpc.reflection."];

/// The routes of the server, guarded.
#[derive(Clone)]
pub struct Gate {
    routes: Routes,
    policy: Policy,
    audit: AuditLog,
    request_timeout: Duration,
}

impl Gate {
    /// Guards `routes` with `policy`; refusals go to `audit`. No part of a request may
    /// take longer than `request_timeout` to come.
    #[must_use]
    pub fn new(routes: Routes, policy: Policy, audit: AuditLog, request_timeout: Duration) -> Self {
        Self {
            routes: routes.prepare(),
            policy,
            audit,
            request_timeout,
        }
    }

    /// Answers one request.
    pub async fn answer<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: axum::body::HttpBody<Data = axum::body::Bytes> + Send + 'static,
        B::Error: Into<tonic::codegen::StdError> + Send,
    {
        let started = Instant::now();
        let path = request.uri().path().to_owned();
        let peer = request.extensions().get::<Arc<Peer>>().cloned();
        let request = request.map(|body| in_time(body, self.request_timeout));
        let response = match self.routes.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        let answered = response.headers().contains_key(RUN_ID_HEADER);
        if answered || OPEN.iter().any(|open| path.starts_with(open)) {
            return response;
        }

        let refused = Status::from_header_map(response.headers());
        let code = refused.map_or(Code::Unknown, |status| status.code());
        let error = match peer
            .as_ref()
            .map(|peer| authorize(&self.policy, &peer.caller))
        {
            None => ServiceError::Internal,
            Some(Err(denial)) => denial.into(),
            Some(Ok(_)) if code == Code::Unimplemented => ServiceError::UnknownMethod,
            Some(Ok(_)) if code == Code::DeadlineExceeded => ServiceError::SlowRequest,
            Some(Ok(_)) => ServiceError::MalformedRequest,
        };
        let run_id = run_id();
        let span = tracing::error_span!("rewrap", run_id);
        let record = Record::new(&run_id, peer, &path);
        let recorded = self.audit.ended(record, started.elapsed(), Some(&error));
        recorded.instrument(span).await;
        error.into_status(&run_id).into_http()
    }
}

/// The body, failing when the client leaves off in the middle of it. A request that
/// never ends would hold its connection for ever: it counts as a call.
fn in_time<B>(
    body: B,
    period: Duration,
) -> impl axum::body::HttpBody<Data = axum::body::Bytes, Error = Status>
where
    B: axum::body::HttpBody<Data = axum::body::Bytes>,
    B::Error: Into<tonic::codegen::StdError>,
{
    TimeoutBody::new(period, body).map_err(|error| {
        if error.is::<TimeoutError>() {
            Status::deadline_exceeded("the request was not complete in time")
        } else {
            Status::from_error(error)
        }
    })
}
