//! Limits the runs of this process: how many at once, and one site-wide apply.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::error::ServiceError;
use crate::run::{guard::Holder, history::History};

/// How long a site-wide apply waits for the end of a stopped one. A stop takes two seconds.
const STOPPING_APPLY_LIMIT: Duration = Duration::from_secs(4);

/// The slots for runs.
pub(super) struct Slots {
    runs: Arc<Semaphore>,
    site_apply: Arc<Semaphore>,
    /// The last site-wide apply that was started.
    applying: Mutex<Applying>,
}

/// A site-wide apply of this process.
#[derive(Default)]
struct Applying {
    /// Stops this apply.
    stop: CancellationToken,
    run_id: String,
}

impl Slots {
    /// Slots for `max_runs` concurrent runs.
    pub(super) fn new(max_runs: u32) -> Self {
        Self {
            runs: Arc::new(Semaphore::new(max_runs as usize)),
            site_apply: Arc::new(Semaphore::new(1)),
            applying: Mutex::default(),
        }
    }

    /// Acquires one of the slots and, for a site-wide apply, the only slot for site-wide applies.
    /// `stop` is the token that stops the run. If another apply holds that slot, the error names
    /// its run, as the history has it.
    ///
    /// If a site-wide apply is stopping, the next one waits for its end. Otherwise a client that
    /// calls again after its deadline would be refused because of its own earlier call.
    pub(super) async fn acquire(
        &self,
        run_id: &str,
        is_site_apply: bool,
        stop: &CancellationToken,
        history: &History,
    ) -> Result<Vec<OwnedSemaphorePermit>, ServiceError> {
        let one_of_many = self.runs.clone().try_acquire_owned();
        let mut permits = vec![one_of_many.map_err(|_| ServiceError::TooManyRuns)?];
        if is_site_apply {
            let limit = if self.applying().stop.is_cancelled() {
                STOPPING_APPLY_LIMIT
            } else {
                Duration::ZERO
            };
            let only_one = timeout(limit, self.site_apply.clone().acquire_owned()).await;
            let Some(only_one) = only_one.ok().and_then(Result::ok) else {
                let holder = self.applying().run_id.clone();
                let holder = history.get(&holder).await.ok();
                let holder = holder.as_ref().map(Holder::of);
                return Err(ServiceError::ApplyUnderWay(holder.map(Box::new)));
            };
            permits.push(only_one);
            *self.applying() = Applying {
                stop: stop.clone(),
                run_id: run_id.to_owned(),
            };
        }
        Ok(permits)
    }

    fn applying(&self) -> MutexGuard<'_, Applying> {
        self.applying.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
