//! Finds the rows around blocks of the table that Postgres cannot read.
//!
//! Postgres reads a row along an index only if it can read the block of the row. So a scan
//! along the index ends at the first row in a damaged block. This module reads the other
//! blocks by their numbers and finds out which rows come next. The ids of the rows in the
//! damaged blocks come from `tenants`: a look-up of such an id fails.

use std::collections::VecDeque;

use deadpool_postgres::Object;
use tokio_postgres::types::{ToSql, Type};

use super::{
    Page, Position, RowError, Store, StoreError, Unreadable, parts::unreadable,
    statement::Statement,
};

/// Maximum number of blocks that one statement reads. Before version 14, Postgres reads them
/// row by row, so the number is smaller.
const BLOCKS_AT_ONCE: i64 = 8192;
const BLOCKS_AT_ONCE_13: i64 = 256;

/// Ids that one statement looks up.
const IDS_AT_ONCE: i64 = 1000;

/// The highest number that a block can have.
const LAST_BLOCK: i64 = 0xffff_fffe;

const BLOCKS: Statement = Statement {
    text: "-- blocks\n\
           SELECT pg_relation_size(to_regclass('tenant_identity_config')) \
               / current_setting('block_size')::int8, \
             current_setting('server_version_num')::int4",
    types: &[],
};

// The rows of the blocks from `$lo` to before `$hi`. Before version 14, Postgres cannot scan
// a range of blocks; a block has at most 291 rows.
macro_rules! in_blocks {
    ($lo:literal, $hi:literal) => {
        concat!(
            "c.ctid >= format('(%s,0)', ",
            $lo,
            ")::tid AND c.ctid < format('(%s,0)', ",
            $hi,
            ")::tid"
        )
    };
}
macro_rules! in_blocks_13 {
    ($lo:literal, $hi:literal) => {
        concat!(
            "c.ctid = ANY (ARRAY(SELECT format('(%s,%s)', b, i)::tid FROM generate_series(",
            $lo,
            "::int8, ",
            $hi,
            "::int8 - 1) b, generate_series(1, 291) i))"
        )
    };
}

macro_rules! read_blocks {
    ($in_blocks:ident) => {
        Statement {
            text: concat!(
                "-- read_blocks\nSELECT count(*) FROM tenant_identity_config c WHERE ",
                $in_blocks!("$1", "$2")
            ),
            types: &[Type::INT8, Type::INT8],
        }
    };
}
const READ_BLOCKS: Statement = read_blocks!(in_blocks);
const READ_BLOCKS_13: Statement = read_blocks!(in_blocks_13);

macro_rules! ids_in_blocks {
    ($in_blocks:ident) => {
        Statement {
            text: concat!(
                "-- ids_in_blocks\n\
                 SELECT s.organization_id FROM unnest($1::int8[], $2::int8[]) AS r (lo, hi) \
                 CROSS JOIN LATERAL (SELECT c.organization_id FROM tenant_identity_config c \
                   WHERE ",
                $in_blocks!("r.lo", "r.hi"),
                " OFFSET 0) AS s"
            ),
            types: &[Type::INT8_ARRAY, Type::INT8_ARRAY],
        }
    };
}
const IDS_IN_BLOCKS: Statement = ids_in_blocks!(in_blocks);
const IDS_IN_BLOCKS_13: Statement = ids_in_blocks!(in_blocks_13);

macro_rules! next_ids_in_blocks {
    ($in_blocks:ident) => {
        Statement {
            text: concat!(
                "-- next_ids_in_blocks\n\
                 SELECT s.organization_id FROM unnest($1::int8[], $2::int8[]) AS r (lo, hi) \
                 CROSS JOIN LATERAL (SELECT c.organization_id FROM tenant_identity_config c \
                   WHERE ",
                $in_blocks!("r.lo", "r.hi"),
                " AND ($3::text IS NULL OR c.organization_id > $3) \
                   ORDER BY c.organization_id LIMIT $4) AS s \
                 ORDER BY s.organization_id LIMIT $4"
            ),
            types: &[Type::INT8_ARRAY, Type::INT8_ARRAY, Type::TEXT, Type::INT8],
        }
    };
}
const NEXT_IDS_IN_BLOCKS: Statement = next_ids_in_blocks!(in_blocks);
const NEXT_IDS_IN_BLOCKS_13: Statement = next_ids_in_blocks!(in_blocks_13);

