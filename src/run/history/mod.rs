//! The runs of a site: in the memory of the instance that executes them, and in the schema
//! `nico_rewrap` for all instances and for the time after a restart.
//!
//! A run does not depend on the schema. If the schema is absent or cannot be written, the run
//! continues, and only this instance remembers it.

mod live;
mod memory;

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use thiserror::Error;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use self::live::LiveRun;
use self::memory::{Memory, Remembered};
use super::record::{RunRecord, RunState};
use crate::store::{
    Store, StoreError,
    state::{StartedRun, StateSchema, StoredFailure, StoredReceipt, StoredRun},
};

/// Why the history could not answer.
#[derive(Debug, Error)]
pub enum HistoryError {
    /// There is no such run.
    #[error("there is no run {0:.100}, or it was forgotten: only the last 100 runs are kept")]
    NoSuchRun(String),
    /// The request id was used with other parameters.
    #[error("request_id {0:.100} was used before with other parameters: use a new id")]
    RequestIdReused(String),
    /// The database could not be asked.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The result of [`History::begin`].
pub enum Begun {
    /// The run is new. The caller executes it.
    New(LiveRun),
    /// The run of an earlier request with the same id.
    Known(Box<RunRecord>),
}

/// The request that started a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The id that the client chose.
    pub id: String,
    /// What the client asked for, in one text.
    pub parameters: String,
}

/// The runs of a site. All clones share one history.
#[derive(Clone)]
pub struct History(Arc<Inner>);

struct Inner {
    /// `None` if machine identity is disabled.
    store: Option<Arc<Store>>,
    /// Whether the schema can be used.
    is_persistent: AtomicBool,
    memory: Mutex<Memory>,
}

impl History {
    /// An empty history.
    #[must_use]
    pub fn new(store: Option<Arc<Store>>) -> Self {
        Self(Arc::new(Inner {
            store,
            is_persistent: AtomicBool::new(false),
            memory: Mutex::default(),
        }))
    }

    /// Checks whether the schema can be used, and logs a change. Also writes the end of runs
    /// whose instance is silent.
    pub async fn look_for_schema(&self) {
        let Some(store) = &self.0.store else {
            return;
        };
        // If the database does not answer, nothing is known, and nothing changes.
        let Ok(schema) = store.state_schema().await else {
            return;
        };
        let is_ready = schema == StateSchema::Ready;
        let was_ready = self.0.is_persistent.swap(is_ready, Ordering::Relaxed);
        let first = !std::mem::replace(&mut self.memory().knows_schema, true);
        if is_ready && (first || !was_ready) {
            tracing::info!("runs and censuses are kept in the schema nico_rewrap");
        } else if !is_ready && (first || was_ready) {
            tracing::warn!(
                reason = %schema,
                "runs and censuses are kept in memory only, and verdicts use only the censuses of this \
                 process"
            );
        }
        if let Err(error) = self.settle_abandoned().await {
            tracing::debug!(%error, "cannot write the end of runs whose instance is silent");
        }
    }

    /// The database; `None` if machine identity is disabled.
    #[must_use]
    pub fn store(&self) -> Option<&Arc<Store>> {
        self.0.store.as_ref()
    }

    /// Whether runs are kept in the database.
    #[must_use]
    pub fn is_persistent(&self) -> bool {
        self.0.is_persistent.load(Ordering::Relaxed)
    }

    /// The run that an earlier request with the same id has started.
    ///
    /// # Errors
    ///
    /// [`HistoryError::RequestIdReused`] if the request id was used with other parameters.
    pub async fn known(&self, request: &Request) -> Result<Option<RunRecord>, HistoryError> {
        let mut known = self.memory().by_request(&request.id);
        if known.is_none()
            && let Some(store) = self.state()
            && let Some((id, parameters)) = store.run_of_request(&request.id).await?
        {
            known = Some((parameters, self.get(&id).await?));
        }
        match known {
            None => Ok(None),
            Some((parameters, record)) if parameters == request.parameters => Ok(Some(record)),
            Some(_) => Err(HistoryError::RequestIdReused(request.id.clone())),
        }
    }

    /// Adds a run, unless another instance has just started one for the same request.
    ///
    /// # Errors
    ///
    /// [`HistoryError::RequestIdReused`] if the request id was used with other parameters.
    pub async fn begin(
        &self,
        record: RunRecord,
        request: Option<Request>,
        stop: CancellationToken,
    ) -> Result<Begun, HistoryError> {
        let mut is_stored = false;
        if let Some(store) = self.state() {
            let pair = request
                .as_ref()
                .map(|r| (r.id.as_str(), r.parameters.as_str()));
            let added = store.insert_run(&record.id, &document(&record), pair).await;
            match added {
                Ok(StartedRun::New) => is_stored = true,
                Ok(StartedRun::Known { .. }) => {
                    if let Some(request) = &request
                        && let Some(known) = self.known(request).await?
                    {
                        return Ok(Begun::Known(Box::new(known)));
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "the run is kept in memory only");
                }
            }
        }
        let remembered = self.memory().add(record, request, stop);
        Ok(Begun::New(LiveRun::new(
            self.clone(),
            remembered,
            is_stored,
        )))
    }

    /// The run `id`.
    ///
    /// # Errors
    ///
    /// [`HistoryError::NoSuchRun`] if there is none.
    pub async fn get(&self, id: &str) -> Result<RunRecord, HistoryError> {
        if let Some(run) = self.memory().get(id) {
            return Ok(run.record());
        }
        let stored = match self.state() {
            Some(store) => store.stored_run(id).await?,
            None => None,
        };
        let record = match &stored {
            Some(run) => self.settled(run).await,
            None => None,
        };
        record.ok_or_else(|| HistoryError::NoSuchRun(id.to_owned()))
    }

