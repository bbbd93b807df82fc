//! The progress of a run. The run only adds to counters. The reader computes the rate and the
//! remaining time.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::record::{Counts, Progress};
use crate::telemetry::RunGauges;

/// The counters of a run in progress.
#[derive(Debug, Default)]
pub struct Meter {
    rows_done: AtomicU64,
    /// Zero if unknown.
    rows_total: AtomicU64,
    /// The lower of the limits in the settings and in the request. Zero means no limit.
    configured_limit: AtomicU32,
    /// The adaptive limit, as the bits of an `f64`. Zero means no limit.
    rate_limit: AtomicU64,
    counts: Mutex<Counts>,
}

impl Meter {
    /// Adds evaluated rows.
    pub(super) fn add(&self, rows: u64) {
        self.rows_done.fetch_add(rows, Ordering::Relaxed);
    }

    /// Sets the counts so far.
    pub(super) fn set_counts(&self, counts: Counts) {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner) = counts;
    }

    /// The counts so far. A census counts only [`Meter::rows_done`].
    pub(crate) fn counts(&self) -> Counts {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts to count from zero again.
    pub(super) fn restart(&self) {
        self.rows_done.store(0, Ordering::Relaxed);
    }

    /// Sets the estimate of the number of rows.
    pub(super) fn set_total(&self, rows: u64) {
        self.rows_total.store(rows, Ordering::Relaxed);
    }

    /// Sets the limits that do not change, in rows per second. Zero means no limit.
    pub(super) fn set_configured_limit(&self, limits: [u32; 2]) {
        let limit = limits.into_iter().filter(|limit| *limit > 0).min();
        self.configured_limit
            .store(limit.unwrap_or(0), Ordering::Relaxed);
    }

    /// The current limit.
    fn limit(&self) -> Option<f64> {
        let configured = f64::from(self.configured_limit.load(Ordering::Relaxed));
        let adaptive = f64::from_bits(self.rate_limit.load(Ordering::Relaxed));
        let limits = [configured, adaptive]
            .into_iter()
            .filter(|limit| *limit > 0.0);
        limits.min_by(f64::total_cmp)
    }

    /// The numbers for the metrics.
    #[must_use]
    pub(crate) fn gauges(&self) -> RunGauges {
        #[expect(clippy::cast_precision_loss, reason = "a gauge is an f64")]
        let number = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
        let adaptive = f64::from_bits(self.rate_limit.load(Ordering::Relaxed));
        let rows_done = number(&self.rows_done);
        // The estimate of Postgres can be too low.
        let rows_expected = Some(number(&self.rows_total)).filter(|rows| *rows > 0.0);
        RunGauges {
            rows_done,
            rows_expected: rows_expected.map(|rows| rows.max(rows_done)),
            rate_limit: Some(adaptive).filter(|limit| *limit > 0.0),
        }
    }

    /// Sets the adaptive limit, in rows per second.
    pub(super) fn set_rate_limit(&self, limit: Option<f64>) {
        let bits = limit.unwrap_or(0.0).to_bits();
        self.rate_limit.store(bits, Ordering::Relaxed);
    }

    /// Evaluated rows.
    #[must_use]
    pub fn rows_done(&self) -> u64 {
        self.rows_done.load(Ordering::Relaxed)
    }
}

/// Computes rate and remaining time from the counters.
#[derive(Debug)]
pub struct Sampler {
    start: Instant,
    /// Recent samples, the oldest first.
    samples: [(Instant, u64); 6],
}

impl Sampler {
    /// A sampler of a run that starts now.
    #[must_use]
    pub fn new() -> Self {
        let now = Instant::now();
        Self {
            start: now,
            samples: [(now, 0); 6],
        }
    }

    /// The progress now. The rate is that of the last few calls.
    #[must_use]
    pub fn sample(&mut self, meter: &Meter) -> Progress {
        let (now, rows_done) = (Instant::now(), meter.rows_done());
        let (then, before) = self.samples[0];
        self.samples.rotate_left(1);
        self.samples[5] = (now, rows_done);
        let (then, before) = if rows_done < before {
            (self.start, 0)
        } else {
            (then, before)
        };
        let rows_per_second = rate(rows_done - before, now - then);
        let estimate = meter.rows_total.load(Ordering::Relaxed);
        // The estimate of Postgres can be too low.
        let rows_total = if estimate == 0 {
            0
        } else {
            estimate.max(rows_done)
        };
        let remaining = (rows_total > 0 && rows_per_second > 0.0).then(|| {
            #[expect(clippy::cast_precision_loss, reason = "an estimate")]
            let seconds = (rows_total - rows_done) as f64 / rows_per_second;
            Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
        });
        Progress {
            rows_done,
            rows_total,
            rows_per_second,
            rate_limit: meter.limit(),
            remaining,
        }
    }
}

impl Default for Sampler {
    fn default() -> Self {
        Self::new()
    }
}

fn rate(rows: u64, time: Duration) -> f64 {
    if time.is_zero() {
        return 0.0;
    }
    #[expect(clippy::cast_precision_loss, reason = "a rate, not a count")]
    let rows = rows as f64;
    rows / time.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_rate_is_that_of_the_last_samples() {
        let meter = Meter::default();
        let mut sampler = Sampler::new();
        meter.set_total(1000);
        for _ in 0..10 {
            advance(Duration::from_secs(1)).await;
            meter.add(10);
            let _ = sampler.sample(&meter);
        }
        meter.set_rate_limit(Some(50.0));
        for _ in 0..6 {
            advance(Duration::from_secs(1)).await;
            meter.add(50);
            let _ = sampler.sample(&meter);
        }
        advance(Duration::from_secs(1)).await;
        meter.add(50);
        let progress = sampler.sample(&meter);
        assert_eq!((progress.rows_done, progress.rows_total), (450, 1000));
        assert!(
            (progress.rows_per_second - 50.0).abs() < 0.1,
            "{progress:?}"
        );
        assert_eq!(progress.rate_limit, Some(50.0));
        assert_eq!(progress.remaining.unwrap().as_secs(), 11);
    }

    #[tokio::test(start_paused = true)]
    async fn an_estimate_that_is_too_low_is_raised() {
        let meter = Meter::default();
        meter.set_total(5);
        meter.add(7);
        let progress = Sampler::new().sample(&meter);
        assert_eq!((progress.rows_total, progress.remaining), (7, None));
    }
}
