//! The execution of one call: authorize, admit, run, record.
//!
//! This module does not depend on the transport. A transport converts its message to a
//! `CallRequest`, calls `Calls::carry_out` or `Calls::start`, and converts the answer back.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot, watch::Receiver},
    time::timeout,
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tracing::Instrument;

use super::{
    admission::decide,
    error::ServiceError,
    execute::{Ending, Execution},
    run_id::run_id,
};
use crate::{
    audit::AuditLog,
    auth::{
        authorize::{Denied, Permit, Policy, authorize},
        peer::Peer,
    },
    run::{
        Report, Runner, Scope, Site,
        censuses::Censuses,
        history::{self, History},
        record::{Kind, RunRecord},
    },
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
    /// The organization or the site; an error if the request is invalid.
    pub(super) scope: Result<Scope, ServiceError>,
    /// What the run does; an error if the request is invalid.
    pub(super) kind: Result<Kind, ServiceError>,
    /// The target key ids that the client expects. Each must be the target of this server.
    pub(super) expected_target: Vec<String>,
    /// The time limit that the client set for the call.
    pub(super) deadline: Option<Duration>,
    /// What else the client asked for.
    pub(super) options: RunOptions,
}

/// What a client can ask for beside kind and scope.
#[derive(Debug, Default)]
pub(super) struct RunOptions {
    /// Maximum number of rows per second. Zero means no limit.
    pub(super) max_rows_per_second: u32,
    /// The number of failed rows after which the run stops. Zero means no limit.
    pub(super) stop_after_failures: u32,
    /// The id of the request, so that it starts only one run.
    pub(super) request: Option<history::Request>,
}

/// The result of a call.
pub(super) struct Answer<T> {
    /// The id of the run.
    pub(super) run_id: String,
    /// The result, or why there is none.
    pub(super) result: Result<T, ServiceError>,
}

/// What the server knows about itself.
#[derive(Debug)]
pub struct InstanceInfo {
    /// The name of this instance.
    pub name: String,
    /// When this instance started.
    pub start_time: SystemTime,
    /// TLS with the database.
    pub database_tls: String,
}

/// What calls need from the rest of the server.
pub struct CallContext {
    /// Makes the runs. Without it, machine identity is disabled on this site.
    pub runner: Option<LateRunner>,
    /// The runs of the site.
    pub history: History,
    /// What censuses have shown.
    pub censuses: Arc<Censuses>,
    /// About this instance.
    pub info: InstanceInfo,
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
    /// The file for receipts.
    pub receipt_log: Option<PathBuf>,
    /// The interval of censuses. Zero means none.
    pub census_interval: Duration,
}

/// Carries out calls. All clones share the same limits.
#[derive(Clone)]
pub struct Calls(pub(super) Arc<Inner>);

/// The runner. It is set when the keys have been read.
pub type LateRunner = Arc<OnceLock<Runner>>;

pub(super) struct Inner {
    pub(super) context: CallContext,
    runs: Arc<Semaphore>,
    site_apply: Arc<Semaphore>,
    /// The last site-wide apply that was started.
    applying: Mutex<Applying>,
    /// Says that a census is due.
    pub(super) census_due: Notify,
    pub(super) tasks: TaskTracker,
    pub(super) shutdown: CancellationToken,
}

