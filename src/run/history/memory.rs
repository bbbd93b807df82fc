//! The runs that this instance executes or has executed.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, UNIX_EPOCH},
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Request;
use crate::{
    run::record::{RunRecord, RunState},
    store::state::{RunPosition, StoredFailure},
};

/// How many runs of callers are remembered, and how many automatic censuses.
const RUNS: usize = 100;

/// How many failures are remembered: of one run, and of all runs together.
const FAILURES: usize = 50_000;
const ALL_FAILURES: usize = 100_000;

/// By organization and column.
type Failures = BTreeMap<(String, String), StoredFailure>;

/// The runs of this instance.
#[derive(Default)]
pub(super) struct Memory {
    /// Whether this instance has checked if the schema exists.
    pub(super) knows_schema: bool,
    /// In the order in which they started.
    runs: BTreeMap<u64, Arc<Remembered>>,
    by_id: HashMap<String, u64>,
    next: u64,
}

/// A run of this instance.
pub(super) struct Remembered {
    record: watch::Sender<RunRecord>,
    request: Option<Request>,
    stop: CancellationToken,
    failures: Mutex<Failures>,
}

impl Memory {
    pub(super) fn add(
        &mut self,
        record: RunRecord,
        request: Option<Request>,
        stop: CancellationToken,
    ) -> Arc<Remembered> {
        self.by_id.insert(record.id.clone(), self.next);
        let run = Arc::new(Remembered {
            record: watch::Sender::new(record),
            request,
            stop,
            failures: Mutex::default(),
        });
        self.runs.insert(self.next, run.clone());
        self.next += 1;
        self.forget_old();
        run
    }

    fn forget_old(&mut self) {
        for is_automatic in [false, true] {
            let runs: Vec<(u64, RunRecord)> = self
                .runs
                .iter()
                .map(|(number, run)| (*number, run.record()))
                .filter(|(_, record)| record.is_automatic() == is_automatic)
                .collect();
            let excess = runs.len().saturating_sub(RUNS);
            for (number, record) in runs.into_iter().take(excess) {
                if record.state != RunState::Running {
                    self.by_id.remove(&record.id);
                    self.runs.remove(&number);
                }
            }
        }
    }

    /// Forgets the failures of the oldest runs if there are too many.
    pub(super) fn limit_failures(&self) {
        let mut sum = 0;
        for run in self.runs.values().rev() {
            let mut failures = run.lock();
            sum += failures.len();
            if sum > ALL_FAILURES {
                sum -= failures.len();
                *failures = Failures::new();
            }
        }
    }

    pub(super) fn get(&self, id: &str) -> Option<Arc<Remembered>> {
        self.runs.get(self.by_id.get(id)?).cloned()
    }

    /// The parameters and the run of a request.
    pub(super) fn by_request(&self, id: &str) -> Option<(String, RunRecord)> {
        self.runs.values().find_map(|run| {
            let request = run.request.as_ref().filter(|request| request.id == id)?;
            Some((request.parameters.clone(), run.record()))
        })
    }

    /// At most `limit` runs that started before the position `after`, the newest first.
    pub(super) fn list(
        &self,
        after: Option<&RunPosition>,
        limit: usize,
    ) -> Vec<(RunPosition, RunRecord)> {
        // Postgres stores microseconds.
        let started = |run: &RunRecord| {
            let since = run
                .start_time
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default();
            let microseconds = u64::try_from(since.as_micros()).unwrap_or_default();
            UNIX_EPOCH + Duration::from_micros(microseconds)
        };
        let position = |run: &RunRecord| RunPosition {
            started: started(run),
            id: run.id.clone(),
        };
        let runs = self.runs.values().map(|run| run.record());
        let mut runs: Vec<_> = runs
            .map(|run| (position(&run), run))
            .filter(|(position, _)| after.is_none_or(|after| position < after))
            .collect();
        runs.sort_by(|a, b| b.0.cmp(&a.0));
        runs.truncate(limit);
        runs
    }

    pub(super) fn active(&self) -> Vec<RunRecord> {
        let runs = self.runs.values().map(|run| run.record());
        runs.filter(|run| run.state == RunState::Running).collect()
    }
}

impl Remembered {
    pub(super) fn record(&self) -> RunRecord {
        self.record.borrow().clone()
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<RunRecord> {
        self.record.subscribe()
    }

    pub(super) fn update(&self, change: impl FnOnce(&mut RunRecord)) {
        self.record.send_modify(change);
    }

    pub(super) fn stop(&self) {
        self.stop.cancel();
    }

    /// Remembers failures: the first ones in the order of the organizations.
    pub(super) fn add_failures(&self, failures: &[StoredFailure]) {
        let mut kept = self.lock();
        for failure in failures {
            let key = (failure.organization_id.clone(), failure.field.clone());
            kept.insert(key, failure.clone());
            if kept.len() > FAILURES {
                kept.pop_last();
            }
        }
    }

    /// Forgets failures that are in the database.
    pub(super) fn forget_failures(&self, failures: &[StoredFailure]) {
        let mut kept = self.lock();
        for failure in failures {
            kept.remove(&(failure.organization_id.clone(), failure.field.clone()));
        }
    }

    /// At most `limit` failures after the given organization and column.
    pub(super) fn failures(&self, after: (&str, &str), limit: usize) -> Vec<StoredFailure> {
        let after = (after.0.to_owned(), after.1.to_owned());
        let kept = self.lock();
        let rest = kept.range((Bound::Excluded(after), Bound::Unbounded));
        rest.take(limit)
            .map(|(_, failure)| failure.clone())
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Failures> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::{RunSpec, Scope, record::Kind};

    fn run(id: &str, caller: &str) -> RunRecord {
        let spec = RunSpec {
            id: id.to_owned(),
            kind: Kind::Census,
            scope: Scope::Site,
            max_rows_per_second: 0,
            stop_after_failures: 0,
        };
        RunRecord {
            state: RunState::Finished,
            ..RunRecord::started(&spec, "kv2", caller, "instance")
        }
    }

    #[test]
    fn automatic_censuses_do_not_crowd_out_the_runs_of_callers() {
        let mut memory = Memory::default();
        let mut add = |id: &str, caller: &str| {
            memory.add(run(id, caller), None, CancellationToken::new());
        };
        for i in 0..RUNS {
            add(&format!("caller{i}"), "alice");
        }
        for i in 0..2 * RUNS {
            add(&format!("automatic{i}"), "");
        }
        add("last", "alice");
        assert_eq!(memory.runs.len(), 2 * RUNS);
        assert_eq!(memory.by_id.len(), 2 * RUNS);
        for (id, is_known) in [
            ("caller0", false),
            ("caller1", true),
            ("last", true),
            ("automatic99", false),
            ("automatic100", true),
        ] {
            assert_eq!(memory.get(id).is_some(), is_known, "{id}");
        }
    }
}
