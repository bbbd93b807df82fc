//! A verify: decrypts every secret and checks its content. It writes nothing.

use std::sync::Arc;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{
    Failure, Mode, RunError, Site,
    batch_set::BatchSet,
    pacer::Pacer,
    report::RowOutcome,
    scope::{check_preflight, unreadable},
    until_stopped,
};
use crate::{
    domain::{
        envelope::Buffers,
        organization::OrganizationId,
        verify::{Verified, VerifyRow, verify},
    },
    store::StoreError,
};

/// Rows of one task.
const TASK_ROWS: usize = 250;

/// Verifies every row, in one snapshot.
pub(super) async fn verify_site(
    site: &Arc<Site>,
    pacer: &Pacer,
    stop: &CancellationToken,
    batches: &mut BatchSet,
) -> Result<(), RunError> {
    let store = &site.store;
    check_preflight(&until_stopped(stop, store.preflight()).await?, Mode::DryRun)?;
    let mut scan = until_stopped(stop, unavailable(store.verify_scan())).await?;
    batches.set_total(scan.snapshot().rows);
    let parallel = std::thread::available_parallelism().map_or(1, usize::from);
    let mut tasks = JoinSet::new();
    while let Some(rows) = until_stopped(stop, unavailable(scan.next())).await? {
        let mut readable = Vec::with_capacity(rows.len());
        for row in rows {
            match row {
                Ok(row) => readable.push(row),
                Err(row) => {
                    let outcome = unreadable(&row.organization_id(), &row.error);
                    batches.count_rows(vec![outcome]).await;
                    batches.check_failure_limit()?;
                }
            }
        }
        while !readable.is_empty() {
            let rest = readable.split_off(readable.len().min(TASK_ROWS));
            let rows = std::mem::replace(&mut readable, rest);
            while tasks.len() >= parallel {
                count_one(&mut tasks, batches).await?;
            }
            let paced = stop
                .run_until_cancelled(pacer.acquire_all(rows.len()))
                .await;
            paced.ok_or(RunError::Stopped)?;
            let site = site.clone();
            tasks.spawn(async move { verify_rows(&site, &rows) });
        }
    }
    while !tasks.is_empty() {
        count_one(&mut tasks, batches).await?;
    }
    unavailable(scan.finish()).await?;
    // A policy may have come into force during the run.
    check_preflight(&until_stopped(stop, store.preflight()).await?, Mode::DryRun)?;
    Ok(())
}

/// Verifies the row of one organization.
pub(super) async fn verify_organization(
    site: &Site,
    id: &OrganizationId,
    stop: &CancellationToken,
    batches: &mut BatchSet,
) -> Result<(), RunError> {
    let store = &site.store;
    check_preflight(&until_stopped(stop, store.preflight()).await?, Mode::DryRun)?;
    let row = stop
        .run_until_cancelled(store.verify_row(id.as_str()))
        .await;
    let outcomes = match row.ok_or(RunError::Stopped)? {
        Ok(Some(row)) => verify_rows(site, &[(id.as_str().to_owned(), row)]),
        Ok(None) => return Err(RunError::NotFound(id.clone())),
        Err(StoreError::Row(error)) => vec![unreadable(id.as_str(), &error)],
        Err(error) => return Err(error.into()),
    };
    batches.count_rows(outcomes).await;
    Ok(())
}

/// Converts the error of a statement that is not about a single row.
async fn unavailable<T>(
    reading: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    reading.await.map_err(StoreError::into_unavailable)
}

async fn count_one(
    tasks: &mut JoinSet<Vec<RowOutcome>>,
    batches: &mut BatchSet,
) -> Result<(), RunError> {
    if let Some(joined) = tasks.join_next().await {
        batches
            .count_rows(joined.map_err(|_| RunError::Panicked)?)
            .await;
        batches.check_failure_limit()?;
    }
    Ok(())
}

fn verify_rows(site: &Site, rows: &[(String, VerifyRow)]) -> Vec<RowOutcome> {
    let mut buffers = Buffers::default();
    let outcome = |(id, row): &(String, VerifyRow)| match verify(&site.keyring, row, &mut buffers) {
        Verified::Good {
            on_target,
            elsewhere,
        } => RowOutcome::Verified {
            on_target,
            elsewhere,
        },
        Verified::Bad(bad) => {
            let failures = bad.iter();
            RowOutcome::Failed(
                failures
                    .map(|(column, error)| Failure::of_secret(id, column, error))
                    .collect(),
            )
        }
    };
    rows.iter().map(outcome).collect()
}
