//! The state of the database, as Postgres reports it.

use std::time::Duration;

use super::{Store, StoreError, statement::Statement};

/// The state of the database.
#[derive(Debug, Clone, PartialEq)]
pub struct DatabaseStatus {
    /// The version of Postgres.
    pub server_version: String,
    /// Whether the server is a standby.
    pub in_recovery: bool,
    /// The lag of the slowest replica. `None` without replicas, or if the role may not see it.
    pub replica_lag: Option<Duration>,
}

const STATUS: Statement = Statement {
    text: "-- status\n\
           SELECT current_setting('server_version'), pg_is_in_recovery(), \
             (SELECT extract(epoch FROM max(replay_lag))::float8 FROM pg_stat_replication)",
    types: &[],
};

impl Store {
    /// Asks the database for its state.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when it does not answer.
    pub async fn status(&self) -> Result<DatabaseStatus, StoreError> {
        let rows = self.read(&STATUS, &[]).await?;
        let row = rows.first().ok_or_else(StoreError::no_answer)?;
        let lag: Option<f64> = row.try_get(2)?;
        Ok(DatabaseStatus {
            server_version: row.try_get(0)?,
            in_recovery: row.try_get(1)?,
            replica_lag: lag.and_then(|lag| Duration::try_from_secs_f64(lag).ok()),
        })
    }
}
