//! A transaction that locks one row for the time of a decision and one round trip.
//!
//! The transactions of the driver need a round trip for each of BEGIN, statement and
//! COMMIT. Here the COMMIT is sent right behind the write, before the answer to the write
//! arrives. That is safe: if the write fails, Postgres treats the COMMIT as a ROLLBACK. It
//! reports success for that too, so only the answer to the write tells what happened.

use std::sync::atomic::{AtomicBool, Ordering};

use deadpool_postgres::Object;
use futures_util::future::{join, ready};
use tokio_postgres::types::Type;

use super::{
    CasOutcome, Row, Store, StoreError,
    page::{select_row, text, texts, version},
    replace::StatementVariant,
    statement::{FOLLOW_THE_INDEX, Runnable, Statement},
    verified::{STATEMENTS_PER_ROW, Verified},
};
use crate::domain::{keyring::KeyId, rewrap::Envelopes};

const LOCK_ROW: Statement = Statement {
    text: concat!(
        "-- lock_row\n",
        select_row!(),
        "WHERE c.organization_id = $1 FOR NO KEY UPDATE OF c"
    ),
    types: &[Type::TEXT],
};

/// The open transaction with its locked row. No other statement may be in flight on the
/// connection.
pub(super) struct Locked<'a> {
    store: &'a Store,
    client: &'a Object,
    variant: StatementVariant,
    write: Write,
    /// Whether the transaction may still be open.
    open: bool,
    /// Set when the connection must not be used again.
    lost: &'a AtomicBool,
}

/// How the locked row is written.
enum Write {
    Plain(Runnable),
    Verified(Verified),
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        // An unfinished transaction ends with its connection.
        if self.open {
            self.lost.store(true, Ordering::Relaxed);
        }
    }
}

impl<'a> Locked<'a> {
    /// Locks the row and returns its current content, or `None` if it is gone.
    pub(super) async fn row(
        store: &'a Store,
        client: &'a Object,
        lost: &'a AtomicBool,
        organization_id: &str,
        verify: bool,
    ) -> Result<(Self, Option<Row>), StoreError> {
        let variant = store.variant(verify);
        // Prepare first: otherwise the COMMIT would be sent before the statement.
        let lock_row = store.within(store.ready(client, &LOCK_ROW)).await?;
        let write = async {
            Ok(if verify {
                Write::Verified(Verified::prepare(store, client, variant.sql()).await?)
            } else {
                Write::Plain(store.ready(client, variant.sql()).await?)
            })
        };
        let write = store.within(write).await?;
        let locked = Self {
            store,
            client,
            variant,
            write,
            open: true,
            lost,
        };
        let begin = format!("{}{FOLLOW_THE_INDEX}", store.begin_writing());
        let (begun, rows) = store
            .pipeline(
                client.batch_execute(&begin),
                lock_row.query(client, &[&organization_id]),
            )
            .await?;
        let rows = begun.and(rows).map_err(StoreError::from);
        match rows.and_then(|rows| rows.first().map(Row::from_pg).transpose()) {
            Ok(row) => Ok((locked, row)),
            Err(error) => {
                locked.rollback().await?;
                Err(error)
            }
        }
    }

    /// Ends the transaction without a write.
    pub(super) async fn rollback(mut self) -> Result<(), StoreError> {
        let rollback = self.client.batch_execute("ROLLBACK");
        self.store.within(rollback).await?;
        self.open = false;
        Ok(())
    }

    /// Writes these texts to the row, bumps the version, and ends the transaction.
    pub(super) async fn replace(
        mut self,
        row: &Row,
        texts: &Envelopes,
        target: &KeyId,
    ) -> Result<CasOutcome, StoreError> {
        let replacement = match self.store.replacement(self.variant, row, texts, target) {
            Ok(replacement) => replacement,
            Err(error) => {
                self.rollback().await?;
                return Err(error.into());
            }
        };
        let params = replacement.params();
        let ended = match &self.write {
            Write::Plain(replace_row) => {
                let write = replace_row.execute(self.client, &params);
                let commit = self.client.batch_execute("COMMIT");
                let both = async {
                    let (written, committed) = join(write, commit).await;
                    written.and_then(|rows| committed.map(|()| rows))
                };
                self.store.with_queue_timeout(2, both).await
            }
            Write::Verified(verified) => {
                let write = verified.execute(self.client, ready(Ok(())), &params);
                let statements = STATEMENTS_PER_ROW;
                self.store.with_queue_timeout(statements, write).await
            }
        };
        // An answer, even an error, means that the transaction has ended.
        self.open = matches!(ended, Err(StoreError::NoAnswer(_)));
        Ok(CasOutcome::from_count(ended?))
    }
}
