//! The execution of one call: authorize, admit, run, record.
//!
//! This module does not depend on the transport. A transport converts its message to a
//! `CallRequest`, calls `Calls::carry_out`, and converts the `Answer` back.

use std::{
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch::Receiver},
    time::timeout,
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tracing::Instrument;

use super::{
    admission::decide,
    error::{Counts, ServiceError},
    run_id::run_id,
};
use crate::{
    audit::{AuditLog, Outcome, Record},
    auth::{authorize::Policy, peer::Peer},
    domain::organization::InvalidOrganizationId,
    run::{Ended, Mode, Report, RunError, Runner, Scope},
    store::SetupError,
    telemetry::readiness::Readiness,
};

/// How long a site-wide apply waits for the end of a stopped one. A stop takes two seconds.
const STOPPING_APPLY_LIMIT: Duration = Duration::from_secs(4);

/// The request of a call.
pub(super) struct CallRequest {
    /// The method, for the audit record.
    pub(super) method: &'static str,
    /// The client; `None` is a bug of the server.
    pub(super) peer: Option<Arc<Peer>>,
    /// The organization or the site; an error if the organization id is invalid.
    pub(super) scope: Result<Scope, InvalidOrganizationId>,
    /// Dry run or apply.
    pub(super) mode: Mode,
    /// The target key ids that the client expects. Each must be the target of this server.
    pub(super) expected_target: Vec<String>,
    /// The time limit that the client set for the call.
    pub(super) deadline: Option<Duration>,
}

/// The result of a call.
pub(super) struct Answer {
    /// The id of the run.
    pub(super) run_id: String,
    /// The report and the target key id.
    pub(super) result: Result<(Report, String), ServiceError>,
}

/// What calls need from the rest of the server.
pub struct CallContext {
    /// Makes the runs. Without it, machine identity is disabled on this site.
    pub runner: Option<LateRunner>,
    /// Who may call.
    pub policy: Policy,
    /// Whether calls may run.
    pub readiness: Readiness,
    /// Why the start cannot use the database, if somebody must change something first.
    pub setup_problem: Receiver<Option<SetupError>>,
    /// Where the records go.
    pub audit: AuditLog,
    /// Maximum number of concurrent runs.
    pub max_runs: u32,
}

/// Carries out calls. All clones share the same limits.
#[derive(Clone)]
pub struct Calls(Arc<Inner>);

/// The runner. It is set when the keys have been read.
pub type LateRunner = Arc<OnceLock<Runner>>;

struct Inner {
    context: CallContext,
    runs: Arc<Semaphore>,
    site_apply: Arc<Semaphore>,
    /// Stops the last site-wide apply that was started.
    applying: Mutex<CancellationToken>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl Calls {
    /// Carries out runs as tasks of `tasks`, and stops them at `shutdown`.
    #[must_use]
    pub fn new(context: CallContext, tasks: TaskTracker, shutdown: CancellationToken) -> Self {
        Self(Arc::new(Inner {
            runs: Arc::new(Semaphore::new(context.max_runs as usize)),
            context,
            site_apply: Arc::new(Semaphore::new(1)),
            applying: Mutex::default(),
            tasks,
            shutdown,
        }))
    }

    /// The readiness that calls check.
    pub(super) fn readiness(&self) -> &Readiness {
        &self.0.context.readiness
    }

    /// Carries out the call and writes its audit record. Dropping the future means that the
    /// client has disconnected, and stops the run.
    pub(super) async fn carry_out(&self, request: CallRequest) -> Answer {
        let run_id = run_id();
        // At level error, so that no log filter removes the run id from a line.
        let span = tracing::error_span!("rewrap", run_id);
        // The call is a task of its own, so that its record is written even if the client
        // disconnects. The drop guard tells the task that the client has disconnected.
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
    /// Carries out the call and writes its audit record, even if the call panics.
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
        self.context
            .audit
            .ended(record, started.elapsed(), &outcome)
            .await;
        result.map(|target| (report, target))
    }

    /// Runs the call. Returns the target key id or an error, the report so far, and whether the
    /// reported rows are durable.
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
        let permit = decide(&self.context.policy, &peer)?;
        let (scope, mode) = (request.scope?, request.mode);
        let runner = self.context.runner.as_ref().ok_or(ServiceError::Disabled)?;
        let Some(runner) = runner.get() else {
            let reason = self.context.readiness.check().err();
            let reason = reason.unwrap_or_else(|| "the keys are not read yet".to_owned());
            return Err(ServiceError::NotReady(reason));
        };
        let target = runner.keyring().target().id().to_string();
        if let Some(expected) = request.expected_target.into_iter().find(|id| *id != target) {
            return Err(ServiceError::UnexpectedTarget { target, expected });
        }
        if self.shutdown.is_cancelled() {
            return Err(ServiceError::ShuttingDown);
        }
        self.check_readiness()?;
        let stop = self.shutdown.child_token();
        let _permits = self.run_slots(&scope, mode, &stop).await?;
        self.context.audit.started(record).await?;

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
        // Boxed, because the future of a run is large and would be moved on the stack.
        let run = Box::pin(runner.run(&permit, &scope, mode, &stop));
        let mut run = std::pin::pin!(remember_wait(run, runner.stall()));
        let ((ended, wait), stopped_for) = tokio::select! {
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
        let counts = Counts::of(&ended.report, mode, ended.durable);
        let ended = ended.map_err(|error| {
            let error = match error {
                RunError::Stopped => stopped_for,
                // The run is complete: there is nothing to count.
                RunError::NotFound(id) => return ServiceError::UnknownOrganization(id),
                RunError::Store(error) => error.into(),
                RunError::NotReplicated => ServiceError::NotReplicated,
                RunError::Panicked => {
                    tracing::error!("a task of the run panicked: this is a bug");
                    ServiceError::Internal
                }
            };
            ServiceError::EndedEarly {
                error: Box::new(error),
                counts,
                wait,
            }
        });
        Ok((target, ended))
    }

    /// Checks whether calls may run. A problem that no retry mends has its own reason.
    fn check_readiness(&self) -> Result<(), ServiceError> {
        let Err(reason) = self.context.readiness.check() else {
            return Ok(());
        };
        let problem = self.context.setup_problem.borrow().clone();
        Err(problem.map_or(ServiceError::NotReady(reason), ServiceError::DatabaseSetup))
    }

    /// Acquires one of the slots for runs and, for a site-wide apply, the only slot for those.
    /// `stop` stops the run that gets the slots.
    ///
    /// If a site-wide apply is stopping, the next one waits for its end. Otherwise a client that
    /// calls again after its deadline would be refused because of its own earlier call.
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

    /// The token that stops the last site-wide apply that was started.
    fn applying(&self) -> MutexGuard<'_, CancellationToken> {
        self.applying.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs to the end. Also returns what the run waited for then. The run clears its own text when it
/// ends.
async fn remember_wait(
    mut run: impl Future<Output = Ended> + Unpin,
    mut stall: Receiver<Option<String>>,
) -> (Ended, Option<String>) {
    loop {
        let wait = stall.borrow_and_update().clone();
        tokio::select! {
            biased;
            ended = &mut run => return (ended, wait),
            Ok(()) = stall.changed() => {}
        }
    }
}
