//! Records what changes the verdicts: a census, a census that failed, and an apply.

use std::time::{Duration, SystemTime};

use tokio::time::timeout;

use super::{Censuses, SeriesPosition, Source, known::Known};
use crate::{
    domain::verdict::FailedCensus,
    run::{Census, Site, record::RunProblem},
    store::StoreError,
    telemetry,
};

/// How often to try to write to the ledger while other instances write to it.
const ATTEMPTS: u32 = 20;

/// How long an apply waits until its note about re-wrapped secrets is in the database.
const REWRAPPED_LIMIT: Duration = Duration::from_millis(500);

impl Censuses {
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
                "a census found secrets under a key that was clean before: an old \
                 process or a race with nico-api wrote them. The soak starts again"
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
            // The time of this machine: the database may not answer.
            time: SystemTime::now(),
            can_pass: problem.can_pass(),
        };
        self.memory().failed(&failed);
        let _recording = self.recording.lock().await;
        for _ in 0..ATTEMPTS {
            let current = self.current().await;
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

    /// Notes that an apply has re-wrapped secrets. The next census starts a new clean period for
    /// every key, and a census in progress is late.
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
        // Without this lock, a census that is being recorded could overwrite the note.
        let _recording = timeout(REWRAPPED_LIMIT, self.recording.lock()).await;
        self.memory().rewrapped(target);
    }

    async fn try_to_note_rewrapped(&self, target: &str) -> Result<(), StoreError> {
        let _recording = self.recording.lock().await;
        loop {
            let current = self.current().await;
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
}

/// All maps in these documents have strings as keys, so this cannot fail.
fn json(document: &impl serde::Serialize) -> String {
    serde_json::to_string(document).unwrap_or_default()
}
