//! The execution of one call: authorize, admit, run, record.
//!
//! This module does not depend on the transport. A transport converts its message to a
//! `CallRequest`, calls `Calls::carry_out` or `Calls::start`, and converts the answer back.

use std::sync::Arc;

use tokio::sync::{Notify, oneshot};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tracing::Instrument;

use super::{
    admission::decide,
    context::{CallContext, Inner, InstanceInfo},
    error::ServiceError,
    execute::Execution,
    passed_check::PassedCheck,
    receipt_order::ReceiptOrder,
    request::{Answer, CallRequest, Ending},
    run_id::run_id,
    slots::Slots,
};
use crate::{
    auth::{
        authorize::{Access, Denied, Permit, authorize},
        peer::Peer,
    },
    run::{Report, Runner, Site, censuses::Censuses, history::History, record::RunRecord},
    telemetry::readiness::Readiness,
};

/// Carries out calls. All clones share the same limits.
#[derive(Clone)]
pub struct Calls(pub(super) Arc<Inner>);

impl Calls {
    /// Carries out runs as tasks of `tasks`, and stops them at `shutdown`.
    #[must_use]
    pub fn new(context: CallContext, tasks: TaskTracker, shutdown: CancellationToken) -> Self {
        Self(Arc::new(Inner {
            slots: Slots::new(context.max_runs),
            key_check: PassedCheck::default(),
            receipt_order: ReceiptOrder::default(),
            context,
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

    /// The results of the censuses.
    pub(super) fn censuses(&self) -> &Censuses {
        &self.0.context.censuses
    }

    /// Facts about this instance.
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
        Ok(decide(&self.0.context.policy, peer, Access::Read)?)
    }

    /// The reason why the client does not have this access. `None` if it has the access. The metric
    /// of decisions does not count this question.
    pub(super) fn denial(&self, peer: &Peer, access: Access) -> Option<Denied> {
        authorize(&self.0.context.policy, &peer.caller, access).err()
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
            meter: Arc::default(),
            started,
        };
        self.0.tasks.spawn(execution.call(request).instrument(span))
    }
}
