//! A statement and how it is run: prepared once for each connection, or, through a
//! pooler that may use another server connection for every transaction, not
//! prepared by name at all.

use std::time::Duration;

use deadpool_postgres::{Object, Transaction};
use tokio_postgres::{
    Row as PgRow, Statement,
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

/// A statement whose message goes out when [`Ready::query`] is first polled: nothing has
/// to be asked of the server before.
pub(super) enum Ready {
    Prepared(Statement),
    /// To be prepared, without a name, in the same message.
    Unprepared(&'static Sql),
}

impl Ready {
    /// Runs the statement on the connection for which it was made.
    pub(super) async fn query(
        &self,
        on: On<'_>,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<PgRow>, tokio_postgres::Error> {
        match (self, on) {
            (Self::Prepared(statement), On::Connection(client)) => {
                client.query(statement, params).await
            }
            (Self::Prepared(statement), On::Transaction(transaction)) => {
                transaction.query(statement, params).await
            }
            (Self::Unprepared(sql), On::Connection(client)) => {
                client.query_typed(sql.text, &typed(sql, params)).await
            }
            (Self::Unprepared(sql), On::Transaction(transaction)) => {
                transaction.query_typed(sql.text, &typed(sql, params)).await
            }
        }
    }
}

impl Store {
    /// Runs one statement.
    pub(super) async fn query(
        &self,
        on: On<'_>,
        sql: &'static Sql,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<PgRow>, StoreError> {
        let answer = async { self.ready(on, sql).await?.query(on, params).await };
        let turns = match on {
            On::Connection(_) => self.options.pipeline_depth,
            On::Transaction(_) => 1,
        };
        self.within_turns(turns, answer).await
    }

    /// Prepares the statement, if that was not done yet and is to be done at all.
    pub(super) async fn ready(
        &self,
        on: On<'_>,
        sql: &'static Sql,
    ) -> Result<Ready, tokio_postgres::Error> {
        let (text, types) = (sql.text, sql.types);
        Ok(match (self.options.pooler, on) {
            (Pooler::Transaction, _) => Ready::Unprepared(sql),
            (Pooler::Session, On::Connection(client)) => {
                Ready::Prepared(client.prepare_typed_cached(text, types).await?)
            }
            (Pooler::Session, On::Transaction(transaction)) => {
                Ready::Prepared(transaction.prepare_typed_cached(text, types).await?)
            }
        })
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
    pub(super) async fn within_turns<T>(
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
