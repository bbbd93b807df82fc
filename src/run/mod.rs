//! One re-wrap run: pages of rows in, a [`Report`] out.
//!
//! Rows of a page go to a bounded number of tasks, which take a database connection
//! each for as long as they write, while the next page is fetched. A row that changes
//! under our hands is decided again from its new content, and under a row lock
//! when that happens too often. One row's failure is an entry in the report; a
//! database that is gone ends the run.
//!
//! Knows the store and the pure core; no gRPC and no SQL.

mod back_off;
mod chunk;
mod pace;
mod report;
mod scope;
mod visited;

use std::{
    collections::BTreeMap,
    fmt, mem,
    sync::{Arc, Mutex},
};

use thiserror::Error;
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

pub use self::report::{Failure, Report};
use self::{back_off::BackOff, chunk::Chunk, pace::Pace, report::RowOutcome, visited::Visited};
use crate::{
    authorize::Permit,
    keyring::Keyring,
    organization::OrganizationId,
    store::{Row, Store, StoreError, Writer},
    telemetry,
};

/// Rows that one task takes at a time: many, since a connection falls idle at the end of
/// each, and yet a page of the default size makes two for each that writes.
const CHUNK_ROWS: usize = 125;

/// Bytes of texts that one task takes at a time, and that all tasks of a run have together. A
/// task takes one row at least.
const CHUNK_BYTES: usize = 1 << 20;
const BYTES_AT_ONCE: usize = 3 << 20;

/// What a run covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Every organization.
    Site,
    /// One organization.
    Organization(OrganizationId),
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Site => f.write_str("site"),
            Self::Organization(id) => write!(f, "organization {id}"),
        }
    }
}

/// Whether a run writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Decide and report; write nothing.
    DryRun,
    /// Write what is decided.
    Apply,
}

/// What a run may ask of a database that others use, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Speed {
    /// Rows that are written in a second, at most, over all runs; zero for no limit.
    pub max_rows_per_second: u32,
    /// Whether a site-wide apply becomes slower by itself while others use the database
    /// and their commits would take longer for it.
    pub back_off: bool,
}

/// Why a run ended without a report. What was committed stays.
#[derive(Debug, Error)]
pub enum RunError {
    /// The one organization that was asked for is not there.
    #[error("no organization {0}")]
    NotFound(OrganizationId),
    /// The run was told to stop.
    #[error("the run was stopped")]
    Stopped,
    /// The database can't be worked with.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A bug in this program.
    #[error("a task of the run panicked")]
    Panicked,
}

/// What every run works with.
#[derive(Debug, Clone)]
pub struct Runner {
    context: Arc<Context>,
}

#[derive(Debug)]
struct Context {
    keyring: Keyring,
    store: Store,
    /// The connections that write, over all runs: one less than there are, so that
    /// pages never wait for as long as rows do that somebody has locked.
    lanes: Semaphore,
    pace: Pace,
    /// Whether a site-wide apply makes room for others.
    back_off: bool,
}

impl Context {
    /// A connection to write with, as soon as it is this task's turn.
    async fn writer(&self) -> Result<(Writer<'_>, Option<SemaphorePermit<'_>>), StoreError> {
        // Never closed.
        let lane = self.lanes.acquire().await.ok();
        Ok((self.store.writer().await?, lane))
    }
}

impl Runner {
    /// A runner that re-wraps what is in `store` to the target of `keyring`, as fast as
    /// `speed` allows.
    #[must_use]
    pub fn new(keyring: Keyring, store: Store, speed: Speed) -> Self {
        let lanes = store.options().max_connections.saturating_sub(1).max(1);
        Self {
            context: Arc::new(Context {
                keyring,
                store,
                lanes: Semaphore::new(lanes),
                pace: Pace::new(speed.max_rows_per_second),
                back_off: speed.back_off,
            }),
        }
    }

    /// The keys.
    #[must_use]
    pub fn keyring(&self) -> &Keyring {
        &self.context.keyring
    }

