//! Receipts. They form a chain, and are never deleted.

use tokio_postgres::{Row as PgRow, types::Type};

use super::super::{Store, StoreError, statement::Statement};

/// A receipt as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredReceipt {
    /// The SHA-256 of `document`, in hexadecimal.
    pub sha256: String,
    /// The receipt: the exact bytes that were hashed.
    pub document: String,
}

/// The name of the row in `leases` with the hash of the last receipt. Postgres locks and reads the
/// newest version of this row before it adds a receipt, so the chain has no branches even if
/// several instances add at once.
const END: &str = "end of the receipts";

// Adds the receipt only if the previous receipt is still the last one.
const ADD_RECEIPT: Statement = Statement {
    text: "-- add_receipt\n\
           WITH moved AS (\
             INSERT INTO nico_rewrap.leases AS l (name, holder, document, expires) \
             VALUES ($5, '', $2, 'infinity') \
             ON CONFLICT (name) DO UPDATE SET document = excluded.document \
               WHERE l.document = $4 \
             RETURNING name) \
           INSERT INTO nico_rewrap.receipts (run_id, sha256, document) \
           SELECT $1, $2, $3 FROM moved \
           RETURNING sequence",
    types: &[Type::TEXT, Type::TEXT, Type::TEXT, Type::TEXT, Type::TEXT],
};

const END_OF_RECEIPTS: Statement = Statement {
    text: "-- end_of_receipts\n\
           SELECT coalesce((SELECT document FROM nico_rewrap.leases WHERE name = $1), \
             (SELECT sha256 FROM nico_rewrap.receipts ORDER BY sequence DESC LIMIT 1), '')",
    types: &[Type::TEXT],
};

const LAST_RECEIPTS: Statement = Statement {
    text: "-- last_receipts\n\
           SELECT sha256, document FROM nico_rewrap.receipts ORDER BY sequence DESC LIMIT $1",
    types: &[Type::INT8],
};

const READ_RECEIPT: Statement = Statement {
    text: "-- read_receipt\nSELECT sha256, document FROM nico_rewrap.receipts WHERE run_id = $1",
    types: &[Type::TEXT],
};

impl Store {
    /// Adds the receipt of a run. Returns false and writes nothing if the last receipt is
    /// not `previous`.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the state can't be written.
    pub async fn add_receipt(
        &self,
        run_id: &str,
        receipt: &StoredReceipt,
        previous: &str,
    ) -> Result<bool, StoreError> {
        let rows = self
            .state_query(
                &ADD_RECEIPT,
                &[&run_id, &receipt.sha256, &receipt.document, &previous, &END],
            )
            .await?;
        Ok(!rows.is_empty())
    }

    /// The hash of the last receipt. Empty before the first receipt.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the state can't be read.
    pub async fn end_of_receipts(&self) -> Result<String, StoreError> {
        let rows = self.state_query(&END_OF_RECEIPTS, &[&END]).await?;
        let row = rows.first().ok_or_else(StoreError::no_answer)?;
        Ok(row.try_get(0)?)
    }

    /// Reads the last receipts, the newest first.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the state can't be read.
    pub async fn last_receipts(&self, limit: u32) -> Result<Vec<StoredReceipt>, StoreError> {
        let limit = i64::from(limit);
        let rows = self.state_query(&LAST_RECEIPTS, &[&limit]).await?;
        rows.iter().map(from_row).collect()
    }

    /// Reads the receipt of a run.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the state can't be read.
    pub async fn receipt(&self, run_id: &str) -> Result<Option<StoredReceipt>, StoreError> {
        self.one_receipt(&READ_RECEIPT, &[&run_id]).await
    }

    async fn one_receipt(
        &self,
        sql: &'static Statement,
        params: &[&(dyn tokio_postgres::types::ToSql + Sync)],
    ) -> Result<Option<StoredReceipt>, StoreError> {
        let rows = self.state_query(sql, params).await?;
        rows.first().map(from_row).transpose()
    }
}

fn from_row(row: &PgRow) -> Result<StoredReceipt, StoreError> {
    Ok(StoredReceipt {
        sha256: row.try_get(0)?,
        document: row.try_get(1)?,
    })
}
