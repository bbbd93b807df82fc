//! Errors of the database: of one row, of one connection, or of the whole database.

use std::time::Duration;

use deadpool_postgres::{PoolError, TimeoutType};
use thiserror::Error;
use tokio_postgres::error::SqlState;

use super::{Hidden, SetupError};
use crate::domain::tenant_version::VersionError;
use crate::store::database::tls_problem;

/// Why an operation of the store failed.
#[derive(Debug, Error)]
pub enum StoreError {
    /// This row could not be written. Others may still be writable.
    #[error("{0}")]
    Row(#[from] RowError),
    /// The connection died or is in an unknown state. Another connection may work.
    #[error("the connection to the database was lost: {0}")]
    ConnectionLost(String),
    /// The server was silent for this long. The connection is in an unknown state.
    #[error("no answer from the database within {}", humantime::format_duration(*.0))]
    NoAnswer(Duration),
    /// The database cannot be used now, but may be later.
    #[error("the database can't be used: {0}")]
    Unavailable(String),
    /// The database or its role must be changed first.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The prepared plan no longer fits the table: prepare it again.
    #[error(
        "a prepared statement is out of date (SQLSTATE {}); behind a connection pooler that may \
         use another session for every transaction, set [rewrap].pool_mode = \"transaction\"",
        .0.code()
    )]
    StalePlan(SqlState),
    /// Postgres rolled the statement back because of another transaction: try again.
    #[error("rolled back by Postgres ({})", .0.code())]
    Conflict(SqlState),
    /// Postgres accepts no more connections of this role.
    #[error("the database can't be used: it accepts no more connections (SQLSTATE 53300)")]
    TooManyConnections,
    /// A column was dropped while the program ran, most likely `encryption_key_id`.
    #[error("a column was dropped while the program ran")]
    ColumnGone,
}

/// Why a row as a whole could not be written. The text is for the operator.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RowError {
    /// Another transaction held the row for longer than `lock_timeout`.
    #[error("the row was locked by another transaction for longer than lock_timeout; run again")]
    RowLocked,
    /// Another transaction held a lock on the whole table for longer than `lock_timeout`.
    #[error(
        "a table was locked by another transaction (a migration?) for longer than lock_timeout; \
         run again"
    )]
    TableLocked,
    /// A statement took longer than `statement_timeout`, or it was cancelled.
    #[error(
        "the database took longer than statement_timeout, or somebody cancelled the \
         statement; run again"
    )]
    StatementTimeout,
    /// Postgres did not end the write in time, although it answers on other connections.
    #[error(
        "the database took longer than statement_timeout for this write and did not stop it, \
         though it answers on other connections: the session was ended and nothing was written; \
         look for a trigger or a COMMIT that takes long, and run again"
    )]
    NotEnded,
    /// Deadlocks or serialization failures in all `max_attempts` attempts.
    #[error(
        "other transactions made Postgres roll the write back max_attempts times (SQLSTATE \
         {0}); run again"
    )]
    Conflicts(String),
    /// The version could not be bumped.
    #[error("{0}")]
    Version(#[from] VersionError),
    /// The database role lacks a privilege for the write.
    #[error(
        "the database role lacks a privilege that this write needs (SQLSTATE 42501), on a table or \
         on an object that a trigger uses: the log of Postgres names the object; grant the \
         privilege and run again"
    )]
    Privilege,
    /// A row-level security policy for UPDATE forbids the write.
    #[error(
        "a row-level security policy forbids the database role to write this row: nothing was \
         written; give the role BYPASSRLS and run again"
    )]
    Policy,
    /// A trigger replaced a text that was sent.
    #[error(
        "a trigger put another text in the place of the re-wrapped one: nothing was written; \
         change or disable that trigger on tenant_identity_config and run again"
    )]
    TextNotKept,
    /// The row was written, but `tenants.version` was not.
    #[error(
        "a trigger, a rule or a policy kept tenants.version from being bumped: nothing was \
         written; change or disable it and run again"
    )]
    NotBumped,
    /// The row exists and is unchanged, but an UPDATE has no effect on it.
    #[error(
        "the database ignored the write, though the row is unchanged: a trigger or a policy skips \
         it; nothing was written; change or disable that trigger or policy and run again"
    )]
    Ignored,
    /// Postgres cannot read the stored row. `columns` is empty if the columns are unknown.
    #[error(
        "Postgres cannot read what it has stored here (SQLSTATE {sqlstate}): see its log; \
         restore the row from a backup, or create the secret again with nico-api"
    )]
    Unreadable {
        /// The columns of [`crate::domain::rewrap::COLUMNS`] that cannot be read.
        columns: Vec<&'static str>,
        /// The SQLSTATE that Postgres reports.
        sqlstate: String,
    },
    /// Any other error that Postgres reports for one statement.
    #[error("the database refused the write (SQLSTATE {0}); see its log")]
    Refused(String),
}

