//! Metrics. They never carry names of organizations or callers.

use std::time::Duration;

use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

pub(super) const CALLS: &str = "nico_rewrap_calls_total";
pub(super) const DECISIONS: &str = "nico_rewrap_authorization_decisions_total";
const DENIALS_DROPPED: &str = "nico_rewrap_audit_denials_dropped_total";
const CALL_SECONDS: &str = "nico_rewrap_call_duration_seconds";
const COMMIT_SECONDS: &str = "nico_rewrap_database_commit_seconds";
const COMMIT_BASELINE_SECONDS: &str = "nico_rewrap_database_commit_baseline_seconds";
const REPLICA_LAG_SECONDS: &str = "nico_rewrap_database_replica_lag_seconds";
const RATE_LIMIT: &str = "nico_rewrap_rate_limit_rows_per_second";
const RUN_STALLED: &str = "nico_rewrap_run_stalled";
pub(super) const ROWS: &str = "nico_rewrap_rows_processed_total";
pub(super) const RUNS: &str = "nico_rewrap_runs_total";
pub(super) const HANDSHAKE_FAILURES: &str = "nico_rewrap_tls_handshake_failures_total";
const CONNECTIONS: &str = "nico_rewrap_connections_open";
pub(super) const CONNECTIONS_REVOKED: &str = "nico_rewrap_connections_revoked_total";
pub(super) const RELOADS: &str = "nico_rewrap_tls_reloads_total";
const RELOAD_FAILING: &str = "nico_rewrap_tls_reload_failing";
const CERTIFICATE_EXPIRY: &str = "nico_rewrap_certificate_expiry_timestamp_seconds";
const CRL_EXPIRY: &str = "nico_rewrap_crl_next_update_timestamp_seconds";
const AUDIT_FAILURES: &str = "nico_rewrap_audit_failures_total";
const CHANGED_ON_DISK: &str = "nico_rewrap_configuration_changed_on_disk";
const LOG_LINES_DROPPED: &str = "nico_rewrap_log_lines_dropped_total";

/// Upper bounds of the duration histogram, in seconds. The lowest is for a single row, the
/// highest for a large site.
const CALL_BUCKETS: [f64; 12] = [
    0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0,
];

/// Installs the metrics recorder and describes all metrics.
pub(super) fn install() -> Result<PrometheusHandle, metrics_exporter_prometheus::BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets(&CALL_BUCKETS)?
        .install_recorder()?;
    describe_counter!(
        CALLS,
        "Calls of the re-wrap RPC, by outcome and kind of identity"
    );
    describe_counter!(
        DECISIONS,
        "Authorization decisions, by kind of identity and outcome"
    );
    describe_counter!(
        DENIALS_DROPPED,
        "Denied calls without an audit record, because the client gave up while it waited for the rate limit"
    );
    describe_histogram!(
        CALL_SECONDS,
        Unit::Seconds,
        "Duration of calls of the re-wrap RPC"
    );
    describe_counter!(RUNS, "Runs that have ended, by kind and state");
    describe_counter!(
        ROWS,
        "Rows processed, by mode and outcome. Shows progress: the rows may not be durable yet"
    );
    describe_gauge!(
        COMMIT_SECONDS,
        Unit::Seconds,
        "Latency of the last durable probe commit during a site-wide apply, in seconds"
    );
    describe_gauge!(
        COMMIT_BASELINE_SECONDS,
        Unit::Seconds,
        "Estimated latency of such a commit without the load of the apply, in seconds"
    );
    describe_gauge!(
        REPLICA_LAG_SECONDS,
        Unit::Seconds,
        "Lag of the slowest replica at the last probe during a site-wide apply, in seconds"
    );
    describe_gauge!(
        RATE_LIMIT,
        "Current limit of an apply in rows per second, set by the adaptive rate control; 0 means no limit"
    );
    describe_gauge!(
        RUN_STALLED,
        "1 while a run makes no progress because it waits for a lock or a synchronous standby"
    );
    describe_counter!(
        HANDSHAKE_FAILURES,
        "Connections that ended before HTTP/2, by reason"
    );
    describe_gauge!(CONNECTIONS, "Open connections with a verified client");
    describe_counter!(
        CONNECTIONS_REVOKED,
        "Connections closed because their certificate is no longer valid or gives another identity, by reason"
    );
    describe_counter!(RELOADS, "Reloads of changed TLS files, by outcome");
    describe_gauge!(
        RELOAD_FAILING,
        "1 if the TLS files on disk differ from the loaded ones because a reload failed"
    );
    describe_gauge!(
        CERTIFICATE_EXPIRY,
        Unit::Seconds,
        "Expiry time of the server's certificate, and of the CA of each bundle that expires first"
    );
    describe_gauge!(
        CRL_EXPIRY,
        Unit::Seconds,
        "Earliest nextUpdate of the certificate revocation lists"
    );
    describe_counter!(AUDIT_FAILURES, "Audit records that could not be written");
    describe_counter!(
        LOG_LINES_DROPPED,
        "Log lines that were dropped because standard error was not writable or not read fast enough"
    );
    describe_gauge!(
        CHANGED_ON_DISK,
        "1 if the files of a source no longer say what was read at the start; restart nico-rewrap"
    );
    // Alerts need every series from the start.
    gauge!(RELOAD_FAILING).set(0.0);
    gauge!(RUN_STALLED).set(0.0);
    gauge!(CONNECTIONS).set(0.0);
    counter!(AUDIT_FAILURES).absolute(0);
    counter!(LOG_LINES_DROPPED).absolute(0);
    counter!(DENIALS_DROPPED).absolute(0);
    Ok(handle)
}

