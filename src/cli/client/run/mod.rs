//! Runs that this client starts: `reencrypt`, `census` and `verify`.

mod failures;
mod follow;
mod forge;
mod interrupt;
mod progress;
mod start;
mod watch;

use std::num::NonZero;

use clap::Args;

pub(super) use self::{
    failures::all_failures,
    follow::follow,
    interrupt::Signals,
    start::{Request, start},
};
use super::{
    Client, Command,
    exit::Exit,
    keys,
    options::{Common, Format},
    output::{
        document::{self, FailureLine},
        run_text::run_text,
        text,
    },
    problem::Problem,
};
use crate::{cli::client::connection::Session, proto::rewrap as pb};

/// Options of `reencrypt`.
#[derive(Debug, Args)]
pub(crate) struct Reencrypt {
    /// Write nothing. Report what an apply would do.
    #[arg(long)]
    dry_run: bool,
    /// Re-wrap only this organization.
    #[arg(long, value_name = "ORG")]
    org: Option<String>,
    /// The target key id that you expect. If the server has another target key, it refuses.
    #[arg(long, value_name = "KEY", required_unless_present = "dry_run")]
    expect_target: Option<String>,
    /// Write at most this number of rows per second; with --dry-run, evaluate at most this number.
    /// The limits of the server apply, too.
    #[arg(long, value_name = "N")]
    max_rows_per_second: Option<NonZero<u32>>,
    /// Stop after this number of failed rows.
    #[arg(long, value_name = "N")]
    stop_after_failures: Option<NonZero<u32>>,
    #[command(flatten)]
    common: Common,
}

/// Options of `census`.
#[derive(Debug, Args)]
pub(crate) struct Census {
    #[command(flatten)]
    common: Common,
}

/// Options of `verify`.
#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// Verify only this organization.
    #[arg(long, value_name = "ORG")]
    org: Option<String>,
    #[command(flatten)]
    common: Common,
}

impl Command for Reencrypt {
    fn common(&self) -> &Common {
        &self.common
    }

    async fn execute(&self, client: &Client) -> Result<Exit, Problem> {
        let kind = if self.dry_run {
            pb::RunKind::DryRun
        } else {
            pb::RunKind::Apply
        };
        let limit = |limit: Option<NonZero<u32>>| limit.map_or(0, NonZero::get);
        let request = Request {
            max_rows_per_second: limit(self.max_rows_per_second),
            stop_after_failures: limit(self.stop_after_failures),
            expect_target: self.expect_target.clone().unwrap_or_default(),
            ..Request::new(kind, self.org.clone())
        };
        let session = client.connect().await?;
        let run = match start(client, &session, &request).await {
            Err(problem) if problem.is_unimplemented => {
                return forge::reencrypt(client, &session, &request).await;
            }
            run => run?,
        };
        let run = follow(client, &session, run).await?;
        show(client, &session, &run).await
    }
}

impl Command for Verify {
    fn common(&self) -> &Common {
        &self.common
    }

    async fn execute(&self, client: &Client) -> Result<Exit, Problem> {
        let request = Request::new(pb::RunKind::Verify, self.org.clone());
        let (session, run) = run(client, &request).await?;
        show(client, &session, &run).await
    }
}

impl Command for Census {
    fn common(&self) -> &Common {
        &self.common
    }

    async fn execute(&self, client: &Client) -> Result<Exit, Problem> {
        let request = Request::new(pb::RunKind::Census, None);
        let (session, run) = run(client, &request).await?;
        let exit = exit_of(&run);
        if exit != Exit::Done {
            return show(client, &session, &run).await;
        }
        let keys = session
            .ask(session.rewrap().list_keys(pb::ListKeysRequest {}))
            .await?;
        keys::show(client, &keys);
        Ok(exit)
    }
}

/// Starts a run, and waits for its end.
async fn run(client: &Client, request: &Request) -> Result<(Session, pb::Run), Problem> {
    let session = client.connect().await?;
    let run = start(client, &session, request).await;
    let run = run.map_err(|problem| {
        if problem.is_unimplemented {
            super::problem::old_server(&problem)
        } else {
            problem
        }
    })?;
    let run = follow(client, &session, run).await?;
    Ok((session, run))
}

/// Writes a run that has ended, with all of its failures. Returns the exit code.
pub(super) async fn show(
    client: &Client,
    session: &Session,
    run: &pb::Run,
) -> Result<Exit, Problem> {
    let exit = exit_of(run);
    show_as(client, session, run, exit).await?;
    Ok(exit)
}

/// Writes a run with all of its failures.
pub(super) async fn show_as(
    client: &Client,
    session: &Session,
    run: &pb::Run,
    exit: Exit,
) -> Result<(), Problem> {
    // The text has the groups of the failures.
    let failures = if client.output.format == Format::Text {
        Vec::new()
    } else {
        // If the server dies now, the result of the run must still be shown.
        all_failures(session, run).await.unwrap_or_default()
    };
    let document = match client.output.format {
        Format::Json => document::Run::with_failures(run, &failures),
        Format::Text | Format::Jsonl => document::Run::from(run),
    };
    for failure in &failures {
        client.output.line(&FailureLine::from(failure));
    }
    if let Some(problem) = Problem::of_run(run).filter(|_| exit != Exit::Done) {
        let message = text::plain(&problem.message);
        client.output.note(&format!("nico-rewrap: {message}"));
    }
    let style = client.output.style;
    client
        .output
        .result(exit, &document::document("Run", document), || {
            run_text(style, run)
        });
    Ok(())
}

/// The exit code of a run.
pub(super) fn exit_of(run: &pb::Run) -> Exit {
    let report = run.report.unwrap_or_default();
    match run.state() {
        pb::RunState::Finished if report.rows_in_doubt > 0 => Exit::Incomplete,
        pb::RunState::Finished if report.rows_failed > 0 => Exit::Failures,
        pb::RunState::Finished => Exit::Done,
        pb::RunState::Failed => {
            Problem::of_run(run).map_or(Exit::Incomplete, |problem| problem.exit)
        }
        pb::RunState::Stopped | pb::RunState::Running | pb::RunState::Unspecified => {
            Exit::Incomplete
        }
    }
}