impl RowError {
    /// The stable reason.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::RowLocked | Self::TableLocked => "ROW_LOCKED",
            Self::StatementTimeout | Self::NotEnded => "TIMEOUT",
            Self::Conflicts(_) => "CONFLICT",
            Self::Version(VersionError::Missing) => "TENANT_MISSING",
            Self::Version(_) => "TENANT_VERSION",
            Self::Privilege | Self::Policy => "PRIVILEGE",
            Self::TextNotKept => "TEXT_NOT_KEPT",
            Self::NotBumped => "VERSION_NOT_BUMPED",
            Self::Unreadable { .. } => "ROW_UNREADABLE",
            Self::Ignored | Self::Refused(_) => "REFUSED",
        }
    }
}

/// The write of a row reads one of these settings to raise an error. The settings do not
/// exist, and Postgres names a missing setting in its message in every language.
pub(super) const TEXT_NOT_KEPT: &str = "nico_rewrap.text_not_kept";
pub(super) const NOT_BUMPED: &str = "nico_rewrap.version_not_bumped";

impl StoreError {
    pub(super) fn no_connection() -> Self {
        Self::ConnectionLost("this program has already given it up".to_owned())
    }

    /// A statement that always returns a row returned no row.
    pub(super) fn no_answer() -> Self {
        Self::Unavailable("it returned no row".to_owned())
    }

    /// A column that must be of type text has another type.
    pub(super) fn not_a_text(column: &str) -> Self {
        SetupError::Schema(format!("column {column} is not of type text")).into()
    }

    /// Whether Postgres allows no further connection.
    #[must_use]
    pub fn is_connection_limit(&self) -> bool {
        matches!(self, Self::TooManyConnections)
    }

    /// Whether a part of the table or an index cannot be read.
    pub(crate) fn is_damage(&self) -> bool {
        matches!(self, Self::Row(RowError::Refused(code)) if is_damage(code))
    }

    /// The SQLSTATE of an error that this program does not treat specially.
    pub(super) fn sqlstate(&self) -> Option<String> {
        match self {
            Self::Row(RowError::Refused(code)) => Some(code.clone()),
            _ => None,
        }
    }

    /// Whether Postgres could not read one of the rows. Other rows may be readable.
    #[must_use]
    pub fn is_of_some_row(&self) -> bool {
        match self {
            Self::Row(RowError::StatementTimeout) => true,
            Self::Row(RowError::Refused(code)) => setup_error(code).is_none(),
            _ => false,
        }
    }

    /// Converts the error of a statement on the schema `nico_rewrap`. Such an error is never about a
    /// row of the site.
    pub(super) fn of_state(self) -> Self {
        let schema = |what: &str, code: &str| {
            SetupError::StateSchema(format!("{what} (SQLSTATE {code})")).into()
        };
        match self {
            Self::Row(RowError::Privilege | RowError::Policy) => SetupError::Privilege(
                "a privilege on the schema nico_rewrap (SQLSTATE 42501)".to_owned(),
            )
            .into(),
            Self::ColumnGone => schema("a column of the schema nico_rewrap is missing", "42703"),
            Self::Row(RowError::Refused(code)) => match code.as_str() {
                "42P01" | "3F000" => schema("a table of the schema nico_rewrap is missing", &code),
                "42883" | "42804" | "42846" => schema(
                    "a column of the schema nico_rewrap is of an unexpected type",
                    &code,
                ),
                _ => Self::Unavailable(format!(
                    "a statement on the schema nico_rewrap failed (SQLSTATE {code})"
                )),
            },
            other => other,
        }
    }

    /// Converts the error of a statement that is not about a single row. If the problem can end
    /// without a change, the result is [`StoreError::Unavailable`]. If somebody must change
    /// something, the result is [`StoreError::Setup`].
    #[must_use]
    pub fn into_unavailable(self) -> Self {
        match self {
            Self::Unavailable(_) | Self::Setup(_) => self,
            Self::Row(RowError::Policy) => SetupError::from(Hidden::BySomePolicy).into(),
            Self::Row(RowError::Privilege) => SetupError::Privilege(
                "a privilege on the tables, their schema or a function (SQLSTATE 42501)".to_owned(),
            )
            .into(),
            Self::ColumnGone => SetupError::Schema(
                "a column that this program needs was dropped (SQLSTATE 42703)".to_owned(),
            )
            .into(),
            Self::Row(RowError::Refused(code)) => match setup_error(&code) {
                Some(problem) => problem.into(),
                // Bytes that are not valid text, and damaged blocks.
                None if is_damage(&code) || matches!(code.as_str(), "22021" | "22P05") => {
                    SetupError::from(Hidden::ByDamage(code)).into()
                }
                None => Self::Unavailable(format!("it answered with SQLSTATE {code}")),
            },
            other => Self::Unavailable(other.to_string()),
        }
    }
}