    /// The database.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.context.store
    }

    /// Runs to the end, or until `stop`; rows that are under way then are finished.
    /// What is done is added to `report` also when the end is an error.
    ///
    /// # Errors
    ///
    /// [`RunError`] when not everything in scope was evaluated.
    pub async fn run(
        &self,
        _permit: &Permit,
        scope: &Scope,
        mode: Mode,
        stop: &CancellationToken,
        report: &mut Report,
    ) -> Result<(), RunError> {
        // Before anything is read: what was there then is to be there at the barrier.
        let server = self.context.store.incarnation().await?;
        let mut tasks = Tasks::new(self.context.clone(), mode, stop.child_token());
        let result = match scope {
            Scope::Site if mode == Mode::Apply && self.context.back_off => {
                let Context { store, pace, .. } = &*self.context;
                let back_off = stop.run_until_cancelled(BackOff::new(store, pace)).await;
                let back_off = back_off.ok_or(RunError::Stopped)?;
                tokio::select! {
                    result = self.site(&mut tasks, report) => result,
                    never = back_off.watch() => match never {},
                }
            }
            Scope::Site => self.site(&mut tasks, report).await,
            Scope::Organization(id) => self.organization(id, &mut tasks, report).await,
        };
        if result.is_err() {
            tasks.stop.cancel();
        }
        let result = result.and(tasks.finish(report).await);
        // Whatever the end: nothing is told that a crash of the database could undo. Nor
        // of rows that were found on target: another run may have put them there a moment
        // ago, and be cut off from its own barrier.
        if report.rows_examined() > 0 {
            let barrier = self.context.store.barrier(&server).await;
            if let Err(error) = &barrier {
                tracing::warn!(
                    %error,
                    rows_updated = report.rows_updated,
                    dry_run = mode == Mode::DryRun,
                    "what was found or written is not known to be durable"
                );
                *report = Report::default();
            }
            return result.and(barrier.map_err(RunError::from));
        }
        result
    }
}

/// The tasks of a run, bounded in number.
struct Tasks {
    context: Arc<Context>,
    mode: Mode,
    stop: CancellationToken,
    running: JoinSet<(usize, Vec<RowOutcome>, Result<(), RunError>)>,
    at_most: usize,
    /// Texts that the running tasks hold.
    bytes: usize,
    visited: Visited,
}

impl Tasks {
    fn new(context: Arc<Context>, mode: Mode, stop: CancellationToken) -> Self {
        let at_most = context.store.options().max_connections;
        Self {
            context,
            mode,
            stop,
            running: JoinSet::new(),
            at_most,
            bytes: 0,
            visited: Visited::default(),
        }
    }

    /// Starts tasks for all of `rows`.
    async fn start_all(&mut self, mut rows: Vec<Row>, report: &mut Report) -> Result<(), RunError> {
        while !rows.is_empty() {
            let rest = rows.split_off(Self::chunk(&rows));
            self.start(mem::replace(&mut rows, rest), report).await?;
        }
        Ok(())
    }

    /// How many of `rows` one task takes.
    fn chunk(rows: &[Row]) -> usize {
        let mut bytes = 0;
        let fits = |row: &&Row| {
            bytes += row.bytes();
            bytes <= CHUNK_BYTES
        };
        let fitting = rows.iter().take(CHUNK_ROWS).take_while(fits).count();
        fitting.max(1).min(rows.len())
    }

    /// Whether `rows` are enough for a task.
    fn is_chunk(rows: &[Row]) -> bool {
        rows.len() >= CHUNK_ROWS || Self::chunk(rows) < rows.len()
    }

    /// What comes of `work`, unless the run is told to stop first.
    async fn unless_stopped<T>(&self, work: impl Future<Output = T>) -> Result<T, RunError> {
        let done = self.stop.run_until_cancelled(work).await;
        done.ok_or(RunError::Stopped)
    }

    /// Starts a task for `rows` as soon as there is room for one.
    async fn start(&mut self, rows: Vec<Row>, report: &mut Report) -> Result<(), RunError> {
        let bytes = rows.iter().map(Row::bytes).sum::<usize>();
        while self.running.len() >= self.at_most
            || (self.bytes + bytes > BYTES_AT_ONCE && !self.running.is_empty())
        {
            self.join_one(report).await?;
        }
        let chunk = Chunk {
            context: self.context.clone(),
            mode: self.mode,
            stop: self.stop.clone(),
            workspace: Mutex::default(),
        };
        self.bytes += bytes;
        self.running.spawn(async move {
            let (outcomes, result) = chunk.run(rows).await;
            (bytes, outcomes, result)
        });
        Ok(())
    }

    /// Waits for all tasks, also after an error, so that their rows are counted and
    /// none is under way any more.
    async fn finish(&mut self, report: &mut Report) -> Result<(), RunError> {
        let mut result = Ok(());
        while !self.running.is_empty() {
            result = result.and(self.join_one(report).await);
        }
        result
    }

    async fn join_one(&mut self, report: &mut Report) -> Result<(), RunError> {
        match self.running.join_next().await {
            None => Ok(()),
            Some(Ok((bytes, outcomes, result))) => {
                self.bytes -= bytes;
                self.count(outcomes, report);
                result
            }
            Some(Err(_)) => Err(RunError::Panicked),
        }
    }

    fn count(&mut self, outcomes: Vec<RowOutcome>, report: &mut Report) {
        // Together: a counter has to be looked up each time.
        let mut done = BTreeMap::new();
        for outcome in outcomes {
            *done.entry(outcome.name()).or_default() += 1;
            if let RowOutcome::Gone(id) = &outcome {
                self.visited.gone(id);
            }
            report.add(outcome);
        }
        for (outcome, rows) in done {
            telemetry::rows_done(self.mode, outcome, rows);
        }
    }
}
