//! Processes a few rows: decide, compare-and-set, and decide again if the row has changed.

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
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::{
    Context, Failure, Mode, RunError,
    failure_limit::FailureLimit,
    pacer::Pacer,
    pending::{Pending, Progress},
    receipt::Changes,
    report::RowOutcome,
};
use crate::{
    domain::rewrap::{Decision, Envelopes, Scratch, decide},
    failpoint::{Point, reach},
    store::{CasOutcome, Row, RowError, StoreError, Writer},
    telemetry::{self, Span},
};

/// Compare-and-set attempts before the row is locked for the last attempt.
const OPTIMISTIC_TRIES: u32 = 3;

/// How long a stopped run waits for the answers to its statements.
const STOP_GRACE: Duration = Duration::from_millis(300);

/// Time limit for finding out the outcome of writes that got no answer.
const SETTLE_LIMIT: Duration = Duration::from_secs(1);

/// The parts that all rows of a batch share.
pub(super) struct Batch {
    pub(super) context: Arc<Context>,
    pub(super) mode: Mode,
    /// Whether these rows belong to a site-wide run.
    pub(super) is_site: bool,
    /// Whether the run keeps its changes for a receipt.
    pub(super) with_receipt: bool,
    /// Limits the rate of the run.
    pub(super) pacer: Arc<Pacer>,
    /// Stops the run after a number of failed rows.
    pub(super) failure_limit: Arc<FailureLimit>,
    /// Whether each row is read again before its commit.
    pub(super) verify: bool,
    /// After this is cancelled, no row is started.
    pub(super) stop: CancellationToken,
    /// Cancelled when a caller waits for the end of the run, at the same time as `stop` or
    /// later.
    pub(super) hurry: CancellationToken,
    /// Never contended: one task decides all rows of a batch.
    pub(super) scratch: Mutex<Scratch>,
    pub(super) span: Span,
}

/// The result of a batch.
pub(super) struct BatchEnd {
    /// One outcome for each row whose outcome is known.
    pub(super) outcomes: Vec<RowOutcome>,
    /// Organizations that were deleted during the run.
    pub(super) gone: Vec<String>,
    /// Number of rows whose last write has an unknown outcome.
    pub(super) in_doubt: u64,
    /// The changes, for the receipt.
    pub(super) changes: Changes,
    /// Why some rows were not processed.
    pub(super) result: Result<(), RunError>,
}

/// Sets how a batch has ended.
pub(super) fn set_end(
    span: &Span,
    outcomes: &[RowOutcome],
    in_doubt: u64,
    result: &Result<(), RunError>,
) {
    if !span.is_recording() {
        return;
    }
    let count = |name| {
        outcomes
            .iter()
            .filter(|outcome| outcome.name() == name)
            .count()
    };
    span.count("nico_rewrap.rows", outcomes.len());
    span.count("nico_rewrap.rows_updated", count("updated"));
    span.count("nico_rewrap.rows_failed", count("failed"));
    span.count("nico_rewrap.rows_in_doubt", in_doubt);
    if let Err(error) = result {
        span.fail(error.label());
    }
}

impl Batch {
    /// Processes `rows`.
    pub(super) async fn run(self, rows: Vec<Row>) -> BatchEnd {
        let end = self.process(rows).await;
        set_end(&self.span, &end.outcomes, end.in_doubt, &end.result);
        end
    }

    async fn process(&self, rows: Vec<Row>) -> BatchEnd {
        let mut end = BatchEnd {
            outcomes: Vec::with_capacity(rows.len()),
            gone: Vec::new(),
            in_doubt: 0,
            changes: Changes::default(),
            result: Ok(()),
        };
        let mut pending = Vec::new();
        // Number of rows that may be evaluated now. In an apply, the writes are paced.
        let mut due = match self.mode {
            Mode::Apply => rows.len(),
            Mode::DryRun => 0,
        };
        let mut left = rows.len();
        for row in rows {
            if due == 0 {
                let acquire = self.pacer.acquire(left);
                due = self.stop.run_until_cancelled(acquire).await.unwrap_or(0);
            }
            if self.stop.is_cancelled() {
                end.result = Err(RunError::Stopped);
                return end;
            }
            if let Err(reached) = self.failure_limit.check() {
                end.result = Err(reached);
                return end;
            }
            (due, left) = (due.saturating_sub(1), left - 1);
            match self.decide(&row) {
                Ok((texts, outcome)) if self.mode == Mode::Apply => {
                    pending.push(Pending::new(row, texts, outcome));
                }
                Ok((_, outcome)) | Err(outcome) => {
                    self.failure_limit.count(&outcome);
                    end.outcomes.push(outcome);
                }
            }
        }
        let mut sessions = Vec::new();
        end.result = self.write_all(&mut pending, &mut sessions).await;
        if end.result.is_err() {
            end.in_doubt = self.settle(&mut pending, &sessions).await;
        }
        for mut row in pending {
            let id = std::mem::take(&mut row.row.organization_id);
            if let Some((old, new)) = row.change() {
                self.context.own_texts.add(old, new);
                if self.with_receipt {
                    end.changes.add(&id, old, new);
                }
            }
            let outcome = row.into_outcome();
            if outcome == Some(RowOutcome::Gone) {
                end.gone.push(id);
            }
            end.outcomes.extend(outcome);
        }
        end
    }

