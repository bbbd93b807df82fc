//! Handlers that write no audit record, behind the guard.

use std::path::Path;

use axum::{Router, routing::post};
use serde_json::Value;
use tonic::Response as Answer;

use super::*;
use crate::{
    audit::AuditOptions,
    auth::{
        identity::{Caller, Identity},
        peer::PeerAddress,
    },
};

const OK: &str = "/test.Test/Ok";
const FAILS: &str = "/test.Test/Fails";
const MARKED: &str = "/test.Test/Marked";
const MARKED_FAILS: &str = "/test.Test/MarkedFails";
const UNKNOWN: &str = "/test.Test/Unknown";

fn error() -> Status {
    ServiceError::TooManyRuns.into_status("the-id-of-the-handler")
}

/// A guard in front of handlers, with its audit log in this file.
fn guard(file: &Path) -> Guard {
    let ok = || async { Response::new(Body::empty()) };
    let fails = || async { error().into_http::<Body>() };
    let marked = || async {
        let mut answer = Answer::new(());
        Audited::mark(&mut answer);
        let mut response = Response::new(Body::empty());
        *response.extensions_mut() = answer.extensions().clone();
        response
    };
    let marked_fails = || async { Audited::mark_error(error()).into_http::<Body>() };
    let router = Router::new()
        .route(OK, post(ok))
        .route(FAILS, post(fails))
        .route(MARKED, post(marked))
        .route(MARKED_FAILS, post(marked_fails))
        .fallback(|| async { Status::unimplemented("").into_http::<Body>() });
    let policy = Policy {
        allowed_services: vec!["allowed".to_owned()],
        casbin: None,
        permissive: false,
        local_may_apply: false,
    };
    let options = AuditOptions {
        file: Some(file.to_owned()),
        required: true,
    };
    let audit = AuditLog::open(&options).unwrap();
    Guard::new(router.into(), policy, audit, Duration::from_secs(10))
}

/// The status and the run id of the answer to a service with this name.
async fn call(guard: &Guard, service: &str, path: &str) -> (Code, Option<String>) {
    let caller = Caller {
        identity: Some(Identity::Service {
            name: service.to_owned(),
        }),
        ..Caller::default()
    };
    let peer = Peer {
        address: PeerAddress::Tcp("[::1]:1".parse().unwrap()),
        caller,
    };
    let request = Request::post(path)
        .header(CONTENT_TYPE, "application/grpc")
        .extension(Arc::new(peer))
        .body(Body::empty())
        .unwrap();
    let response = guard.handle(request).await;
    let status = Status::from_header_map(response.headers());
    let run_id = response.headers().get(RUN_ID_HEADER);
    (
        status.map_or(Code::Ok, |status| status.code()),
        run_id.map(|id| id.to_str().unwrap().to_owned()),
    )
}

#[tokio::test]
async fn a_handler_without_a_record_keeps_its_answer_and_gets_one() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("audit.log");
    let guard = guard(&file);
    let (ok, ok_id) = call(&guard, "allowed", OK).await;
    assert_eq!(ok, Code::Ok);
    let (fails, fails_id) = call(&guard, "allowed", FAILS).await;
    assert_eq!(fails, Code::ResourceExhausted);
    assert_eq!(fails_id.as_deref(), Some("the-id-of-the-handler"));
    let (unknown, unknown_id) = call(&guard, "allowed", UNKNOWN).await;
    assert_eq!(unknown, Code::Unimplemented);
    let (denied, denied_id) = call(&guard, "other", OK).await;
    assert_eq!(denied, Code::PermissionDenied);
    // A handler that has written its record.
    assert_eq!(call(&guard, "allowed", MARKED).await, (Code::Ok, None));
    let (marked_fails, _) = call(&guard, "allowed", MARKED_FAILS).await;
    assert_eq!(marked_fails, Code::ResourceExhausted);

    let records = std::fs::read_to_string(file).unwrap();
    let records = records.lines().map(|line| {
        let record: Value = serde_json::from_str(line).unwrap();
        let text = |name: &str| record[name].as_str().unwrap().to_owned();
        (text("method"), text("outcome"), Some(text("run_id")))
    });
    let expected = [
        (OK, "OK", ok_id),
        (FAILS, "TOO_MANY_RUNS", fails_id),
        (UNKNOWN, "UNKNOWN_METHOD", unknown_id),
        (OK, "NOT_ALLOWED", denied_id),
    ];
    let expected = expected.map(|(path, outcome, id)| (path.to_owned(), outcome.to_owned(), id));
    assert_eq!(records.collect::<Vec<_>>(), expected);
}
