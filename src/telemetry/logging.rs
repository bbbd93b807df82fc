//! The log: logfmt or JSON lines on standard error.

use std::{io, time::Duration};

use tracing_subscriber::{
    EnvFilter, Layer, filter::filter_fn, layer::SubscriberExt, util::SubscriberInitExt,
};

use super::stderr;

/// The log target of the Postgres driver. The driver logs notices, SQL, and statement parameters,
/// which are ciphertexts. Its lines are therefore dropped, regardless of the configured filter.
const DRIVER_TARGET: &str = "tokio_postgres";

/// Format and filter of the log.
#[derive(Debug, Clone)]
pub struct LogOptions {
    /// The format of a line.
    pub format: LogFormat,
    /// Which events are logged, in the syntax of `tracing_subscriber::EnvFilter`.
    pub filter: String,
}

/// The format of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// `key=value` pairs, the format of nico-api.
    Logfmt,
    /// A JSON object.
    Json,
}

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
    // Checked when the configuration was read.
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

/// Waits until the log lines are written, but not for longer than `limit`.
pub fn flush_logs(limit: Duration) {
    stderr::flush(limit);
}

/// Writes a message to standard error outside of the log, and waits at most `limit` for somebody
/// who reads it.
pub fn write_message(text: String, limit: Duration) {
    stderr::write_message(text, limit);
}
