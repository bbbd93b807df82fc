//! The batches of a run: a limited number of tasks, and the sum of their counts.

use std::{
    collections::{BTreeMap, HashMap},
    mem,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;

use super::{
    Context, Failure, Mode, Report, RunError, RunIo, RunSpec, Scope,
    batch::{Batch, BatchEnd},
    failure_limit::FailureLimit,
    pacer::Pacer,
    progress::Meter,
    receipt::Changes,
    report::RowOutcome,
    visited::Visited,
};
use crate::{
    store::Row,
    telemetry::{self, Trace},
};

/// Rows of one batch. A connection is idle at the end of each batch, so batches are large.
/// A page of the default size still makes two batches for every writer.
const BATCH_ROWS: usize = 125;

/// Maximum size of the texts, in bytes: in one batch, and in all batches of a run. A batch always
/// has at least one row.
const BATCH_BYTES: usize = 1 << 20;
const BYTES_AT_ONCE: usize = 3 << 20;

/// The batches of one run.
pub(super) struct BatchSet {
    context: Arc<Context>,
    mode: Mode,
    /// The label value for metrics.
    label: &'static str,
    is_site: bool,
    /// After this is cancelled, no batch starts another row.
    stop: CancellationToken,
    /// Cancelled when a caller waits for the end of the run.
    hurry: CancellationToken,
    running: JoinSet<BatchEnd>,
    /// For each task, the number of rows and the size of their texts in bytes.
    sizes: HashMap<Id, (u64, usize)>,
    /// The sum of the bytes in `sizes`.
    bytes: usize,
    /// The organizations that the run has visited.
    pub(super) visited: Visited,
    max_tasks: usize,
    /// Limits the rate of this run alone.
    pacer: Arc<Pacer>,
    /// Stops the run after a number of failed rows.
    failure_limit: Arc<FailureLimit>,
    verify_writes: bool,
    report: Report,
    changes: Changes,
    io: RunIo,
    progress: Arc<AtomicU64>,
}

impl BatchSet {
    /// Makes an empty set. All its batches end soon after `stop`.
    pub(super) fn new(
        context: Arc<Context>,
        spec: &RunSpec,
        io: RunIo,
        stop: &CancellationToken,
    ) -> Self {
        let max_tasks = context.site.store.options().database_pool_size;
        Self {
            context,
            mode: spec.kind.mode(),
            label: spec.kind.label(),
            is_site: spec.scope == Scope::Site,
            stop: stop.child_token(),
            hurry: stop.clone(),
            running: JoinSet::new(),
            sizes: HashMap::new(),
            bytes: 0,
            visited: Visited::default(),
            max_tasks,
            pacer: Arc::new(Pacer::new(spec.max_rows_per_second)),
            failure_limit: Arc::new(FailureLimit::new(spec.stop_after_failures)),
            verify_writes: false,
            report: Report::default(),
            changes: Changes::default(),
            io,
            progress: Arc::default(),
        }
    }

    /// Makes every batch end before its next row.
    pub(super) fn stop(&self) {
        self.stop.cancel();
    }

    /// The token that [`BatchSet::stop`] cancels.
    pub(super) fn stop_token(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// A counter that changes when a batch ends.
    pub(super) fn progress(&self) -> Arc<AtomicU64> {
        self.progress.clone()
    }

    /// Sets whether the batches from now on read each row again before its commit.
    pub(super) fn verify_writes(&mut self, verify: bool) {
        self.verify_writes = verify;
    }

    /// The counts so far.
    pub(super) fn report(&self) -> &Report {
        &self.report
    }

    /// Where the spans of the run belong.
    pub(super) fn trace(&self) -> Trace {
        self.io.trace.clone()
    }

    /// The progress of the run.
    pub(super) fn meter(&self) -> Arc<Meter> {
        self.io.meter.clone()
    }

    /// Sets the estimate of the number of rows.
    pub(super) fn set_total(&self, rows: u64) {
        self.io.meter.set_total(rows);
    }

    /// Returns the changes that were written, and removes them from the set.
    pub(super) fn take_changes(&mut self) -> Changes {
        mem::take(&mut self.changes)
    }

    /// Returns the counts and resets them to zero.
    pub(super) fn take_report(&mut self) -> Report {
        mem::take(&mut self.report)
    }

    /// Starts batches for all `rows`.
    pub(super) async fn start_all(&mut self, mut rows: Vec<Row>) -> Result<(), RunError> {
        while !rows.is_empty() {
            let rest = rows.split_off(Self::batch(&rows));
            self.start(mem::replace(&mut rows, rest)).await?;
        }
        Ok(())
    }

    /// How many of the first `rows` fit into one batch.
    fn batch(rows: &[Row]) -> usize {
        let mut bytes = 0;
        let fits = |row: &&Row| {
            bytes += row.bytes();
            bytes <= BATCH_BYTES
        };
        let fitting = rows.iter().take(BATCH_ROWS).take_while(fits).count();
        fitting.max(1).min(rows.len())
    }

    /// Whether `rows` fill a batch.
    pub(super) fn is_batch(rows: &[Row]) -> bool {
        rows.len() >= BATCH_ROWS || Self::batch(rows) < rows.len()
    }

    /// The mode of the run.
    pub(super) fn mode(&self) -> Mode {
        self.mode
    }

    /// Starts a batch of `rows` when the limits allow another one.
    pub(super) async fn start(&mut self, rows: Vec<Row>) -> Result<(), RunError> {
        self.check_failure_limit()?;
        let bytes = rows.iter().map(Row::bytes).sum::<usize>();
        while self.running.len() >= self.max_tasks
            || (self.bytes + bytes > BYTES_AT_ONCE && !self.running.is_empty())
        {
            self.join_one().await?;
        }
        let batch = Batch {
            context: self.context.clone(),
            mode: self.mode,
            is_site: self.is_site,
            with_receipt: self.io.with_receipt,
            pacer: self.pacer.clone(),
            failure_limit: self.failure_limit.clone(),
            verify: self.verify_writes,
            stop: self.stop.clone(),
            hurry: self.hurry.clone(),
            scratch: Mutex::default(),
            span: self.io.trace.span("batch"),
        };
        let size = rows.len() as u64;
        let task = self.running.spawn(batch.run(rows));
        self.sizes.insert(task.id(), (size, bytes));
        self.bytes += bytes;
        Ok(())
    }

    /// Waits for all batches, even after an error, so that all their rows are counted.
    pub(super) async fn finish(&mut self) -> Result<(), RunError> {
        let mut result = Ok(());
        while !self.running.is_empty() {
            result = result.and(self.join_one().await);
        }
        result
    }

    async fn join_one(&mut self) -> Result<(), RunError> {
        let Some(joined) = self.running.join_next_with_id().await else {
            return Ok(());
        };
        self.progress.fetch_add(1, Ordering::Relaxed);
        match joined {
            Ok((task, end)) => {
                self.forget(task);
                self.count(end).await
            }
            Err(panicked) => {
                let rows = self.forget(panicked.id());
                if self.mode == Mode::Apply {
                    self.report.counts.rows_in_doubt += rows;
                    self.io.meter.set_counts(self.report.counts);
                }
                Err(RunError::Panicked)
            }
        }
    }

    /// Removes an ended task, and returns how many rows it had.
    fn forget(&mut self, task: Id) -> u64 {
        let (rows, bytes) = self.sizes.remove(&task).unwrap_or_default();
        self.bytes -= bytes;
        rows
    }

    async fn count(&mut self, end: BatchEnd) -> Result<(), RunError> {
        for id in &end.gone {
            self.visited.gone(id);
        }
        self.add_rows(end.outcomes).await;
        self.report.counts.rows_in_doubt += end.in_doubt;
        self.io.meter.set_counts(self.report.counts);
        self.changes.append(end.changes);
        end.result
    }

    /// The limit of failed rows, for the tasks of a verify.
    pub(super) fn failure_limit(&self) -> Arc<FailureLimit> {
        self.failure_limit.clone()
    }

    /// Stops the run before its next row if the number of failed rows has reached the limit.
    pub(super) fn check_failure_limit(&self) -> Result<(), RunError> {
        let checked = self.failure_limit.check();
        if checked.is_err() {
            self.stop();
        }
        checked
    }

    /// Counts rows that belong to no batch by their outcomes.
    pub(super) async fn count_rows(&mut self, outcomes: Vec<RowOutcome>) {
        for outcome in &outcomes {
            self.failure_limit.count(outcome);
        }
        self.add_rows(outcomes).await;
    }

    /// Adds rows to the counts of the run.
    pub(super) async fn add_rows(&mut self, outcomes: Vec<RowOutcome>) {
        self.io.meter.add(outcomes.len() as u64);
        // Add up first: each change of a metric needs a look-up.
        let mut done = BTreeMap::new();
        let mut failures = Vec::new();
        for outcome in outcomes {
            *done.entry(outcome.name()).or_default() += 1;
            if let RowOutcome::Failed(failed) = &outcome {
                failures.extend(failed.iter().cloned());
            }
            self.report.add(outcome);
        }
        self.io.meter.set_counts(self.report.counts);
        count_failures(&failures);
        if let Some(queue) = self.io.failures.as_ref().filter(|_| !failures.is_empty()) {
            // An error means that the receiver is dropped: the failures are not kept.
            let _ = queue.send(failures).await;
        }
        for (outcome, rows) in done {
            telemetry::rows_done(self.label, outcome, rows);
        }
    }
}

/// A set that is dropped with running batches belongs to a run that panicked. These batches end in
/// the middle of a row, so the outcome of their rows is unknown.
impl Drop for BatchSet {
    fn drop(&mut self) {
        if self.mode == Mode::Apply && !self.running.is_empty() {
            let rows = self.sizes.values().map(|(rows, _)| rows).sum::<u64>();
            self.report.counts.rows_in_doubt += rows;
            self.io.meter.set_counts(self.report.counts);
        }
    }
}

/// Counts failures in the metrics.
fn count_failures(failures: &[Failure]) {
    let mut reasons: BTreeMap<_, u64> = BTreeMap::new();
    let mut closed: BTreeMap<_, u64> = BTreeMap::new();
    for failure in failures {
        *reasons.entry(failure.reason).or_default() += 1;
        if let Some(kind) = failure.undecrypted_kind() {
            *closed.entry(kind).or_default() += 1;
        }
    }
    for (reason, count) in reasons {
        telemetry::failed(reason, count);
    }
    for (kind, secrets) in closed {
        telemetry::not_decrypted(kind, secrets);
    }
}
