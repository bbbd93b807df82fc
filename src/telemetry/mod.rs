//! The log, the metrics, the traces and the readiness of this process.
//!
//! This module imports no layer above it: metrics take labels and numbers.

mod catalog;
mod key_gauges;
mod load;
mod logging;
mod metrics;
pub mod readiness;
mod running;
mod scrape;
mod stderr;
mod traces;
mod zeros;

#[cfg(test)]
pub(crate) use self::zeros::{CALL_OUTCOMES, CERTIFICATE_REASONS, HANDSHAKE_REASONS};
pub(crate) use self::{
    key_gauges::{KeyGauges, StoredSecrets, key_info, key_verdict, stored_secrets},
    load::LoadGauges,
    metrics::*,
    running::{RunGauges, run_started},
    stderr::write_line,
    traces::{Span, start_traces, stop_traces},
};
pub use self::{
    logging::{LogFormat, LogOptions, flush_logs, start_logging, write_message},
    scrape::Metrics,
    traces::{Endpoint, InvalidEndpoint, Trace, TraceOptions},
};
