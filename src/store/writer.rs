//! Writes rows, one guarded statement for each.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use deadpool_postgres::Object;
use tokio_postgres::{error::SqlState, types::ToSql};

use super::{
    CasOutcome, Row, RowError, Store, StoreError, lease::Lease, locked::Locked, page::READ_ROW,
    schema, settle::Backend, silence::Unanswered,
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
    /// The size of the largest write that was sent, in bytes.
    largest_write: AtomicUsize,
    /// Whether each row is read again before its commit.
    verify: bool,
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        // A connection in an unknown state must not go back to the pool.
        if !*self.lost.get_mut()
            && let Some(client) = self.client.take()
        {
            client.release_after(*self.largest_write.get_mut());
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
            largest_write: AtomicUsize::new(0),
            verify: false,
        }
    }

    /// Makes this writer read each row again before its commit. This detects a trigger that
    /// changes the row after the write.
    #[must_use]
    pub fn verifying(mut self, verify: bool) -> Self {
        self.verify = verify;
        self
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
        let limit = self.store.silence_limit();
        let mut was_noted = false;
        let waits_for_pooler = || self.store.note_pooler_queue(&mut was_noted);
        self.store.silence(&self.unanswered, waits_for_pooler).await;
        StoreError::NoAnswer(limit)
    }

    /// Closes the connection. Statements on it have no answer yet, so it cannot be reused.
    pub fn give_up(self) {
        self.lost.store(true, Ordering::Relaxed);
    }

    /// Ends the session of this writer, on which Postgres has been silent, if Postgres
    /// answers on another connection. Afterwards no write of this writer can follow.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when Postgres does not answer there either, or when the session waits
    /// for a synchronous standby. The connection is closed in any case.
    pub async fn end_session(mut self) -> Result<(), StoreError> {
        let (store, backend) = (self.store, self.backend);
        let detached = self.client.take().map(Lease::detach);
        // Ask before the connection is closed: the cancel request that goes with that would
        // end the wait for a standby.
        let asked = store.end_silent_session(backend).await;
        drop(detached);
        match asked {
            // The silent session may have been the only one that is allowed.
            Err(_) => store.end_silent_session(backend).await?,
            Ok(wait) => wait,
        }
        .map_or(Ok(()), |wait| {
            Err(StoreError::Unavailable(wait.to_string()))
        })
    }

    /// Reads the current row.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when it can't be read.
    pub async fn row(&self, organization_id: &str) -> Result<Option<Row>, StoreError> {
        let params: [&(dyn ToSql + Sync); 1] = [&organization_id];
        let mut attempts = 0;
        loop {
            let client = self.connection()?;
            let rows = self.store.query_behind_rows(client, &READ_ROW, &params);
            let rows = match self.answer(rows).await {
                Err(StoreError::Row(RowError::Refused(sqlstate))) => {
                    let columns = Vec::new();
                    Err(RowError::Unreadable { columns, sqlstate }.into())
                }
                rows => rows,
            };
            if let Some(rows) = self.conclude(rows, &mut attempts).await? {
                return rows.first().map(Row::from_pg).transpose();
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
        self.largest_write
            .fetch_max(2 * row.bytes(), Ordering::Relaxed);
        let mut attempts = 0;
        loop {
            let client = self.connection()?;
            let replaced = if self.verify {
                let replace = self.store.replace_verified(client, row, texts, target);
                self.answer(replace).await
            } else {
                let replace = self.store.replace(client, row, texts, target);
                self.answer(replace).await
            };
            if let Some(replaced) = self.conclude(replaced, &mut attempts).await? {
                return Ok(replaced);
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
        let mut attempts = 0;
        loop {
            let outcome = self
                .replace_locked_once(organization_id, target, &mut decide)
                .await;
            self.store.row_answers.note();
            if let Some(outcome) = self.conclude(outcome, &mut attempts).await? {
                return Ok(outcome);
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
        let locked =
            Locked::row(self.store, client, &self.lost, organization_id, self.verify).await?;
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

    /// Waits for the answer to a statement of a row.
    async fn answer<T>(&self, statement: impl Future<Output = T>) -> T {
        let answer = self.unanswered.count(statement).await;
        self.store.row_answers.note();
        answer
    }

    /// Ends an attempt. Returns `None` if there must be another one.
    async fn conclude<T>(
        &self,
        attempt: Result<T, StoreError>,
        attempts: &mut u32,
    ) -> Result<Option<T>, StoreError> {
        *attempts += 1;
        let error = match attempt {
            Ok(done) => return Ok(Some(done)),
            Err(error) => error,
        };
        let recovered = self.try_to_recover(error, *attempts).await;
        if let Err(StoreError::ConnectionLost(_) | StoreError::NoAnswer(_)) = recovered {
            self.lost.store(true, Ordering::Relaxed);
        }
        recovered.map(|()| None)
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
