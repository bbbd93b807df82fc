//! The guarded write of one row.

use std::sync::atomic::{AtomicBool, Ordering};

use deadpool_postgres::Object;
use tokio_postgres::{error::SqlState, types::ToSql};

use super::{
    Row, RowError, Store, StoreError, lease::Lease, locked::Locked, page::READ_ROW, schema,
    settle::Backend, silence::Unanswered, statement::ANSWER_MARGIN,
};
use crate::domain::{keyring::KeyId, rewrap::Envelopes};

/// What became of a compare-and-set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CasOutcome {
    /// Committed: the row has the new texts, the version is bumped.
    Applied,
    /// The row has other texts than those that were read, or is gone. Nothing was
    /// written.
    Conflict,
}

/// A connection to write rows with. Its methods may be under way several at a
/// time: their statements go out one behind the other.
pub struct Writer<'a> {
    store: &'a Store,
    /// `Some` until the writer is dropped.
    client: Option<Lease<'a>>,
    /// The process in Postgres that does the writing, where that is one.
    backend: Option<Backend>,
    unanswered: Unanswered,
    lost: AtomicBool,
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        // A connection of unknown state must not go back to the pool.
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

    /// The session in Postgres, for [`Store::settle`]; `None` where a pooler stands before
    /// it.
    #[must_use]
    pub fn session(&self) -> Option<i32> {
        self.backend
    }

    /// Ends when statements are under way and Postgres has answered none of them for longer
    /// than one may take.
    pub async fn silence(&self) -> StoreError {
        let limit = self.store.options.statement_timeout + ANSWER_MARGIN;
        self.unanswered.silence(limit).await;
        StoreError::NoAnswer(limit)
    }

    /// Closes the connection instead of using it again: statements on it have no answer.
    pub fn give_up(self) {
        self.lost.store(true, Ordering::Relaxed);
    }

    /// The row as it is now.
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

    /// Gives the row `texts` if it still has those that were read, and bumps the
    /// version, in one transaction.
    ///
    /// # Errors
    ///
    /// [`StoreError::Row`] when this row can't be written now; then nothing was.
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

    /// Locks the row, lets `decide` look at it, and writes the texts that it
    /// returns, if any; its word on the row is what this returns, `None` if the row is
    /// gone. For rows that change faster than they can be read and written back; the
    /// lock is held for as long as `decide` and one round trip take.
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
                // It is gone only if a plain read agrees: a policy can hide it from a lock alone.
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
            // Not possible under the lock, unless a trigger or a policy meddles.
            CasOutcome::Conflict => Err(RowError::Ignored.into()),
        }
    }

    /// Only for as long as it is of use: behind one statement without an answer, no
    /// other has to find out.
    fn connection(&self) -> Result<&Object, StoreError> {
        let client = self.client.as_deref();
        client
            .filter(|_| !self.lost.load(Ordering::Relaxed))
            .ok_or_else(StoreError::no_connection)
    }

    /// Makes ready for another attempt, or passes the error on.
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
            // Once is always allowed: it is no conflict with anybody.
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
                // A trigger that misses a column of its own says the same, and a column
                // that is there has to be written on: an old nico-api decrypts by it.
                let found = schema::has_key_id_column(self.store, self.connection()?).await?;
                self.store.has_key_id_column.store(found, Ordering::Relaxed);
                Ok(())
            }
            other => Err(other),
        }
    }
}
