//! One re-wrap run: pages of rows in, a [`Report`] out.
//!
//! Rows of a page go to a bounded number of tasks, which take a database connection
//! each for as long as they write, while the next page is fetched. A row that changes
//! under our hands is decided again from its new content, and under a row lock
//! when that happens too often. One row's failure is an entry in the report; a
//! database that is gone ends the run.
//!
//! A run that is told to stop ends within two seconds, whatever the database does: it
//! waits a moment for statements that it sent, gives their connections up, and looks up
//! what became of them. Rows whose fate stays unknown are counted as in doubt.
//!
//! Knows the store and the pure core; no gRPC and no SQL.

mod adaptive_rate;
mod batch;
mod batch_set;
mod pacer;
mod pending;
mod report;
mod scope;
mod stall;
mod visited;

use std::{fmt, sync::Arc, time::Duration};

use thiserror::Error;
use tokio::{
    sync::{Semaphore, SemaphorePermit, watch},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

pub use self::report::{Ended, Failure, Report};
use self::{adaptive_rate::RateController, batch_set::BatchSet, pacer::Pacer};
use crate::{
    auth::authorize::Permit,
    domain::{keyring::Keyring, organization::OrganizationId},
    store::{Store, StoreError, Writer},
};

/// How long a run that was told to stop waits for the flush of what it wrote.
const STOPPED_FLUSH_LIMIT: Duration = Duration::from_millis(500);

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

impl Mode {
    /// For metrics.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::DryRun => "dry_run",
            Self::Apply => "apply",
        }
    }
}

/// What a run may ask of a database that others use, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateOptions {
    /// Rows that are written in a second, at most, over all runs; zero for no limit.
    pub max_rows_per_second: u32,
    /// Whether a site-wide apply becomes slower by itself while others use the database
    /// and their commits would take longer for it.
    pub adaptive_rate: bool,
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
    /// Somebody cancelled a commit's wait for its synchronous standby.
    #[error("a commit of this run was not confirmed by its synchronous standby")]
    NotReplicated,
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
    /// Connections that write for site-wide runs: one less than there are, so that a page
    /// never waits for rows that somebody has locked.
    writer_permits: Semaphore,
    pacer: Pacer,
    /// Whether a site-wide apply makes room for others.
    adaptive_rate: bool,
    /// What a run waits for, if it waits for long.
    stall: watch::Sender<Option<String>>,
}

impl Context {
    /// A connection to write with, as soon as one is free.
    ///
    /// A site-wide run waits for its other tasks, whose statements have limits of their
    /// own. A run of one organization waits for nobody else's rows: it goes on with the
    /// connection that is kept for it.
    async fn writer(
        &self,
        is_site: bool,
    ) -> Result<(Writer<'_>, Option<SemaphorePermit<'_>>), StoreError> {
        if is_site {
            // Never closed.
            let permit = self.writer_permits.acquire().await.ok();
            return Ok((self.store.writer().await?, permit));
        }
        match self.writer_permits.try_acquire() {
            Ok(permit) => Ok((self.store.writer().await?, Some(permit))),
            Err(_) => Ok((self.store.reserve_writer().await?, None)),
        }
    }
}

impl Runner {
    /// A runner that re-wraps what is in `store` to the target of `keyring`, as fast as
    /// `speed` allows.
    #[must_use]
    pub fn new(keyring: Keyring, store: Store, speed: RateOptions) -> Self {
        let writers = store.options().database_pool_size.saturating_sub(1).max(1);
        Self {
            context: Arc::new(Context {
                keyring,
                store,
                writer_permits: Semaphore::new(writers),
                pacer: Pacer::new(speed.max_rows_per_second),
                adaptive_rate: speed.adaptive_rate,
                stall: watch::Sender::new(None),
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

    /// What a run waits for, while it makes no progress for seconds.
    #[must_use]
    pub fn stall(&self) -> watch::Receiver<Option<String>> {
        self.context.stall.subscribe()
    }

    /// Runs to the end, or until `stop`; then within two seconds.
    pub async fn run(
        &self,
        _permit: &Permit,
        scope: &Scope,
        mode: Mode,
        stop: &CancellationToken,
    ) -> Ended {
        self.context.store.restore_connections();
        let mut batches = BatchSet::new(self.context.clone(), scope, mode, stop);
        let progress = batches.progress();
        tokio::select! {
            ended = self.run_and_flush(scope, mode, stop, &mut batches) => ended,
            never = stall::watch(&self.context, progress) => match never {},
        }
    }

    async fn run_and_flush(
        &self,
        scope: &Scope,
        mode: Mode,
        stop: &CancellationToken,
        batches: &mut BatchSet,
    ) -> Ended {
        let store = &self.context.store;
        // Before anything is read: the server is to be the same one at the end.
        let server = until_stopped(stop, store.incarnation()).await;
        let unreplicated = store.unreplicated_commits();
        let mut result = match &server {
            Ok(_) => self.evaluate(scope, mode, stop, batches).await,
            Err(_) => Ok(()),
        };
        if result.is_err() {
            batches.stop();
        }
        let finished = batches.finish().await;
        result = result.and(finished);
        let report = batches.take_report();
        let server = match server {
            Ok(server) => server,
            Err(error) => return Ended::without_rows(error),
        };
        // Flush even if this run only read: another run may have written these rows and
        // not flushed them yet.
        let mut durable = true;
        if report.rows_examined() > 0 || report.rows_in_doubt > 0 {
            let flushed = tokio::select! {
                flushed = store.barrier(&server) => match flushed {
                    Ok(()) if store.unreplicated_commits() != unreplicated => {
                        Err(RunError::NotReplicated)
                    }
                    flushed => flushed.map_err(RunError::from),
                },
                () = after(stop, STOPPED_FLUSH_LIMIT) => Err(RunError::Stopped),
            };
            durable = flushed.is_ok();
            if let Err(error) = &flushed {
                tracing::warn!(
                    %error,
                    rows_updated = report.rows_updated,
                    dry_run = mode == Mode::DryRun,
                    "the rows that this run found or wrote are not known to be durable"
                );
            }
            result = result.and(flushed);
        }
        Ended {
            report,
            durable,
            result,
        }
    }

    async fn evaluate(
        &self,
        scope: &Scope,
        mode: Mode,
        stop: &CancellationToken,
        batches: &mut BatchSet,
    ) -> Result<(), RunError> {
        match scope {
            Scope::Site if mode == Mode::Apply && self.context.adaptive_rate => {
                let Context { store, pacer, .. } = &*self.context;
                let controller = stop
                    .run_until_cancelled(RateController::new(store, pacer))
                    .await;
                let controller = controller.ok_or(RunError::Stopped)?;
                tokio::select! {
                    result = self.site(stop, batches) => result,
                    never = controller.watch() => match never {},
                }
            }
            Scope::Site => self.site(stop, batches).await,
            Scope::Organization(id) => self.organization(id, stop, batches).await,
        }
    }
}

/// Reads until the run is told to stop.
async fn until_stopped<T>(
    stop: &CancellationToken,
    reading: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, RunError> {
    match stop.run_until_cancelled(reading).await {
        Some(result) => result.map_err(RunError::from),
        None => Err(RunError::Stopped),
    }
}

/// Ends so long after `stop`.
async fn after(stop: &CancellationToken, limit: Duration) {
    stop.cancelled().await;
    sleep(limit).await;
}
