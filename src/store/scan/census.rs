//! Reads which key ids the secrets name, for a census.
//!
//! The key id is at the beginning of a text. So Postgres sends only the first characters of
//! each text, and decompresses no more than these. Only if these do not contain the key id, the
//! scan reads the whole text, by the address of its row. If Postgres cannot read a text, the
//! scan must begin again in the careful mode, which reads each batch of texts after a
//! savepoint.

use std::collections::HashMap;

use futures_util::{
    FutureExt,
    future::{self, BoxFuture},
};
use tokio_postgres::{
    Row as PgRow,
    types::{ToSql, Type},
};

use super::{Address, BATCH_BYTES, RawText, ScanLease, Snapshot, fetch};
use crate::{
    domain::{
        census::{CensusRow, CountedSecret},
        envelope::{Buffers, Envelope, MAX_TEXT_BYTES, key_id_of_prefix},
        rewrap::{COLUMN_COUNT, COLUMNS},
    },
    store::{Store, StoreError, statement::Statement},
};

const FETCH: Statement = fetch!("rewrap_census");

macro_rules! whole {
    ($column:literal) => {
        concat!(
            "CASE WHEN octet_length(c.",
            $column,
            ") <= 1048576 THEN c.",
            $column,
            " END"
        )
    };
}

const WHOLE_TEXTS: Statement = Statement {
    text: concat!(
        "-- census_texts\nSELECT c.ctid, ",
        whole!("encrypted_signing_key_1"),
        ", ",
        whole!("encrypted_signing_key_2"),
        ", ",
        whole!("encrypted_auth_method_config"),
        " FROM tenant_identity_config c WHERE c.ctid = ANY($1::text[]::tid[])"
    ),
    types: &[Type::TEXT_ARRAY],
};

macro_rules! whole_text {
    ($column:literal) => {
        Statement {
            text: concat!(
                "-- census_text\nSELECT c.ctid, ",
                whole!($column),
                " FROM tenant_identity_config c WHERE c.ctid = ANY($1::text[]::tid[])"
            ),
            types: &[Type::TEXT_ARRAY],
        }
    };
}

/// In the order of [`COLUMNS`].
const WHOLE_TEXT: [Statement; COLUMN_COUNT] = [
    whole_text!("encrypted_signing_key_1"),
    whole_text!("encrypted_signing_key_2"),
    whole_text!("encrypted_auth_method_config"),
];

/// How a scan reads texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScanMode {
    /// The first characters of each text.
    Prefix {
        /// How many characters.
        characters: usize,
    },
    /// Whole texts, in batches after a savepoint. A text that Postgres cannot read counts as
    /// unreadable.
    Careful,
}

/// Reads the whole table in one snapshot.
pub struct CensusScan<'a> {
    store: &'a Store,
    lease: ScanLease<'a>,
    mode: ScanMode,
    snapshot: Snapshot,
    buffers: Buffers,
    /// The batch that was read ahead.
    ahead: Vec<PgRow>,
}

impl Store {
    /// Takes a snapshot and begins to read the table. With `exclusively`, this returns `None`
    /// if another instance reads exclusively now.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the table can't be read.
    pub async fn census(
        &self,
        mode: ScanMode,
        exclusively: bool,
    ) -> Result<Option<CensusScan<'_>>, StoreError> {
        let (lease, snapshot) = self.begin_scan().await?;
        if exclusively && !self.try_lock_census(&lease).await? {
            self.within(lease.batch_execute("ROLLBACK")).await?;
            lease.release();
            return Ok(None);
        }
        self.within(lease.batch_execute(&declare(mode))).await?;
        let ahead = self.query(&lease, &FETCH, &[]).await?;
        Ok(Some(CensusScan {
            store: self,
            lease,
            mode,
            snapshot,
            buffers: Buffers::default(),
            ahead,
        }))
    }
}

