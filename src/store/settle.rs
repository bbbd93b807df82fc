//! Finds out the outcome of writes that got no answer.
//!
//! A connection that was given up may carry writes that Postgres has committed or will
//! still commit. This module ends the sessions first. Then the rows show what was
//! committed.

use std::time::Duration;

use deadpool_postgres::Object;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_postgres::types::Type;

use super::{
    PoolMode, Row, Store, StoreError, Wait,
    page::{select_row, text, texts, version},
    statement::Statement,
};

/// Pause between two checks whether the sessions have ended.
const PAUSE: Duration = Duration::from_millis(20);

/// Limit for finding out whether a silent server answers on another connection, and for the
/// end of the silent session.
const SILENT_SESSION_LIMIT: Duration = Duration::from_secs(1);

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

// Behind a pooler in transaction mode, the session is not known. It is one that has been
// writing a row for longer than a statement may run.
const END_SILENT_SESSION: Statement = Statement {
    text: "-- end_silent_session\n\
           SELECT CASE WHEN wait_event = 'SyncRep' \
               THEN current_setting('synchronous_standby_names') END, \
             CASE WHEN wait_event IS DISTINCT FROM 'SyncRep' \
               THEN pg_terminate_backend(pid) END \
           FROM pg_stat_activity \
           WHERE usename = current_user \
             AND application_name = current_setting('application_name') \
             AND pid <> pg_backend_pid() \
             AND CASE WHEN $1 IS NOT NULL THEN pid = $1 \
               ELSE state = 'active' \
                 AND xact_start < clock_timestamp() - $2 * interval '1 s' \
                 AND (query LIKE ANY (ARRAY['-- replace\\_row%', '-- verify\\_row%', \
                     '-- lock\\_row%']) \
                   OR query IN ('COMMIT', 'SET CONSTRAINTS ALL IMMEDIATE')) END",
    types: &[Type::INT4, Type::FLOAT8],
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

    /// Ends a session that has been silent for longer than a statement may run. Returns what
    /// the session waits for if it must not be ended.
    pub(super) async fn end_silent_session(
        &self,
        backend: Option<Backend>,
    ) -> Result<Option<Wait>, StoreError> {
        let limit = SILENT_SESSION_LIMIT;
        let ended = async {
            let client = self.any_client().await?;
            let seconds = self.options.statement_timeout.as_secs_f64();
            let wait = loop {
                let rows = self
                    .query(&client, &END_SILENT_SESSION, &[&backend, &seconds])
                    .await?;
                let Some(row) = rows.first() else {
                    break None;
                };
                if let Some(standbys) = row.try_get(0)? {
                    break Some(Wait::SynchronousStandby { standbys });
                }
                sleep(PAUSE).await;
            };
            client.release();
            Ok(wait)
        };
        let ended = timeout(limit, ended).await;
        ended.unwrap_or(Err(StoreError::NoAnswer(limit)))
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