/// Settings of a transaction that reads blocks by their numbers.
pub(super) const BY_BLOCK: &str = "SET LOCAL plan_cache_mode = force_custom_plan; SET LOCAL jit = off; \
     SET LOCAL enable_tidscan = on; SET LOCAL enable_seqscan = off; \
     SET LOCAL enable_indexscan = off; SET LOCAL enable_indexonlyscan = off; \
     SET LOCAL enable_bitmapscan = off; SAVEPOINT part";

const TENANT_IDS: Statement = Statement {
    text: "-- tenant_ids\n\
           SELECT t.organization_id FROM tenants t \
           WHERE ($1::text IS NULL OR t.organization_id > $1) \
           ORDER BY t.organization_id LIMIT $2",
    types: &[Type::TEXT, Type::INT8],
};

// The transaction id of a row stands in its block, not in the index.
const LOOK_UP: Statement = Statement {
    text: "-- look_up\n\
           SELECT count(c.xmin) FROM tenant_identity_config c WHERE c.organization_id = ANY ($1)",
    types: &[Type::TEXT_ARRAY],
};

/// The blocks of the table that can be read.
pub(super) struct Blocks {
    /// Ranges of blocks: their first blocks, and the blocks behind their last blocks.
    first: Vec<i64>,
    end: Vec<i64>,
    /// Number of blocks that cannot be read.
    pub(super) damaged: u64,
    is_version_13: bool,
}

impl Blocks {
    /// The statement that reads all ids in the readable blocks, and its parameters.
    pub(super) fn ids(&self) -> (&'static Statement, [&Vec<i64>; 2]) {
        let sql = if self.is_version_13 {
            &IDS_IN_BLOCKS_13
        } else {
            &IDS_IN_BLOCKS
        };
        (sql, [&self.first, &self.end])
    }
}

impl Store {
    /// The next page behind a row in a damaged block.
    pub(super) async fn page_behind_damage(
        &self,
        from: &Position,
        error: &StoreError,
    ) -> Result<Page, StoreError> {
        let ids = self.next_ids(from.after.as_deref()).await?;
        let mut page = Page {
            damage: error.sqlstate(),
            ..Page::default()
        };
        let mut bytes = 0;
        for id in ids {
            match self.row(&id).await {
                Ok(Some(row)) => {
                    bytes += row.bytes();
                    page.rows.push(row);
                }
                Ok(None) => {}
                Err(StoreError::Row(error)) => page.unreadable.push(Unreadable {
                    id: id.as_bytes().to_owned(),
                    error,
                }),
                Err(error) => return Err(error),
            }
            page.next = Some(Position::after(&id));
            if Page::is_full(bytes) {
                break;
            }
        }
        Ok(page)
    }

    /// The ids of the next readable rows, in the order of the index.
    async fn next_ids(&self, after: Option<&str>) -> Result<Vec<String>, StoreError> {
        let blocks = self.readable_blocks().await?;
        let sql = if blocks.is_version_13 {
            &NEXT_IDS_IN_BLOCKS_13
        } else {
            &NEXT_IDS_IN_BLOCKS
        };
        let limit = i64::from(self.options.page_size).min(IDS_AT_ONCE);
        let mut attempts = 0;
        let rows = loop {
            let lease = self.client().await?;
            let rows = async {
                let begin = format!("{}; {BY_BLOCK}", self.begin_reading(true));
                self.within(lease.batch_execute(&begin)).await?;
                let params: [&(dyn ToSql + Sync); 4] = [&blocks.first, &blocks.end, &after, &limit];
                let rows = self.query(&lease, sql, &params).await?;
                self.within(lease.batch_execute("COMMIT")).await?;
                Ok(rows)
            };
            let rows = rows.await;
            let rows = self.conclude(lease, rows, &mut attempts).await;
            if let Some(rows) = rows.map_err(StoreError::into_unavailable)? {
                break rows;
            }
        };
        let ids: Result<_, _> = rows.iter().map(|row| row.try_get(0)).collect();
        Ok(ids?)
    }

