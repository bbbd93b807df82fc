//! Handles notices: messages that Postgres sends besides its answers.
//!
//! A notice can contain anything: a trigger can raise one with a whole row in it, and with
//! `client_min_messages = log` the server sends our SQL back. So the log gets only the
//! severity and the SQLSTATE of a notice. Two kinds of notice matter and have messages of
//! their own: a collation that changed, and a commit that did not wait for its standby.

use std::{
    future::poll_fn,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_postgres::{
    AsyncMessage, Connection,
    error::{DbError, Severity},
};

/// At most one log line per kind of notice in this time: a trigger can raise a notice for
/// each row.
const NOTICE_INTERVAL: Duration = Duration::from_secs(10);

/// Postgres repeats this warning on every new connection.
const COLLATION_INTERVAL: Duration = Duration::from_secs(600);

/// The C functions of Postgres that warn about a collation version (`postinit.c`,
/// `pg_locale.c`). Their names do not depend on the language of the server.
const COLLATION_ROUTINES: [&str; 3] = [
    "CheckMyDatabase",
    "pg_newlocale_from_collation",
    "create_pg_locale",
];

/// The C function of Postgres that waits for synchronous standbys (`syncrep.c`). It warns
/// only when somebody cancels its wait after the local commit.
const STANDBY_ROUTINE: &str = "SyncRepWaitForLSN";

/// Counts and logs the notices of a group of connections.
#[derive(Debug, Default)]
pub(crate) struct Notices {
    unreplicated: AtomicU64,
    others_logged: Throttle,
    collation_logged: Throttle,
    unreplicated_logged: Throttle,
}

/// What a notice is about.
#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Collation,
    UnreplicatedCommit,
    Other,
}

impl Notices {
    /// Number of commits that Postgres reported as done although no synchronous standby had
    /// confirmed them. A commit is counted before its statement gets its answer.
    pub(crate) fn unreplicated_commits(&self) -> u64 {
        self.unreplicated.load(Ordering::Acquire)
    }

    /// Drives a connection until its client is dropped, and handles its notices.
    pub(crate) async fn drive<S, T>(&self, mut connection: Connection<S, T>)
    where
        S: AsyncRead + AsyncWrite + Unpin,
        T: AsyncRead + AsyncWrite + Unpin,
    {
        while let Some(message) = poll_fn(|context| connection.poll_message(context)).await {
            match message {
                Ok(AsyncMessage::Notice(notice)) => self.received(&notice),
                Ok(_) => {}
                Err(error) => {
                    log_connection_error(&error);
                    return;
                }
            }
        }
    }

    fn received(&self, notice: &DbError) {
        let severity = notice.parsed_severity();
        let kind = kind(
            severity,
            notice.routine(),
            notice.message(),
            notice.detail().unwrap_or_default(),
        );
        match kind {
            Kind::UnreplicatedCommit => {
                self.unreplicated.fetch_add(1, Ordering::AcqRel);
                if let Some(not_logged) = self.unreplicated_logged.acquire(NOTICE_INTERVAL) {
                    tracing::warn!(
                        not_logged,
                        "Postgres committed a transaction without its synchronous standby, \
                         because somebody cancelled the wait: the standby may lack this transaction"
                    );
                }
            }
            Kind::Collation => {
                if self.collation_logged.acquire(COLLATION_INTERVAL).is_some() {
                    tracing::warn!(
                        "the database has a collation version mismatch: a library of the \
                         operating system changed, so its indexes may be in the wrong order and \
                         a site-wide run may not find every row. Run REINDEX TABLE \
                         tenant_identity_config and REINDEX TABLE tenants, then ALTER DATABASE … \
                         REFRESH COLLATION VERSION"
                    );
                }
            }
            Kind::Other => {
                if let Some(not_logged) = self.others_logged.acquire(NOTICE_INTERVAL) {
                    let (severity, sqlstate) = (name(severity), code(notice.code().code()));
                    tracing::info!(
                        severity,
                        sqlstate,
                        not_logged,
                        "Postgres sent a notice; its text is not logged, since it can hold \
                         secrets"
                    );
                }
            }
        }
    }
}

