//! Writes the receipt of an apply after its end.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};
use tracing::Instrument;

use super::{
    background::{OTHER_CENSUS_POLL, Taken},
    context::Inner,
};
use crate::{
    run::{
        Census, Runner, Scope,
        receipt::{Changes, Receipt},
        receipt_log,
        record::RunRecord,
    },
    store::{Store, StoreError, state::StoredReceipt},
};

/// Number of attempts to add a receipt to the chain. An attempt fails if another instance adds a
/// receipt at the same time.
const ATTEMPTS: u32 = 20;

/// How long a receipt waits for the end of another instance's census.
const OTHER_CENSUS_LIMIT: Duration = Duration::from_secs(60);
/// How long to retry while the database does not answer, and the pause between two attempts. The
/// limit is the same as for writing the end of a run.
const RETRY_LIMIT: Duration = Duration::from_secs(600);
const RETRY_PAUSE: Duration = Duration::from_secs(1);

impl Inner {
    /// Whether receipts are written.
    pub(super) fn keeps_receipts(&self) -> bool {
        self.context.history.is_persistent() || self.context.receipt_log.is_some()
    }

    /// Starts a task that writes the receipt of an apply. Call this only if the apply wrote rows.
    pub(super) fn spawn_receipt(
        self: &Arc<Self>,
        record: RunRecord,
        changes: Changes,
        before: Option<Census>,
    ) {
        let inner = self.clone();
        let write = async move { inner.write_receipt(&record, changes, before).await };
        self.tasks.spawn(write.in_current_span());
    }

    async fn write_receipt(&self, record: &RunRecord, changes: Changes, before: Option<Census>) {
        let Ok(runner) = self.runner() else {
            return;
        };
        let after = self.census_after(runner, record).await;
        let check_values: BTreeMap<String, String> = runner
            .keyring()
            .iter()
            .map(|kek| (kek.id().to_string(), kek.check_value().to_string()))
            .collect();
        let build = concat!(
            env!("CARGO_PKG_VERSION"),
            " (",
            env!("NICO_REWRAP_REVISION"),
            ")"
        );
        let (before, after) = (before.as_ref(), after.as_ref());
        let receipt = Receipt::new(record, build, check_values, before, after, changes);
        let receipt = Arc::new(receipt);
        if let Some(path) = self.context.receipt_log.clone() {
            let _order = self.receipt_order.file.lock().await;
            // Blocking: the disk may be slow.
            let (file, receipt) = (path.clone(), receipt.clone());
            let append = move || receipt_log::append(&file, &receipt);
            match tokio::task::spawn_blocking(append).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(
                    %error,
                    file = %path.display(),
                    "cannot append the receipt to [rewrap].receipt_log"
                ),
                Err(error) => tracing::error!(%error, "writing a receipt panicked: this is a bug"),
            }
        }
        let _order = self.receipt_order.database.lock().await;
        if let Err(error) = self.add_until_written(&receipt).await {
            tracing::error!(%error, "cannot write the receipt to the schema nico_rewrap");
        }
    }

    /// Adds the receipt to the chain in the database. Retries while the database does not answer.
    /// Does nothing without the schema.
    async fn add_until_written(&self, receipt: &Receipt) -> Result<(), StoreError> {
        let history = &self.context.history;
        let Some(store) = history.store().filter(|_| history.is_persistent()) else {
            return Ok(());
        };
        let began = Instant::now();
        let mut was_logged = false;
        loop {
            let error = match add_to_chain(store, receipt).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if began.elapsed() > RETRY_LIMIT || self.shutdown.is_cancelled() {
                return Err(error);
            }
            if !was_logged {
                tracing::warn!(
                    %error,
                    "cannot write the receipt to the schema nico_rewrap yet: trying again"
                );
                was_logged = true;
            }
            tokio::select! {
                () = sleep(RETRY_PAUSE) => {}
                () = self.shutdown.cancelled() => {}
            }
        }
    }

    /// Takes a census after the end of a site-wide run, for the receipt. If no census can be taken
    /// now, returns `None` and makes a census due. For a run of one organization, also returns
    /// `None`.
    async fn census_after(&self, runner: &Runner, record: &RunRecord) -> Option<Census> {
        if self.context.census_interval.is_zero() {
            return None;
        }
        if record.scope != Scope::Site {
            self.census_due.notify_one();
            return None;
        }
        let deadline = Instant::now() + OTHER_CENSUS_LIMIT;
        let census = loop {
            match self.take_census(runner).await {
                Ok(Taken::Here(census)) => break Some(census),
                // The census of the other instance may have begun before the end of the run, so it
                // does not count. Wait for its end.
                Ok(Taken::Elsewhere) if Instant::now() < deadline => {
                    let pause = self.shutdown.run_until_cancelled(sleep(OTHER_CENSUS_POLL));
                    if pause.await.is_none() {
                        break None;
                    }
                }
                Ok(Taken::Elsewhere) | Err(_) => break None,
            }
        };
        if census.is_none() {
            self.census_due.notify_one();
        }
        census
    }
}

/// Adds the receipt to the chain in the database.
async fn add_to_chain(store: &Store, receipt: &Receipt) -> Result<(), StoreError> {
    for _ in 0..ATTEMPTS {
        // The receipt may already be in the chain: an earlier attempt may have succeeded without an
        // answer.
        if store.receipt(&receipt.run_id).await?.is_some() {
            return Ok(());
        }
        let previous = store.end_of_receipts().await?;
        let (document, sha256) = receipt.seal(&previous);
        let stored = StoredReceipt { sha256, document };
        if store
            .add_receipt(&receipt.run_id, &stored, &previous)
            .await?
        {
            return Ok(());
        }
    }
    Err(StoreError::Unavailable(
        "other instances extended the chain of receipts at the same time".to_owned(),
    ))
}
