//! Updates readiness from the state of the database: waits for the database at the start,
//! then pings it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::sleep;

use super::{AppError, DATABASE};
use crate::{
    store::{Ping, SchemaError, Store},
    telemetry::readiness::Readiness,
};

/// How often to try again until the database answers for the first time.
const RETRY: Duration = Duration::from_secs(1);

/// How often to ping the database after that. A ping is one statement on a connection of the
/// pool.
const INTERVAL: Duration = Duration::from_secs(2);

/// How often a ping opens a new connection. Only a new connection shows that the role was
/// dropped, or that its password or `pg_hba.conf` changed.
const RECONNECT: Duration = Duration::from_secs(30);

/// Watches the database. Returns only if it is unusable at the start.
pub(super) async fn database(store: Option<Arc<Store>>, readiness: &Readiness) -> AppError {
    let Some(store) = store else {
        return std::future::pending().await;
    };
    if let Err(error) = reached(&store, readiness).await {
        return error;
    }
    stays(&store, readiness).await
}

/// Waits until the database has answered for the first time.
async fn reached(store: &Store, readiness: &Readiness) -> Result<(), AppError> {
    loop {
        match store.check_schema().await {
            Ok(()) => {
                tracing::info!("database reached");
                readiness.release(DATABASE);
                return Ok(());
            }
            Err(error @ SchemaError::Missing(_)) => return Err(AppError::Schema(error)),
            Err(SchemaError::Store(error)) => {
                tracing::warn!(%error, "waiting for the database");
                readiness.hold(DATABASE, error.to_string());
            }
        }
        sleep(RETRY).await;
    }
}

/// The state of a database that has answered once.
#[derive(Default)]
struct Watch {
    /// The start of the first ping that failed since the last success.
    failing_since: Option<Instant>,
    is_held: bool,
    /// Privileges that the role lacked at the first ping. A site may use a read-only role for
    /// dry runs.
    never_had: Option<Vec<String>>,
}

async fn stays(store: &Store, readiness: &Readiness) -> ! {
    let mut watch = Watch::default();
    let mut connected = Instant::now();
    loop {
        let began = Instant::now();
        let reconnect = connected.elapsed() >= RECONNECT;
        let ping = store.ping(reconnect).await;
        // After a failed reconnection, the next ping reconnects again: a success on an existing
        // connection says nothing about new ones.
        if reconnect && ping.is_ok() {
            connected = Instant::now();
        }
        let ping = ping.map_err(|error| error.to_string());
        watch.update(ping, began, store.options().pool_acquire_timeout, readiness);
        sleep(INTERVAL).await;
    }
}

impl Watch {
    /// The problem that the missing privileges mean, if any.
    fn problem(&mut self, missing: Vec<String>) -> Option<String> {
        let never_had = self.never_had.get_or_insert_with(|| missing.clone());
        let lost: Vec<_> = missing
            .into_iter()
            .filter(|privilege| !never_had.contains(privilege))
            .collect();
        (!lost.is_empty()).then(|| {
            format!(
                "the role of database_url has lost privileges since the start: {}. Grant them again",
                lost.join(", ")
            )
        })
    }

    /// Ends readiness when the database has failed for `limit`, and restores it when the
    /// database works again.
    fn update(
        &mut self,
        ping: Result<Ping, String>,
        began: Instant,
        limit: Duration,
        readiness: &Readiness,
    ) {
        let problem = match ping {
            Err(error) => Some(error),
            Ok(Ping::Answered { missing }) => self.problem(missing),
            // All connections are in use; the runs that use them report their own errors.
            Ok(Ping::Busy) => {
                self.failing_since = None;
                return;
            }
        };
        let Some(problem) = problem else {
            self.failing_since = None;
            if self.is_held {
                self.is_held = false;
                tracing::info!("the database answers again");
                readiness.release(DATABASE);
            }
            return;
        };
        let since = *self.failing_since.get_or_insert(began);
        if since.elapsed() < limit {
            return;
        }
        if !self.is_held {
            tracing::warn!(error = problem, "the database cannot be used");
        }
        self.is_held = true;
        readiness.degrade(DATABASE, problem);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn answered(missing: &[&str]) -> Result<Ping, String> {
        let missing = missing.iter().map(ToString::to_string).collect();
        Ok(Ping::Answered { missing })
    }

    #[test]
    fn a_failure_counts_once_it_lasts_and_ends_with_the_first_answer() {
        let readiness = Readiness::waiting_for(&[]);
        let mut watch = Watch::default();
        let mut update = |ping, limit| watch.update(ping, Instant::now(), limit, &readiness);
        let gone = || Err("gone".to_owned());
        update(gone(), HOUR);
        assert_eq!(readiness.probe(), Ok(()));
        update(gone(), Duration::ZERO);
        assert_eq!(readiness.probe(), Err("database: gone".to_owned()));
        assert_eq!(readiness.check(), Ok(()), "calls have errors of their own");
        update(Ok(Ping::Busy), Duration::ZERO);
        assert!(readiness.probe().is_err(), "no news");
        update(answered(&[]), Duration::ZERO);
        assert_eq!(readiness.probe(), Ok(()));
        update(Ok(Ping::Busy), Duration::ZERO);
        assert_eq!(readiness.probe(), Ok(()));
    }

    #[test]
    fn only_a_privilege_that_was_there_can_be_lost() {
        let readiness = Readiness::waiting_for(&[]);
        let mut watch = Watch::default();
        let mut update = |ping| watch.update(ping, Instant::now(), Duration::ZERO, &readiness);
        update(answered(&["UPDATE on a.b"]));
        assert_eq!(readiness.probe(), Ok(()));
        update(answered(&["SELECT on a.c", "UPDATE on a.b"]));
        let problem = readiness.probe().unwrap_err();
        assert!(
            problem.contains("SELECT on a.c") && !problem.contains("a.b"),
            "{problem}"
        );
        update(answered(&[]));
        assert_eq!(readiness.probe(), Ok(()));
    }
}
