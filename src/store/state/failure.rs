//! The failures of runs.

use tokio_postgres::{Row as PgRow, types::Type};

use super::super::{Store, StoreError, statement::Statement};

/// A failure as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredFailure {
    /// The organization.
    pub organization_id: String,
    /// The column; empty for the row as a whole.
    pub field: String,
    /// The stable reason.
    pub reason: String,
    /// The key id; empty if it is unknown.
    pub key_id: String,
    /// The text for the operator.
    pub message: String,
}

/// Some failures of a run.
pub type FailurePage = Vec<StoredFailure>;

const ADD_FAILURES: Statement = Statement {
    text: "-- add_failures\n\
           INSERT INTO nico_rewrap.failures \
           SELECT $1, * FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::text[]) \
           ON CONFLICT DO NOTHING",
    types: &[
        Type::TEXT,
        Type::TEXT_ARRAY,
        Type::TEXT_ARRAY,
        Type::TEXT_ARRAY,
        Type::TEXT_ARRAY,
        Type::TEXT_ARRAY,
    ],
};

const LIST_FAILURES: Statement = Statement {
    text: "-- list_failures\n\
           SELECT organization_id, field, reason, key_id, message FROM nico_rewrap.failures \
           WHERE run_id = $1 AND (organization_id, field) > ($2, $3) \
           ORDER BY organization_id, field LIMIT $4",
    types: &[Type::TEXT, Type::TEXT, Type::TEXT, Type::INT8],
};

impl Store {
    /// Adds failures to a run.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the state can't be written.
    pub async fn add_failures(
        &self,
        run_id: &str,
        failures: &[StoredFailure],
    ) -> Result<(), StoreError> {
        let column = |of: fn(&StoredFailure) -> &str| failures.iter().map(of).collect::<Vec<_>>();
        self.state_query(
            &ADD_FAILURES,
            &[
                &run_id,
                &column(|failure| &failure.organization_id),
                &column(|failure| &failure.field),
                &column(|failure| &failure.reason),
                &column(|failure| &failure.key_id),
                &column(|failure| &failure.message),
            ],
        )
        .await?;
        Ok(())
    }

    /// Reads at most `limit` failures of a run, in ascending order, after the given
    /// organization and column.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the state can't be read.
    pub async fn stored_failures(
        &self,
        run_id: &str,
        after: (&str, &str),
        limit: u32,
    ) -> Result<FailurePage, StoreError> {
        let rows = self
            .state_query(
                &LIST_FAILURES,
                &[&run_id, &after.0, &after.1, &i64::from(limit)],
            )
            .await?;
        let failure = |row: &PgRow| -> Result<_, StoreError> {
            Ok(StoredFailure {
                organization_id: row.try_get(0)?,
                field: row.try_get(1)?,
                reason: row.try_get(2)?,
                key_id: row.try_get(3)?,
                message: row.try_get(4)?,
            })
        };
        rows.iter().map(failure).collect()
    }
}
