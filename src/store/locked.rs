//! A transaction that locks one row, and holds the lock for no longer than a decision and
//! one round trip.
//!
//! The driver's own transactions take a round trip for each of BEGIN, statement and
//! COMMIT. Here the COMMIT goes out right behind the write, before there is an answer to
//! it. That is safe, since Postgres makes a ROLLBACK of it if the write fails; it says
//! that this went well, too, so that only the answer to the write tells what happened.

use std::sync::atomic::{AtomicBool, Ordering};

use deadpool_postgres::Object;
use tokio_postgres::types::Type;

use super::{
    CasOutcome, Row, Store, StoreError,
    page::{select_row, text, texts, version},
    replace::StatementVariant,
    statement::{Runnable, Statement},
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

/// The transaction, with its row locked. Nothing else may be under way on the connection.
pub(super) struct Locked<'a> {
    store: &'a Store,
    client: &'a Object,
    variant: StatementVariant,
    replace_row: Runnable,
    /// Whether it has not ended, for all we know.
    open: bool,
    /// What says that the connection is of no use to others.
    lost: &'a AtomicBool,
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        // Given up half-way, it ends with its connection.
        if self.open {
            self.lost.store(true, Ordering::Relaxed);
        }
    }
}

impl<'a> Locked<'a> {
    /// Locks the row, and gives it as it is then; `None` if it is gone.
    pub(super) async fn row(
        store: &'a Store,
        client: &'a Object,
        lost: &'a AtomicBool,
        organization_id: &str,
    ) -> Result<(Self, Option<Row>), StoreError> {
        let variant = store.variant();
        // One that had to be prepared first would be overtaken by the COMMIT.
        let lock_row = store.within(store.ready(client, &LOCK_ROW)).await?;
        let replace_row = store.within(store.ready(client, variant.sql())).await?;
        let locked = Self {
            store,
            client,
            variant,
            replace_row,
            open: true,
            lost,
        };
        let begin = format!(
            "START TRANSACTION ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = {}",
            store.options.lock_timeout.as_millis()
        );
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

    /// Ends the transaction with nothing written.
    pub(super) async fn rollback(mut self) -> Result<(), StoreError> {
        let rollback = self.client.batch_execute("ROLLBACK");
        self.store.within(rollback).await?;
        self.open = false;
        Ok(())
    }

    /// Gives the row these texts, bumps the version, and ends the transaction.
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
        let (written, committed) = self
            .store
            .pipeline(
                self.replace_row.execute(self.client, &replacement.params()),
                self.client.batch_execute("COMMIT"),
            )
            .await?;
        // It was answered, with whatever word: a COMMIT that fails is the end as well.
        self.open = false;
        let rows = written?;
        committed?;
        Ok(CasOutcome::from_count(rows))
    }
}
