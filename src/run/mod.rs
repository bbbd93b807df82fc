//! One re-wrap run: it reads pages of rows and returns a [`Report`].
//!
//! A limited number of tasks processes the rows of a page while the run reads the next
//! page. Each task uses one database connection while it writes. If a row changes during
//! the run, its new content is decided again, and after several changes under a row lock. A
//! failed row is an entry in the report. A lost database ends the run.
//!
//! A stopped run ends within two seconds, whatever the database does. It waits briefly for
//! statements in flight, gives up their connections, and finds out the outcome of their
//! writes. Rows with an unknown outcome are counted as in doubt.
//!
//! This module uses the store and the domain. It contains no gRPC and no SQL.

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

/// How long a stopped run waits for the flush of the rows that it wrote.
const STOPPED_FLUSH_LIMIT: Duration = Duration::from_millis(500);

/// How long a run waits for that flush after Postgres has become silent.
const SILENT_FLUSH_LIMIT: Duration = Duration::from_secs(2);

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

/// Whether a run writes rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Decide and report, but write nothing.
    DryRun,
    /// Write the rows.
    Apply,
}

impl Mode {
    /// The label value for metrics.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::DryRun => "dry_run",
            Self::Apply => "apply",
        }
    }
}

/// How much load a run may put on the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateOptions {
    /// Maximum number of rows per second that all runs together write. Zero means no limit.
    pub max_rows_per_second: u32,
    /// Whether a site-wide apply slows down while others use the database and their commits
    /// take longer.
    pub adaptive_rate: bool,
}

/// Why a run ended without a complete report. Committed rows stay committed.
#[derive(Debug, Error)]
pub enum RunError {
    /// The requested organization does not exist.
    #[error("no organization {0}")]
    NotFound(OrganizationId),
    /// A caller stopped the run.
    #[error("the run was stopped")]
    Stopped,
    /// The database or one of its rows could not be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Somebody cancelled the wait of a commit for its synchronous standby.
    #[error("a commit of this run was not confirmed by its synchronous standby")]
    NotReplicated,
    /// A bug in this program.
    #[error("a task of the run panicked")]
    Panicked,
}

/// Starts runs. All runs share its keyring, store and limits.
#[derive(Debug, Clone)]
pub struct Runner {
    context: Arc<Context>,
}

#[derive(Debug)]
struct Context {
    keyring: Keyring,
    store: Arc<Store>,
    /// Permits for the connections of site-wide runs that write: one fewer than there are
    /// connections, so that reading a page never waits for a locked row.
    writer_permits: Semaphore,
    pacer: Pacer,
    /// Whether a site-wide apply adapts its rate to the load.
    adaptive_rate: bool,
    /// What a run without progress waits for.
    stall: watch::Sender<Option<String>>,
}

impl Context {
    /// Takes a connection to write with, when one is free.
    ///
    /// A site-wide run waits for its other tasks, whose statements have time limits. A run
    /// of one organization must not wait for the rows of another run. If all permits are
    /// taken, it uses the reserved connection.
    async fn writer(
        &self,
        is_site: bool,
    ) -> Result<(Writer<'_>, Option<SemaphorePermit<'_>>), StoreError> {
        if is_site {
            // The semaphore is never closed.
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
    /// A runner that re-wraps the rows of `store` to the target key of `keyring`, at the
    /// rate that `speed` allows.
    #[must_use]
    pub fn new(keyring: Keyring, store: impl Into<Arc<Store>>, speed: RateOptions) -> Self {
        let store = store.into();
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

    /// The keys of all runs.
    #[must_use]
    pub fn keyring(&self) -> &Keyring {
        &self.context.keyring
    }

    /// The database of all runs.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.context.store
    }

    /// What a run waits for while it makes no progress.
    #[must_use]
    pub fn stall(&self) -> watch::Receiver<Option<String>> {
        self.context.stall.subscribe()
    }

    /// Runs to the end. After `stop`, it returns within two seconds.
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
        // Before the first read: at the end, the server must still be the same.
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
            // A server that is silent on every connection will not answer here either.
            let is_silent = matches!(result, Err(RunError::Store(StoreError::NoAnswer(_))));
            let flushed = tokio::select! {
                flushed = store.barrier(&server) => match flushed {
                    Ok(()) if store.unreplicated_commits() != unreplicated => {
                        Err(RunError::NotReplicated)
                    }
                    flushed => flushed.map_err(RunError::from),
                },
                () = after(stop, STOPPED_FLUSH_LIMIT) => Err(RunError::Stopped),
                () = sleep(SILENT_FLUSH_LIMIT), if is_silent => {
                    Err(StoreError::NoAnswer(SILENT_FLUSH_LIMIT).into())
                }
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

/// Waits for `reading`, but not after `stop`.
async fn until_stopped<T>(
    stop: &CancellationToken,
    reading: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, RunError> {
    match stop.run_until_cancelled(reading).await {
        Some(result) => result.map_err(RunError::from),
        None => Err(RunError::Stopped),
    }
}

/// Returns `limit` after `stop`.
async fn after(stop: &CancellationToken, limit: Duration) {
    stop.cancelled().await;
    sleep(limit).await;
}
