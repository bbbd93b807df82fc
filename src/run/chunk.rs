//! A few rows on one connection: decide, compare-and-set, decide again.

use std::{
    mem,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::{StreamExt, stream};
use tokio_util::sync::CancellationToken;

use super::{Context, Failure, Mode, RunError, report::RowOutcome};
use crate::{
    rewrap::{Decision, Texts, Workspace, decide},
    store::{Replaced, Row, RowError, StoreError, Writer, next_counter},
};

/// Compare-and-set tries before a row is locked for the last one.
const OPTIMISTIC_TRIES: u32 = 3;

/// What the rows of a chunk have in common.
pub(super) struct Chunk {
    pub(super) context: Arc<Context>,
    pub(super) mode: Mode,
    pub(super) stop: CancellationToken,
    /// Never waited for: the rows of a chunk are decided by one task.
    pub(super) workspace: Mutex<Workspace>,
}

/// What is to be done with a row, failures in words.
enum Plan {
    /// Nothing (more); this is what became of it.
    Finished(RowOutcome),
    /// Write these texts; then this is what became of it.
    Write(Texts, RowOutcome),
}

/// A row that is to be written.
struct Pending {
    row: Row,
    texts: Texts,
    outcome: RowOutcome,
    /// What was sent on connections that died, and may have been committed, or may yet
    /// be. The nonces in the texts are unmistakable: a row that has them was written by
    /// us, and this is what became of it.
    sent: Vec<(Texts, RowOutcome)>,
}

/// How far a row got on one connection.
enum Step {
    Finished(RowOutcome),
    /// The run was told to stop before its turn came.
    Stopped,
    /// It changes faster than we are: decide under a lock.
    Contended(Pending),
    /// The connection is of no use any more.
    Lost(Pending, StoreError),
}

impl Chunk {
    /// Works on `rows` and says what became of each that was begun, also when it
    /// could not go through all of them.
    pub(super) async fn run(self, rows: Vec<Row>) -> (Vec<RowOutcome>, Result<(), RunError>) {
        let mut outcomes = Vec::with_capacity(rows.len());
        let mut pending = Vec::new();
        for row in rows {
            if self.stop.is_cancelled() {
                return (outcomes, Err(RunError::Stopped));
            }
            match self.plan(&row) {
                Plan::Write(texts, outcome) if self.mode == Mode::Apply => pending.push(Pending {
                    row,
                    texts,
                    outcome,
                    sent: Vec::new(),
                }),
                Plan::Write(_, outcome) | Plan::Finished(outcome) => outcomes.push(outcome),
            }
        }
        let result = self.write_all(pending, &mut outcomes).await;
        (outcomes, result)
    }

    async fn write_all(
        &self,
        mut pending: Vec<Pending>,
        outcomes: &mut Vec<RowOutcome>,
    ) -> Result<(), RunError> {
        while !pending.is_empty() {
            let turn = self.context.pace.turn(pending.len());
            let rows = self.stop.run_until_cancelled(turn).await;
            let later = pending.split_off(rows.ok_or(RunError::Stopped)?);
            self.write_group(mem::replace(&mut pending, later), outcomes)
                .await?;
        }
        Ok(())
    }

    /// Writes rows whose turn it is.
    async fn write_group(
        &self,
        mut pending: Vec<Pending>,
        outcomes: &mut Vec<RowOutcome>,
    ) -> Result<(), RunError> {
        let store = &self.context.store;
        // Each turn is a connection; there is a second one only if the first died.
        let mut connections = 0;
        while !pending.is_empty() {
            let writer = self.stop.run_until_cancelled(self.context.writer()).await;
            let (mut writer, _lane) = writer.ok_or(RunError::Stopped)??;
            connections += 1;
            let rows = mem::take(&mut pending);
            let ended = self.write(&mut writer, rows, &mut pending, outcomes).await;
            match ended {
                Err(RunError::Store(StoreError::ConnectionLost(_)))
                    if connections < store.options().max_attempts =>
                {
                    store.pause().await;
                }
                ended => ended?,
            }
        }
        Ok(())
    }

    /// Writes `rows` on one connection. Those that lost it go back to `pending`, and
    /// the error is returned.
    async fn write(
        &self,
        writer: &mut Writer<'_>,
        rows: Vec<Pending>,
        pending: &mut Vec<Pending>,
        outcomes: &mut Vec<RowOutcome>,
    ) -> Result<(), RunError> {
        let mut contended = Vec::new();
        let mut result = Ok(());
        let mut take = |step, contended: Option<&mut Vec<Pending>>| match (step, contended) {
            (Step::Finished(outcome), _) => {
                outcomes.push(outcome);
                Ok(())
            }
            (Step::Contended(row), Some(contended)) => {
                contended.push(row);
                Ok(())
            }
            (Step::Contended(row), None) => {
                pending.push(row);
                Ok(())
            }
            (Step::Lost(row, error), _) => {
                pending.push(row);
                Err(RunError::Store(error))
            }
            (Step::Stopped, _) => Err(RunError::Stopped),
        };
        {
            let depth = self.context.store.options().pipeline_depth;
            let shared = &*writer;
            let mut steps = stream::iter(rows)
                .map(|row| self.replace(shared, row))
                .buffer_unordered(depth);
            while let Some(step) = steps.next().await {
                result = result.and(take(step, Some(&mut contended)));
            }
        }
        for row in contended {
            let step = match &result {
                Ok(()) => self.replace_locked(writer, row).await,
                Err(_) => Step::Contended(row),
            };
            result = result.and(take(step, None));
        }
        result
    }

    /// Compare-and-set, a few times if the row changes under it.
    async fn replace(&self, writer: &Writer<'_>, mut pending: Pending) -> Step {
        if self.stop.is_cancelled() {
            return Step::Stopped;
        }
        let target = self.context.keyring.target().id();
        let mut tries = 0;
        // Unknown what is there after a lost connection: look first.
        let mut look = !pending.sent.is_empty();
        loop {
            if look {
                let row = match writer.row(&pending.row.organization_id).await {
                    Ok(Some(row)) => row,
                    Ok(None) => {
                        let id = pending.row.organization_id;
                        return Step::Finished(RowOutcome::Gone(id));
                    }
                    Err(error) => return pending.failed(error),
                };
                let mut sent = pending.sent.iter();
                if let Some(written) = sent.position(|(texts, _)| *texts == row.texts) {
                    return Step::Finished(pending.sent.swap_remove(written).1);
                }
                if row.texts == pending.texts {
                    // Written, and yet the version did not count it: somebody's trigger.
                    let error = RowError::NotBumped.to_string();
                    return Step::Finished(row_failed(&row.organization_id, error));
                }
                match self.plan(&row) {
                    Plan::Finished(outcome) => return Step::Finished(outcome),
                    Plan::Write(texts, outcome) => {
                        (pending.row, pending.texts, pending.outcome) = (row, texts, outcome);
                    }
                }
                if tries >= OPTIMISTIC_TRIES {
                    return Step::Contended(pending);
                }
            }
            tries += 1;
            match writer.replace(&pending.row, &pending.texts, target).await {
                Ok(Replaced::Done) => return Step::Finished(pending.outcome),
                Ok(Replaced::Missed) => look = true,
                Err(error) => {
                    let sent = (pending.texts.clone(), pending.outcome.clone());
                    pending.sent.push(sent);
                    return pending.failed(error);
                }
            }
        }
    }

    async fn replace_locked(&self, writer: &mut Writer<'_>, mut pending: Pending) -> Step {
        if self.stop.is_cancelled() {
            return Step::Stopped;
        }
        let target = self.context.keyring.target().id();
        let id = pending.row.organization_id.clone();
        let written = writer
            .replace_locked(&id, target, |row| match self.plan(row) {
                Plan::Finished(outcome) => (outcome, None),
                Plan::Write(texts, outcome) => {
                    pending.sent.push((texts.clone(), outcome.clone()));
                    (outcome, Some(texts))
                }
            })
            .await;
        match written {
            Ok(outcome) => Step::Finished(outcome.unwrap_or(RowOutcome::Gone(id))),
            Err(error) => pending.failed(error),
        }
    }

    fn plan(&self, row: &Row) -> Plan {
        // One that a panic left behind is overwritten like any other.
        let workspace = self.workspace.lock();
        let mut workspace = workspace.unwrap_or_else(PoisonError::into_inner);
        match decide(&self.context.keyring, &row.texts, &mut workspace) {
            Decision::OnTarget { fields } => Plan::Finished(RowOutcome::OnTarget { fields }),
            Decision::Failed(failures) => Plan::Finished(RowOutcome::Failed(
                failures
                    .into_iter()
                    .map(|failure| Failure {
                        organization_id: row.organization_id.clone(),
                        field: failure.column,
                        error: failure.error.to_string(),
                    })
                    .collect(),
            )),
            Decision::Replace {
                texts,
                reencrypted,
                on_target,
            } => match next_counter(row.version.as_deref()) {
                Ok(_) => Plan::Write(
                    texts,
                    RowOutcome::Updated {
                        reencrypted,
                        on_target,
                    },
                ),
                Err(error) => Plan::Finished(row_failed(&row.organization_id, error.to_string())),
            },
        }
    }
}

impl Pending {
    fn failed(self, error: StoreError) -> Step {
        match error {
            StoreError::Row(error) => {
                Step::Finished(row_failed(&self.row.organization_id, error.to_string()))
            }
            error => Step::Lost(self, error),
        }
    }
}

fn row_failed(organization_id: &str, error: String) -> RowOutcome {
    RowOutcome::Failed(vec![Failure {
        organization_id: organization_id.to_owned(),
        field: "",
        error,
    }])
}
