//! Updates readiness from the state of the database: waits for the database at the start,
//! then pings it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::watch::Sender, time::sleep};

use super::AppError;
use crate::{
    run::history::History,
    store::{Ping, SchemaError, SetupError, Store, StoreError},
    telemetry::readiness::{Readiness, latches::DATABASE},
};

/// How often to try again until the database answers for the first time.
const RETRY: Duration = Duration::from_secs(1);

/// How often to ping the database after that. A ping is one statement on a connection of the
/// pool.
const INTERVAL: Duration = Duration::from_secs(2);

/// How often a ping opens a new connection. Only a new connection shows that the role was
/// dropped, or that its password, its settings or `pg_hba.conf` changed.
const RECONNECT: Duration = Duration::from_secs(10);

/// How often to check whether `nico-rewrap state migrate` has run.
const SCHEMA_INTERVAL: Duration = Duration::from_secs(30);

/// Watches the database. Returns only if the database cannot be used at the start. Sets
/// `setup_problem` to the problem if a retry cannot solve it.
pub(super) async fn database(
    store: Option<Arc<Store>>,
    readiness: &Readiness,
    setup_problem: &Sender<Option<SetupError>>,
    history: &History,
) -> AppError {
    let Some(store) = store else {
        return std::future::pending().await;
    };
    if let Err(error) = reached(&store, readiness, setup_problem, history).await {
        return error;
    }
    let schema = async {
        loop {
            sleep(SCHEMA_INTERVAL).await;
            history.look_for_schema().await;
        }
    };
    tokio::select! {
        never = stays(&store, readiness) => never,
        never = schema => never,
    }
}

