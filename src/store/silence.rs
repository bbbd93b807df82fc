//! Detects that Postgres has stopped answering on a connection.
//!
//! Postgres runs the statements of a connection one after the other, each for at most
//! `statement_timeout`. So an answer arrives within that time, no matter how many
//! statements are in flight. This finds a frozen server or a network that drops packets
//! early, before the limits of all statements in flight have passed.
//!
//! A statement can also wait for this program itself: a pooler can have fewer server
//! connections than this program has connections, and a locked row occupies one of them.
//! Such a wait may last as long as rows are answered on other connections.

use std::{
    pin::Pin,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::{Store, statement::ANSWER_MARGIN};

/// How long answers that have arrived may take to be read. After a pause of this process (a
/// suspended machine, SIGSTOP), answers can wait in the socket while a timer has already
/// ended.
pub(super) const GRACE: Duration = Duration::from_millis(500);

/// The time of the last answer to a statement about a row, on any connection.
#[derive(Debug)]
pub(super) struct RowAnswers(Mutex<Instant>);

impl RowAnswers {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Instant::now()))
    }

    pub(super) fn note(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// How long to wait for the next answer, if rows are still being answered: the last
    /// answer is younger than `limit`.
    fn time_left(&self, limit: Duration) -> Option<Duration> {
        let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        limit
            .checked_sub(last.elapsed())
            .filter(|left| !left.is_zero())
    }
}

impl Store {
    /// The longest time between two answers on a connection with statements in flight.
    pub(super) fn silence_limit(&self) -> Duration {
        self.options.statement_timeout + ANSWER_MARGIN
    }

    /// Returns when no statement of a connection was answered for the longest time that one
    /// may take. While `waits_for_rows` returns true, rows on other connections count too.
    pub(super) async fn silence(
        &self,
        unanswered: &Unanswered,
        mut waits_for_rows: impl FnMut() -> bool,
    ) {
        loop {
            unanswered.silence(self.silence_limit()).await;
            match self.row_answers.time_left(self.silence_limit()) {
                Some(time_left) if waits_for_rows() => sleep(time_left).await,
                _ => return,
            }
        }
    }

    /// Waits for `work` for at most `limit`. While `waits_for_rows` returns true, it continues
    /// to wait as long as rows are answered. Returns `None` if `work` did not end in time.
    pub(super) async fn wait_for<T>(
        &self,
        limit: Duration,
        mut work: Pin<&mut impl Future<Output = T>>,
        mut waits_for_rows: impl FnMut() -> bool,
    ) -> Option<T> {
        let mut limit = limit;
        loop {
            for limit in [limit, GRACE] {
                if let Ok(done) = timeout(limit, work.as_mut()).await {
                    return Some(done);
                }
            }
            limit = self.row_answers.time_left(self.silence_limit())?;
            if !waits_for_rows() {
                return None;
            }
        }
    }
}

/// The number of statements without an answer, and the time of the last activity.
#[derive(Debug)]
pub(super) struct Unanswered {
    statements: AtomicUsize,
    /// When the last answer came, or when a statement was sent on an idle connection.
    last_activity: Mutex<Instant>,
}

impl Unanswered {
    pub(super) fn new() -> Self {
        Self {
            statements: AtomicUsize::new(0),
            last_activity: Mutex::new(Instant::now()),
        }
    }

    /// Counts `statement` as unanswered until it ends.
    pub(super) async fn count<T>(&self, statement: impl Future<Output = T>) -> T {
        if self.statements.fetch_add(1, Ordering::Relaxed) == 0 {
            self.note_activity();
        }
        let _answered = Answered(self);
        statement.await
    }

    /// Returns when statements are unanswered and no answer came for `limit`.
    pub(super) async fn silence(&self, limit: Duration) {
        loop {
            let last_activity = self.last_activity();
            sleep_until(last_activity + limit).await;
            if self.statements.load(Ordering::Relaxed) == 0 {
                self.note_activity();
            } else if self.last_activity() == last_activity {
                sleep(GRACE).await;
                if self.last_activity() == last_activity {
                    return;
                }
            }
        }
    }

    fn last_activity(&self) -> Instant {
        *self
            .last_activity
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn note_activity(&self) {
        *self
            .last_activity
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}

struct Answered<'a>(&'a Unanswered);

impl Drop for Answered<'_> {
    fn drop(&mut self) {
        self.0.statements.fetch_sub(1, Ordering::Relaxed);
        self.0.note_activity();
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn successive_answers_are_not_silence() {
        let unanswered = Unanswered::new();
        let answer_after = |seconds| unanswered.count(sleep(seconds * SECOND));
        let statements = async { tokio::join!(answer_after(4), answer_after(8), answer_after(12)) };
        let silence = unanswered.silence(5 * SECOND);
        let ended = tokio::select! {
            _ = statements => true,
            () = silence => false,
        };
        assert!(ended);
    }

    #[tokio::test(start_paused = true)]
    async fn a_statement_without_an_answer_is_silence() {
        let unanswered = Unanswered::new();
        let start = Instant::now();
        tokio::select! {
            () = unanswered.count(sleep(3600 * SECOND)) => unreachable!(),
            () = unanswered.silence(5 * SECOND) => {}
        }
        assert_eq!(start.elapsed(), 5 * SECOND + GRACE);
    }

    #[tokio::test(start_paused = true)]
    async fn the_limit_starts_again_after_an_idle_time() {
        let unanswered = Unanswered::new();
        let idle_then_busy = async {
            sleep(14 * SECOND).await;
            unanswered.count(sleep(4 * SECOND)).await;
        };
        let silence = unanswered.silence(5 * SECOND);
        let quiet = tokio::select! {
            () = idle_then_busy => true,
            () = silence => false,
        };
        assert!(quiet);
        let idle = timeout(60 * SECOND, unanswered.silence(5 * SECOND));
        assert!(idle.await.is_err());
    }
}
