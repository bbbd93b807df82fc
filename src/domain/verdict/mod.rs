//! The verdict: whether a key may be deleted. It is a pure function of a series of censuses, the
//! target key, the soak and the clock of the database.
//!
//! An apply that ends without a failure does not prove that the old key is unused: nico-api
//! can write an old envelope back, and an old process still writes under the old key. Only
//! a period without such secrets is proof. A [`Ledger`] therefore remembers for every key id
//! since when no census has seen a secret under it.
//!
//! An apply that re-wraps a secret under a key ends the series of this key, too: the secret may
//! be a straggler, and after the apply no census can find it.
//!
//! The order of the censuses does not depend on a clock. A census is late if another census was
//! recorded between its start and its own recording. A late census can end a series, but it cannot
//! begin or extend one.

mod explain;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

/// The parts of a census on which verdicts depend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CensusFacts {
    /// The id of the run.
    pub run_id: String,
    /// The next transaction id of the database when the snapshot was taken.
    pub moment: i64,
    /// When the snapshot was taken, by the clock of the database.
    pub start: SystemTime,
    /// Secrets whose key id cannot be read.
    pub unreadable: u64,
    /// Secrets by key id. An absent id has no secret.
    pub secrets: BTreeMap<String, u64>,
}

/// The results of the censuses for one key id.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRecord {
    /// Secrets under this key in the last census.
    pub secrets: u64,
    /// The first census of the unbroken series of censuses without this key.
    pub clean: Option<Point>,
    /// Secrets that were found under this key after it had been clean.
    pub stragglers: u64,
    /// When the last straggler was found.
    pub last_straggler: Option<SystemTime>,
}

/// The snapshot of a census.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// As [`CensusFacts::moment`].
    pub moment: i64,
    /// As [`CensusFacts::start`].
    pub start: SystemTime,
}

/// The results of a series of censuses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// The last census that was not late.
    pub last: Option<LastCensus>,
    /// The last attempt to take a census, if it failed.
    #[serde(default)]
    pub failed: Option<FailedCensus>,
    /// By key id.
    pub keys: BTreeMap<String, KeyRecord>,
}

/// The last census that was not late.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastCensus {
    /// The id of its run. Empty in a ledger of an older version.
    #[serde(default)]
    pub run_id: String,
    /// Its snapshot.
    pub point: Point,
    /// Secrets whose key id cannot be read.
    pub unreadable: u64,
}

/// A census that ended with an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedCensus {
    /// The stable reason of the error.
    pub reason: String,
    /// When it ended.
    pub time: SystemTime,
    /// Whether the problem can end without a change of the site, because the database only did not
    /// answer. Any other problem can hide rows from every census.
    pub can_pass: bool,
}

/// What a verdict depends on besides the ledger.
#[derive(Debug, Clone, Copy)]
pub struct Conditions<'a> {
    /// The target key id.
    pub target: &'a str,
    /// How long a key must be clean.
    pub soak: Duration,
    /// The time by the clock of the database. `None` if the database does not answer.
    pub now: Option<SystemTime>,
    /// Whether the database may have a newer ledger that cannot be read now.
    pub is_outdated: bool,
}

/// The answer to "may I delete this key?".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VerdictState {
    /// The key is the target key.
    Target,
    /// The last census found a secret under the key.
    InUse,
    /// The key is clean, but not for long enough.
    Soaking,
    /// The key was clean for the whole soak.
    Removable,
    /// The answer is unknown: no usable census exists, a secret is unreadable and may need any key,
    /// or newer results may exist that this instance cannot read.
    CannotSay,
}

/// The verdict about a key id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The answer.
    pub state: VerdictState,
    /// Why, in one or two sentences for the operator.
    pub explanation: String,
    /// Since when no census has seen a secret under the key.
    pub clean_since: Option<SystemTime>,
    /// When the soak is over.
    pub removable_at: Option<SystemTime>,
    /// Secrets that were found under the key after it had been clean.
    pub stragglers: u64,
    /// When the last straggler was found.
    pub last_straggler: Option<SystemTime>,
}

