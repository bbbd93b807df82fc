//! Before and behind the routes: who is let through to what, and the answers that
//! no handler gave.
//!
//! Reflection and health checks are open to every verified certificate; every other
//! method needs a permit, also one that does not exist. What is refused before a
//! handler runs (an unknown method, a request that can't be decoded) gets the same
//! treatment as everything else: an audit record, a run id, a status of ours.

use std::{sync::Arc, time::Instant};

use axum::http::{Request, Response};
use tonic::{Code, Status, body::Body, service::Routes};
use tower::ServiceExt;

use crate::{
    audit,
    authorize::{ACTION, Denial, Permit, Policy, authorize},
    error::ServiceError,
    identity::Caller,
    listener::Peer,
    service::{RUN_ID_HEADER, run_id},
    telemetry,
};

/// Services that any verified certificate may use.
const OPEN: [&str; 2] = ["/grpc.health.v1.Health/", "/grpc.reflection."];

/// The routes of the server, guarded.
#[derive(Clone)]
pub struct Gate {
    routes: Routes,
    policy: Policy,
}

impl Gate {
    /// Guards `routes` with `policy`.
    #[must_use]
    pub fn new(routes: Routes, policy: Policy) -> Self {
        Self {
            routes: routes.prepare(),
            policy,
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
        let error = match peer.as_ref().map(|peer| decide(&self.policy, &peer.caller)) {
            None => ServiceError::Internal,
            Some(Err(denial)) => denial.into(),
            Some(Ok(_)) if code == Code::Unimplemented => ServiceError::UnknownMethod,
            Some(Ok(_)) => ServiceError::MalformedRequest,
        };
        let run_id = run_id();
        let _span = tracing::error_span!("rewrap", run_id).entered();
        audit::Record::new(peer, &path).write(started.elapsed(), Some(&error));
        error.into_status(&run_id).into_http()
    }
}

/// The decision about one call, counted, and logged where a site should hear of it.
pub(crate) fn decide(policy: &Policy, caller: &Caller) -> Result<Permit, Denial> {
    let decision = authorize(policy, caller);
    let outcome = match &decision {
        Ok(permit) if permit.overrides_casbin() => "allowed_by_permissive_mode",
        Ok(_) => "allowed",
        Err(Denial::NoIdentity) => "no_identity",
        Err(Denial::NotAllowed) => "not_allowed",
        Err(Denial::CasbinPolicy) => "denied_by_policy",
    };
    telemetry::decided(caller.kind(), outcome);
    if decision.as_ref().is_ok_and(Permit::overrides_casbin) {
        tracing::warn!(
            action = ACTION,
            identity_kind = caller.kind(),
            "the Casbin policy denies this call, and [auth].permissive_mode lets it pass"
        );
    }
    decision
}
