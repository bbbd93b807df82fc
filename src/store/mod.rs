//! All SQL of this program: it reads pages of rows and writes one row at a time.
//!
//! One statement, which is also one transaction, writes a row. It compares the three texts
//! with those that were read, replaces them, and bumps `tenants.version`. It locks
//! `tenant_identity_config` first and `tenants` second, as nico-api does. No code can await
//! while a row is locked, except in [`Writer::replace_locked`], whose decision is a
//! synchronous closure.
//!
//! Time limits and the kind of commit are settings of the session. Behind a pooler in
//! transaction mode, each write carries them itself.

mod barrier;
mod damage;
pub mod database;
mod error;
mod guard;
mod lease;
mod load_probe;
mod locked;
mod page;
mod parts;
mod ping;
mod preflight;
mod replace;
mod retry;
mod row;
mod scan;
mod schema;
mod settle;
mod setup;
mod silence;
pub mod state;
mod statement;
mod status;
mod sweep;
mod verified;
mod wait;
mod writer;

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use deadpool::managed::ObjectId;
use deadpool_postgres::{Hook, HookError, Manager, ManagerConfig, Pool, RecyclingMethod};
use tokio::{sync::Semaphore, time::timeout};
use tokio_postgres_rustls::MakeRustlsConnect;

pub use self::{
    barrier::Incarnation,
    error::{RowError, StoreError},
    guard::SiteLock,
    load_probe::{LoadProbe, LoadSample},
    page::{Page, Position, Unreadable},
    ping::Ping,
    preflight::Preflight,
    replace::CasOutcome,
    row::Row,
    scan::{CensusScan, Read, ScanMode, Snapshot, VerifyScan},
    schema::SchemaError,
    settle::Settled,
    setup::{Hidden, SetupError},
    status::DatabaseStatus,
    sweep::{Moment, Sweep},
    wait::Wait,
    writer::Writer,
};
use self::{lease::Withheld, settle::Backend, silence::RowAnswers, statement::ANSWER_MARGIN};
use crate::store::database::{Database, Notices};

/// How the store uses the database. Durations are upper bounds.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Maximum number of connections that read and write rows. One more connection measures
    /// the load.
    pub database_pool_size: usize,
    /// Number of rows in a page.
    pub page_size: u32,
    /// How long a statement waits for a row lock.
    pub lock_timeout: Duration,
    /// How long one statement may run.
    pub statement_timeout: Duration,
    /// How long a caller waits for a free connection of the pool.
    pub pool_acquire_timeout: Duration,
    /// How often a statement is tried if Postgres rolls it back for a deadlock (40P01) or a
    /// serialization failure (40001), or if its connection is lost.
    pub max_attempts: u32,
    /// Maximum number of statements in flight on one connection.
    pub pipeline_depth: usize,
    /// When written rows become durable.
    pub durability: Durability,
    /// The connection pooler in front of Postgres, if there is one.
    pub pool_mode: PoolMode,
}

/// When Postgres flushes a written row to disk and to synchronous replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Once for all rows of a run, before the report: see [`Store::barrier`]. A row that is
    /// not flushed yet is safe too: its envelope names its key, and the secrets still hold
    /// both keys.
    PerRun,
    /// At the commit of each row.
    PerRow,
}

/// How a connection pooler in front of Postgres assigns server connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolMode {
    /// No pooler, or a pooler that keeps one server connection for a session.
    Session,
    /// The pooler may use another server connection for every transaction. Statements are
    /// not prepared by name, and no session is configured.
    Transaction,
}

/// Maximum number of scans at the same time. Each holds a connection until its end.
const SCANS: usize = 3;

/// Maximum number of connections that runs do not write with: two for the schema
/// `nico_rewrap`, some for scans, one for the lock of site-wide applies.
const SIDE_CONNECTIONS: usize = 2 + SCANS + 1;

/// The site's database.
pub struct Store {
    pool: Pool,
    /// One permit for each connection that the pool may open.
    slots: Semaphore,
    withheld: Mutex<Withheld>,
    limit_was_logged: AtomicBool,
    /// The Postgres process behind each connection.
    backends: Mutex<HashMap<ObjectId, Backend>>,
    tls: MakeRustlsConnect,
    /// Has one connection, which never waits for rows.
    probe_pool: Pool,
    /// Has one connection, for runs of one organization.
    reserve_pool: Pool,
    /// For the schema `nico_rewrap`, for scans, and for the lock of site-wide applies.
    side_pool: Pool,
    /// One permit for each scan.
    scan_permits: Semaphore,
    row_answers: RowAnswers,
    /// Counts the notices on the connections of `pool` and `reserve_pool`.
    notices: Arc<Notices>,
    options: StoreOptions,
    /// Sites from before June 2026 store the key id of a row in a column too.
    has_key_id_column: AtomicBool,
    /// The tables have row-level security policies, and these allow every row.
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
    /// Makes a store on `database`. It connects when it is first used.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`] when the pool can't be built.
    pub fn new(database: &Database, options: StoreOptions) -> Result<Self, StoreError> {
        let notices = Arc::<Notices>::default();
        // A crash must not undo what a verdict depends on.
        let side_options = StoreOptions {
            durability: Durability::PerRow,
            ..options.clone()
        };
        Ok(Self {
            pool: pool(
                database,
                &options,
                options.database_pool_size,
                notices.clone(),
            )?,
            slots: Semaphore::new(options.database_pool_size),
            withheld: Mutex::default(),
            limit_was_logged: AtomicBool::new(false),
            backends: Mutex::default(),
            tls: database.tls(),
            probe_pool: pool(database, &options, 1, Arc::default())?,
            reserve_pool: pool(database, &options, 1, notices.clone())?,
            side_pool: pool(database, &side_options, SIDE_CONNECTIONS, Arc::default())?,
            scan_permits: Semaphore::new(SCANS),
            row_answers: RowAnswers::new(),
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

    /// Checks that the tables and columns that this program uses exist, and warns about
    /// everything else that would make a run fail.
    ///
    /// # Errors
    ///
    /// [`SchemaError::Missing`] names the missing tables and columns.
    /// [`SchemaError::Store`] means that the database could not be asked.
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

    /// Takes a connection to write rows with.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`] when no connection becomes free within the pool's wait.
    pub async fn writer(&self) -> Result<Writer<'_>, StoreError> {
        let client = self.client().await?;
        let backend = self.known_backend(&client).await?;
        Ok(Writer::new(self, client, backend))
    }

    /// Takes the connection that is reserved for runs of one organization, so that they do
    /// not wait for a site-wide run.
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
        // A panic cannot leave the map half changed.
        self.backends.lock().unwrap_or_else(PoisonError::into_inner)
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
/// for a lock, and up to `pipeline_depth` statements may be in flight.
fn unread_limit(options: &StoreOptions) -> Duration {
    let statements = u32::try_from(options.pipeline_depth).unwrap_or(u32::MAX);
    options.statement_timeout.saturating_mul(statements.max(1)) + ANSWER_MARGIN
}

/// Sets the options of a session. Runs once for each connection.
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
                Err(_) => Err(HookError::message(
                    "the server did not answer when the session was configured",
                )),
            }
        })
    })
}