/// Classifies a notice by the C function that sent it, because texts depend on the server's
/// language. Other servers that speak the protocol may not send the function.
fn kind(severity: Option<Severity>, routine: Option<&str>, message: &str, detail: &str) -> Kind {
    if severity != Some(Severity::Warning) {
        return Kind::Other;
    }
    match routine {
        Some(routine) if COLLATION_ROUTINES.contains(&routine) => Kind::Collation,
        Some(STANDBY_ROUTINE) => Kind::UnreplicatedCommit,
        Some(_) => Kind::Other,
        None if detail.contains("might not have been replicated") => Kind::UnreplicatedCommit,
        None if message.contains("collation") && message.contains("version") => Kind::Collation,
        None => Kind::Other,
    }
}

fn name(severity: Option<Severity>) -> &'static str {
    match severity {
        Some(Severity::Warning) => "WARNING",
        Some(Severity::Notice) => "NOTICE",
        Some(Severity::Debug) => "DEBUG",
        Some(Severity::Info) => "INFO",
        Some(Severity::Log) => "LOG",
        Some(Severity::Panic | Severity::Fatal | Severity::Error) => "ERROR",
        None => "unknown",
    }
}

/// `code` if it has the form of a SQLSTATE: five digits and letters.
fn code(code: &str) -> &str {
    let is_code = code.len() == 5 && code.bytes().all(|b| b.is_ascii_alphanumeric());
    if is_code { code } else { "unknown" }
}

/// Logs why a connection ended. If the server sent the error, only the SQLSTATE is safe to
/// log.
fn log_connection_error(error: &tokio_postgres::Error) {
    match error.code() {
        Some(sqlstate) => tracing::warn!(
            sqlstate = code(sqlstate.code()),
            "Postgres ended a connection"
        ),
        None => tracing::warn!(%error, "a connection to Postgres failed"),
    }
}

/// Lets one event per interval through, and counts the others.
#[derive(Debug, Default)]
struct Throttle(Mutex<(Option<Instant>, u64)>);

impl Throttle {
    /// If this event may pass, returns how many events were held back since the last one.
    fn acquire(&self, interval: Duration) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, held_back) = &mut *state;
        if last.is_some_and(|last| last.elapsed() < interval) {
            *held_back += 1;
            return None;
        }
        *last = Some(Instant::now());
        Some(std::mem::take(held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notice_is_recognized_by_the_function_that_sent_it() {
        let warning = Some(Severity::Warning);
        let cases = [
            (
                warning,
                Some("SyncRepWaitForLSN"),
                "",
                Kind::UnreplicatedCommit,
            ),
            (warning, Some("CheckMyDatabase"), "", Kind::Collation),
            (
                warning,
                Some("pg_newlocale_from_collation"),
                "",
                Kind::Collation,
            ),
            (
                warning,
                Some("exec_stmt_raise"),
                "a collation version",
                Kind::Other,
            ),
            (
                warning,
                None,
                "database \"x\" has a collation version mismatch",
                Kind::Collation,
            ),
            (
                Some(Severity::Notice),
                Some("CheckMyDatabase"),
                "",
                Kind::Other,
            ),
            (None, None, "collation version", Kind::Other),
        ];
        for (severity, routine, message, expected) in cases {
            assert_eq!(
                kind(severity, routine, message, ""),
                expected,
                "{routine:?}"
            );
        }
        let detail = "The transaction has already committed locally, but might not have been \
                      replicated to the standby.";
        assert_eq!(kind(warning, None, "", detail), Kind::UnreplicatedCommit);
        assert_eq!(
            kind(warning, Some("exec_stmt_raise"), "", detail),
            Kind::Other
        );
    }

    #[test]
    fn only_a_valid_sqlstate_is_logged() {
        assert_eq!(code("01000"), "01000");
        assert_eq!(code("P0001"), "P0001");
        for odd in ["", "0100", "01 00", "010000", "0100é"] {
            assert_eq!(code(odd), "unknown");
        }
    }

    #[test]
    fn a_throttle_counts_what_it_held_back() {
        let throttle = Throttle::default();
        let hour = Duration::from_secs(3600);
        assert_eq!(throttle.acquire(hour), Some(0));
        assert_eq!(throttle.acquire(hour), None);
        assert_eq!(throttle.acquire(hour), None);
        assert_eq!(throttle.acquire(Duration::ZERO), Some(2));
        assert_eq!(throttle.acquire(Duration::ZERO), Some(0));
    }
}