/// Waits for the first answer of the database. Until then, calls are refused, because they need the
/// result of the schema check.
async fn reached(
    store: &Store,
    readiness: &Readiness,
    setup_problem: &Sender<Option<SetupError>>,
    history: &History,
) -> Result<(), AppError> {
    loop {
        match store.check_schema().await {
            Ok(()) => {
                history.look_for_schema().await;
                tracing::info!("database reached");
                readiness.release(DATABASE);
                setup_problem.send_replace(None);
                return Ok(());
            }
            Err(error @ SchemaError::Missing(_)) => return Err(AppError::Schema(error)),
            Err(SchemaError::Store(error)) => {
                tracing::warn!(%error, "waiting for the database");
                readiness.hold(DATABASE, error.to_string());
                setup_problem.send_replace(match error {
                    StoreError::Setup(problem) => Some(problem),
                    _ => None,
                });
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
    /// The answer of the first ping. A site may use a read-only role for dry runs, so only
    /// problems that appear later count.
    first: Option<Answer>,
}

/// The answer to a ping.
#[derive(Debug, Default, Clone)]
struct Answer {
    missing: Vec<String>,
    unfit: Option<SetupError>,
    unwritable: Option<SetupError>,
    is_standby: bool,
}

/// A problem with the database, and whether it ends readiness immediately.
struct Problem {
    text: String,
    /// True if Postgres itself reported the problem. An unreachable database ends readiness only
    /// after a time limit.
    is_certain: bool,
}

impl Problem {
    fn of(error: &SchemaError) -> Self {
        let is_certain = matches!(
            error,
            SchemaError::Missing(_) | SchemaError::Store(StoreError::Setup(_))
        );
        Self {
            text: error.to_string(),
            is_certain,
        }
    }

    fn certain(text: String) -> Self {
        Self {
            text,
            is_certain: true,
        }
    }
}

async fn stays(store: &Store, readiness: &Readiness) -> ! {
    let mut watch = Watch::default();
    let mut connected = Instant::now();
    loop {
        let began = Instant::now();
        let reconnect = connected.elapsed() >= RECONNECT;
        let ping = store.ping(reconnect).await;
        let limit = store.options().pool_acquire_timeout;
        let is_good = watch.update(ping, began, limit, readiness);
        // If a new connection shows a problem, the next ping reconnects again: a success on an
        // existing connection says nothing about new ones.
        if reconnect && is_good {
            connected = Instant::now();
        }
        sleep(INTERVAL).await;
    }
}

impl Watch {
    /// The problem that has appeared since the first ping. `None` without such a problem.
    fn problem(&mut self, answer: Answer) -> Option<Problem> {
        let first = self.first.get_or_insert_with(|| answer.clone());
        let lost: Vec<_> = answer
            .missing
            .into_iter()
            .filter(|privilege| !first.missing.contains(privilege))
            .collect();
        if !lost.is_empty() {
            return Some(Problem::certain(format!(
                "the role of database_url has lost privileges since the start: {}. Grant them again",
                lost.join(", ")
            )));
        }
        let unfit = answer.unfit.filter(|_| first.unfit.is_none());
        let unwritable = answer.unwritable.filter(|_| first.unwritable.is_none());
        if let Some(problem) = unfit.or(unwritable) {
            return Some(Problem::certain(problem.to_string()));
        }
        (answer.is_standby && !first.is_standby).then(|| {
            Problem::certain(
                "the database has become a standby, which is read-only: promote it, or let \
                 database_url name the primary"
                    .to_owned(),
            )
        })
    }

    /// Ends readiness when the database has a problem, and restores it when the database works
    /// again. If the database does not answer, readiness ends only after `limit`. Returns whether
    /// this ping found no problem.
    fn update(
        &mut self,
        ping: Result<Ping, SchemaError>,
        began: Instant,
        limit: Duration,
        readiness: &Readiness,
    ) -> bool {
        let problem = match ping {
            Err(error) => Some(Problem::of(&error)),
            // All connections are in use; the runs that use them report their own errors.
            Ok(Ping::Busy) => {
                self.failing_since = None;
                return true;
            }
            Ok(Ping::Answered {
                missing,
                unfit,
                unwritable,
                is_standby,
            }) => self.problem(Answer {
                missing,
                unfit,
                unwritable,
                is_standby,
            }),
        };
        let Some(Problem { text, is_certain }) = problem else {
            self.failing_since = None;
            if self.is_held {
                self.is_held = false;
                tracing::info!("the database answers again");
                readiness.release(DATABASE);
            }
            return true;
        };
        let since = *self.failing_since.get_or_insert(began);
        if is_certain || since.elapsed() >= limit {
            if !self.is_held {
                tracing::warn!(error = text, "the database cannot be used");
            }
            self.is_held = true;
            readiness.degrade(DATABASE, text);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Hidden;

    const HOUR: Duration = Duration::from_secs(3600);

    fn answer(answer: Answer) -> Result<Ping, SchemaError> {
        Ok(Ping::Answered {
            missing: answer.missing,
            unfit: answer.unfit,
            unwritable: answer.unwritable,
            is_standby: answer.is_standby,
        })
    }

    fn lacks(missing: &[&str]) -> Result<Ping, SchemaError> {
        answer(Answer {
            missing: missing.iter().map(ToString::to_string).collect(),
            ..Answer::default()
        })
    }

    #[test]
    fn a_failure_counts_once_it_lasts_and_ends_with_the_first_answer() {
        let readiness = Readiness::waiting_for(&[]);
        let mut watch = Watch::default();
        let mut update = |ping, limit| watch.update(ping, Instant::now(), limit, &readiness);
        let gone = || Err(StoreError::Unavailable("gone".to_owned()).into());
        assert!(!update(gone(), HOUR));
        assert_eq!(readiness.probe(), Ok(()));
        update(gone(), Duration::ZERO);
        let reason = readiness.probe().unwrap_err();
        assert_eq!(reason, "database: the database can't be used: gone");
        assert_eq!(readiness.check(), Ok(()), "calls have errors of their own");
        update(Ok(Ping::Busy), Duration::ZERO);
        assert!(readiness.probe().is_err(), "no news");
        assert!(update(lacks(&[]), Duration::ZERO));
        assert_eq!(readiness.probe(), Ok(()));
        update(Ok(Ping::Busy), Duration::ZERO);
        assert_eq!(readiness.probe(), Ok(()));
    }

    #[test]
    fn only_a_privilege_that_was_there_can_be_lost() {
        let readiness = Readiness::waiting_for(&[]);
        let mut watch = Watch::default();
        let mut update = |ping| watch.update(ping, Instant::now(), HOUR, &readiness);
        update(lacks(&["UPDATE on a.b"]));
        assert_eq!(readiness.probe(), Ok(()));
        update(lacks(&["SELECT on a.c", "UPDATE on a.b"]));
        let problem = readiness.probe().unwrap_err();
        assert!(
            problem.contains("SELECT on a.c") && !problem.contains("a.b"),
            "{problem}"
        );
        update(lacks(&[]));
        assert_eq!(readiness.probe(), Ok(()));
    }

    #[test]
    fn a_setup_problem_counts_at_once_unless_it_was_there_at_the_start() {
        let hidden = || Some(SetupError::from(Hidden::BySomePolicy));
        let unfit = || {
            answer(Answer {
                unfit: hidden(),
                ..Answer::default()
            })
        };
        let read_only = || {
            answer(Answer {
                unwritable: Some(SetupError::ReadOnly),
                ..Answer::default()
            })
        };
        let standby = || {
            answer(Answer {
                is_standby: true,
                ..Answer::default()
            })
        };
        let login = || Err(StoreError::from(SetupError::Login("refused".to_owned())).into());
        let readiness = Readiness::waiting_for(&[]);
        let mut watch = Watch::default();
        let mut update = |ping| watch.update(ping, Instant::now(), HOUR, &readiness);
        update(read_only());
        assert_eq!(readiness.probe(), Ok(()), "there from the start");
        for (ping, words) in [
            (unfit(), "row-level security"),
            (login(), "refused"),
            (standby(), "standby"),
        ] {
            update(ping);
            let problem = readiness.probe().unwrap_err();
            assert!(problem.contains(words), "{problem}");
            assert_eq!(readiness.check(), Ok(()), "calls have errors of their own");
            update(read_only());
            assert_eq!(readiness.probe(), Ok(()));
        }
    }
}
