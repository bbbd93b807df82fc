//! The stream of WatchRun.

use std::time::Duration;

use futures_util::{Stream, stream::unfold};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::status;
use crate::{
    api::error::ServiceError,
    proto::rewrap as pb,
    run::{
        history::History,
        record::{RunRecord, RunState},
    },
};

/// The shortest time between two messages.
const INTERVAL: Duration = Duration::from_millis(500);

/// How often to read the run of another instance from the database.
const POLL: Duration = Duration::from_secs(1);

/// After this time without a change, the state is sent again, so that a proxy does not close
/// the stream as idle.
const REPEAT: Duration = Duration::from_secs(15);

/// What the stream does next.
enum Next {
    /// Send this state.
    Send(Box<RunRecord>),
    /// Wait for a change of this state.
    Wait(Box<RunRecord>, Instant),
    /// End.
    End,
}

/// Sends the state of a run now, then after each change, until the run has ended. A client that
/// does not read delays only its own stream. Later, it gets the newest state, not every state.
pub(super) fn watch(
    history: History,
    first: RunRecord,
    shutdown: CancellationToken,
) -> impl Stream<Item = Result<pb::Run, Status>> + Send {
    unfold(Next::Send(Box::new(first)), move |mut next| {
        let (history, shutdown) = (history.clone(), shutdown.clone());
        async move {
            loop {
                match next {
                    Next::End => return None,
                    Next::Send(record) => {
                        let message = pb::Run::from((*record).clone());
                        let is_over = record.state != RunState::Running;
                        let then = if is_over {
                            Next::End
                        } else {
                            Next::Wait(record, Instant::now())
                        };
                        return Some((Ok(message), then));
                    }
                    Next::Wait(record, sent) => {
                        sleep_until(sent + INTERVAL).await;
                        let change = change(&history, &record);
                        let Some(changed) = shutdown.run_until_cancelled(change).await else {
                            return Some((Err(status(ServiceError::ShuttingDown)), Next::End));
                        };
                        match changed {
                            Ok(record) => next = Next::Send(Box::new(record)),
                            Err(error) => return Some((Err(error), Next::End)),
                        }
                    }
                }
            }
        }
    })
}

/// Waits for a change of the run, and returns its new state.
async fn change(history: &History, last: &RunRecord) -> Result<RunRecord, Status> {
    let started = Instant::now();
    if let Some(mut changes) = history.subscribe(&last.id) {
        // An error means that nothing has changed within the limit, or that the run was deleted
        // from memory.
        let _ = timeout(REPEAT, changes.wait_for(|record| record != last)).await;
        return Ok(changes.borrow().clone());
    }
    loop {
        match history.get(&last.id).await {
            Ok(record) if record != *last || started.elapsed() > REPEAT => return Ok(record),
            Ok(_) => sleep(POLL).await,
            Err(error) => return Err(status(error.into())),
        }
    }
}
