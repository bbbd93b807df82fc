//! A few rows on one connection: decide, compare-and-set, decide again.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{
    FutureExt, StreamExt,
    future::{Fuse, FusedFuture},
    stream::FuturesUnordered,
};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{
    Context, Failure, Mode, RunError,
    pending::{Pending, Progress},
    report::RowOutcome,
};
use crate::{
    domain::rewrap::{Decision, Envelopes, Scratch, decide},
    store::{CasOutcome, Row, RowError, StoreError, Writer, next_counter},
};

/// Compare-and-set tries before a row is locked for the last one.
const OPTIMISTIC_TRIES: u32 = 3;

/// How long a run that was told to stop waits for answers to statements that it sent.
const STOP_GRACE: Duration = Duration::from_millis(300);

/// How long the fate of writes without an answer is looked up.
const SETTLE_LIMIT: Duration = Duration::from_secs(1);

/// What the rows of a batch have in common.
pub(super) struct Batch {
    pub(super) context: Arc<Context>,
    pub(super) mode: Mode,
    /// Whether these rows belong to a run over the whole site.
    pub(super) is_site: bool,
    /// No row is begun after this.
    pub(super) stop: CancellationToken,
    /// Somebody waits for the end of the run. It follows `stop`, or comes with it.
    pub(super) hurry: CancellationToken,
    /// Never waited for: the rows of a batch are decided by one task.
    pub(super) scratch: Mutex<Scratch>,
}

/// What became of the rows of a batch.
pub(super) struct BatchEnd {
    /// One for each row whose outcome is known.
    pub(super) outcomes: Vec<RowOutcome>,
    /// Organizations that were deleted meanwhile.
    pub(super) gone: Vec<String>,
    /// Rows whose last write has an unknown outcome.
    pub(super) in_doubt: u64,
    /// Why not all rows were worked on.
    pub(super) result: Result<(), RunError>,
}

impl Batch {
    /// Works on `rows`.
    pub(super) async fn run(self, rows: Vec<Row>) -> BatchEnd {
        let mut end = BatchEnd {
            outcomes: Vec::with_capacity(rows.len()),
            gone: Vec::new(),
            in_doubt: 0,
            result: Ok(()),
        };
        let mut pending = Vec::new();
        for row in rows {
            if self.stop.is_cancelled() {
                end.result = Err(RunError::Stopped);
                return end;
            }
            match self.decide(&row) {
                Ok((texts, outcome)) if self.mode == Mode::Apply => {
                    pending.push(Pending::new(row, texts, outcome));
                }
                Ok((_, outcome)) | Err(outcome) => end.outcomes.push(outcome),
            }
        }
        let mut sessions = Vec::new();
        end.result = self.write_all(&mut pending, &mut sessions).await;
        if end.result.is_err() {
            end.in_doubt = self.settle(&mut pending, &sessions).await;
        }
        for mut row in pending {
            let id = std::mem::take(&mut row.row.organization_id);
            let outcome = row.into_outcome();
            if outcome == Some(RowOutcome::Gone) {
                end.gone.push(id);
            }
            end.outcomes.extend(outcome);
        }
        end
    }

    /// Writes all rows. Connections that were given up are noted in `sessions`.
    async fn write_all(
        &self,
        rows: &mut [Pending],
        sessions: &mut Vec<Option<i32>>,
    ) -> Result<(), RunError> {
        let store = &self.context.store;
        let mut connections = 0;
        while rows.iter().any(Pending::is_open) {
            if self.stop.is_cancelled() {
                return Err(RunError::Stopped);
            }
            let writer = self.context.writer(self.is_site);
            let writer = self.stop.run_until_cancelled(writer).await;
            let (mut writer, _permit) = writer.ok_or(RunError::Stopped)??;
            connections += 1;
            let ended = tokio::select! {
                biased;
                ended = self.write(&mut writer, rows) => ended,
                () = self.stop_grace_is_over() => Err(RunError::Stopped),
            };
            if ended.is_err() {
                sessions.push(writer.session());
                writer.give_up();
            }
            match ended {
                Err(RunError::Store(StoreError::ConnectionLost(_)))
                    if connections < store.options().max_attempts =>
                {
                    // Their next attempt looks at the rows first.
                    rows.iter_mut().for_each(Pending::keep_in_doubt);
                    store.retry_backoff().await;
                }
                ended => ended?,
            }
        }
        Ok(())
    }

    /// Ends a while after somebody began to wait for the end of the run.
    async fn stop_grace_is_over(&self) {
        self.hurry.cancelled().await;
        sleep(STOP_GRACE).await;
    }

    /// Writes rows on one connection, as many at a time as fit into its pipeline. Rows that
    /// change faster than they can be written follow at the end, each under its lock.
    async fn write(&self, writer: &mut Writer<'_>, rows: &mut [Pending]) -> Result<(), RunError> {
        self.write_pipelined(writer, rows).await?;
        for row in rows.iter_mut().filter(|row| row.is_open()) {
            if self.stop.is_cancelled() {
                return Err(RunError::Stopped);
            }
            self.replace_locked(writer, row).await?;
        }
        Ok(())
    }

