//! SQL statements and how they run. Each connection prepares a statement once. Behind a
//! pooler that may use another server connection for every transaction, no statement is
//! prepared by name.

use std::{pin::pin, time::Duration};

use deadpool_postgres::Object;
use futures_util::future;
use tokio_postgres::{
    Row as PgRow, RowStream, Statement as PreparedStatement,
    types::{ToSql, Type},
};

use super::{PoolMode, Store, StoreError};

/// How much longer than Postgres' own limit this program waits for an answer.
pub(super) const ANSWER_MARGIN: Duration = Duration::from_secs(1);

/// Settings of a transaction whose statements must find rows along an index. For a small
/// table, Postgres would read every block, and so also one that it cannot read. A plan that
/// was made earlier does not have these settings.
pub(super) const FOLLOW_THE_INDEX: &str = "; SET LOCAL plan_cache_mode = force_custom_plan; \
     SET LOCAL jit = off; SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off";

/// The text of a statement and the types of its parameters. The first line of the text
/// names the statement in the log of Postgres. With known types, an unprepared statement
/// too needs only one round trip.
pub(super) struct Statement {
    pub(super) text: &'static str,
    pub(super) types: &'static [Type],
}

/// A statement that is sent at the first poll of its future. It needs no earlier round
/// trip.
pub(super) enum Runnable {
    Prepared(PreparedStatement),
    /// The same message also prepares it, without a name.
    Unprepared(&'static Statement),
}

impl Runnable {
    /// Runs the statement on the connection that prepared it.
    pub(super) async fn query(
        &self,
        client: &Object,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<PgRow>, tokio_postgres::Error> {
        match self {
            Self::Prepared(statement) => client.query(statement, params).await,
            Self::Unprepared(sql) => client.query_typed(sql.text, &typed(sql, params)).await,
        }
    }

    /// Runs a statement and returns its rows one by one. If the caller takes no rows,
    /// Postgres waits.
    pub(super) async fn stream(
        &self,
        client: &Object,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<RowStream, tokio_postgres::Error> {
        match self {
            Self::Prepared(statement) => client.query_raw(statement, params.iter().copied()).await,
            Self::Unprepared(sql) => client.query_typed_raw(sql.text, typed(sql, params)).await,
        }
    }

    /// Runs the statement and returns only the number of rows.
    pub(super) async fn execute(
        &self,
        client: &Object,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<u64, tokio_postgres::Error> {
        match self {
            Self::Prepared(statement) => client.execute(statement, params).await,
            Self::Unprepared(sql) => client.execute_typed(sql.text, &typed(sql, params)).await,
        }
    }
}

impl Store {
    /// Runs one statement as its own transaction, alone on the connection.
    pub(super) async fn query(
        &self,
        client: &Object,
        sql: &'static Statement,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<PgRow>, StoreError> {
        let answer = async { self.ready(client, sql).await?.query(client, params).await };
        self.within(answer).await
    }

    /// Runs one statement behind up to `pipeline_depth` others on the connection.
    pub(super) async fn query_behind_rows(
        &self,
        client: &Object,
        sql: &'static Statement,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<PgRow>, StoreError> {
        let answer = async { self.ready(client, sql).await?.query(client, params).await };
        self.with_queue_timeout(self.options.pipeline_depth, answer)
            .await
    }

    /// Runs a statement that returns only the number of rows that it wrote, behind the
    /// others that are in flight on the connection.
    pub(super) async fn execute(
        &self,
        client: &Object,
        sql: &'static Statement,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<u64, StoreError> {
        let answer = async { self.ready(client, sql).await?.execute(client, params).await };
        self.with_queue_timeout(self.options.pipeline_depth, answer)
            .await
    }

    /// Prepares the statement, unless this was done before or a pooler forbids it.
    pub(super) async fn ready(
        &self,
        client: &Object,
        sql: &'static Statement,
    ) -> Result<Runnable, tokio_postgres::Error> {
        Ok(match self.options.pool_mode {
            PoolMode::Transaction => Runnable::Unprepared(sql),
            PoolMode::Session => {
                Runnable::Prepared(client.prepare_typed_cached(sql.text, sql.types).await?)
            }
        })
    }

    /// Sends both statements at once, in this order, and waits for both answers.
    pub(super) async fn pipeline<A, B>(
        &self,
        first: impl Future<Output = A>,
        second: impl Future<Output = B>,
    ) -> Result<(A, B), StoreError> {
        let both = future::join(first, second);
        self.with_queue_timeout(2, async { Ok(both.await) }).await
    }

    /// Limits the wait for an answer on this side too. A server that hangs and a network
    /// that drops packets send no error.
    pub(super) fn within<T>(
        &self,
        answer: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> impl Future<Output = Result<T, StoreError>> {
        // Not an async function: its future would contain `answer` twice.
        self.with_queue_timeout(1, answer)
    }

    /// Limits the wait for the last of `queued` statements on one connection. Each
    /// statement ahead of it may use its full time.
    pub(super) async fn with_queue_timeout<T>(
        &self,
        queued: usize,
        answer: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, StoreError> {
        let queued = u32::try_from(queued).unwrap_or(u32::MAX);
        let limit = self.options.statement_timeout.saturating_mul(queued) + ANSWER_MARGIN;
        let mut was_noted = false;
        let waits_for_pooler = || self.note_pooler_queue(&mut was_noted);
        match self.wait_for(limit, pin!(answer), waits_for_pooler).await {
            Some(result) => result.map_err(StoreError::from),
            None => Err(StoreError::NoAnswer(limit)),
        }
    }
}

fn typed<'a>(
    sql: &Statement,
    params: &[&'a (dyn ToSql + Sync)],
) -> Vec<(&'a (dyn ToSql + Sync), Type)> {
    params
        .iter()
        .copied()
        .zip(sql.types.iter().cloned())
        .collect()
}
