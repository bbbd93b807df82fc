//! Writes the rows of a batch. Takes another connection after a lost connection, and finds out
//! whether unanswered writes are committed.

use std::time::Duration;

use tokio::time::sleep;

use super::Batch;
use crate::{
    run::{RunError, pending::Pending},
    store::{StoreError, Writer},
};

/// How long a stopped run waits for the answers to its statements.
const STOP_GRACE: Duration = Duration::from_millis(300);

/// Time limit for reading the rows of unanswered writes.
const SETTLE_LIMIT: Duration = Duration::from_secs(1);

impl Batch {
    /// Writes all rows. Adds the sessions of abandoned connections to `sessions`.
    pub(super) async fn write_all(
        &self,
        rows: &mut [Pending],
        sessions: &mut Vec<Option<i32>>,
    ) -> Result<(), RunError> {
        let store = &self.context.site.store;
        let mut lost_connections = 0;
        while rows.iter().any(Pending::is_open) {
            if self.stop.is_cancelled() {
                return Err(RunError::Stopped);
            }
            self.failure_limit.check()?;
            let writer = self.context.writer(self.is_site);
            let writer = self.stop.run_until_cancelled(writer).await;
            let (writer, _permit) = writer.ok_or(RunError::Stopped)??;
            let mut writer = writer.verifying(self.verify);
            let ended = tokio::select! {
                biased;
                ended = self.write(&mut writer, rows) => ended,
                () = self.stop_grace_is_over() => Err(RunError::Stopped),
            };
            match ended {
                Ok(()) => {}
                Err(RunError::Store(StoreError::NoAnswer(limit))) => {
                    let session = writer.session();
                    let ended = Box::pin(self.end_silent_session(writer, limit)).await;
                    if ended.is_err() {
                        sessions.push(session);
                    }
                    ended?;
                    Box::pin(self.fail_silent_row(rows, limit)).await?;
                }
                Err(error) => {
                    sessions.push(writer.session());
                    writer.give_up();
                    let is_lost = matches!(error, RunError::Store(StoreError::ConnectionLost(_)));
                    lost_connections += u32::from(is_lost);
                    if !is_lost || lost_connections >= store.options().max_attempts {
                        return Err(error);
                    }
                    // The next attempt reads these rows before it writes them.
                    rows.iter_mut().for_each(Pending::keep_in_doubt);
                    store.retry_backoff().await;
                }
            }
        }
        Ok(())
    }

    /// Ends the session of a writer that got no answer for `limit`. Does nothing if Postgres does
    /// not answer on other connections either.
    async fn end_silent_session(
        &self,
        writer: Writer<'_>,
        limit: Duration,
    ) -> Result<(), RunError> {
        let ended = tokio::select! {
            biased;
            ended = writer.end_session() => ended,
            () = self.stop_grace_is_over() => return Err(RunError::Stopped),
        };
        match ended {
            Err(StoreError::NoAnswer(_)) => Err(StoreError::NoAnswer(limit).into()),
            ended => Ok(ended?),
        }
    }

    /// Sets the outcome of the row at which a session was stuck and was ended. Statements on a
    /// connection run one after the other, so this is the row that was sent first. The other
    /// rows stay open.
    async fn fail_silent_row(&self, rows: &mut [Pending], limit: Duration) -> Result<(), RunError> {
        rows.iter_mut().for_each(Pending::keep_in_doubt);
        let first = rows
            .iter_mut()
            .filter(|row| row.is_open() && row.sent.is_some())
            .min_by_key(|row| row.sent);
        let Some(row) = first else {
            return Err(StoreError::NoAnswer(limit).into());
        };
        let id = row.row.organization_id.clone();
        let current = self
            .stop
            .run_until_cancelled(self.context.site.store.row(&id));
        let current = current.await.ok_or(RunError::Stopped)?;
        let outcome = current.and_then(|current| row.outcome_of_ended_session(current));
        self.conclude(row, outcome.map(Some))?;
        rows.iter_mut().for_each(|row| row.sent = None);
        Ok(())
    }

    /// Returns a short time after a caller began to wait for the end of the run.
    async fn stop_grace_is_over(&self) {
        self.hurry.cancelled().await;
        sleep(STOP_GRACE).await;
    }

    /// Reads the rows of unanswered writes to find out whether the writes are committed. Returns
    /// the number of rows that stay in doubt.
    pub(super) async fn settle(&self, rows: &mut [Pending], sessions: &[Option<i32>]) -> u64 {
        rows.iter_mut().for_each(Pending::keep_in_doubt);
        let mut doubtful: Vec<_> = rows
            .iter_mut()
            .filter(|row| row.is_open() && row.has_doubts())
            .collect();
        if doubtful.is_empty() {
            return 0;
        }
        let ids: Vec<_> = doubtful
            .iter()
            .map(|row| row.row.organization_id.clone())
            .collect();
        let ids: Vec<_> = ids.iter().map(String::as_str).collect();
        let store = &self.context.site.store;
        let settled = match store.settle(sessions, &ids, SETTLE_LIMIT).await {
            Ok(settled) => settled,
            Err(error) => {
                tracing::warn!(
                    %error,
                    rows = doubtful.len(),
                    "cannot find out whether some rows were written: the database gave no answer"
                );
                return doubtful.len() as u64;
            }
        };
        doubtful
            .iter_mut()
            .map(|row| u64::from(row.settle(&settled)))
            .sum()
    }
}
