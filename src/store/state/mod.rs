//! The schema `nico_rewrap`: the state of this program in the database of the site.
//!
//! The schema is in the same database as the secrets. So all instances share it, and a restored
//! database has the history of its own time. Only `nico-rewrap state migrate` creates it. Without
//! the schema, an instance knows only its own runs and censuses.
//!
//! Runs, censuses and receipts are JSON documents that this module does not interpret.

mod census;
mod failure;
mod lease;
mod receipt;
mod run;

use tokio_postgres::{
    Row as PgRow,
    types::{ToSql, Type},
};

pub use self::{
    census::StoredLedger,
    failure::{FailurePage, StoredFailure},
    lease::Lease as StateLease,
    receipt::StoredReceipt,
    run::{RunPosition, StartedRun, Starter, StoredRun},
};
use super::{Store, StoreError, statement::Statement};

/// The version of the schema that this program needs: the number of files in
/// `migrations/state`.
pub const STATE_VERSION: i32 = 1;

/// Whether the schema can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StateSchema {
    /// It exists in the right version, and the role may use it.
    Ready,
    /// It does not exist.
    Absent,
    /// It has another version than this program needs.
    Version(i32),
    /// The role lacks a privilege on it.
    NoPrivilege,
    /// It lacks these tables.
    Incomplete(String),
}

/// The tables of the schema, besides `schema_version`.
pub const STATE_TABLES: [&str; 6] = [
    "runs", "failures", "censuses", "ledger", "receipts", "leases",
];

impl std::fmt::Display for StateSchema {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ready => f.write_str("the schema nico_rewrap is ready"),
            Self::Absent => f.write_str(
                "the schema nico_rewrap does not exist: create it with `nico-rewrap state migrate`",
            ),
            Self::Version(found) if *found < STATE_VERSION => write!(
                f,
                "the schema nico_rewrap has version {found}, and this program needs {STATE_VERSION}: \
                 run `nico-rewrap state migrate`"
            ),
            Self::Version(found) => write!(
                f,
                "the schema nico_rewrap has version {found}, and this program knows only \
                 {STATE_VERSION}: use a newer nico-rewrap"
            ),
            Self::Incomplete(tables) => write!(
                f,
                "the schema nico_rewrap lacks the tables {tables}: `nico-rewrap state migrate` says \
                 what to do"
            ),
            Self::NoPrivilege => f.write_str(
                "the database role lacks privileges on the schema nico_rewrap: run \
                 deploy/postgres/role.sql again",
            ),
        }
    }
}

// Returns one row. Checks every table, because a role may have privileges on only some of them.
const SCHEMA: Statement = Statement {
    text: "-- state_schema\n\
           SELECT to_regnamespace('nico_rewrap') IS NOT NULL, \
             coalesce(has_schema_privilege(to_regnamespace('nico_rewrap')::oid, 'USAGE'), false), \
             (SELECT bool_and(has_table_privilege(c.oid, 'SELECT') \
                 AND (c.relname = 'schema_version' OR has_table_privilege(c.oid, 'INSERT') \
                   AND has_table_privilege(c.oid, 'UPDATE') \
                   AND has_table_privilege(c.oid, 'DELETE'))) \
              FROM pg_class c WHERE c.relkind = 'r' \
                AND c.relnamespace = to_regnamespace('nico_rewrap')::oid), \
             EXISTS (SELECT FROM pg_class c WHERE c.relname = 'schema_version' \
                AND c.relnamespace = to_regnamespace('nico_rewrap')::oid), \
             (SELECT string_agg(name, ', ') FROM unnest($1::text[]) name \
              WHERE NOT EXISTS (SELECT FROM pg_class c WHERE c.relname = name \
                AND c.relkind IN ('r', 'p') \
                AND c.relnamespace = to_regnamespace('nico_rewrap')::oid))",
    types: &[Type::TEXT_ARRAY],
};

const VERSION: Statement = Statement {
    text: "-- state_version\nSELECT coalesce(max(version), 0) FROM nico_rewrap.schema_version",
    types: &[],
};

impl Store {
    /// Checks whether the schema can be used.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the database does not answer.
    pub async fn state_schema(&self) -> Result<StateSchema, StoreError> {
        let rows = self
            .state_query(&SCHEMA, &[&STATE_TABLES.as_slice()])
            .await?;
        let row = rows.first().ok_or_else(StoreError::no_answer)?;
        let (exists, usable): (bool, bool) = (row.try_get(0)?, row.try_get(1)?);
        let privileges: Option<bool> = row.try_get(2)?;
        let missing: Option<String> = row.try_get(4)?;
        if !exists {
            return Ok(StateSchema::Absent);
        }
        if !row.try_get::<_, bool>(3)? {
            // The schema has no version table, so another program has created it.
            return Ok(StateSchema::Version(0));
        }
        if privileges != Some(true) || !usable {
            return Ok(StateSchema::NoPrivilege);
        }
        let rows = self.state_query(&VERSION, &[]).await?;
        let version = rows.first().ok_or_else(StoreError::no_answer)?.try_get(0)?;
        Ok(match (version, missing) {
            (STATE_VERSION, None) => StateSchema::Ready,
            (STATE_VERSION, Some(tables)) => StateSchema::Incomplete(tables),
            (other, _) => StateSchema::Version(other),
        })
    }

    /// Runs one statement on a connection that runs do not use, so this never waits for a locked
    /// row.
    async fn state_query(
        &self,
        sql: &'static Statement,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<PgRow>, StoreError> {
        let mut attempts = 0;
        loop {
            let lease = self.side_client().await?;
            let rows = self.query(&lease, sql, params).await;
            let rows = self.conclude(lease, rows, &mut attempts).await;
            if let Some(rows) = rows.map_err(StoreError::of_state)? {
                return Ok(rows);
            }
        }
    }
}
