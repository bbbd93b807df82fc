//! Logs, metrics and readiness. Labels of metrics never contain names of organizations or
//! callers.

pub mod readiness;
mod stderr;
mod zeros;

use std::{io, time::Duration};

use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::{
    EnvFilter, Layer, filter::filter_fn, layer::SubscriberExt, util::SubscriberInitExt,
};

pub(crate) use self::stderr::write_line;
#[cfg(test)]
pub(crate) use self::zeros::{CALL_OUTCOMES, CERTIFICATE_REASONS, HANDSHAKE_REASONS};
use crate::{
    config::{LogFormat, LogOptions},
    run::Mode,
    store::LoadSample,
    tls::Expiry,
};

const CALLS: &str = "nico_rewrap_calls_total";
const DECISIONS: &str = "nico_rewrap_authorization_decisions_total";
const DENIALS_UNRECORDED: &str = "nico_rewrap_denials_unrecorded_total";
const CALL_SECONDS: &str = "nico_rewrap_call_duration_seconds";
const COMMIT_SECONDS: &str = "nico_rewrap_database_commit_seconds";
const USUAL_COMMIT_SECONDS: &str = "nico_rewrap_database_usual_commit_seconds";
const REPLICA_LAG_SECONDS: &str = "nico_rewrap_database_replica_lag_seconds";
const BACK_OFF: &str = "nico_rewrap_back_off_rows_per_second";
const RUN_STALLED: &str = "nico_rewrap_run_stalled";
const ROWS: &str = "nico_rewrap_rows_total";
const HANDSHAKES_REFUSED: &str = "nico_rewrap_tls_handshakes_refused_total";
const CONNECTIONS: &str = "nico_rewrap_connections_open";
const DISTRUSTED: &str = "nico_rewrap_connections_distrusted_total";
const RELOADS: &str = "nico_rewrap_tls_reloads_total";
const RELOAD_FAILING: &str = "nico_rewrap_tls_reload_failing";
const CERTIFICATE_EXPIRY: &str = "nico_rewrap_certificate_expiry_timestamp_seconds";
const CRL_EXPIRY: &str = "nico_rewrap_crl_next_update_timestamp_seconds";
const AUDIT_FAILURES: &str = "nico_rewrap_audit_failures_total";
const LOG_LINES_DROPPED: &str = "nico_rewrap_log_lines_dropped_total";

/// The log target of the Postgres driver. The driver logs notices, SQL, and statement parameters,
/// which are ciphertexts. Its lines are therefore dropped, whatever the configured filter says.
const DRIVER_TARGET: &str = "tokio_postgres";

/// Upper bounds of the duration histogram, in seconds. The lowest is for a single row, the
/// highest for a large site.
const CALL_BUCKETS: [f64; 12] = [
    0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0,
];

/// Starts logging to standard error. Panic messages also go to the log. Writing a log line never
/// blocks the caller.
///
/// # Errors
///
/// If the system can't create the thread that writes the lines.
pub fn start_logging(options: &LogOptions) -> io::Result<()> {
    let writer = stderr::start()?;
    let format = match options.format {
        LogFormat::Logfmt => tracing_logfmt::builder()
            .with_target(true)
            .layer()
            .with_writer(writer)
            .boxed(),
        LogFormat::Json => tracing_subscriber::fmt::layer()
            .json()
            .flatten_event(true)
            .with_writer(writer)
            .boxed(),
    };
    // The configuration has checked the filter.
    let filter = EnvFilter::try_new(&options.filter).unwrap_or_default();
    let _ = tracing_subscriber::registry()
        .with(format)
        .with(filter)
        .with(filter_fn(|event| {
            !event.target().starts_with(DRIVER_TARGET)
        }))
        .try_init();
    std::panic::set_hook(Box::new(|panic| {
        let location = panic.location().map(ToString::to_string);
        let payload = panic.payload();
        let what = payload.downcast_ref::<&str>().copied();
        let what = what.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        tracing::error!(location, what, "panic: this is a bug");
    }));
    Ok(())
}

/// Waits until all log lines are written, at most for `limit`.
pub fn flush_logs(limit: Duration) {
    stderr::flush(limit);
}

/// Writes a message to standard error, not to the log. Waits at most `limit` until it is written.
pub fn say(text: String, limit: Duration) {
    stderr::say(text, limit);
}

