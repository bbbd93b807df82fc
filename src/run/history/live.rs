//! A run in progress: its record, its failures, and the copy of both in the database.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval, sleep, timeout},
};

use super::{History, Remembered, document};
use crate::{
    run::{
        Failure,
        record::{RunProblem, RunRecord, RunState},
    },
    store::state::StoredFailure,
};

/// How often the record of a run is written to the database.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// How many batches of failures wait for the database.
const QUEUE: usize = 16;

/// Number of attempts to write the end of a run, and the pause between them. A restart of the
/// database can take minutes.
const END_ATTEMPTS: u32 = 600;
const END_PAUSE: Duration = Duration::from_secs(1);

/// How many failures one statement writes at the end of a run.
const FAILURE_BATCH: u32 = 1000;

/// How long an ended run waits for the database to store its end.
const END_LIMIT: Duration = Duration::from_millis(300);

/// A run that this instance executes.
pub struct LiveRun {
    history: History,
    run: Arc<Remembered>,
    id: String,
    /// Whether the run is in the database.
    is_stored: bool,
    is_over: bool,
    problem_was_logged: AtomicBool,
}

impl LiveRun {
    pub(super) fn new(history: History, run: Arc<Remembered>, is_stored: bool) -> Self {
        Self {
            id: run.record().id,
            history,
            run,
            is_stored,
            is_over: false,
            problem_was_logged: AtomicBool::new(false),
        }
    }

    /// The record now.
    #[must_use]
    pub fn record(&self) -> RunRecord {
        self.run.record()
    }

    /// Changes the record. Its watchers see the change.
    pub fn update(&self, change: impl FnOnce(&mut RunRecord)) {
        self.run.update(change);
    }

    /// A queue for the failures of the run. [`LiveRun::keep`] takes them.
    #[must_use]
    pub fn queue() -> (mpsc::Sender<Vec<Failure>>, mpsc::Receiver<Vec<Failure>>) {
        mpsc::channel(QUEUE)
    }

    /// Keeps the copy in the database up to date until the queue of failures ends. Stops the
    /// run if a client asked another instance to stop it.
    pub async fn keep(&self, failures: &mut mpsc::Receiver<Vec<Failure>>) {
        let mut heartbeat = interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                batch = failures.recv() => match batch {
                    Some(batch) => self.add_failures(batch).await,
                    None => return,
                },
                _ = heartbeat.tick(), if self.is_stored => self.write_record().await,
            }
        }
    }

    /// Writes the final record. If the database does not answer soon, a task tries again for
    /// a while.
    pub async fn finish(mut self, change: impl FnOnce(&mut RunRecord)) {
        self.update(change);
        self.is_over = true;
        if !self.is_stored {
            return;
        }
        let write = tokio::spawn(async move {
            for _ in 0..END_ATTEMPTS {
                // Write the failures first: a stored run that has ended has all its failures.
                match self.try_to_write_failures().await {
                    Ok(()) if self.try_to_write().await.is_ok() => {
                        self.prune().await;
                        return;
                    }
                    Ok(()) => {}
                    Err(error) => self.log_once(&error),
                }
                sleep(END_PAUSE).await;
            }
        });
        let _ = timeout(END_LIMIT, write).await;
    }

    /// Remembers the failures that are still in the queue. [`LiveRun::finish`] writes them to the
    /// database.
    pub fn remember(&self, failures: &mut mpsc::Receiver<Vec<Failure>>) {
        while let Ok(batch) = failures.try_recv() {
            let batch: Vec<_> = batch.into_iter().map(StoredFailure::from).collect();
            self.history.remember_failures(&self.run, &batch);
        }
    }

    /// Writes the failures that could not be written before.
    async fn try_to_write_failures(&self) -> Result<(), crate::store::StoreError> {
        let Some(store) = self.history.state() else {
            return Ok(());
        };
        loop {
            let batch = self.run.failures(("", ""), FAILURE_BATCH as usize);
            if batch.is_empty() {
                return Ok(());
            }
            store.add_failures(&self.id, &batch).await?;
            self.run.forget_failures(&batch);
        }
    }

    async fn add_failures(&self, batch: Vec<Failure>) {
        let batch: Vec<_> = batch.into_iter().map(StoredFailure::from).collect();
        // Remember the failures first: the run may end while the database does not answer.
        self.history.remember_failures(&self.run, &batch);
        if self.is_stored
            && let Some(store) = self.history.state()
        {
            match store.add_failures(&self.id, &batch).await {
                Ok(()) => self.run.forget_failures(&batch),
                Err(error) => self.log_once(&error),
            }
        }
    }

    async fn write_record(&self) {
        if let Err(error) = self.try_to_write().await {
            self.log_once(&error);
        }
    }

    async fn try_to_write(&self) -> Result<(), crate::store::StoreError> {
        let Some(store) = &self.history.0.store else {
            return Ok(());
        };
        let record = self.record();
        let state = record.state.name();
        let document = document(&record);
        let stop_requested = store.update_run(&self.id, state, &document).await?;
        if stop_requested == Some(true) {
            self.run.stop();
        }
        Ok(())
    }

    async fn prune(&self) {
        if let Some(store) = self.history.state()
            && let Err(error) = store.prune_runs().await
        {
            self.log_once(&error);
        }
    }

    fn log_once(&self, error: &crate::store::StoreError) {
        if !self.problem_was_logged.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                %error,
                "cannot write the run to the schema nico_rewrap: other instances do not see its progress"
            );
        }
    }
}

/// If a run is dropped before its end, it has panicked.
impl Drop for LiveRun {
    fn drop(&mut self) {
        if !self.is_over {
            self.update(|record| {
                record.state = RunState::Failed;
                record.end_time = Some(SystemTime::now());
                record.counts = Some(record.last_counts());
                record.problem = Some(RunProblem::internal());
            });
        }
    }
}

impl From<Failure> for StoredFailure {
    fn from(failure: Failure) -> Self {
        // Postgres stores no NUL in a text, and a key id can contain one.
        let storable = |text: String| text.replace('\0', "\u{fffd}");
        Self {
            organization_id: storable(failure.organization_id),
            field: failure.field.to_owned(),
            reason: failure.reason.to_owned(),
            key_id: storable(failure.key_id),
            message: storable(failure.error),
        }
    }
}
