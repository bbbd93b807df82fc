//! Reads runs, their failures and their receipts.

use tokio::sync::watch;

use super::{History, HistoryError, stored::from_stored};
use crate::{
    run::record::RunRecord,
    store::state::{RunPosition, StoredFailure, StoredReceipt},
};

/// How many runs are kept.
const KEPT_RUNS: u32 = 100;

/// A part of the list of runs.
pub struct RunPage {
    /// The runs, with their positions.
    pub runs: Vec<(RunPosition, RunRecord)>,
    /// Where the next page begins: after this position. `None` at the end of the list.
    pub next: Option<RunPosition>,
}

impl History {
    /// The run `id`.
    ///
    /// # Errors
    ///
    /// [`HistoryError::NoSuchRun`] if no such run is known.
    pub async fn get(&self, id: &str) -> Result<RunRecord, HistoryError> {
        if let Some(run) = self.memory().get(id) {
            return Ok(run.record());
        }
        if !self.memory().knows_schema {
            // Just after the start. Without the schema, this instance does not know older runs.
            self.look_for_schema().await;
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

    /// At most `limit` runs that started before the position `after`, the newest first.
    ///
    /// # Errors
    ///
    /// [`HistoryError::Store`] when the database does not answer.
    pub async fn list(
        &self,
        after: Option<&RunPosition>,
        limit: u32,
    ) -> Result<RunPage, HistoryError> {
        let limit = limit as usize;
        // Read one more run, to know whether another page follows.
        let Some(store) = self.state() else {
            let mut runs = self.memory().list(after, limit + 1);
            let next = runs.get(limit).is_some().then(|| runs[limit - 1].0.clone());
            runs.truncate(limit);
            return Ok(RunPage { runs, next });
        };
        let mut stored = store.stored_runs(after, limit as i64 + 1).await?;
        let next = stored
            .get(limit)
            .is_some()
            .then(|| stored[limit - 1].position());
        stored.truncate(limit);
        let mut runs = Vec::with_capacity(stored.len());
        for stored in stored {
            let record = self.newest(&stored).await;
            runs.extend(record.map(|record| (stored.position(), record)));
        }
        Ok(RunPage { runs, next })
    }

    /// All runs of the history, the newest first.
    ///
    /// # Errors
    ///
    /// As [`History::list`].
    pub async fn all(&self) -> Result<Vec<RunRecord>, HistoryError> {
        let page = self.list(None, KEPT_RUNS).await?;
        Ok(page.runs.into_iter().map(|(_, run)| run).collect())
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

    /// The receipt of a run. `None` if the run has no receipt, or if the schema does not exist.
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
}
