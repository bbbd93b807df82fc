//! The automatic censuses of the server.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::time::sleep;
use tracing::Instrument;

use super::{
    call::Calls, context::Inner, error::ServiceError, execute::in_progress, run_id::run_id,
};
use crate::{
    run::{
        Meter, RunError, RunSpec, Runner, Scope,
        history::Begun,
        record::{Kind, RunRecord, RunState},
    },
    store::StoreError,
    telemetry,
};

/// How long to wait after a census that failed.
const RETRY: Duration = Duration::from_secs(10);

/// How often to check for the first contact with the database.
const START: Duration = Duration::from_millis(200);

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
        let mut is_due = false;
        while !shutdown.is_cancelled() {
            let is_old = inner
                .context
                .censuses
                .is_older_than(interval.mul_f64(0.9))
                .await;
            let pause = if is_due || is_old {
                // A shutdown stops the census but does not drop this future, because the end
                // must be recorded.
                inner.take_census(runner).await.map_or(RETRY, |()| interval)
            } else {
                // Another instance has taken one.
                interval
            };
            is_due = tokio::select! {
                () = inner.census_due.notified() => true,
                () = sleep(pause) => false,
                () = shutdown.cancelled() => return,
            };
        }
    }
}

impl Inner {
    /// Takes a census, unless another instance takes one now.
    pub(super) async fn take_census(&self, runner: &Runner) -> Result<(), ServiceError> {
        let id = run_id();
        let span = tracing::error_span!("census", run_id = id);
        async {
            // On the heap: a debug build needs much stack to move it.
            let taken = Box::pin(self.try_take_census(runner, id)).await;
            match &taken {
                Err(error) if error.is_stop() => tracing::info!(%error, "the census was stopped"),
                Err(error) => tracing::warn!(%error, "the census failed"),
                Ok(()) => {}
            }
            taken
        }
        .instrument(span)
        .await
    }

    async fn try_take_census(&self, runner: &Runner, id: String) -> Result<(), ServiceError> {
        let is_free = runner.store().census_is_free().await;
        if !is_free.map_err(StoreError::into_unavailable)? {
            return Ok(());
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
            return Ok(());
        };
        let censuses = &self.context.censuses;
        let position = censuses.position().await;
        let meter = Arc::new(Meter::default());
        let in_progress = in_progress(&spec, &meter);
        let ended = Box::pin(runner.census(&spec, true, &meter, &stop)).await;
        drop(in_progress);
        if let Some(census) = &ended.census {
            censuses.record(runner.site(), position, census).await;
        }
        let counts = ended.report.counts;
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
        telemetry::run_ended(Kind::Census.label(), state.name());
        live.finish(|record| {
            record.progress.rows_done = meter.rows_done();
            record.state = state;
            record.end_time = Some(SystemTime::now());
            record.counts = Some(counts);
            record.problem = problem;
            record.durable = true;
        })
        .await;
        // The census of the other instance replaces this one.
        if is_elsewhere { Ok(()) } else { result }
    }
}
