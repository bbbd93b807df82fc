//! The error of a call, and the only conversion from an error to a gRPC status.
//!
//! The text tells the operator what to do. The reason is a stable identifier for programs.
//! Internal details, such as a panic message or an error text of Postgres, go only to the log.

use std::collections::HashMap;

use thiserror::Error;
use tonic::{Code, Status, metadata::MetadataValue};
use tonic_types::{ErrorDetails, StatusExt};

use crate::{
    api::run_id::RUN_ID_HEADER,
    audit::{NotRecorded, Outcome},
    auth::authorize::Denial,
    domain::organization::{InvalidOrganizationId, OrganizationId},
    store::{SetupError, StoreError},
};

/// The domain of the reasons in `google.rpc.ErrorInfo`.
const DOMAIN: &str = "nico-rewrap";

/// The header that lists the accepted message compressions (gRPC, "Compression").
const ACCEPTED_COMPRESSION: &str = "grpc-accept-encoding";

/// Why a call was not carried out.
#[derive(Debug, Error)]
pub enum ServiceError {
    /// `[machine_identity].enabled` is not true.
    #[error(
        "machine identity is not enabled on this site: set [machine_identity].enabled = true and restart nico-rewrap"
    )]
    Disabled,
    /// `x-expect-target-key-id` names another key.
    #[error(
        "this server re-wraps to key id {target:?}, but the call expects {expected:?}: check which configuration this server has"
    )]
    UnexpectedTarget {
        /// The target key id of this server.
        target: String,
        /// The target key id that the call expects.
        expected: String,
    },
    /// A site-wide apply is in progress in this process.
    #[error("a site-wide apply is already in progress: wait for its end, then call again")]
    ApplyUnderWay,
    /// The organization id is blank or malformed.
    #[error(transparent)]
    InvalidOrganization(#[from] InvalidOrganizationId),
    /// The organization has no machine identity configuration.
    #[error("organization {0:.100} has no machine identity configuration on this site")]
    UnknownOrganization(OrganizationId),
    /// The client is not allowed to make this call.
    #[error(transparent)]
    Denied(#[from] Denial),
    /// The number of concurrent runs is at its limit.
    #[error("the limit of concurrent runs, [rewrap].max_runs, is reached: call again later")]
    TooManyRuns,
    /// The server has not yet reached and checked the database since the start.
    #[error("the server has not reached the database yet ({0}): call again later")]
    NotReady(String),
    /// The database is unavailable.
    #[error("{0}. Committed rows stay committed; call again later")]
    Database(StoreError),
    /// The setup of the database or the role prevents the run.
    #[error("{0}. Committed rows stay committed")]
    DatabaseSetup(SetupError),
    /// The rows are committed, but the synchronous standby may not have them.
    #[error(
        "a commit's wait for the synchronous standby was cancelled, so the standby may lack rows \
         that this run read or wrote: call again"
    )]
    NotReplicated,
    /// The record of the call cannot be written.
    #[error(
        "the audit log can't be written, and the server starts no run without a record: check \
         the file of [rewrap].audit_log and its disk, then call again"
    )]
    AuditUnavailable,
    /// The server is shutting down.
    #[error("the server is shutting down. Committed rows stay committed; call again")]
    ShuttingDown,
    /// The deadline of the call has passed.
    #[error(
        "the deadline of the call has passed. Committed rows stay committed; call again with a longer deadline"
    )]
    DeadlineExceeded,
    /// The client has cancelled the call or disconnected.
    #[error("the client cancelled the call or disconnected. Committed rows stay committed")]
    Cancelled,
    /// The client did not send the whole request in time.
    #[error("the request was not complete within [rewrap].request_read_timeout: call again")]
    SlowRequest,
    /// The server does not have the method, or the request is not gRPC.
    #[error("unknown method, or not a gRPC request: check the method name and the content type")]
    UnknownMethod,
    /// The message is compressed.
    #[error(
        "the message is compressed with {0:?}, and this server accepts no compressed messages: \
         send it without compression"
    )]
    Compressed(String),
    /// The metadata of the request is too large.
    #[error("the metadata of the request is larger than 16 KiB: send less metadata")]
    MetadataTooLarge,
    /// The request cannot be decoded as the request type of the method, or is too large.
    #[error("the request is malformed or larger than 16 KiB: send the method's request type")]
    MalformedRequest,
    /// A bug.
    #[error("internal error: search the server's log for this run id")]
    Internal,
}

