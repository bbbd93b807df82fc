//! Compares the site config and the secrets file with their content at the start. The program
//! does not reload them.

use std::time::Duration;

use tokio::{
    sync::watch::Receiver,
    time::{Instant, MissedTickBehavior, interval_at},
};

use crate::{
    config::{Change, OnDisk},
    telemetry::{self, readiness::Readiness},
};

/// Makes the metric of every source present.
pub(super) fn register() {
    for source in OnDisk::SOURCES {
        telemetry::changed_on_disk(source, false);
    }
}

/// Compares the files every `period`, and whenever `reload_signal` changes.
pub(super) async fn watch(
    mut on_disk: OnDisk,
    period: Duration,
    mut reload_signal: Receiver<u64>,
    readiness: Readiness,
) {
    let mut last = Vec::new();
    let mut ticks = interval_at(Instant::now() + period, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            Ok(()) = reload_signal.changed() => {}
        }
        // Blocking: the disk may be slow. The time for each file is limited.
        let comparison = tokio::task::spawn_blocking(move || {
            let changes = on_disk.changes();
            (on_disk, changes)
        });
        let Ok((same, changes)) = comparison.await else {
            tracing::error!("comparing the files with the start panicked: this is a bug");
            return;
        };
        on_disk = same;
        report(&last, &changes, &readiness);
        last = changes;
    }
}

/// Reports the changes. The log says only what is new.
fn report(last: &[Change], changes: &[Change], readiness: &Readiness) {
    for source in OnDisk::SOURCES {
        let find = |changes: &[Change]| {
            let change = changes.iter().find(|change| change.source == source);
            change.map(|change| change.text.clone())
        };
        match (find(last), find(changes)) {
            (before, Some(now)) if before.as_ref() != Some(&now) => tracing::warn!(
                source,
                change = now,
                "changed on disk since the start: restart nico-rewrap to read it"
            ),
            (Some(_), None) => tracing::info!(
                source,
                "the content on disk is the same as at the start again"
            ),
            _ => {}
        }
        telemetry::changed_on_disk(source, find(changes).is_some());
    }
    let texts = changes.iter().map(|change| change.text.clone());
    readiness.set_changed_on_disk(texts.collect());
}
