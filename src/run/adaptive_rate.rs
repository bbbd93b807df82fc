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

use super::pacer::Pace;
use crate::{
    store::{Load, Observer, Store, StoreError},
    telemetry,
};

/// Between two looks at the database.
const INTERVAL: Duration = Duration::from_millis(100);

/// Looks at a run that goes on, for each at one that pauses.
const LOOKS: usize = 10;

/// A pause is over after this even if a commit in it is not: one that waits for a
/// synchronous replica may do so for minutes.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Commits that tell what one takes without the run, and the limit for all of them.
const BASELINE_COMMITS: usize = 15;
const BASELINE_LIMIT: Duration = Duration::from_secs(2);

/// Rows a second: what a run begins with beside others, and what it keeps.
const START: f64 = 2000.0;
const LEAST: f64 = 200.0;

/// What a look does to the limit: it settles where one look in eight finds a slow commit.
const FASTER: f64 = 1.05;
const SLOWER: f64 = 0.7;

/// A commit has climbed when it takes this many times what it took, and so much more
/// that it is not the timer's own inaccuracy.
const CLIMBED: f64 = 1.75;
const SLACK: Duration = Duration::from_micros(300);

/// By how much a commit in a pause moves what is usual, whatever it took: one that took a
/// hundred times as long is the disk's affair.
const LEARNING: f64 = 1.1;

/// A replica is behind beyond this.
const REPLICA_LAG: Duration = Duration::from_secs(5);

/// Watches the database and sets `pace` accordingly, until it is dropped.
pub(super) struct BackOff<'a> {
    observer: Observer<'a>,
    pace: &'a Pace,
    rule: Rule,
}

impl<'a> BackOff<'a> {
    /// Learns what a commit takes before the run, or where the database does not say, from
    /// the first look that succeeds.
    pub(super) async fn new(store: &'a Store, pace: &'a Pace) -> Self {
        let mut commits = Vec::with_capacity(BASELINE_COMMITS);
        let mut last = None;
        let mut observer = store.observer();
        let baseline = async {
            while commits.len() < BASELINE_COMMITS
                && let Ok(load) = observer.load().await
            {
                commits.push(load.commit);
                last = Some(load);
            }
        };
        // A synchronous standby that does not answer must not keep the run from its rows.
        let _ = timeout(BASELINE_LIMIT, baseline).await;
        commits.sort_unstable();
        let usual = commits.get(commits.len() / 2).copied();
        let mut back_off = Self {
            observer,
            pace,
            rule: Rule::new(usual),
        };
        if let Some(load) = last {
            back_off.apply(&load, 0.0);
        }
        back_off
    }

