//! Finds out the outcome of writes that got no answer.
//!
//! A connection that was given up may carry writes that Postgres has committed or will
//! still commit. This module ends the sessions first. Then the rows show what was
//! committed.

use std::time::Duration;

use deadpool_postgres::Object;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_postgres::types::Type;

use super::{
    PoolMode, Row, Store, StoreError,
    page::{select_row, text, texts, version},
    statement::Statement,
};

/// Pause between two checks whether the sessions have ended.
const PAUSE: Duration = Duration::from_millis(20);

/// The process of Postgres that serves one connection (`pg_backend_pid()`).
pub(super) type Backend = i32;

/// The result of [`Store::settle`].
#[derive(Debug)]
pub struct Settled {
    /// The rows as they are now. Deleted rows are absent.
    pub rows: Vec<Row>,
    /// Whether the sessions that wrote have ended, so that no further write can follow.
    pub is_final: bool,
}

const BACKEND_PID: Statement = Statement {
    text: "-- backend_pid\nSELECT pg_backend_pid()",
    types: &[],
};

// Only sessions of this program and this role: Postgres may have given the process id to
// another session since.
const END_SESSIONS: Statement = Statement {
    text: "-- end_sessions\n\
           SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
           WHERE pid = ANY($1) AND usename = current_user \
             AND application_name = current_setting('application_name') \
             AND pid <> pg_backend_pid()",
    types: &[Type::INT4_ARRAY],
};

const READ_ROWS: Statement = Statement {
    text: concat!(
        "-- read_rows\n",
        select_row!(),
        "WHERE c.organization_id = ANY($1)"
    ),
    types: &[Type::TEXT_ARRAY],
};

impl Store {
    /// The process that serves a connection of the pool. Postgres is asked once for each
    /// connection.
    pub(super) async fn known_backend(
        &self,
        client: &Object,
    ) -> Result<Option<Backend>, StoreError> {
        let id = Object::id(client);
        if let Some(backend) = self.backends().get(&id) {
            return Ok(Some(*backend));
        }
        let Some(backend) = self.backend(client).await? else {
            return Ok(None);
        };
        let mut backends = self.backends();
        // Entries of closed connections are dropped now and then.
        if backends.len() > 4 * self.options.database_pool_size {
            backends.clear();
        }
        backends.insert(id, backend);
        Ok(Some(backend))
    }

    /// The process that serves this connection. `None` behind a pooler that may use another
    /// server connection for every transaction.
    pub(super) async fn backend(&self, client: &Object) -> Result<Option<Backend>, StoreError> {
        if self.options.pool_mode == PoolMode::Transaction {
            return Ok(None);
        }
        let rows = self.query(client, &BACKEND_PID, &[]).await?;
        Ok(rows.first().ok_or_else(StoreError::no_answer)?.try_get(0)?)
    }

    /// Ends the sessions `backends`, which may still be writing some of the rows `ids`, and
    /// reads these rows. All of it takes at most `limit`.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the database does not answer in time.
    pub async fn settle(
        &self,
        backends: &[Option<i32>],
        ids: &[&str],
        limit: Duration,
    ) -> Result<Settled, StoreError> {
        let deadline = Instant::now() + limit;
        let settled = timeout_at(deadline, self.try_to_settle(backends, ids, deadline));
        settled.await.unwrap_or(Err(StoreError::NoAnswer(limit)))
    }

    async fn try_to_settle(
        &self,
        backends: &[Option<Backend>],
        ids: &[&str],
        deadline: Instant,
    ) -> Result<Settled, StoreError> {
        let client = self.any_client().await?;
        let known: Vec<Backend> = backends.iter().flatten().copied().collect();
        let mut is_final = known.len() == backends.len();
        while is_final {
            // No row means that every session ended before the snapshot of this statement.
            let live = self.query(&client, &END_SESSIONS, &[&known]).await?;
            if live.is_empty() {
                break;
            }
            is_final = Instant::now() + 5 * PAUSE < deadline;
            sleep(PAUSE).await;
        }
        let rows = self.query(&client, &READ_ROWS, &[&ids]).await?;
        client.release();
        let rows = rows.iter().map(Row::from_pg).collect::<Result<_, _>>()?;
        Ok(Settled { rows, is_final })
    }
}
