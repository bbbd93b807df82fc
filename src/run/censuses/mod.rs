//! The results of the censuses of the site, for the verdicts. The schema `nico_rewrap` keeps
//! them for all instances. Without the schema, this process knows only its own censuses.
//!
//! If the schema cannot be read, other instances may know more than this process. Its memory then
//! proves that a key is in use, but never that a key is unused.

mod key_use;
mod known;
mod memory;
mod record;

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::{sync::watch, time::timeout};

pub use self::key_use::KeyUse;
use self::{known::Known, memory::Memory};
use super::{Census, Site, history::History};
use crate::{domain::verdict::Ledger, store::StoreError};

/// How long an answer to a client waits for the schema.
const READ_LIMIT: Duration = Duration::from_secs(2);

/// Where results come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// The schema `nico_rewrap`.
    Schema,
    /// The censuses of this process. No schema has existed since its start.
    Process,
    /// The memory of this process. Other instances may know newer results in a schema that cannot
    /// be read.
    Outdated,
}

/// Results, and their source.
struct Current {
    known: Known,
    source: Source,
    /// The time by the clock of the database. `None` if it is unknown.
    now: Option<SystemTime>,
}

/// A position in the series of censuses. Positions in the schema and in the memory of this
/// process are never equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeriesPosition {
    /// The sequence of the stored ledger.
    Stored(i64),
    /// How often the memory has changed.
    Memory(u64),
}

/// The censuses of a site.
pub struct Censuses {
    history: History,
    soak: Duration,
    memory: Mutex<Memory>,
    /// Held while a census is recorded, so that no unwritten result is lost.
    recording: tokio::sync::Mutex<()>,
    /// How many censuses this process has recorded.
    changes: watch::Sender<u64>,
}

impl Censuses {
    /// Starts without a census. A key must be clean for `soak` before it may be deleted.
    #[must_use]
    pub fn new(history: History, soak: Duration) -> Self {
        Self {
            history,
            soak,
            memory: Mutex::default(),
            recording: tokio::sync::Mutex::default(),
            changes: watch::Sender::new(0),
        }
    }

    /// Changes when this process has recorded a census.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The position of a census that begins now.
    pub async fn position(&self) -> SeriesPosition {
        let current = self.current().await;
        match current.source {
            Source::Schema => SeriesPosition::Stored(current.known.sequence),
            Source::Process | Source::Outdated => self.memory().position(),
        }
    }

    /// The last census that was not late. `None` if no such census exists, or if the schema cannot
    /// be read now.
    pub async fn last(&self) -> Option<Census> {
        let current = self.current().await;
        let last = current.known.last;
        last.filter(|_| current.source != Source::Outdated)
    }

    /// As [`Censuses::last`], but a newer census may exist.
    pub async fn last_known(&self) -> Option<Census> {
        self.current().await.known.last
    }

    /// Whether the last census is older than `age`, or its age is not known.
    pub async fn is_older_than(&self, age: Duration) -> bool {
        let current = self.current().await;
        let Some(last) = current.known.last else {
            return true;
        };
        // A clock can be wrong. The time since this process learned of the census is a lower bound
        // of the age.
        if self
            .memory()
            .last_since()
            .is_none_or(|since| since.elapsed() > age)
        {
            return true;
        }
        match current.now {
            // A census in the future was taken while the clock of the database was wrong.
            Some(now) => now
                .duration_since(last.time)
                .map_or(true, |past| past > age),
            None => false,
        }
    }

    /// The current results, for the keys of `site`.
    pub async fn key_use(&self, site: &Site) -> KeyUse {
        let Current {
            mut known,
            source,
            mut now,
        } = self.current_for_client().await;
        let target = site.keyring.target().id().as_str();
        match source {
            Source::Schema => self.memory().add_unwritten(&mut known, target),
            Source::Process => now = self.memory().now(),
            Source::Outdated => {}
        }
        KeyUse {
            last: known.last,
            ledger: known.ledger,
            target: target.to_owned(),
            soak: self.soak,
            now,
            source,
        }
    }

    /// The results in the schema. `None` if it cannot be read.
    async fn current_in_schema(&self) -> Option<Known> {
        let current = self.current().await;
        (current.source == Source::Schema).then_some(current.known)
    }

    /// The results in the schema. If it cannot be read, this logs why, and returns the results that
    /// this process knows.
    async fn current(&self) -> Current {
        if !self.history.is_persistent() {
            return self.current_in_memory();
        }
        match self.read().await {
            Ok(current) => current,
            Err(error) => {
                tracing::warn!(%error, "cannot read the censuses from the schema nico_rewrap");
                self.current_in_memory()
            }
        }
    }

    /// As [`Censuses::current`], for a client that waits for the answer: if the schema cannot be
    /// read soon, the answer comes from memory. Clients can ask often, so this logs nothing.
    async fn current_for_client(&self) -> Current {
        if !self.history.is_persistent() {
            return self.current_in_memory();
        }
        match timeout(READ_LIMIT, self.read()).await {
            Ok(Ok(current)) => current,
            Ok(Err(_)) | Err(_) => self.current_in_memory(),
        }
    }

    /// The results that this process knows.
    fn current_in_memory(&self) -> Current {
        Current {
            known: self.memory().known().clone(),
            source: if self.history.may_be_shared() {
                Source::Outdated
            } else {
                Source::Process
            },
            now: None,
        }
    }

    /// Reads the schema, and the clock of the database.
    async fn read(&self) -> Result<Current, StoreError> {
        let Some(store) = self.history.store() else {
            return Ok(self.current_in_memory());
        };
        let stored = store.ledger().await?;
        // A document of an unknown form counts as empty: the verdicts start again.
        let ledger: Ledger = serde_json::from_str(&stored.document).unwrap_or_default();
        let last = match &ledger.last {
            Some(last) => store.stored_census(&last.run_id).await?,
            None => None,
        };
        let known = Known {
            sequence: stored.sequence,
            ledger,
            last: last.and_then(|last| serde_json::from_str(&last).ok()),
        };
        self.memory().replace(known.clone());
        Ok(Current {
            known,
            source: Source::Schema,
            now: Some(stored.now),
        })
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        // A panic cannot leave the memory in an inconsistent state.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
