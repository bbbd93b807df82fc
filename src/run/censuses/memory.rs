//! The results of the censuses in the memory of this process.

use std::{
    collections::btree_map::Entry,
    time::{Instant, SystemTime},
};

use super::{SeriesPosition, known::Known};
use crate::{
    domain::verdict::{CensusFacts, FailedCensus},
    run::{Census, Site},
};

/// The memory of this process.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// The results in the schema when it was last read, and the later censuses of this process.
    known: Known,
    /// The number of changes of `known`.
    changes: u64,
    /// The id of the last census's run, and when this process learned of it.
    last_since: Option<(String, Instant)>,
    /// Results of censuses that are not in the schema.
    unwritten: Option<CensusFacts>,
    /// Whether an apply has re-wrapped secrets, and the note about it is not in the schema.
    unwritten_rewrap: bool,
    /// A failed census that is not in the schema, and the sequence of the ledger at its failure.
    unwritten_failure: Option<(i64, FailedCensus)>,
}

impl Memory {
    pub(super) fn known(&self) -> &Known {
        &self.known
    }

    pub(super) fn position(&self) -> SeriesPosition {
        SeriesPosition::Memory(self.changes)
    }

    /// When this process learned of the last census.
    pub(super) fn last_since(&self) -> Option<Instant> {
        self.last_since.as_ref().map(|(_, since)| *since)
    }

    /// An estimate of the database's clock: its time at the last census plus the time since this
    /// process knows that census. The estimate is never later than the real clock, unless somebody
    /// changed the clock.
    pub(super) fn now(&self) -> Option<SystemTime> {
        let last = self.known.last.as_ref()?;
        let since = self.last_since()?;
        last.time.checked_add(last.duration + since.elapsed())
    }

    /// Takes the results from the schema.
    pub(super) fn replace(&mut self, known: Known) {
        if known.sequence != self.known.sequence {
            self.changes += 1;
        }
        self.known = known;
        self.note_last();
    }

    /// Takes the results that were just written to the schema.
    pub(super) fn written(&mut self, known: Known, is_late: bool) {
        self.unwritten = None;
        self.unwritten_rewrap = false;
        if !is_late {
            self.unwritten_failure = None;
        }
        self.replace(known);
    }

    /// Records a census that is not in the schema. Returns the key ids that have stragglers.
    pub(super) fn record(
        &mut self,
        site: &Site,
        position: SeriesPosition,
        census: &Census,
    ) -> Vec<String> {
        let is_late = position != self.position();
        let stragglers = self.known.add(site, census, is_late);
        if !is_late {
            self.unwritten_failure = None;
        }
        self.changes += 1;
        self.note_last();
        self.add(census.facts());
        stragglers
    }

    /// Notes in memory that an apply has re-wrapped secrets. The note is not in the schema.
    pub(super) fn rewrapped(&mut self, target: &str) {
        self.known.ledger.rewrapped(target);
        self.changes += 1;
        self.unwritten_rewrap = true;
    }

    /// Records a failed census that is not in the schema.
    pub(super) fn failed(&mut self, failed: &FailedCensus) {
        self.known.ledger.failed = Some(failed.clone());
        self.unwritten_failure = Some((self.known.sequence, failed.clone()));
    }

    /// Takes the results with the failed census that was just written to the schema.
    pub(super) fn failure_written(&mut self, known: Known) {
        self.unwritten_failure = None;
        self.replace(known);
    }

    /// Adds the results that are not in the schema to results from the schema.
    pub(super) fn add_unwritten(&self, known: &mut Known, target: &str) {
        if self.unwritten_rewrap {
            known.ledger.rewrapped(target);
        }
        if let Some(unwritten) = &self.unwritten {
            known.ledger.record(unwritten, true, [], target);
        }
        // If a census was recorded after this failure, the failure is outdated.
        if let Some((sequence, failed)) = &self.unwritten_failure
            && *sequence == known.sequence
        {
            known.ledger.failed = Some(failed.clone());
        }
    }

    fn note_last(&mut self) {
        let id = self.known.last.as_ref().map(|last| &last.run_id);
        if id != self.last_since.as_ref().map(|(id, _)| id) {
            self.last_since = id.map(|id| (id.clone(), Instant::now()));
        }
    }

    /// Adds a census to the unwritten censuses. Together they count as one late census.
    fn add(&mut self, census: CensusFacts) {
        let Some(sum) = &mut self.unwritten else {
            self.unwritten = Some(census);
            return;
        };
        sum.moment = sum.moment.max(census.moment);
        sum.start = sum.start.max(census.start);
        sum.unreadable = sum.unreadable.max(census.unreadable);
        for (id, secrets) in census.secrets {
            // Both censuses usually count the same secrets, so take the larger number.
            match sum.secrets.entry(id) {
                Entry::Vacant(entry) => {
                    entry.insert(secrets);
                }
                Entry::Occupied(mut entry) => *entry.get_mut() = secrets.max(*entry.get()),
            }
        }
    }
}
