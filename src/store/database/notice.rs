//! The notices of Postgres: messages that the server sends beside its answers.
//!
//! A notice can hold anything: a trigger can raise one with a whole row in it, and with
//! `client_min_messages = log` the server sends our own SQL back. The log gets the severity
//! and the SQLSTATE of a notice, never its text. Two notices matter to us and have words of
//! our own: a collation that changed, and a commit that did not wait for its standby.

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

/// At most one line in the log in this time for each kind of notice. A trigger can raise one
/// for each row.
const NOTICE_INTERVAL: Duration = Duration::from_secs(10);

/// Every new connection gets this warning again.
const COLLATION_INTERVAL: Duration = Duration::from_secs(600);

/// The functions of Postgres that warn of a collation version (`postinit.c`, `pg_locale.c`).
/// Their names are the same in every language of the server's messages.
const COLLATION_ROUTINES: [&str; 3] = [
    "CheckMyDatabase",
    "pg_newlocale_from_collation",
    "create_pg_locale",
];

/// The function of Postgres that waits for synchronous standbys (`syncrep.c`). It only warns
/// when its wait was cancelled after the local commit.
const STANDBY_ROUTINE: &str = "SyncRepWaitForLSN";

/// What the notices of a group of connections said.
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
    /// Commits that Postgres reported as done although their synchronous standby had not
    /// confirmed them. A commit is counted before its statement's answer is delivered.
    pub(crate) fn unreplicated_commits(&self) -> u64 {
        self.unreplicated.load(Ordering::Acquire)
    }

    /// Does the work of a connection until its client is dropped, and takes its notices.
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
                         because somebody cancelled the wait: the standby may not have it"
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

/// By the function of Postgres that sent it, as texts depend on the server's language. What is
/// not Postgres itself may not say the function.
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

/// A SQLSTATE, if it is one: five digits and capital letters.
fn code(code: &str) -> &str {
    let is_code = code.len() == 5 && code.bytes().all(|b| b.is_ascii_alphanumeric());
    if is_code { code } else { "unknown" }
}

/// Why a connection ended. Of an error that the server sent only the SQLSTATE is safe to log.
fn log_connection_error(error: &tokio_postgres::Error) {
    match error.code() {
        Some(sqlstate) => tracing::warn!(
            sqlstate = code(sqlstate.code()),
            "Postgres ended a connection"
        ),
        None => tracing::warn!(%error, "a connection to Postgres failed"),
    }
}

/// Lets one event in an interval through, and counts the others.
#[derive(Debug, Default)]
struct Throttle(Mutex<(Option<Instant>, u64)>);

impl Throttle {
    /// How many events were held back since the last one, if this one may pass.
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
    fn only_a_sqlstate_is_logged_as_one() {
        assert_eq!(code("01000"), "01000");
        assert_eq!(code("P0001"), "P0001");
        for odd in ["", "0100", "01 00", "010000", "0100é"] {
            assert_eq!(code(odd), "unknown");
        }
    }

    #[test]
    fn a_throttle_tells_how_much_it_held_back() {
        let throttle = Throttle::default();
        let hour = Duration::from_secs(3600);
        assert_eq!(throttle.acquire(hour), Some(0));
        assert_eq!(throttle.acquire(hour), None);
        assert_eq!(throttle.acquire(hour), None);
        assert_eq!(throttle.acquire(Duration::ZERO), Some(2));
        assert_eq!(throttle.acquire(Duration::ZERO), Some(0));
    }
}