/// Installs the metrics recorder and registers all metrics. The returned handle renders them.
///
/// # Errors
///
/// If a recorder is already installed in this process.
pub fn start_metrics() -> Result<PrometheusHandle, metrics_exporter_prometheus::BuildError> {
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
        DENIALS_UNRECORDED,
        "Denied calls without an audit record, because the client gave up while it waited for the rate limit"
    );
    describe_histogram!(
        CALL_SECONDS,
        Unit::Seconds,
        "Duration of calls of the re-wrap RPC"
    );
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
        USUAL_COMMIT_SECONDS,
        Unit::Seconds,
        "Estimated latency of such a commit without the load of the apply, in seconds"
    );
    describe_gauge!(
        REPLICA_LAG_SECONDS,
        Unit::Seconds,
        "Lag of the slowest replica at the last probe during a site-wide apply, in seconds"
    );
    describe_gauge!(
        BACK_OFF,
        "Current limit of an apply in rows per second, set by the adaptive rate control; 0 means no limit"
    );
    describe_gauge!(
        RUN_STALLED,
        "1 while a run makes no progress because it waits for a lock or a synchronous standby"
    );
    describe_counter!(
        HANDSHAKES_REFUSED,
        "Connections that ended before HTTP/2, by reason"
    );
    describe_gauge!(CONNECTIONS, "Open connections with a verified client");
    describe_counter!(
        DISTRUSTED,
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
    // Alerts need every series from the start.
    zeros::register();
    gauge!(RELOAD_FAILING).set(0.0);
    gauge!(RUN_STALLED).set(0.0);
    gauge!(CONNECTIONS).set(0.0);
    counter!(AUDIT_FAILURES).absolute(0);
    counter!(LOG_LINES_DROPPED).absolute(0);
    counter!(DENIALS_UNRECORDED).absolute(0);
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
            counter!(DENIALS_UNRECORDED).increment(1);
        }
    }
}

/// `rows` rows had this outcome. With `commit = "barrier"`, they may not be durable yet.
pub(crate) fn rows_done(mode: Mode, outcome: &'static str, rows: u64) {
    let mode = match mode {
        Mode::DryRun => "dry_run",
        Mode::Apply => "apply",
    };
    counter!(ROWS, "mode" => mode, "outcome" => outcome).increment(rows);
}

/// A connection ended before HTTP/2.
pub(crate) fn handshake_refused(reason: &'static str) {
    counter!(HANDSHAKES_REFUSED, "reason" => reason).increment(1);
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
pub(crate) fn connection_distrusted(reason: &'static str) {
    counter!(DISTRUSTED, "reason" => reason).increment(1);
}

/// The TLS files were loaded.
#[expect(
    clippy::cast_precision_loss,
    reason = "seconds since the epoch are far below 2^52"
)]
pub(crate) fn tls_loaded(expiry: &Expiry) {
    let certificates = [
        ("server", Some(expiry.server)),
        ("root_ca", Some(expiry.root_ca)),
        ("admin_root_ca", expiry.admin_root_ca),
    ];
    for (certificate, end) in certificates {
        if let Some(end) = end {
            gauge!(CERTIFICATE_EXPIRY, "certificate" => certificate).set(end as f64);
        }
    }
    if let Some(end) = expiry.crl {
        gauge!(CRL_EXPIRY).set(end as f64);
    }
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

/// Log lines were dropped.
fn log_lines_dropped(lines: u64) {
    counter!(LOG_LINES_DROPPED).increment(lines);
}

/// An audit record could not be written.
pub(crate) fn audit_failed() {
    counter!(AUDIT_FAILURES).increment(1);
}

/// The database load was measured. `baseline` is the commit latency without the run, and `limit`
/// the new limit in rows per second.
pub(crate) fn database_load(load: &LoadSample, baseline: Option<Duration>, limit: Option<f64>) {
    gauge!(COMMIT_SECONDS).set(load.commit.as_secs_f64());
    gauge!(USUAL_COMMIT_SECONDS).set(baseline.unwrap_or_default().as_secs_f64());
    gauge!(REPLICA_LAG_SECONDS).set(load.replica_lag.unwrap_or_default().as_secs_f64());
    backed_off(limit);
}

/// The adaptive rate control has a new limit in rows per second; `None` means no limit.
pub(crate) fn backed_off(limit: Option<f64>) {
    gauge!(BACK_OFF).set(limit.unwrap_or_default());
}

/// Whether a run makes no progress because it waits for a lock or a synchronous standby.
pub(crate) fn run_stalled(stalled: bool) {
    gauge!(RUN_STALLED).set(f64::from(u8::from(stalled)));
}
