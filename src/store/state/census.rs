//! Censuses, and the ledger with their results.

use tokio_postgres::types::Type;

use super::super::{Store, StoreError, statement::Statement};

/// The ledger as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredLedger {
    /// How often it was changed.
    pub sequence: i64,
    /// The ledger as JSON.
    pub document: String,
}

const READ_LEDGER: Statement = Statement {
    text: "-- read_ledger\nSELECT sequence, document FROM nico_rewrap.ledger",
    types: &[],
};

// The census and the ledger in one transaction. If another census was recorded since, nothing
// is written.
const RECORD_CENSUS: Statement = Statement {
    text: "-- record_census\n\
           WITH recorded AS (UPDATE nico_rewrap.ledger SET sequence = sequence + 1, document = $2 \
             WHERE sequence = $1 RETURNING sequence), \
           added AS (INSERT INTO nico_rewrap.censuses (run_id, document) \
             SELECT $3, $4 FROM recorded) \
           SELECT sequence FROM recorded",
    types: &[Type::INT8, Type::TEXT, Type::TEXT, Type::TEXT],
};

const WRITE_LEDGER: Statement = Statement {
    text: "-- write_ledger\n\
           UPDATE nico_rewrap.ledger SET sequence = sequence + 1, document = $2 \
           WHERE sequence = $1 RETURNING sequence",
    types: &[Type::INT8, Type::TEXT],
};

const LAST_CENSUS: Statement = Statement {
    text: "-- last_census\n\
           SELECT document FROM nico_rewrap.censuses ORDER BY sequence DESC LIMIT 1",
    types: &[],
};

const PRUNE_CENSUSES: Statement = Statement {
    text: "-- prune_censuses\n\
           DELETE FROM nico_rewrap.censuses WHERE sequence IN (\
             SELECT sequence FROM nico_rewrap.censuses ORDER BY sequence DESC OFFSET 1000)",
    types: &[],
};

impl Store {
    /// Reads the ledger.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the state can't be read.
    pub async fn ledger(&self) -> Result<StoredLedger, StoreError> {
        let rows = self.state_query(&READ_LEDGER, &[]).await?;
        let row = rows.first().ok_or_else(StoreError::no_answer)?;
        Ok(StoredLedger {
            sequence: row.try_get(0)?,
            document: row.try_get(1)?,
        })
    }

    /// Records a census and the ledger that contains it. Returns false and writes nothing if
    /// the stored ledger has another sequence than `before`: read it and try again.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the state can't be written.
    pub async fn record_census(
        &self,
        before: i64,
        ledger: &str,
        run_id: &str,
        census: &str,
    ) -> Result<bool, StoreError> {
        let rows = self
            .state_query(&RECORD_CENSUS, &[&before, &ledger, &run_id, &census])
            .await?;
        Ok(!rows.is_empty())
    }

    /// Writes the ledger without a census. Returns false and writes nothing as
    /// [`Store::record_census`] does.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the state can't be written.
    pub async fn write_ledger(&self, before: i64, ledger: &str) -> Result<bool, StoreError> {
        let rows = self.state_query(&WRITE_LEDGER, &[&before, &ledger]).await?;
        Ok(!rows.is_empty())
    }

    /// Reads the last recorded census.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the state can't be read.
    pub async fn last_census(&self) -> Result<Option<String>, StoreError> {
        let rows = self.state_query(&LAST_CENSUS, &[]).await?;
        Ok(rows.first().map(|row| row.try_get(0)).transpose()?)
    }

    /// Deletes all censuses but the last 1,000.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the state can't be written.
    pub async fn prune_censuses(&self) -> Result<(), StoreError> {
        self.state_query(&PRUNE_CENSUSES, &[]).await?;
        Ok(())
    }
}
