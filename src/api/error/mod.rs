//! The error of a call, and the only conversion from an error to a gRPC status.
//!
//! The text tells the operator what to do. The reason is a stable identifier for programs.
//! Internal details, such as a panic message or an error text of Postgres, go only to the log.

mod counts;
mod metadata;
mod reasons;

use std::collections::HashMap;

use thiserror::Error;
use tonic::{Code, Status, metadata::MetadataValue};
use tonic_types::{ErrorDetails, StatusExt};

use crate::{
    api::run_id::RUN_ID_HEADER,
    audit::{NotRecorded, Outcome},
    auth::authorize::Denied,
    domain::organization::{InvalidOrganizationId, OrganizationId},
    run::{guard::Holder, history::HistoryError, key_check::WrongKeyMaterial, record::RunProblem},
    store::{SetupError, StoreError},
    telemetry::Span,
};

pub use self::{counts::Counts, reasons::Reason};

/// The domain of the reasons in `google.rpc.ErrorInfo`.
pub(super) const DOMAIN: &str = "nico-rewrap";

/// The header that lists the accepted message compressions (gRPC, "Compression").
const ACCEPTED_COMPRESSION: &str = "grpc-accept-encoding";

/// Why a call was not carried out.
#[derive(Debug, Error)]
pub enum ServiceError {
    /// `[machine_identity].enabled` is not true.
    #[error(
        "machine identity is not enabled on this site: set [machine_identity].enabled = true and restart nico-rewrap"
    )]
    Disabled,
    /// `x-expect-target-key-id` names another key.
    #[error(
        "this server re-wraps to key id {target:?}, but the call expects {expected:?}: check which configuration this server has"
    )]
    UnexpectedTarget {
        /// The target key id of this server.
        target: String,
        /// The target key id that the call expects.
        expected: String,
    },
    /// A site-wide apply is in progress, in this process or in another instance.
    #[error("a site-wide apply is already in progress{}: wait for its end, then call again", by(.0.as_deref()))]
    ApplyUnderWay(Option<Box<Holder>>),
    /// The request of a run is incomplete or contradictory.
    #[error("{0}")]
    InvalidRun(&'static str),
    /// No run has this id.
    #[error("there is no run {0:.100}, or it was forgotten: only the last 100 runs are kept")]
    UnknownRun(String),
    /// The request id was used before with other parameters.
    #[error("request_id {0:.100} was used before with other parameters: use a new id")]
    RequestIdReused(String),
    /// A key has other bytes here than in nico-api.
    #[error(transparent)]
    WrongKeyMaterial(#[from] WrongKeyMaterial),
    /// Somebody stopped the run.
    #[error("the run was stopped with StopRun. Committed rows stay committed; run again")]
    Stopped,
    /// The number of failed rows has reached the limit of the request.
    #[error(
        "the run was stopped after {0} failed rows, the limit in stop_after_failures. Committed rows stay committed"
    )]
    FailureLimit(u64),
    /// The organization id is blank or malformed.
    #[error(transparent)]
    InvalidOrganization(#[from] InvalidOrganizationId),
    /// The organization has no machine identity configuration.
    #[error("organization {0:.100} has no machine identity configuration on this site")]
    UnknownOrganization(OrganizationId),
    /// The client is not allowed to make this call.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The number of concurrent runs is at its limit.
    #[error("the limit of concurrent runs, [rewrap].max_runs, is reached: call again later")]
    TooManyRuns,
    /// The server has not yet read its keys or reached the database since the start.
    #[error("the server is not ready yet ({0}): call again later")]
    NotReady(String),
    /// The database is unavailable.
    #[error("{0}. Committed rows stay committed; call again later")]
    Database(StoreError),
    /// The setup of the database or the role prevents the run.
    #[error("{0}. Committed rows stay committed")]
    DatabaseSetup(SetupError),
    /// The rows are committed, but the synchronous standby may not have them.
    #[error(
        "somebody cancelled the wait of a commit for the synchronous standby, so the standby may \
         lack rows that this run read or wrote: call again"
    )]
    NotReplicated,
    /// The audit record of the call cannot be written.
    #[error(
        "the audit log can't be written, and the server starts no run without a record: check \
         the file of [rewrap].audit_log and its disk, then call again"
    )]
    AuditUnavailable,
    /// The server is shutting down.
    #[error("the server is shutting down. Committed rows stay committed; call again")]
    ShuttingDown,
    /// The deadline of the call has passed.
    #[error(
        "the deadline of the call has passed. Committed rows stay committed; call again with a longer deadline"
    )]
    DeadlineExceeded,
    /// The client has cancelled the call or disconnected.
    #[error("the client cancelled the call or disconnected. Committed rows stay committed")]
    Cancelled,
    /// The client did not send the whole request in time.
    #[error("the request was not complete within [rewrap].request_read_timeout: call again")]
    SlowRequest,
    /// The server does not have the method, or the request is not gRPC.
    #[error("unknown method, or not a gRPC request: check the method name and the content type")]
    UnknownMethod,
    /// The message is compressed.
    #[error(
        "the message is compressed with {0:?}, and this server accepts no compressed messages: \
         send it without compression"
    )]
    Compressed(String),
    /// The metadata of the request is too large.
    #[error("the metadata of the request is larger than 16 KiB: send less metadata")]
    MetadataTooLarge,
    /// The request cannot be decoded as the request type of the method, or is too large.
    #[error("the request is malformed or larger than 16 KiB: send the method's request type")]
    MalformedRequest,
    /// A bug.
    #[error("internal error: search the server's log for this run id")]
    Internal,
    /// A run started and ended without a complete report.
    #[error("{error}.{} {counts}", waited(wait.as_deref()))]
    EndedEarly {
        /// Why the run ended.
        error: Box<Self>,
        /// What the run counted.
        counts: Counts,
        /// What the run waited for when it ended.
        wait: Option<String>,
    },
}

