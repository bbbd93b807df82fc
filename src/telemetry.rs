//! Logs and metrics. Metrics never carry names of organizations or callers.

use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_histogram, histogram};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, util::SubscriberInitExt};

use crate::{
    config::{LogFormat, LogOptions},
    run::Mode,
};

const CALLS: &str = "nico_rewrap_calls_total";
const DECISIONS: &str = "nico_rewrap_authorization_decisions_total";
const CALL_SECONDS: &str = "nico_rewrap_call_duration_seconds";
const ROWS: &str = "nico_rewrap_rows_total";
const HANDSHAKES_REFUSED: &str = "nico_rewrap_tls_handshakes_refused_total";

/// Upper bounds of the duration histogram, in seconds: from a single row to a
/// large site.
const CALL_BUCKETS: [f64; 12] = [
    0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0,
];

/// Sends log lines to standard error from now on.
pub fn start_logging(options: &LogOptions) {
    let format = match options.format {
        LogFormat::Logfmt => tracing_logfmt::builder()
            .with_target(true)
            .layer()
            .with_writer(std::io::stderr)
            .boxed(),
        LogFormat::Json => tracing_subscriber::fmt::layer()
            .json()
            .flatten_event(true)
            .with_writer(std::io::stderr)
            .boxed(),
    };
    // Checked when the configuration was read.
    let filter = EnvFilter::try_new(&options.filter).unwrap_or_default();
    // Every call leaves its record, whatever else is filtered out.
    let filter = match "audit=info".parse() {
        Ok(always) => filter.add_directive(always),
        Err(_) => filter,
    };
    let _ = tracing_subscriber::registry()
        .with(format)
        .with(filter)
        .try_init();
}

/// Starts to gather metrics; the handle renders them.
///
/// # Errors
///
/// When this process gathers metrics already.
pub fn start_metrics() -> Result<PrometheusHandle, metrics_exporter_prometheus::BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets(&CALL_BUCKETS)?
        .install_recorder()?;
    describe_counter!(
        CALLS,
        "Calls of the re-wrap RPC by outcome and kind of identity"
    );
    describe_counter!(
        DECISIONS,
        "Decisions whether a caller may re-wrap, by kind of identity and outcome"
    );
    describe_histogram!(
        CALL_SECONDS,
        Unit::Seconds,
        "Duration of calls of the re-wrap RPC"
    );
    describe_counter!(ROWS, "Rows evaluated, by mode and outcome");
    describe_counter!(
        HANDSHAKES_REFUSED,
        "TLS handshakes that did not become a connection"
    );
    Ok(handle)
}

/// A call ended. `outcome` is `OK` or the reason of its error.
pub(crate) fn call_ended(outcome: &'static str, identity_kind: &'static str, duration: Duration) {
    counter!(CALLS, "outcome" => outcome, "identity_kind" => identity_kind).increment(1);
    histogram!(CALL_SECONDS, "outcome" => outcome).record(duration);
}

/// It was decided whether a caller may re-wrap.
pub(crate) fn decided(identity_kind: &'static str, outcome: &'static str) {
    counter!(DECISIONS, "identity_kind" => identity_kind, "outcome" => outcome).increment(1);
}

/// What became of a row, once that is final.
pub(crate) fn row_done(mode: Mode, outcome: &'static str) {
    let mode = match mode {
        Mode::DryRun => "dry_run",
        Mode::Apply => "apply",
    };
    counter!(ROWS, "mode" => mode, "outcome" => outcome).increment(1);
}

/// A connection ended before HTTP/2.
pub(crate) fn handshake_refused(reason: &'static str) {
    counter!(HANDSHAKES_REFUSED, "reason" => reason).increment(1);
}
