//! Metrics. They never carry names of organizations or callers.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use metrics::{counter, gauge, histogram};

use super::catalog::{
    AUDIT_FAILURES, BUILD_INFO, CALL_SECONDS, CALLS, CERTIFICATE_EXPIRY, CHANGED_ON_DISK,
    CONNECTIONS, CONNECTIONS_REVOKED, CRL_EXPIRY, DECISIONS, DECRYPTION_FAILURES, DENIALS_DROPPED,
    FAILURES, HANDSHAKE_FAILURES, LAST_APPLY, LAST_CENSUS, LOG_LINES_DROPPED, READY,
    RELOAD_FAILING, RELOADS, ROWS, ROWS_RACED, RUN_STALLED, RUNS, SPANS, SPANS_EXPORTED,
    STRAGGLERS,
};

/// The value of a gauge that is unknown now. [`super::Metrics::render`] leaves such gauges out.
pub(super) const UNKNOWN: f64 = f64::NAN;

/// The value of a gauge for a time, in seconds since the epoch.
pub(super) fn timestamp(time: SystemTime) -> f64 {
    let since_epoch = time.duration_since(UNIX_EPOCH);
    since_epoch.map_or(UNKNOWN, |time| time.as_secs_f64())
}

/// A span ended that is to be sent to the collector.
pub(super) fn span_ended() {
    counter!(SPANS).increment(1);
}

/// The collector has accepted `spans` spans.
pub(super) fn spans_exported(spans: u64) {
    counter!(SPANS_EXPORTED).increment(spans);
}

/// A call ended. `outcome` is `OK` or the reason of its error.
pub(crate) fn call_ended(outcome: &'static str, identity_kind: &'static str, duration: Duration) {
    counter!(CALLS, "outcome" => outcome, "identity_kind" => identity_kind).increment(1);
    histogram!(CALL_SECONDS, "outcome" => outcome).record(duration);
}

/// An authorization decision was made.
pub(crate) fn authorization_decided(identity_kind: &'static str, outcome: &'static str) {
    counter!(DECISIONS, "identity_kind" => identity_kind, "outcome" => outcome).increment(1);
}

/// A denied call that waits for the rate limit. If it is dropped before [`QueuedDenial::disarm`],
/// the call has no audit record and is counted.
pub(crate) struct QueuedDenial {
    is_disarmed: bool,
}

/// A denied call starts to wait for the rate limit.
pub(crate) fn denial_queued() -> QueuedDenial {
    QueuedDenial { is_disarmed: false }
}

impl QueuedDenial {
    /// The wait is over, and the call gets its audit record.
    pub(crate) fn disarm(mut self) {
        self.is_disarmed = true;
    }
}

impl Drop for QueuedDenial {
    fn drop(&mut self) {
        if !self.is_disarmed {
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

/// An apply found that a tenant had changed a row after it was read.
pub(crate) fn row_raced() {
    counter!(ROWS_RACED).increment(1);
}

/// This many secrets or rows failed for this reason.
pub(crate) fn failed(reason: &'static str, failures: u64) {
    counter!(FAILURES, "reason" => reason).increment(failures);
}

/// This many stored secrets of this kind did not decrypt.
pub(crate) fn not_decrypted(secret_kind: &'static str, secrets: u64) {
    counter!(DECRYPTION_FAILURES, "secret_kind" => secret_kind).increment(secrets);
}

/// A site-wide apply of any instance finished without a failed row at this time. An earlier time
/// than before changes nothing.
pub(crate) fn apply_succeeded(end: SystemTime) {
    static LAST: Mutex<Option<SystemTime>> = Mutex::new(None);
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    *last = (*last).max(Some(end));
    gauge!(LAST_APPLY).set(last.map_or(UNKNOWN, timestamp));
}

/// The last census read its snapshot at this time. `None` if there was none.
pub(crate) fn last_census(time: Option<SystemTime>) {
    gauge!(LAST_CENSUS).set(time.map_or(UNKNOWN, timestamp));
}

/// A census found secrets under a key that was clean before.
pub(crate) fn stragglers(secrets: u64) {
    counter!(STRAGGLERS).increment(secrets);
}

/// Version and source revision of this program.
pub(crate) fn build(version: &'static str, revision: &'static str) {
    gauge!(BUILD_INFO, "version" => version, "revision" => revision).set(1.0);
}

/// Whether a latch is released.
pub(super) fn latch(latch: &'static str, is_released: bool) {
    gauge!(READY, "latch" => latch).set(f64::from(u8::from(is_released)));
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

/// Whether a run makes no progress because it waits for a lock or a synchronous standby.
pub(crate) fn run_stalled(stalled: bool) {
    gauge!(RUN_STALLED).set(f64::from(u8::from(stalled)));
}