/// The run of the other apply, in parentheses. Empty if it is unknown.
fn by(holder: Option<&Holder>) -> String {
    holder.map_or_else(String::new, |holder| {
        format!(
            " (run {} of {:.100}, at instance {:.100}, since {})",
            holder.run_id, holder.caller, holder.instance, holder.start_time
        )
    })
}

/// The sentence about what the run waited for.
fn waited(wait: Option<&str>) -> String {
    wait.map(|wait| format!(" At its end the run made no progress: {wait}."))
        .unwrap_or_default()
}

impl From<StoreError> for ServiceError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Setup(problem) => Self::DatabaseSetup(problem),
            error => Self::Database(error),
        }
    }
}

impl From<HistoryError> for ServiceError {
    fn from(error: HistoryError) -> Self {
        match error {
            HistoryError::NoSuchRun(id) => Self::UnknownRun(id),
            HistoryError::RequestIdReused(id) => Self::RequestIdReused(id),
            HistoryError::Store(error) => error.into_unavailable().into(),
        }
    }
}

impl ServiceError {
    /// Whether the run was stopped. A client can repeat such a run without a change.
    pub(super) fn is_stop(&self) -> bool {
        match self {
            Self::EndedEarly { error, .. } => error.is_stop(),
            Self::ShuttingDown
            | Self::DeadlineExceeded
            | Self::Cancelled
            | Self::Stopped
            | Self::FailureLimit(_) => true,
            _ => false,
        }
    }

    /// The error as the record of a run stores it.
    pub(super) fn problem(&self) -> RunProblem {
        let reason = self.reason();
        let parts = self.parts().into_iter();
        RunProblem {
            code: reason.code.into(),
            reason: reason.name.to_owned(),
            message: self.to_string(),
            metadata: parts
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
        }
    }

    /// The error as the audit record stores it.
    pub(crate) fn outcome(&self) -> Outcome {
        Outcome {
            name: self.reason().name,
            error: Some(self.to_string()),
            refusal: match self {
                Self::Denied(denied) => Some(denied.refusal.clone()),
                _ => None,
            },
        }
    }
}

impl From<NotRecorded> for ServiceError {
    fn from(_: NotRecorded) -> Self {
        Self::AuditUnavailable
    }
}

/// The link to the section about this reason in `docs/troubleshooting.md`.
fn troubleshooting(reason: &str) -> String {
    format!("docs/troubleshooting.md#{}", reason.to_ascii_lowercase())
}

impl ServiceError {
    /// Converts the error to a status with the run id in its metadata.
    #[must_use]
    pub fn into_status(self, run_id: &str) -> Status {
        let (reason, message) = (self.reason(), self.to_string());
        // If the error already names another run, keep that `run_id`. The header has the id of this
        // call.
        let parts = [("run_id", run_id.to_owned())]
            .into_iter()
            .chain(self.parts());
        let parts: HashMap<String, String> = parts
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        let mut details = ErrorDetails::with_error_info(reason.name, DOMAIN, parts);
        details.add_help_link("what to do", troubleshooting(reason.name));
        let mut status = Status::with_error_details(reason.code, message.clone(), details);
        let metadata = status.metadata_mut();
        metadata::add_nico_error(metadata, reason, &message);
        if matches!(self, Self::Compressed(_)) {
            let none = MetadataValue::from_static("identity");
            metadata.insert(ACCEPTED_COMPRESSION, none);
        }
        if let Ok(run_id) = run_id.parse() {
            metadata.insert(RUN_ID_HEADER, run_id);
        }
        status
    }

    /// Converts the error to a status, and sets how the span of the call has ended.
    pub(super) fn into_traced_status(self, run_id: &str, span: &Span) -> Status {
        span.fail(self.reason().name);
        let status = self.into_status(run_id);
        set_status(span, status.code());
        status
    }
}

/// Sets the gRPC status of the span of a call.
pub(super) fn set_status(span: &Span, code: Code) {
    span.set("rpc.grpc.status_code", i64::from(i32::from(code)));
}

/// The outcome of a status that a handler has made from a [`ServiceError`]. `None` if the
/// status is not from a [`ServiceError`].
pub(super) fn outcome_of(status: &Status) -> Option<Outcome> {
    let info = status.get_details_error_info()?;
    let reason = reasons::find(&info.reason).filter(|_| info.domain == DOMAIN)?;
    Some(Outcome {
        name: reason.name,
        error: Some(status.message().to_owned()),
        refusal: None,
    })
}

#[cfg(test)]
mod tests;
