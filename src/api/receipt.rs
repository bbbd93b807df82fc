//! Writes the receipt of an apply after its end.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};
use tracing::Instrument;

use super::{
    background::{ELSEWHERE, Taken},
    context::Inner,
};
use crate::{
    run::{
        Census, Runner, Scope,
        receipt::{Changes, Receipt},
        receipt_log,
        record::RunRecord,
    },
    store::{StoreError, state::StoredReceipt},
};

/// How often to try to add a receipt to the chain, which other instances extend, too.
const ATTEMPTS: u32 = 20;

/// How long a receipt waits for the end of a census of another instance.
const OTHER_CENSUS: Duration = Duration::from_secs(60);

impl Inner {
    /// Whether receipts are written.
    pub(super) fn keeps_receipts(&self) -> bool {
        self.context.history.is_persistent() || self.context.receipt_log.is_some()
    }

    /// Writes the receipt of an apply that wrote rows, in a task of its own.
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
        let chained = match self.add_to_chain(&receipt).await {
            Ok(document) => document,
            Err(error) => {
                tracing::error!(%error, "cannot write the receipt to the schema nico_rewrap");
                None
            }
        };
        let Some(path) = self.context.receipt_log.clone() else {
            return;
        };
        // Blocking: the disk may be slow.
        let file = path.clone();
        let written = tokio::task::spawn_blocking(move || match chained {
            Some(document) => receipt_log::append(&file, &document),
            None => receipt_log::append_to_chain(&file, &receipt),
        });
        match written.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(
                %error,
                file = %path.display(),
                "cannot append the receipt to [rewrap].receipt_log"
            ),
            Err(error) => tracing::error!(%error, "writing a receipt panicked: this is a bug"),
        }
    }

    /// A census that began after the end of a site-wide run. `None` if there is none. Then one is
    /// due soon.
    async fn census_after(&self, runner: &Runner, record: &RunRecord) -> Option<Census> {
        if self.context.census_interval.is_zero() {
            return None;
        }
        if record.scope != Scope::Site {
            self.census_due.notify_one();
            return None;
        }
        let deadline = Instant::now() + OTHER_CENSUS;
        let census = loop {
            match self.take_census(runner).await {
                Ok(Taken::Here(census)) => break Some(census),
                // That census may have begun before the end of the run.
                Ok(Taken::Elsewhere) if Instant::now() < deadline => {
                    let pause = self.shutdown.run_until_cancelled(sleep(ELSEWHERE));
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

    /// Adds the receipt to the chain in the database. Returns its document, or `None` without
    /// the schema.
    async fn add_to_chain(&self, receipt: &Receipt) -> Result<Option<String>, StoreError> {
        let history = &self.context.history;
        let Some(store) = history.store().filter(|_| history.is_persistent()) else {
            return Ok(None);
        };
        for _ in 0..ATTEMPTS {
            let last = store.last_receipt().await?;
            let previous = last.map_or_else(String::new, |last| last.sha256);
            let (document, sha256) = receipt.seal(&previous);
            let stored = StoredReceipt {
                sha256,
                document: document.clone(),
            };
            if store
                .add_receipt(&receipt.run_id, &stored, &previous)
                .await?
            {
                return Ok(Some(document));
            }
        }
        Err(StoreError::Unavailable(
            "other instances extended the chain of receipts at the same time".to_owned(),
        ))
    }
}
