//! Measures the load of the database, as its other users experience it.

use std::time::{Duration, Instant};

use deadpool_postgres::Object;
use tokio_postgres::types::PgLsn;

use super::{Store, StoreError, barrier::flush, statement::Statement};

/// One measurement of the load.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoadSample {
    /// Latency of a small durable commit. A commit of a tenant takes as long.
    pub commit: Duration,
    /// Another program used this database in the last two seconds. Sessions of another role
    /// are counted if this role may not see their state.
    pub other_activity: bool,
    /// The lag of the slowest replica: as Postgres reports it, or how long the replica has
    /// been silent. `None` without replicas, or if the role may not see the lag (it needs
    /// `pg_read_all_stats`).
    pub replica_lag: Option<Duration>,
}

/// Measures the load of the database repeatedly.
#[derive(Debug)]
pub struct LoadProbe<'a> {
    store: &'a Store,
    watermark: ReplayWatermark,
}

// A session with this program's name is another nico-rewrap. It is not a tenant, and it has
// its own rate control. Postgres hides the kind and the state of sessions of other roles. A
// session without a user is an autovacuum worker.
//
// A receiver that replays nothing is not a replica but, for example, an archive of the log.
// Postgres reports an ever-growing lag for it.
const SAMPLE: Statement = Statement {
    text: "-- sample_load\n\
           SELECT EXISTS (SELECT FROM pg_stat_activity \
               WHERE datname = current_database() AND usesysid IS NOT NULL \
                 AND coalesce(backend_type, 'client backend') = 'client backend' \
                 AND application_name <> current_setting('application_name') \
                 AND coalesce(state = 'active' \
                     OR state_change > clock_timestamp() - interval '2 s', true)), \
             extract(epoch FROM replicas.lag)::float8, replicas.replayed, \
             CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_flush_lsn() END \
           FROM (SELECT max(replay_lag) AS lag, min(replay_lsn) AS replayed \
                 FROM pg_stat_replication WHERE replay_lsn IS NOT NULL) AS replicas",
    types: &[],
};

// The flush of the barrier alone: the rest of the barrier is not part of a commit.
const FLUSH: Statement = Statement {
    text: concat!("-- flush\nSELECT ", flush!()),
    types: &[],
};

impl Store {
    /// Makes a probe that has not measured yet.
    #[must_use]
    pub fn load_probe(&self) -> LoadProbe<'_> {
        LoadProbe {
            store: self,
            watermark: ReplayWatermark::default(),
        }
    }
}

impl LoadProbe<'_> {
    /// Measures the load of the database.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`] when the database does not answer.
    pub async fn sample(&mut self) -> Result<LoadSample, StoreError> {
        let client = self.store.probe_client().await?;
        let sample = self.query_sample(&client).await;
        let sample = sample.map_err(StoreError::into_unavailable)?;
        client.release();
        Ok(sample)
    }

    async fn query_sample(&mut self, client: &Object) -> Result<LoadSample, StoreError> {
        let rows = self.store.query(client, &SAMPLE, &[]).await?;
        let row = rows.first().ok_or_else(StoreError::no_answer)?;
        let other_activity = row.try_get(0)?;
        let lag: Option<f64> = row.try_get(1)?;
        let asked = Instant::now();
        let overdue = self
            .watermark
            .overdue(row.try_get(2)?, row.try_get(3)?, asked);
        self.store.flush(client, &FLUSH).await?;
        Ok(LoadSample {
            commit: asked.elapsed(),
            other_activity,
            replica_lag: lag
                .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
                .max(overdue),
        })
    }
}

/// A position in the log that every replica must pass, and the time when it was set. It is
/// needed because Postgres repeats the last known lag of a replica that has gone silent.
#[derive(Debug, Default)]
struct ReplayWatermark(Option<(PgLsn, Instant)>);

impl ReplayWatermark {
    /// How long the slowest replica, which has replayed the log up to `replayed`, has not
    /// passed the watermark. If it has passed, the watermark moves to the current end of
    /// the log.
    fn overdue(
        &mut self,
        replayed: Option<PgLsn>,
        end: Option<PgLsn>,
        now: Instant,
    ) -> Option<Duration> {
        match (replayed, self.0) {
            (Some(replayed), Some((watermark, since))) if replayed < watermark => Some(now - since),
            _ => {
                self.0 = replayed.and(end).map(|end| (end, now));
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lag_of_a_silent_replica_grows() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let lsn = |position: u64| Some(PgLsn::from(position));
        let mut watermark = ReplayWatermark::default();
        // The replayed position, the end of the log, and for how long the watermark is
        // overdue.
        let samples = [
            (lsn(10), lsn(20), None),
            (lsn(20), lsn(30), None),
            (lsn(29), lsn(40), Some(second)),
            (lsn(29), lsn(50), Some(2 * second)),
            (lsn(30), lsn(60), None),
            (lsn(59), lsn(70), Some(second)),
            // Postgres has dropped the connection to the replica.
            (None, lsn(80), None),
            (lsn(59), lsn(90), None),
        ];
        let mut now = start;
        for (step, (replayed, end, overdue)) in samples.into_iter().enumerate() {
            assert_eq!(
                watermark.overdue(replayed, end, now),
                overdue,
                "step {step}"
            );
            now += second;
        }
    }

    #[test]
    fn without_replicas_or_on_a_standby_nothing_is_overdue() {
        let mut watermark = ReplayWatermark::default();
        for (replayed, end) in [(None, Some(PgLsn::from(1))), (Some(PgLsn::from(1)), None)] {
            for _ in 0..3 {
                assert_eq!(watermark.overdue(replayed, end, Instant::now()), None);
            }
        }
    }
}
