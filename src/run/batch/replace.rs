//! Writes one row: compare-and-set, and decide again if the row has changed.

use tokio::time::Instant;

use super::Batch;
use crate::{
    failpoint::{Point, reach},
    run::{
        pending::{Pending, Progress},
        report::RowOutcome,
    },
    store::{CasOutcome, RowError, StoreError, Writer},
    telemetry,
};

/// Compare-and-set attempts before the row is locked for the last attempt.
const OPTIMISTIC_TRIES: u32 = 3;

impl Batch {
    /// Compare-and-set. The row stays open if it changes too often.
    pub(super) async fn replace(
        &self,
        writer: &Writer<'_>,
        pending: &mut Pending,
    ) -> Result<(), StoreError> {
        let attempt = self.try_to_replace(writer, pending).await;
        self.conclude(pending, attempt)
    }

    /// Records the result of an attempt. If the row has an outcome, it also counts towards the
    /// limit of failed rows.
    pub(super) fn conclude(
        &self,
        pending: &mut Pending,
        attempt: Result<Option<RowOutcome>, StoreError>,
    ) -> Result<(), StoreError> {
        pending.conclude(attempt)?;
        if let Progress::Finished(outcome) = &pending.progress {
            self.failure_limit.count(outcome);
        }
        Ok(())
    }

    async fn try_to_replace(
        &self,
        writer: &Writer<'_>,
        pending: &mut Pending,
    ) -> Result<Option<RowOutcome>, StoreError> {
        if self.stop.is_cancelled() {
            return Ok(None);
        }
        let target = self.context.site.keyring.target().id();
        let mut tries = 0;
        // After a lost connection, the content of the row is unknown.
        let mut must_read = pending.has_doubts();
        loop {
            pending.sent = Some(Instant::now());
            if must_read {
                let Some(row) = writer.row(&pending.row.organization_id).await? else {
                    return Ok(Some(RowOutcome::Gone));
                };
                if let Some(outcome) = pending.written_as(&row.texts) {
                    return Ok(Some(outcome));
                }
                if row.texts == pending.texts {
                    // The row has the new texts, but a trigger on tenants kept its old version.
                    return Err(RowError::NotBumped.into());
                }
                match self.decide(&row) {
                    Err(outcome) => return Ok(Some(outcome)),
                    Ok((texts, outcome)) => pending.replan(row, texts, outcome),
                }
                if tries >= OPTIMISTIC_TRIES {
                    return Ok(None);
                }
            }
            tries += 1;
            pending.progress = Progress::Sent;
            reach(Point::BeforeWrite);
            let replaced = writer.replace(&pending.row, &pending.texts, target).await;
            reach(Point::AfterWrite);
            if replaced.as_ref().is_err_and(StoreError::is_damage) {
                // For a small table, Postgres reads every block, including a damaged block.
                // Under the lock, it uses the index.
                pending.progress = Progress::Open;
                return Ok(None);
            }
            let replaced = replaced?;
            pending.progress = Progress::Open;
            match replaced {
                CasOutcome::Applied => return Ok(Some(pending.take_outcome())),
                CasOutcome::Conflict => {
                    telemetry::row_raced();
                    must_read = true;
                }
            }
        }
    }

    pub(super) async fn replace_locked(
        &self,
        writer: &mut Writer<'_>,
        pending: &mut Pending,
    ) -> Result<(), StoreError> {
        let target = self.context.site.keyring.target().id();
        let id = pending.row.organization_id.clone();
        pending.sent = Some(Instant::now());
        let written = writer
            .replace_locked(&id, target, |row| match self.decide(row) {
                Err(outcome) => (outcome, None),
                Ok((texts, outcome)) => {
                    pending.note_doubt(row.texts.clone(), texts.clone(), outcome.clone());
                    (outcome, Some(texts))
                }
            })
            .await;
        if let Ok(Some(RowOutcome::Updated { .. })) = &written {
            pending.last_doubt_is_written();
        }
        let outcome = written.map(|outcome| Some(outcome.unwrap_or(RowOutcome::Gone)));
        self.conclude(pending, outcome)
    }
}
