//! What makes a report true: everything that it tells of is durable, on the server that
//! was there when the run began.

use deadpool_postgres::Object;
use tokio_postgres::Row as PgRow;

use super::{Store, StoreError, statement::Statement};

// What a crash changes, and nothing else does but somebody who resets the statistics: the
// postmaster survives that of another process, and recovery then begins them anew. What a
// standby shows was durable before it got there, whichever of several it is.
macro_rules! incarnation {
    () => {
        "CASE WHEN pg_is_in_recovery() THEN 'a standby' ELSE concat_ws(' ', \
         extract(epoch FROM pg_postmaster_start_time()), \
         extract(epoch FROM pg_stat_get_bgwriter_stat_reset_time())) END"
    };
}

// A commit flushes nothing unless its transaction wrote to the log itself: that is
// what the message is for. It waits for what the site's setting asks for, replicas
// included; only a site that has asynchronous commits throughout is overruled.
macro_rules! flush {
    () => {
        "set_config('synchronous_commit', \
             CASE reset_val WHEN 'off' THEN 'on' ELSE reset_val END, true), \
         CASE WHEN NOT pg_is_in_recovery() \
             THEN pg_logical_emit_message(true, 'nico-rewrap', '')::text END \
         FROM pg_settings WHERE name = 'synchronous_commit'"
    };
}

pub(super) use flush;

const INCARNATION: Statement = Statement {
    text: concat!("-- incarnation\nSELECT ", incarnation!()),
    types: &[],
};

const BARRIER: Statement = Statement {
    text: concat!("-- barrier\nSELECT ", incarnation!(), ", ", flush!()),
    types: &[],
};

/// A Postgres server from one start or recovery to the next: it keeps all that was
/// committed meanwhile, flushed or not.
#[derive(Debug, PartialEq, Eq)]
pub struct Incarnation(String);

impl Incarnation {
    fn from_pg(row: &PgRow) -> Result<Self, StoreError> {
        Ok(Self(row.try_get(0)?))
    }
}

/// How long a flush may take, in multiples of `statement_timeout`: a synchronous standby
/// may be slow, and Postgres itself sets no limit.
const FLUSH_TIMEOUTS: usize = 12;

impl Store {
    /// The server as it is now.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`] when it does not say.
    pub async fn incarnation(&self) -> Result<Incarnation, StoreError> {
        let rows = self.read(&INCARNATION, &[]).await?;
        Incarnation::from_pg(rows.first().ok_or_else(StoreError::no_answer)?)
    }

    /// Makes everything durable that was committed before, by whom ever: when this
    /// returns, no crash of Postgres takes it back, and none has since the server was
    /// `before`.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`]: nothing is known to be durable.
    pub async fn barrier(&self, before: &Incarnation) -> Result<(), StoreError> {
        let client = self.client().await?;
        let rows = self.flush(&client, &BARRIER).await;
        let now = rows
            .and_then(|rows| Incarnation::from_pg(rows.first().ok_or_else(StoreError::no_answer)?))
            .map_err(StoreError::into_unavailable)?;
        client.release();
        if now == *before {
            return Ok(());
        }
        Err(StoreError::Unavailable(
            "it was restarted during the run, or its statistics were reset: rows that it had \
             committed before may be lost"
                .to_owned(),
        ))
    }

    /// Commits on the connections that read and write rows which Postgres reported as done
    /// although their synchronous standby had not confirmed them: somebody cancelled the
    /// wait. If the number differs before and after a statement, that statement's commit may
    /// be one of them.
    #[must_use]
    pub fn unreplicated_commits(&self) -> u64 {
        self.notices.unreplicated_commits()
    }

    /// Runs a statement whose commit waits for the disk and for synchronous standbys.
    pub(super) async fn flush(
        &self,
        client: &Object,
        sql: &'static Statement,
    ) -> Result<Vec<PgRow>, StoreError> {
        let answer = async { self.ready(client, sql).await?.query(client, &[]).await };
        self.with_queue_timeout(FLUSH_TIMEOUTS, answer).await
    }
}
