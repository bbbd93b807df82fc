//! How busy the database is, as whoever else uses it feels it.

use std::time::{Duration, Instant};

use deadpool_postgres::Object;

use super::{
    Store, StoreError,
    statement::{On, Sql},
};

/// One look at the database.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// What a durable commit of next to nothing took: a tenant's own, but for the
    /// statements in it.
    pub commit: Duration,
    /// Somebody else used this database in the last two seconds, or may have: another
    /// role's sessions are counted if we are not allowed to see what they do.
    pub others: bool,
    /// By how much the slowest replica is behind; none where there is none, or where
    /// our role may not know (it needs `pg_monitor`).
    pub replica_lag: Option<Duration>,
}

// Who has our name is another nico-rewrap, which is no tenant and backs off by itself.
const LOOK: Sql = Sql {
    text: "-- look\n\
           SELECT EXISTS (SELECT FROM pg_stat_activity \
               WHERE datname = current_database() AND backend_type = 'client backend' \
                 AND application_name <> current_setting('application_name') \
                 AND coalesce(state_change > clock_timestamp() - interval '2 s', true)), \
             (SELECT extract(epoch FROM max(replay_lag))::float8 FROM pg_stat_replication)",
    types: &[],
};

impl Store {
    /// Looks at how busy the database is.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`] when it does not say.
    pub async fn load(&self) -> Result<Load, StoreError> {
        let client = self.look_pool.get().await?;
        match self.look(&client).await {
            Ok(load) => Ok(load),
            Err(error) => {
                drop(Object::take(client));
                Err(error.into_unavailable())
            }
        }
    }

    async fn look(&self, client: &Object) -> Result<Load, StoreError> {
        let rows = self.query(On::Connection(client), &LOOK, &[]).await?;
        let row = rows.first().ok_or_else(StoreError::no_connection)?;
        let others = row.try_get(0)?;
        let lag: Option<f64> = row.try_get(1)?;
        let asked = Instant::now();
        self.flush(client).await?;
        Ok(Load {
            commit: asked.elapsed(),
            others,
            replica_lag: lag.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
        })
    }
}
