//! Runs over the whole site or over one organization. A run that may have missed rows ends
//! with an error.

use std::collections::HashSet;

use futures_util::future;

use tokio_util::sync::CancellationToken;

use super::{
    RunError, Runner,
    batch_set::BatchSet,
    readable::{check_preflight, unreadable},
    spans::{read_page, set_error},
    until_stopped,
};
use crate::{
    domain::organization::OrganizationId,
    failpoint::{Point, reach},
    store::{Hidden, Page, Position, Row, SetupError, StoreError},
};

/// Rows with larger texts than this are not read ahead, in bytes.
const LARGE_ROW_BYTES: usize = 64 << 10;

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
        // A trigger could be created after the check. For one row, the second read costs little.
        batches.verify_writes(true);
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
        batches.verify_writes(preflight.late_triggers.is_some());
        let damage = self.scan(stop, batches).await?;

        let mut repeated = batches.visited.settle();
        let mut passed_over = 0;
        let damaged_blocks = loop {
            let visited = |id: &[u8]| batches.visited.position(id);
            let span = batches.trace().span("sweep");
            let sweep = store.sweep(preflight.moment, visited);
            let sweep = until_stopped(stop, sweep).await;
            let sweep = sweep.inspect_err(|error| set_error(&span, error))?;
            drop(span);
            passed_over += sweep.passed_over;
            repeated += sweep.repeated;
            let processed = self.process_missed(sweep.found, stop, batches).await?;
            batches.visited.settle();
            if !sweep.more || passed_over > 0 || processed == 0 {
                break sweep.damaged_blocks;
            }
        };
        let damage = match damaged_blocks {
            0 => damage.map(Hidden::ByDamage),
            blocks => Some(Hidden::InDamagedBlocks(blocks)),
        };
        if damage.is_some() {
            Box::pin(self.name_unreadable(stop, batches)).await?;
        }
        // A policy or a trigger may have been created or enabled during the run.
        let at_end = until_stopped(stop, store.preflight()).await?;
        check_preflight(&at_end, batches.mode())?;
        if passed_over + repeated > 0 {
            let error = store.index_is_wrong(passed_over, repeated).await?;
            return Err(StoreError::from(error).into());
        }
        if let Some(damage) = damage {
            return Err(StoreError::from(SetupError::from(damage)).into());
        }
        match at_end.late_triggers {
            Some(triggers)
                if preflight.late_triggers.is_none()
                    && batches.report().counts.rows_updated > 0 =>
            {
                Err(StoreError::from(SetupError::TriggerCreated(triggers)).into())
            }
            _ => Ok(()),
        }
    }

    /// Counts the organizations whose rows are in a part of the table that Postgres cannot
    /// read, if their ids are known.
    async fn name_unreadable(
        &self,
        stop: &CancellationToken,
        batches: &mut BatchSet,
    ) -> Result<(), RunError> {
        let store = &self.context.site.store;
        let visited = |id: &[u8]| batches.visited.position(id).is_some();
        let found = until_stopped(stop, store.unreadable_organizations(visited)).await?;
        let outcomes = found.iter().map(|(id, error)| unreadable(id, error));
        batches.count_rows(outcomes.collect()).await;
        Ok(())
    }

    /// Reads all rows along the index of the primary key. Returns the SQLSTATE if a part of
    /// the table or of the index cannot be read.
    async fn scan(
        &self,
        stop: &CancellationToken,
        batches: &mut BatchSet,
    ) -> Result<Option<String>, RunError> {
        let store = &self.context.site.store;
        let no_more_rows = batches.stop_token();
        let trace = batches.trace();
        let read = async |position: Option<Position>| -> Result<Page, RunError> {
            let Some(position) = position else {
                return Ok(Page::default());
            };
            let rows = |page: &Page| page.rows.len() + page.unreadable.len();
            let page = read_page(&trace, stop, store.page(&position), rows).await;
            if page.is_err() {
                // If the next page cannot be read, the run has failed: start no more rows.
                no_more_rows.cancel();
            }
            page
        };
        let mut page = read(Some(Position::default())).await?;
        let mut positions = HashSet::new();
        let mut damage = None;
        loop {
            let Page {
                rows,
                unreadable: broken,
                mut next,
                damage: damage_here,
            } = page;
            damage = damage.or(damage_here);
            if rows.is_empty() && broken.is_empty() && next.is_none() {
                break;
            }
            // An index in a wrong order can lead back to an earlier position.
            next = next.filter(|next| positions.insert(next.clone()));
            reach(Point::PageRead);
            for row in &rows {
                batches.visited.add(row.organization_id.as_bytes());
            }
            for row in broken {
                batches.check_failure_limit()?;
                batches.visited.add(&row.id);
                let outcome = unreadable(&row.organization_id(), &row.error);
                batches.count_rows(vec![outcome]).await;
            }
            page = if store.options().database_pool_size == 1 || has_large_rows(&rows) {
                // Do not read ahead: the batches need the only connection, or the rows need most of
                // the memory.
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
        batches.finish().await?;
        Ok(damage)
    }

    /// Processes rows that the scan along the index missed. Returns how many still exist.
    async fn process_missed(
        &self,
        ids: Vec<String>,
        stop: &CancellationToken,
        batches: &mut BatchSet,
    ) -> Result<usize, RunError> {
        let mut rows = Vec::new();
        let mut existing = 0;
        for id in ids {
            batches.visited.add(id.as_bytes());
            let row = stop
                .run_until_cancelled(self.context.site.store.row(&id))
                .await;
            match row.ok_or(RunError::Stopped)? {
                Ok(Some(row)) => {
                    existing += 1;
                    rows.push(row);
                }
                Ok(None) => batches.visited.gone(&id),
                Err(StoreError::Row(error)) => {
                    existing += 1;
                    batches.count_rows(vec![unreadable(&id, &error)]).await;
                }
                Err(error) => return Err(error.into()),
            }
            if BatchSet::is_batch(&rows) {
                batches.start_all(std::mem::take(&mut rows)).await?;
            }
        }
        batches.start_all(rows).await?;
        batches.finish().await?;
        Ok(existing)
    }
}

/// Whether these rows take so much memory that the next page must not be read yet.
fn has_large_rows(rows: &[Row]) -> bool {
    rows.iter().any(|row| row.bytes() > LARGE_ROW_BYTES)
}
