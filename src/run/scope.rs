//! Which rows a run comes to: those of the site, or that of one organization. A run that cannot
//! be sure to see every row does not end well.

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
        let store = &self.context.store;
        let both = future::join(store.preflight(), store.row(id.as_str()));
        let (preflight, row) = stop
            .run_until_cancelled(both)
            .await
            .ok_or(RunError::Stopped)?;
        fit(&preflight?, batches.mode())?;
        match row {
            Ok(Some(row)) => {
                batches.start(vec![row]).await?;
                batches.finish().await?;
            }
            Ok(None) => {}
            Err(StoreError::Row(error)) => {
                batches.count_rows(vec![unreadable(id.as_str(), &error)]);
            }
            Err(error) => return Err(error.into()),
        }
        if batches.report().rows_examined() > 0 {
            return Ok(());
        }
        // Not there, or deleted between the two, if that is not a policy or the index.
        fit(
            &until_stopped(stop, store.preflight()).await?,
            batches.mode(),
        )?;
        let in_table = until_stopped(stop, store.is_in_table(id.as_str())).await?;
        if in_table && store.row(id.as_str()).await?.is_none() {
            return Err(StoreError::from(store.index_is_wrong(1, 0).await?).into());
        }
        Err(RunError::NotFound(id.clone()))
    }

    pub(super) async fn site(
        &self,
        stop: &CancellationToken,
        batches: &mut BatchSet,
    ) -> Result<(), RunError> {
        let store = &self.context.store;
        let preflight = until_stopped(stop, store.preflight()).await?;
        fit(&preflight, batches.mode())?;
        until_stopped(stop, store.check_collation(&preflight)).await?;
        self.walk(stop, batches).await?;

        let repeated = batches.visited.settle();
        let mut passed_over = 0;
        loop {
            let is_visited = |id: &[u8]| batches.visited.contains(id);
            let sweep = store.sweep(preflight.moment, is_visited);
            let sweep = until_stopped(stop, sweep).await?;
            passed_over += sweep.passed_over;
            self.late(sweep.found, stop, batches).await?;
            if !sweep.more || passed_over > 0 {
                break;
            }
            batches.visited.settle();
        }
        // A policy can have come into force meanwhile.
        fit(
            &until_stopped(stop, store.preflight()).await?,
            batches.mode(),
        )?;
        if passed_over + repeated > 0 {
            let error = store.index_is_wrong(passed_over, repeated).await?;
            return Err(StoreError::from(error).into());
        }
        Ok(())
    }

    /// Follows the primary key's index from its first row to its last.
    async fn walk(&self, stop: &CancellationToken, batches: &mut BatchSet) -> Result<(), RunError> {
        let store = &self.context.store;
        let no_more_rows = batches.stop_token();
        let read = async |position: Option<Position>| -> Result<Page, RunError> {
            let Some(position) = position else {
                return Ok(Page::default());
            };
            let page = until_stopped(stop, store.page(&position)).await;
            if page.is_err() {
                // No row has to find out for itself.
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
            // An index in a wrong order can lead back to where the walk was before.
            next = next.filter(|next| positions.insert(next.clone()));
            for row in &rows {
                batches.visited.add(row.organization_id.as_bytes());
            }
            for row in broken {
                batches.visited.add(&row.id);
                let outcome = unreadable(&row.organization_id(), &row.error);
                batches.count_rows(vec![outcome]);
            }
            page = if store.options().database_pool_size == 1 {
                // Its own batches have the connection, for as long as they need it.
                batches.start_all(rows).await?;
                batches.finish().await?;
                read(next).await?
            } else {
                // The next page is on its way while this one is worked on; asked for first,
                // so that Postgres has something to do from the start.
                let (page, started) = future::join(read(next), batches.start_all(rows)).await;
                let page = page?;
                started?;
                page
            };
        }
        // Whoever watches the database does so until the last row is done.
        batches.finish().await
    }

    /// Works on rows that the walk did not come to.
    async fn late(
        &self,
        ids: Vec<String>,
        stop: &CancellationToken,
        batches: &mut BatchSet,
    ) -> Result<(), RunError> {
        let mut rows = Vec::new();
        for id in ids {
            batches.visited.add(id.as_bytes());
            let row = stop.run_until_cancelled(self.context.store.row(&id)).await;
            match row.ok_or(RunError::Stopped)? {
                Ok(Some(row)) => rows.push(row),
                Ok(None) => batches.visited.gone(&id),
                Err(StoreError::Row(error)) => {
                    batches.count_rows(vec![unreadable(&id, &error)]);
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

/// Whether a run may begin, or has seen everything.
fn fit(preflight: &Preflight, mode: Mode) -> Result<(), StoreError> {
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
            "it is a standby, and read-only for as long as it is one".to_owned(),
        )),
        (None, _) => Ok(()),
    }
}

/// One failure for each column that cannot be read, or one of the row as a whole.
fn unreadable(organization_id: &str, error: &RowError) -> RowOutcome {
    let failure = |field| Failure {
        organization_id: organization_id.to_owned(),
        field,
        error: error.to_string(),
    };
    match error {
        RowError::Unreadable { columns, .. } if !columns.is_empty() => {
            RowOutcome::Failed(columns.iter().copied().map(failure).collect())
        }
        _ => RowOutcome::Failed(vec![failure("")]),
    }
}
