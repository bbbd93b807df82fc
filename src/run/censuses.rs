//! The results of the censuses of the site, for the verdicts. The schema `nico_rewrap` keeps
//! them for all instances. Without the schema, this process knows only its own censuses.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::{sync::watch, time::timeout};

use super::{Census, Site, history::History};
use crate::{
    domain::verdict::{CensusFacts, Ledger, Verdict},
    store::StoreError,
    telemetry,
};

/// How often to try to record a census while other instances record theirs.
const ATTEMPTS: u32 = 20;

/// How long an apply waits until the database knows that it has re-wrapped a secret.
const REWRAPPED_LIMIT: Duration = Duration::from_millis(500);

/// The ledger, and how often it was changed.
#[derive(Debug, Clone, Default)]
struct Known {
    sequence: i64,
    ledger: Ledger,
    last: Option<Census>,
}

/// A position in the series of censuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeriesPosition(i64);

/// The last census, and the verdicts.
#[derive(Debug, Clone)]
pub struct KeyUse {
    /// The last census; `None` if there was none.
    pub last: Option<Census>,
    ledger: Ledger,
    target: String,
    soak: Duration,
}

impl KeyUse {
    /// The ids that a census has seen or that an instance holds.
    pub fn key_ids(&self) -> impl Iterator<Item = &str> {
        self.ledger.keys.keys().map(String::as_str)
    }

    /// The verdict about a key.
    #[must_use]
    pub fn verdict(&self, id: &str, now: SystemTime) -> Verdict {
        self.ledger.verdict(id, &self.target, self.soak, now)
    }
}

