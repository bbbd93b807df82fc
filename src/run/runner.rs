//! Carries out runs.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Semaphore, watch},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use super::{
    Ended, Meter, RateOptions, RunError, RunIo, RunSpec, Scope, Site,
    adaptive_rate::RateController, batch_set::BatchSet, census, context::Context,
    own_texts::OwnTexts, pacer::Pacer, record::Kind, spans::set_error, stall, until_stopped,
    verify,
};
use crate::{
    auth::authorize::{Access, Permit},
    domain::keyring::Keyring,
    failpoint::{Point, reach},
    store::{Store, StoreError},
};

/// How long a stopped run waits for the flush of the rows that it wrote.
const STOPPED_FLUSH_LIMIT: Duration = Duration::from_millis(500);

/// How long a run waits for that flush after Postgres has become silent.
const SILENT_FLUSH_LIMIT: Duration = Duration::from_secs(2);

/// The rate of a run that only reads, as a multiple of the rate of an apply, while others use the
/// database. Its rows cost the database less by these factors.
const CENSUS_SCALE: f64 = 20.0;
const VERIFY_SCALE: f64 = 5.0;

/// Starts runs. All runs share its keyring, store and limits.
#[derive(Debug, Clone)]
pub struct Runner {
    pub(super) context: Arc<Context>,
}

impl Runner {
    /// A runner for `site`, with the limits in `speed`.
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

    /// The reason why a run makes no progress. `None` if it makes progress.
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
        // Before the first read: at the end of the run, Postgres must still be the same process.
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
            let span = batches.trace().span("barrier");
            // If Postgres does not answer on any connection, it does not answer here either.
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
                set_error(&span, error);
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

/// Returns `limit` after `stop`.
async fn after(stop: &CancellationToken, limit: Duration) {
    stop.cancelled().await;
    sleep(limit).await;
}
