//! Which rows a run comes to: those of the site, or that of one organization. A run that cannot
//! be sure to see every row does not end well.

use std::collections::HashSet;

use futures_util::future;

use super::{Failure, Mode, RunError, Runner, Tasks, report::RowOutcome};
use crate::{
    organization::OrganizationId,
    store::{Page, Position, Preflight, RowError, StoreError},
};

impl Runner {
    pub(super) async fn organization(
        &self,
        id: &OrganizationId,
        tasks: &mut Tasks,
        report: &mut super::Report,
    ) -> Result<(), RunError> {
        let store = &self.context.store;
        let both = future::join(store.preflight(), store.row(id.as_str()));
        let (preflight, row) = tasks.unless_stopped(both).await?;
        fit(&preflight?, tasks.mode)?;
        match row {
            Ok(Some(row)) => {
                tasks.start(vec![row], report).await?;
                tasks.finish(report).await?;
            }
            Ok(None) => {}
            Err(StoreError::Row(error)) => {
                tasks.count(vec![unreadable(id.as_str(), &error)], report);
            }
            Err(error) => return Err(error.into()),
        }
        if report.rows_examined() > 0 {
            return Ok(());
        }
        // Not there, or deleted between the two, if that is not a policy or the index.
        fit(&store.preflight().await?, tasks.mode)?;
        let in_table = tasks
            .unless_stopped(store.is_in_table(id.as_str()))
            .await??;
        if in_table && store.row(id.as_str()).await?.is_none() {
            return Err(StoreError::from(store.index_is_wrong(1, 0).await?).into());
        }
        Err(RunError::NotFound(id.clone()))
    }

    pub(super) async fn site(
        &self,
        tasks: &mut Tasks,
        report: &mut super::Report,
    ) -> Result<(), RunError> {
        let store = &self.context.store;
        let preflight = tasks.unless_stopped(store.preflight()).await??;
        fit(&preflight, tasks.mode)?;
        store.check_collation(&preflight).await?;
        self.walk(tasks, report).await?;

        let repeated = tasks.visited.settle();
        let mut passed_over = 0;
        loop {
            let is_visited = |id: &[u8]| tasks.visited.contains(id);
            let sweep = store.sweep(preflight.moment, is_visited);
            let sweep = tasks.unless_stopped(sweep).await??;
            passed_over += sweep.passed_over;
            self.late(sweep.found, tasks, report).await?;
            if !sweep.more || passed_over > 0 {
                break;
            }
            tasks.visited.settle();
        }
        // A policy can have come into force meanwhile.
        fit(&store.preflight().await?, tasks.mode)?;
        if passed_over + repeated > 0 {
            let error = store.index_is_wrong(passed_over, repeated).await?;
            return Err(StoreError::from(error).into());
        }
        Ok(())
    }

    /// Follows the primary key's index from its first row to its last.
    async fn walk(&self, tasks: &mut Tasks, report: &mut super::Report) -> Result<(), RunError> {
        let store = &self.context.store;
        let stop = tasks.stop.clone();
        let read = async |position: Option<Position>| -> Result<Page, RunError> {
            let Some(position) = position else {
                return Ok(Page::default());
            };
            let page = stop.run_until_cancelled(store.page(&position)).await;
            let page = page.ok_or(RunError::Stopped)?;
            if page.is_err() {
                // No row has to find out for itself.
                stop.cancel();
            }
            Ok(page?)
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
                tasks.visited.add(row.organization_id.as_bytes());
            }
            for row in broken {
                tasks.visited.add(&row.id);
                let outcome = unreadable(&row.organization_id(), &row.error);
                tasks.count(vec![outcome], report);
            }
            page = if store.options().max_connections == 1 {
                // Its own tasks have the connection, for as long as they need it.
                tasks.start_all(rows, report).await?;
                tasks.finish(report).await?;
                read(next).await?
            } else {
                // The next page is on its way while this one is worked on; asked for first,
                // so that Postgres has something to do from the start.
                let (page, started) = future::join(read(next), tasks.start_all(rows, report)).await;
                let page = page?;
                started?;
                page
            };
        }
        // Whoever watches the database does so until the last row is done.
        tasks.finish(report).await
    }

    /// Works on rows that the walk did not come to.
    async fn late(
        &self,
        ids: Vec<String>,
        tasks: &mut Tasks,
        report: &mut super::Report,
    ) -> Result<(), RunError> {
        let mut rows = Vec::new();
        for id in ids {
            tasks.visited.add(id.as_bytes());
            match tasks.unless_stopped(self.context.store.row(&id)).await? {
                Ok(Some(row)) => rows.push(row),
                Ok(None) => tasks.visited.gone(&id),
                Err(StoreError::Row(error)) => {
                    tasks.count(vec![unreadable(&id, &error)], report);
                }
                Err(error) => return Err(error.into()),
            }
            if Tasks::is_chunk(&rows) {
                tasks.start_all(std::mem::take(&mut rows), report).await?;
            }
        }
        tasks.start_all(rows, report).await?;
        tasks.finish(report).await
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
