//! The names of all metrics, and what they mean.

use metrics::{describe_counter, describe_gauge, describe_histogram};

pub(super) const CALLS: &str = "nico_rewrap_calls_total";
pub(super) const DECISIONS: &str = "nico_rewrap_authorization_decisions_total";
pub(super) const DENIALS_DROPPED: &str = "nico_rewrap_audit_denials_dropped_total";
pub(super) const CALL_SECONDS: &str = "nico_rewrap_call_duration_seconds";
pub(super) const COMMIT_SECONDS: &str = "nico_rewrap_database_commit_seconds";
pub(super) const COMMIT_BASELINE_SECONDS: &str = "nico_rewrap_database_commit_baseline_seconds";
pub(super) const REPLICA_LAG_SECONDS: &str = "nico_rewrap_database_replica_lag_seconds";
pub(super) const RATE_LIMIT: &str = "nico_rewrap_rate_limit_rows_per_second";
pub(super) const RUN_STALLED: &str = "nico_rewrap_run_stalled";
pub(super) const ROWS: &str = "nico_rewrap_rows_processed_total";
pub(super) const ROWS_RACED: &str = "nico_rewrap_rows_raced_total";
pub(super) const RUNS: &str = "nico_rewrap_runs_total";
pub(super) const RUN_IN_PROGRESS: &str = "nico_rewrap_run_in_progress";
pub(super) const RUN_ROWS_DONE: &str = "nico_rewrap_run_rows_done";
pub(super) const RUN_ROWS_EXPECTED: &str = "nico_rewrap_run_rows_expected";
pub(super) const FAILURES: &str = "nico_rewrap_failures_total";
pub(super) const DECRYPTION_FAILURES: &str =
    "carbide_machine_identity_stored_secret_decryption_failures_total";
pub(super) const LAST_APPLY: &str = "nico_rewrap_last_apply_success_timestamp_seconds";
pub(super) const STORED_SECRETS: &str = "nico_rewrap_stored_secrets";
pub(super) const KEY_INFO: &str = "nico_rewrap_key_info";
pub(super) const KEY_CLEAN_SINCE: &str = "nico_rewrap_key_clean_since_timestamp_seconds";
pub(super) const KEY_REMOVABLE: &str = "nico_rewrap_key_removable";
pub(super) const STRAGGLERS: &str = "nico_rewrap_stragglers_total";
pub(super) const LAST_CENSUS: &str = "nico_rewrap_census_last_success_timestamp_seconds";
pub(super) const BUILD_INFO: &str = "nico_rewrap_build_info";
pub(super) const READY: &str = "nico_rewrap_ready";
pub(super) const HANDSHAKE_FAILURES: &str = "nico_rewrap_tls_handshake_failures_total";
pub(super) const CONNECTIONS: &str = "nico_rewrap_connections_open";
pub(super) const CONNECTIONS_REVOKED: &str = "nico_rewrap_connections_revoked_total";
pub(super) const RELOADS: &str = "nico_rewrap_tls_reloads_total";
pub(super) const RELOAD_FAILING: &str = "nico_rewrap_tls_reload_failing";
pub(super) const CERTIFICATE_EXPIRY: &str = "nico_rewrap_certificate_expiry_timestamp_seconds";
pub(super) const CRL_EXPIRY: &str = "nico_rewrap_crl_next_update_timestamp_seconds";
pub(super) const AUDIT_FAILURES: &str = "nico_rewrap_audit_failures_total";
pub(super) const CHANGED_ON_DISK: &str = "nico_rewrap_configuration_changed_on_disk";
pub(super) const LOG_LINES_DROPPED: &str = "nico_rewrap_log_lines_dropped_total";
pub(super) const SPANS: &str = "nico_rewrap_trace_spans_total";
pub(super) const SPANS_EXPORTED: &str = "nico_rewrap_trace_spans_exported_total";

