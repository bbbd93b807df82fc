//! Watches a run, and reconnects if the connection breaks.

use std::time::Duration;

use tokio::{
    sync::mpsc::Sender,
    time::{Instant, sleep},
};

use crate::{
    cli::client::{
        connection::{Session, settings::Settings},
        problem::Problem,
    },
    proto::rewrap as pb,
};

/// How long to try to reconnect after the connection broke.
const RECONNECT_TIMEOUT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_secs(1);

/// A message of the task that watches a run.
#[derive(Debug)]
pub(super) enum Update {
    /// Its state.
    Run(Box<pb::Run>),
    /// The connection broke.
    Broken(Problem),
    /// The run can no longer be watched.
    Failed(Problem),
}

/// Sends the state of the run until the run has ended or the receiver is dropped.
pub(super) async fn watch(
    settings: Settings,
    session: Session,
    run_id: String,
    updates: Sender<Update>,
) {
    let mut session = Some(session);
    let mut broken_since: Option<Instant> = None;
    loop {
        let problem = match session.take() {
            Some(session) => match stream(&session, &run_id, &updates, &mut broken_since).await {
                Ok(()) => return,
                Err(problem) => problem,
            },
            None => match Session::connect(&settings, None).await {
                Ok(connected) => {
                    session = Some(connected);
                    continue;
                }
                Err(problem) => problem,
            },
        };
        let is_first = broken_since.is_none();
        let since = *broken_since.get_or_insert_with(Instant::now);
        if !problem.is_broken || since.elapsed() > RECONNECT_TIMEOUT {
            let _ = updates.send(Update::Failed(problem)).await;
            return;
        }
        if is_first && updates.send(Update::Broken(problem)).await.is_err() {
            return;
        }
        sleep(PAUSE).await;
    }
}

/// Sends the states from one stream. `Ok` means that the run has ended or that the receiver is
/// dropped.
async fn stream(
    session: &Session,
    run_id: &str,
    updates: &Sender<Update>,
    broken_since: &mut Option<Instant>,
) -> Result<(), Problem> {
    let request = pb::WatchRunRequest {
        run_id: run_id.to_owned(),
    };
    let mut runs = session.ask(session.rewrap().watch_run(request)).await?;
    while let Some(run) = runs.message().await? {
        *broken_since = None;
        let is_over = run.state() != pb::RunState::Running;
        if updates.send(Update::Run(Box::new(run))).await.is_err() || is_over {
            return Ok(());
        }
    }
    Err(Problem::broken(
        "the server ended the stream before the run had ended",
    ))
}
