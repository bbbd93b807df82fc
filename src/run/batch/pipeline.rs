//! Writes rows on one connection, several at a time.

use std::collections::VecDeque;

use futures_util::{
    FutureExt, StreamExt,
    future::{Fuse, FusedFuture},
    stream::FuturesUnordered,
};

use super::Batch;
use crate::{
    run::{RunError, pending::Pending},
    store::Writer,
};

impl Batch {
    /// Writes rows on one connection, up to `pipeline_depth` at a time. Rows that change faster
    /// than they can be written come last, each under a lock. If the limit of failed rows is
    /// reached, all other rows stay open.
    pub(super) async fn write(
        &self,
        writer: &mut Writer<'_>,
        rows: &mut [Pending],
    ) -> Result<(), RunError> {
        self.write_pipelined(writer, rows).await?;
        for row in rows.iter_mut().filter(|row| row.is_open()) {
            if self.stop.is_cancelled() {
                return Err(RunError::Stopped);
            }
            if self.failure_limit.is_reached() {
                break;
            }
            self.replace_locked(writer, row).await?;
        }
        Ok(())
    }

    async fn write_pipelined(
        &self,
        writer: &Writer<'_>,
        rows: &mut [Pending],
    ) -> Result<(), RunError> {
        let depth = self.context.site.store.options().pipeline_depth;
        let mut todo: VecDeque<_> = rows.iter_mut().filter(|row| row.is_open()).collect();
        let mut in_flight = FuturesUnordered::new();
        let mut acquire = std::pin::pin!(Fuse::terminated());
        let mut silence = std::pin::pin!(writer.silence());
        // Number of rows that may be sent now.
        let mut due = 0;
        loop {
            if self.failure_limit.is_reached() {
                todo.clear();
            }
            while due > 0
                && in_flight.len() < depth
                && let Some(row) = todo.pop_front()
            {
                in_flight.push(self.replace(writer, row));
                due -= 1;
            }
            if due == 0 && acquire.is_terminated() && !todo.is_empty() && !self.stop.is_cancelled()
            {
                acquire.set(self.acquire(todo.len()).fuse());
            }
            let waits_for_pacer = !acquire.is_terminated();
            tokio::select! {
                Some(result) = in_flight.next() => result?,
                rows = acquire.as_mut(), if waits_for_pacer => due = rows,
                () = self.stop.cancelled(), if waits_for_pacer => acquire.set(Fuse::terminated()),
                error = silence.as_mut(), if !in_flight.is_empty() => return Err(error.into()),
                else => return Ok(()),
            }
        }
    }

    /// Waits until the limits of this run and of all runs together allow more rows.
    async fn acquire(&self, rows: usize) -> usize {
        let rows = self.pacer.acquire(rows).await;
        self.context.pacer.acquire(rows).await
    }
}
