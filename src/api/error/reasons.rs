//! The table of reasons: the gRPC code, the number of nico-api's error code, and what to do.

use tonic::Code;

use super::ServiceError;
use crate::{auth::authorize::Denial, domain::organization::InvalidOrganizationId};

/// A reason, with everything that a client gets for it.
#[derive(Debug)]
pub struct Reason {
    /// The stable identifier for programs.
    pub name: &'static str,
    /// The gRPC code.
    pub code: Code,
    /// The number in `nico-error-code`, which is an HTTP status.
    pub number: u16,
    /// What to do, in ASCII.
    pub mitigation: &'static str,
}

const fn row(name: &'static str, code: Code, number: u16, mitigation: &'static str) -> Reason {
    Reason {
        name,
        code,
        number,
        mitigation,
    }
}

/// The reason of a bug.
static INTERNAL: Reason = row(
    "INTERNAL",
    Code::Internal,
    500,
    "search the log of nico-rewrap for the run id, and report the bug",
);

/// All other reasons. `docs/reference/errors.md` lists them.
static TABLE: [Reason; 36] = [
    row(
        "MACHINE_IDENTITY_DISABLED",
        Code::FailedPrecondition,
        409,
        "set [machine_identity].enabled = true and restart nico-rewrap",
    ),
    row(
        "UNEXPECTED_TARGET_KEY",
        Code::FailedPrecondition,
        412,
        "restart servers that still have the old target key, or correct x-expect-target-key-id",
    ),
    row(
        "APPLY_UNDER_WAY",
        Code::FailedPrecondition,
        409,
        "wait for the end of the other apply, then call again",
    ),
    row(
        "ROWS_NOT_VISIBLE",
        Code::FailedPrecondition,
        503,
        "change the database as the message says, then run again",
    ),
    row(
        "DATABASE_PRIVILEGE",
        Code::FailedPrecondition,
        503,
        "grant the privilege: deploy/postgres/role.sql has all grants on the tables",
    ),
    row(
        "DATABASE_READ_ONLY",
        Code::FailedPrecondition,
        503,
        "reset default_transaction_read_only for the role and the database",
    ),
    row(
        "DATABASE_SCHEMA",
        Code::FailedPrecondition,
        503,
        "let database_url name nico-api's database, and run nico-api's migrations",
    ),
    row(
        "DATABASE_LOGIN",
        Code::FailedPrecondition,
        503,
        "correct database_url or the role, and check pg_hba.conf",
    ),
    row(
        "DATABASE_REFUSES_UPDATES",
        Code::FailedPrecondition,
        503,
        "change the table as the message says, then run again",
    ),
    row(
        "TRIGGER_CREATED",
        Code::FailedPrecondition,
        503,
        "disable the trigger or let it keep re-wrapped rows, then run again",
    ),
    row(
        "BLANK_ORGANIZATION_ID",
        Code::InvalidArgument,
        400,
        "send an organization id, or leave the field out for the whole site",
    ),
    row(
        "INVALID_ORGANIZATION_ID",
        Code::InvalidArgument,
        400,
        "send an organization id of ASCII letters, digits, _ and -",
    ),
    row(
        "MALFORMED_REQUEST",
        Code::InvalidArgument,
        400,
        "send the request type of the method, and at most 16 KiB",
    ),
    row(
        "UNKNOWN_METHOD",
        Code::Unimplemented,
        404,
        "check the method name and the content type",
    ),
    row(
        "COMPRESSION_NOT_SUPPORTED",
        Code::Unimplemented,
        400,
        "send the message without compression",
    ),
    row(
        "UNKNOWN_ORGANIZATION",
        Code::NotFound,
        404,
        "check the organization id",
    ),
    row(
        "NO_IDENTITY",
        Code::Unauthenticated,
        401,
        "use a certificate that matches a rule of this site; the audit record has the details",
    ),
    row(
        "NOT_ALLOWED",
        Code::PermissionDenied,
        403,
        "use the certificate of an administrator, or add the service to [rewrap].allowed_services",
    ),
    row(
        "DENIED_BY_POLICY",
        Code::PermissionDenied,
        403,
        "add a rule to [auth].casbin_policy_file and restart nico-rewrap",
    ),
    row(
        "ADMIN_SOCKET_READ_ONLY",
        Code::PermissionDenied,
        403,
        "set [rewrap].admin_socket_may_apply = true and restart nico-rewrap, or use a certificate",
    ),
    row(
        "TOO_MANY_RUNS",
        Code::ResourceExhausted,
        429,
        "call again later",
    ),
    row(
        "METADATA_TOO_LARGE",
        Code::ResourceExhausted,
        400,
        "send less metadata",
    ),
    row(
        "NOT_READY",
        Code::Unavailable,
        503,
        "wait until /readyz answers 200, then call again",
    ),
    row(
        "DATABASE_UNAVAILABLE",
        Code::Unavailable,
        503,
        "call again later",
    ),
    row(
        "NOT_REPLICATED",
        Code::Unavailable,
        503,
        "check the synchronous standby, then call again",
    ),
    row(
        "AUDIT_UNAVAILABLE",
        Code::Unavailable,
        503,
        "check the file of [rewrap].audit_log and its disk, then call again",
    ),
    row("SHUTTING_DOWN", Code::Unavailable, 503, "call again"),
    row(
        "DEADLINE_EXCEEDED",
        Code::DeadlineExceeded,
        503,
        "call again with a longer deadline",
    ),
    row(
        "SLOW_REQUEST",
        Code::DeadlineExceeded,
        400,
        "call from a machine near the server, or raise [rewrap].request_read_timeout",
    ),
    row("CANCELLED", Code::Cancelled, 400, "call again"),
    row(
        "INVALID_RUN",
        Code::InvalidArgument,
        400,
        "correct the request as the message says",
    ),
    row(
        "UNKNOWN_RUN",
        Code::NotFound,
        404,
        "list the runs, and use one of their ids",
    ),
    row(
        "REQUEST_ID_REUSED",
        Code::AlreadyExists,
        409,
        "use a new request_id for another run",
    ),
    row(
        "WRONG_KEY_MATERIAL",
        Code::FailedPrecondition,
        412,
        "compare the check value of the key with that of nico-api, and correct the key",
    ),
    row("STOPPED", Code::Cancelled, 400, "run again"),
    row(
        "FAILURE_LIMIT",
        Code::Aborted,
        409,
        "correct the failures, then run again",
    ),
];

