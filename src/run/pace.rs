//! No more rows a second than the site allows, over all runs together.

use std::time::Duration;

use tokio::{
    sync::Mutex,
    time::{Instant, sleep_until},
};

/// Gives rows their turn. Rows come in groups; the average is what is kept.
#[derive(Debug)]
pub(super) struct Pace {
    /// Between one row and the next.
    interval: Duration,
    /// When the next group may start.
    next: Mutex<Instant>,
}

impl Pace {
    /// At most `per_second` rows a second; without a limit for zero.
    pub(super) fn new(per_second: u32) -> Self {
        let interval = match per_second {
            0 => Duration::ZERO,
            rows => Duration::from_secs(1) / rows,
        };
        Self {
            interval,
            next: Mutex::new(Instant::now()),
        }
    }

    /// Waits until `rows` more rows may be written. Nothing is owed for a wait that is
    /// given up.
    pub(super) async fn turn(&self, rows: usize) {
        if rows == 0 || self.interval.is_zero() {
            return;
        }
        let mut next = self.next.lock().await;
        sleep_until(*next).await;
        let rows = u32::try_from(rows).unwrap_or(u32::MAX);
        *next = Instant::now() + self.interval.saturating_mul(rows);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn groups_wait_for_those_before_them() {
        let pace = Pace::new(100);
        let start = Instant::now();
        for rows in [10, 30, 1] {
            pace.turn(rows).await;
        }
        assert_eq!(start.elapsed().as_millis() / 10, 40);
    }

    #[tokio::test(start_paused = true)]
    async fn idle_time_is_not_saved_up() {
        let pace = Pace::new(100);
        pace.turn(10).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        let start = Instant::now();
        pace.turn(10).await;
        pace.turn(10).await;
        assert_eq!(start.elapsed().as_millis() / 10, 10);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_nobody_waits() {
        let pace = Pace::new(0);
        let start = Instant::now();
        for _ in 0..1000 {
            pace.turn(1000).await;
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}
