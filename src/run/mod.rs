//! Runs: dry run, apply, verify and census. A run returns a [`Report`].
//!
//! A dry run and an apply read pages of rows. A limited number of tasks processes the rows of a
//! page while the run reads the next page. Each task uses one database connection while it
//! writes. If a row changes during the run, the run reads it and decides again. After several
//! changes, it does so under a row lock. A failed row is an entry in the report. A lost
//! database ends the run.
//!
//! A stopped run ends within two seconds, even if the database does not answer. It waits
//! briefly for statements in flight, gives up their connections, and finds out the outcome of
//! their writes. Rows with an unknown outcome are counted as in doubt.
//!
//! This module uses the store and the domain. It contains no gRPC and no SQL.

mod adaptive_rate;
mod batch;
mod batch_set;
mod census;
pub mod censuses;
mod failure;
mod failure_limit;
mod groups;
pub mod guard;
pub mod history;
pub mod key_check;
mod own_texts;
mod pacer;
mod pending;
mod progress;
pub mod receipt;
pub mod receipt_log;
pub mod record;
mod report;
mod scope;
mod silent;
mod stall;
mod verify;
mod visited;

use std::{fmt, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::{
    sync::{Semaphore, SemaphorePermit, mpsc, watch},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use self::{
    adaptive_rate::RateController, batch_set::BatchSet, own_texts::OwnTexts, pacer::Pacer,
    record::Kind,
};
pub use self::{
    failure::Failure,
    groups::FailureGroup,
    progress::{Meter, Sampler},
    record::Census,
    report::{Ended, Report},
};
use crate::{
    auth::authorize::{Access, Permit},
    domain::{keyring::Keyring, organization::OrganizationId},
    failpoint::{Point, reach},
    store::{Store, StoreError, Writer},
    telemetry::Trace,
};

/// How long a stopped run waits for the flush of the rows that it wrote.
const STOPPED_FLUSH_LIMIT: Duration = Duration::from_millis(500);

/// How long a run waits for that flush after Postgres has become silent.
const SILENT_FLUSH_LIMIT: Duration = Duration::from_secs(2);

/// How much faster than an apply a run that only reads may be, while others use the database.
/// Its rows cost the database less by these factors.
const CENSUS_SCALE: f64 = 20.0;
const VERIFY_SCALE: f64 = 5.0;

/// What a run covers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Evaluate the rows, but write nothing.
    DryRun,
    /// Write the rows.
    Apply,
}

/// The parameters of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunSpec {
    /// The id of the run.
    pub id: String,
    /// What it does.
    pub kind: Kind,
    /// What it covers. A census always covers the site.
    pub scope: Scope,
    /// Maximum number of rows per second of this run. Zero means no limit of its own.
    pub max_rows_per_second: u32,
    /// The number of failed rows after which the run stops. Zero means no limit.
    pub stop_after_failures: u32,
}

/// Where a run reports its progress and its failures.
#[derive(Debug, Clone, Default)]
pub struct RunIo {
    /// The progress of the run.
    pub meter: Arc<Meter>,
    /// Receives every failure of the run. Without it, the report keeps only the first failures.
    pub failures: Option<mpsc::Sender<Vec<Failure>>>,
    /// Whether to keep the changes of an apply, for a receipt.
    pub with_receipt: bool,
    /// Where the spans of the run belong.
    pub trace: Trace,
}

/// The keys and the database of a site.
#[derive(Debug)]
pub struct Site {
    /// The keys.
    pub keyring: Keyring,
    /// The database.
    pub store: Arc<Store>,
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
    /// The number of failed rows has reached the limit of the request.
    #[error("the run was stopped after {0} failed rows")]
    FailureLimit(u64),
    /// Another instance takes an automatic census now.
    #[error("another instance takes a census now")]
    CensusElsewhere,
    /// The permit does not cover the kind of the run: a bug in this program.
    #[error("the permit of the run does not cover its kind")]
    NotPermitted,
    /// A bug in this program.
    #[error("a task of the run panicked")]
    Panicked,
}

impl RunError {
    /// The status of the span of a page, a batch or another part that ended with this error.
    fn label(&self) -> &'static str {
        match self {
            Self::NotFound(_) => "not_found",
            Self::Stopped => "stopped",
            Self::Store(_) => "database",
            Self::NotReplicated => "not_replicated",
            Self::FailureLimit(_) => "failure_limit",
            Self::CensusElsewhere => "census_elsewhere",
            Self::NotPermitted | Self::Panicked => "bug",
        }
    }
}