impl ServiceError {
    /// The gRPC code and the stable reason.
    #[must_use]
    pub fn code_and_reason(&self) -> (Code, &'static str) {
        match self {
            Self::Disabled => (Code::FailedPrecondition, "MACHINE_IDENTITY_DISABLED"),
            Self::UnexpectedTarget { .. } => (Code::FailedPrecondition, "UNEXPECTED_TARGET_KEY"),
            Self::ApplyUnderWay => (Code::FailedPrecondition, "APPLY_UNDER_WAY"),
            Self::InvalidOrganization(InvalidOrganizationId::Blank) => {
                (Code::InvalidArgument, "BLANK_ORGANIZATION_ID")
            }
            Self::InvalidOrganization(InvalidOrganizationId::Characters) => {
                (Code::InvalidArgument, "INVALID_ORGANIZATION_ID")
            }
            Self::UnknownOrganization(_) => (Code::NotFound, "UNKNOWN_ORGANIZATION"),
            Self::Denied(Denial::NoIdentity) => (Code::Unauthenticated, "NO_IDENTITY"),
            Self::Denied(Denial::NotAllowed) => (Code::PermissionDenied, "NOT_ALLOWED"),
            Self::Denied(Denial::CasbinPolicy) => (Code::PermissionDenied, "DENIED_BY_POLICY"),
            Self::TooManyRuns => (Code::ResourceExhausted, "TOO_MANY_RUNS"),
            Self::NotReady(_) => (Code::Unavailable, "NOT_READY"),
            Self::Database(_) => (Code::Unavailable, "DATABASE_UNAVAILABLE"),
            Self::DatabaseSetup(fault) => (Code::FailedPrecondition, fault.reason()),
            Self::NotReplicated => (Code::Unavailable, "NOT_REPLICATED"),
            Self::AuditUnavailable => (Code::Unavailable, "AUDIT_UNAVAILABLE"),
            Self::ShuttingDown => (Code::Unavailable, "SHUTTING_DOWN"),
            Self::DeadlineExceeded => (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"),
            Self::Cancelled => (Code::Cancelled, "CANCELLED"),
            Self::SlowRequest => (Code::DeadlineExceeded, "SLOW_REQUEST"),
            Self::UnknownMethod => (Code::Unimplemented, "UNKNOWN_METHOD"),
            Self::Compressed(_) => (Code::Unimplemented, "COMPRESSION_NOT_SUPPORTED"),
            Self::MetadataTooLarge => (Code::ResourceExhausted, "METADATA_TOO_LARGE"),
            Self::MalformedRequest => (Code::InvalidArgument, "MALFORMED_REQUEST"),
            Self::Internal => (Code::Internal, "INTERNAL"),
        }
    }
}

impl From<StoreError> for ServiceError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Setup(fault) => Self::DatabaseSetup(fault),
            error => Self::Database(error),
        }
    }
}

impl ServiceError {
    /// For the audit record.
    pub(crate) fn outcome(&self) -> Outcome {
        Outcome {
            name: self.code_and_reason().1,
            error: Some(self.to_string()),
        }
    }
}

impl From<NotRecorded> for ServiceError {
    fn from(_: NotRecorded) -> Self {
        Self::AuditUnavailable
    }
}

/// The section about this reason in the documents.
fn troubleshooting(reason: &str) -> String {
    format!("docs/troubleshooting.md#{}", reason.to_ascii_lowercase())
}

impl From<ServiceError> for Status {
    fn from(error: ServiceError) -> Self {
        let (code, reason) = error.code_and_reason();
        let mut details = ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new());
        details.add_help_link("what to do", troubleshooting(reason));
        Self::with_error_details(code, error.to_string(), details)
    }
}

