//! Finds the schema, and reads stored runs. Writes the end of runs whose instance is silent.

use std::sync::atomic::Ordering;

use super::History;
use crate::{
    run::record::{RunRecord, RunState},
    store::{
        StoreError,
        state::{StateSchema, StoredRun},
    },
};

impl History {
    /// Checks whether the schema can be used, and logs a change. Also writes the end of runs
    /// whose instance is silent.
    pub async fn look_for_schema(&self) {
        let Some(store) = &self.0.store else {
            return;
        };
        // If the database does not answer, the state of the schema is unknown: keep the last known
        // state.
        let Ok(schema) = store.state_schema().await else {
            return;
        };
        let is_ready = schema == StateSchema::Ready;
        if schema != StateSchema::Absent {
            self.0.has_seen_schema.store(true, Ordering::Relaxed);
        }
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

    /// The newest record of a stored run. For its own runs, this instance has a newer record in
    /// memory.
    pub(super) async fn newest(&self, stored: &StoredRun) -> Option<RunRecord> {
        let own = self.memory().get(&stored.id);
        match own {
            Some(run) => Some(run.record()),
            None => self.settled(stored).await,
        }
    }

    /// The record of a stored run. If its instance is silent, this first writes the end of the run.
    /// Later answers then never show the run in progress again.
    pub(super) async fn settled(&self, stored: &StoredRun) -> Option<RunRecord> {
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
            // The instance has come back, or another instance has written the end.
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
pub(super) fn document(record: &RunRecord) -> String {
    // All maps in it have strings as keys, so this cannot fail.
    serde_json::to_string(record).unwrap_or_default()
}

/// Reads a stored run. `None` if another version of this program wrote it in a form that
/// this version does not know.
pub(super) fn from_stored(stored: &StoredRun) -> Option<RunRecord> {
    let mut record: RunRecord = serde_json::from_str(&stored.document).ok()?;
    if stored.is_abandoned && record.state == RunState::Running {
        record.settle(stored.heartbeat);
    }
    Some(record)
}