/// Declares the cursor of the scan.
fn declare(mode: ScanMode) -> String {
    let mut columns = String::new();
    for column in COLUMNS {
        columns += &match mode {
            ScanMode::Prefix { characters } => {
                format!(", octet_length(c.{column}), left(c.{column}, {characters})")
            }
            ScanMode::Careful => format!(", octet_length(c.{column}), NULL::text"),
        };
    }
    format!(
        "DECLARE rewrap_census NO SCROLL CURSOR FOR \
         SELECT c.ctid, c.organization_id{columns} FROM tenant_identity_config c"
    )
}

impl CensusScan<'_> {
    /// The snapshot.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.snapshot
    }

    /// The next rows; `None` at the end of the table.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the table can't be read. If [`StoreError::is_of_some_row`] holds,
    /// the careful mode can read it.
    pub async fn next(&mut self) -> Result<Option<Vec<CensusRow>>, StoreError> {
        let rows = std::mem::take(&mut self.ahead);
        if rows.is_empty() {
            return Ok(None);
        }
        // The request goes out first, so that Postgres reads while this program counts.
        let fetch = self.store.query(&self.lease, &FETCH, &[]);
        let buffers = &mut self.buffers;
        let classify = async {
            rows.iter()
                .map(|row| Found::from_pg(row, buffers))
                .collect()
        };
        let (ahead, found): (_, Result<Vec<Found>, StoreError>) =
            future::join(fetch, classify).await;
        self.ahead = ahead?;
        // A run that waits for this connection sees that the database answers.
        self.store.row_answers.note();
        let mut found = found?;
        self.read_whole_texts(&mut found).await?;
        Ok(Some(found.into_iter().map(|found| found.row).collect()))
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

    /// Reads the texts whose first characters do not contain the key id.
    async fn read_whole_texts(&mut self, found: &mut [Found]) -> Result<(), StoreError> {
        let mut open: Vec<&mut Found> = found.iter_mut().filter(|row| row.bytes > 0).collect();
        let mut rest = open.as_mut_slice();
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = |row: &&&mut Found| {
                bytes += row.bytes;
                bytes <= BATCH_BYTES
            };
            let count = rest.iter().take_while(fits).count().max(1);
            let (batch, others) = rest.split_at_mut(count);
            let addresses: Vec<String> = batch.iter().map(|row| row.address.to_string()).collect();
            let mut texts = match self.mode {
                ScanMode::Prefix { .. } => {
                    let params: [&(dyn ToSql + Sync); 1] = [&addresses];
                    let rows = self.store.query(&self.lease, &WHOLE_TEXTS, &params).await?;
                    rows.iter().map(whole_texts).collect::<Result<_, _>>()?
                }
                ScanMode::Careful => {
                    let savepoint = self.lease.batch_execute("SAVEPOINT texts");
                    self.store.within(savepoint).await?;
                    let mut texts = HashMap::new();
                    self.carefully(&addresses, &mut texts).await?;
                    texts
                }
            };
            for row in batch {
                let texts = texts.remove(&row.address).unwrap_or_default();
                row.settle(&texts, &mut self.buffers);
            }
            rest = others;
        }
        Ok(())
    }

    /// Reads the texts at `addresses`. A batch that Postgres cannot read is split in halves,
    /// down to single texts.
    fn carefully<'s>(
        &'s self,
        addresses: &'s [String],
        texts: &'s mut HashMap<Address, Texts>,
    ) -> BoxFuture<'s, Result<(), StoreError>> {
        async move {
            if let Some(rows) = self.try_read(&WHOLE_TEXTS, addresses).await? {
                for row in &rows {
                    let (address, found) = whole_texts(row)?;
                    texts.insert(address, found);
                }
            } else if addresses.len() > 1 {
                let (first, second) = addresses.split_at(addresses.len() / 2);
                self.carefully(first, texts).await?;
                self.carefully(second, texts).await?;
            } else {
                for (column, sql) in WHOLE_TEXT.iter().enumerate() {
                    let rows = self.try_read(sql, addresses).await?.unwrap_or_default();
                    if let Some(row) = rows.first() {
                        let text = row.try_get::<_, Option<RawText>>(1)?;
                        let text = text.map(|text| text.0.to_owned());
                        texts.entry(row.try_get(0)?).or_default()[column] = text;
                    }
                }
            }
            Ok(())
        }
        .boxed()
    }

    /// Runs a statement after the savepoint. `None` if Postgres cannot read some row.
    async fn try_read(
        &self,
        sql: &'static Statement,
        addresses: &[String],
    ) -> Result<Option<Vec<PgRow>>, StoreError> {
        match self.store.query(&self.lease, sql, &[&addresses]).await {
            Ok(rows) => Ok(Some(rows)),
            Err(error) if error.is_of_some_row() => {
                let back = self.lease.batch_execute("ROLLBACK TO texts");
                self.store.within(back).await?;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// The whole texts of a row. `None` for an absent one, and for one that is too long or that
/// Postgres cannot read.
type Texts = [Option<Vec<u8>>; COLUMN_COUNT];

fn whole_texts(row: &PgRow) -> Result<(Address, Texts), StoreError> {
    let text = |column| -> Result<_, StoreError> {
        let text = row.try_get::<_, Option<RawText>>(column)?;
        Ok(text.map(|text| text.0.to_owned()))
    };
    Ok((row.try_get(0)?, [text(1)?, text(2)?, text(3)?]))
}

/// A row of the scan.
struct Found {
    row: CensusRow,
    address: Address,
    /// The columns whose whole text must be read.
    is_open: [bool; COLUMN_COUNT],
    /// The size of these texts in bytes.
    bytes: usize,
}

impl Found {
    fn from_pg(row: &PgRow, buffers: &mut Buffers) -> Result<Self, StoreError> {
        let organization_id: Option<RawText> = row.try_get(1)?;
        let organization_id = organization_id.map_or(&b""[..], |id| id.0);
        let mut found = Self {
            row: CensusRow {
                organization_id: String::from_utf8_lossy(organization_id).into_owned(),
                secrets: [const { CountedSecret::Absent }; COLUMN_COUNT],
            },
            address: row.try_get(0)?,
            is_open: [false; COLUMN_COUNT],
            bytes: 0,
        };
        for column in 0..COLUMN_COUNT {
            let length: Option<i32> = row.try_get(2 + 2 * column)?;
            let length = usize::try_from(length.unwrap_or(0)).unwrap_or(0);
            let prefix: Option<RawText> = row.try_get(3 + 2 * column)?;
            let prefix = prefix.and_then(|prefix| str::from_utf8(prefix.0).ok());
            // The length of a text without white space is a multiple of four.
            let prefix = prefix.filter(|prefix| length > prefix.len() && length % 4 == 0);
            let id = prefix.and_then(|prefix| key_id_of_prefix(prefix, buffers));
            found.row.secrets[column] = match id {
                _ if length == 0 => continue,
                _ if length > MAX_TEXT_BYTES => CountedSecret::Unreadable,
                Some(id) => CountedSecret::Under(id.into_owned()),
                None => {
                    found.is_open[column] = true;
                    found.bytes += length;
                    CountedSecret::Unreadable
                }
            };
        }
        Ok(found)
    }

    /// Takes the key ids out of whole texts.
    fn settle(&mut self, texts: &Texts, buffers: &mut Buffers) {
        for ((secret, text), is_open) in self.row.secrets.iter_mut().zip(texts).zip(self.is_open) {
            let text = text.as_deref().filter(|_| is_open);
            let text = text.and_then(|text| str::from_utf8(text).ok());
            let envelope = text.and_then(|text| Envelope::parse(text, buffers).ok());
            if let Some(envelope) = envelope {
                *secret = CountedSecret::Under(envelope.key_id().to_owned());
            }
        }
    }
}
