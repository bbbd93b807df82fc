//! Reads rows. After an error that another attempt can solve, tries again.

use std::time::Duration;

use deadpool_postgres::Object;
use futures_util::future;
use tokio_postgres::{Row as PgRow, types::ToSql};

use super::{
    RowError, Store, StoreError,
    lease::Lease,
    statement::{FOLLOW_THE_INDEX, Statement},
};

impl Store {
    /// Reads rows. Every error is about the database, none about a row.
    pub(super) async fn read(
        &self,
        sql: &'static Statement,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<PgRow>, StoreError> {
        let rows = self.read_raw(sql, params).await;
        rows.map_err(StoreError::into_unavailable)
    }

    /// Reads rows, and returns the error as it is.
    pub(super) async fn read_raw(
        &self,
        sql: &'static Statement,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<PgRow>, StoreError> {
        self.read_with(sql, params, "").await
    }

    /// Reads rows along an index, so that blocks without these rows do not matter.
    pub(super) async fn read_by_index(
        &self,
        sql: &'static Statement,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<PgRow>, StoreError> {
        self.read_with(sql, params, FOLLOW_THE_INDEX).await
    }

    async fn read_with(
        &self,
        sql: &'static Statement,
        params: &[&(dyn ToSql + Sync)],
        settings: &str,
    ) -> Result<Vec<PgRow>, StoreError> {
        let mut attempts = 0;
        loop {
            let lease = self.client().await?;
            match self.read_once(&lease, sql, params, settings).await {
                Ok(rows) => {
                    let largest = rows.iter().map(PgRow::raw_size_bytes).max();
                    lease.release_after(largest.unwrap_or_default());
                    self.row_answers.note();
                    return Ok(rows);
                }
                Err(error) if error.is_of_some_row() => {
                    // Every statement was answered, and another attempt would fail, too.
                    lease.release();
                    return Err(error);
                }
                Err(error) => {
                    self.conclude::<()>(lease, Err(error), &mut attempts)
                        .await?;
                }
            }
        }
    }

    /// Ends an attempt to read, and returns its connection to the pool. Returns `None` if there
    /// must be another attempt. After a successful attempt, no statement may be in flight and
    /// no transaction open.
    pub(super) async fn conclude<T>(
        &self,
        lease: Lease<'_>,
        read: Result<T, StoreError>,
        attempts: &mut u32,
    ) -> Result<Option<T>, StoreError> {
        *attempts += 1;
        match read {
            Ok(found) => {
                lease.release();
                self.row_answers.note();
                Ok(Some(found))
            }
            Err(error) => {
                // The state of the connection is unknown: close it.
                drop(lease);
                self.retry(error, *attempts).await?;
                Ok(None)
            }
        }
    }

    /// Waits before another attempt to read, or returns the error if there must not be one.
    async fn retry(&self, error: StoreError, attempt: u32) -> Result<(), StoreError> {
        match error {
            // One retry is always allowed: no other transaction is in conflict with this
            // one.
            StoreError::StalePlan(_) if attempt == 1 => {
                self.clear_statement_caches();
                return Ok(());
            }
            // If one connection died unnoticed, others of the pool may have died too.
            StoreError::ConnectionLost(_) => {
                for pool in [&self.pool, &self.side_pool] {
                    pool.retain(|client, _| !client.is_closed());
                }
            }
            StoreError::Conflict(_) | StoreError::Row(RowError::TableLocked) => {}
            // A server that hangs does so on every connection.
            error => return Err(error),
        }
        if attempt >= self.options.max_attempts {
            return Err(error);
        }
        self.retry_backoff().await;
        Ok(())
    }

    /// Makes every connection prepare its statements again.
    pub fn clear_statement_caches(&self) {
        for pool in [&self.pool, &self.side_pool, &self.reserve_pool] {
            pool.manager().statement_caches.clear();
        }
    }

    async fn read_once(
        &self,
        client: &Object,
        sql: &'static Statement,
        params: &[&(dyn ToSql + Sync)],
        settings: &str,
    ) -> Result<Vec<PgRow>, StoreError> {
        // Prepare first: otherwise the COMMIT would be sent before the statement. The
        // COMMIT goes out in any case, so that no transaction stays open.
        let statement = self.within(self.ready(client, sql)).await?;
        let begin = self.begin_reading(false) + settings;
        let begin = client.batch_execute(&begin);
        let rows = statement.query(client, params);
        let commit = client.batch_execute("COMMIT");
        let (begun, (rows, committed)) = self.pipeline(begin, future::join(rows, commit)).await?;
        begun?;
        let rows = rows?;
        committed?;
        Ok(rows)
    }

    /// Waits for a short random time before a retry, so that the two sides of a deadlock do
    /// not collide again.
    pub(crate) async fn retry_backoff(&self) {
        tokio::time::sleep(Duration::from_millis(fastrand::u64(5..50))).await;
    }
}