impl Ledger {
    /// Adds a census to the series. `is_late`: another census was recorded since this census began.
    /// `loaded` are the key ids that this instance holds, and `target` is its target key. Returns
    /// the key ids that have stragglers in this census.
    pub fn record<'a>(
        &mut self,
        census: &CensusFacts,
        is_late: bool,
        loaded: impl IntoIterator<Item = &'a str>,
        target: &str,
    ) -> Vec<String> {
        let counted = census.secrets.keys().map(String::as_str);
        for id in loaded
            .into_iter()
            .map(ToOwned::to_owned)
            .chain(counted.map(ToOwned::to_owned))
        {
            self.keys.entry(id).or_default();
        }
        let point = Point {
            moment: census.moment,
            start: census.start,
        };
        let mut with_stragglers = Vec::new();
        for (id, record) in &mut self.keys {
            let secrets = census.secrets.get(id).copied().unwrap_or(0);
            // A late census can have begun before the key became clean.
            let was_clean = record
                .clean
                .is_some_and(|clean| !is_late || clean.moment <= census.moment);
            if secrets > 0 && was_clean && id != target {
                record.stragglers += secrets;
                record.last_straggler = Some(census.start);
                with_stragglers.push(id.clone());
            }
            if secrets > 0 || census.unreadable > 0 {
                record.clean = record.clean.filter(|_| !was_clean);
            } else if !is_late {
                record.clean = record.clean.or(Some(point));
            }
            if !is_late {
                record.secrets = secrets;
            }
        }
        if !is_late {
            self.failed = None;
            self.last = Some(LastCensus {
                run_id: census.run_id.clone(),
                point,
                unreadable: census.unreadable,
            });
        }
        with_stragglers
    }

    /// Notes that an apply has re-wrapped secrets under other keys than `target`. No census has
    /// counted them, and they may have come back after a key was clean. So the series of every
    /// other key ends.
    pub fn rewrapped(&mut self, target: &str) {
        for (id, record) in &mut self.keys {
            if id != target {
                record.clean = None;
            }
        }
    }

    /// Whether a census that has just begun, with the snapshot `moment`, belongs to another
    /// history of the database: the database was restored from a backup. `last` is the last
    /// census that was recorded before this one began.
    #[must_use]
    pub fn is_other_history(last: Option<&LastCensus>, moment: i64) -> bool {
        last.is_some_and(|last| moment < last.point.moment)
    }

    /// The verdict about the key `id`.
    #[must_use]
    pub fn verdict(&self, id: &str, conditions: &Conditions<'_>) -> Verdict {
        let unknown = KeyRecord::default();
        let record = self.keys.get(id).unwrap_or(&unknown);
        let removable_at = record
            .clean
            .and_then(|clean| clean.start.checked_add(conditions.soak));
        let state = self.state(id, record, removable_at, conditions);
        let is_clean = matches!(state, VerdictState::Soaking | VerdictState::Removable);
        let clean_since = record.clean.map(|clean| clean.start).filter(|_| is_clean);
        Verdict {
            state,
            explanation: explain::explain(self, state, record, removable_at, conditions),
            clean_since,
            removable_at: removable_at.filter(|_| is_clean),
            stragglers: record.stragglers,
            last_straggler: record.last_straggler,
        }
    }

    fn state(
        &self,
        id: &str,
        record: &KeyRecord,
        removable_at: Option<SystemTime>,
        conditions: &Conditions<'_>,
    ) -> VerdictState {
        let last = match &self.last {
            _ if id == conditions.target => return VerdictState::Target,
            None => return VerdictState::CannotSay,
            Some(_) if record.secrets > 0 => return VerdictState::InUse,
            Some(last) if last.unreadable > 0 => return VerdictState::CannotSay,
            Some(last) => last,
        };
        // A census that this instance does not know, or that could not see every row, may have
        // missed a secret.
        if conditions.is_outdated || self.failed.as_ref().is_some_and(|failed| !failed.can_pass) {
            return VerdictState::CannotSay;
        }
        // The key has no clean period: no census has looked for it yet, a late census has seen it,
        // or an apply has re-wrapped a secret since.
        let Some(removable_at) = removable_at else {
            return VerdictState::CannotSay;
        };
        // If the last census is in the future, the clock was wrong at that time or is wrong now:
        // the key is not removable.
        let start = last.point.start;
        if start > removable_at && conditions.now.is_some_and(|now| now >= start) {
            VerdictState::Removable
        } else {
            VerdictState::Soaking
        }
    }
}
