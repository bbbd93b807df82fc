//! Writes rows, one guarded statement for each.

use std::sync::atomic::{AtomicBool, Ordering};

use deadpool_postgres::Object;
use tokio_postgres::{error::SqlState, types::ToSql};

use super::{
    CasOutcome, Row, RowError, Store, StoreError, lease::Lease, locked::Locked, page::READ_ROW,
    schema, settle::Backend, silence::Unanswered, statement::ANSWER_MARGIN,
};
use crate::domain::{keyring::KeyId, rewrap::Envelopes};

/// A connection to write rows with. Several of its methods may run at the same time. Their
/// statements are sent one behind the other.
pub struct Writer<'a> {
    store: &'a Store,
    /// `Some` until the writer is dropped.
    client: Option<Lease<'a>>,
    /// The Postgres process that serves the connection, if it is known.
    backend: Option<Backend>,
    unanswered: Unanswered,
    lost: AtomicBool,
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        // A connection in an unknown state must not go back to the pool.
        if !*self.lost.get_mut()
            && let Some(client) = self.client.take()
        {
            client.release();
        }
    }
}

impl<'a> Writer<'a> {
    pub(super) fn new(store: &'a Store, client: Lease<'a>, backend: Option<Backend>) -> Self {
        Self {
            store,
            client: Some(client),
            backend,
            unanswered: Unanswered::new(),
            lost: AtomicBool::new(false),
        }
    }

    /// The session in Postgres, for [`Store::settle`]. `None` behind a pooler in
    /// transaction mode.
    #[must_use]
    pub fn session(&self) -> Option<i32> {
        self.backend
    }

    /// Returns when statements are in flight and Postgres has answered none of them for
    /// longer than one statement may take.
    pub async fn silence(&self) -> StoreError {
        let limit = self.store.options.statement_timeout + ANSWER_MARGIN;
        self.unanswered.silence(limit).await;
        StoreError::NoAnswer(limit)
    }

    /// Closes the connection. Statements on it have no answer yet, so it cannot be reused.
    pub fn give_up(self) {
        self.lost.store(true, Ordering::Relaxed);
    }

    /// Reads the current row.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when it can't be read.
    pub async fn row(&self, organization_id: &str) -> Result<Option<Row>, StoreError> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let client = self.connection()?;
            let params: [&(dyn ToSql + Sync); 1] = [&organization_id];
            let read = self.store.query_behind_rows(client, &READ_ROW, &params);
            match self.unanswered.count(read).await {
                Ok(rows) => return rows.first().map(Row::from_pg).transpose(),
                Err(StoreError::Row(RowError::Refused(sqlstate))) => {
                    let columns = Vec::new();
                    return Err(RowError::Unreadable { columns, sqlstate }.into());
                }
                Err(error) => self.recover(error, attempt).await?,
            }
        }
    }

    /// Writes `texts` to the row if its texts are still those of `row`, and bumps the
    /// version, in one transaction.
    ///
    /// # Errors
    ///
    /// [`StoreError::Row`] when this row can't be written now. Then nothing was written.
    /// [`StoreError::ConnectionLost`] when the outcome is unknown.
    pub async fn replace(
        &self,
        row: &Row,
        texts: &Envelopes,
        target: &KeyId,
    ) -> Result<CasOutcome, StoreError> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let client = self.connection()?;
            let replace = self.store.replace(client, row, texts, target);
            match self.unanswered.count(replace).await {
                Ok(replaced) => return Ok(replaced),
                Err(error) => self.recover(error, attempt).await?,
            }
        }
    }

    /// Locks the row, calls `decide` with it, and writes the texts that `decide` returns,
    /// if any. Returns the verdict of `decide`, or `None` if the row is gone. This is for
    /// rows that change faster than they can be read and written back. The lock is held for
    /// the time of `decide` and one round trip.
    ///
    /// # Errors
    ///
    /// As [`Writer::replace`].
    pub async fn replace_locked<T>(
        &mut self,
        organization_id: &str,
        target: &KeyId,
        mut decide: impl FnMut(&Row) -> (T, Option<Envelopes>),
    ) -> Result<Option<T>, StoreError> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let outcome = self
                .replace_locked_once(organization_id, target, &mut decide)
                .await;
            match outcome {
                Ok(outcome) => return Ok(outcome),
                Err(error) => self.recover(error, attempt).await?,
            }
        }
    }

    async fn replace_locked_once<T>(
        &mut self,
        organization_id: &str,
        target: &KeyId,
        decide: &mut impl FnMut(&Row) -> (T, Option<Envelopes>),
    ) -> Result<Option<T>, StoreError> {
        let client = self.connection()?;
        let locked = Locked::row(self.store, client, &self.lost, organization_id).await?;
        let (locked, row) = match locked {
            (locked, Some(row)) => (locked, row),
            (locked, None) => {
                locked.rollback().await?;
                // A policy can hide a row from a lock but not from a read. The row is gone
                // only if a read does not find it either.
                return match self.row(organization_id).await? {
                    None => Ok(None),
                    Some(_) => Err(RowError::Ignored.into()),
                };
            }
        };
        let (verdict, texts) = decide(&row);
        let Some(texts) = texts else {
            locked.rollback().await?;
            return Ok(Some(verdict));
        };
        match locked.replace(&row, &texts, target).await? {
            CasOutcome::Applied => Ok(Some(verdict)),
            // Impossible under the lock, unless a trigger or a policy interferes.
            CasOutcome::Conflict => Err(RowError::Ignored.into()),
        }
    }

    /// The connection while it is usable. Once one statement got no answer, the others fail
    /// at once.
    fn connection(&self) -> Result<&Object, StoreError> {
        let client = self.client.as_deref();
        client
            .filter(|_| !self.lost.load(Ordering::Relaxed))
            .ok_or_else(StoreError::no_connection)
    }

    /// Prepares another attempt, or returns the error.
    async fn recover(&self, error: StoreError, attempt: u32) -> Result<(), StoreError> {
        let recovered = self.try_to_recover(error, attempt).await;
        if let Err(StoreError::ConnectionLost(_) | StoreError::NoAnswer(_)) = recovered {
            self.lost.store(true, Ordering::Relaxed);
        }
        recovered
    }

    async fn try_to_recover(&self, error: StoreError, attempt: u32) -> Result<(), StoreError> {
        let exhausted = attempt >= self.store.options.max_attempts;
        match error {
            StoreError::Conflict(code) if exhausted => {
                Err(RowError::Conflicts(code.code().to_owned()).into())
            }
            StoreError::Conflict(_) => {
                self.store.retry_backoff().await;
                Ok(())
            }
            // One retry is always allowed: no other transaction is in conflict with this
            // one.
            StoreError::StalePlan(code) if attempt > 1 && exhausted => {
                Err(RowError::Refused(code.code().to_owned()).into())
            }
            StoreError::StalePlan(_) => {
                self.store.clear_statement_caches();
                Ok(())
            }
            StoreError::ColumnGone if attempt > 1 && exhausted => {
                Err(RowError::Refused(SqlState::UNDEFINED_COLUMN.code().to_owned()).into())
            }
            StoreError::ColumnGone => {
                // A trigger that lacks a column of its own raises the same error. So ask
                // whether the column exists. If it does, it must be written: an old
                // nico-api decrypts by it.
                let found = schema::has_key_id_column(self.store, self.connection()?).await?;
                self.store.has_key_id_column.store(found, Ordering::Relaxed);
                Ok(())
            }
            other => Err(other),
        }
    }
}
