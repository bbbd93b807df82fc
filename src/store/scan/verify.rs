//! Reads whole rows for a verify: the secrets, and the data that nico-api stores about them.

use std::collections::HashMap;

use futures_util::{FutureExt, future::BoxFuture};
use tokio_postgres::{Row as PgRow, types::Type};

use super::{Address, BATCH_BYTES, RawText, ScanLease, Snapshot, fetch};
use crate::{
    domain::{
        rewrap::{COLUMN_COUNT, COLUMNS},
        verify::VerifyRow,
    },
    store::{RowError, Store, StoreError, Unreadable, statement::Statement},
};

const FETCH: Statement = fetch!("rewrap_verify");

macro_rules! columns {
    () => {
        concat!(
            "CASE WHEN octet_length(c.encrypted_signing_key_1) > 1048576 \
               THEN '<more than 1 MiB>' ELSE c.encrypted_signing_key_1 END, \
             CASE WHEN octet_length(c.encrypted_signing_key_2) > 1048576 \
               THEN '<more than 1 MiB>' ELSE c.encrypted_signing_key_2 END, \
             CASE WHEN octet_length(c.encrypted_auth_method_config) > 1048576 \
               THEN '<more than 1 MiB>' ELSE c.encrypted_auth_method_config END, \
             left(c.signing_key_public_1::text, 8192), left(c.signing_key_public_2::text, 8192), \
             c.auth_method::text"
        )
    };
}

const ROWS: Statement = Statement {
    text: concat!(
        "-- verify_rows\nSELECT c.ctid, ",
        columns!(),
        " FROM tenant_identity_config c WHERE c.ctid = ANY($1::text[]::tid[])"
    ),
    types: &[Type::TEXT_ARRAY],
};

const ONE_ROW: Statement = Statement {
    text: concat!(
        "-- verify_row\nSELECT c.ctid, ",
        columns!(),
        " FROM tenant_identity_config c WHERE c.organization_id = $1"
    ),
    types: &[Type::TEXT],
};

const DECLARE: &str = "DECLARE rewrap_verify NO SCROLL CURSOR FOR \
     SELECT c.ctid, c.organization_id, \
       coalesce(octet_length(c.encrypted_signing_key_1), 0)::bigint \
         + coalesce(octet_length(c.encrypted_signing_key_2), 0) \
         + coalesce(octet_length(c.encrypted_auth_method_config), 0) \
     FROM tenant_identity_config c";

/// A row that was read, or the reason why Postgres cannot read it.
pub type Read = Result<(String, VerifyRow), Unreadable>;

/// Reads the whole rows of a table in one snapshot.
pub struct VerifyScan<'a> {
    store: &'a Store,
    lease: ScanLease<'a>,
    snapshot: Snapshot,
    /// Rows whose content was not read yet, the last one first.
    open: Vec<Open>,
    at_end: bool,
}

/// A row of the cursor.
struct Open {
    address: Address,
    id: Vec<u8>,
    bytes: usize,
}

impl Store {
    /// Takes a snapshot and begins to read the table.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the table can't be read.
    pub async fn verify_scan(&self) -> Result<VerifyScan<'_>, StoreError> {
        let (lease, snapshot) = self.begin_scan().await?;
        self.within(lease.batch_execute(DECLARE)).await?;
        Ok(VerifyScan {
            store: self,
            lease,
            snapshot,
            open: Vec::new(),
            at_end: false,
        })
    }

    /// Reads the row of one organization; `None` if there is none.
    ///
    /// # Errors
    ///
    /// [`StoreError::Row`] when this row can't be read; otherwise as [`Store::verify_scan`].
    pub async fn verify_row(&self, organization_id: &str) -> Result<Option<VerifyRow>, StoreError> {
        match self.read_raw(&ONE_ROW, &[&organization_id]).await {
            Ok(rows) => rows.first().map(|row| Ok(from_pg(row)?.1)).transpose(),
            Err(error) if error.is_of_some_row() => Err(unreadable(&error).into()),
            Err(error) => Err(error.into_unavailable()),
        }
    }
}