/// The censuses of a site.
pub struct Censuses {
    history: History,
    soak: Duration,
    /// The results that this process knows, for when the database does not answer.
    memory: Mutex<Known>,
    /// Results of censuses that could not be written to the database.
    unwritten: Mutex<Option<CensusFacts>>,
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
            unwritten: Mutex::default(),
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
        SeriesPosition(self.known(true).await.sequence)
    }

    /// Records a census that began at `position`. Logs the stragglers that it found, and
    /// returns their number.
    pub async fn record(&self, site: &Site, position: SeriesPosition, census: &Census) -> u64 {
        let target = site.keyring.target().id().as_str();
        let facts = census.facts();
        let mut known;
        let mut attempts = 0;
        let stragglers = loop {
            attempts += 1;
            known = self.known(true).await;
            let before = known.sequence;
            let is_late = before != position.0;
            if !is_late && Ledger::is_other_history(known.ledger.last.as_ref(), census.moment) {
                tracing::warn!(
                    "the database is older than the last census: it was restored, or replaced by \
                     another one. The verdicts start again"
                );
                known.ledger = Ledger::default();
            }
            let loaded = || site.keyring.iter().map(|kek| kek.id().as_str());
            if let Some(unwritten) = &*lock(&self.unwritten) {
                known.ledger.record(unwritten, true, loaded(), target);
            }
            let stragglers = known.ledger.record(&facts, is_late, loaded(), target);
            known.sequence += 1;
            if !is_late {
                known.last = Some(census.clone());
            }
            if !self.history.is_persistent() {
                break stragglers;
            }
            match self.write(before, &known.ledger, census).await {
                Ok(true) => {
                    *lock(&self.unwritten) = None;
                    break stragglers;
                }
                // Another instance has recorded a census: read the ledger again.
                Ok(false) if attempts < ATTEMPTS => {}
                Ok(false) => {
                    tracing::warn!(
                        "cannot read the censuses of other instances: this census counts as late"
                    );
                    add(&mut lock(&self.unwritten), facts);
                    break stragglers;
                }
                Err(error) => {
                    tracing::warn!(
                        %error,
                        "cannot write the census to the schema nico_rewrap: it counts as late"
                    );
                    add(&mut lock(&self.unwritten), facts);
                    break stragglers;
                }
            }
        };
        *lock(&self.memory) = known;
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

    /// Notes that an apply has re-wrapped secrets. The next census begins the series of every key
    /// again, and a census that is under way now is late.
    pub async fn rewrapped(&self, site: &Site) {
        let target = site.keyring.target().id().as_str();
        let noted = timeout(REWRAPPED_LIMIT, self.try_to_note_rewrapped(target)).await;
        let problem = match noted {
            Ok(Ok(known)) => {
                *lock(&self.memory) = known;
                return;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the database gave no answer".to_owned(),
        };
        tracing::warn!(
            problem,
            "cannot write to the schema nico_rewrap that an apply has re-wrapped secrets: other \
             instances know it after the next census of this one"
        );
        // A census that cannot say what it saw has the same effect, at any moment.
        let facts = CensusFacts {
            moment: i64::MAX,
            start: SystemTime::now(),
            unreadable: 1,
            secrets: BTreeMap::new(),
        };
        add(&mut lock(&self.unwritten), facts);
    }

    async fn try_to_note_rewrapped(&self, target: &str) -> Result<Known, StoreError> {
        loop {
            let mut known = self.known(true).await;
            let before = known.sequence;
            known.ledger.rewrapped(target);
            known.sequence += 1;
            let Some(store) = self
                .history
                .store()
                .filter(|_| self.history.is_persistent())
            else {
                return Ok(known);
            };
            let ledger = serde_json::to_string(&known.ledger).unwrap_or_default();
            if store.write_ledger(before, &ledger).await? {
                return Ok(known);
            }
            // Another instance has recorded a census: look again.
        }
    }

    /// The last census.
    pub async fn last(&self) -> Option<Census> {
        self.known(true).await.last
    }

    /// The current results, for the keys of `site`.
    pub async fn key_use(&self, site: &Site) -> KeyUse {
        let mut known = self.known(false).await;
        let target = site.keyring.target().id().as_str();
        if let Some(unwritten) = &*lock(&self.unwritten) {
            known.ledger.record(unwritten, true, [], target);
        }
        KeyUse {
            last: known.last,
            ledger: known.ledger,
            target: target.to_owned(),
            soak: self.soak,
        }
    }

    async fn write(
        &self,
        before: i64,
        ledger: &Ledger,
        census: &Census,
    ) -> Result<bool, StoreError> {
        let Some(store) = self.history.store() else {
            return Ok(true);
        };
        // All maps in these documents have strings as keys, so this cannot fail.
        let ledger = serde_json::to_string(ledger).unwrap_or_default();
        let document = serde_json::to_string(census).unwrap_or_default();
        let recorded = store
            .record_census(before, &ledger, &census.run_id, &document)
            .await?;
        if recorded {
            store.prune_censuses().await?;
        }
        Ok(recorded)
    }

    /// The results in the database. If the database does not answer, the results that this
    /// process knows. `warn` is false for `ListKeys`, because clients can call it often.
    async fn known(&self, warn: bool) -> Known {
        if self.history.is_persistent() {
            match self.read().await {
                Ok(known) => return known,
                Err(error) if warn => {
                    tracing::warn!(%error, "cannot read the censuses from the schema nico_rewrap");
                }
                Err(_) => {}
            }
        }
        lock(&self.memory).clone()
    }

    async fn read(&self) -> Result<Known, StoreError> {
        let Some(store) = self.history.store() else {
            return Ok(Known::default());
        };
        let stored = store.ledger().await?;
        let last = store.last_census().await?;
        Ok(Known {
            sequence: stored.sequence,
            // A document of an unknown form counts as empty: the verdicts start again.
            ledger: serde_json::from_str(&stored.document).unwrap_or_default(),
            last: last.and_then(|last| serde_json::from_str(&last).ok()),
        })
    }
}

/// Adds a census to the unwritten censuses. Together they count as one late census.
fn add(unwritten: &mut Option<CensusFacts>, census: CensusFacts) {
    let Some(sum) = unwritten else {
        *unwritten = Some(census);
        return;
    };
    sum.moment = sum.moment.max(census.moment);
    sum.start = sum.start.max(census.start);
    sum.unreadable += census.unreadable;
    for (id, secrets) in census.secrets {
        *sum.secrets.entry(id).or_default() += secrets;
    }
}

fn lock<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic cannot leave the value half changed.
    value.lock().unwrap_or_else(PoisonError::into_inner)
}
