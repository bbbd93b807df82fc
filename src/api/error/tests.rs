//! Every error with its code, reason and metadata.

use tonic::Code;

use super::*;
use crate::{
    auth::{
        authorize::Denial,
        refusal::{Refusal, Rule},
    },
    domain::keyring::{KEY_BYTES, Kek, KeyId},
    run::{Report, record::Kind},
    store::Hidden,
};

#[test]
fn a_refused_compression_names_the_accepted_one() {
    let handle = ServiceError::Compressed("gzip".to_owned())
        .into_status("id")
        .into_http::<()>();
    assert_eq!(handle.headers()["grpc-status"], "12");
    assert_eq!(handle.headers()[ACCEPTED_COMPRESSION], "identity");
    let handle = ServiceError::UnknownMethod.into_status("id");
    assert!(!handle.metadata().contains_key(ACCEPTED_COMPRESSION));
}

fn denied(denial: Denial) -> ServiceError {
    let refusal = Refusal {
        rule: Rule::Svid,
        seen: "a secret of the site".to_owned(),
        expected: "another one".to_owned(),
    };
    Denied { denial, refusal }.into()
}

fn setup(problem: SetupError) -> ServiceError {
    StoreError::from(problem).into()
}

fn early(error: ServiceError) -> ServiceError {
    let counts = Counts::of(&Report::default(), Kind::Apply, true);
    let error = Box::new(error);
    ServiceError::EndedEarly {
        error,
        counts,
        wait: Some("a lock".to_owned()),
    }
}

