//! Limits the rows per second of all runs together.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::{
    sync::Mutex,
    time::{Instant, sleep_until, timeout},
};

/// Rows that start at once if there is a limit. A larger burst would use every processor of
/// a small database while it lasts.
const MAX_BURST: u32 = 4;

/// How late a group may start without a delay of the following groups. The timer has a resolution
/// of a millisecond. A longer delay means idle time or a busy machine.
const TIMER_SLACK: Duration = Duration::from_millis(2);

/// Paces rows in small groups, so that the average rate keeps the limit.
#[derive(Debug)]
pub(super) struct Pacer {
    /// The interval between two rows, from the configured limit.
    interval: Duration,
    /// The interval from the adaptive rate limit, in nanoseconds. Zero means no limit.
    rate_limit: AtomicU64,
    /// When the next group may start.
    next: Mutex<Instant>,
    /// Number of rows that have been allowed to start.
    rows: AtomicU64,
}

impl Pacer {
    /// Allows at most `per_second` rows per second. Zero means no limit.
    pub(super) fn new(per_second: u32) -> Self {
        let interval = match per_second {
            0 => Duration::ZERO,
            rows => Duration::from_secs(1) / rows,
        };
        Self {
            interval,
            rate_limit: AtomicU64::new(0),
            next: Mutex::new(Instant::now()),
            rows: AtomicU64::new(0),
        }
    }

    /// Also limits the rate to `per_second` rows per second, until the next call.
    pub(super) fn limit_rate_to(&self, per_second: Option<f64>) {
        let interval = per_second.map_or(Duration::ZERO, |rows| {
            Duration::try_from_secs_f64(rows.recip()).unwrap_or_default()
        });
        let nanoseconds = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX);
        self.rate_limit.store(nanoseconds, Ordering::Relaxed);
    }

    /// Runs `work` for at most `limit`. If there is a rate limit, no row may start
    /// meanwhile. Returns `None` if `work` did not end in time.
    pub(super) async fn pause_for<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let _next = self.next.lock().await;
        timeout(limit, work).await.ok()
    }

    /// How many rows have been allowed to start.
    pub(super) fn rows(&self) -> u64 {
        self.rows.load(Ordering::Relaxed)
    }

    fn interval(&self) -> Duration {
        let rate_limit = Duration::from_nanos(self.rate_limit.load(Ordering::Relaxed));
        self.interval.max(rate_limit)
    }

    /// Waits until more rows may be written, and returns how many of `rows`. This is at
    /// least one, unless `rows` is zero. If the future is dropped, no rows are charged.
    pub(super) async fn acquire(&self, rows: usize) -> usize {
        if rows == 0 {
            return 0;
        }
        let mut rows = u32::try_from(rows).unwrap_or(u32::MAX);
        if !self.interval().is_zero() {
            rows = rows.min(MAX_BURST);
            let mut next = self.next.lock().await;
            sleep_until(*next).await;
            let now = Instant::now();
            let due = if now - *next > TIMER_SLACK {
                now
            } else {
                *next
            };
            *next = due + self.interval().saturating_mul(rows);
        }
        self.rows.fetch_add(rows.into(), Ordering::Relaxed);
        rows as usize
    }
}

impl Pacer {
    /// Waits until all of `rows` may be read. They form one burst.
    pub(super) async fn acquire_all(&self, rows: usize) {
        let rows = u32::try_from(rows).unwrap_or(u32::MAX);
        self.rows.fetch_add(rows.into(), Ordering::Relaxed);
        let interval = self.interval();
        if interval.is_zero() {
            return;
        }
        let mut next = self.next.lock().await;
        let due = (*next).max(Instant::now());
        sleep_until(due).await;
        *next = due + interval.saturating_mul(rows);
    }
}

#[cfg(test)]
mod tests {
    use std::future;

    use tokio::time::sleep;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn groups_wait_for_earlier_groups() {
        let pacer = Pacer::new(100);
        let start = Instant::now();
        for (rows, now) in [(3, 3), (1000, 4), (0, 0), (1, 1)] {
            assert_eq!(pacer.acquire(rows).await, now);
        }
        assert_eq!(start.elapsed().as_millis() / 10, 7);
        assert_eq!(pacer.rows(), 8);
    }

    #[tokio::test(start_paused = true)]
    async fn a_timer_of_milliseconds_keeps_a_high_rate() {
        for rows_per_second in [2000, 3000, 10_000] {
            let pacer = Pacer::new(rows_per_second);
            let start = Instant::now();
            for _ in 0..rows_per_second / 4 {
                pacer.acquire(4).await;
            }
            let took = start.elapsed().as_millis();
            assert!((990..=1001).contains(&took), "{rows_per_second}: {took} ms");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn idle_time_is_not_saved_up() {
        let pacer = Pacer::new(100);
        pacer.acquire(4).await;
        sleep(60 * SECOND).await;
        let start = Instant::now();
        pacer.acquire(4).await;
        pacer.acquire(4).await;
        assert_eq!(start.elapsed().as_millis() / 10, 4);
    }

    #[tokio::test(start_paused = true)]
    async fn the_lower_of_two_limits_applies() {
        let pacer = Pacer::new(100);
        for (limit, expected) in [(Some(50.0), 80), (Some(1e6), 40), (None, 40)] {
            pacer.limit_rate_to(limit);
            pacer.acquire(4).await;
            let start = Instant::now();
            pacer.acquire(1).await;
            assert_eq!(start.elapsed().as_millis() / 10, expected / 10);
        }
        assert_eq!(pacer.rows(), 15);
    }

    #[tokio::test(start_paused = true)]
    async fn no_row_starts_in_a_pause() {
        let pacer = Pacer::new(1000);
        let work = async {
            sleep(SECOND).await;
            pacer.rows()
        };
        let (before, _) = tokio::join!(pacer.pause_for(2 * SECOND, work), pacer.acquire(4));
        assert_eq!((before, pacer.rows()), (Some(0), 4));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_ends_even_if_its_work_does_not() {
        let pacer = Pacer::new(1000);
        let start = Instant::now();
        let work = future::pending::<()>();
        let (work, _) = tokio::join!(pacer.pause_for(SECOND, work), pacer.acquire(4));
        assert_eq!((work, pacer.rows()), (None, 4));
        assert_eq!(start.elapsed().as_secs(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_no_row_waits() {
        let pacer = Pacer::new(0);
        let start = Instant::now();
        for _ in 0..1000 {
            assert_eq!(pacer.acquire(1000).await, 1000);
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}
