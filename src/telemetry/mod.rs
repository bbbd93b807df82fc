//! What this process says of itself: log, metrics, readiness.
//!
//! Nothing here knows the layers above: metrics take labels and numbers.

mod logging;
mod metrics;
pub mod readiness;
mod stderr;
mod zeros;

#[cfg(test)]
pub(crate) use self::zeros::{CALL_OUTCOMES, CERTIFICATE_REASONS, HANDSHAKE_REASONS};
pub use self::{
    logging::{LogFormat, LogOptions, flush_logs, say, start_logging},
    metrics::start_metrics,
};
pub(crate) use self::{metrics::*, stderr::write_line};