/// Whether a SQLSTATE says that stored data or an index is damaged: the content of a block, a
/// block that the disk does not return, or a file that is missing.
fn is_damage(code: &str) -> bool {
    matches!(code, "XX001" | "XX002" | "58030" | "58P01")
}

/// The permanent problem that a SQLSTATE reports, if any.
fn setup_error(code: &str) -> Option<SetupError> {
    let schema = |what: &str| Some(SetupError::Schema(format!("{what} (SQLSTATE {code})")));
    match code {
        "42P01" => schema("a table that this program needs is missing"),
        "3F000" => schema("a schema of the search_path is missing"),
        "42883" | "42804" | "42846" => schema("a column is of an unexpected type"),
        _ => None,
    }
}

impl From<tokio_postgres::Error> for StoreError {
    fn from(error: tokio_postgres::Error) -> Self {
        let Some(db) = error.as_db_error() else {
            // The driver raised this error, not Postgres: I/O, TLS, a closed connection.
            return Self::ConnectionLost(describe(&error));
        };
        let code = db.code();
        match code.code() {
            "40001" | "40P01" => Self::Conflict(code.clone()),
            // feature_not_supported, "cached plan must not change result type", and
            // invalid_sql_statement_name, when a pooler dropped the prepared statement.
            "0A000" | "26000" => Self::StalePlan(code.clone()),
            "42703" => Self::ColumnGone,
            // Postgres adds a context (`where`) only if the statement waited for a row.
            "55P03" if db.where_().is_none() => Self::Row(RowError::TableLocked),
            "55P03" => Self::Row(RowError::RowLocked),
            "57014" => Self::Row(RowError::StatementTimeout),
            // The name of a C function in Postgres. It is the same in every language.
            "42501" if db.routine() == Some("check_enable_rls") => Self::Row(RowError::Policy),
            "42501" => Self::Row(RowError::Privilege),
            "42704" if db.message().contains(TEXT_NOT_KEPT) => Self::Row(RowError::TextNotKept),
            "42704" if db.message().contains(NOT_BUMPED) => Self::Row(RowError::NotBumped),
            "23502" if db.table() == Some("tenants") && db.column() == Some("version") => {
                Self::Row(RowError::Version(VersionError::Malformed))
            }
            // The server shuts down, starts up, is a standby, has no space, takes no more
            // connections, or ended a session that was idle in its transaction. The row is
            // not the cause.
            "25006" | "25P03" | "57P01" | "57P02" | "57P03" | "57P04" | "57P05" => {
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
            PoolError::Timeout(_) => {
                "no connection could be opened within connect_timeout".to_owned()
            }
            PoolError::Backend(error) => describe(&error),
            PoolError::PostCreateHook(_) => "a new connection could not be configured".to_owned(),
            PoolError::Closed => "shutting down".to_owned(),
            PoolError::NoRuntimeSpecified => "the pool has no runtime".to_owned(),
        })
    }
}

/// The driver's message and its causes. These contain no SQL, no parameters and no
/// connection string. A message of the server can contain them, so only its SQLSTATE is
/// used.
fn describe(error: &tokio_postgres::Error) -> String {
    if let Some(db) = error.as_db_error() {
        return match db.code().code() {
            "28P01" => {
                "it refused the role or the password of database_url (SQLSTATE 28P01)".to_owned()
            }
            "28000" => {
                "it does not know the role of database_url, or its pg_hba.conf does not allow \
                 the role from this address with this sslmode (SQLSTATE 28000)"
                    .to_owned()
            }
            "3D000" => "the database of database_url does not exist (SQLSTATE 3D000)".to_owned(),
            "42501" => "the role may not connect to the database of database_url (SQLSTATE 42501)"
                .to_owned(),
            "53300" => "it accepts no more connections (SQLSTATE 53300)".to_owned(),
            "57P03" => "it is starting up or shutting down (SQLSTATE 57P03)".to_owned(),
            "25006" => "it is read-only, perhaps a standby (SQLSTATE 25006)".to_owned(),
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
