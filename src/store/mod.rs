//! The database: pages of rows, the guarded write of one row, and all SQL.
//!
//! A row is written by a single statement, which is a transaction of its own: a
//! compare-and-set on the three texts that were read, and in the same statement
//! the bump of `tenants.version`. It locks `tenant_identity_config` first and
//! `tenants` second, as nico-api does. Nothing can be awaited while a row is
//! locked, but for [`Writer::replace_locked`], whose decision is a synchronous
//! closure.
//!
//! Limits and the kind of commit are settings of the session, or, behind a pooler in
//! transaction mode, travel with each write.

mod barrier;
mod error;
mod lease;
mod load;
mod locked;
mod page;
mod parts;
mod preflight;
mod replace;
mod row;
mod schema;
mod setup;
mod statement;
mod sweep;
mod writer;

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use deadpool_postgres::{Hook, HookError, Manager, ManagerConfig, Object, Pool, RecyclingMethod};
use futures_util::future;
use tokio::time::timeout;
use tokio_postgres::{Row as PgRow, types::ToSql};

pub use self::{
    barrier::Incarnation,
    error::{RowError, StoreError},
    load::{Load, Observer},
    page::{Page, Position, Unreadable},
    preflight::Preflight,
    row::{Row, VersionError, next_counter},
    schema::SchemaError,
    setup::{Hidden, SetupError},
    sweep::{Moment, Sweep},
    writer::{Replaced, Writer},
};
use self::{lease::Lease, statement::Sql};
use crate::database::Database;

/// How the store uses the database. Durations are upper bounds.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Connections that rows are read and written with, at most; one more looks at the
    /// load.
    pub max_connections: usize,
    /// Rows of a page.
    pub page_size: u32,
    /// Wait for a row lock.
    pub lock_timeout: Duration,
    /// Run time of one statement.
    pub statement_timeout: Duration,
    /// Wait for a free connection of the pool.
    pub pool_wait: Duration,
    /// Tries of a statement that Postgres rolls back for a deadlock (40P01) or a
    /// serialization failure (40001), or whose connection is lost.
    pub max_attempts: u32,
    /// Statements under way at once on one connection.
    pub pipeline_depth: usize,
    /// When rows are made durable.
    pub commit: Commit,
    /// What stands between us and Postgres.
    pub pooler: Pooler,
}

/// When a written row is flushed to disk, and to synchronous replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Commit {
    /// All rows of a run together, before anything is reported: see
    /// [`Store::barrier`]. A row on its way is safe either way, since its envelope names
    /// its key and both keys are there.
    Barrier,
    /// Each row by itself.
    Each,
}

/// A connection pooler on the way to Postgres, as far as it matters to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooler {
    /// None, or one that keeps a server connection for a session.
    Session,
    /// One that may use another server connection for every transaction:
    /// statements are not prepared by name and no session is configured.
    Transaction,
}

/// The site's database.
#[derive(Debug)]
pub struct Store {
    pool: Pool,
    /// Of one connection that never waits for rows.
    look_pool: Pool,
    options: StoreOptions,
    /// Sites from before June 2026 label the row's key in a column of its own.
    has_key_id_column: AtomicBool,
    /// There are policies on the tables, and they let everything pass.
    policies_apply: AtomicBool,
}

impl Store {
    /// A store on `database`. Connects when it is first used.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`] when the pool can't be built.
    pub fn new(database: &Database, options: StoreOptions) -> Result<Self, StoreError> {
        Ok(Self {
            pool: pool(database, &options, options.max_connections)?,
            look_pool: pool(database, &options, 1)?,
            options,
            has_key_id_column: AtomicBool::new(false),
            policies_apply: AtomicBool::new(false),
        })
    }

    /// The options this was made with.
    #[must_use]
    pub fn options(&self) -> &StoreOptions {
        &self.options
    }

    /// Finds out whether the tables and columns are there that this program reads
    /// and writes, and warns of what else would keep a run from its work.
    ///
    /// # Errors
    ///
    /// [`SchemaError::Missing`] names what is not there; [`SchemaError::Store`]
    /// means that the database could not be asked.
    pub async fn check_schema(&self) -> Result<(), SchemaError> {
        let client = self.client().await?;
        match schema::check(self, &client).await {
            Ok(found) => {
                self.has_key_id_column
                    .store(found.has_key_id_column, Ordering::Relaxed);
            }
            Err(error) => {
                // In whatever state it is: the next look takes another one.
                drop(Object::take(client));
                return Err(error);
            }
        }
        drop(client);
        Ok(preflight::warn(self).await?)
    }