/// Starts runs. All runs share its keyring, store and limits.
#[derive(Debug, Clone)]
pub struct Runner {
    context: Arc<Context>,
}

#[derive(Debug)]
struct Context {
    site: Arc<Site>,
    /// Permits for the connections of site-wide runs that write: one fewer than there are
    /// connections, so that reading a page never waits for a locked row.
    writer_permits: Semaphore,
    pacer: Pacer,
    /// The limit of `pacer`. Zero means no limit.
    max_rows_per_second: u32,
    /// Whether a site-wide apply adapts its rate to the load.
    adaptive_rate: bool,
    /// What a run without progress waits for.
    stall: watch::Sender<Option<String>>,
    /// The texts that this process has written.
    own_texts: OwnTexts,
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
            return Ok((self.site.store.writer().await?, permit));
        }
        match self.writer_permits.try_acquire() {
            Ok(permit) => Ok((self.site.store.writer().await?, Some(permit))),
            Err(_) => Ok((self.site.store.reserve_writer().await?, None)),
        }
    }
}

impl Runner {
    /// A runner for `site`, at the rate that `speed` allows.
    #[must_use]
    pub fn new(site: Arc<Site>, speed: RateOptions) -> Self {
        let connections = site.store.options().database_pool_size;
        let writers = connections.saturating_sub(1).max(1);
        Self {
            context: Arc::new(Context {
                site,
                writer_permits: Semaphore::new(writers),
                pacer: Pacer::new(speed.max_rows_per_second),
                max_rows_per_second: speed.max_rows_per_second,
                adaptive_rate: speed.adaptive_rate,
                stall: watch::Sender::new(None),
                own_texts: OwnTexts::default(),
            }),
        }
    }

    /// The site of all runs.
    #[must_use]
    pub fn site(&self) -> &Arc<Site> {
        &self.context.site
    }

    /// The keys of all runs.
    #[must_use]
    pub fn keyring(&self) -> &Keyring {
        &self.context.site.keyring
    }