    /// The changes of a run that this instance executes or has executed.
    #[must_use]
    pub fn subscribe(&self, id: &str) -> Option<watch::Receiver<RunRecord>> {
        self.memory().get(id).map(|run| run.subscribe())
    }

    /// At most `limit` runs, the newest first, from the one before the run `after` on.
    ///
    /// # Errors
    ///
    /// [`HistoryError::Store`] when the database does not answer.
    pub async fn list(
        &self,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<RunRecord>, HistoryError> {
        let Some(store) = self.state() else {
            return Ok(self.memory().list(after, limit as usize));
        };
        let mut runs = Vec::new();
        for stored in store.stored_runs(after, limit).await? {
            runs.extend(self.newest(&stored).await);
        }
        Ok(runs)
    }

    /// The runs in progress, of all instances.
    ///
    /// # Errors
    ///
    /// [`HistoryError::Store`] when the database does not answer.
    pub async fn active(&self) -> Result<Vec<RunRecord>, HistoryError> {
        let mut runs = self.memory().active();
        if let Some(store) = self.state() {
            let stored = store.active_runs().await?;
            let others = stored.iter().filter_map(from_stored);
            let known: Vec<String> = runs.iter().map(|run| run.id.clone()).collect();
            runs.extend(others.filter(|run| !known.contains(&run.id)));
        }
        Ok(runs)
    }

    /// Asks a run to stop. Does nothing if it has ended.
    ///
    /// # Errors
    ///
    /// As [`History::get`].
    pub async fn stop(&self, id: &str) -> Result<RunRecord, HistoryError> {
        if let Some(run) = self.memory().get(id) {
            run.stop();
            return Ok(run.record());
        }
        let record = self.get(id).await?;
        if let Some(store) = self.state() {
            store.request_stop(id).await?;
        }
        Ok(record)
    }

    /// The receipt of a run. `None` if the run has none, or if the schema does not exist.
    ///
    /// # Errors
    ///
    /// As [`History::get`].
    pub async fn receipt(&self, id: &str) -> Result<Option<StoredReceipt>, HistoryError> {
        self.get(id).await?;
        match self.state() {
            Some(store) => Ok(store.receipt(id).await?),
            None => Ok(None),
        }
    }

    /// At most `limit` failures of a run, in ascending order, after the given organization
    /// and column.
    ///
    /// # Errors
    ///
    /// As [`History::get`].
    pub async fn failures(
        &self,
        id: &str,
        after: (&str, &str),
        limit: u32,
    ) -> Result<Vec<StoredFailure>, HistoryError> {
        let run = self.memory().get(id);
        // Usually one of the two is empty: memory keeps only the failures that are not in the
        // database.
        let mut failures = match &run {
            Some(run) => run.failures(after, limit as usize),
            None => {
                self.get(id).await?;
                Vec::new()
            }
        };
        if let Some(store) = self.state() {
            failures.extend(store.stored_failures(id, after, limit).await?);
            failures.sort_by(|a, b| {
                (&a.organization_id, &a.field).cmp(&(&b.organization_id, &b.field))
            });
            failures
                .dedup_by(|a, b| (&a.organization_id, &a.field) == (&b.organization_id, &b.field));
            failures.truncate(limit as usize);
        }
        Ok(failures)
    }

    fn remember_failures(&self, run: &Remembered, failures: &[StoredFailure]) {
        run.add_failures(failures);
        self.memory().limit_failures();
    }

    /// The database, if the schema can be used.
    fn state(&self) -> Option<&Arc<Store>> {
        self.0.store.as_ref().filter(|_| self.is_persistent())
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        // A panic cannot leave the memory half changed.
        self.0.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest record of a stored run. For its own runs, this instance has a newer record in
    /// memory.
    async fn newest(&self, stored: &StoredRun) -> Option<RunRecord> {
        let own = self.memory().get(&stored.id);
        match own {
            Some(run) => Some(run.record()),
            None => self.settled(stored).await,
        }
    }

    /// The record of a stored run. If its instance is silent, its end is written first, so that
    /// no later answer shows the run in progress again.
    async fn settled(&self, stored: &StoredRun) -> Option<RunRecord> {
        let record = from_stored(stored)?;
        if !stored.is_abandoned {
            return Some(record);
        }
        let store = self.state()?;
        let document = document(&record);
        let settled = store.settle_run(&stored.id, record.state.name(), &document);
        if let Ok(false) = settled.await
            && let Ok(Some(now)) = store.stored_run(&stored.id).await
        {
            // The instance has come back, or another instance was faster.
            return from_stored(&now);
        }
        Some(record)
    }

    /// Writes the end of the runs whose instance is silent.
    async fn settle_abandoned(&self) -> Result<(), StoreError> {
        if let Some(store) = self.state() {
            for stored in store.abandoned_runs().await? {
                self.newest(&stored).await;
            }
        }
        Ok(())
    }
}

/// The JSON of a record.
fn document(record: &RunRecord) -> String {
    // All maps in it have strings as keys, so this cannot fail.
    serde_json::to_string(record).unwrap_or_default()
}

/// Reads a stored run. `None` if another version of this program wrote it in a form that
/// this version does not know.
fn from_stored(stored: &StoredRun) -> Option<RunRecord> {
    let mut record: RunRecord = serde_json::from_str(&stored.document).ok()?;
    if stored.is_abandoned && record.state == RunState::Running {
        record.settle(stored.heartbeat);
    }
    Some(record)
}
