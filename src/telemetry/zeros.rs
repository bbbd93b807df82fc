//! Registers every counter with the value 0 for all values of its labels. Functions such as
//! `rate` in Prometheus miss the first event of a series that starts at 1.

use metrics::counter;

use super::metrics::{
    CALLS, CONNECTIONS_REVOKED, DECISIONS, HANDSHAKE_FAILURES, RELOADS, ROWS, RUNS,
};

/// The kinds of identity.
const IDENTITY_KINDS: [&str; 5] = ["service", "machine", "external", "local", "none"];

/// The outcomes of calls: `OK`, and the reason of every error. A test of [`crate::api::error`]
/// fails if one is missing.
pub(crate) const CALL_OUTCOMES: [&str; 38] = [
    "OK",
    "ADMIN_SOCKET_READ_ONLY",
    "APPLY_UNDER_WAY",
    "AUDIT_UNAVAILABLE",
    "BLANK_ORGANIZATION_ID",
    "CANCELLED",
    "COMPRESSION_NOT_SUPPORTED",
    "DATABASE_LOGIN",
    "DATABASE_PRIVILEGE",
    "DATABASE_READ_ONLY",
    "DATABASE_REFUSES_UPDATES",
    "DATABASE_SCHEMA",
    "DATABASE_UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "DENIED_BY_POLICY",
    "FAILURE_LIMIT",
    "INTERNAL",
    "INVALID_ORGANIZATION_ID",
    "INVALID_RUN",
    "MACHINE_IDENTITY_DISABLED",
    "MALFORMED_REQUEST",
    "METADATA_TOO_LARGE",
    "NOT_ALLOWED",
    "NOT_READY",
    "NOT_REPLICATED",
    "NO_IDENTITY",
    "REQUEST_ID_REUSED",
    "ROWS_NOT_VISIBLE",
    "SHUTTING_DOWN",
    "SLOW_REQUEST",
    "STOPPED",
    "TOO_MANY_RUNS",
    "TRIGGER_CREATED",
    "UNEXPECTED_TARGET_KEY",
    "UNKNOWN_METHOD",
    "UNKNOWN_ORGANIZATION",
    "UNKNOWN_RUN",
    "WRONG_KEY_MATERIAL",
];

/// The outcomes of authorization decisions.
const DECISION_OUTCOMES: [&str; 6] = [
    "allowed",
    "allowed_by_permissive_mode",
    "denied_by_policy",
    "no_identity",
    "not_allowed",
    "socket_read_only",
];

/// Reasons to refuse a certificate.
pub(crate) const CERTIFICATE_REASONS: [&str; 10] = [
    "bad_certificate",
    "bad_eku",
    "crl_expired",
    "crl_missing",
    "crl_unusable",
    "expired",
    "not_yet_valid",
    "revoked",
    "unknown_ca",
    "unsupported_signature",
];

/// Other reasons for the end of a connection before HTTP/2. `not_accepted_uid` is of the admin
/// socket.
pub(crate) const HANDSHAKE_REASONS: [&str; 10] = [
    "client_alert",
    "closed",
    "incompatible",
    "internal",
    "no_certificate",
    "no_h2",
    "not_accepted_uid",
    "protocol_error",
    "timeout",
    "too_many",
];

/// Registers the counters that have labels.
pub(super) fn register() {
    for kind in IDENTITY_KINDS {
        for outcome in CALL_OUTCOMES {
            counter!(CALLS, "outcome" => outcome, "identity_kind" => kind).absolute(0);
        }
        for outcome in DECISION_OUTCOMES {
            counter!(DECISIONS, "identity_kind" => kind, "outcome" => outcome).absolute(0);
        }
    }
    for kind in ["dry_run", "apply", "verify", "census"] {
        for state in ["FINISHED", "STOPPED", "FAILED"] {
            counter!(RUNS, "kind" => kind, "state" => state).absolute(0);
        }
    }
    for mode in ["dry_run", "apply", "verify"] {
        for outcome in ["updated", "on_target", "failed", "gone"] {
            counter!(ROWS, "mode" => mode, "outcome" => outcome).absolute(0);
        }
    }
    for reason in CERTIFICATE_REASONS.into_iter().chain(HANDSHAKE_REASONS) {
        counter!(HANDSHAKE_FAILURES, "reason" => reason).absolute(0);
    }
    for reason in CERTIFICATE_REASONS.into_iter().chain(["identity_changed"]) {
        counter!(CONNECTIONS_REVOKED, "reason" => reason).absolute(0);
    }
    for outcome in ["success", "failure"] {
        counter!(RELOADS, "outcome" => outcome).absolute(0);
    }
}