/// A call ended. `outcome` is `OK` or the reason of its error.
pub(crate) fn call_ended(outcome: &'static str, identity_kind: &'static str, duration: Duration) {
    counter!(CALLS, "outcome" => outcome, "identity_kind" => identity_kind).increment(1);
    histogram!(CALL_SECONDS, "outcome" => outcome).record(duration);
}

/// An authorization decision was made.
pub(crate) fn decided(identity_kind: &'static str, outcome: &'static str) {
    counter!(DECISIONS, "identity_kind" => identity_kind, "outcome" => outcome).increment(1);
}

/// A denied call that waits for the rate limit. If it is dropped before [`PendingDenial::over`],
/// the call has no audit record and is counted.
pub(crate) struct PendingDenial {
    is_over: bool,
}

/// A denied call starts to wait for the rate limit.
pub(crate) fn denial_waits() -> PendingDenial {
    PendingDenial { is_over: false }
}

impl PendingDenial {
    /// The wait is over, and the call gets its audit record.
    pub(crate) fn over(mut self) {
        self.is_over = true;
    }
}

impl Drop for PendingDenial {
    fn drop(&mut self) {
        if !self.is_over {
            counter!(DENIALS_DROPPED).increment(1);
        }
    }
}

/// A run has ended in this state.
pub(crate) fn run_ended(kind: &'static str, state: &'static str) {
    counter!(RUNS, "kind" => kind, "state" => state).increment(1);
}

/// `rows` rows had this outcome. With `durability = "per_run"`, they may not be durable yet.
pub(crate) fn rows_done(mode: &'static str, outcome: &'static str, rows: u64) {
    counter!(ROWS, "mode" => mode, "outcome" => outcome).increment(rows);
}

/// A connection ended before HTTP/2.
pub(crate) fn handshake_refused(reason: &'static str) {
    counter!(HANDSHAKE_FAILURES, "reason" => reason).increment(1);
}

/// Counts an open connection until it is dropped.
pub(crate) struct OpenConnection(());

/// A connection with a verified client is open.
pub(crate) fn connection_opened() -> OpenConnection {
    gauge!(CONNECTIONS).increment(1.0);
    OpenConnection(())
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        gauge!(CONNECTIONS).decrement(1.0);
    }
}

/// A connection is closed because its certificate is no longer valid or gives another identity.
pub(crate) fn connection_revoked(reason: &'static str) {
    counter!(CONNECTIONS_REVOKED, "reason" => reason).increment(1);
}

/// When a certificate of the TLS files expires, in seconds since the epoch: the certificate of
/// the server, or the first certificate of a bundle.
#[expect(
    clippy::cast_precision_loss,
    reason = "seconds since the epoch are far below 2^52"
)]
pub(crate) fn certificate_expiry(certificate: &'static str, end: i64) {
    gauge!(CERTIFICATE_EXPIRY, "certificate" => certificate).set(end as f64);
}

/// When the first revocation list expires, in seconds since the epoch.
#[expect(
    clippy::cast_precision_loss,
    reason = "seconds since the epoch are far below 2^52"
)]
pub(crate) fn crl_expiry(end: i64) {
    gauge!(CRL_EXPIRY).set(end as f64);
}

/// Changed TLS files were loaded (`success`) or refused.
pub(crate) fn tls_reloaded(success: bool) {
    let outcome = if success { "success" } else { "failure" };
    counter!(RELOADS, "outcome" => outcome).increment(1);
}

/// Whether the last reload of the TLS files failed.
pub(crate) fn tls_reload_failing(failing: bool) {
    gauge!(RELOAD_FAILING).set(f64::from(u8::from(failing)));
}

/// Whether this source has changed on disk since the start.
pub(crate) fn changed_on_disk(source: &'static str, changed: bool) {
    gauge!(CHANGED_ON_DISK, "source" => source).set(f64::from(u8::from(changed)));
}

/// Log lines were dropped.
pub(super) fn log_lines_dropped(lines: u64) {
    counter!(LOG_LINES_DROPPED).increment(lines);
}

/// An audit record could not be written.
pub(crate) fn audit_failed() {
    counter!(AUDIT_FAILURES).increment(1);
}

/// What a probe of the database found: the latency of its commit, the latency without the run,
/// the lag of the slowest replica, and the rate that the run may have now.
pub(crate) fn database_load(
    commit: Duration,
    baseline: Option<Duration>,
    replica_lag: Option<Duration>,
    limit: Option<f64>,
) {
    gauge!(COMMIT_SECONDS).set(commit.as_secs_f64());
    gauge!(COMMIT_BASELINE_SECONDS).set(baseline.unwrap_or_default().as_secs_f64());
    gauge!(REPLICA_LAG_SECONDS).set(replica_lag.unwrap_or_default().as_secs_f64());
    backed_off(limit);
}

/// The adaptive rate control has a new limit in rows per second; `None` means no limit.
pub(crate) fn backed_off(limit: Option<f64>) {
    gauge!(RATE_LIMIT).set(limit.unwrap_or_default());
}

/// Whether a run makes no progress because it waits for a lock or a synchronous standby.
pub(crate) fn run_stalled(stalled: bool) {
    gauge!(RUN_STALLED).set(f64::from(u8::from(stalled)));
}
