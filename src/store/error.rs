//! What can go wrong with the database: with one row, with a connection, or with
//! the whole of it.

use std::time::Duration;

use deadpool_postgres::{PoolError, TimeoutType};
use thiserror::Error;
use tokio_postgres::error::SqlState;

use super::{Hidden, SetupError, VersionError};
use crate::store::database::tls_problem;

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
    /// The database has to be set up otherwise first.
    #[error(transparent)]
    Setup(#[from] SetupError),
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
    RowLocked,
    /// Somebody else held a lock on the whole table for longer than `lock_timeout`.
    #[error(
        "a table was locked by another transaction (a migration?) for longer than lock_timeout; \
         run again"
    )]
    TableLocked,
    /// A statement took longer than `statement_timeout`, or somebody cancelled it.
    #[error("the database took longer than statement_timeout, or was told to give up; run again")]
    StatementTimeout,
    /// Deadlocks or serialization failures, as often as is allowed.
    #[error("gave way to other transactions max_attempts times (SQLSTATE {0}); run again")]
    Conflicts(String),
    /// The version could not be bumped.
    #[error("{0}")]
    Version(#[from] VersionError),
    /// The role that we connect as may not do something that the write does.
    #[error(
        "the database role lacks a privilege that this write needs (SQLSTATE 42501), on a table or \
         on what a trigger uses: Postgres' log names it; grant it and run again"
    )]
    Privilege,
    /// A policy for UPDATE is in the way.
    #[error(
        "a row-level security policy keeps the database role from writing this row: nothing was \
         written; give the role BYPASSRLS and run again"
    )]
    Policy,
    /// A trigger put another text in the place of one that was sent.
    #[error(
        "a trigger put another text in the place of the re-wrapped one: nothing was written; \
         change or disable that trigger of tenant_identity_config and run again"
    )]
    TextNotKept,
    /// The row was written, and `tenants` was not.
    #[error(
        "a trigger, a rule or a policy kept tenants.version from being bumped: nothing was \
         written; change or disable it and run again"
    )]
    NotBumped,
    /// The row is there, unchanged, and an UPDATE does not touch it.
    #[error(
        "the database ignored the write, though the row is unchanged: a trigger or a policy skips \
         it; nothing was written; change or disable it and run again"
    )]
    Ignored,
    /// Postgres cannot read what it has stored, in these columns if it says so.
    #[error(
        "Postgres cannot read what it has stored here (SQLSTATE {sqlstate}): its log has the \
         details; restore the row from a backup, or have nico-api make the secret anew"
    )]
    Unreadable {
        /// The columns of [`crate::domain::rewrap::COLUMNS`] that cannot be read.
        columns: Vec<&'static str>,
        /// What Postgres says.
        sqlstate: String,
    },
    /// Everything else that Postgres may say of one statement.
    #[error("the database refused the write (SQLSTATE {0}); its log has the details")]
    Refused(String),
}

/// The settings that the write of a row asks for to raise an error of its own. There are no
/// such settings: Postgres names them in its message, in every language.
pub(super) const TEXT_NOT_KEPT: &str = "nico_rewrap.text_not_kept";
pub(super) const NOT_BUMPED: &str = "nico_rewrap.version_not_bumped";

impl StoreError {
    pub(super) fn no_connection() -> Self {
        Self::ConnectionLost("it is not used any more".to_owned())
    }

    /// A statement that always answers with a row did not.
    pub(super) fn no_answer() -> Self {
        Self::Unavailable("it gave an empty answer".to_owned())
    }

    /// What is not a text where there should be one.
    pub(super) fn not_a_text(column: &str) -> Self {
        SetupError::Schema(format!("column {column} is not of type text")).into()
    }

    /// Whether Postgres refused to read one of the rows, which others may not share.
    pub(super) fn is_of_some_row(&self) -> bool {
        match self {
            Self::Row(RowError::StatementTimeout) => true,
            Self::Row(RowError::Refused(code)) => lasting_fault(code).is_none(),
            _ => false,
        }
    }

    /// The same for a statement that concerns no row alone: what passes by itself is
    /// [`StoreError::Unavailable`], what does not is [`StoreError::Setup`].
    pub(super) fn into_unavailable(self) -> Self {
        match self {
            Self::Unavailable(_) | Self::Setup(_) => self,
            Self::Row(RowError::Policy) => SetupError::from(Hidden::BySomePolicy).into(),
            Self::Row(RowError::Privilege) => SetupError::Privilege(
                "a privilege on the tables, their schema or a function (SQLSTATE 42501)".to_owned(),
            )
            .into(),
            Self::ColumnGone => {
                SetupError::Schema("a column that is needed is gone (SQLSTATE 42703)".to_owned())
                    .into()
            }
            Self::Row(RowError::Refused(code)) => match lasting_fault(&code) {
                Some(fault) => fault.into(),
                // Bytes that are no text, and damaged pages.
                None if matches!(code.as_str(), "22021" | "22P05" | "XX001" | "XX002") => {
                    SetupError::from(Hidden::ByDamage(code)).into()
                }
                None => Self::Unavailable(format!("it answered with SQLSTATE {code}")),
            },
            other => Self::Unavailable(other.to_string()),
        }
    }
}

/// What a SQLSTATE says about the database as a whole, if it lasts.
fn lasting_fault(code: &str) -> Option<SetupError> {
    let schema = |what: &str| Some(SetupError::Schema(format!("{what} (SQLSTATE {code})")));
    match code {
        "42P01" => schema("a table that is needed is missing"),
        "3F000" => schema("a schema of the search_path is missing"),
        "42883" | "42804" | "42846" => schema("a column is of an unexpected type"),
        _ => None,
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
            // Postgres says what it did only when it waited for a row.
            "55P03" if db.where_().is_none() => Self::Row(RowError::TableLocked),
            "55P03" => Self::Row(RowError::RowLocked),
            "57014" => Self::Row(RowError::StatementTimeout),
            // The name of a function of Postgres, the same in every language.
            "42501" if db.routine() == Some("check_enable_rls") => Self::Row(RowError::Policy),
            "42501" => Self::Row(RowError::Privilege),
            "42704" if db.message().contains(TEXT_NOT_KEPT) => Self::Row(RowError::TextNotKept),
            "42704" if db.message().contains(NOT_BUMPED) => Self::Row(RowError::NotBumped),
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
        let login = |error: &tokio_postgres::Error| {
            let code = error.code()?.code();
            let lasts = code.starts_with("28") || matches!(code, "3D000" | "42501");
            lasts.then(|| SetupError::Login(describe(error)))
        };
        if let PoolError::Backend(error) = &error
            && let Some(login) = login(error)
        {
            return login.into();
        }
        Self::Unavailable(match error {
            PoolError::Timeout(TimeoutType::Wait) => {
                "no connection became free within pool_acquire_timeout".to_owned()
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
            "42501" => "our role may not connect to the database of database_url (SQLSTATE 42501)"
                .to_owned(),
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
