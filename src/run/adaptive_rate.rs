//! Adapts the rate of writes while others use the database.
//!
//! A run that is alone on the database writes without a limit. If others use the database, the
//! run starts slowly. It becomes faster while a durable commit takes only a little longer than
//! without the run. It becomes slower when commits take longer, or when a replica lags.
//!
//! The limit for the latency is a factor, because disks are very different. The run measures
//! the latency of a commit without its own load before it starts. It repeats this in pauses
//! of a few milliseconds, because the latency of a disk changes over time.

use std::{convert::Infallible, time::Duration};

use tokio::time::{Instant, sleep, timeout};

use super::{pacer::Pacer, progress::Meter};
use crate::{
    store::{LoadProbe, LoadSample, Store, StoreError},
    telemetry::LoadGauges,
};

/// Time between two load samples.
const INTERVAL: Duration = Duration::from_millis(100);

/// Number of load samples between two pauses.
const SAMPLES_PER_PAUSE: usize = 10;

/// Limit for a pause, even if its commit has not ended: a commit can wait for a synchronous
/// replica for minutes.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Number of commits that measure the baseline latency, and the time limit for all of them.
const BASELINE_COMMITS: usize = 15;
const BASELINE_LIMIT: Duration = Duration::from_secs(2);

/// Rows per second: the initial limit while others use the database, and the lowest limit.
const INITIAL_RATE: f64 = 2000.0;
const MIN_RATE: f64 = 200.0;

/// How a sample changes the limit. The limit is stable if one commit in eight is slow.
const INCREASE: f64 = 1.05;
const DECREASE: f64 = 0.7;

/// A commit is slow if it takes longer than the baseline times this factor, plus a
/// tolerance for the inaccuracy of the timer.
const LATENCY_FACTOR: f64 = 1.75;
const LATENCY_TOLERANCE: Duration = Duration::from_micros(300);

/// The factor by which a commit in a pause moves the baseline. It does not depend on how
/// slow the commit was: one very slow commit is an outlier of the disk.
const BASELINE_STEP: f64 = 1.1;

/// A replica with more lag than this makes the run slower.
const REPLICA_LAG: Duration = Duration::from_secs(5);

/// Measures the load of the database and sets the limit of `pacer`, until it is dropped.
pub(super) struct RateController<'a> {
    load_probe: LoadProbe<'a>,
    pacer: &'a Pacer,
    meter: &'a Meter,
    rule: RateRule,
    gauges: LoadGauges,
}

impl<'a> RateController<'a> {
    /// Measures the baseline latency before the run. If that fails, the first successful
    /// sample sets the baseline.
    ///
    /// The rates of a run whose rows cost the database less are `scale` times those of an
    /// apply.
    pub(super) async fn new(
        store: &'a Store,
        pacer: &'a Pacer,
        scale: f64,
        meter: &'a Meter,
    ) -> Self {
        let mut commits = Vec::with_capacity(BASELINE_COMMITS);
        let mut last = None;
        let mut load_probe = store.load_probe();
        let baseline = async {
            while commits.len() < BASELINE_COMMITS
                && let Ok(sample) = load_probe.sample().await
            {
                commits.push(sample.commit);
                last = Some(sample);
            }
        };
        // A synchronous standby that does not answer must not block the run.
        let _ = timeout(BASELINE_LIMIT, baseline).await;
        commits.sort_unstable();
        let baseline = commits.get(commits.len() / 2).copied();
        let mut controller = Self {
            load_probe,
            pacer,
            meter,
            rule: RateRule::new(baseline, scale),
            gauges: LoadGauges::new(),
        };
        if let Some(sample) = last {
            controller.apply(&sample, 0.0);
        }
        controller
    }

    /// Measures until the future is dropped. It never returns.
    pub(super) async fn watch(mut self) -> Infallible {
        let mut failing = false;
        loop {
            match self.sample_and_pause().await {
                Ok(()) => failing = false,
                Err(error) => {
                    if !failing {
                        tracing::warn!(
                            %error,
                            "cannot measure the load of the database: the rate limit does not change"
                        );
                    }
                    failing = true;
                }
            }
        }
    }

    async fn sample_and_pause(&mut self) -> Result<(), StoreError> {
        let mut limit = None;
        for _ in 0..SAMPLES_PER_PAUSE {
            let (then, rows) = (Instant::now(), self.pacer.rows());
            sleep(INTERVAL).await;
            let sample = self.load_probe.sample().await?;
            #[expect(clippy::cast_precision_loss, reason = "a rate, not a count")]
            let rows = (self.pacer.rows() - rows) as f64;
            limit = self.apply(&sample, rows / then.elapsed().as_secs_f64());
        }
        if limit.is_some() {
            let commit = async {
                // The first sample waits for the statements that are still in flight.
                self.load_probe.sample().await?;
                Ok::<_, StoreError>(self.load_probe.sample().await?.commit)
            };
            let commit = self.pacer.pause_for(LONGEST_PAUSE, commit).await;
            self.rule.learn(commit.unwrap_or(Ok(LONGEST_PAUSE))?);
        }
        Ok(())
    }

