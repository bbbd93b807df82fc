//! The load of the database as runs measure it. The gauges are absent while no run measures.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use metrics::gauge;

use super::{
    catalog::{COMMIT_BASELINE_SECONDS, COMMIT_SECONDS, REPLICA_LAG_SECONDS},
    metrics::UNKNOWN,
};

/// How many runs measure the load.
static MEASURING: Mutex<u32> = Mutex::new(0);

/// A run that measures the load until it is dropped.
pub(crate) struct LoadGauges(());

impl LoadGauges {
    /// A run starts to measure.
    pub(crate) fn new() -> Self {
        *MEASURING.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Self(())
    }

    /// A probe found this latency of its commit, this latency without the run, and this lag of
    /// the slowest replica. `None` is unknown.
    #[expect(
        clippy::unused_self,
        reason = "only a run that measures may set the gauges"
    )]
    pub(crate) fn set(
        &self,
        commit: Duration,
        baseline: Option<Duration>,
        replica_lag: Option<Duration>,
    ) {
        set(Some(commit), baseline, replica_lag);
    }
}

impl Drop for LoadGauges {
    fn drop(&mut self) {
        let mut measuring = MEASURING.lock().unwrap_or_else(PoisonError::into_inner);
        *measuring -= 1;
        if *measuring == 0 {
            set(None, None, None);
        }
    }
}

fn set(commit: Option<Duration>, baseline: Option<Duration>, replica_lag: Option<Duration>) {
    let seconds = |time: Option<Duration>| time.map_or(UNKNOWN, |time| time.as_secs_f64());
    gauge!(COMMIT_SECONDS).set(seconds(commit));
    gauge!(COMMIT_BASELINE_SECONDS).set(seconds(baseline));
    gauge!(REPLICA_LAG_SECONDS).set(seconds(replica_lag));
}
