//! Censuses, and the ledger with their results.

use std::time::SystemTime;

use tokio_postgres::types::Type;

use super::super::{Store, StoreError, statement::Statement};

/// The ledger as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredLedger {
    /// The number of its changes.
    pub sequence: i64,
    /// The ledger as JSON.
    pub document: String,
    /// The time by the clock of the database.
    pub now: SystemTime,
}

const READ_LEDGER: Statement = Statement {
    text: "-- read_ledger\nSELECT sequence, document, clock_timestamp() FROM nico_rewrap.ledger",
    types: &[],
};

// Writes the census and the ledger in one transaction. Writes nothing if the sequence of the ledger
// has changed.
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

// The sequence stays the same: no census was recorded, so no census in progress becomes late.
const UPDATE_LEDGER: Statement = Statement {
    text: "-- update_ledger\n\
           UPDATE nico_rewrap.ledger SET document = $2 WHERE sequence = $1 RETURNING sequence",
    types: &[Type::INT8, Type::TEXT],
};

const READ_CENSUS: Statement = Statement {
    text: "-- read_census\n\
           SELECT document FROM nico_rewrap.censuses WHERE run_id = $1 \
           ORDER BY sequence DESC LIMIT 1",
    types: &[Type::TEXT],
};

// Keeps the census that `ListKeys` shows, even if 1,000 late censuses were recorded after it.
const PRUNE_CENSUSES: Statement = Statement {
    text: "-- prune_censuses\n\
           DELETE FROM nico_rewrap.censuses WHERE run_id <> $1 AND sequence IN (\
             SELECT sequence FROM nico_rewrap.censuses ORDER BY sequence DESC OFFSET 1000)",
    types: &[Type::TEXT],
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
            now: row.try_get(2)?,
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

    /// Writes the ledger without a census. A census in progress becomes late. Returns false under
    /// the same condition as [`Store::record_census`].
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the state can't be written.
    pub async fn write_ledger(&self, before: i64, ledger: &str) -> Result<bool, StoreError> {
        let rows = self.state_query(&WRITE_LEDGER, &[&before, &ledger]).await?;
        Ok(!rows.is_empty())
    }

    /// Writes the ledger without a census and keeps its sequence. Returns false and writes nothing
    /// if the stored ledger has another sequence than `before`.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the state can't be written.
    pub async fn update_ledger(&self, before: i64, ledger: &str) -> Result<bool, StoreError> {
        let rows = self
            .state_query(&UPDATE_LEDGER, &[&before, &ledger])
            .await?;
        Ok(!rows.is_empty())
    }

    /// Reads the census of a run.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the state can't be read.
    pub async fn stored_census(&self, run_id: &str) -> Result<Option<String>, StoreError> {
        let rows = self.state_query(&READ_CENSUS, &[&run_id]).await?;
        Ok(rows.first().map(|row| row.try_get(0)).transpose()?)
    }

    /// Deletes all censuses except the last 1,000 and the census of the run `keep`.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the state can't be written.
    pub async fn prune_censuses(&self, keep: &str) -> Result<(), StoreError> {
        self.state_query(&PRUNE_CENSUSES, &[&keep]).await?;
        Ok(())
    }
}
