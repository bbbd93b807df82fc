//! Runs.

use std::time::SystemTime;

use tokio_postgres::{Row as PgRow, types::Type};

use super::super::{Store, StoreError, statement::Statement};

/// A run as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRun {
    /// The id.
    pub id: String,
    /// When it started, by the clock of the database.
    pub started: SystemTime,
    /// `RUNNING`, `FINISHED`, `STOPPED` or `FAILED`.
    pub state: String,
    /// Whether the run is in progress and its instance has written nothing for 30 s.
    pub is_abandoned: bool,
    /// When the instance last wrote the run, by the clock of the database.
    pub heartbeat: SystemTime,
    /// The run as JSON.
    pub document: String,
}

/// The position of a run in the list of runs: the newest run is the greatest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RunPosition {
    /// When the run started.
    pub started: SystemTime,
    /// The id of the run.
    pub id: String,
}

/// The result of [`Store::insert_run`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartedRun {
    /// The run is new.
    New,
    /// A run with this request id exists.
    Known {
        /// The id of the run.
        id: String,
        /// The parameters of the request that started it.
        request: String,
    },
}

/// The starter of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Starter<'a> {
    /// The server, for an automatic census.
    Server,
    /// A caller.
    Caller {
        /// The request id and its parameters, if the caller has chosen an id.
        request: Option<(&'a str, &'a str)>,
    },
}

/// The content of the column `request` for an automatic census.
const AUTOMATIC: &str = "automatic";

const INSERT_RUN: Statement = Statement {
    text: "-- insert_run\n\
           WITH known AS (SELECT id, request FROM nico_rewrap.runs WHERE request_id = $3), \
           added AS (INSERT INTO nico_rewrap.runs (id, state, document, request_id, request) \
             SELECT $1, 'RUNNING', $2, $3, $4 WHERE NOT EXISTS (SELECT FROM known) \
             ON CONFLICT DO NOTHING RETURNING id) \
           SELECT id, request FROM known",
    types: &[Type::TEXT, Type::TEXT, Type::TEXT, Type::TEXT],
};

const RUN_OF_REQUEST: Statement = Statement {
    text: "-- run_of_request\nSELECT id, request FROM nico_rewrap.runs WHERE request_id = $1",
    types: &[Type::TEXT],
};

// Another instance may have ended the record while this instance was silent. Then only the final
// state is written: a run never returns to the state RUNNING.
const UPDATE_RUN: Statement = Statement {
    text: "-- update_run\n\
           UPDATE nico_rewrap.runs SET heartbeat = now(), \
             state = CASE WHEN $2 = 'RUNNING' THEN state ELSE $2 END, \
             document = CASE WHEN $2 = 'RUNNING' AND state <> 'RUNNING' THEN document ELSE $3 END \
           WHERE id = $1 RETURNING stop_requested",
    types: &[Type::TEXT, Type::TEXT, Type::TEXT],
};

// The run of a silent instance may still be in progress there, although its record has ended.
const REQUEST_STOP: Statement = Statement {
    text: "-- request_stop\n\
           UPDATE nico_rewrap.runs SET stop_requested = true \
           WHERE id = $1 AND (state = 'RUNNING' OR heartbeat >= now() - interval '30 s') \
           RETURNING id",
    types: &[Type::TEXT],
};

macro_rules! select_runs {
    ($name:literal, $rest:expr) => {
        concat!(
            "-- ",
            $name,
            "\nSELECT id, started, state, \
               state = 'RUNNING' AND heartbeat < now() - interval '30 s', document, heartbeat \
             FROM nico_rewrap.runs ",
            $rest
        )
    };
}

const READ_RUN: Statement = Statement {
    text: select_runs!("read_run", "WHERE id = $1"),
    types: &[Type::TEXT],
};

const LIST_RUNS: Statement = Statement {
    text: select_runs!(
        "list_runs",
        "WHERE $1::timestamptz IS NULL OR (started, id) < ($1, $2) \
         ORDER BY started DESC, id DESC LIMIT $3"
    ),
    types: &[Type::TIMESTAMPTZ, Type::TEXT, Type::INT8],
};

const ACTIVE_RUNS: Statement = Statement {
    text: select_runs!(
        "active_runs",
        "WHERE state = 'RUNNING' AND heartbeat >= now() - interval '30 s' ORDER BY started, id \
         LIMIT 100"
    ),
    types: &[],
};

const ABANDONED_RUNS: Statement = Statement {
    text: select_runs!(
        "abandoned_runs",
        "WHERE state = 'RUNNING' AND heartbeat < now() - interval '30 s' ORDER BY started, id \
         LIMIT 100"
    ),
    types: &[],
};

// Does nothing if the instance has written the run again in the meantime.
const SETTLE_RUN: Statement = Statement {
    text: "-- settle_run\n\
           UPDATE nico_rewrap.runs SET state = $2, document = $3 \
           WHERE id = $1 AND state = 'RUNNING' AND heartbeat < now() - interval '30 s' \
           RETURNING id",
    types: &[Type::TEXT, Type::TEXT, Type::TEXT],
};