impl VerifyScan<'_> {
    /// The snapshot.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.snapshot
    }

    /// The next rows; `None` at the end of the table.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the table can't be read.
    pub async fn next(&mut self) -> Result<Option<Vec<Read>>, StoreError> {
        if self.open.is_empty() && !self.at_end {
            let rows = self.store.query(&self.lease, &FETCH, &[]).await?;
            self.at_end = rows.is_empty();
            self.open = rows
                .iter()
                .rev()
                .map(Open::from_pg)
                .collect::<Result<_, _>>()?;
        }
        if self.open.is_empty() {
            return Ok(None);
        }
        self.store.row_answers.note();
        let mut bytes = 0;
        let fits = |row: &&Open| {
            bytes += row.bytes;
            bytes <= BATCH_BYTES
        };
        let count = self.open.iter().rev().take_while(fits).count().max(1);
        let batch = self.open.split_off(self.open.len() - count);
        let savepoint = self.lease.batch_execute("SAVEPOINT batch");
        self.store.within(savepoint).await?;
        let mut found = HashMap::with_capacity(count);
        let addresses: Vec<String> = batch.iter().map(|row| row.address.to_string()).collect();
        self.read(&addresses, &batch, &mut found).await?;
        let rows = batch.into_iter().rev().map(|row| {
            let id = || String::from_utf8_lossy(&row.id).into_owned();
            match found.remove(&row.address) {
                Some(Ok(content)) => Ok((id(), content)),
                Some(Err(error)) => Err(Unreadable { id: row.id, error }),
                // Impossible within one snapshot.
                None => Err(Unreadable {
                    id: row.id,
                    error: RowError::Ignored,
                }),
            }
        });
        Ok(Some(rows.collect()))
    }

    /// Reads the rows at `addresses`. A batch that Postgres cannot read is split in halves,
    /// down to single rows.
    fn read<'s>(
        &'s self,
        addresses: &'s [String],
        batch: &'s [Open],
        found: &'s mut HashMap<Address, Result<VerifyRow, RowError>>,
    ) -> BoxFuture<'s, Result<(), StoreError>> {
        async move {
            match self.store.query(&self.lease, &ROWS, &[&addresses]).await {
                Ok(rows) => {
                    for row in &rows {
                        let (address, row) = from_pg(row)?;
                        found.insert(address, Ok(row));
                    }
                }
                Err(error) if error.is_of_some_row() => {
                    let back = self.lease.batch_execute("ROLLBACK TO batch");
                    self.store.within(back).await?;
                    let half = addresses.len() / 2;
                    if half == 0 {
                        found.insert(batch[0].address, Err(unreadable(&error)));
                    } else {
                        self.read(&addresses[..half], &batch[..half], found).await?;
                        self.read(&addresses[half..], &batch[half..], found).await?;
                    }
                }
                Err(error) => return Err(error),
            }
            Ok(())
        }
        .boxed()
    }

    /// Ends the transaction.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the connection is lost.
    pub async fn finish(self) -> Result<(), StoreError> {
        let commit = self.lease.batch_execute("COMMIT");
        self.store.within(commit).await?;
        self.lease.release();
        Ok(())
    }
}

impl Open {
    fn from_pg(row: &PgRow) -> Result<Self, StoreError> {
        let id: Option<RawText> = row.try_get(1)?;
        Ok(Self {
            address: row.try_get(0)?,
            id: id.map_or_else(Vec::new, |id| id.0.to_owned()),
            bytes: usize::try_from(row.try_get::<_, i64>(2)?).unwrap_or(0),
        })
    }
}

fn from_pg(row: &PgRow) -> Result<(Address, VerifyRow), StoreError> {
    let text = |column| -> Result<Option<String>, StoreError> {
        let text = row.try_get::<_, Option<RawText>>(column)?;
        Ok(text.map(|text| String::from_utf8_lossy(text.0).into_owned()))
    };
    const _: () = assert!(COLUMN_COUNT == 3 && COLUMNS.len() == 3);
    Ok((
        row.try_get(0)?,
        VerifyRow {
            texts: [text(1)?, text(2)?, text(3)?],
            public_keys: [text(4)?, text(5)?],
            auth_method: text(6)?,
        },
    ))
}

fn unreadable(error: &StoreError) -> RowError {
    match error {
        StoreError::Row(RowError::Refused(sqlstate)) => RowError::Unreadable {
            columns: Vec::new(),
            sqlstate: sqlstate.clone(),
        },
        StoreError::Row(error) => error.clone(),
        _ => RowError::Unreadable {
            columns: Vec::new(),
            sqlstate: "unknown".to_owned(),
        },
    }
}
