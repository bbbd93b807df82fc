//! Problems with the setup of the database. A retry cannot fix them, so they are kept apart
//! from a database that is unavailable for a while.

use thiserror::Error;

/// The database answers, but an operator must change it or the configuration first.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SetupError {
    /// The run could miss rows.
    #[error("{0}")]
    RowsNotVisible(#[from] Hidden),
    /// The role lacks this privilege.
    #[error(
        "the database role lacks {0}: grant it (deploy/postgres/role.sql has all grants on the \
         tables)"
    )]
    Privilege(String),
    /// A table or column is missing, or differs from what nico-api's migrations create.
    #[error(
        "{0}: database_url must name nico-api's database, and nico-api's migrations must have run"
    )]
    Schema(String),
    /// A table or column of the schema `nico_rewrap` is missing or differs.
    #[error("{0}: run `nico-rewrap state migrate`, which creates the schema or says what to do")]
    StateSchema(String),
    /// The database refuses the role, its password, or the database's name.
    #[error("{0}: correct database_url or the role, and check pg_hba.conf")]
    Login(String),
    /// All transactions of the role are read-only.
    #[error(
        "transactions of the database role are read-only: reset default_transaction_read_only \
         for the role and the database"
    )]
    ReadOnly,
    /// A trigger was created during the run. It runs too late for the write to see it.
    #[error(
        "{0} was created or enabled during this run and runs after a row is written: it may have \
         put back texts or versions that this run wrote before. Check what it does, compare \
         tenants.version, and run again: the next run reads every row that it writes again"
    )]
    TriggerCreated(String),
    /// Every UPDATE would fail.
    #[error("{0}")]
    Update(String),
}

impl SetupError {
    /// The stable reason for programs.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::RowsNotVisible(_) => "ROWS_NOT_VISIBLE",
            Self::Privilege(_) => "DATABASE_PRIVILEGE",
            Self::Schema(_) | Self::StateSchema(_) => "DATABASE_SCHEMA",
            Self::Login(_) => "DATABASE_LOGIN",
            Self::ReadOnly => "DATABASE_READ_ONLY",
            Self::TriggerCreated(_) => "TRIGGER_CREATED",
            Self::Update(_) => "DATABASE_REFUSES_UPDATES",
        }
    }
}

/// Why the table can contain rows that this program does not see.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Hidden {
    /// A policy can hide rows from the role.
    #[error(
        "row-level security on {tables} can hide rows from the database role {role:?}: give the \
         role BYPASSRLS (ALTER ROLE ... BYPASSRLS), or a policy for SELECT and UPDATE with \
         USING (true); if the role owns the table, NO FORCE ROW LEVEL SECURITY is enough"
    )]
    ByPolicy {
        /// The tables with policies.
        tables: String,
        /// The role of the session.
        role: String,
    },
    /// A policy came into force while a statement ran.
    #[error(
        "row-level security can hide rows from the database role: give the role BYPASSRLS \
         (ALTER ROLE ... BYPASSRLS), or a policy for SELECT and UPDATE with USING (true)"
    )]
    BySomePolicy,
    /// A view or a foreign table has the name of the table.
    #[error(
        "{0} is not an ordinary table and can hide rows: database_url must name nico-api's own \
         tables, as found along the search_path of the database role"
    )]
    NotATable(String),
    /// The index of the primary key differs from the table.
    #[error(
        "the index {index} does not match tenant_identity_config: it omits or misplaces at least \
         {missing} organizations of the table, and {repeated} are there more than once. Run \
         REINDEX INDEX {index}, then run again. If REINDEX finds duplicate rows, remove the \
         wrong ones first"
    )]
    ByIndex {
        /// The index of the primary key.
        index: String,
        /// Organizations that a scan along the index did not return.
        missing: u64,
        /// Organizations that the scan returned more than once.
        repeated: u64,
    },
    /// Postgres cannot read some blocks of the table.
    #[error(
        "Postgres cannot read {0} blocks of tenant_identity_config. The organizations in them \
         failed, as far as their ids are known; there may be others without a name. All other \
         rows are done. The log of Postgres names the blocks: restore them from a backup, and \
         run again"
    )]
    InDamagedBlocks(u64),
    /// Postgres cannot read a page of the table or of its index.
    #[error(
        "Postgres cannot read a part of tenant_identity_config or of its index (SQLSTATE {0}): \
         its log names the place; repair it (REINDEX, or a backup), and run again"
    )]
    ByDamage(String),
}
