//! Finds out what the sessions of this program wait for in Postgres.

use std::fmt;

use tokio_postgres::types::Type;

use super::{Store, StoreError, statement::Statement};

/// What a run without progress waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wait {
    /// The synchronous standbys that `synchronous_standby_names` asks for.
    SynchronousStandby {
        /// The value of `synchronous_standby_names`.
        standbys: String,
    },
    /// A lock that another transaction holds on a row or a table.
    Lock,
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SynchronousStandby { standbys } => write!(
                f,
                "it waits for a synchronous standby (synchronous_standby_names = {standbys:?}). \
                 Check the standbys in pg_stat_replication"
            ),
            Self::Lock => f.write_str(
                "it waits for a lock that another transaction holds on a row or a table. Find \
                 that transaction with pg_blocking_pids() in pg_stat_activity",
            ),
        }
    }
}

// Postgres shows a role all details of its own sessions.
const WAIT: Statement = Statement {
    text: "-- wait\n\
           SELECT bool_or(wait_event = 'SyncRep') IS TRUE, \
             bool_or(wait_event_type = 'Lock') IS TRUE, \
             current_setting('synchronous_standby_names') \
           FROM pg_stat_activity \
           WHERE datname = current_database() AND usename = current_user \
             AND application_name = current_setting('application_name') \
             AND pid <> pg_backend_pid()",
    types: &[] as &[Type],
};

impl Store {
    /// What the sessions of this program wait for, if they wait for a standby or a lock.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the database does not answer.
    pub async fn wait(&self) -> Result<Option<Wait>, StoreError> {
        let client = self.any_client().await?;
        let rows = self.query(&client, &WAIT, &[]).await?;
        client.release();
        let row = rows.first().ok_or_else(StoreError::no_answer)?;
        if row.try_get(0)? {
            let standbys = row.try_get(2)?;
            return Ok(Some(Wait::SynchronousStandby { standbys }));
        }
        Ok(row.try_get::<_, bool>(1)?.then_some(Wait::Lock))
    }
}