    /// Writes all rows. The sessions of connections that were given up are added to
    /// `sessions`.
    async fn write_all(
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

    /// Ends the session of a writer that got no answer for `limit`, unless Postgres is silent
    /// on other connections too.
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

    /// Writes rows on one connection, up to `pipeline_depth` at a time. Rows that change
    /// faster than they can be written follow at the end, each under a lock. If the limit of
    /// failed rows is reached, the rest of the rows stay open.
    async fn write(&self, writer: &mut Writer<'_>, rows: &mut [Pending]) -> Result<(), RunError> {
        self.write_pipelined(writer, rows).await?;
        for row in rows.iter_mut().filter(|row| row.is_open()) {
            if self.stop.is_cancelled() {
                return Err(RunError::Stopped);
            }
            if self.failure_limit.is_reached() {
                break;
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
        let depth = self.context.site.store.options().pipeline_depth;
        let mut todo: VecDeque<_> = rows.iter_mut().filter(|row| row.is_open()).collect();
        let mut in_flight = FuturesUnordered::new();
        let mut acquire = std::pin::pin!(Fuse::terminated());
        let mut silence = std::pin::pin!(writer.silence());
        // Number of rows that may be sent now.
        let mut due = 0;
        loop {
            if self.failure_limit.is_reached() {
                todo.clear();
            }
            while due > 0
                && in_flight.len() < depth
                && let Some(row) = todo.pop_front()
            {
                in_flight.push(self.replace(writer, row));
                due -= 1;
            }
            if due == 0 && acquire.is_terminated() && !todo.is_empty() && !self.stop.is_cancelled()
            {
                acquire.set(self.acquire(todo.len()).fuse());
            }
            let waits_for_pacer = !acquire.is_terminated();
            tokio::select! {
                Some(result) = in_flight.next() => result?,
                rows = acquire.as_mut(), if waits_for_pacer => due = rows,
                () = self.stop.cancelled(), if waits_for_pacer => acquire.set(Fuse::terminated()),
                error = silence.as_mut(), if !in_flight.is_empty() => return Err(error.into()),
                else => return Ok(()),
            }
        }
    }

    /// Waits until the limits of this run and of all runs together allow more rows.
    async fn acquire(&self, rows: usize) -> usize {
        let rows = self.pacer.acquire(rows).await;
        self.context.pacer.acquire(rows).await
    }

    /// Compare-and-set. The row stays open if it changes too often.
    async fn replace(&self, writer: &Writer<'_>, pending: &mut Pending) -> Result<(), StoreError> {
        let attempt = self.try_to_replace(writer, pending).await;
        self.conclude(pending, attempt)
    }

    /// Sets the outcome of a row, if there is one.
    fn conclude(
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
        let mut look = pending.has_doubts();
        loop {
            pending.sent = Some(Instant::now());
            if look {
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
                    look = true;
                }
            }
        }
    }

    async fn replace_locked(
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

    /// Finds out the outcome of writes that got no answer. Returns how many rows stay in
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

    /// The texts to write and the outcome after that, or the outcome if there is nothing to
    /// write.
    fn decide(&self, row: &Row) -> Result<(Envelopes, RowOutcome), RowOutcome> {
        reach(Point::BeforeDecide);
        // After a panic the content is undefined, but every decision overwrites it.
        let scratch = self.scratch.lock();
        let mut scratch = scratch.unwrap_or_else(PoisonError::into_inner);
        match decide(&self.context.site.keyring, &row.texts, &mut scratch) {
            Decision::OnTarget { fields } => Err(RowOutcome::OnTarget { fields }),
            Decision::Failed(failures) => Err(RowOutcome::Failed(
                failures
                    .into_iter()
                    .map(|failure| {
                        Failure::of_field(&row.organization_id, failure.column, &failure.error)
                    })
                    .collect(),
            )),
            Decision::Replace {
                texts,
                reencrypted,
                on_target,
            } => match row.version {
                Ok(_) => Ok((
                    texts,
                    RowOutcome::Updated {
                        reencrypted,
                        on_target,
                    },
                )),
                Err(error) => Err(RowOutcome::row_failed(
                    &row.organization_id,
                    &RowError::Version(error),
                )),
            },
        }
    }
}