/// The counters, with their HELP texts.
const COUNTERS: &[(&str, &str)] = &[
    (
        CALLS,
        "Calls of the re-wrap RPC, by outcome and kind of identity",
    ),
    (
        DECISIONS,
        "Authorization decisions, by kind of identity and outcome",
    ),
    (
        DENIALS_DROPPED,
        "Denied calls without an audit record, because the client gave up while it waited for the rate limit",
    ),
    (RUNS, "Runs that have ended, by kind and state"),
    (
        ROWS,
        "Rows processed, by mode and outcome. Shows progress: the rows may not be durable yet",
    ),
    (
        ROWS_RACED,
        "Writes of an apply that found that a tenant had just changed the row; the row was evaluated again",
    ),
    (
        FAILURES,
        "Failures of secrets and rows in dry runs, applies and verifies, by reason",
    ),
    (
        DECRYPTION_FAILURES,
        "Stored secrets that a run could not decrypt, by kind of secret",
    ),
    (
        STRAGGLERS,
        "Secrets that a census of this instance found under a key that was clean before",
    ),
    (
        HANDSHAKE_FAILURES,
        "Connections that ended before HTTP/2, by reason",
    ),
    (
        CONNECTIONS_REVOKED,
        "Connections closed because their certificate is no longer valid or gives another identity, by reason",
    ),
    (RELOADS, "Reloads of changed TLS files, by outcome"),
    (AUDIT_FAILURES, "Audit records that could not be written"),
    (
        SPANS,
        "Spans that have ended and are to be sent to the collector",
    ),
    (SPANS_EXPORTED, "Spans that the collector has accepted"),
    (
        LOG_LINES_DROPPED,
        "Log lines that were dropped because standard error was not writable or not read fast enough",
    ),
];

/// The gauges, with their HELP texts.
const GAUGES: &[(&str, &str)] = &[
    (
        COMMIT_SECONDS,
        "Latency of the last durable probe commit while a site-wide run measures it, in seconds",
    ),
    (
        COMMIT_BASELINE_SECONDS,
        "Estimated latency of such a commit without the load of the run, in seconds",
    ),
    (
        REPLICA_LAG_SECONDS,
        "Lag of the slowest replica at the last probe of a site-wide run, in seconds",
    ),
    (
        RATE_LIMIT,
        "Current limit of the adaptive rate of the run in progress, in rows per second",
    ),
    (
        RUN_STALLED,
        "1 while a run makes no progress because it waits for a lock or a synchronous standby",
    ),
    (
        RUN_IN_PROGRESS,
        "Runs in progress at this instance, by kind",
    ),
    (RUN_ROWS_DONE, "Evaluated rows of the run in progress"),
    (
        RUN_ROWS_EXPECTED,
        "Estimated number of rows of the run in progress",
    ),
    (
        LAST_APPLY,
        "End of the last site-wide apply that finished without a failed row",
    ),
    (
        STORED_SECRETS,
        "Secrets in the last census, by key id: each key of the secrets, not_in_secrets for all other ids, and unreadable",
    ),
    (
        KEY_INFO,
        "1 for each key of this instance, with its check value and its role: target or other",
    ),
    (
        KEY_CLEAN_SINCE,
        "Start of the first census of the unbroken series without a secret under the key",
    ),
    (
        KEY_REMOVABLE,
        "1 if the verdict of the key is REMOVABLE, 0 if it is TARGET, IN_USE or SOAKING",
    ),
    (
        LAST_CENSUS,
        "Snapshot time of the last census of any instance",
    ),
    (BUILD_INFO, "1, with version and source revision"),
    (READY, "1 if nothing keeps the latch from being ready"),
    (CONNECTIONS, "Open connections with a verified client"),
    (
        RELOAD_FAILING,
        "1 if the TLS files on disk differ from the loaded ones because a reload failed",
    ),
    (
        CERTIFICATE_EXPIRY,
        "Expiry time of the server's certificate, and of the CA of each bundle that expires first",
    ),
    (
        CRL_EXPIRY,
        "Earliest nextUpdate of the certificate revocation lists",
    ),
    (
        CHANGED_ON_DISK,
        "1 if the content of a source on disk differs from the content that was read at the start; restart nico-rewrap",
    ),
];

/// Gives every metric its HELP text.
pub(super) fn describe() {
    for &(name, help) in COUNTERS {
        describe_counter!(name, help);
    }
    for &(name, help) in GAUGES {
        describe_gauge!(name, help);
    }
    describe_histogram!(CALL_SECONDS, "Duration of calls of the re-wrap RPC");
}
