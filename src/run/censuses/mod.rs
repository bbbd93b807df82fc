//! The results of the censuses of the site, for the verdicts. The schema `nico_rewrap` keeps
//! them for all instances. Without the schema, this process knows only its own censuses.
//!
//! If the schema cannot be read, other instances may know more than this process. Its memory then
//! proves that a key is in use, but never that a key is unused.

mod memory;

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::{sync::watch, time::timeout};

use self::memory::Memory;
use super::{Census, Site, history::History, record::RunProblem};
use crate::{
    domain::verdict::{Conditions, FailedCensus, Ledger, Verdict},
    store::StoreError,
    telemetry,
};

/// How often to try to write to the ledger while other instances write to it.
const ATTEMPTS: u32 = 20;

/// How long an apply waits until the database knows that it has re-wrapped a secret.
const REWRAPPED_LIMIT: Duration = Duration::from_millis(500);

/// The ledger, and how often it was changed.
#[derive(Debug, Clone, Default)]
struct Known {
    sequence: i64,
    ledger: Ledger,
    /// The last census that was not late.
    last: Option<Census>,
}

impl Known {
    /// Adds a census. Returns the key ids that have stragglers.
    fn add(&mut self, site: &Site, census: &Census, is_late: bool) -> Vec<String> {
        let last = self.ledger.last.as_ref();
        if !is_late && Ledger::is_other_history(last, census.moment) {
            tracing::warn!(
                "the database is older than the last census: it was restored, or replaced by \
                 another one. The verdicts start again"
            );
            self.ledger = Ledger::default();
        }
        let loaded = site.keyring.iter().map(|kek| kek.id().as_str());
        let target = site.keyring.target().id().as_str();
        let facts = census.facts();
        let stragglers = self.ledger.record(&facts, is_late, loaded, target);
        self.sequence += 1;
        if !is_late {
            self.last = Some(census.clone());
        }
        stragglers
    }
}

/// Where results come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// The schema `nico_rewrap`.
    Schema,
    /// The censuses of this process. There was no schema since it started.
    Process,
    /// The memory of this process, although there is or was a schema.
    Outdated,
}

/// Results, and where they come from.
struct Current {
    known: Known,
    source: Source,
    /// The time by the clock of the database, if it is known.
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

/// The last census, and the verdicts.
#[derive(Debug, Clone)]
pub struct KeyUse {
    /// The last census that was not late; `None` if there was none.
    pub last: Option<Census>,
    ledger: Ledger,
    target: String,
    soak: Duration,
    now: Option<SystemTime>,
    source: Source,
}

impl KeyUse {
    /// The ids that a census has seen or that an instance holds.
    pub fn key_ids(&self) -> impl Iterator<Item = &str> {
        self.ledger.keys.keys().map(String::as_str)
    }

    /// Whether only the censuses of this process are known.
    #[must_use]
    pub fn is_of_process(&self) -> bool {
        self.source == Source::Process
    }

    /// The verdict about a key.
    #[must_use]
    pub fn verdict(&self, id: &str) -> Verdict {
        let conditions = Conditions {
            target: &self.target,
            soak: self.soak,
            now: self.now,
            is_outdated: self.source == Source::Outdated,
        };
        self.ledger.verdict(id, &conditions)
    }
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
        let current = self.current(true).await;
        match current.source {
            Source::Schema => SeriesPosition::Stored(current.known.sequence),
            Source::Process | Source::Outdated => self.memory().position(),
        }
    }

    /// Records a census that began at `position`. Logs the stragglers that it found, and
    /// returns their number.
    pub async fn record(&self, site: &Site, position: SeriesPosition, census: &Census) -> u64 {
        let recording = self.recording.lock().await;
        let stragglers = match self.record_in_schema(site, position, census).await {
            Some(stragglers) => stragglers,
            None => self.memory().record(site, position, census),
        };
        drop(recording);
        self.changes.send_modify(|count| *count += 1);
        let mut sum = 0;
        for id in &stragglers {
            let Some(key) = census.tally.keys.get(id) else {
                continue;
            };
            sum += key.secrets;
            let columns = key.by_column().filter(|(_, secrets)| *secrets > 0);
            tracing::warn!(
                key_id = id,
                secrets = key.secrets,
                organizations = ?key.sample_organization_ids,
                columns = ?columns.map(|(column, _)| column).collect::<Vec<_>>(),
                "secrets are under a key that no secret used before: somebody still writes under it. \
                 The soak starts again"
            );
        }
        telemetry::stragglers(sum);
        sum
    }