    /// A connection to write rows with.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`] when none is to be had within the pool's wait.
    pub async fn writer(&self) -> Result<Writer<'_>, StoreError> {
        Ok(Writer::new(self, self.client().await?))
    }

    async fn client(&self) -> Result<Object, StoreError> {
        self.pool.get().await.map_err(StoreError::from)
    }

    /// Reads rows; an error is one of the database, not of a row.
    async fn read(
        &self,
        sql: &'static Sql,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<PgRow>, StoreError> {
        let rows = self.read_raw(sql, params).await;
        rows.map_err(StoreError::into_unavailable)
    }

    /// Reads rows, and says exactly what is wrong.
    async fn read_raw(
        &self,
        sql: &'static Sql,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<PgRow>, StoreError> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let lease = Lease::new(self.client().await?);
            match self.read_once(lease.client()?, sql, params).await {
                Ok(rows) => {
                    lease.keep();
                    return Ok(rows);
                }
                Err(error) => {
                    if !matches!(
                        error,
                        StoreError::NoAnswer(_) | StoreError::ConnectionLost(_)
                    ) {
                        lease.keep();
                    }
                    self.retry(error, attempt).await?;
                }
            }
        }
    }

    /// Waits for another attempt to read, or returns the error if there is to be none.
    async fn retry(&self, error: StoreError, attempt: u32) -> Result<(), StoreError> {
        match error {
            // Once is always allowed: it is no conflict with anybody.
            StoreError::StalePlan(_) if attempt == 1 => {
                self.forget_plans();
                return Ok(());
            }
            // A connection of the pool can have died unnoticed; the others with it.
            StoreError::ConnectionLost(_) => {
                self.pool.retain(|client, _| !client.is_closed());
            }
            StoreError::Conflict(_) | StoreError::Row(RowError::TableLocked) => {}
            // A server that hangs does so on every connection.
            error => return Err(error),
        }
        if attempt >= self.options.max_attempts {
            return Err(error);
        }
        self.pause().await;
        Ok(())
    }

    /// Has every connection prepare its statements anew.
    fn forget_plans(&self) {
        self.pool.manager().statement_caches.clear();
    }

    async fn read_once(
        &self,
        client: &Object,
        sql: &'static Sql,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<PgRow>, StoreError> {
        // One that had to be prepared first would be overtaken by the COMMIT, which sees
        // to it that no transaction is left open, whatever comes of the rest.
        let statement = self.within(self.ready(client, sql)).await?;
        let begin = self.begin_reading(false);
        let begin = client.batch_execute(&begin);
        let rows = statement.query(client, params);
        let commit = client.batch_execute("COMMIT");
        let (begun, (rows, committed)) = self.together(begin, future::join(rows, commit)).await?;
        begun?;
        let rows = rows?;
        committed?;
        Ok(rows)
    }

    /// A short wait with jitter before a statement is tried again, so that the two
    /// sides of a deadlock do not meet again.
    pub(crate) async fn pause(&self) {
        tokio::time::sleep(Duration::from_millis(fastrand::u64(5..50))).await;
    }
}

fn pool(database: &Database, options: &StoreOptions, size: usize) -> Result<Pool, StoreError> {
    let manager = Manager::from_config(
        database.driver_config(options.statement_timeout),
        database.tls(),
        ManagerConfig {
            recycling_method: RecyclingMethod::Fast,
        },
    );
    let mut pool = Pool::builder(manager)
        .max_size(size)
        .wait_timeout(Some(options.pool_wait))
        // The driver's own limit is for the TCP connection only.
        .create_timeout(Some(database.connect_timeout()))
        .runtime(deadpool_postgres::Runtime::Tokio1);
    if options.pooler == Pooler::Session {
        pool = pool.post_create(configure_session(options));
    }
    pool.build()
        .map_err(|error| StoreError::Unavailable(error.to_string()))
}

/// What a session of our own is told once.
fn configure_session(options: &StoreOptions) -> Hook {
    let commit = match options.commit {
        Commit::Barrier => "SET synchronous_commit = off; ",
        Commit::Each => "",
    };
    let settings = format!(
        "{commit}SET statement_timeout = {statement}; SET lock_timeout = {lock}; \
         SET idle_in_transaction_session_timeout = {statement}; \
         SET default_transaction_isolation = 'read committed'; SET row_security = on",
        statement = options.statement_timeout.as_millis(),
        lock = options.lock_timeout.as_millis(),
    );
    let limit = options.statement_timeout;
    Hook::async_fn(move |client, _| {
        let settings = settings.clone();
        Box::pin(async move {
            let configured = timeout(limit, client.batch_execute(&settings)).await;
            match configured {
                Ok(result) => result.map_err(HookError::Backend),
                Err(_) => Err(HookError::message("no answer to its settings")),
            }
        })
    })
}
