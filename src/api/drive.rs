//! Drives a run: publishes its progress, keeps its failures, and stops it in time.

use std::{future::pending, pin::pin, sync::Arc, time::Duration};

use tokio::{
    sync::watch::Receiver,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    context::Inner,
    error::{Counts, ServiceError},
    key_check::check_keys,
    panicked::LastCounts,
    progress::{in_progress, publish, publish_last},
};
use crate::{
    auth::authorize::Permit,
    run::{
        Ended, Meter, RunError, RunIo, RunSpec, Runner, guard::SiteGuard, history::LiveRun,
        record::Kind,
    },
    telemetry::Trace,
};

/// How long an ended run waits until its last failures are in the database.
const KEEP_LIMIT: Duration = Duration::from_millis(300);

/// A run that has begun, and what can stop it.
#[derive(Clone, Copy)]
pub(super) struct Drive<'a, 'g> {
    pub(super) inner: &'a Arc<Inner>,
    pub(super) runner: &'a Runner,
    pub(super) permit: &'a Permit,
    pub(super) spec: &'a RunSpec,
    /// Takes the progress and the failures.
    pub(super) live: &'a LiveRun,
    /// The time that the client gives the run.
    pub(super) deadline: Option<Duration>,
    /// Stops the run.
    pub(super) stop: &'a CancellationToken,
    /// Cancelled when the client has disconnected.
    pub(super) client_gone: &'a CancellationToken,
    /// Counts the rows of the run.
    pub(super) meter: &'a Arc<Meter>,
    /// If the guard is lost, another instance may start an apply, so this run stops.
    pub(super) site_guard: &'a SiteGuard<'g>,
    /// Where the spans of the run belong.
    pub(super) trace: &'a Trace,
}

impl Drive<'_, '_> {
    /// Checks the keys and runs to the end.
    pub(super) async fn drive(self) -> Ended<ServiceError> {
        let Self {
            runner,
            permit,
            spec,
            stop,
            live,
            ..
        } = self;
        let censuses = &self.inner.context.censuses;
        let position = match spec.kind {
            Kind::Census => Some(censuses.position().await),
            Kind::DryRun | Kind::Apply | Kind::Verify => None,
        };
        let began = tokio::time::Instant::now();
        let check = check_keys(self.inner, runner, spec, stop, self.trace);
        let (checked, stopped_for) = self.stopped_for(check, self.deadline).await;
        match checked {
            Ok(()) if stop.is_cancelled() => return Ended::without_rows(Err(stopped_for)),
            Ok(()) => {}
            Err(error) => return Ended::without_rows(Err(error)),
        }
        let deadline = self
            .deadline
            .map(|deadline| deadline.saturating_sub(began.elapsed()));
        let meter = self.meter;
        let _last_counts = LastCounts { live, meter };
        let _in_progress = in_progress(spec, meter);
        let (queue, mut failures) = LiveRun::queue();
        let io = RunIo {
            meter: meter.clone(),
            failures: Some(queue),
            with_receipt: self.inner.keeps_receipts(),
            trace: self.trace.clone(),
        };
        let run = Box::pin(runner.run(permit, spec, io, stop));
        let run = remember_wait(run, runner.stall());
        let run = self.stopped_for(run, deadline);
        let run = async {
            tokio::select! {
                ended = run => ended,
                never = publish(live, meter) => match never {},
            }
        };
        let mut run = pin!(run);
        let mut keep = Box::pin(live.keep(&mut failures));
        let ((ended, wait), stopped_for) = tokio::select! {
            ended = run.as_mut() => {
                let _ = timeout(KEEP_LIMIT, keep.as_mut()).await;
                ended
            }
            // The run has dropped its queue of failures, so it ends soon.
            () = keep.as_mut() => run.await,
        };
        drop(keep);
        live.remember(&mut failures);
        publish_last(live, meter, ended.result.is_ok());
        if let (Some(census), Some(position)) = (&ended.census, position) {
            censuses.record(runner.site(), position, census).await;
        }
        let counts = Counts::of(&ended.report, spec.kind, ended.durable);
        ended.map_err(|error| {
            let error = match error {
                RunError::Stopped => stopped_for,
                // The organization does not exist, so there are no counts.
                RunError::NotFound(id) => return ServiceError::UnknownOrganization(id),
                RunError::Store(error) => error.into(),
                RunError::NotReplicated => ServiceError::NotReplicated,
                RunError::FailureLimit(failed) => ServiceError::FailureLimit(failed),
                error @ (RunError::CensusElsewhere
                | RunError::NotPermitted
                | RunError::Panicked) => {
                    tracing::error!(%error, "the run failed: this is a bug");
                    ServiceError::Internal
                }
            };
            ServiceError::EndedEarly {
                error: Box::new(error),
                counts,
                wait,
            }
        })
    }

    /// Executes a run. Stops it if the client disconnects, its deadline passes, or the guard is
    /// lost. Also returns the error for a stopped run.
    async fn stopped_for<T>(
        &self,
        run: impl Future<Output = T>,
        deadline: Option<Duration>,
    ) -> (T, ServiceError) {
        let deadline = async {
            match deadline {
                Some(deadline) => sleep(deadline).await,
                None => pending().await,
            }
        };
        let lost = async {
            let lost = self.site_guard.lost().await;
            if self.stop.is_cancelled() {
                // The run was stopped elsewhere and ends soon.
                pending().await
            }
            lost
        };
        let mut run = pin!(run);
        let stopped_for = tokio::select! {
            ended = run.as_mut() => {
                let stopped_for = if self.inner.shutdown.is_cancelled() {
                    ServiceError::ShuttingDown
                } else {
                    ServiceError::Stopped
                };
                return (ended, stopped_for);
            }
            () = self.client_gone.cancelled() => ServiceError::Cancelled,
            () = deadline => ServiceError::DeadlineExceeded,
            lost = lost => lost.into(),
        };
        self.stop.cancel();
        let ended = run.await;
        // If the database fails just before a shutdown, report the shutdown.
        let stopped_for = match stopped_for {
            ServiceError::Database(_) if self.inner.shutdown.is_cancelled() => {
                ServiceError::ShuttingDown
            }
            other => other,
        };
        (ended, stopped_for)
    }
}

/// Runs to the end. Also returns the last reason why the run made no progress, because the run
/// clears this reason at its end.
async fn remember_wait(
    run: impl Future<Output = Ended>,
    mut stall: Receiver<Option<String>>,
) -> (Ended, Option<String>) {
    let mut run = pin!(run);
    loop {
        let wait = stall.borrow_and_update().clone();
        tokio::select! {
            biased;
            ended = run.as_mut() => return (ended, wait),
            Ok(()) = stall.changed() => {}
        }
    }
}
