//! A rate limiter with a burst of 10 seconds. It limits events that clients can cause at no cost
//! and that take space in a log.

use std::time::Duration;

use tokio::{
    sync::Mutex,
    time::{Instant, sleep_until},
};

/// How much unused rate can be saved for a burst.
const BURST: Duration = Duration::from_secs(10);

/// A rate limiter by the generic cell rate algorithm (GCRA).
#[derive(Debug)]
pub(crate) struct RateLimiter {
    interval: Duration,
    /// When the next event would be allowed if there were no burst.
    next: Mutex<Instant>,
}

impl RateLimiter {
    pub(crate) fn new(per_second: u32) -> Self {
        Self {
            interval: Duration::from_secs(1) / per_second.max(1),
            next: Mutex::new(Instant::now()),
        }
    }

    /// Whether an event is allowed now. If so, counts it.
    pub(crate) fn try_acquire(&self) -> bool {
        // If a task holds the lock, it waits for the next allowed event.
        let Ok(mut next) = self.next.try_lock() else {
            return false;
        };
        let is_due = due(*next) <= Instant::now();
        if is_due {
            self.consume(&mut next);
        }
        is_due
    }

    /// Waits until an event is allowed, and counts it. A cancelled wait counts nothing.
    pub(crate) async fn acquire(&self) {
        let mut next = self.next.lock().await;
        sleep_until(due(*next)).await;
        self.consume(&mut next);
    }

    fn consume(&self, next: &mut Instant) {
        *next = (*next).max(Instant::now()) + self.interval;
    }
}

/// When an event is allowed, given when it would be allowed without a burst.
fn due(without_burst: Instant) -> Instant {
    without_burst.checked_sub(BURST).unwrap_or(without_burst)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_of_ten_seconds_is_allowed_and_then_the_steady_rate() {
        let limiter = RateLimiter::new(10);
        tokio::time::sleep(Duration::from_secs(3600)).await;
        for _ in 0..2 {
            let due = (0..1000).filter(|_| limiter.try_acquire()).count();
            assert_eq!(due, 101);
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
        while limiter.try_acquire() {}
        let start = Instant::now();
        for _ in 0..20 {
            limiter.acquire().await;
        }
        assert_eq!(start.elapsed().as_millis() / 100, 20);
    }
}
