//! The runs of a site: in the memory of the instance that executes them, and in the schema
//! `nico_rewrap` for all instances and for the time after a restart.
//!
//! A run does not depend on the schema. If the schema is absent or cannot be written, the run
//! continues, and only this instance remembers it.

mod live;
mod memory;
mod read;
mod stored;

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use thiserror::Error;
use tokio_util::sync::CancellationToken;

pub use self::live::LiveRun;
pub use self::read::RunPage;
use self::{
    memory::{Memory, Remembered},
    stored::document,
};
use super::record::RunRecord;
pub use crate::store::state::RunPosition;
use crate::store::{
    Store, StoreError,
    state::{StartedRun, Starter, StoredFailure},
};

/// An error of the history.
#[derive(Debug, Error)]
pub enum HistoryError {
    /// No run has this id.
    #[error("there is no run {0:.100}, or it was forgotten: only the last 100 runs are kept")]
    NoSuchRun(String),
    /// The request id was used with other parameters.
    #[error("request_id {0:.100} was used before with other parameters: use a new id")]
    RequestIdReused(String),
    /// The database cannot be used.
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
    /// Whether this process has ever seen the schema.
    has_seen_schema: AtomicBool,
    memory: Mutex<Memory>,
}

impl History {
    /// An empty history.
    #[must_use]
    pub fn new(store: Option<Arc<Store>>) -> Self {
        Self(Arc::new(Inner {
            store,
            is_persistent: AtomicBool::new(false),
            has_seen_schema: AtomicBool::new(false),
            memory: Mutex::default(),
        }))
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

    /// Whether other instances may have results that this instance does not know: the schema exists
    /// or existed, although this instance may not be able to use it.
    #[must_use]
    pub fn may_be_shared(&self) -> bool {
        self.0.has_seen_schema.load(Ordering::Relaxed)
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
            let starter = if record.is_automatic() {
                Starter::Server
            } else {
                Starter::Caller { request: pair }
            };
            let added = store
                .insert_run(&record.id, &document(&record), starter)
                .await;
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

    fn remember_failures(&self, run: &Remembered, failures: &[StoredFailure]) {
        run.add_failures(failures);
        self.memory().limit_failures();
    }

    /// The database, if the schema can be used.
    fn state(&self) -> Option<&Arc<Store>> {
        self.0.store.as_ref().filter(|_| self.is_persistent())
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        // A panic cannot leave the memory in an inconsistent state.
        self.0.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