    fn apply(&mut self, sample: &LoadSample, rate: f64) -> Option<f64> {
        let limit = self.rule.next(sample, rate);
        self.pacer.limit_rate_to(limit);
        self.meter.set_rate_limit(limit);
        self.gauges
            .set(sample.commit, self.rule.baseline, sample.replica_lag);
        limit
    }
}

impl Drop for RateController<'_> {
    fn drop(&mut self) {
        self.pacer.limit_rate_to(None);
        self.meter.set_rate_limit(None);
    }
}

/// Computes the limit in rows per second from the samples. It does no I/O.
struct RateRule {
    /// Latency of a commit without the run. `None` if it is unknown.
    baseline: Option<Duration>,
    limit: f64,
    /// The factor of all rates.
    scale: f64,
}

impl RateRule {
    fn new(baseline: Option<Duration>, scale: f64) -> Self {
        Self {
            baseline,
            limit: INITIAL_RATE * scale,
            scale,
        }
    }

    /// The limit until the next sample. `None` means no limit. `rate` is the number of rows per
    /// second since the last sample.
    fn next(&mut self, sample: &LoadSample, rate: f64) -> Option<f64> {
        let behind = sample.replica_lag.is_some_and(|lag| lag > REPLICA_LAG);
        if !sample.other_activity && !behind {
            self.limit = INITIAL_RATE * self.scale;
            return None;
        }
        let baseline = *self.baseline.get_or_insert(sample.commit);
        let is_slow = sample.commit > baseline.mul_f64(LATENCY_FACTOR) + LATENCY_TOLERANCE;
        if behind || is_slow {
            self.limit *= DECREASE;
        } else if rate > self.limit / 2.0 {
            // Raise the limit only if the run reaches it. Otherwise, a fast commit does not show
            // that the database can take a higher rate.
            self.limit *= INCREASE;
        }
        self.limit = self.limit.max(MIN_RATE * self.scale);
        Some(self.limit)
    }

    /// Moves the baseline one step towards the latency of a commit in a pause.
    fn learn(&mut self, commit: Duration) {
        let Some(baseline) = &mut self.baseline else {
            return;
        };
        *baseline = baseline.mul_f64(if commit > *baseline {
            BASELINE_STEP
        } else {
            BASELINE_STEP.recip()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASELINE: Duration = Duration::from_millis(2);

    fn sample(commit_ms: u64, other_activity: bool) -> LoadSample {
        LoadSample {
            commit: Duration::from_millis(commit_ms),
            other_activity,
            replica_lag: None,
        }
    }

    #[test]
    fn a_run_that_is_alone_has_no_limit() {
        assert_eq!(
            RateRule::new(Some(BASELINE), 1.0).next(&sample(50, false), 9e9),
            None
        );
    }

    #[test]
    fn with_other_activity_the_limit_follows_the_latency() {
        let mut rule = RateRule::new(Some(BASELINE), 1.0);
        let mut last = INITIAL_RATE;
        for _ in 0..10 {
            let limit = rule.next(&sample(2, true), 1e9).unwrap();
            assert!(limit > last);
            last = limit;
        }
        while last > MIN_RATE {
            let limit = rule.next(&sample(9, true), 1e9).unwrap();
            assert!(limit < last);
            last = limit;
        }
    }

    #[test]
    fn commits_in_pauses_move_the_baseline() {
        let mut rule = RateRule::new(Some(BASELINE), 1.0);
        let slow_is_fine = |rule: &mut RateRule| {
            let before = rule.next(&sample(2, true), 1e9).unwrap();
            rule.next(&sample(9, true), 1e9).unwrap() > before
        };
        assert!(!slow_is_fine(&mut rule));
        // A single very slow commit changes little.
        rule.learn(Duration::from_secs(10));
        assert!(!slow_is_fine(&mut rule));
        for _ in 0..20 {
            rule.learn(Duration::from_millis(8));
        }
        assert!(slow_is_fine(&mut rule));
        for _ in 0..20 {
            rule.learn(BASELINE);
        }
        assert!(!slow_is_fine(&mut rule));
    }

    #[test]
    fn a_limit_that_is_not_reached_does_not_grow() {
        let mut rule = RateRule::new(Some(BASELINE), 1.0);
        assert_eq!(rule.next(&sample(2, true), 10.0), Some(INITIAL_RATE));
    }

    #[test]
    fn without_a_baseline_the_first_sample_sets_it() {
        let mut rule = RateRule::new(None, 1.0);
        assert!(rule.next(&sample(9, true), 1e9).unwrap() > INITIAL_RATE);
        assert!(rule.next(&sample(9, true), 1e9).unwrap() > INITIAL_RATE);
        assert!(rule.next(&sample(20, true), 1e9).unwrap() < INITIAL_RATE);
    }

    #[test]
    fn a_lagging_replica_slows_a_run_that_is_alone() {
        let mut rule = RateRule::new(Some(BASELINE), 1.0);
        let behind = LoadSample {
            replica_lag: Some(REPLICA_LAG * 2),
            ..sample(2, false)
        };
        assert_eq!(rule.next(&behind, 1e9), Some(INITIAL_RATE * DECREASE));
        let caught_up = LoadSample {
            replica_lag: Some(REPLICA_LAG / 2),
            ..behind
        };
        assert_eq!(rule.next(&caught_up, 1e9), None);
    }
}
