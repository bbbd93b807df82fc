//! A statement and how it is run: prepared once for each connection, or, through a
//! pooler that may use another server connection for every transaction, not
//! prepared by name at all.

use std::time::Duration;

use deadpool_postgres::{Object, Transaction};
use tokio_postgres::{
    Row as PgRow,
    types::{ToSql, Type},
};

use super::{Pooler, Store, StoreError};

/// The text of a statement, its name in the first line for Postgres' log, and the
/// types of its parameters: with these said, a statement that is not prepared
/// beforehand needs one round trip all the same.
pub(super) struct Sql {
    pub(super) text: &'static str,
    pub(super) types: &'static [Type],
}

/// What a statement is run on.
#[derive(Clone, Copy)]
pub(super) enum On<'a> {
    /// A connection: the statement is a transaction of its own.
    Connection(&'a Object),
    /// A transaction that somebody else ends.
    Transaction(&'a Transaction<'a>),
}

impl Store {
    /// Runs one statement.
    pub(super) async fn query(
        &self,
        on: On<'_>,
        sql: &Sql,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<PgRow>, StoreError> {
        let answer = async {
            match (self.options.pooler, on) {
                (Pooler::Session, On::Connection(client)) => {
                    let statement = client.prepare_typed_cached(sql.text, sql.types).await?;
                    client.query(&statement, params).await
                }
                (Pooler::Session, On::Transaction(transaction)) => {
                    let statement = transaction
                        .prepare_typed_cached(sql.text, sql.types)
                        .await?;
                    transaction.query(&statement, params).await
                }
                (Pooler::Transaction, On::Connection(client)) => {
                    client.query_typed(sql.text, &typed(sql, params)).await
                }
                (Pooler::Transaction, On::Transaction(transaction)) => {
                    transaction.query_typed(sql.text, &typed(sql, params)).await
                }
            }
        };
        let turns = match on {
            On::Connection(_) => self.options.pipeline_depth,
            On::Transaction(_) => 1,
        };
        self.within_turns(turns, answer).await
    }

    /// Bounds the wait for an answer on our side too: a server that hangs, or a
    /// network that swallows packets, sends no error.
    pub(super) async fn within<T>(
        &self,
        answer: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, StoreError> {
        self.within_turns(1, answer).await
    }

    /// The same, for the last of `turns` statements on one connection: those ahead of
    /// it may take their time first.
    async fn within_turns<T>(
        &self,
        turns: usize,
        answer: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, StoreError> {
        let turns = u32::try_from(turns).unwrap_or(u32::MAX);
        let limit = self.options.statement_timeout.saturating_mul(turns) + Duration::from_secs(1);
        match tokio::time::timeout(limit, answer).await {
            Ok(result) => result.map_err(StoreError::from),
            Err(_) => Err(StoreError::NoAnswer(limit)),
        }
    }
}

fn typed<'a>(sql: &Sql, params: &[&'a (dyn ToSql + Sync)]) -> Vec<(&'a (dyn ToSql + Sync), Type)> {
    params
        .iter()
        .copied()
        .zip(sql.types.iter().cloned())
        .collect()
}
