//! The error of a command: one sentence for the operator, and the exit code.

use std::{collections::BTreeMap, error::Error as _, fmt::Display};

use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::exit::Exit;
use crate::proto::rewrap::Run;

/// The domain of the reasons of this project.
const DOMAIN: &str = "nico-rewrap";

/// The type of the details that carry the reason of an error.
const ERROR_INFO: &str = "type.googleapis.com/google.rpc.ErrorInfo";

/// The error of a command.
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    /// The exit code.
    pub(super) exit: Exit,
    /// What is wrong, and what to do.
    pub(super) message: String,
    /// The stable reason of the server. Empty if the problem is not an answer of the server.
    pub(super) reason: String,
    /// The variable parts of the message.
    pub(super) metadata: BTreeMap<String, String>,
    /// Whether the connection broke, so that another attempt may succeed.
    pub(super) is_broken: bool,
    /// Whether the server does not have the method.
    pub(super) is_unimplemented: bool,
}

impl Problem {
    pub(super) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            reason: String::new(),
            metadata: BTreeMap::new(),
            is_broken: false,
            is_unimplemented: false,
        }
    }

    /// The connection broke, or the client could not connect.
    pub(super) fn broken(message: impl Into<String>) -> Self {
        Self {
            is_broken: true,
            ..Self::new(Exit::Unreachable, message)
        }
    }

    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    pub(super) fn config(message: impl Into<String>) -> Self {
        Self::new(Exit::Config, message)
    }

    /// The run may continue on the server, or may have to be repeated.
    pub(super) fn incomplete(run_id: &str, what: impl Display) -> Self {
        let mut problem = Self::new(
            Exit::Incomplete,
            format!(
                "{what}. The run has the id {run_id}. To see its state: nico-rewrap runs show {run_id}"
            ),
        );
        problem
            .metadata
            .insert("run_id".to_owned(), run_id.to_owned());
        problem
    }

    /// The id of the run that the problem concerns. Empty if the problem concerns no run.
    pub(super) fn run_id(&self) -> &str {
        self.metadata.get("run_id").map_or("", String::as_str)
    }

    /// The error with which a run ended. `None` for a run without an error.
    pub(super) fn of_run(run: &Run) -> Option<Self> {
        let error = run.error.as_ref()?;
        let info = error.details.iter().find_map(|detail| {
            (detail.type_url == ERROR_INFO)
                .then(|| prost::Message::decode(&*detail.value).ok())
                .flatten()
        });
        let info: tonic_types::pb::ErrorInfo = info.unwrap_or_default();
        let code = Code::from_i32(error.code);
        let mut problem = Self::new(exit_of(code, true), error.message.clone());
        problem.reason = info.reason;
        problem.metadata = info.metadata.into_iter().collect();
        let changed = run
            .report
            .is_some_and(|report| report.rows_updated > 0 || report.rows_in_doubt > 0);
        if changed && problem.exit != Exit::Bug {
            problem.exit = Exit::Incomplete;
        }
        Some(problem)
    }
}

/// The exit code for a gRPC code. `is_ours` says whether nico-rewrap gave the answer.
fn exit_of(code: Code, is_ours: bool) -> Exit {
    match code {
        Code::Ok => Exit::Done,
        Code::Unauthenticated | Code::PermissionDenied => Exit::NotAllowed,
        Code::InvalidArgument | Code::OutOfRange => Exit::Usage,
        Code::FailedPrecondition
        | Code::ResourceExhausted
        | Code::AlreadyExists
        | Code::NotFound
        | Code::Unimplemented => Exit::Refused,
        // A proxy whose server does not answer uses these codes, too.
        Code::Unavailable | Code::DeadlineExceeded if !is_ours => Exit::Unreachable,
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Aborted => {
            Exit::Incomplete
        }
        Code::Internal | Code::Unknown | Code::DataLoss => Exit::Bug,
    }
}

impl From<Status> for Problem {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        if let Some(info) = details.error_info().filter(|info| info.domain == DOMAIN) {
            let mut problem = Self::new(exit_of(status.code(), true), status.message());
            problem.reason = info.reason.clone();
            problem.metadata = info.metadata.clone().into_iter().collect();
            problem.is_unimplemented = status.code() == Code::Unimplemented;
            // The server is stopping or is not ready yet: another attempt may succeed.
            problem.is_broken = matches!(info.reason.as_str(), "SHUTTING_DOWN" | "NOT_READY");
            return problem;
        }
        if let Some(source) = status.source() {
            return connection(source);
        }
        let exit = exit_of(status.code(), false);
        let mut problem = Self::new(exit, foreign(&status));
        problem.is_broken = exit == Exit::Unreachable;
        problem.is_unimplemented = status.code() == Code::Unimplemented;
        problem
    }
}

/// The message about an answer that is not from nico-rewrap.
fn foreign(status: &Status) -> String {
    format!(
        "the answer is not from nico-rewrap, or it is from an old version: {:?}: {:.300}",
        status.code(),
        status.message()
    )
}

/// The text of an error, with the texts of its causes.
pub(super) fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        source = error.source();
    }
    text
}

/// A connection that broke.
fn connection(error: &(dyn std::error::Error + 'static)) -> Problem {
    let text = with_causes(error);
    match text.split_once("received fatal alert: ") {
        Some((_, alert)) => refused_certificate(alert),
        None => Problem::broken(format!("the connection to the server broke ({text})")),
    }
}

/// The server ended the TLS handshake with an alert.
pub(super) fn refused_certificate(alert: &str) -> Problem {
    Problem::new(
        Exit::NotAllowed,
        format!(
            "the server refused the TLS connection (alert {alert}): check that the client certificate is valid, \
             and that a CA of the site signed it. The log of the server has the reason"
        ),
    )
}

/// The message about a server without `nico.rewrap.v1`.
pub(super) fn old_server(problem: &Problem) -> Problem {
    Problem {
        message: "this server does not have the service nico.rewrap.v1: it is an old nico-rewrap, or \
                  another program. `nico-rewrap reencrypt` still works, with and without --dry-run: \
                  it calls forge.Forge. For all other commands, upgrade the server, or check --endpoint"
            .to_owned(),
        ..problem.clone()
    }
}