    /// Never ends by itself.
    pub(super) async fn watch(mut self) -> Infallible {
        let mut blind = false;
        loop {
            match self.look_and_pause().await {
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

    async fn look_and_pause(&mut self) -> Result<(), StoreError> {
        let mut limit = None;
        for _ in 0..LOOKS {
            let (then, rows) = (Instant::now(), self.pace.rows());
            sleep(INTERVAL).await;
            let load = self.observer.load().await?;
            #[expect(clippy::cast_precision_loss, reason = "a rate, not a count")]
            let rows = (self.pace.rows() - rows) as f64;
            limit = self.apply(&load, rows / then.elapsed().as_secs_f64());
        }
        if limit.is_some() {
            let commit = async {
                // With what was under way.
                self.observer.load().await?;
                Ok::<_, StoreError>(self.observer.load().await?.commit)
            };
            let commit = self.pace.pause_for(LONGEST_PAUSE, commit).await;
            self.rule.learn(commit.unwrap_or(Ok(LONGEST_PAUSE))?);
        }
        Ok(())
    }

    fn apply(&mut self, load: &Load, rate: f64) -> Option<f64> {
        let limit = self.rule.next(load, rate);
        self.pace.back_off_to(limit);
        telemetry::database_load(load, self.rule.usual, limit);
        limit
    }
}

impl Drop for BackOff<'_> {
    fn drop(&mut self) {
        self.pace.back_off_to(None);
        telemetry::backed_off(None);
    }
}

/// From what is seen to how many rows a second may be written. Pure.
struct Rule {
    /// What a commit takes without the run, as far as that is known.
    usual: Option<Duration>,
    limit: f64,
}

impl Rule {
    fn new(usual: Option<Duration>) -> Self {
        Self {
            usual,
            limit: START,
        }
    }

    /// The limit until the next look, if any; `rate` is what was written since the last.
    fn next(&mut self, load: &Load, rate: f64) -> Option<f64> {
        let behind = load.replica_lag.is_some_and(|lag| lag > REPLICA_LAG);
        if !load.others && !behind {
            self.limit = START;
            return None;
        }
        let usual = *self.usual.get_or_insert(load.commit);
        let climbed = load.commit > usual.mul_f64(CLIMBED) + SLACK;
        if behind || climbed {
            self.limit *= SLOWER;
        } else if rate > self.limit / 2.0 {
            // A limit that is not made use of says nothing about a higher one.
            self.limit *= FASTER;
        }
        self.limit = self.limit.max(LEAST);
        Some(self.limit)
    }

    /// Moves what is usual towards the median of commits that are made in pauses.
    fn learn(&mut self, commit: Duration) {
        let Some(usual) = &mut self.usual else { return };
        *usual = usual.mul_f64(if commit > *usual {
            LEARNING
        } else {
            LEARNING.recip()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USUAL: Duration = Duration::from_millis(2);

    fn load(commit_ms: u64, others: bool) -> Load {
        Load {
            commit: Duration::from_millis(commit_ms),
            others,
            replica_lag: None,
        }
    }

    #[test]
    fn alone_there_is_no_limit_however_slow_commits_are() {
        assert_eq!(Rule::new(Some(USUAL)).next(&load(50, false), 9e9), None);
    }

    #[test]
    fn beside_others_the_limit_follows_the_commits() {
        let mut rule = Rule::new(Some(USUAL));
        let mut last = START;
        for _ in 0..10 {
            let limit = rule.next(&load(2, true), 1e9).unwrap();
            assert!(limit > last);
            last = limit;
        }
        while last > LEAST {
            let limit = rule.next(&load(9, true), 1e9).unwrap();
            assert!(limit < last);
            last = limit;
        }
    }

    #[test]
    fn what_is_usual_is_learnt_anew_in_pauses() {
        let mut rule = Rule::new(Some(USUAL));
        let slow_is_fine = |rule: &mut Rule| {
            let before = rule.next(&load(2, true), 1e9).unwrap();
            rule.next(&load(9, true), 1e9).unwrap() > before
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
            rule.learn(USUAL);
        }
        assert!(!slow_is_fine(&mut rule));
    }

    #[test]
    fn a_limit_that_is_not_reached_does_not_grow() {
        let mut rule = Rule::new(Some(USUAL));
        assert_eq!(rule.next(&load(2, true), 10.0), Some(START));
    }

    #[test]
    fn without_a_look_before_the_run_the_first_one_says_what_is_usual() {
        let mut rule = Rule::new(None);
        assert!(rule.next(&load(9, true), 1e9).unwrap() > START);
        assert!(rule.next(&load(9, true), 1e9).unwrap() > START);
        assert!(rule.next(&load(20, true), 1e9).unwrap() < START);
    }

    #[test]
    fn a_replica_that_falls_behind_slows_a_run_that_is_alone() {
        let mut rule = Rule::new(Some(USUAL));
        let behind = Load {
            replica_lag: Some(REPLICA_LAG * 2),
            ..load(2, false)
        };
        assert_eq!(rule.next(&behind, 1e9), Some(START * SLOWER));
        let caught_up = Load {
            replica_lag: Some(REPLICA_LAG / 2),
            ..behind
        };
        assert_eq!(rule.next(&caught_up, 1e9), None);
    }
}
