//! No more rows a second than the site allows, over all runs together.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::{
    sync::Mutex,
    time::{Instant, sleep_until, timeout},
};

/// Rows that go at once where there is a limit. More would take every processor of a
/// small database for as long as they last, however long they had waited before.
const MAX_BURST: u32 = 4;

/// How late a group may be without those behind it being late, too: the timer has a
/// resolution of a millisecond. More is idle time, or a machine that has enough to do.
const TIMER_SLACK: Duration = Duration::from_millis(2);

/// Gives rows their turn. Rows go in groups; the average is what is kept.
#[derive(Debug)]
pub(super) struct Pacer {
    /// Between one row and the next, as the site has set it.
    interval: Duration,
    /// The same in nanoseconds, as the database can bear it; zero for no limit.
    rate_limit: AtomicU64,
    /// When the next group may start.
    next: Mutex<Instant>,
    /// Rows that had their turn.
    rows: AtomicU64,
}

impl Pacer {
    /// At most `per_second` rows a second; without a limit for zero.
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

    /// Not more than so many rows a second until further notice, whatever the site
    /// allows.
    pub(super) fn limit_rate_to(&self, per_second: Option<f64>) {
        let interval = per_second.map_or(Duration::ZERO, |rows| {
            Duration::try_from_secs_f64(rows.recip()).unwrap_or_default()
        });
        let nanoseconds = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX);
        self.rate_limit.store(nanoseconds, Ordering::Relaxed);
    }

    /// No row has its turn, where there is a limit, while `work` is done; nothing is left
    /// of it after `limit`.
    pub(super) async fn pause_for<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let _next = self.next.lock().await;
        timeout(limit, work).await.ok()
    }

    /// How many rows had their turn.
    pub(super) fn rows(&self) -> u64 {
        self.rows.load(Ordering::Relaxed)
    }

    fn interval(&self) -> Duration {
        let rate_limit = Duration::from_nanos(self.rate_limit.load(Ordering::Relaxed));
        self.interval.max(rate_limit)
    }

    /// Waits until more rows may be written, and says how many of `rows`: at least one,
    /// if there are any. Nothing is owed for a wait that is given up.
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

#[cfg(test)]
mod tests {
    use std::future;

    use tokio::time::sleep;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn groups_wait_for_those_before_them() {
        let pacer = Pacer::new(100);
        let start = Instant::now();
        for (rows, now) in [(3, 3), (1000, 4), (0, 0), (1, 1)] {
            assert_eq!(pacer.acquire(rows).await, now);
        }
        assert_eq!(start.elapsed().as_millis() / 10, 7);
        assert_eq!(pacer.rows(), 8);
    }

    #[tokio::test(start_paused = true)]
    async fn a_timer_of_milliseconds_keeps_a_fast_pace() {
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
    async fn the_slower_of_two_limits_holds() {
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
    async fn nobody_has_a_turn_in_a_pause() {
        let pacer = Pacer::new(1000);
        let work = async {
            sleep(SECOND).await;
            pacer.rows()
        };
        let (before, _) = tokio::join!(pacer.pause_for(2 * SECOND, work), pacer.acquire(4));
        assert_eq!((before, pacer.rows()), (Some(0), 4));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_ends_although_its_work_does_not() {
        let pacer = Pacer::new(1000);
        let start = Instant::now();
        let work = future::pending::<()>();
        let (work, _) = tokio::join!(pacer.pause_for(SECOND, work), pacer.acquire(4));
        assert_eq!((work, pacer.rows()), (None, 4));
        assert_eq!(start.elapsed().as_secs(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_nobody_waits() {
        let pacer = Pacer::new(0);
        let start = Instant::now();
        for _ in 0..1000 {
            assert_eq!(pacer.acquire(1000).await, 1000);
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}
