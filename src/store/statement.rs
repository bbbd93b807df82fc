//! A statement and how it is run: prepared once for each connection, or, through a
//! pooler that may use another server connection for every transaction, not
//! prepared by name at all.

use std::time::Duration;

use deadpool_postgres::Object;
use futures_util::future;
use tokio_postgres::{
    Row as PgRow, RowStream, Statement as PreparedStatement,
    types::{ToSql, Type},
};

use super::{PoolMode, Store, StoreError};

/// How much longer than Postgres this program waits for an answer.
pub(super) const ANSWER_MARGIN: Duration = Duration::from_secs(1);

/// The text of a statement, its name in the first line for Postgres' log, and the
/// types of its parameters: with these said, a statement that is not prepared
/// beforehand needs one round trip all the same.
pub(super) struct Statement {
    pub(super) text: &'static str,
    pub(super) types: &'static [Type],
}

/// A statement whose message goes out when its future is first polled: nothing has to be
/// asked of the server before.
pub(super) enum Runnable {
    Prepared(PreparedStatement),
    /// To be prepared, without a name, in the same message.
    Unprepared(&'static Statement),
}

impl Runnable {
    /// Runs the statement on the connection for which it was made.
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

    /// Runs a statement without parameters and hands its rows over one by one. Postgres waits
    /// when they are not taken.
    pub(super) async fn stream(&self, client: &Object) -> Result<RowStream, tokio_postgres::Error> {
        match self {
            Self::Prepared(statement) => {
                let none: [&(dyn ToSql + Sync); 0] = [];
                client.query_raw(statement, none).await
            }
            Self::Unprepared(sql) => {
                let none: [(&(dyn ToSql + Sync), Type); 0] = [];
                client.query_typed_raw(sql.text, none).await
            }
        }
    }

    /// The same for a statement of which only the number of rows counts.
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
    /// Runs one statement, as a transaction of its own, alone on the connection.
    pub(super) async fn query(
        &self,
        client: &Object,
        sql: &'static Statement,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<PgRow>, StoreError> {
        let answer = async { self.ready(client, sql).await?.query(client, params).await };
        self.within(answer).await
    }

    /// The same, behind as many rows as may be under way on the connection.
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

    /// Runs a statement that returns nothing but how many rows it wrote, behind the
    /// others that are under way on the connection.
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

    /// Prepares the statement, if that was not done yet and is to be done at all.
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

    /// Sends the one right behind the other, in this order, and waits for both answers.
    pub(super) async fn pipeline<A, B>(
        &self,
        first: impl Future<Output = A>,
        second: impl Future<Output = B>,
    ) -> Result<(A, B), StoreError> {
        let both = future::join(first, second);
        self.with_queue_timeout(2, async { Ok(both.await) }).await
    }

    /// Bounds the wait for an answer on our side too: a server that hangs, or a
    /// network that swallows packets, sends no error.
    pub(super) async fn within<T>(
        &self,
        answer: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, StoreError> {
        self.with_queue_timeout(1, answer).await
    }

    /// The same, for the last of `turns` statements on one connection: those ahead of
    /// it may take their time first.
    pub(super) async fn with_queue_timeout<T>(
        &self,
        turns: usize,
        answer: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, StoreError> {
        let turns = u32::try_from(turns).unwrap_or(u32::MAX);
        let limit = self.options.statement_timeout.saturating_mul(turns) + ANSWER_MARGIN;
        match tokio::time::timeout(limit, answer).await {
            Ok(result) => result.map_err(StoreError::from),
            Err(_) => Err(StoreError::NoAnswer(limit)),
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
