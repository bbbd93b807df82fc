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
pub mod database;
mod error;
mod lease;
mod load_probe;
mod locked;
mod page;
mod parts;
mod ping;
mod preflight;
mod replace;
mod row;
mod schema;
mod settle;
mod setup;
mod silence;
mod statement;
mod sweep;
mod wait;
mod writer;

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use deadpool::managed::ObjectId;
use deadpool_postgres::{Hook, HookError, Manager, ManagerConfig, Object, Pool, RecyclingMethod};
use futures_util::future;
use tokio::{sync::Semaphore, time::timeout};
use tokio_postgres::{Row as PgRow, types::ToSql};
use tokio_postgres_rustls::MakeRustlsConnect;

pub use self::{
    barrier::Incarnation,
    error::{RowError, StoreError},
    load_probe::{LoadProbe, LoadSample},
    page::{Page, Position, Unreadable},
    ping::Ping,
    preflight::Preflight,
    row::{Row, VersionError, next_counter},
    schema::SchemaError,
    settle::Settled,
    setup::{Hidden, SetupError},
    sweep::{Moment, Sweep},
    wait::Wait,
    writer::{CasOutcome, Writer},
};
use self::{
    settle::Backend,
    statement::{ANSWER_MARGIN, Statement},
};
use crate::store::database::{Database, Notices};

/// How the store uses the database. Durations are upper bounds.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Connections that rows are read and written with, at most; one more looks at the
    /// load.
    pub database_pool_size: usize,
    /// Rows of a page.
    pub page_size: u32,
    /// Wait for a row lock.
    pub lock_timeout: Duration,
    /// Run time of one statement.
    pub statement_timeout: Duration,
    /// Wait for a free connection of the pool.
    pub pool_acquire_timeout: Duration,
    /// Tries of a statement that Postgres rolls back for a deadlock (40P01) or a
    /// serialization failure (40001), or whose connection is lost.
    pub max_attempts: u32,
    /// Statements under way at once on one connection.
    pub pipeline_depth: usize,
    /// When rows are made durable.
    pub durability: Durability,
    /// What stands between us and Postgres.
    pub pool_mode: PoolMode,
}

/// When a written row is flushed to disk, and to synchronous replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// All rows of a run together, before anything is reported: see
    /// [`Store::barrier`]. A row on its way is safe either way, since its envelope names
    /// its key and both keys are there.
    PerRun,
    /// Each row by itself.
    PerRow,
}

/// A connection pooler on the way to Postgres, as far as it matters to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolMode {
    /// None, or one that keeps a server connection for a session.
    Session,
    /// One that may use another server connection for every transaction:
    /// statements are not prepared by name and no session is configured.
    Transaction,
}

/// The site's database.
pub struct Store {
    pool: Pool,
    /// One for each connection that the pool may have.
    slots: Semaphore,
    /// Slots that are taken away for now, since Postgres allows fewer connections.
    withheld_slots: AtomicUsize,
    limit_was_logged: AtomicBool,
    /// The process in Postgres by the connection to it.
    backends: Mutex<HashMap<ObjectId, Backend>>,
    tls: MakeRustlsConnect,
    /// Of one connection that never waits for rows.
    probe_pool: Pool,
    /// Of one connection for runs of one organization.
    reserve_pool: Pool,
    /// Of the connections of `pool`.
    notices: Arc<Notices>,
    options: StoreOptions,
    /// Sites from before June 2026 label the row's key in a column of its own.
    has_key_id_column: AtomicBool,
    /// There are policies on the tables, and they let everything pass.
    policies_apply: AtomicBool,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// A store on `database`. Connects when it is first used.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`] when the pool can't be built.
    pub fn new(database: &Database, options: StoreOptions) -> Result<Self, StoreError> {
        let notices = Arc::<Notices>::default();
        Ok(Self {
            pool: pool(
                database,
                &options,
                options.database_pool_size,
                notices.clone(),
            )?,
            slots: Semaphore::new(options.database_pool_size),
            withheld_slots: AtomicUsize::new(0),
            limit_was_logged: AtomicBool::new(false),
            backends: Mutex::default(),
            tls: database.tls(),
            probe_pool: pool(database, &options, 1, Arc::default())?,
            reserve_pool: pool(database, &options, 1, notices.clone())?,
            notices,
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
                client.release();
            }
            Err(error) => return Err(error),
        }
        Ok(preflight::warn(self).await?)
    }