impl ServiceError {
    /// Converts the error to a status with the run id in its metadata.
    #[must_use]
    pub fn into_status(self, run_id: &str) -> Status {
        let is_compressed = matches!(self, Self::Compressed(_));
        let mut status = Status::from(self);
        if is_compressed {
            let none = MetadataValue::from_static("identity");
            status.metadata_mut().insert(ACCEPTED_COMPRESSION, none);
        }
        if let Ok(run_id) = run_id.parse() {
            status.metadata_mut().insert(RUN_ID_HEADER, run_id);
        }
        status
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Hidden;

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

    #[test]
    fn every_error_has_its_code_reason_and_advice() {
        use Code::*;
        let id = || OrganizationId::parse("acme").unwrap();
        let table = [
            (
                ServiceError::Disabled,
                FailedPrecondition,
                "MACHINE_IDENTITY_DISABLED",
            ),
            (
                ServiceError::UnexpectedTarget {
                    target: "kv2".to_owned(),
                    expected: "kv3".to_owned(),
                },
                FailedPrecondition,
                "UNEXPECTED_TARGET_KEY",
            ),
            (
                ServiceError::ApplyUnderWay,
                FailedPrecondition,
                "APPLY_UNDER_WAY",
            ),
            (
                InvalidOrganizationId::Blank.into(),
                InvalidArgument,
                "BLANK_ORGANIZATION_ID",
            ),
            (
                InvalidOrganizationId::Characters.into(),
                InvalidArgument,
                "INVALID_ORGANIZATION_ID",
            ),
            (
                ServiceError::UnknownOrganization(id()),
                NotFound,
                "UNKNOWN_ORGANIZATION",
            ),
            (Denial::NoIdentity.into(), Unauthenticated, "NO_IDENTITY"),
            (Denial::NotAllowed.into(), PermissionDenied, "NOT_ALLOWED"),
            (
                Denial::CasbinPolicy.into(),
                PermissionDenied,
                "DENIED_BY_POLICY",
            ),
            (
                ServiceError::TooManyRuns,
                ResourceExhausted,
                "TOO_MANY_RUNS",
            ),
            (
                ServiceError::NotReady("refused".to_owned()),
                Unavailable,
                "NOT_READY",
            ),
            (
                ServiceError::Database(StoreError::Unavailable("gone".to_owned())),
                Unavailable,
                "DATABASE_UNAVAILABLE",
            ),
            (ServiceError::NotReplicated, Unavailable, "NOT_REPLICATED"),
            (
                StoreError::from(SetupError::from(Hidden::BySomePolicy)).into(),
                FailedPrecondition,
                "ROWS_NOT_VISIBLE",
            ),
            (
                ServiceError::DatabaseSetup(SetupError::Privilege("a privilege".to_owned())),
                FailedPrecondition,
                "DATABASE_PRIVILEGE",
            ),
            (
                ServiceError::DatabaseSetup(SetupError::Schema("a table is missing".to_owned())),
                FailedPrecondition,
                "DATABASE_SCHEMA",
            ),
            (
                ServiceError::DatabaseSetup(SetupError::Login("no such role".to_owned())),
                FailedPrecondition,
                "DATABASE_LOGIN",
            ),
            (
                ServiceError::DatabaseSetup(SetupError::ReadOnly),
                FailedPrecondition,
                "DATABASE_READ_ONLY",
            ),
            (
                ServiceError::DatabaseSetup(SetupError::Update("generated".to_owned())),
                FailedPrecondition,
                "DATABASE_REFUSES_UPDATES",
            ),
            (
                ServiceError::DatabaseSetup(SetupError::TriggerCreated("a trigger".to_owned())),
                FailedPrecondition,
                "TRIGGER_CREATED",
            ),
            (
                ServiceError::AuditUnavailable,
                Unavailable,
                "AUDIT_UNAVAILABLE",
            ),
            (ServiceError::ShuttingDown, Unavailable, "SHUTTING_DOWN"),
            (
                ServiceError::DeadlineExceeded,
                DeadlineExceeded,
                "DEADLINE_EXCEEDED",
            ),
            (ServiceError::Cancelled, Cancelled, "CANCELLED"),
            (ServiceError::SlowRequest, DeadlineExceeded, "SLOW_REQUEST"),
            (ServiceError::UnknownMethod, Unimplemented, "UNKNOWN_METHOD"),
            (
                ServiceError::Compressed("gzip".to_owned()),
                Unimplemented,
                "COMPRESSION_NOT_SUPPORTED",
            ),
            (
                ServiceError::MetadataTooLarge,
                ResourceExhausted,
                "METADATA_TOO_LARGE",
            ),
            (
                ServiceError::MalformedRequest,
                InvalidArgument,
                "MALFORMED_REQUEST",
            ),
            (ServiceError::Internal, Internal, "INTERNAL"),
        ];
        for (error, code, reason) in table {
            let text = error.to_string();
            let status = Status::from(error);
            assert_eq!(status.code(), code, "{text}");
            assert_eq!(status.message(), text);
            let is_counted = crate::telemetry::CALL_OUTCOMES.contains(&reason);
            assert!(
                is_counted,
                "{reason} is not among the outcomes of the metrics"
            );
            let info = status.get_details_error_info().unwrap();
            assert_eq!(
                (info.reason.as_str(), info.domain.as_str()),
                (reason, DOMAIN)
            );
        }
    }
}
