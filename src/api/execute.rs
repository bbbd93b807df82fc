//! One call from its authorization to its audit record.

use std::{
    future::pending,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use tokio::{
    sync::{oneshot, watch::Receiver},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{
    admission::decide,
    context::Inner,
    error::{Counts, ServiceError},
    key_check::check_keys,
    progress::{in_progress, publish, publish_last},
    request::{CallRequest, Ending},
    run_span,
};
use crate::{
    audit::{Outcome, Record},
    auth::authorize::{Access, Permit},
    failpoint::{Point, reach},
    run::{
        Ended, Meter, Report, RunError, RunIo, RunSpec, Runner, Scope,
        guard::{Acquired, Holder, SiteGuard, acquire},
        history::{Begun, LiveRun, Request},
        record::{Kind, RunRecord, RunState},
    },
    telemetry::{self, Trace},
};

/// How long an ended run waits until its last failures are in the database.
const KEEP_LIMIT: Duration = Duration::from_millis(300);

/// How often, and after which pause, to check whether an equal request has started the apply that
/// is under way.
const CHECKS: u32 = 10;
const CHECK_PAUSE: Duration = Duration::from_millis(200);

/// One call.
pub(super) struct Execution {
    pub(super) inner: Arc<Inner>,
    pub(super) run_id: String,
    /// Cancelled when the client has disconnected.
    pub(super) client_gone: CancellationToken,
    /// Takes the record of the run when it has started.
    pub(super) started: Option<oneshot::Sender<RunRecord>>,
}

impl Execution {
    /// Carries out the call and writes its audit record, even if the call panics.
    pub(super) async fn call(self, request: CallRequest) -> Ending {
        let began = Instant::now();
        let audit = self.inner.context.audit.clone();
        let mut record = Record::new(&self.run_id, request.peer.clone(), request.method);
        record.set_request(
            request.scope.as_ref().ok(),
            request.kind.as_ref().ok().copied(),
        );

        let begun = record.clone();
        let run = async move { self.checked_run(request, &begun).await };
        let run = tokio::spawn(run.in_current_span());
        let (result, report, durable) = run.await.unwrap_or_else(|error| {
            tracing::error!(%error, "a run panicked: this is a bug");
            (Err(ServiceError::Internal), Report::default(), false)
        });
        record.set_report(&report, durable);
        let outcome = match &result {
            Ok(_) => Outcome::OK,
            Err(error) => error.outcome(),
        };
        audit.ended(record, began.elapsed(), &outcome).await;
        result.map(|target| (report, target))
    }

    /// Runs the call. Returns the target key id or an error, the report so far, and whether the
    /// reported rows are durable.
    async fn checked_run(
        self,
        request: CallRequest,
        record: &Record,
    ) -> (Result<String, ServiceError>, Report, bool) {
        match self.run(request, record).await {
            Ok((target, ended)) => (ended.result.map(|()| target), ended.report, ended.durable),
            Err(error) => (Err(error), Report::default(), true),
        }
    }

    async fn run(
        mut self,
        request: CallRequest,
        audit_record: &Record,
    ) -> Result<(String, Ended<ServiceError>), ServiceError> {
        let inner = self.inner.clone();
        let context = &inner.context;
        let peer = request.peer.ok_or(ServiceError::Internal)?;
        // Without a kind, the request is invalid, and the next line says so.
        let access = match request.kind {
            Ok(Kind::Apply) => Access::Apply,
            Ok(Kind::DryRun | Kind::Verify | Kind::Census) | Err(_) => Access::Read,
        };
        let permit = decide(&context.policy, &peer, access)?;
        let (scope, kind) = (request.scope?, request.kind?);
        let runner = inner.runner()?;
        let target = runner.keyring().target().id().to_string();
        if let Some(expected) = request.expected_target.into_iter().find(|id| *id != target) {
            return Err(ServiceError::UnexpectedTarget { target, expected });
        }
        let history = &context.history;
        if let Some(earlier) = &request.options.request
            && let Some(known) = history.known(earlier).await?
        {
            self.send_started(known);
            return Ok((target, Ended::without_rows(Ok(()))));
        }
        inner.check_readiness()?;
        let spec = RunSpec {
            id: self.run_id.clone(),
            kind,
            scope,
            max_rows_per_second: request.options.max_rows_per_second,
            stop_after_failures: request.options.stop_after_failures,
        };
        let caller = permit.identity().name();
        let record = RunRecord::started(&spec, &target, caller, &context.info.name);
        let stop = inner.shutdown.child_token();
        let slots = &inner.slots;
        let slots = slots.acquire(&spec.id, record.is_site_apply(), &stop, history);
        let (deadline, trace) = (request.deadline, request.trace);
        let request = request.options.request;
        let _slots = match slots.await {
            Err(ServiceError::ApplyUnderWay(holder)) => {
                return self.under_way(request.as_ref(), holder, target).await;
            }
            slots => slots?,
        };
        let site_guard = if record.is_site_apply() {
            match acquire(runner.site(), history, &record).await? {
                Acquired::Guard(guard) => guard,
                Acquired::Held(holder) => {
                    let holder = holder.map(Box::new);
                    return self.under_way(request.as_ref(), holder, target).await;
                }
            }
        } else {
            SiteGuard::ProcessOnly
        };
        context.audit.started(audit_record).await?;
        let live = match history.begin(record, request, stop.clone()).await? {
            Begun::New(live) => live,
            Begun::Known(known) => {
                site_guard.release().await;
                self.send_started(*known);
                return Ok((target, Ended::without_rows(Ok(()))));
            }
        };
        self.send_started(live.record());
        let span = run_span::start(&trace, &spec, &target);
        tracing::info!(
            scope = %spec.scope,
            kind = kind.label(),
            dry_run = kind == Kind::DryRun,
            target_key_id = target,
            caller,
            "run started"
        );
        let before = context
            .censuses
            .last()
            .await
            .filter(|_| kind == Kind::Apply);
        let mut ended = Box::pin(self.execute(
            runner,
            &permit,
            &spec,
            deadline,
            &stop,
            &site_guard,
            &live,
            &span.trace(),
        ))
        .await;
        reach(Point::BeforeReport);
        site_guard.release().await;
        let counts = ended.report.counts;
        let changes = std::mem::take(&mut ended.changes);
        let (groups, durable) = (ended.report.groups(), ended.durable);
        let problem = ended.result.as_ref().err().map(ServiceError::problem);
        let state = match &ended.result {
            Ok(()) => RunState::Finished,
            Err(error) if error.is_stop() => RunState::Stopped,
            Err(_) => RunState::Failed,
        };
        run_span::set_end(&span, state, &ended.report, durable, problem.as_ref());
        drop(span);
        telemetry::run_ended(kind.label(), state.name());
        let end = SystemTime::now();
        let is_clean = state == RunState::Finished && counts.rows_failed == 0 && durable;
        if kind == Kind::Apply && spec.scope == Scope::Site && is_clean {
            telemetry::apply_succeeded(end);
        }
        if kind == Kind::Census && state == RunState::Failed {
            inner.record_census_failure(problem.as_ref()).await;
        }
        let mut finished_record = None;
        let finished = live.finish(|record| {
            record.state = state;
            record.end_time = Some(end);
            record.counts = Some(counts);
            record.failure_groups = groups;
            record.problem = problem;
            record.durable = durable;
            finished_record = Some(record.clone());
        });
        finished.await;
        if kind == Kind::Apply && counts.rows_updated + counts.rows_in_doubt > 0 {
            context.censuses.rewrapped(runner.site()).await;
        }
        if kind == Kind::Apply && counts.rows_updated > 0 {
            match finished_record {
                // The task for the receipt also takes a census.
                Some(record) if inner.keeps_receipts() => {
                    inner.spawn_receipt(record, changes, before);
                }
                _ => inner.census_due.notify_one(),
            }
        }
        Ok((target, ended))
    }

    /// The answer to an apply while another one is under way. An equal request may have started that
    /// one just now, at this or at another instance. Then its run is the answer.
    async fn under_way(
        &mut self,
        request: Option<&Request>,
        holder: Option<Box<Holder>>,
        target: String,
    ) -> Result<(String, Ended<ServiceError>), ServiceError> {
        let history = &self.inner.context.history;
        let mut checks = 0;
        while let Some(request) = request {
            if let Some(known) = history.known(request).await? {
                self.send_started(known);
                return Ok((target, Ended::without_rows(Ok(()))));
            }
            checks += 1;
            // An unknown holder has not written its run yet.
            if holder.is_some() || checks >= CHECKS {
                break;
            }
            sleep(CHECK_PAUSE).await;
        }
        Err(ServiceError::ApplyUnderWay(holder))
    }

    fn send_started(&mut self, record: RunRecord) {
        if let Some(started) = self.started.take() {
            // An error means that the client has disconnected. The run continues.
            let _ = started.send(record);
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one run")]
    async fn execute(
        &self,
        runner: &Runner,
        permit: &Permit,
        spec: &RunSpec,
        deadline: Option<Duration>,
        stop: &CancellationToken,
        site_guard: &SiteGuard<'_>,
        live: &LiveRun,
        trace: &Trace,
    ) -> Ended<ServiceError> {
        let censuses = &self.inner.context.censuses;
        let position = match spec.kind {
            Kind::Census => Some(censuses.position().await),
            Kind::DryRun | Kind::Apply | Kind::Verify => None,
        };
        let began = tokio::time::Instant::now();
        let check = check_keys(&self.inner, runner, spec, stop, trace);
        let (checked, stopped_for) = self.stopped_for(check, deadline, stop, site_guard).await;
        match checked {
            Ok(()) if stop.is_cancelled() => return Ended::without_rows(Err(stopped_for)),
            Ok(()) => {}
            Err(error) => return Ended::without_rows(Err(error)),
        }
        let deadline = deadline.map(|deadline| deadline.saturating_sub(began.elapsed()));
        let meter = Arc::new(Meter::default());
        let _in_progress = in_progress(spec, &meter);
        let (queue, mut failures) = LiveRun::queue();
        let io = RunIo {
            meter: meter.clone(),
            failures: Some(queue),
            with_receipt: self.inner.keeps_receipts(),
            trace: trace.clone(),
        };
        let run = Box::pin(runner.run(permit, spec, io, stop));
        let run = remember_wait(run, runner.stall());
        let run = self.stopped_for(run, deadline, stop, site_guard);
        let run = async {
            tokio::select! {
                ended = run => ended,
                never = publish(live, &meter) => match never {},
            }
        };
        let mut run = pin!(run);
        let mut keep = Box::pin(live.keep(&mut failures));
        let ((ended, wait), stopped_for) = tokio::select! {
            ended = run.as_mut() => {
                let _ = timeout(KEEP_LIMIT, keep.as_mut()).await;
                ended
            }
            // The queue of failures has ended, so the run ends soon.
            () = keep.as_mut() => run.await,
        };
        drop(keep);
        live.remember(&mut failures);
        publish_last(live, &meter, ended.result.is_ok());
        if let (Some(census), Some(position)) = (&ended.census, position) {
            censuses.record(runner.site(), position, census).await;
        }
        let counts = Counts::of(&ended.report, spec.kind, ended.durable);
        ended.map_err(|error| {
            let error = match error {
                RunError::Stopped => stopped_for,
                // The run is complete: there is nothing to count.
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

    /// Drives a run, and stops it if the client disconnects, its deadline passes, or the guard
    /// is lost. Also returns the error for a stopped run.
    async fn stopped_for<T>(
        &self,
        run: impl Future<Output = T>,
        deadline: Option<Duration>,
        stop: &CancellationToken,
        site_guard: &SiteGuard<'_>,
    ) -> (T, ServiceError) {
        let deadline = async {
            match deadline {
                Some(deadline) => sleep(deadline).await,
                None => pending().await,
            }
        };
        let lost = async {
            let lost = site_guard.lost().await;
            if stop.is_cancelled() {
                // The run was stopped for another reason and ends soon.
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
        stop.cancel();
        let ended = run.await;
        // If the database fails just before a shutdown, the shutdown is the reason.
        let stopped_for = match stopped_for {
            ServiceError::Database(_) if self.inner.shutdown.is_cancelled() => {
                ServiceError::ShuttingDown
            }
            other => other,
        };
        (ended, stopped_for)
    }
}

/// Runs to the end. Also returns what the run waited for at its end. The run itself clears this
/// text when it ends.
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