/// A site-wide apply of this process.
#[derive(Default)]
struct Applying {
    /// Stops it.
    stop: CancellationToken,
    run_id: String,
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
            census_due: Notify::new(),
            tasks,
            shutdown,
        }))
    }

    /// The readiness that calls check.
    pub(super) fn readiness(&self) -> &Readiness {
        &self.0.context.readiness
    }

    /// The runs of the site.
    pub(super) fn history(&self) -> &History {
        &self.0.context.history
    }

    /// What censuses have shown.
    pub(super) fn censuses(&self) -> &Censuses {
        &self.0.context.censuses
    }

    /// About this instance.
    pub(super) fn info(&self) -> &InstanceInfo {
        &self.0.context.info
    }

    /// Cancelled when the server shuts down.
    pub(super) fn shutdown(&self) -> &CancellationToken {
        &self.0.shutdown
    }

    /// The keys and the database.
    pub(super) fn site(&self) -> Result<&Arc<Site>, ServiceError> {
        self.0.runner().map(Runner::site)
    }

    /// Authorizes a call that starts no run.
    pub(super) fn authorize(&self, peer: &Peer) -> Result<Permit, ServiceError> {
        Ok(decide(&self.0.context.policy, peer)?)
    }

    /// Why the client may not call, if it may not. This is not counted as a decision.
    pub(super) fn denial(&self, peer: &Peer) -> Option<Denied> {
        authorize(&self.0.context.policy, &peer.caller).err()
    }

    /// Carries out the call and writes its audit record. Dropping the future means that the
    /// client has disconnected, and stops the run.
    pub(super) async fn carry_out(&self, request: CallRequest) -> Answer<(Report, String)> {
        // The call is a task of its own, so that its record is written even if the client
        // disconnects. The drop guard tells the task that the client has disconnected.
        let client_gone = CancellationToken::new();
        let _guard: DropGuard = client_gone.clone().drop_guard();
        let run_id = run_id();
        let ended = self.spawn(&run_id, request, client_gone, None).await;
        Answer {
            run_id,
            result: ended.unwrap_or(Err(ServiceError::Internal)),
        }
    }

    /// Starts a run, which continues without the client. Its audit record is written at its
    /// end.
    pub(super) async fn start(&self, request: CallRequest) -> Answer<RunRecord> {
        let (started, is_started) = oneshot::channel();
        let run_id = run_id();
        let ended = self.spawn(&run_id, request, CancellationToken::new(), Some(started));
        let result = tokio::select! {
            biased;
            Ok(record) = is_started => Ok(record),
            ended = ended => match ended {
                Ok(Err(error)) => Err(error),
                Ok(Ok(_)) | Err(_) => Err(ServiceError::Internal),
            },
        };
        let run_id = match &result {
            Ok(record) => record.id.clone(),
            Err(_) => run_id,
        };
        Answer { run_id, result }
    }

    fn spawn(
        &self,
        run_id: &str,
        request: CallRequest,
        client_gone: CancellationToken,
        started: Option<oneshot::Sender<RunRecord>>,
    ) -> tokio::task::JoinHandle<Ending> {
        // At level error, so that no log filter removes the run id from a line.
        let span = tracing::error_span!("rewrap", run_id);
        let execution = Execution {
            inner: self.0.clone(),
            run_id: run_id.to_owned(),
            client_gone,
            started,
        };
        self.0.tasks.spawn(execution.call(request).instrument(span))
    }
}

impl Inner {
    /// The runner, when the keys have been read.
    pub(super) fn runner(&self) -> Result<&Runner, ServiceError> {
        let runner = self.context.runner.as_ref().ok_or(ServiceError::Disabled)?;
        runner.get().ok_or_else(|| {
            let reason = self.context.readiness.check().err();
            let reason = reason.unwrap_or_else(|| "the keys are not read yet".to_owned());
            ServiceError::NotReady(reason)
        })
    }

    /// Checks whether calls may run. A problem that no retry mends has its own reason.
    pub(super) fn check_readiness(&self) -> Result<(), ServiceError> {
        if self.shutdown.is_cancelled() {
            return Err(ServiceError::ShuttingDown);
        }
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
    pub(super) async fn run_slots(
        &self,
        run_id: &str,
        is_site_apply: bool,
        stop: &CancellationToken,
    ) -> Result<Vec<OwnedSemaphorePermit>, ServiceError> {
        let one_of_many = self.runs.clone().try_acquire_owned();
        let mut permits = vec![one_of_many.map_err(|_| ServiceError::TooManyRuns)?];
        if is_site_apply {
            let limit = if self.applying().stop.is_cancelled() {
                STOPPING_APPLY_LIMIT
            } else {
                Duration::ZERO
            };
            let only_one = timeout(limit, self.site_apply.clone().acquire_owned()).await;
            let Some(only_one) = only_one.ok().and_then(Result::ok) else {
                let holder = self.applying().run_id.clone();
                let holder = self.context.history.get(&holder).await.ok();
                let holder = holder.as_ref().map(crate::run::guard::Holder::of);
                return Err(ServiceError::ApplyUnderWay(holder.map(Box::new)));
            };
            permits.push(only_one);
            *self.applying() = Applying {
                stop: stop.clone(),
                run_id: run_id.to_owned(),
            };
        }
        Ok(permits)
    }

    fn applying(&self) -> MutexGuard<'_, Applying> {
        self.applying.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
