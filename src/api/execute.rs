//! One call from its authorization to its audit record.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::oneshot, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{
    admission::decide,
    conclude::Conclusion,
    context::Inner,
    drive::Drive,
    error::ServiceError,
    panicked::Panicked,
    request::{CallRequest, Ending},
    run_span,
};
use crate::{
    audit::{Outcome, Record},
    auth::authorize::Access,
    failpoint::{Point, reach},
    run::{
        Ended, Meter, Report, RunSpec, Scope,
        guard::{Acquired, Holder, SiteGuard, acquire},
        history::{Begun, Request},
        record::{Kind, RunRecord},
    },
};

/// Number of checks whether an equal request has started the apply in progress, and the pause
/// between them.
const CHECKS: u32 = 10;
const CHECK_PAUSE: Duration = Duration::from_millis(200);

/// One call.
pub(super) struct Execution {
    pub(super) inner: Arc<Inner>,
    pub(super) run_id: String,
    /// Cancelled when the client has disconnected.
    pub(super) client_gone: CancellationToken,
    /// Counts the rows of the run.
    pub(super) meter: Arc<Meter>,
    /// Receives the record of the run when the run has started.
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
        let (panicked, meter) = (Panicked::prepare(&request), self.meter.clone());
        let run = async move { self.checked_run(request, &begun).await };
        let run = tokio::spawn(run.in_current_span());
        let (result, report, durable) = run.await.unwrap_or_else(|error| {
            tracing::error!(%error, "a run panicked: this is a bug");
            let (error, report) = panicked.end(&meter);
            (Err(error), report, false)
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
        // If the kind is invalid, the next line returns its error.
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
        let span = run_span::start(&trace, &spec, &target);
        self.send_started(live.record());
        tracing::info!(
            scope = %spec.scope,
            kind = kind.label(),
            dry_run = kind == Kind::DryRun,
            target_key_id = target,
            caller,
            "run started"
        );
        let census_before = context
            .censuses
            .last()
            .await
            .filter(|_| kind == Kind::Apply);
        let drive = Drive {
            inner: &inner,
            runner,
            permit: &permit,
            spec: &spec,
            live: &live,
            deadline,
            stop: &stop,
            client_gone: &self.client_gone,
            meter: &self.meter,
            site_guard: &site_guard,
            trace: &span.trace(),
        };
        let mut ended = Box::pin(drive.drive()).await;
        reach(Point::BeforeReport);
        site_guard.release().await;
        let conclusion = Conclusion {
            inner: &inner,
            site: runner.site(),
            kind,
            is_site: spec.scope == Scope::Site,
            live,
            span,
            census_before,
        };
        conclusion.conclude(&mut ended).await;
        Ok((target, ended))
    }

    /// Answers an apply while another apply is in progress. If an equal request has just started
    /// the other apply, at this or another instance, the answer is its run.
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
            // If the holder is unknown, its run is not in the history yet.
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
}
