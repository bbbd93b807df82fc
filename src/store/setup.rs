//! Faults in how the database is set up. No retry mends them, so they are told apart from
//! a database that is unavailable for a while.

use thiserror::Error;

/// The database answers, and this program cannot do its work there until somebody changes
/// the database or the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SetupError {
    /// The run cannot be sure that it sees every row.
    #[error("{0}")]
    RowsNotVisible(#[from] Hidden),
    /// The role lacks these privileges.
    #[error(
        "the database role lacks {0}: grant it (deploy/postgres/role.sql has all grants on the \
         tables)"
    )]
    Privilege(String),
    /// A table or column is missing, or is not what nico-api's migrations make.
    #[error("{0}: database_url must name nico-api's database, with nico-api's migrations run")]
    Schema(String),
    /// The database refuses the role, its password, or the database's name.
    #[error("{0}: correct database_url or the role, and check pg_hba.conf")]
    Login(String),
    /// The role may not write at all.
    #[error(
        "transactions of the database role are read-only: reset default_transaction_read_only \
         for the role and the database"
    )]
    ReadOnly,
    /// An UPDATE would fail for every row.
    #[error("{0}")]
    Update(String),
}

impl SetupError {
    /// The stable reason, for programs.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::RowsNotVisible(_) => "ROWS_NOT_VISIBLE",
            Self::Privilege(_) => "DATABASE_PRIVILEGE",
            Self::Schema(_) => "DATABASE_SCHEMA",
            Self::Login(_) => "DATABASE_LOGIN",
            Self::ReadOnly => "DATABASE_READ_ONLY",
            Self::Update(_) => "DATABASE_REFUSES_UPDATES",
        }
    }
}

/// Why rows can be there that this program does not see.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Hidden {
    /// A policy can hide rows from the role.
    #[error(
        "row-level security on {tables} can hide rows from the database role {role:?}: give the \
         role BYPASSRLS (ALTER ROLE ... BYPASSRLS), or a policy for SELECT and UPDATE that is \
         USING (true) for it; if the role owns the table, NO FORCE ROW LEVEL SECURITY does it too"
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
         (ALTER ROLE ... BYPASSRLS), or a policy for SELECT and UPDATE that is USING (true) for it"
    )]
    BySomePolicy,
    /// There is a view, or a foreign table, in the place of a table.
    #[error(
        "{0} is not an ordinary table and can hide rows: database_url must name nico-api's own \
         tables, along the search_path of the database role"
    )]
    NotATable(String),
    /// The index does not show what is in the table.
    #[error(
        "the index {index} does not agree with tenant_identity_config: of {missing} organizations \
         or more that are in the table, the index does not show some, or shows them in a wrong \
         order, and it shows {repeated} more than once. Run REINDEX INDEX {index}, and run again"
    )]
    ByIndex {
        /// The index of the primary key.
        index: String,
        /// Organizations that a walk along the index passed over.
        missing: u64,
        /// Organizations that it came to more than once.
        repeated: u64,
    },
    /// Postgres cannot read a page of the table or of its index.
    #[error(
        "Postgres cannot read a part of tenant_identity_config or of its index (SQLSTATE {0}): \
         its log names the place; repair it (REINDEX, or a backup), and run again"
    )]
    ByDamage(String),
}
