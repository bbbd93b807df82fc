//! Makes sure that everything in a report is durable, and that Postgres did not crash since
//! the run began.

use deadpool_postgres::Object;
use tokio_postgres::Row as PgRow;

use super::{Store, StoreError, statement::Statement};

// A value that changes with a crash of Postgres. A reset of the statistics also changes it.
// The start time of the postmaster is not enough: it survives the crash of another process,
// and the recovery after that resets the statistics. A standby shows only rows that are
// durable on its primary, so all standbys are equal here.
macro_rules! incarnation {
    () => {
        "CASE WHEN pg_is_in_recovery() THEN 'a standby' ELSE concat_ws(' ', \
         extract(epoch FROM pg_postmaster_start_time()), \
         extract(epoch FROM pg_stat_get_bgwriter_stat_reset_time())) END"
    };
}

// A commit is flushed only if its transaction wrote to the log. The logical message is such
// a write. The commit waits as the site's `synchronous_commit` demands, replicas included.
// Only the value `off` is replaced, by `on`.
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

/// Identifies a Postgres server between two starts or recoveries. While it is the same, no
/// committed transaction was lost, flushed or not.
#[derive(Debug, PartialEq, Eq)]
pub struct Incarnation(String);

impl Incarnation {
    fn from_pg(row: &PgRow) -> Result<Self, StoreError> {
        Ok(Self(row.try_get(0)?))
    }
}

/// Limit for a flush, in multiples of `statement_timeout`. A synchronous standby may be
/// slow, and Postgres itself has no limit.
const FLUSH_TIMEOUTS: usize = 12;

impl Store {
    /// Reads the current incarnation of the server.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`] when the server does not answer.
    pub async fn incarnation(&self) -> Result<Incarnation, StoreError> {
        let rows = self.read(&INCARNATION, &[]).await?;
        Incarnation::from_pg(rows.first().ok_or_else(StoreError::no_answer)?)
    }

    /// Flushes everything that any transaction committed before. When this returns, no
    /// crash of Postgres can undo it, and Postgres has not crashed since it was `before`.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`]: committed rows may not be durable.
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
            "it was restarted during the run, or its statistics were reset: rows that were \
             committed before that may be lost"
                .to_owned(),
        ))
    }

    /// Number of commits that Postgres reported as done although no synchronous standby had
    /// confirmed them, because somebody cancelled the wait. Only the connections that read
    /// and write rows are counted. If this number changes during a statement, the commit of
    /// that statement may be one of them.
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