// Counts automatic censuses and runs of callers separately, so that the censuses do not displace
// the runs. An automatic census has `request` without `request_id`. The failures of a deleted run
// are deleted with it. A run whose instance was killed is in the state RUNNING until another
// instance settles it.
const PRUNE_RUNS: Statement = Statement {
    text: "-- prune_runs\n\
           DELETE FROM nico_rewrap.runs \
           WHERE (state <> 'RUNNING' OR heartbeat < now() - interval '10 min') AND id IN (\
             SELECT id FROM (\
               SELECT id, row_number() OVER (\
                 PARTITION BY request IS NOT NULL AND request_id IS NULL \
                 ORDER BY started DESC, id DESC) AS number FROM nico_rewrap.runs) AS numbered \
             WHERE number > 100)",
    types: &[],
};

impl StoredRun {
    /// The position in the list of runs.
    #[must_use]
    pub fn position(&self) -> RunPosition {
        RunPosition {
            started: self.started,
            id: self.id.clone(),
        }
    }

    fn from_pg(row: &PgRow) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.try_get(0)?,
            started: row.try_get(1)?,
            state: row.try_get(2)?,
            is_abandoned: row.try_get(3)?,
            document: row.try_get(4)?,
            heartbeat: row.try_get(5)?,
        })
    }
}

impl Store {
    /// Adds a run, unless a run with the same request id exists.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the state can't be written.
    pub async fn insert_run(
        &self,
        id: &str,
        document: &str,
        starter: Starter<'_>,
    ) -> Result<StartedRun, StoreError> {
        let (request_id, request) = match starter {
            Starter::Server => (None, Some(AUTOMATIC)),
            Starter::Caller { request } => request.unzip(),
        };
        // If two servers insert the same request id at the same time, one of them inserts nothing.
        // It finds the run of the other server at the second attempt.
        for _ in 0..2 {
            let rows = self
                .state_query(&INSERT_RUN, &[&id, &document, &request_id, &request])
                .await?;
            if let Some(row) = rows.first() {
                let known: String = row.try_get(0)?;
                if known == id {
                    // An earlier attempt has added the run, but the answer was lost.
                    break;
                }
                return Ok(StartedRun::Known {
                    id: known,
                    request: row.try_get(1)?,
                });
            }
            if self.stored_run(id).await?.is_some() {
                break;
            }
        }
        Ok(StartedRun::New)
    }

    /// The id of the run that a request has started, and the parameters of the request.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the state can't be read.
    pub async fn run_of_request(
        &self,
        request_id: &str,
    ) -> Result<Option<(String, String)>, StoreError> {
        let rows = self.state_query(&RUN_OF_REQUEST, &[&request_id]).await?;
        let Some(row) = rows.first() else {
            return Ok(None);
        };
        Ok(Some((row.try_get(0)?, row.try_get(1)?)))
    }

    /// Writes the state of a run. Returns whether a client has asked to stop it. `None` if the run
    /// is not stored.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the state can't be written.
    pub async fn update_run(
        &self,
        id: &str,
        state: &str,
        document: &str,
    ) -> Result<Option<bool>, StoreError> {
        let rows = self
            .state_query(&UPDATE_RUN, &[&id, &state, &document])
            .await?;
        Ok(rows.first().map(|row| row.try_get(0)).transpose()?)
    }

    /// Asks the instance that executes a run to stop it. Returns whether the run is in
    /// progress.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the state can't be written.
    pub async fn request_stop(&self, id: &str) -> Result<bool, StoreError> {
        Ok(!self.state_query(&REQUEST_STOP, &[&id]).await?.is_empty())
    }

    /// Reads a run.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the state can't be read.
    pub async fn stored_run(&self, id: &str) -> Result<Option<StoredRun>, StoreError> {
        let rows = self.state_query(&READ_RUN, &[&id]).await?;
        rows.first().map(StoredRun::from_pg).transpose()
    }

    /// Reads at most `limit` runs that started before the position `after`, the newest first.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the state can't be read.
    pub async fn stored_runs(
        &self,
        after: Option<&RunPosition>,
        limit: i64,
    ) -> Result<Vec<StoredRun>, StoreError> {
        let (started, id) = after.map(|after| (after.started, &after.id)).unzip();
        let rows = self
            .state_query(&LIST_RUNS, &[&started, &id, &limit])
            .await?;
        rows.iter().map(StoredRun::from_pg).collect()
    }

    /// Reads the runs in progress, of all instances.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the state can't be read.
    pub async fn active_runs(&self) -> Result<Vec<StoredRun>, StoreError> {
        let rows = self.state_query(&ACTIVE_RUNS, &[]).await?;
        rows.iter().map(StoredRun::from_pg).collect()
    }

    /// Reads the runs in progress whose instance has been silent for too long.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the state can't be read.
    pub async fn abandoned_runs(&self) -> Result<Vec<StoredRun>, StoreError> {
        let rows = self.state_query(&ABANDONED_RUNS, &[]).await?;
        rows.iter().map(StoredRun::from_pg).collect()
    }

    /// Writes the end of a run whose instance has been silent for too long. Returns false and
    /// writes nothing if the instance has come back.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the state can't be written.
    pub async fn settle_run(
        &self,
        id: &str,
        state: &str,
        document: &str,
    ) -> Result<bool, StoreError> {
        let rows = self
            .state_query(&SETTLE_RUN, &[&id, &state, &document])
            .await?;
        Ok(!rows.is_empty())
    }

    /// Deletes all runs except the last 100 runs of callers and the last 100 automatic censuses.
    /// Their failures are deleted with them.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the state can't be written.
    pub async fn prune_runs(&self) -> Result<(), StoreError> {
        self.state_query(&PRUNE_RUNS, &[]).await?;
        Ok(())
    }
}
