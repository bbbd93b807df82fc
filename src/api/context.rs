//! The context of all calls: the parts of the server that they use, and their limits.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use tokio::sync::{Notify, watch::Receiver};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    error::ServiceError, passed_check::PassedCheck, receipt_order::ReceiptOrder, slots::Slots,
};
use crate::{
    audit::AuditLog,
    auth::authorize::Policy,
    run::{Runner, censuses::Censuses, history::History},
    store::SetupError,
    telemetry::readiness::Readiness,
};

/// Facts about this instance.
#[derive(Debug)]
pub struct InstanceInfo {
    /// The name of this instance.
    pub name: String,
    /// When this instance started.
    pub start_time: SystemTime,
    /// TLS to the database.
    pub database_tls: String,
}

/// The parts of the server that calls use.
pub struct CallContext {
    /// Starts the runs. Without it, machine identity is disabled on this site.
    pub runner: Option<LateRunner>,
    /// The runs of the site.
    pub history: History,
    /// The results of the censuses.
    pub censuses: Arc<Censuses>,
    /// Facts about this instance.
    pub info: InstanceInfo,
    /// Who may call.
    pub policy: Policy,
    /// Whether calls may run.
    pub readiness: Readiness,
    /// The problem with the database that an operator must solve. `None` without such a problem.
    pub setup_problem: Receiver<Option<SetupError>>,
    /// The log for audit records.
    pub audit: AuditLog,
    /// Maximum number of concurrent runs, `[rewrap].max_runs`.
    pub max_runs: u32,
    /// The file for receipts.
    pub receipt_log: Option<PathBuf>,
    /// The interval of the automatic censuses. Zero means no automatic census.
    pub census_interval: Duration,
}

/// The runner. It is empty until the keys have been read.
pub type LateRunner = Arc<OnceLock<Runner>>;

/// What all clones of `Calls` share.
pub(super) struct Inner {
    pub(super) context: CallContext,
    /// Limits the runs of this process.
    pub(super) slots: Slots,
    /// The last check of the keys.
    pub(super) key_check: PassedCheck,
    /// The order of the receipts.
    pub(super) receipt_order: ReceiptOrder,
    /// Notified when a census is due.
    pub(super) census_due: Notify,
    pub(super) tasks: TaskTracker,
    pub(super) shutdown: CancellationToken,
}

impl Inner {
    /// The runner. An error until the keys have been read.
    pub(super) fn runner(&self) -> Result<&Runner, ServiceError> {
        let runner = self.context.runner.as_ref().ok_or(ServiceError::Disabled)?;
        runner.get().ok_or_else(|| {
            let reason = self.context.readiness.check().err();
            let reason = reason.unwrap_or_else(|| "the keys are not read yet".to_owned());
            ServiceError::NotReady(reason)
        })
    }

    /// Checks whether calls may run. A problem that a retry cannot solve has its own reason.
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
}