/// The row of a reason.
pub(super) fn find(name: &str) -> Option<&'static Reason> {
    let mut all = TABLE.iter().chain([&INTERNAL]);
    all.find(|reason| reason.name == name)
}

impl ServiceError {
    /// The reason of the error.
    #[must_use]
    pub fn reason(&self) -> &'static Reason {
        find(self.reason_name()).unwrap_or(&INTERNAL)
    }

    fn reason_name(&self) -> &'static str {
        match self {
            Self::EndedEarly { error, .. } => error.reason_name(),
            Self::Disabled => "MACHINE_IDENTITY_DISABLED",
            Self::UnexpectedTarget { .. } => "UNEXPECTED_TARGET_KEY",
            Self::ApplyUnderWay(_) => "APPLY_UNDER_WAY",
            Self::InvalidRun(_) => "INVALID_RUN",
            Self::UnknownRun(_) => "UNKNOWN_RUN",
            Self::RequestIdReused(_) => "REQUEST_ID_REUSED",
            Self::WrongKeyMaterial(_) => "WRONG_KEY_MATERIAL",
            Self::Stopped => "STOPPED",
            Self::FailureLimit(_) => "FAILURE_LIMIT",
            Self::InvalidOrganization(InvalidOrganizationId::Blank) => "BLANK_ORGANIZATION_ID",
            Self::InvalidOrganization(InvalidOrganizationId::Characters) => {
                "INVALID_ORGANIZATION_ID"
            }
            Self::UnknownOrganization(_) => "UNKNOWN_ORGANIZATION",
            Self::Denied(denied) => match denied.denial {
                Denial::NoIdentity | Denial::NoAdminBundle => "NO_IDENTITY",
                Denial::NotAllowed => "NOT_ALLOWED",
                Denial::CasbinPolicy => "DENIED_BY_POLICY",
                Denial::SocketReadOnly => "ADMIN_SOCKET_READ_ONLY",
            },
            Self::TooManyRuns => "TOO_MANY_RUNS",
            Self::NotReady(_) => "NOT_READY",
            Self::Database(_) => "DATABASE_UNAVAILABLE",
            Self::DatabaseSetup(problem) => problem.reason(),
            Self::NotReplicated => "NOT_REPLICATED",
            Self::AuditUnavailable => "AUDIT_UNAVAILABLE",
            Self::ShuttingDown => "SHUTTING_DOWN",
            Self::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Self::Cancelled => "CANCELLED",
            Self::SlowRequest => "SLOW_REQUEST",
            Self::UnknownMethod => "UNKNOWN_METHOD",
            Self::Compressed(_) => "COMPRESSION_NOT_SUPPORTED",
            Self::MetadataTooLarge => "METADATA_TOO_LARGE",
            Self::MalformedRequest => "MALFORMED_REQUEST",
            Self::Internal => "INTERNAL",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_one_row_for_each_outcome_of_a_call() {
        let outcomes = crate::telemetry::CALL_OUTCOMES;
        for outcome in outcomes.iter().filter(|outcome| **outcome != "OK") {
            let all = TABLE.iter().chain([&INTERNAL]);
            let rows = all.filter(|reason| reason.name == *outcome).count();
            assert_eq!(rows, 1, "{outcome}");
        }
        assert_eq!(TABLE.len() + 2, outcomes.len());
        for reason in TABLE.iter().chain([&INTERNAL]) {
            let known = [400, 401, 403, 404, 409, 412, 429, 500, 503];
            assert!(known.contains(&reason.number), "{reason:?}");
            let is_printable = |b: u8| (b' '..=b'~').contains(&b);
            assert!(reason.mitigation.bytes().all(is_printable), "{reason:?}");
        }
    }
}
