//! What can go wrong with the database: with one row, with a connection, or with
//! the whole of it.

use std::time::Duration;

use deadpool_postgres::{PoolError, TimeoutType};
use thiserror::Error;
use tokio_postgres::error::SqlState;

use super::VersionError;
use crate::database::tls_problem;

/// A failure below the run.
#[derive(Debug, Error)]
pub enum StoreError {
    /// One row could not be written; the next one may well be.
    #[error("{0}")]
    Row(#[from] RowError),
    /// The connection died, or is in an unknown state. Another one may do.
    #[error("the connection to the database was lost: {0}")]
    ConnectionLost(String),
    /// Nothing was heard for this long; the connection is in an unknown state.
    #[error("no answer from the database within {}", humantime::format_duration(*.0))]
    NoAnswer(Duration),
    /// No database to work with for now.
    #[error("the database can't be used: {0}")]
    Unavailable(String),
    /// The prepared plan no longer fits the table: prepare again.
    #[error("a prepared statement is out of date (SQLSTATE {})", .0.code())]
    StalePlan(SqlState),
    /// Rolled back by Postgres for the sake of another transaction: try again.
    #[error("rolled back by Postgres ({})", .0.code())]
    Conflict(SqlState),
    /// A column went away under our hands: `encryption_key_id`, most likely.
    #[error("a column is gone")]
    ColumnGone,
}

/// Why a row as a whole could not be written, in words for the operator.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RowError {
    /// Somebody else held the row for longer than `lock_timeout`.
    #[error("the row was locked by another transaction for longer than lock_timeout; run again")]
    LockTimeout,
    /// A statement took longer than `statement_timeout`, or somebody cancelled it.
    #[error("the database took longer than statement_timeout, or was told to give up; run again")]
    StatementTimeout,
    /// Deadlocks or serialization failures, as often as is allowed.
    #[error("gave way to other transactions max_attempts times (SQLSTATE {0}); run again")]
    Conflicts(String),
    /// The version could not be bumped.
    #[error("{0}")]
    Version(#[from] VersionError),
    /// The role that we connect as may not do it.
    #[error(
        "the database role lacks a privilege on the tables (SQLSTATE 42501); grant it and run again"
    )]
    Privilege,
    /// The row was written, and `tenants` was not.
    #[error(
        "the secrets were re-wrapped, but a trigger or policy kept tenants.version from being \
         bumped: who caches by version sees the old texts until it is"
    )]
    NotBumped,
    /// Everything else that Postgres may say of one statement.
    #[error("the database refused the write (SQLSTATE {0}); its log has the details")]
    Refused(String),
}

impl StoreError {
    pub(super) fn no_connection() -> Self {
        Self::ConnectionLost("it is not used any more".to_owned())
    }

    /// A statement that always answers with a row did not.
    pub(super) fn no_answer() -> Self {
        Self::Unavailable("it gave an empty answer".to_owned())
    }

    pub(super) fn into_unavailable(self) -> Self {
        match self {
            Self::Unavailable(_) => self,
            other => Self::Unavailable(other.to_string()),
        }
    }
}

impl From<tokio_postgres::Error> for StoreError {
    fn from(error: tokio_postgres::Error) -> Self {
        let Some(db) = error.as_db_error() else {
            // Not Postgres's word but the driver's: I/O, TLS, a closed connection.
            return Self::ConnectionLost(describe(&error));
        };
        let code = db.code();
        match code.code() {
            "40001" | "40P01" => Self::Conflict(code.clone()),
            // feature_not_supported "cached plan must not change result type", and
            // invalid_sql_statement_name when a pooler forgot it.
            "0A000" | "26000" => Self::StalePlan(code.clone()),
            "42703" => Self::ColumnGone,
            "55P03" => Self::Row(RowError::LockTimeout),
            "57014" => Self::Row(RowError::StatementTimeout),
            "42501" => Self::Row(RowError::Privilege),
            "23502" if db.table() == Some("tenants") && db.column() == Some("version") => {
                Self::Row(RowError::Version(VersionError::Malformed))
            }
            // The server goes down, comes up, is a standby, is full, or takes no more
            // connections: nothing to do with the row.
            "25006" | "57P01" | "57P02" | "57P03" | "57P04" | "57P05" => {
                Self::ConnectionLost(describe(&error))
            }
            other if other.starts_with("08") || other.starts_with("53") => {
                Self::ConnectionLost(describe(&error))
            }
            other => Self::Row(RowError::Refused(other.to_owned())),
        }
    }
}

impl From<PoolError> for StoreError {
    fn from(error: PoolError) -> Self {
        Self::Unavailable(match error {
            PoolError::Timeout(TimeoutType::Wait) => {
                "no connection became free within pool_wait".to_owned()
            }
            PoolError::Timeout(_) => "no connection within connect_timeout".to_owned(),
            PoolError::Backend(error) => describe(&error),
            PoolError::PostCreateHook(_) => "a new connection could not be set up".to_owned(),
            PoolError::Closed => "shutting down".to_owned(),
            PoolError::NoRuntimeSpecified => "the pool has no runtime".to_owned(),
        })
    }
}

/// The driver's words with its causes. They carry no SQL, no parameters and no
/// connection string; the server's message can, so only its code is taken.
fn describe(error: &tokio_postgres::Error) -> String {
    if let Some(db) = error.as_db_error() {
        return match db.code().code() {
            "28P01" => "it refused our role or password (SQLSTATE 28P01)".to_owned(),
            "28000" => {
                "it does not know our role, or its pg_hba.conf lets us in neither from this \
                        address nor with this sslmode (SQLSTATE 28000)"
                    .to_owned()
            }
            "3D000" => "the database of database_url does not exist (SQLSTATE 3D000)".to_owned(),
            "53300" => "it takes no more connections (SQLSTATE 53300)".to_owned(),
            "57P03" => "it is starting up or shutting down (SQLSTATE 57P03)".to_owned(),
            "25006" => "it is read-only, a standby perhaps (SQLSTATE 25006)".to_owned(),
            code => format!("it answered with SQLSTATE {code}"),
        };
    }
    if let Some(problem) = tls_problem(error) {
        return problem;
    }
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
