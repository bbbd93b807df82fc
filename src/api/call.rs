//! One call, whatever its transport: authorize, admit, run, record.
//!
//! A transport converts its messages into a [`CallRequest`], calls [`Calls::carry_out`],
//! and converts the [`Answer`] back. It does nothing else.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tracing::Instrument;

use super::{admission::decide, error::ServiceError, run_id::run_id};
use crate::{
    audit::{AuditLog, Outcome, Record},
    auth::{authorize::Policy, peer::Peer},
    domain::organization::InvalidOrganizationId,
    run::{Ended, Mode, Report, RunError, Runner, Scope},
    telemetry::readiness::Readiness,
};

/// How long a site-wide apply waits for one that was told to stop, which takes two seconds.
const STOPPING_APPLY_LIMIT: Duration = Duration::from_secs(4);

/// What a call asks for.
pub(super) struct CallRequest {
    /// The method, for the audit record.
    pub(super) method: &'static str,
    /// Who calls; `None` is a bug of the server.
    pub(super) peer: Option<Arc<Peer>>,
    /// What to work on, if the organization id is valid.
    pub(super) scope: Result<Scope, InvalidOrganizationId>,
    /// Whether to write.
    pub(super) mode: Mode,
    /// The target keys that the caller expects. Every one must be the target of this server.
    pub(super) expected_target: Vec<String>,
    /// The time that the client gives the call.
    pub(super) deadline: Option<Duration>,
}

/// How a call ended.
pub(super) struct Answer {
    /// The id of the run.
    pub(super) run_id: String,
    /// The report and the target key id.
    pub(super) result: Result<(Report, String), ServiceError>,
}

/// Carries calls out. Clones share the same limits.
#[derive(Clone)]
pub struct Calls(Arc<Inner>);

struct Inner {
    runner: Option<Runner>,
    policy: Policy,
    readiness: Readiness,
    audit: AuditLog,
    runs: Arc<Semaphore>,
    site_apply: Arc<Semaphore>,
    /// What stops the last site-wide apply that was begun.
    applying: Mutex<CancellationToken>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl Calls {
    /// Starts at most `max_runs` runs at a time, as tasks of `tasks`, and stops them at
    /// `shutdown`. Without a `runner`, machine identity is disabled on this site.
    #[must_use]
    pub fn new(
        runner: Option<Runner>,
        policy: Policy,
        readiness: Readiness,
        audit: AuditLog,
        max_runs: u32,
        tasks: TaskTracker,
        shutdown: CancellationToken,
    ) -> Self {
        Self(Arc::new(Inner {
            runner,
            policy,
            readiness,
            audit,
            runs: Arc::new(Semaphore::new(max_runs as usize)),
            site_apply: Arc::new(Semaphore::new(1)),
            applying: Mutex::default(),
            tasks,
            shutdown,
        }))
    }

    /// What calls wait for.
    pub(super) fn readiness(&self) -> &Readiness {
        &self.0.readiness
    }

    /// Carries the call out and leaves its audit record. The run stops when the future is
    /// dropped: then the client is gone.
    pub(super) async fn carry_out(&self, request: CallRequest) -> Answer {
        let run_id = run_id();
        // On error level, so that no log filter takes the id off a line.
        let span = tracing::error_span!("rewrap", run_id);
        // The call is a task of its own, so that it leaves its record although the client
        // goes. The guard tells the task that the client is gone.
        let client_gone = CancellationToken::new();
        let _guard: DropGuard = client_gone.clone().drop_guard();
        let inner = self.0.clone();
        let id = run_id.clone();
        let call = async move { inner.call(&id, request, client_gone).await };
        let ended = self.0.tasks.spawn(call.instrument(span)).await;
        Answer {
            run_id,
            result: ended.unwrap_or(Err(ServiceError::Internal)),
        }
    }
}

impl Inner {
    /// Carries the call out and leaves its audit record, also if it panics.
    async fn call(
        self: Arc<Self>,
        run_id: &str,
        request: CallRequest,
        client_gone: CancellationToken,
    ) -> Result<(Report, String), ServiceError> {
        let started = Instant::now();
        let peer = request.peer.clone();
        let mut record = Record::new(run_id, peer.clone(), request.method);
        record.set_request(request.scope.as_ref().ok(), request.mode);

        let (inner, begun) = (self.clone(), record.clone());
        let run = tokio::spawn(
            async move { inner.checked_run(peer, request, &begun, &client_gone).await }
                .in_current_span(),
        );
        let (result, report, durable) = run.await.unwrap_or_else(|error| {
            tracing::error!(%error, "a run panicked: this is a bug");
            (Err(ServiceError::Internal), Report::default(), false)
        });
        record.set_report(&report, durable);
        let outcome = match &result {
            Ok(_) => Outcome::OK,
            Err(error) => error.outcome(),
        };
        self.audit.ended(record, started.elapsed(), &outcome).await;
        result.map(|target| (report, target))
    }