    /// Records a census in the schema. Returns the key ids that have stragglers, or `None` if the
    /// schema cannot be used.
    async fn record_in_schema(
        &self,
        site: &Site,
        position: SeriesPosition,
        census: &Census,
    ) -> Option<Vec<String>> {
        let target = site.keyring.target().id().as_str();
        for _ in 0..ATTEMPTS {
            let mut known = self.current_in_schema().await?;
            let before = known.sequence;
            let is_late = position != SeriesPosition::Stored(before);
            self.memory().add_unwritten(&mut known, target);
            let stragglers = known.add(site, census, is_late);
            match self.write(before, &known, census).await {
                Ok(true) => {
                    self.memory().written(known, is_late);
                    return Some(stragglers);
                }
                // Another instance has recorded a census: read the ledger again.
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(
                        %error,
                        "cannot write the census to the schema nico_rewrap: it counts as late"
                    );
                    return None;
                }
            }
        }
        tracing::warn!("cannot read the censuses of other instances: this census counts as late");
        None
    }

    /// Records that a census has failed. If this future is dropped, only this process knows it.
    pub async fn record_failure(&self, problem: &RunProblem) {
        let mut failed = FailedCensus {
            reason: problem.reason.clone(),
            // If the database does not answer, nobody knows its time.
            time: SystemTime::now(),
            can_pass: problem.can_pass(),
        };
        self.memory().failed(&failed);
        let _recording = self.recording.lock().await;
        for _ in 0..ATTEMPTS {
            let current = self.current(true).await;
            failed.time = current.now.unwrap_or(failed.time);
            self.memory().failed(&failed);
            let (Source::Schema, Some(store)) = (current.source, self.history.store()) else {
                return;
            };
            let mut known = current.known;
            known.ledger.failed = Some(failed.clone());
            match store
                .update_ledger(known.sequence, &json(&known.ledger))
                .await
            {
                Ok(true) => {
                    self.memory().failure_written(known);
                    return;
                }
                // Another instance has recorded a census: read the ledger again.
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot write to the schema nico_rewrap");
                    return;
                }
            }
        }
    }

    /// Notes that an apply has re-wrapped secrets. The next census begins the series of every key
    /// again, and a census that is under way now is late.
    pub async fn rewrapped(&self, site: &Site) {
        let target = site.keyring.target().id().as_str();
        let noted = timeout(REWRAPPED_LIMIT, self.try_to_note_rewrapped(target)).await;
        let problem = match noted {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the database gave no answer".to_owned(),
        };
        tracing::warn!(
            problem,
            "cannot write to the schema nico_rewrap that an apply has re-wrapped secrets: other \
             instances know it after the next census of this one"
        );
        // A census that is being recorded would forget what is noted now.
        let _recording = timeout(REWRAPPED_LIMIT, self.recording.lock()).await;
        self.memory().rewrapped(target);
    }

    async fn try_to_note_rewrapped(&self, target: &str) -> Result<(), StoreError> {
        let _recording = self.recording.lock().await;
        loop {
            let current = self.current(true).await;
            let (Source::Schema, Some(store)) = (current.source, self.history.store()) else {
                self.memory().rewrapped(target);
                return Ok(());
            };
            let mut known = current.known;
            let before = known.sequence;
            known.ledger.rewrapped(target);
            known.sequence += 1;
            if store.write_ledger(before, &json(&known.ledger)).await? {
                self.memory().replace(known);
                return Ok(());
            }
            // Another instance has changed the ledger: read it again.
        }
    }

    /// The last census that was not late. `None` if there was none, or if it is not known now.
    pub async fn last(&self) -> Option<Census> {
        let current = self.current(true).await;
        let last = current.known.last;
        last.filter(|_| current.source != Source::Outdated)
    }

    /// As [`Censuses::last`], but a newer census may exist.
    pub async fn last_known(&self) -> Option<Census> {
        self.current(true).await.known.last
    }

    /// Whether the last census is older than `age`, or its age is not known.
    pub async fn is_older_than(&self, age: Duration) -> bool {
        let current = self.current(true).await;
        let Some(last) = current.known.last else {
            return true;
        };
        // This process cannot see a census before it was taken. A clock can be wrong.
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
        } = self.current(false).await;
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

    async fn write(&self, before: i64, known: &Known, census: &Census) -> Result<bool, StoreError> {
        let Some(store) = self.history.store() else {
            return Ok(false);
        };
        let ledger = json(&known.ledger);
        let recorded = store
            .record_census(before, &ledger, &census.run_id, &json(census))
            .await?;
        let last = known.last.as_ref().map_or("", |last| &last.run_id);
        if recorded && let Err(error) = store.prune_censuses(last).await {
            tracing::warn!(%error, "cannot delete old censuses from the schema nico_rewrap");
        }
        Ok(recorded)
    }

    /// The results in the schema. `None` if it cannot be read.
    async fn current_in_schema(&self) -> Option<Known> {
        let current = self.current(true).await;
        (current.source == Source::Schema).then_some(current.known)
    }

    /// The results in the schema. If it cannot be read, the results that this process knows.
    /// `warn` is false for `ListKeys`, because clients can call it often.
    async fn current(&self, warn: bool) -> Current {
        if self.history.is_persistent() {
            match self.read().await {
                Ok((known, now)) => {
                    self.memory().replace(known.clone());
                    return Current {
                        known,
                        source: Source::Schema,
                        now,
                    };
                }
                Err(error) if warn => {
                    tracing::warn!(%error, "cannot read the censuses from the schema nico_rewrap");
                }
                Err(_) => {}
            }
        }
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
    async fn read(&self) -> Result<(Known, Option<SystemTime>), StoreError> {
        let Some(store) = self.history.store() else {
            return Ok((Known::default(), None));
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
        Ok((known, Some(stored.now)))
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        // A panic cannot leave the memory half changed.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All maps in these documents have strings as keys, so this cannot fail.
fn json(document: &impl serde::Serialize) -> String {
    serde_json::to_string(document).unwrap_or_default()
}
