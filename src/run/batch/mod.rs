//! Processes a few rows: decides about each row, and in an apply writes it.

mod pipeline;
mod replace;
mod write;

use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

use super::{
    Context, Failure, Mode, RunError, failure_limit::FailureLimit, pacer::Pacer, pending::Pending,
    receipt::Changes, report::RowOutcome, spans::set_batch_end,
};
use crate::{
    domain::rewrap::{Decision, Envelopes, Scratch, decide},
    failpoint::{Point, reach},
    store::{Row, RowError},
    telemetry::Span,
};

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

impl Batch {
    /// Processes `rows`.
    pub(super) async fn run(self, rows: Vec<Row>) -> BatchEnd {
        let end = self.process(rows).await;
        set_batch_end(&self.span, &end.outcomes, end.in_doubt, &end.result);
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

    /// Decides about a row. Returns the texts to write and the outcome after the write. Returns
    /// `Err` with the outcome if the row needs no write.
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
