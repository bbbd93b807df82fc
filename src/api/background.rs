//! The automatic censuses of the server.

use std::{
    convert::Infallible,
    future::pending,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::time::{sleep, timeout};
use tracing::Instrument;

use super::{
    call::Calls,
    context::Inner,
    error::ServiceError,
    progress::{in_progress, publish, publish_last},
    run_id::run_id,
    run_span,
};
use crate::{
    run::{
        Census, Meter, RunError, RunIo, RunSpec, Runner, Scope,
        history::{Begun, LiveRun},
        record::{Kind, RunProblem, RunRecord, RunState},
    },
    store::StoreError,
    telemetry::{self, Trace},
};

/// Pause after a failed census. It doubles after each further failure, up to the interval.
const RETRY: Duration = Duration::from_secs(10);

/// How often to check whether the census of another instance has ended, while a census is due here.
pub(super) const OTHER_CENSUS_POLL: Duration = Duration::from_secs(1);

/// How often to check for the first contact with the database.
const START: Duration = Duration::from_millis(200);

/// How long an ended run waits until its failure is in the database.
const FAILURE_LIMIT: Duration = Duration::from_millis(300);

/// The result of an automatic census.
pub(super) enum Taken {
    /// The census of this instance.
    Here(Census),
    /// Another instance takes one now.
    Elsewhere,
}

impl Calls {
    /// Takes a census now, then every `interval`, and after each apply that wrote a row.
    /// Returns at shutdown. Zero means no automatic census.
    pub async fn take_censuses(&self, interval: Duration) {
        let inner = &self.0;
        if inner.context.runner.is_none() || interval.is_zero() {
            return;
        }
        let shutdown = &inner.shutdown;
        let runner = async {
            loop {
                match (inner.check_readiness(), inner.runner()) {
                    (Ok(()), Ok(runner)) => break runner,
                    _ => sleep(START).await,
                }
            }
        };
        let Some(runner) = shutdown.run_until_cancelled(runner).await else {
            return;
        };
        let censuses = &inner.context.censuses;
        let mut is_due = false;
        let mut failures = 0;
        while !shutdown.is_cancelled() {
            let mut pause = interval;
            // If the last census is recent, another instance has taken it.
            if is_due || censuses.is_older_than(interval.mul_f64(0.9)).await {
                // A shutdown stops the census but does not drop this future, because the end
                // must be recorded.
                match inner.take_census(runner).await {
                    Ok(Taken::Elsewhere) if is_due => pause = OTHER_CENSUS_POLL,
                    Ok(Taken::Elsewhere) => {}
                    // A caller has stopped this census: wait for the whole interval.
                    Ok(Taken::Here(_)) | Err(ServiceError::Stopped) => {
                        (is_due, failures) = (false, 0);
                    }
                    Err(_) => {
                        pause = pause_after(failures, interval);
                        failures += 1;
                    }
                }
            }
            tokio::select! {
                () = inner.census_due.notified() => is_due = true,
                () = sleep(pause) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }
}

impl Inner {
    /// Takes a census, unless another instance takes one now.
    pub(super) async fn take_census(&self, runner: &Runner) -> Result<Taken, ServiceError> {
        let id = run_id();
        let span = tracing::error_span!("census", run_id = id);
        async {
            // On the heap: a debug build needs much stack to move it.
            let taken = Box::pin(self.try_take_census(runner, id)).await;
            match &taken {
                Err(error) if error.is_stop() => tracing::info!(%error, "the census was stopped"),
                Err(error) => tracing::warn!(%error, "the census failed"),
                Ok(_) => {}
            }
            taken
        }
        .instrument(span)
        .await
    }

    async fn try_take_census(&self, runner: &Runner, id: String) -> Result<Taken, ServiceError> {
        let is_free = runner.store().census_is_free().await;
        if !is_free.map_err(StoreError::into_unavailable)? {
            return Ok(Taken::Elsewhere);
        }
        let spec = RunSpec {
            id,
            kind: Kind::Census,
            scope: Scope::Site,
            max_rows_per_second: 0,
            stop_after_failures: 0,
        };
        let target = runner.keyring().target().id().as_str();
        let record = RunRecord::started(&spec, target, "", &self.context.info.name);
        let stop = self.shutdown.child_token();
        let begun = self
            .context
            .history
            .begin(record, None, stop.clone())
            .await?;
        let Begun::New(live) = begun else {
            return Ok(Taken::Elsewhere);
        };
        let censuses = &self.context.censuses;
        let position = censuses.position().await;
        let span = run_span::start(&Trace::new(), &spec, target);
        let meter = Arc::new(Meter::default());
        let io = RunIo {
            meter: meter.clone(),
            trace: span.trace(),
            ..RunIo::default()
        };
        let in_progress = in_progress(&spec, &meter);
        let census = Box::pin(runner.census(&spec, true, &io, &stop));
        let ended = execute_census(&live, &meter, census).await;
        drop(in_progress);
        if let Some(census) = &ended.census {
            censuses.record(runner.site(), position, census).await;
        }
        let report = ended.report;
        let counts = report.counts;
        let is_elsewhere = matches!(ended.result, Err(RunError::CensusElsewhere));
        let result = ended.result.map_err(|error| match error {
            RunError::Stopped if self.shutdown.is_cancelled() => ServiceError::ShuttingDown,
            RunError::Stopped | RunError::CensusElsewhere => ServiceError::Stopped,
            RunError::Store(error) => error.into(),
            _ => ServiceError::Internal,
        });
        let problem = result.as_ref().err().map(ServiceError::problem);
        let state = match &result {
            Ok(()) => RunState::Finished,
            Err(error) if error.is_stop() => RunState::Stopped,
            Err(_) => RunState::Failed,
        };
        if state == RunState::Failed {
            self.record_census_failure(problem.as_ref()).await;
        }
        run_span::set_end(&span, state, &report, true, problem.as_ref());
        drop(span);
        telemetry::run_ended(Kind::Census.label(), state.name());
        publish_last(&live, &meter, result.is_ok());
        live.finish(|record| {
            record.state = state;
            record.end_time = Some(SystemTime::now());
            record.counts = Some(counts);
            record.problem = problem;
            record.durable = true;
        })
        .await;
        if is_elsewhere {
            return Ok(Taken::Elsewhere);
        }
        result?;
        ended.census.map(Taken::Here).ok_or(ServiceError::Internal)
    }

    /// Records for the verdicts that a census has failed. Waits only briefly, because the database
    /// may be the cause of the failure.
    pub(super) async fn record_census_failure(&self, problem: Option<&RunProblem>) {
        let Some(problem) = problem.cloned() else {
            return;
        };
        let censuses = self.context.censuses.clone();
        let record = async move { censuses.record_failure(&problem).await };
        let record = self.tasks.spawn(record.in_current_span());
        let _ = timeout(FAILURE_LIMIT, record).await;
    }
}

/// The pause after a failed census, if `failures` censuses have failed before it.
fn pause_after(failures: u32, interval: Duration) -> Duration {
    let doubled = RETRY.saturating_mul(1 << failures.min(16));
    doubled.min(interval.max(RETRY))
}

/// Executes a census, and publishes its progress. Other instances can see the progress and stop the
/// census.
async fn execute_census<T>(live: &LiveRun, meter: &Meter, census: impl Future<Output = T>) -> T {
    // A census has no failures. The sender is kept because the queue ends when its last sender is
    // dropped.
    let (_sender, mut failures) = LiveRun::queue();
    let keep = async {
        live.keep(&mut failures).await;
        pending::<Infallible>().await
    };
    tokio::select! {
        ended = census => ended,
        never = keep => match never {},
        never = publish(live, meter) => match never {},
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_after_failures_grows_up_to_the_interval() {
        let pauses = |interval| {
            let pause = |failures| pause_after(failures, Duration::from_secs(interval)).as_secs();
            [0, 1, 2, 3, u32::MAX].map(pause)
        };
        assert_eq!(pauses(60), [10, 20, 40, 60, 60]);
        assert_eq!(pauses(1), [10; 5]);
        assert_eq!(pauses(86_400), [10, 20, 40, 80, 86_400]);
    }
}
