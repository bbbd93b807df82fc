//! Reads the whole table in one snapshot, from the first block to the last.
//!
//! The scan uses no index, so a damaged index cannot hide a row. A cursor gives the addresses of
//! the rows, and large texts are read by address, in batches of limited size.

mod census;
mod verify;

use std::{ops::Deref, time::SystemTime};

use tokio::{sync::SemaphorePermit, time::timeout};
use tokio_postgres::types::{FromSql, Type};

pub use self::{
    census::{CensusScan, ScanMode},
    verify::{Read, VerifyScan},
};
use super::{Moment, Store, StoreError, lease::Lease, statement::Statement, sweep::without_index};

/// Maximum size of the whole texts that one statement reads, in bytes. A statement reads at
/// least one row.
const BATCH_BYTES: usize = 3 << 20;

const TOO_MANY_SCANS: &str = "other censuses and verifies use the connections for scans";

// A batch is small enough for a prompt stop. A session remembers the columns of a prepared FETCH,
// so each kind of scan has a cursor of its own.
macro_rules! fetch {
    ($cursor:literal) => {
        Statement {
            text: concat!("-- fetch\nFETCH FORWARD 2000 FROM ", $cursor),
            types: &[],
        }
    };
}

use fetch;

const SNAPSHOT: Statement = Statement {
    text: "-- scan_snapshot\n\
           SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint, now(), \
             greatest(reltuples, 0)::bigint \
           FROM pg_class WHERE oid = to_regclass('tenant_identity_config')",
    types: &[],
};

const ESTIMATE: Statement = Statement {
    text: "-- estimated_rows\n\
           SELECT greatest(reltuples, 0)::bigint \
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
    /// An estimate of the number of rows.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the database does not answer.
    pub async fn estimated_rows(&self) -> Result<u64, StoreError> {
        let rows = self.read(&ESTIMATE, &[]).await?;
        let rows: Option<i64> = rows.first().map(|row| row.try_get(0)).transpose()?;
        Ok(rows.and_then(|rows| u64::try_from(rows).ok()).unwrap_or(0))
    }

    /// Takes a snapshot, in which a cursor can be declared.
    async fn begin_scan(&self) -> Result<(ScanLease<'_>, Snapshot), StoreError> {
        let permit = timeout(
            self.options.pool_acquire_timeout,
            self.scan_permits.acquire(),
        );
        // The semaphore is never closed.
        let permit = permit.await.ok().and_then(Result::ok);
        let permit = permit.ok_or_else(|| StoreError::Unavailable(TOO_MANY_SCANS.to_owned()))?;
        let lease = self.side_client().await?;
        // The pauses of a slow scan must not end its session.
        let begin = format!(
            "{}; SET LOCAL idle_in_transaction_session_timeout = 0; {}",
            self.begin_reading(true),
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
        let lease = ScanLease {
            lease,
            _permit: permit,
        };
        Ok((lease, snapshot))
    }
}

/// The connection of a scan.
struct ScanLease<'a> {
    lease: Lease<'a>,
    _permit: SemaphorePermit<'a>,
}

impl ScanLease<'_> {
    fn release(self) {
        self.lease.release();
    }
}

impl<'a> Deref for ScanLease<'a> {
    type Target = Lease<'a>;

    fn deref(&self) -> &Lease<'a> {
        &self.lease
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