    /// The database of all runs.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.context.site.store
    }

    /// What a run waits for while it makes no progress.
    #[must_use]
    pub fn stall(&self) -> watch::Receiver<Option<String>> {
        self.context.stall.subscribe()
    }

    /// Runs to the end. After `stop`, it returns within two seconds.
    pub async fn run(
        &self,
        permit: &Permit,
        spec: &RunSpec,
        io: RunIo,
        stop: &CancellationToken,
    ) -> Ended {
        if spec.kind == Kind::Census {
            return Box::pin(self.census(spec, false, &io, stop)).await;
        }
        let writes = spec.kind == Kind::Apply;
        if writes && permit.access() != Access::Apply {
            return Ended::without_rows(Err(RunError::NotPermitted));
        }
        let shared = if writes {
            self.context.max_rows_per_second
        } else {
            0
        };
        io.meter
            .set_configured_limit([spec.max_rows_per_second, shared]);
        self.store().restore_connections();
        let mut batches = BatchSet::new(self.context.clone(), spec, io, stop);
        let progress = batches.progress();
        tokio::select! {
            // On the heap: a debug build needs much stack to move it.
            ended = Box::pin(self.run_and_flush(spec, stop, &mut batches)) => ended,
            never = stall::watch(&self.context, progress) => match never {},
        }
    }

    /// Takes a census. It needs no permit, because it reads only key ids, and the server also
    /// takes automatic censuses. With `exclusively`, this fails if another instance takes an
    /// exclusive census now.
    pub async fn census(
        &self,
        spec: &RunSpec,
        exclusively: bool,
        io: &RunIo,
        stop: &CancellationToken,
    ) -> Ended {
        let pacer = Pacer::new(spec.max_rows_per_second);
        let site = &self.context.site;
        let census = census::census(site, &spec.id, exclusively, &pacer, io, stop);
        let result = self
            .paced(&pacer, CENSUS_SCALE, &io.meter, stop, census)
            .await;
        let mut ended = Ended::without_rows(Ok(()));
        match result {
            Ok(census) => {
                ended.report.counts.rows_on_target = census.tally.rows;
                ended.census = Some(census);
            }
            Err(error) => ended.result = Err(error),
        }
        ended
    }

    /// Runs `reading` at the rate of `pacer`, and adapts this rate to the load of the database.
    async fn paced<T>(
        &self,
        pacer: &Pacer,
        scale: f64,
        meter: &Meter,
        stop: &CancellationToken,
        reading: impl Future<Output = Result<T, RunError>>,
    ) -> Result<T, RunError> {
        if !self.context.adaptive_rate {
            return reading.await;
        }
        let controller = RateController::new(self.store(), pacer, scale, meter);
        let controller = stop.run_until_cancelled(controller).await;
        let controller = controller.ok_or(RunError::Stopped)?;
        tokio::select! {
            result = reading => result,
            never = controller.watch() => match never {},
        }
    }

    async fn run_and_flush(
        &self,
        spec: &RunSpec,
        stop: &CancellationToken,
        batches: &mut BatchSet,
    ) -> Ended {
        let store = &self.context.site.store;
        // Before the first read: at the end, the server must still be the same.
        let server = until_stopped(stop, store.incarnation()).await;
        let unreplicated = store.unreplicated_commits();
        let mut result = match &server {
            Ok(_) => Box::pin(self.evaluate(spec, stop, batches)).await,
            Err(_) => Ok(()),
        };
        if result.is_err() {
            batches.stop();
        }
        let finished = batches.finish().await;
        result = result.and(finished);
        let report = batches.take_report();
        if let Err(RunError::FailureLimit(failed)) = &mut result {
            // Rows that had started may have failed since then.
            *failed = report.counts.rows_failed;
        }
        let server = match server {
            Ok(server) => server,
            Err(error) => return Ended::without_rows(Err(error)),
        };
        // Flush even if this run only read: another run may have written these rows and
        // not flushed them yet.
        reach(Point::BeforeBarrier);
        let mut durable = true;
        if report.rows_examined() > 0 || report.counts.rows_in_doubt > 0 {
            // A server that is silent on every connection will not answer here either.
            let span = batches.trace().span("barrier");
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
                span.fail(error.label());
                tracing::warn!(
                    %error,
                    rows_updated = report.counts.rows_updated,
                    kind = spec.kind.label(),
                    "the rows that this run found or wrote are not known to be durable"
                );
            }
            result = result.and(flushed);
        }
        Ended {
            report,
            durable,
            census: None,
            changes: batches.take_changes(),
            result,
        }
    }

    async fn evaluate(
        &self,
        spec: &RunSpec,
        stop: &CancellationToken,
        batches: &mut BatchSet,
    ) -> Result<(), RunError> {
        let Context { site, pacer, .. } = &*self.context;
        let meter = batches.meter();
        match (&spec.scope, spec.kind) {
            (Scope::Organization(id), Kind::Verify) => {
                Box::pin(verify::verify_organization(site, id, stop, batches)).await
            }
            (Scope::Organization(id), _) => Box::pin(self.organization(id, stop, batches)).await,
            (Scope::Site, Kind::Verify) => {
                let pacer = Pacer::new(spec.max_rows_per_second);
                let verify = Box::pin(verify::verify_site(site, &pacer, stop, batches));
                self.paced(&pacer, VERIFY_SCALE, &meter, stop, verify).await
            }
            (Scope::Site, Kind::Apply) => {
                batches.set_total(until_stopped(stop, site.store.estimated_rows()).await?);
                let apply = Box::pin(self.site_run(stop, batches));
                self.paced(pacer, 1.0, &meter, stop, apply).await
            }
            (Scope::Site, _) => {
                batches.set_total(until_stopped(stop, site.store.estimated_rows()).await?);
                Box::pin(self.site_run(stop, batches)).await
            }
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

/// Waits for a page, but not after `stop`. The page has a span of its own. `rows` counts its rows.
async fn read_page<T>(
    trace: &Trace,
    stop: &CancellationToken,
    reading: impl Future<Output = Result<T, StoreError>>,
    rows: impl FnOnce(&T) -> usize,
) -> Result<T, RunError> {
    let span = trace.span("page");
    let page = until_stopped(stop, reading).await;
    match &page {
        Ok(page) => span.count("nico_rewrap.rows", rows(page)),
        Err(error) => span.fail(error.label()),
    }
    page
}

/// The number of rows in a page of a scan. After the last page, there is none.
fn length<T>(page: &Option<Vec<T>>) -> usize {
    page.as_ref().map_or(0, Vec::len)
}

/// Returns `limit` after `stop`.
async fn after(stop: &CancellationToken, limit: Duration) {
    stop.cancelled().await;
    sleep(limit).await;
}
