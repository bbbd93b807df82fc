//! A verify: decrypts every secret and checks its content. It writes nothing.

use std::sync::Arc;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{
    Failure, Mode, RunError, Site,
    batch_set::BatchSet,
    failure_limit::FailureLimit,
    pacer::Pacer,
    readable::{check_preflight, unreadable},
    report::RowOutcome,
    spans::{length, read_page, set_batch_end},
    until_stopped,
};
use crate::{
    domain::{
        envelope::Buffers,
        organization::OrganizationId,
        verify::{Verified, VerifyRow, verify},
    },
    store::{StoreError, VerifyScan},
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
    let mut tasks = JoinSet::new();
    let mut result = verify_all(site, &mut scan, pacer, stop, batches, &mut tasks).await;
    // Even after an error, so that all their rows are counted.
    while !tasks.is_empty() {
        result = result.and(count_one(&mut tasks, batches).await);
    }
    result?;
    unavailable(scan.finish()).await?;
    // A row-level security policy may have been created during the run.
    check_preflight(&until_stopped(stop, store.preflight()).await?, Mode::DryRun)?;
    Ok(())
}

/// Starts tasks for all rows of the scan.
async fn verify_all(
    site: &Arc<Site>,
    scan: &mut VerifyScan<'_>,
    pacer: &Pacer,
    stop: &CancellationToken,
    batches: &mut BatchSet,
    tasks: &mut JoinSet<TaskEnd>,
) -> Result<(), RunError> {
    let parallel = std::thread::available_parallelism().map_or(1, usize::from);
    let trace = batches.trace();
    while let Some(rows) = read_page(&trace, stop, unavailable(scan.next()), length).await? {
        let mut readable = Vec::with_capacity(rows.len());
        for row in rows {
            match row {
                Ok(row) => readable.push(row),
                Err(row) => {
                    batches.check_failure_limit()?;
                    let outcome = unreadable(&row.organization_id(), &row.error);
                    batches.count_rows(vec![outcome]).await;
                }
            }
        }
        while !readable.is_empty() {
            let rest = readable.split_off(readable.len().min(TASK_ROWS));
            let rows = std::mem::replace(&mut readable, rest);
            while tasks.len() >= parallel {
                count_one(tasks, batches).await?;
            }
            batches.check_failure_limit()?;
            let paced = stop
                .run_until_cancelled(pacer.acquire_all(rows.len()))
                .await;
            paced.ok_or(RunError::Stopped)?;
            let (site, limit) = (site.clone(), batches.failure_limit());
            let span = trace.span("batch");
            tasks.spawn(async move {
                let end = verify_rows(&site, &rows, &limit);
                set_batch_end(&span, &end.0, 0, &end.1);
                end
            });
        }
    }
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
        Ok(Some(row)) => {
            let mut buffers = Buffers::default();
            vec![verify_row(site, id.as_str(), &row, &mut buffers)]
        }
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

/// The outcomes of a task, and why it has not verified all its rows.
type TaskEnd = (Vec<RowOutcome>, Result<(), RunError>);

async fn count_one(tasks: &mut JoinSet<TaskEnd>, batches: &mut BatchSet) -> Result<(), RunError> {
    match tasks.join_next().await {
        Some(Ok((outcomes, result))) => {
            batches.add_rows(outcomes).await;
            result
        }
        Some(Err(_)) => Err(RunError::Panicked),
        None => Ok(()),
    }
}

fn verify_rows(site: &Site, rows: &[(String, VerifyRow)], limit: &FailureLimit) -> TaskEnd {
    let mut buffers = Buffers::default();
    let mut outcomes = Vec::with_capacity(rows.len());
    for (id, row) in rows {
        if let Err(reached) = limit.check() {
            return (outcomes, Err(reached));
        }
        let outcome = verify_row(site, id, row, &mut buffers);
        limit.count(&outcome);
        outcomes.push(outcome);
    }
    (outcomes, Ok(()))
}

fn verify_row(site: &Site, id: &str, row: &VerifyRow, buffers: &mut Buffers) -> RowOutcome {
    match verify(&site.keyring, row, buffers) {
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
    }
}