    /// Finds out which blocks of the table can be read.
    pub(super) async fn readable_blocks(&self) -> Result<Blocks, StoreError> {
        let mut attempts = 0;
        loop {
            let lease = self.client().await?;
            let blocks = self.try_blocks(&lease).await;
            let blocks = self.conclude(lease, blocks, &mut attempts).await;
            if let Some(blocks) = blocks.map_err(StoreError::into_unavailable)? {
                return Ok(blocks);
            }
        }
    }

    async fn try_blocks(&self, client: &Object) -> Result<Blocks, StoreError> {
        let rows = self.query(client, &BLOCKS, &[]).await?;
        let row = rows.first().ok_or_else(StoreError::no_answer)?;
        let (size, version): (i64, i32) = (row.try_get(0)?, row.try_get(1)?);
        let mut blocks = Blocks {
            first: Vec::new(),
            end: Vec::new(),
            damaged: 0,
            is_version_13: version < 140_000,
        };
        let (sql, at_once) = if blocks.is_version_13 {
            (&READ_BLOCKS_13, BLOCKS_AT_ONCE_13)
        } else {
            (&READ_BLOCKS, BLOCKS_AT_ONCE)
        };
        let begin = format!("{}; {BY_BLOCK}", self.begin_reading(true));
        self.within(client.batch_execute(&begin)).await?;
        // A range that cannot be read is split in halves, down to single blocks.
        let mut ranges: VecDeque<(i64, i64)> = (0..size)
            .step_by(usize::try_from(at_once).unwrap_or(1))
            .map(|first| (first, size.min(first + at_once)))
            .collect();
        while let Some((first, end)) = ranges.pop_front() {
            match self.query(client, sql, &[&first, &end]).await {
                Ok(_) if blocks.end.last() == Some(&first) => {
                    blocks.end.pop();
                    blocks.end.push(end);
                }
                Ok(_) => {
                    blocks.first.push(first);
                    blocks.end.push(end);
                }
                Err(error) if error.is_damage() => {
                    let rollback = client.batch_execute("ROLLBACK TO part");
                    self.within(rollback).await?;
                    let middle = i64::midpoint(first, end);
                    if middle == first {
                        blocks.damaged += 1;
                    } else {
                        ranges.push_front((middle, end));
                        ranges.push_front((first, middle));
                    }
                }
                Err(error) => return Err(error),
            }
        }
        self.within(client.batch_execute("COMMIT")).await?;
        // Blocks that the table gets from now on.
        if !blocks.is_version_13 {
            blocks.first.push(size);
            blocks.end.push(LAST_BLOCK);
        }
        Ok(blocks)
    }

    /// The organizations that were not visited and whose rows cannot be read.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the database gives no answer.
    pub async fn unreadable_organizations(
        &self,
        visited: impl Fn(&[u8]) -> bool,
    ) -> Result<Vec<(String, RowError)>, StoreError> {
        let mut found = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let ids = self
                .read_by_index(&TENANT_IDS, &[&after, &IDS_AT_ONCE])
                .await;
            let ids = match ids {
                // Their names are lost, too.
                Err(error) if error.is_of_some_row() => return Ok(found),
                ids => ids.map_err(StoreError::into_unavailable)?,
            };
            let ids: Result<Vec<String>, _> = ids.iter().map(|row| row.try_get(0)).collect();
            let mut ids = ids?;
            let Some(last) = ids.last() else {
                return Ok(found);
            };
            after = Some(last.clone());
            ids.retain(|id| !visited(id.as_bytes()));
            self.look_up(ids, &mut found).await?;
        }
    }

    /// Adds those of `ids` whose look-up fails to `found`.
    async fn look_up(
        &self,
        ids: Vec<String>,
        found: &mut Vec<(String, RowError)>,
    ) -> Result<(), StoreError> {
        let mut to_do = vec![ids];
        while let Some(mut ids) = to_do.pop() {
            if ids.is_empty() {
                continue;
            }
            match self.read_by_index(&LOOK_UP, &[&ids]).await {
                Ok(_) => {}
                Err(error) if error.is_damage() && ids.len() == 1 => {
                    let error = unreadable(Vec::new(), &error);
                    found.extend(ids.pop().map(|id| (id, error)));
                }
                Err(error) if error.is_damage() => {
                    let rest = ids.split_off(ids.len() / 2);
                    to_do.push(rest);
                    to_do.push(ids);
                }
                Err(error) => return Err(error.into_unavailable()),
            }
        }
        Ok(())
    }
}
