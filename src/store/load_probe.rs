//! How busy the database is, as whoever else uses it feels it.

use std::time::{Duration, Instant};

use deadpool_postgres::Object;
use tokio_postgres::types::PgLsn;

use super::{Store, StoreError, barrier::flush, statement::Statement};

/// One look at the database.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoadSample {
    /// What a durable commit of next to nothing took: a tenant's own, but for the
    /// statements in it.
    pub commit: Duration,
    /// Somebody else used this database in the last two seconds, or may have: another
    /// role's sessions are counted if we are not allowed to see what they do.
    pub other_activity: bool,
    /// By how much the slowest replica is behind, as it says or by what it has not said;
    /// none where there is none, or where our role may not know (it needs
    /// `pg_read_all_stats`).
    pub replica_lag: Option<Duration>,
}

/// Looks at the database, time and again.
#[derive(Debug)]
pub struct LoadProbe<'a> {
    store: &'a Store,
    watermark: ReplayWatermark,
}

// Who has our name is another nico-rewrap, which is no tenant and backs off by itself. Of
// another role's session, neither its kind nor its state are shown to us; what has no user
// is autovacuum.
// Who replays nothing is no replica, but an archive of the log, for example; Postgres says
// that it is ever further behind.
const SAMPLE: Statement = Statement {
    text: "-- look\n\
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

// The barrier, without what is no part of a commit.
const FLUSH: Statement = Statement {
    text: concat!("-- flush\nSELECT ", flush!()),
    types: &[],
};

impl Store {
    /// An observer that has not looked yet.
    #[must_use]
    pub fn load_probe(&self) -> LoadProbe<'_> {
        LoadProbe {
            store: self,
            watermark: ReplayWatermark::default(),
        }
    }
}

impl LoadProbe<'_> {
    /// Looks at how busy the database is.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`] when it does not say.
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

/// A position of the log that every replica has to pass, and since when: what Postgres says
/// of a replica's lag stays as it is when that replica falls silent.
#[derive(Debug, Default)]
struct ReplayWatermark(Option<(PgLsn, Instant)>);

impl ReplayWatermark {
    /// How long the slowest replica, which has replayed the log up to `replayed`, has not
    /// passed the mark. If it has, the next one is set to where the log ends now.
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
    fn a_replica_that_falls_silent_is_ever_further_behind() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let lsn = |position: u64| Some(PgLsn::from(position));
        let mut watermark = ReplayWatermark::default();
        // What it has replayed, where the log ends, and for how long the mark is overdue.
        let looks = [
            (lsn(10), lsn(20), None),
            (lsn(20), lsn(30), None),
            (lsn(29), lsn(40), Some(second)),
            (lsn(29), lsn(50), Some(2 * second)),
            (lsn(30), lsn(60), None),
            (lsn(59), lsn(70), Some(second)),
            // Postgres has given it up.
            (None, lsn(80), None),
            (lsn(59), lsn(90), None),
        ];
        let mut now = start;
        for (step, (replayed, end, overdue)) in looks.into_iter().enumerate() {
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
