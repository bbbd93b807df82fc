//! Reads the whole table without an index and finds the rows that a run missed.
//!
//! A run reads pages along the index of the primary key. If that index has lost entries, or
//! its order differs from the current collation, the run silently misses rows. At its end
//! the run therefore reads all ids from the first block of the table to the last, and looks
//! up the ids that it has not visited. All this happens in one snapshot.

use std::{collections::HashMap, pin::pin};

use deadpool_postgres::Object;
use futures_util::StreamExt;
use tokio_postgres::types::{ToSql, Type};

use super::{
    Hidden, SetupError, Store, StoreError,
    damage::{BY_BLOCK, Blocks},
    statement::Statement,
};

/// Maximum number of missed organizations that one sweep looks up. Another sweep takes the
/// rest.
const MAX_MISSED: usize = 10_000;

const ALL_IDS: Statement = Statement {
    text: "-- all_ids\nSELECT c.organization_id FROM tenant_identity_config c",
    types: &[],
};

// For a database with the encoding SQL_ASCII, in which an id need not be UTF-8.
const ALL_ID_BYTES: Statement = Statement {
    text: "-- all_id_bytes\n\
           SELECT convert_to(c.organization_id, 'SQL_ASCII') FROM tenant_identity_config c",
    types: &[],
};

// Which of these organizations the index returns, and the transaction that wrote each row.
// The next transaction id tells how long ago that was.
const BY_INDEX: Statement = Statement {
    text: "-- by_index\n\
           SELECT c.organization_id, c.xmin::text::bigint, \
             pg_snapshot_xmax(pg_current_snapshot())::text::bigint \
           FROM tenant_identity_config c WHERE c.organization_id = ANY($1)",
    types: &[Type::TEXT_ARRAY],
};

const KEY_INDEX: Statement = Statement {
    text: "-- key_index\n\
           SELECT i.indexrelid::regclass::text FROM pg_index i \
           JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0] \
           WHERE i.indrelid = to_regclass('tenant_identity_config') \
             AND a.attname = 'organization_id' \
           ORDER BY i.indisprimary DESC, i.indisunique DESC LIMIT 1",
    types: &[],
};

const IS_IN_TABLE: Statement = Statement {
    text: "-- is_in_table\n\
           SELECT FROM tenant_identity_config c WHERE c.organization_id = $1 LIMIT 1",
    types: &[Type::TEXT],
};

// Makes Postgres read the table itself, from the first block to the last.
macro_rules! without_index {
    () => {
        "SET LOCAL jit = off; SET LOCAL enable_seqscan = on; SET LOCAL max_parallel_workers_per_gather = 0; \
         SET LOCAL enable_indexscan = off; SET LOCAL enable_indexonlyscan = off; \
         SET LOCAL enable_bitmapscan = off"
    };
}

pub(super) use without_index;

/// How the ids of the table are read.
enum Source {
    Table,
    /// As bytes: an id need not be UTF-8.
    Bytes,
    /// Only those in readable blocks.
    Blocks(Blocks),
}

impl Source {
    /// The statement, its parameters, and the settings of its transaction.
    fn statement(&self) -> (&'static Statement, Vec<&(dyn ToSql + Sync)>, &'static str) {
        match self {
            Self::Table => (&ALL_IDS, Vec::new(), without_index!()),
            Self::Bytes => (&ALL_ID_BYTES, Vec::new(), without_index!()),
            Self::Blocks(blocks) => {
                let (sql, [first, end]) = blocks.ids();
                (sql, vec![first, end], BY_BLOCK)
            }
        }
    }

    fn damaged_blocks(&self) -> u64 {
        match self {
            Self::Blocks(blocks) => blocks.damaged,
            Self::Table | Self::Bytes => 0,
        }
    }
}

/// A point in the history of the database. Every transaction with a lower id has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment(pub(super) i64);

impl Moment {
    /// The transaction id.
    #[must_use]
    pub fn number(self) -> i64 {
        self.0
    }
}

