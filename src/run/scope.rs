//! Runs over the whole site or over one organization. A run that may have missed rows ends
//! with an error.

use std::collections::HashSet;

use futures_util::future;

use tokio_util::sync::CancellationToken;

use super::{
    Failure, Mode, RunError, Runner, batch_set::BatchSet, report::RowOutcome, until_stopped,
};
use crate::{
    domain::organization::OrganizationId,
    store::{Page, Position, Preflight, RowError, StoreError},
};

impl Runner {
    pub(super) async fn organization(
        &self,
        id: &OrganizationId,
        stop: &CancellationToken,
        batches: &mut BatchSet,
    ) -> Result<(), RunError> {
        let store = &self.context.site.store;
        let both = future::join(store.preflight(), store.row(id.as_str()));
        let (preflight, row) = stop
            .run_until_cancelled(both)
            .await
            .ok_or(RunError::Stopped)?;
        check_preflight(&preflight?, batches.mode())?;
        match row {
            Ok(Some(row)) => {
                batches.start(vec![row]).await?;
                batches.finish().await?;
            }
            Ok(None) => {}
            Err(StoreError::Row(error)) => {
                batches
                    .count_rows(vec![unreadable(id.as_str(), &error)])
                    .await;
            }
            Err(error) => return Err(error.into()),
        }
        if batches.report().rows_examined() > 0 {
            return Ok(());
        }
        // The row does not exist or was deleted, unless a policy or the index hides it.
        check_preflight(
            &until_stopped(stop, store.preflight()).await?,
            batches.mode(),
        )?;
        let in_table = until_stopped(stop, store.is_in_table(id.as_str())).await?;
        if in_table && store.row(id.as_str()).await?.is_none() {
            return Err(StoreError::from(store.index_is_wrong(1, 0).await?).into());
        }
        Err(RunError::NotFound(id.clone()))
    }

    pub(super) async fn site_run(
        &self,
        stop: &CancellationToken,
        batches: &mut BatchSet,
    ) -> Result<(), RunError> {
        let store = &self.context.site.store;
        let preflight = until_stopped(stop, store.preflight()).await?;
        check_preflight(&preflight, batches.mode())?;
        until_stopped(stop, store.check_collation(&preflight)).await?;
        self.scan(stop, batches).await?;

        let mut repeated = batches.visited.settle();
        let mut passed_over = 0;
        loop {
            let visited = |id: &[u8]| batches.visited.position(id);
            let sweep = store.sweep(preflight.moment, visited);
            let sweep = until_stopped(stop, sweep).await?;
            passed_over += sweep.passed_over;
            repeated += sweep.repeated;
            self.process_missed(sweep.found, stop, batches).await?;
            if !sweep.more || passed_over > 0 {
                break;
            }
            batches.visited.settle();
        }
        // A policy may have come into force during the run.
        check_preflight(
            &until_stopped(stop, store.preflight()).await?,
            batches.mode(),
        )?;
        if passed_over + repeated > 0 {
            let error = store.index_is_wrong(passed_over, repeated).await?;
            return Err(StoreError::from(error).into());
        }
        Ok(())
    }

    /// Reads all rows along the index of the primary key.
    async fn scan(&self, stop: &CancellationToken, batches: &mut BatchSet) -> Result<(), RunError> {
        let store = &self.context.site.store;
        let no_more_rows = batches.stop_token();
        let read = async |position: Option<Position>| -> Result<Page, RunError> {
            let Some(position) = position else {
                return Ok(Page::default());
            };
            let page = until_stopped(stop, store.page(&position)).await;
            if page.is_err() {
                // Without the next page, the run has failed: start no more rows.
                no_more_rows.cancel();
            }
            page
        };
        let mut page = read(Some(Position::default())).await?;
        let mut positions = HashSet::new();
        loop {
            let Page {
                rows,
                unreadable: broken,
                mut next,
            } = page;
            if rows.is_empty() && broken.is_empty() {
                break;
            }
            // An index in a wrong order can lead back to an earlier position.
            next = next.filter(|next| positions.insert(next.clone()));
            for row in &rows {
                batches.visited.add(row.organization_id.as_bytes());
            }
            for row in broken {
                batches.visited.add(&row.id);
                let outcome = unreadable(&row.organization_id(), &row.error);
                batches.count_rows(vec![outcome]).await;
            }
            page = if store.options().database_pool_size == 1 {
                // The batches need the only connection, so do not read at the same time.
                batches.start_all(rows).await?;
                batches.finish().await?;
                read(next).await?
            } else {
                // Read the next page while the rows of this page are processed. The read
                // comes first, so that Postgres is busy from the start.
                let (page, started) = future::join(read(next), batches.start_all(rows)).await;
                let page = page?;
                started?;
                page
            };
        }
        // The rate controller must run until the last row is done.
        batches.finish().await
    }

    /// Processes rows that the scan along the index missed.
    async fn process_missed(
        &self,
        ids: Vec<String>,
        stop: &CancellationToken,
        batches: &mut BatchSet,
    ) -> Result<(), RunError> {
        let mut rows = Vec::new();
        for id in ids {
            batches.visited.add(id.as_bytes());
            let row = stop
                .run_until_cancelled(self.context.site.store.row(&id))
                .await;
            match row.ok_or(RunError::Stopped)? {
                Ok(Some(row)) => rows.push(row),
                Ok(None) => batches.visited.gone(&id),
                Err(StoreError::Row(error)) => {
                    batches.count_rows(vec![unreadable(&id, &error)]).await;
                }
                Err(error) => return Err(error.into()),
            }
            if BatchSet::is_batch(&rows) {
                batches.start_all(std::mem::take(&mut rows)).await?;
            }
        }
        batches.start_all(rows).await?;
        batches.finish().await
    }
}

/// Checks whether a run may begin, or whether it could have missed rows.
pub(super) fn check_preflight(preflight: &Preflight, mode: Mode) -> Result<(), StoreError> {
    if let Some(fault) = &preflight.unfit {
        return Err(fault.clone().into());
    }
    match (&preflight.unwritable, mode) {
        (Some(fault), Mode::Apply) => Err(fault.clone().into()),
        (Some(fault), Mode::DryRun) => {
            tracing::warn!(reason = fault.reason(), %fault, "no row could be written");
            Ok(())
        }
        (None, Mode::Apply) if preflight.is_standby => Err(StoreError::Unavailable(
            "it is a standby, which is read-only until it is promoted".to_owned(),
        )),
        (None, _) => Ok(()),
    }
}

/// One failure for each unreadable column, or one for the row as a whole.
pub(super) fn unreadable(organization_id: &str, error: &RowError) -> RowOutcome {
    let failure = |field| Failure::of_row(organization_id, field, error);
    match error {
        RowError::Unreadable { columns, .. } if !columns.is_empty() => {
            RowOutcome::Failed(columns.iter().copied().map(failure).collect())
        }
        _ => RowOutcome::Failed(vec![failure("")]),
    }
}
