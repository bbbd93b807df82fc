//! The progress of a run, while it is in progress and at its end.

use std::{convert::Infallible, sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval};

use crate::{
    run::{Meter, RunSpec, Sampler, Scope, history::LiveRun, record::Progress},
    telemetry,
};

/// How often the progress of a run is published.
const PROGRESS: Duration = Duration::from_millis(500);

/// Counts a run in the metrics until the value is dropped.
pub(super) fn in_progress(spec: &RunSpec, meter: &Arc<Meter>) -> impl Drop + use<> {
    let meter = meter.clone();
    let is_site = spec.scope == Scope::Site;
    telemetry::run_started(spec.kind.label(), is_site, move || meter.gauges())
}

/// Publishes the progress of a run until the future is dropped.
pub(super) async fn publish(live: &LiveRun, meter: &Meter) -> Infallible {
    let mut sampler = Sampler::new();
    let mut ticks = interval(PROGRESS);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let progress = sampler.sample(meter);
        let counts = meter.counts();
        live.update(|record| {
            record.progress = progress;
            record.counts_so_far = counts;
        });
    }
}

/// Publishes the progress at the end of a run.
pub(super) fn publish_last(live: &LiveRun, meter: &Meter, is_complete: bool) {
    let last = live.record().progress;
    let rows_done = meter.rows_done();
    let progress = Progress {
        rows_done,
        // After a complete run, the number of rows is known exactly.
        rows_total: if is_complete {
            rows_done
        } else {
            last.rows_total
        },
        rate_limit: None,
        remaining: None,
        ..last
    };
    live.update(|record| record.progress = progress);
}
