//! Reads the whole table in one snapshot, from the first block to the last.
//!
//! No index takes part, so a damaged index cannot hide a row. A cursor gives the addresses of
//! the rows, and large texts are read by address, in batches of limited size.

mod census;
mod verify;

use std::time::SystemTime;

use tokio_postgres::types::{FromSql, Type};

pub use self::{
    census::{CensusScan, ScanMode},
    verify::{Read, VerifyScan},
};
use super::{Moment, Store, StoreError, lease::Lease, statement::Statement, sweep::without_index};

/// Maximum size of the whole texts that one statement reads, in bytes. A statement reads at
/// least one row.
const BATCH_BYTES: usize = 3 << 20;

// A batch is small enough for a prompt stop.
const FETCH: Statement = Statement {
    text: "-- fetch\nFETCH FORWARD 2000 FROM nico_rewrap_scan",
    types: &[],
};

const SNAPSHOT: Statement = Statement {
    text: "-- scan_snapshot\n\
           SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint, now(), \
             greatest(reltuples, 0)::bigint \
           FROM pg_class WHERE oid = to_regclass('tenant_identity_config')",
    types: &[],
};

/// The snapshot of a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    /// The next transaction id when the snapshot was taken.
    pub moment: Moment,
    /// When it was taken, by the clock of the database.
    pub start: SystemTime,
    /// An estimate of the number of rows.
    pub rows: u64,
}

impl Store {
    /// Takes a snapshot, in which a cursor `nico_rewrap_scan` can be declared.
    async fn begin_scan(&self) -> Result<(Lease<'_>, Snapshot), StoreError> {
        let lease = self.side_client().await?;
        // The pauses of a slow scan must not end its session.
        let begin = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY; \
             SET LOCAL idle_in_transaction_session_timeout = 0; {}",
            without_index!()
        );
        self.within(lease.batch_execute(&begin)).await?;
        let found = self.query(&lease, &SNAPSHOT, &[]).await?;
        let found = found.first().ok_or_else(StoreError::no_answer)?;
        let snapshot = Snapshot {
            moment: Moment(found.try_get(0)?),
            start: found.try_get(1)?,
            rows: u64::try_from(found.try_get::<_, i64>(2)?).unwrap_or(0),
        };
        Ok((lease, snapshot))
    }
}

/// The bytes of a text, which need not be UTF-8 in a database with the encoding SQL_ASCII.
struct RawText<'a>(&'a [u8]);

impl<'a> FromSql<'a> for RawText<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(raw))
    }

    fn accepts(kind: &Type) -> bool {
        <&str as FromSql>::accepts(kind)
    }
}

/// The address of a row in the table (ctid). It is valid within one snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Address {
    block: u32,
    row: u16,
}

impl FromSql<'_> for Address {
    fn from_sql(_: &Type, raw: &[u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        let (block, row) = raw.split_first_chunk().ok_or("a ctid has six bytes")?;
        Ok(Self {
            block: u32::from_be_bytes(*block),
            row: u16::from_be_bytes(row.try_into()?),
        })
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::TID
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "({},{})", self.block, self.row)
    }
}
