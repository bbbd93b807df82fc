//! Reports what a run without progress waits for: a lock, or a synchronous standby. A run
//! that makes progress sends no query for this.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::sleep;

use super::Context;
use crate::telemetry;

/// After this time without progress, this program asks Postgres what the run waits for.
const INTERVAL: Duration = Duration::from_secs(2);

/// Number of intervals between two log lines about the same wait.
const LOG_EVERY: u32 = 15;

/// Publishes the wait of a run. Clears it when the run continues or ends.
struct Stall<'a>(&'a Context);

impl Stall<'_> {
    fn set(&self, wait: Option<String>) {
        telemetry::run_stalled(wait.is_some());
        self.0.stall.send_if_modified(|current| {
            let changed = *current != wait;
            *current = wait;
            changed
        });
    }
}

impl Drop for Stall<'_> {
    fn drop(&mut self) {
        self.set(None);
    }
}

/// Watches a run until the future is dropped. `progress` changes when rows are done.
pub(super) async fn watch(context: &Context, progress: Arc<AtomicU64>) -> Infallible {
    let stall = Stall(context);
    let mut last = u64::MAX;
    let mut checks = 0;
    loop {
        let paced = context.pacer.rows();
        let now = progress.load(Ordering::Relaxed).wrapping_add(paced);
        let is_stalled = now == last;
        last = now;
        if is_stalled {
            let wait = context.site.store.wait().await.ok().flatten();
            if let Some(wait) = &wait
                && checks % LOG_EVERY == 0
            {
                tracing::warn!("the run makes no progress: {wait}");
            }
            checks += 1;
            stall.set(wait.map(|wait| wait.to_string()));
        } else {
            checks = 0;
            stall.set(None);
        }
        sleep(INTERVAL).await;
    }
}
