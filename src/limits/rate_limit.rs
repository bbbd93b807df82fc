//! So many a second and no more, with some saved up from when there were fewer: for
//! what strangers can cause at no cost, and what costs space in a log.

use std::time::Duration;

use tokio::{
    sync::Mutex,
    time::{Instant, sleep_until},
};

/// For how long turns are saved up.
const BURST: Duration = Duration::from_secs(10);

/// Gives turns (the generic cell rate algorithm).
#[derive(Debug)]
pub(crate) struct RateLimiter {
    interval: Duration,
    /// When there would be one if none were saved up.
    next: Mutex<Instant>,
}

impl RateLimiter {
    pub(crate) fn new(per_second: u32) -> Self {
        Self {
            interval: Duration::from_secs(1) / per_second.max(1),
            next: Mutex::new(Instant::now()),
        }
    }

    /// Takes a turn if there is one now.
    pub(crate) fn try_acquire(&self) -> bool {
        // Whoever has the lock waits for the next one.
        let Ok(mut next) = self.next.try_lock() else {
            return false;
        };
        let try_acquire = due(*next) <= Instant::now();
        if try_acquire {
            self.consume(&mut next);
        }
        try_acquire
    }

    /// Waits for a turn. Nothing is owed for a wait that is given up.
    pub(crate) async fn acquire(&self) {
        let mut next = self.next.lock().await;
        sleep_until(due(*next)).await;
        self.consume(&mut next);
    }

    fn consume(&self, next: &mut Instant) {
        *next = (*next).max(Instant::now()) + self.interval;
    }
}

fn due(unsaved: Instant) -> Instant {
    unsaved.checked_sub(BURST).unwrap_or(unsaved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn turns_are_saved_up_for_a_while_and_then_come_at_their_pace() {
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
