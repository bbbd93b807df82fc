//! Canary organizations: they are re-wrapped first.

use std::process::{Command, Stdio};

use tokio::task::spawn_blocking;

use crate::{
    cli::client::{exit::Exit, problem::Problem},
    proto::rewrap as pb,
};

/// Runs the check of a canary organization.
pub(super) async fn check(command: &str, organization: &str) -> Result<(), Problem> {
    let (shell, id) = (command.to_owned(), organization.to_owned());
    let status = spawn_blocking(move || {
        Command::new("/bin/sh")
            .args(["-c", &shell])
            .env("REWRAP_CANARY", id)
            .stdin(Stdio::null())
            // Standard output is for the data of this command.
            .stdout(Stdio::from(std::io::stderr()))
            .status()
    });
    let problem = match status.await {
        Ok(Ok(status)) if status.success() => return Ok(()),
        Ok(Ok(status)) => status.to_string(),
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    Err(Problem::new(
        Exit::Failures,
        format!(
            "the canary check of {organization} failed ({problem}), and the rotation stops. The canary organizations are \
             under the target key, all others are unchanged"
        ),
    ))
}

/// The problem of a canary organization whose apply did not succeed.
pub(super) fn failed(exit: Exit, organization: &str, runs: &[pb::Run]) -> Problem {
    let problem = runs.last().and_then(Problem::of_run);
    let why = problem.map_or_else(
        || "see its failures above".to_owned(),
        |problem| problem.message,
    );
    Problem::new(
        exit,
        format!(
            "the canary organization {organization} was not re-wrapped ({why}), and the rotation stops"
        ),
    )
}