    /// A connection to write rows with.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`] when none is to be had within the pool's wait.
    pub async fn writer(&self) -> Result<Writer<'_>, StoreError> {
        let client = self.client().await?;
        let backend = self.known_backend(&client).await?;
        Ok(Writer::new(self, client, backend))
    }

    /// The connection that is kept for writing single organizations, which must not wait
    /// for the rows of a site-wide run.
    ///
    /// # Errors
    ///
    /// As [`Store::writer`].
    pub async fn reserve_writer(&self) -> Result<Writer<'_>, StoreError> {
        let client = self.reserve_client().await?;
        let backend = self.backend(&client).await?;
        Ok(Writer::new(self, client, backend))
    }

    fn backends(&self) -> MutexGuard<'_, HashMap<ObjectId, Backend>> {
        // A panic leaves nothing half done in there.
        self.backends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads rows; an error is one of the database, not of a row.
    async fn read(
        &self,
        sql: &'static Statement,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<PgRow>, StoreError> {
        let rows = self.read_raw(sql, params).await;
        rows.map_err(StoreError::into_unavailable)
    }

    /// Reads rows, and says exactly what is wrong.
    async fn read_raw(
        &self,
        sql: &'static Statement,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<PgRow>, StoreError> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let client = self.client().await?;
            match self.read_once(&client, sql, params).await {
                Ok(rows) => {
                    client.release();
                    return Ok(rows);
                }
                Err(error) => {
                    // Closed: in whatever state it is.
                    drop(client);
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
                self.clear_statement_caches();
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
        self.retry_backoff().await;
        Ok(())
    }

    /// Has every connection prepare its statements anew.
    fn clear_statement_caches(&self) {
        self.pool.manager().statement_caches.clear();
    }

    async fn read_once(
        &self,
        client: &Object,
        sql: &'static Statement,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<PgRow>, StoreError> {
        // One that had to be prepared first would be overtaken by the COMMIT, which sees
        // to it that no transaction is left open, whatever comes of the rest.
        let statement = self.within(self.ready(client, sql)).await?;
        let begin = self.begin_reading(false);
        let begin = client.batch_execute(&begin);
        let rows = statement.query(client, params);
        let commit = client.batch_execute("COMMIT");
        let (begun, (rows, committed)) = self.pipeline(begin, future::join(rows, commit)).await?;
        begun?;
        let rows = rows?;
        committed?;
        Ok(rows)
    }

    /// A short wait with jitter before a statement is tried again, so that the two
    /// sides of a deadlock do not meet again.
    pub(crate) async fn retry_backoff(&self) {
        tokio::time::sleep(Duration::from_millis(fastrand::u64(5..50))).await;
    }
}

fn pool(
    database: &Database,
    options: &StoreOptions,
    size: usize,
    notices: Arc<Notices>,
) -> Result<Pool, StoreError> {
    let manager = Manager::from_connect(
        database.driver_config(options.statement_timeout, unread_limit(options)),
        database.connector(notices),
        ManagerConfig {
            recycling_method: RecyclingMethod::Fast,
        },
    );
    let mut pool = Pool::builder(manager)
        .max_size(size)
        .wait_timeout(Some(options.pool_acquire_timeout))
        // No limit for a new connection here: the connector has one for each server.
        .runtime(deadpool_postgres::Runtime::Tokio1);
    if options.pool_mode == PoolMode::Session {
        pool = pool.post_create(configure_session(options));
    }
    pool.build()
        .map_err(|error| StoreError::Unavailable(error.to_string()))
}

/// How long Postgres may leave sent data unread. It reads nothing while a statement waits
/// for a lock, and as many statements may be under way on a connection.
fn unread_limit(options: &StoreOptions) -> Duration {
    let statements = u32::try_from(options.pipeline_depth).unwrap_or(u32::MAX);
    options.statement_timeout.saturating_mul(statements.max(1)) + ANSWER_MARGIN
}

/// What a session of our own is told once.
fn configure_session(options: &StoreOptions) -> Hook {
    let commit = match options.durability {
        Durability::PerRun => "SET synchronous_commit = off; ",
        Durability::PerRow => "",
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
