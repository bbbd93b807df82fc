//! The runs in progress, for the metrics. Their gauges are absent while there is no run.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use metrics::gauge;

use super::{
    catalog::{RATE_LIMIT, RUN_IN_PROGRESS, RUN_ROWS_DONE, RUN_ROWS_EXPECTED},
    metrics::UNKNOWN,
};

/// How far a run is now.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct RunGauges {
    /// Evaluated rows.
    pub(crate) rows_done: f64,
    /// An estimate of the number of rows. `None` if there is none.
    pub(crate) rows_expected: Option<f64>,
    /// The limit of the adaptive rate. `None` if there is none.
    pub(crate) rate_limit: Option<f64>,
}

/// Reads the gauges of a run.
type Read = Arc<dyn Fn() -> RunGauges + Send + Sync>;

/// The runs in progress, in the order of their starts.
#[derive(Default)]
struct Runs {
    last: u64,
    runs: Vec<(u64, Rank, Read)>,
}

/// Whether the run covers the site, and how much its kind matters. Several runs can be in
/// progress at once: during an apply, the server takes censuses.
type Rank = (bool, u8);

static RUNS: Mutex<Runs> = Mutex::new(Runs {
    last: 0,
    runs: Vec::new(),
});

/// A run in progress. Dropping it ends the run.
#[derive(Debug)]
pub(crate) struct RunInProgress {
    number: u64,
    kind: &'static str,
}

/// A run of this kind starts. `read` gives its gauges until the end.
pub(crate) fn run_started(
    kind: &'static str,
    is_site: bool,
    read: impl Fn() -> RunGauges + Send + Sync + 'static,
) -> RunInProgress {
    gauge!(RUN_IN_PROGRESS, "kind" => kind).increment(1.0);
    let mut runs = lock();
    runs.last += 1;
    let number = runs.last;
    runs.runs
        .push((number, (is_site, weight(kind)), Arc::new(read)));
    RunInProgress { number, kind }
}

impl Drop for RunInProgress {
    fn drop(&mut self) {
        gauge!(RUN_IN_PROGRESS, "kind" => self.kind).decrement(1.0);
        lock().runs.retain(|(number, _, _)| *number != self.number);
    }
}

fn weight(kind: &str) -> u8 {
    match kind {
        "apply" => 3,
        "verify" => 2,
        "dry_run" => 1,
        _ => 0,
    }
}

/// Sets the gauges to those of the run that matters most; of several, the oldest.
pub(super) fn publish() {
    let read = lock().most_important();
    let gauges = read.map(|read| read());
    let value = |value: Option<f64>| value.unwrap_or(UNKNOWN);
    gauge!(RUN_ROWS_DONE).set(value(gauges.map(|gauges| gauges.rows_done)));
    gauge!(RUN_ROWS_EXPECTED).set(value(gauges.and_then(|gauges| gauges.rows_expected)));
    gauge!(RATE_LIMIT).set(value(gauges.and_then(|gauges| gauges.rate_limit)));
}

impl Runs {
    fn most_important(&self) -> Option<Read> {
        let oldest_first = self.runs.iter().rev();
        let run = oldest_first.max_by_key(|(_, rank, _)| *rank);
        run.map(|(_, _, read)| read.clone())
    }
}

fn lock() -> MutexGuard<'static, Runs> {
    // A panic cannot leave the list half changed.
    RUNS.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_site_wide_apply_matters_most() {
        let mut runs = Runs::default();
        let kinds = [
            (false, "apply"),
            (true, "census"),
            (true, "dry_run"),
            (true, "apply"),
            (true, "apply"),
            (false, "verify"),
        ];
        assert!(runs.most_important().is_none());
        for (number, (is_site, kind)) in (1_u8..).zip(kinds) {
            let gauges = RunGauges {
                rows_done: number.into(),
                ..RunGauges::default()
            };
            let rank = (is_site, weight(kind));
            runs.runs
                .push((number.into(), rank, Arc::new(move || gauges)));
        }
        let most_important = |runs: &Runs| runs.most_important().unwrap()().rows_done;
        assert_eq!(most_important(&runs), 4.0);
        runs.runs.truncate(2);
        assert_eq!(most_important(&runs), 2.0);
    }
}
