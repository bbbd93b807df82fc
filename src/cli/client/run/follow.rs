//! Waits for the end of a run, and shows its progress.

use std::future::pending;

use tokio::{
    sync::mpsc,
    task::{JoinHandle, spawn_blocking},
    time::{Instant, sleep_until},
};

use super::{
    interrupt::{Choice, EndSignal, ask, can_ask},
    progress::ProgressView,
    watch::{Update, watch},
};
use crate::{
    cli::client::{Client, connection::Session, exit::Exit, problem::Problem},
    proto::rewrap as pb,
};

/// Waits for the end of a run. Ctrl-C asks what to do. If nobody can answer, a signal ends this
/// command and the run continues on the server.
pub(crate) async fn follow(
    client: &Client,
    session: &Session,
    run: pb::Run,
) -> Result<pb::Run, Problem> {
    let mut view = ProgressView::new(&client.output);
    view.show(&run);
    if run.state() != pb::RunState::Running {
        return Ok(run);
    }
    let mut signals = client.signals().await?;
    let (sender, mut updates) = mpsc::channel(16);
    // The task ends with the runtime, or when the receiver is dropped.
    tokio::spawn(watch(
        client.settings.clone(),
        session.clone(),
        run.id.clone(),
        sender,
    ));
    let mut question: Option<JoinHandle<Choice>> = None;
    loop {
        tokio::select! {
            update = updates.recv() => match update {
                Some(Update::Run(run)) => {
                    view.show(&run);
                    if run.state() != pb::RunState::Running {
                        return Ok(*run);
                    }
                }
                Some(Update::Broken(problem)) => {
                    view.note(&format!("{}; trying to reconnect", problem.message));
                }
                Some(Update::Failed(problem)) => return Err(lost(&run.id, &problem)),
                None => return Err(Problem::new(Exit::Bug, "the task that watches the run ended")),
            },
            signal = signals.next() => {
                let may_ask = !client.no_input && can_ask() && question.is_none();
                if signal == EndSignal::Terminate || !may_ask {
                    return Err(detached(&run.id));
                }
                view.hide();
                question = Some(spawn_blocking(ask));
            }
            choice = answer(&mut question) => {
                question = None;
                view.unhide();
                match choice {
                    Choice::Detach => return Err(detached(&run.id)),
                    Choice::Continue => {}
                    Choice::Stop => stop(session, &run.id, &view).await,
                }
            }
            () = passed(client.deadline) => {
                let what = "--timeout has passed. The run continues on the server";
                return Err(Problem::incomplete(&run.id, what));
            }
        }
    }
}

async fn stop(session: &Session, run_id: &str, view: &ProgressView<'_>) {
    let request = pb::StopRunRequest {
        run_id: run_id.to_owned(),
    };
    match session.ask(session.rewrap().stop_run(request)).await {
        Ok(_) => view.note("The run stops after the current rows."),
        Err(problem) => view.note(&format!("the run was not stopped: {}", problem.message)),
    }
}

/// Waits for the answer to the question. Never returns if no question was asked.
async fn answer(question: &mut Option<JoinHandle<Choice>>) -> Choice {
    match question {
        None => pending().await,
        // The task cannot panic.
        Some(question) => question.await.unwrap_or(Choice::Detach),
    }
}

async fn passed(deadline: Option<Instant>) {
    match deadline {
        None => pending().await,
        Some(deadline) => sleep_until(deadline).await,
    }
}

fn detached(run_id: &str) -> Problem {
    Problem::incomplete(run_id, "you left, and the run continues on the server")
}

/// The problem of a run that can no longer be watched.
fn lost(run_id: &str, problem: &Problem) -> Problem {
    let what = match problem.reason.as_str() {
        "UNKNOWN_RUN" => "the server was restarted, and has forgotten the run: run again. \
                          Committed rows stay committed"
            .to_owned(),
        _ => format!("the state of the run is unknown: {}", problem.message),
    };
    Problem {
        reason: problem.reason.clone(),
        ..Problem::incomplete(run_id, what)
    }
}
