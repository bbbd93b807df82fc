//! The guarded write of one row.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use deadpool_postgres::Object;
use tokio_postgres::{
    IsolationLevel,
    error::SqlState,
    types::{ToSql, Type},
};

use super::{
    Commit, READ_ROW, Row, RowError, Store, StoreError, schema, select_row,
    statement::{On, Sql},
};
use crate::{keyring::KeyId, rewrap::Texts};

/// What became of a compare-and-set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replaced {
    /// Committed: the row has the new texts, the version is bumped.
    Done,
    /// The row has other texts than those that were read, or is gone. Nothing was
    /// written.
    Missed,
}

/// What became of a write under a row lock.
#[derive(Debug)]
pub enum LockedOutcome<T> {
    /// The row is gone.
    Gone,
    /// The decision wanted nothing written; this is its word on the row.
    Kept(T),
    /// Committed.
    Replaced(T),
}

/// A connection to write rows with. Its methods may be under way several at a
/// time: their statements go out one behind the other.
pub struct Writer<'a> {
    store: &'a Store,
    /// Always there but while it is dropped.
    client: Option<Object>,
    lost: AtomicBool,
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        // A connection of unknown state must not go back to the pool.
        if *self.lost.get_mut() {
            self.client.take().map(Object::take);
        }
    }
}

// The lock timeout and the kind of commit are set for this one transaction by the
// statement itself, in a CTE that the row update has to wait for. `tenants` is updated from what the
// update of the row returns, hence after it and only if it was there; its new
// version is computed from the version that is found under its lock, and is NULL,
// which the column refuses, where there is no next one: then nothing is written. Nor
// is it when only one of the two was (a trigger, a policy): the division fails.
macro_rules! replace_row {
    ($name:literal, $set_key_id:literal) => {
        concat!(
            "-- ",
            $name,
            "\n",
            "WITH limits AS MATERIALIZED (\
               SELECT set_config('lock_timeout', $8, true) AS lock_timeout, \
                 set_config('synchronous_commit', \
                   coalesce($9, current_setting('synchronous_commit')), true)\
             ), written AS (\
               UPDATE tenant_identity_config \
               SET encrypted_signing_key_1 = $2, encrypted_signing_key_2 = $3, \
                   encrypted_auth_method_config = $4, updated_at = now()",
            $set_key_id,
            " FROM limits WHERE limits.lock_timeout IS NOT NULL AND organization_id = $1 \
                 AND encrypted_signing_key_1 IS NOT DISTINCT FROM $5 \
                 AND encrypted_signing_key_2 IS NOT DISTINCT FROM $6 \
                 AND encrypted_auth_method_config IS NOT DISTINCT FROM $7 \
               RETURNING organization_id\
             ), bumped AS (\
               UPDATE tenants SET version = CASE \
               WHEN version ~ '^V[0-9]{1,20}-T[0-9]{1,19}$' \
                 AND substring(version from '^V([0-9]+)')::numeric < 18446744073709551615 \
               THEN 'V' || substring(version from '^V([0-9]+)')::numeric + 1 || '-T' \
                 || (extract(epoch FROM clock_timestamp()) * 1000000)::bigint \
               END \
               FROM written WHERE tenants.organization_id = written.organization_id \
               RETURNING 1\
             ) \
             SELECT w.n / CASE WHEN b.n = w.n THEN 1 ELSE 0 END \
             FROM (SELECT count(*) AS n FROM written) w, (SELECT count(*) AS n FROM bumped) b"
        )
    };
}

const REPLACE_ROW: Sql = Sql {
    text: replace_row!("replace_row", ""),
    types: &[Type::TEXT; 9],
};

const REPLACE_ROW_AND_KEY_ID: Sql = Sql {
    text: replace_row!("replace_row_and_key_id", ", encryption_key_id = $10"),
    types: &[Type::TEXT; 10],
};

const SET_LOCK_TIMEOUT: Sql = Sql {
    text: "-- set_lock_timeout\nSELECT set_config('lock_timeout', $1, true)",
    types: &[Type::TEXT],
};

const LOCK_ROW: Sql = Sql {
    text: concat!(
        "-- lock_row\n",
        select_row!(),
        "WHERE c.organization_id = $1 FOR NO KEY UPDATE OF c"
    ),
    types: &[Type::TEXT],
};

