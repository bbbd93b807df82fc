//! What all runs of an instance share.

use std::sync::Arc;

use tokio::sync::{Semaphore, SemaphorePermit, watch};

use super::{Site, own_texts::OwnTexts, pacer::Pacer};
use crate::store::{StoreError, Writer};

/// The site and the limits of all runs.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) site: Arc<Site>,
    /// Permits for the connections of site-wide runs that write: one fewer than there are
    /// connections, so that reading a page never waits for a locked row.
    pub(super) writer_permits: Semaphore,
    pub(super) pacer: Pacer,
    /// The limit of `pacer`. Zero means no limit.
    pub(super) max_rows_per_second: u32,
    /// Whether a site-wide apply adapts its rate to the load.
    pub(super) adaptive_rate: bool,
    /// The reason why a run makes no progress. `None` if it makes progress.
    pub(super) stall: watch::Sender<Option<String>>,
    /// The texts that this process has written.
    pub(super) own_texts: OwnTexts,
}

impl Context {
    /// Takes a connection to write with, when one is free.
    ///
    /// A site-wide run waits for its other tasks, whose statements have time limits. A run
    /// of one organization must not wait for the rows of another run. If all permits are
    /// taken, it uses the reserved connection.
    pub(super) async fn writer(
        &self,
        is_site: bool,
    ) -> Result<(Writer<'_>, Option<SemaphorePermit<'_>>), StoreError> {
        if is_site {
            // The semaphore is never closed.
            let permit = self.writer_permits.acquire().await.ok();
            return Ok((self.site.store.writer().await?, permit));
        }
        match self.writer_permits.try_acquire() {
            Ok(permit) => Ok((self.site.store.writer().await?, Some(permit))),
            Err(_) => Ok((self.site.store.reserve_writer().await?, None)),
        }
    }
}
