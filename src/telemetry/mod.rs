//! The log, the metrics and the readiness of this process.
//!
//! This module imports no layer above it: metrics take labels and numbers.

mod logging;
mod metrics;
pub mod readiness;
mod stderr;
mod zeros;

use metrics_exporter_prometheus::{BuildError, PrometheusHandle};

pub use self::logging::{LogFormat, LogOptions, flush_logs, say, start_logging};
#[cfg(test)]
pub(crate) use self::zeros::{CALL_OUTCOMES, CERTIFICATE_REASONS, HANDSHAKE_REASONS};
pub(crate) use self::{metrics::*, stderr::write_line};

/// Installs the metrics recorder and registers all metrics. The returned handle renders them.
///
/// # Errors
///
/// If a recorder is already installed in this process.
pub fn start_metrics() -> Result<PrometheusHandle, BuildError> {
    let handle = metrics::install()?;
    zeros::register();
    Ok(handle)
}
