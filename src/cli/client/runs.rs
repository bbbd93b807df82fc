//! `runs list`, `runs show`, `runs watch` and `runs stop`.

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{
    Client, Command,
    connection::Session,
    exit::Exit,
    options::Common,
    output::{
        document::{self, document},
        run_text::runs_table,
    },
    problem::Problem,
    run::{exit_of, follow, show_as},
};
use crate::proto::rewrap as pb;

/// The largest page that a server sends.
const PAGE: u32 = 100;

/// The commands about runs.
#[derive(Debug, Subcommand)]
pub(crate) enum Runs {
    /// List runs, the newest first.
    List(List),
    /// Show a run and its failures.
    Show(One),
    /// Wait for the end of a run, and show its progress.
    Watch(One),
    /// Stop a run at its next row. Committed rows stay committed.
    Stop(One),
}

/// Options of `runs list`.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Show at most this number of runs.
    #[arg(long, value_name = "N", default_value = "20")]
    limit: u32,
    #[command(flatten)]
    common: Common,
}

/// Options of a command about one run.
#[derive(Debug, Args)]
pub(crate) struct One {
    /// The id of the run.
    #[arg(value_name = "RUN")]
    id: String,
    #[command(flatten)]
    common: Common,
}

impl Command for Runs {
    fn common(&self) -> &Common {
        match self {
            Self::List(list) => &list.common,
            Self::Show(one) | Self::Watch(one) | Self::Stop(one) => &one.common,
        }
    }

    async fn execute(&self, client: &Client) -> Result<Exit, Problem> {
        let session = client.connect().await?;
        match self {
            Self::List(list) => list.execute(client, &session).await,
            Self::Show(one) => one.show(client, &session).await,
            Self::Watch(one) => one.watch(client, &session).await,
            Self::Stop(one) => one.stop(client, &session).await,
        }
    }
}

#[derive(Serialize)]
struct RunList {
    runs: Vec<document::Run>,
}

impl List {
    async fn execute(&self, client: &Client, session: &Session) -> Result<Exit, Problem> {
        let mut runs: Vec<pb::Run> = Vec::new();
        let mut page_token = String::new();
        let limit = self.limit as usize;
        while runs.len() < limit {
            let request = pb::ListRunsRequest {
                page_size: PAGE.min(self.limit),
                page_token,
            };
            let page = session.ask(session.rewrap().list_runs(request)).await?;
            runs.extend(page.runs);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        runs.truncate(limit);
        let list = RunList {
            runs: runs.iter().map(document::Run::from).collect(),
        };
        client
            .output
            .result(Exit::Done, &document("Runs", list), || runs_table(&runs));
        Ok(Exit::Done)
    }
}

impl One {
    async fn get(&self, session: &Session) -> Result<pb::Run, Problem> {
        let request = pb::GetRunRequest {
            run_id: self.id.clone(),
        };
        session.ask(session.rewrap().get_run(request)).await
    }

    async fn show(&self, client: &Client, session: &Session) -> Result<Exit, Problem> {
        let run = self.get(session).await?;
        let exit = match run.state() {
            pb::RunState::Running => Exit::Done,
            _ => shown(&run),
        };
        show_as(client, session, &run, exit).await?;
        Ok(exit)
    }

    async fn watch(&self, client: &Client, session: &Session) -> Result<Exit, Problem> {
        let run = self.get(session).await?;
        let run = follow(client, session, run).await?;
        show_as(client, session, &run, shown(&run)).await?;
        Ok(shown(&run))
    }

    async fn stop(&self, client: &Client, session: &Session) -> Result<Exit, Problem> {
        let request = pb::StopRunRequest {
            run_id: self.id.clone(),
        };
        let run = session.ask(session.rewrap().stop_run(request)).await?;
        let run = follow(client, session, run).await?;
        let exit = match run.state() {
            // The operator asked for this stop.
            pb::RunState::Stopped => Exit::Done,
            _ => shown(&run),
        };
        show_as(client, session, &run, exit).await?;
        Ok(exit)
    }
}

/// The exit code of a command about a run that has ended: the run is complete, has failures, or
/// is incomplete.
fn shown(run: &pb::Run) -> Exit {
    match exit_of(run) {
        exit @ (Exit::Done | Exit::Failures) => exit,
        _ => Exit::Incomplete,
    }
}
