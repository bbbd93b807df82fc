//! How fast rows may be written while others use the database.
//!
//! As long as nobody else does, a run takes what there is. Beside others it starts
//! slowly and becomes faster for as long as a durable commit takes hardly longer than
//! without it, and gives way when it does, or when a replica falls behind.
//! Both go by factors, since a site may be a laptop or a rack. What a commit takes without
//! the run is found out before it, and time and again in pauses of a few milliseconds: a
//! disk is not for long what it was.

use std::{convert::Infallible, time::Duration};

use tokio::time::{Instant, sleep, timeout};

use super::pacer::Pacer;
use crate::{
    store::{LoadProbe, LoadSample, Store, StoreError},
    telemetry,
};

/// Between two looks at the database.
const INTERVAL: Duration = Duration::from_millis(100);

/// Looks at a run that goes on, for each at one that pauses.
const SAMPLES_PER_PAUSE: usize = 10;

/// A pause is over after this even if a commit in it is not: one that waits for a
/// synchronous replica may do so for minutes.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Commits that tell what one takes without the run, and the limit for all of them.
const BASELINE_COMMITS: usize = 15;
const BASELINE_LIMIT: Duration = Duration::from_secs(2);

/// Rows a second: what a run begins with beside others, and what it keeps.
const INITIAL_RATE: f64 = 2000.0;
const MIN_RATE: f64 = 200.0;

/// What a look does to the limit: it settles where one look in eight finds a slow commit.
const INCREASE: f64 = 1.05;
const DECREASE: f64 = 0.7;

/// A commit has climbed when it takes this many times what it took, and so much more
/// that it is not the timer's own inaccuracy.
const LATENCY_FACTOR: f64 = 1.75;
const LATENCY_TOLERANCE: Duration = Duration::from_micros(300);

/// By how much a commit in a pause moves what is usual, whatever it took: one that took a
/// hundred times as long is the disk's affair.
const BASELINE_STEP: f64 = 1.1;

/// A replica is behind beyond this.
const REPLICA_LAG: Duration = Duration::from_secs(5);

/// Watches the database and sets `pacer` accordingly, until it is dropped.
pub(super) struct RateController<'a> {
    load_probe: LoadProbe<'a>,
    pacer: &'a Pacer,
    rule: RateRule,
}

impl<'a> RateController<'a> {
    /// Learns what a commit takes before the run, or where the database does not say, from
    /// the first look that succeeds.
    pub(super) async fn new(store: &'a Store, pacer: &'a Pacer) -> Self {
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
        // A synchronous standby that does not answer must not keep the run from its rows.
        let _ = timeout(BASELINE_LIMIT, baseline).await;
        commits.sort_unstable();
        let baseline = commits.get(commits.len() / 2).copied();
        let mut controller = Self {
            load_probe,
            pacer,
            rule: RateRule::new(baseline),
        };
        if let Some(sample) = last {
            controller.apply(&sample, 0.0);
        }
        controller
    }

    /// Never ends by itself.
    pub(super) async fn watch(mut self) -> Infallible {
        let mut blind = false;
        loop {
            match self.sample_and_pause().await {
                Ok(()) => blind = false,
                Err(error) => {
                    if !blind {
                        tracing::warn!(%error, "can't see how busy the database is: the limit stays as it is");
                    }
                    blind = true;
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
                // With what was under way.
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
        telemetry::database_load(sample.commit, self.rule.baseline, sample.replica_lag, limit);
        limit
    }
}

impl Drop for RateController<'_> {
    fn drop(&mut self) {
        self.pacer.limit_rate_to(None);
        telemetry::backed_off(None);
    }
}

/// From what is seen to how many rows a second may be written. Pure.
struct RateRule {
    /// What a commit takes without the run, as far as that is known.
    baseline: Option<Duration>,
    limit: f64,
}

impl RateRule {
    fn new(baseline: Option<Duration>) -> Self {
        Self {
            baseline,
            limit: INITIAL_RATE,
        }
    }

    /// The limit until the next look, if any; `rate` is what was written since the last.
    fn next(&mut self, sample: &LoadSample, rate: f64) -> Option<f64> {
        let behind = sample.replica_lag.is_some_and(|lag| lag > REPLICA_LAG);
        if !sample.other_activity && !behind {
            self.limit = INITIAL_RATE;
            return None;
        }
        let baseline = *self.baseline.get_or_insert(sample.commit);
        let climbed = sample.commit > baseline.mul_f64(LATENCY_FACTOR) + LATENCY_TOLERANCE;
        if behind || climbed {
            self.limit *= DECREASE;
        } else if rate > self.limit / 2.0 {
            // A limit that is not made use of says nothing about a higher one.
            self.limit *= INCREASE;
        }
        self.limit = self.limit.max(MIN_RATE);
        Some(self.limit)
    }

    /// Moves what is usual towards the median of commits that are made in pauses.
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
    fn alone_there_is_no_limit_however_slow_commits_are() {
        assert_eq!(
            RateRule::new(Some(BASELINE)).next(&sample(50, false), 9e9),
            None
        );
    }

    #[test]
    fn beside_others_the_limit_follows_the_commits() {
        let mut rule = RateRule::new(Some(BASELINE));
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
    fn what_is_usual_is_learnt_anew_in_pauses() {
        let mut rule = RateRule::new(Some(BASELINE));
        let slow_is_fine = |rule: &mut RateRule| {
            let before = rule.next(&sample(2, true), 1e9).unwrap();
            rule.next(&sample(9, true), 1e9).unwrap() > before
        };
        assert!(!slow_is_fine(&mut rule));
        // One that hangs says little.
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
        let mut rule = RateRule::new(Some(BASELINE));
        assert_eq!(rule.next(&sample(2, true), 10.0), Some(INITIAL_RATE));
    }

    #[test]
    fn without_a_look_before_the_run_the_first_one_says_what_is_usual() {
        let mut rule = RateRule::new(None);
        assert!(rule.next(&sample(9, true), 1e9).unwrap() > INITIAL_RATE);
        assert!(rule.next(&sample(9, true), 1e9).unwrap() > INITIAL_RATE);
        assert!(rule.next(&sample(20, true), 1e9).unwrap() < INITIAL_RATE);
    }

    #[test]
    fn a_replica_that_falls_behind_slows_a_run_that_is_alone() {
        let mut rule = RateRule::new(Some(BASELINE));
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