impl<'a> Writer<'a> {
    pub(super) fn new(store: &'a Store, client: Object) -> Self {
        Self {
            store,
            client: Some(client),
            lost: AtomicBool::new(false),
        }
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
            let on = self.connection()?;
            match self.store.query(on, &READ_ROW, &[&organization_id]).await {
                Ok(rows) => return rows.first().map(Row::from_pg).transpose(),
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
        texts: &Texts,
        target: &KeyId,
    ) -> Result<Replaced, StoreError> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let on = self.connection()?;
            match self.store.replace(on, row, texts, target).await {
                Ok(replaced) => return Ok(replaced),
                Err(error) => self.recover(error, attempt).await?,
            }
        }
    }

    /// Locks the row, lets `decide` look at it, and writes the texts that it
    /// returns. For rows that change faster than they can be read and written back;
    /// the lock is held for as long as `decide` and two round trips take.
    ///
    /// # Errors
    ///
    /// As [`Writer::replace`].
    pub async fn replace_locked<T>(
        &mut self,
        organization_id: &str,
        target: &KeyId,
        mut decide: impl FnMut(&Row) -> (T, Option<Texts>),
    ) -> Result<LockedOutcome<T>, StoreError> {
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
        decide: &mut impl FnMut(&Row) -> (T, Option<Texts>),
    ) -> Result<LockedOutcome<T>, StoreError> {
        let store = self.store;
        let limit = millis(store.options.lock_timeout);
        // Dropped half-way, a transaction rolls itself back.
        let client = self.client.as_mut().ok_or_else(StoreError::no_connection)?;
        let begin = client
            .build_transaction()
            .isolation_level(IsolationLevel::ReadCommitted)
            .start();
        let transaction = store.within(begin).await?;
        let on = On::Transaction(&transaction);
        store.query(on, &SET_LOCK_TIMEOUT, &[&limit]).await?;
        let rows = store.query(on, &LOCK_ROW, &[&organization_id]).await?;
        let outcome = match rows.first().map(Row::from_pg).transpose()? {
            None => LockedOutcome::Gone,
            Some(row) => match decide(&row) {
                (verdict, None) => LockedOutcome::Kept(verdict),
                (verdict, Some(texts)) => match store.replace(on, &row, &texts, target).await? {
                    Replaced::Done => LockedOutcome::Replaced(verdict),
                    // Not possible under the lock, unless a trigger meddles.
                    Replaced::Missed => {
                        return Err(RowError::Refused("compare-and-set".to_owned()).into());
                    }
                },
            },
        };
        store.within(transaction.commit()).await?;
        Ok(outcome)
    }

    fn connection(&self) -> Result<On<'_>, StoreError> {
        let client = self.client.as_ref();
        client
            .map(On::Connection)
            .ok_or_else(StoreError::no_connection)
    }

    /// Makes ready for another attempt, or passes the error on.
    async fn recover(&self, error: StoreError, attempt: u32) -> Result<(), StoreError> {
        let exhausted = attempt >= self.store.options.max_attempts;
        match error {
            StoreError::Conflict(code) if exhausted => {
                Err(RowError::Conflicts(code.code().to_owned()).into())
            }
            StoreError::Conflict(_) => {
                self.store.pause().await;
                Ok(())
            }
            // Once is always allowed: it is no conflict with anybody.
            StoreError::StalePlan(code) if attempt > 1 && exhausted => {
                Err(RowError::Refused(code.code().to_owned()).into())
            }
            StoreError::StalePlan(_) => {
                self.store.forget_plans();
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
            other => {
                if matches!(
                    other,
                    StoreError::ConnectionLost(_) | StoreError::NoAnswer(_)
                ) {
                    self.lost.store(true, Ordering::Relaxed);
                }
                Err(other)
            }
        }
    }
}

impl Store {
    /// The compare-and-set itself.
    async fn replace(
        &self,
        on: On<'_>,
        row: &Row,
        texts: &Texts,
        target: &KeyId,
    ) -> Result<Replaced, StoreError> {
        let limit = millis(self.options.lock_timeout);
        let synchronous_commit = match self.options.commit {
            Commit::Barrier => Some("off"),
            Commit::Each => None,
        };
        let target = target.as_str();
        let [new_1, new_2, new_3] = texts;
        let [old_1, old_2, old_3] = &row.texts;
        let params: [&(dyn ToSql + Sync); 10] = [
            &row.organization_id,
            new_1,
            new_2,
            new_3,
            old_1,
            old_2,
            old_3,
            &limit,
            &synchronous_commit,
            &target,
        ];
        let rows = if self.has_key_id_column.load(Ordering::Relaxed) {
            self.query(on, &REPLACE_ROW_AND_KEY_ID, &params).await?
        } else {
            self.query(on, &REPLACE_ROW, &params[..9]).await?
        };
        // One row of one column, always; anything but 1 is not what was asked for.
        match rows.first().map(|row| row.try_get::<_, i64>(0)) {
            Some(Ok(1)) => Ok(Replaced::Done),
            _ => Ok(Replaced::Missed),
        }
    }
}

fn millis(duration: Duration) -> String {
    duration.as_millis().to_string()
}
