//! Registers every counter with the value 0 for all values of its labels. Functions such as
//! `rate` in Prometheus miss the first event of a series that starts at 1. Gauges whose value is
//! known before the first event are set, too.

use metrics::{counter, gauge};

use super::{
    catalog::{
        AUDIT_FAILURES, CALLS, CONNECTIONS, CONNECTIONS_REVOKED, DECISIONS, DECRYPTION_FAILURES,
        DENIALS_DROPPED, FAILURES, HANDSHAKE_FAILURES, LOG_LINES_DROPPED, RELOAD_FAILING, RELOADS,
        ROWS, ROWS_RACED, RUN_IN_PROGRESS, RUN_STALLED, RUNS, SPANS, SPANS_EXPORTED, STRAGGLERS,
    },
    metrics::latch,
    readiness::latches,
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

/// The kinds of runs.
const RUN_KINDS: [&str; 4] = ["dry_run", "apply", "verify", "census"];

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

/// The reasons of failures of secrets and rows. A test in `tests/metrics.rs` fails if one is
/// missing.
pub(crate) const FAILURE_REASONS: [&str; 21] = [
    "CONFLICT",
    "KEY_NOT_IN_SECRETS",
    "NOT_AUTHENTIC",
    "NOT_A_DELEGATION",
    "NOT_A_SIGNING_KEY",
    "NO_RANDOMNESS",
    "PRIVILEGE",
    "PUBLIC_KEY_MISSING",
    "READ_BACK",
    "REFUSED",
    "ROW_LOCKED",
    "ROW_UNREADABLE",
    "TENANT_MISSING",
    "TENANT_VERSION",
    "TEXT_NOT_KEPT",
    "TIMEOUT",
    "TOO_LONG",
    "UNREADABLE_ENVELOPE",
    "UNSUPPORTED_SCHEME",
    "VERSION_NOT_BUMPED",
    "WRONG_KEY_PAIR",
];

/// The kinds of secrets, with the names of nico-api.
pub(crate) const SECRET_KINDS: [&str; 2] = ["signing_key", "token_delegation_auth"];

/// Registers the metrics that exist from the start.
pub(super) fn register() {
    for name in [
        AUDIT_FAILURES,
        DENIALS_DROPPED,
        LOG_LINES_DROPPED,
        ROWS_RACED,
        SPANS,
        SPANS_EXPORTED,
        STRAGGLERS,
    ] {
        counter!(name).absolute(0);
    }
    for name in [CONNECTIONS, RELOAD_FAILING, RUN_STALLED] {
        gauge!(name).set(0.0);
    }
    for name in latches::ALL {
        latch(name, true);
    }
    for reason in FAILURE_REASONS {
        counter!(FAILURES, "reason" => reason).absolute(0);
    }
    for kind in SECRET_KINDS {
        counter!(DECRYPTION_FAILURES, "secret_kind" => kind).absolute(0);
    }
    for kind in IDENTITY_KINDS {
        for outcome in CALL_OUTCOMES {
            counter!(CALLS, "outcome" => outcome, "identity_kind" => kind).absolute(0);
        }
        for outcome in DECISION_OUTCOMES {
            counter!(DECISIONS, "identity_kind" => kind, "outcome" => outcome).absolute(0);
        }
    }
    for kind in RUN_KINDS {
        gauge!(RUN_IN_PROGRESS, "kind" => kind).set(0.0);
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