    /// The target of the run or why it has none, what it counted until then, and whether
    /// that is durable.
    async fn checked_run(
        &self,
        peer: Option<Arc<Peer>>,
        request: CallRequest,
        record: &Record,
        client_gone: &CancellationToken,
    ) -> (Result<String, ServiceError>, Report, bool) {
        match self.run(peer, request, record, client_gone).await {
            Ok((target, ended)) => (ended.result.map(|()| target), ended.report, ended.durable),
            Err(error) => (Err(error), Report::default(), true),
        }
    }

    async fn run(
        &self,
        peer: Option<Arc<Peer>>,
        request: CallRequest,
        record: &Record,
        client_gone: &CancellationToken,
    ) -> Result<(String, Ended<ServiceError>), ServiceError> {
        let peer = peer.ok_or(ServiceError::Internal)?;
        let permit = decide(&self.policy, &peer.caller)?;
        let (scope, mode) = (request.scope?, request.mode);
        let runner = self.runner.as_ref().ok_or(ServiceError::Disabled)?;
        let target = runner.keyring().target().id().to_string();
        if let Some(expected) = request.expected_target.into_iter().find(|id| *id != target) {
            return Err(ServiceError::UnexpectedTarget { target, expected });
        }
        if self.shutdown.is_cancelled() {
            return Err(ServiceError::ShuttingDown);
        }
        self.readiness.check().map_err(ServiceError::NotReady)?;
        let stop = self.shutdown.child_token();
        let _permits = self.run_slots(&scope, mode, &stop).await?;
        self.audit.started(record).await?;

        tracing::info!(
            scope = %scope,
            dry_run = mode == Mode::DryRun,
            target_key_id = target,
            caller = permit.identity().name(),
            "run started"
        );
        let deadline = async {
            match request.deadline {
                Some(deadline) => tokio::time::sleep(deadline).await,
                None => std::future::pending().await,
            }
        };
        let mut run = std::pin::pin!(runner.run(&permit, &scope, mode, &stop));
        let (ended, stopped_for) = tokio::select! {
            ended = run.as_mut() => (ended, ServiceError::ShuttingDown),
            () = client_gone.cancelled() => {
                stop.cancel();
                (run.await, ServiceError::Cancelled)
            }
            () = deadline => {
                stop.cancel();
                (run.await, ServiceError::DeadlineExceeded)
            }
        };
        let ended = ended.map_err(|error| match error {
            RunError::Stopped => stopped_for,
            RunError::NotFound(id) => ServiceError::UnknownOrganization(id),
            RunError::Store(error) => error.into(),
            RunError::NotReplicated => ServiceError::NotReplicated,
            RunError::Panicked => {
                tracing::error!("a task of the run panicked: this is a bug");
                ServiceError::Internal
            }
        });
        Ok((target, ended))
    }

    /// A slot among the runs, and the one slot for a site-wide apply. `stop` stops the run
    /// that the slots are for.
    ///
    /// An apply that was told to stop ends soon. The next one waits for it: a client that
    /// calls again after its deadline must not be refused for its own earlier call.
    async fn run_slots(
        &self,
        scope: &Scope,
        mode: Mode,
        stop: &CancellationToken,
    ) -> Result<Vec<OwnedSemaphorePermit>, ServiceError> {
        let one_of_many = self.runs.clone().try_acquire_owned();
        let mut permits = vec![one_of_many.map_err(|_| ServiceError::TooManyRuns)?];
        if *scope == Scope::Site && mode == Mode::Apply {
            let limit = if self.applying().is_cancelled() {
                STOPPING_APPLY_LIMIT
            } else {
                Duration::ZERO
            };
            let only_one = timeout(limit, self.site_apply.clone().acquire_owned()).await;
            permits.push(
                only_one
                    .ok()
                    .and_then(Result::ok)
                    .ok_or(ServiceError::ApplyUnderWay)?,
            );
            *self.applying() = stop.clone();
        }
        Ok(permits)
    }

    /// What stops the last site-wide apply that was begun.
    fn applying(&self) -> MutexGuard<'_, CancellationToken> {
        self.applying.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