/// Organizations that are in the table and were not visited.
#[derive(Debug, Default)]
pub struct Sweep {
    /// Those that the index returns for their id. They are new, or the run missed them.
    pub found: Vec<String>,
    /// How many missed organizations existed before the run began, or are not in the index.
    pub passed_over: u64,
    /// How many rows have an id that another row has, too. Only a damaged index allows that.
    pub repeated: u64,
    /// Number of blocks of the table that Postgres cannot read. Their rows were not compared.
    pub damaged_blocks: u64,
    /// Whether the run missed more organizations than one sweep looks up.
    pub more: bool,
}

impl Store {
    /// Compares the table with the rows that were visited since `start`.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`] or [`StoreError::Setup`] when the table can't be read.
    pub async fn sweep(
        &self,
        start: Moment,
        visited: impl Fn(&[u8]) -> Option<usize>,
    ) -> Result<Sweep, StoreError> {
        let mut swept = self.sweep_table(&Source::Table, start, &visited).await;
        if let Err(error) = &swept
            && error.is_of_some_row()
        {
            if error.is_damage() {
                let blocks = Source::Blocks(Box::pin(self.readable_blocks()).await?);
                swept = self.sweep_table(&blocks, start, &visited).await;
            } else {
                swept = self.sweep_table(&Source::Bytes, start, &visited).await;
            }
        }
        swept.map_err(StoreError::into_unavailable)
    }

    async fn sweep_table(
        &self,
        source: &Source,
        start: Moment,
        visited: &impl Fn(&[u8]) -> Option<usize>,
    ) -> Result<Sweep, StoreError> {
        let mut attempts = 0;
        loop {
            let lease = self.client().await?;
            let swept = self.sweep_once(&lease, source, start, visited).await;
            if let Some(sweep) = self.conclude(lease, swept, &mut attempts).await? {
                return Ok(sweep);
            }
        }
    }

    /// Whether the table contains an organization, read without the index. Returns `false`
    /// if the answer takes longer than a statement may run.
    ///
    /// # Errors
    ///
    /// As [`Store::sweep`].
    pub async fn is_in_table(&self, organization_id: &str) -> Result<bool, StoreError> {
        let lease = self.client().await?;
        let client: &Object = &lease;
        let statement = self.within(self.ready(client, &IS_IN_TABLE)).await?;
        let begin = format!("{}; {}", self.begin_reading(false), without_index!());
        self.within(client.batch_execute(&begin)).await?;
        let rows = self
            .within(statement.query(client, &[&organization_id]))
            .await;
        let found = match rows {
            Ok(rows) => !rows.is_empty(),
            Err(error) if error.is_of_some_row() => false,
            Err(error) => return Err(error.into_unavailable()),
        };
        self.within(client.batch_execute("ROLLBACK")).await?;
        lease.release();
        Ok(found)
    }

    /// The error of a run that missed rows because of a wrong index.
    ///
    /// # Errors
    ///
    /// As [`Store::sweep`], when the name of the index can't be read.
    pub async fn index_is_wrong(
        &self,
        missing: u64,
        repeated: u64,
    ) -> Result<SetupError, StoreError> {
        let rows = self.read(&KEY_INDEX, &[]).await?;
        let index = rows.first().map(|row| row.try_get(0)).transpose()?;
        Ok(SetupError::from(Hidden::ByIndex {
            index: index.unwrap_or_else(|| "tenant_identity_config_pkey".to_owned()),
            missing,
            repeated,
        }))
    }