    async fn write_pipelined(
        &self,
        writer: &Writer<'_>,
        rows: &mut [Pending],
    ) -> Result<(), RunError> {
        let depth = self.context.store.options().pipeline_depth;
        let mut todo: VecDeque<_> = rows.iter_mut().filter(|row| row.is_open()).collect();
        let mut under_way = FuturesUnordered::new();
        let mut acquire = std::pin::pin!(Fuse::terminated());
        let mut silence = std::pin::pin!(writer.silence());
        // Rows that may be sent now.
        let mut due = 0;
        loop {
            while due > 0
                && under_way.len() < depth
                && let Some(row) = todo.pop_front()
            {
                under_way.push(self.replace(writer, row));
                due -= 1;
            }
            if due == 0 && acquire.is_terminated() && !todo.is_empty() && !self.stop.is_cancelled()
            {
                acquire.set(self.context.pacer.acquire(todo.len()).fuse());
            }
            let waits_for_turn = !acquire.is_terminated();
            tokio::select! {
                Some(result) = under_way.next() => result?,
                rows = acquire.as_mut(), if waits_for_turn => due = rows,
                () = self.stop.cancelled(), if waits_for_turn => acquire.set(Fuse::terminated()),
                error = silence.as_mut(), if !under_way.is_empty() => return Err(error.into()),
                else => return Ok(()),
            }
        }
    }

    /// Compare-and-set; the row stays open if it changes too often meanwhile.
    async fn replace(&self, writer: &Writer<'_>, pending: &mut Pending) -> Result<(), StoreError> {
        let attempt = self.try_to_replace(writer, pending).await;
        pending.conclude(attempt)
    }

    async fn try_to_replace(
        &self,
        writer: &Writer<'_>,
        pending: &mut Pending,
    ) -> Result<Option<RowOutcome>, StoreError> {
        if self.stop.is_cancelled() {
            return Ok(None);
        }
        let target = self.context.keyring.target().id();
        let mut tries = 0;
        // After a lost connection it is unknown what the row holds.
        let mut look = pending.has_doubts();
        loop {
            if look {
                let Some(row) = writer.row(&pending.row.organization_id).await? else {
                    return Ok(Some(RowOutcome::Gone));
                };
                if let Some(outcome) = pending.written_as(&row.texts) {
                    return Ok(Some(outcome));
                }
                if row.texts == pending.texts {
                    // Written, and yet no version was bumped: by a trigger on tenants.
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
            let replaced = writer.replace(&pending.row, &pending.texts, target).await?;
            pending.progress = Progress::Open;
            match replaced {
                CasOutcome::Applied => return Ok(Some(pending.take_outcome())),
                CasOutcome::Conflict => look = true,
            }
        }
    }

    async fn replace_locked(
        &self,
        writer: &mut Writer<'_>,
        pending: &mut Pending,
    ) -> Result<(), StoreError> {
        let target = self.context.keyring.target().id();
        let id = pending.row.organization_id.clone();
        let written = writer
            .replace_locked(&id, target, |row| match self.decide(row) {
                Err(outcome) => (outcome, None),
                Ok((texts, outcome)) => {
                    pending.note_doubt(texts.clone(), outcome.clone());
                    (outcome, Some(texts))
                }
            })
            .await;
        pending.conclude(written.map(|outcome| Some(outcome.unwrap_or(RowOutcome::Gone))))
    }

    /// Finds out what became of writes without an answer, and returns how many rows stay in
    /// doubt.
    async fn settle(&self, rows: &mut [Pending], sessions: &[Option<i32>]) -> u64 {
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
        let store = &self.context.store;
        let settled = match store.settle(sessions, &ids, SETTLE_LIMIT).await {
            Ok(settled) => settled,
            Err(error) => {
                tracing::warn!(%error, rows = doubtful.len(), "the outcome of writes is unknown");
                return doubtful.len() as u64;
            }
        };
        doubtful
            .iter_mut()
            .map(|row| u64::from(row.settle(&settled)))
            .sum()
    }

    /// The texts to write and what became of the row then, or what became of it already.
    fn decide(&self, row: &Row) -> Result<(Envelopes, RowOutcome), RowOutcome> {
        // A panic may have left anything in there: every decision overwrites it.
        let scratch = self.scratch.lock();
        let mut scratch = scratch.unwrap_or_else(PoisonError::into_inner);
        match decide(&self.context.keyring, &row.texts, &mut scratch) {
            Decision::OnTarget { fields } => Err(RowOutcome::OnTarget { fields }),
            Decision::Failed(failures) => Err(RowOutcome::Failed(
                failures
                    .into_iter()
                    .map(|failure| Failure {
                        organization_id: row.organization_id.clone(),
                        field: failure.column,
                        error: failure.error.to_string(),
                    })
                    .collect(),
            )),
            Decision::Replace {
                texts,
                reencrypted,
                on_target,
            } => match next_counter(row.version.as_deref()) {
                Ok(_) => Ok((
                    texts,
                    RowOutcome::Updated {
                        reencrypted,
                        on_target,
                    },
                )),
                Err(error) => Err(RowOutcome::row_failed(
                    &row.organization_id,
                    error.to_string(),
                )),
            },
        }
    }
}