/// The code, the reason, the number, and the keys of the metadata beside `run_id`.
type Expected = (Code, &'static str, u16, &'static [&'static str]);

fn table() -> Vec<(ServiceError, Expected)> {
    use Code::*;
    let id = || OrganizationId::parse("acme").unwrap();
    let text = || "a text".to_owned();
    let holder = Holder {
        run_id: "the-id".to_owned(),
        caller: "alice".to_owned(),
        instance: "one:1179".to_owned(),
        start_time: "2026-11-30T00:00:00.000Z".to_owned(),
    };
    let kek = Kek::new(
        KeyId::new("kv2").unwrap(),
        &zeroize::Zeroizing::new([7; KEY_BYTES]),
    );
    let wrong_key = WrongKeyMaterial {
        key_id: "kv2".to_owned(),
        check_value: kek.check_value(),
        tried: 3,
    };
    let unexpected = ServiceError::UnexpectedTarget {
        target: "kv2".to_owned(),
        expected: "kv3".to_owned(),
    };
    let by_policy = Hidden::ByPolicy {
        tables: text(),
        role: text(),
    };
    let by_index = Hidden::ByIndex {
        index: text(),
        missing: 1,
        repeated: 2,
    };
    let unavailable = StoreError::Unavailable("gone".to_owned());
    let counted = &[
        "cause",
        "dry_run",
        "durable",
        "rows_examined",
        "rows_failed",
        "rows_in_doubt",
        "rows_updated",
        "waiting_for",
    ];
    vec![
        (
            ServiceError::Disabled,
            (FailedPrecondition, "MACHINE_IDENTITY_DISABLED", 409, &[]),
        ),
        (
            unexpected,
            (
                FailedPrecondition,
                "UNEXPECTED_TARGET_KEY",
                412,
                &["expected", "target"],
            ),
        ),
        (
            ServiceError::ApplyUnderWay(None),
            (FailedPrecondition, "APPLY_UNDER_WAY", 409, &[]),
        ),
        (
            ServiceError::ApplyUnderWay(Some(Box::new(holder))),
            (
                FailedPrecondition,
                "APPLY_UNDER_WAY",
                409,
                &["caller", "instance", "start_time"],
            ),
        ),
        (
            ServiceError::InvalidRun("a text"),
            (InvalidArgument, "INVALID_RUN", 400, &[]),
        ),
        (
            ServiceError::UnknownRun("the-id".to_owned()),
            (NotFound, "UNKNOWN_RUN", 404, &[]),
        ),
        (
            ServiceError::RequestIdReused("r".to_owned()),
            (AlreadyExists, "REQUEST_ID_REUSED", 409, &["request_id"]),
        ),
        (
            wrong_key.into(),
            (
                FailedPrecondition,
                "WRONG_KEY_MATERIAL",
                412,
                &["check_value", "key_id"],
            ),
        ),
        (ServiceError::Stopped, (Cancelled, "STOPPED", 400, &[])),
        (
            ServiceError::FailureLimit(7),
            (Aborted, "FAILURE_LIMIT", 409, &["rows_failed"]),
        ),
        (
            InvalidOrganizationId::Blank.into(),
            (InvalidArgument, "BLANK_ORGANIZATION_ID", 400, &[]),
        ),
        (
            InvalidOrganizationId::Characters.into(),
            (InvalidArgument, "INVALID_ORGANIZATION_ID", 400, &[]),
        ),
        (
            ServiceError::UnknownOrganization(id()),
            (NotFound, "UNKNOWN_ORGANIZATION", 404, &["organization_id"]),
        ),
        (
            denied(Denial::NoIdentity),
            (Unauthenticated, "NO_IDENTITY", 401, &[]),
        ),
        (
            denied(Denial::NoAdminBundle),
            (Unauthenticated, "NO_IDENTITY", 401, &[]),
        ),
        (
            denied(Denial::NotAllowed),
            (PermissionDenied, "NOT_ALLOWED", 403, &[]),
        ),
        (
            denied(Denial::CasbinPolicy),
            (PermissionDenied, "DENIED_BY_POLICY", 403, &["action"]),
        ),
        (
            denied(Denial::SocketReadOnly),
            (PermissionDenied, "ADMIN_SOCKET_READ_ONLY", 403, &[]),
        ),
        (
            ServiceError::TooManyRuns,
            (ResourceExhausted, "TOO_MANY_RUNS", 429, &[]),
        ),
        (
            ServiceError::NotReady(text()),
            (Unavailable, "NOT_READY", 503, &["cause"]),
        ),
        (
            early(unavailable.into()),
            (Unavailable, "DATABASE_UNAVAILABLE", 503, counted),
        ),
        (
            ServiceError::NotReplicated,
            (Unavailable, "NOT_REPLICATED", 503, &[]),
        ),
        (
            setup(Hidden::BySomePolicy.into()),
            (FailedPrecondition, "ROWS_NOT_VISIBLE", 503, &[]),
        ),
        (
            setup(by_policy.into()),
            (
                FailedPrecondition,
                "ROWS_NOT_VISIBLE",
                503,
                &["role", "tables"],
            ),
        ),
        (
            setup(by_index.into()),
            (
                FailedPrecondition,
                "ROWS_NOT_VISIBLE",
                503,
                &["index", "organizations_missing", "organizations_repeated"],
            ),
        ),
        (
            setup(Hidden::NotATable(text()).into()),
            (FailedPrecondition, "ROWS_NOT_VISIBLE", 503, &["tables"]),
        ),
        (
            setup(Hidden::ByDamage(text()).into()),
            (FailedPrecondition, "ROWS_NOT_VISIBLE", 503, &["sqlstate"]),
        ),
        (
            setup(SetupError::Privilege(text())),
            (
                FailedPrecondition,
                "DATABASE_PRIVILEGE",
                503,
                &["privilege"],
            ),
        ),
        (
            setup(SetupError::Schema(text())),
            (FailedPrecondition, "DATABASE_SCHEMA", 503, &["cause"]),
        ),
        (
            setup(SetupError::Login(text())),
            (FailedPrecondition, "DATABASE_LOGIN", 503, &["cause"]),
        ),
        (
            setup(SetupError::TriggerCreated(text())),
            (FailedPrecondition, "TRIGGER_CREATED", 503, &["triggers"]),
        ),
        (
            setup(SetupError::ReadOnly),
            (FailedPrecondition, "DATABASE_READ_ONLY", 503, &[]),
        ),
        (
            setup(SetupError::Update(text())),
            (
                FailedPrecondition,
                "DATABASE_REFUSES_UPDATES",
                503,
                &["cause"],
            ),
        ),
        (
            ServiceError::AuditUnavailable,
            (Unavailable, "AUDIT_UNAVAILABLE", 503, &[]),
        ),
        (
            ServiceError::ShuttingDown,
            (Unavailable, "SHUTTING_DOWN", 503, &[]),
        ),
        (
            ServiceError::DeadlineExceeded,
            (DeadlineExceeded, "DEADLINE_EXCEEDED", 503, &[]),
        ),
        (ServiceError::Cancelled, (Cancelled, "CANCELLED", 400, &[])),
        (
            ServiceError::SlowRequest,
            (DeadlineExceeded, "SLOW_REQUEST", 400, &[]),
        ),
        (
            ServiceError::UnknownMethod,
            (Unimplemented, "UNKNOWN_METHOD", 404, &[]),
        ),
        (
            ServiceError::Compressed("gzip".to_owned()),
            (
                Unimplemented,
                "COMPRESSION_NOT_SUPPORTED",
                400,
                &["encoding"],
            ),
        ),
        (
            ServiceError::MetadataTooLarge,
            (ResourceExhausted, "METADATA_TOO_LARGE", 400, &[]),
        ),
        (
            ServiceError::MalformedRequest,
            (InvalidArgument, "MALFORMED_REQUEST", 400, &[]),
        ),
        (ServiceError::Internal, (Internal, "INTERNAL", 500, &[])),
    ]
}

#[test]
fn every_error_has_its_code_reason_metadata_and_advice() {
    for (error, (code, reason, number, keys)) in table() {
        let text = error.to_string();
        let status = error.into_status("the-id");
        assert_eq!(status.code(), code, "{text}");
        assert_eq!(status.message(), text);
        assert!(!text.contains("secret of the site"), "{text}");
        let info = status.get_details_error_info().unwrap();
        assert_eq!(
            (info.reason.as_str(), info.domain.as_str()),
            (reason, DOMAIN)
        );
        let mut metadata = info.metadata;
        assert_eq!(metadata.remove("run_id").as_deref(), Some("the-id"));
        let mut found: Vec<_> = metadata.keys().map(String::as_str).collect();
        found.sort_unstable();
        assert_eq!(found, keys, "{reason}");
        for value in metadata
            .iter()
            .filter(|(key, _)| !["dry_run", "durable"].contains(&key.as_str()))
        {
            assert!(
                text.contains(value.1) || reason == "DENIED_BY_POLICY",
                "{value:?} in {text}"
            );
        }
        let header = |name| status.metadata().get(name).unwrap().to_str().unwrap();
        assert_eq!(header("nico-error-code"), format!("NICO-API-{number}"));
        assert_eq!(header("nico-error-text"), text);
        assert!(!header("nico-error-mitigation").is_empty());
        assert_eq!(outcome_of(&status).unwrap().name, reason);
    }
}