    async fn sweep_once(
        &self,
        client: &Object,
        source: &Source,
        start: Moment,
        visited: &impl Fn(&[u8]) -> Option<usize>,
    ) -> Result<Sweep, StoreError> {
        let (sql, params, settings) = source.statement();
        let all = self.within(self.ready(client, sql)).await?;
        let by_index = self.within(self.ready(client, &BY_INDEX)).await?;
        // Reading a large table takes longer than any other statement. A server that hangs
        // is noticed by the wait for each row.
        let begin = format!(
            "{}; SET LOCAL statement_timeout = 0; {settings}",
            self.begin_reading(true)
        );
        self.within(client.batch_execute(&begin)).await?;

        let mut missed = Vec::new();
        let mut more = false;
        let mut seen = Positions::default();
        let mut repeated = 0;
        {
            let mut rows = pin!(self.within(all.stream(client, &params)).await?);
            while let Some(row) = self.within(async { rows.next().await.transpose() }).await? {
                self.row_answers.note();
                let id = id_bytes(&row)?;
                if let Some(position) = visited(id) {
                    repeated += u64::from(!seen.insert(position));
                    continue;
                }
                if missed.len() < MAX_MISSED {
                    missed.push(id.to_owned());
                } else {
                    more = true;
                }
            }
        }
        let mut sweep = Sweep {
            more,
            repeated,
            damaged_blocks: source.damaged_blocks(),
            ..Sweep::default()
        };
        let missed: Vec<_> = missed
            .into_iter()
            .map(|id| String::from_utf8_lossy(&id).into_owned())
            .collect();
        if matches!(source, Source::Blocks(_)) {
            // The index can lead to a damaged block. The run looks for each of them.
            sweep.found = missed;
        } else if !missed.is_empty() {
            let settings = "SET LOCAL enable_indexscan = on; SET LOCAL enable_seqscan = off";
            self.within(client.batch_execute(settings)).await?;
            let rows = self.within(by_index.query(client, &[&missed])).await?;
            let mut written = HashMap::with_capacity(rows.len());
            for row in &rows {
                let id: String = row.try_get(0)?;
                written.insert(id, extended(row.try_get(1)?, row.try_get(2)?));
            }
            for id in missed {
                match written.get(&id) {
                    Some(written) => {
                        sweep.passed_over += u64::from(*written < start.0);
                        sweep.found.push(id);
                    }
                    None => sweep.passed_over += 1,
                }
            }
        }
        self.within(client.batch_execute("COMMIT")).await?;
        Ok(sweep)
    }
}

/// A set of small numbers, one bit each.
#[derive(Default)]
struct Positions(Vec<u64>);

impl Positions {
    /// Adds a number. Returns whether it was not in the set.
    fn insert(&mut self, position: usize) -> bool {
        let (word, bit) = (position / 64, 1 << (position % 64));
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        let is_new = self.0[word] & bit == 0;
        self.0[word] |= bit;
        is_new
    }
}

/// The bytes of an id, whether the column is text or bytea. Without a primary key, it can be NULL.
fn id_bytes(row: &tokio_postgres::Row) -> Result<&[u8], StoreError> {
    let is_bytes = row.columns().first().map(tokio_postgres::Column::type_) == Some(&Type::BYTEA);
    let id = if is_bytes {
        row.try_get(0)?
    } else {
        row.try_get::<_, Option<&str>>(0)?.map(str::as_bytes)
    };
    id.ok_or_else(|| {
        SetupError::Schema(
            "tenant_identity_config has a row whose organization_id is NULL, so its primary key is \
             missing. Delete the row or set its organization_id, and add the primary key again"
                .to_owned(),
        )
        .into()
    })
}

/// Extends the 32-bit transaction id of a row to 64 bits. The result is below `next`. Ids
/// below 3 are special and stand for the distant past.
fn extended(xmin: i64, next: i64) -> i64 {
    if xmin < 3 {
        return 0;
    }
    next - (next - xmin).rem_euclid(1 << 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transaction_of_a_row_is_before_the_next_one() {
        let wrapped = 5 << 32;
        for (xmin, next, expected) in [
            (700, 800, 700),
            (700, wrapped + 800, wrapped + 700),
            (0xffff_ffff, wrapped + 10, wrapped - 1),
            (2, wrapped + 800, 0),
        ] {
            assert_eq!(extended(xmin, next), expected, "{xmin} {next}");
        }
    }
}
