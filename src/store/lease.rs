//! Lends a connection of the pool for a few statements.
//!
//! A connection with a statement in flight must not go back to the pool: the next user
//! would wait behind that statement. So a lease returns its connection only through
//! [`Lease::release`], which says that every statement was answered. In every other case
//! (an error, a dropped future) the lease closes the connection and asks Postgres to cancel
//! the statement, so that no session stays behind.

use std::{
    ops::Deref,
    pin::pin,
    sync::{MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

use deadpool_postgres::{ClientWrapper, Object, PoolError, Timeouts};
use tokio::{
    runtime::Handle,
    sync::SemaphorePermit,
    time::{sleep, timeout},
};
use tokio_postgres::error::SqlState;

use super::{PoolMode, Store, StoreError};

/// Limit for one cancel request. It runs in the background.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(2);

/// Pause between two attempts to open the only connection. Postgres counts a session
/// until its process has ended.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// A message of this size makes the buffer of a connection large.
const LARGE_BYTES: usize = 1 << 20;

/// Slots that are withheld, because Postgres or a pooler allows fewer connections.
#[derive(Debug, Default)]
pub(super) struct Withheld {
    /// Slots out of use.
    slots: usize,
    /// Slots of these that a lease still holds. They go out of use when it ends.
    leased: usize,
}

/// A connection, and the slot among `database_pool_size` that it occupies.
pub(super) struct Lease<'a> {
    store: &'a Store,
    /// `Some` until the lease ends.
    client: Option<Object>,
    slot: Option<SemaphorePermit<'a>>,
}

impl<'a> Lease<'a> {
    fn without_slot(store: &'a Store, client: Object) -> Self {
        Self {
            store,
            client: Some(client),
            slot: None,
        }
    }

    /// Returns the connection to the pool. Call this only when every statement on it was
    /// answered.
    pub(super) fn release(mut self) {
        drop(self.client.take());
    }

    /// As [`Lease::release`]. The buffers of a connection grow with its largest message and
    /// never shrink, so this closes the connection if that message was large.
    pub(super) fn release_after(mut self, largest_message: usize) {
        let client = self.client.take();
        if largest_message > LARGE_BYTES {
            drop(client.map(Object::take));
        }
    }
}

impl Deref for Lease<'_> {
    type Target = Object;

    fn deref(&self) -> &Object {
        self.client
            .as_ref()
            .expect("a lease has its connection until it ends")
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        if let Some(client) = self.client.take() {
            self.store.abandon(Object::take(client));
        }
        if let Some(slot) = self.slot.take()
            && self.store.is_surplus()
        {
            slot.forget();
        }
    }
}

/// A connection that no longer occupies a slot. Its statements are still in flight.
pub(super) struct Detached<'a> {
    store: &'a Store,
    client: Option<ClientWrapper>,
}

impl<'a> Lease<'a> {
    /// Frees the slot and keeps the connection open, with its statements in flight.
    pub(super) fn detach(mut self) -> Detached<'a> {
        Detached {
            store: self.store,
            client: self.client.take().map(Object::take),
        }
    }
}

impl Drop for Detached<'_> {
    fn drop(&mut self) {
        if let Some(client) = self.client.take() {
            self.store.abandon(client);
        }
    }
}

impl Store {
    /// Takes a connection when one is free. Waits for at most `pool_acquire_timeout`. While
    /// slots are withheld, it waits longer: as long as the connections in use answer rows.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`] when no connection became free or none can be opened.
    pub(super) async fn client(&self) -> Result<Lease<'_>, StoreError> {
        let limit = self.options.pool_acquire_timeout;
        let waits_for_rows = || self.withheld().slots > 0;
        let client = pin!(self.patient_client());
        self.wait_for(limit, client, waits_for_rows)
            .await
            .unwrap_or_else(|| Err(no_free_connection()))
    }

    /// Takes a connection, without a limit for the wait.
    ///
    /// When Postgres refuses another connection, this store continues with those that are
    /// open. One is enough.
    async fn patient_client(&self) -> Result<Lease<'_>, StoreError> {
        let mut attempts = 0;
        loop {
            let Ok(slot) = self.slots.acquire().await else {
                return Err(no_free_connection());
            };
            let error = match self.pool.get().await {
                Ok(client) => {
                    return Ok(Lease {
                        store: self,
                        client: Some(client),
                        slot: Some(slot),
                    });
                }
                Err(error) => error,
            };
            if !is_connection_limit(&error) {
                return Err(error.into());
            }
            if self.pool.status().size > 0 {
                slot.forget();
                self.withheld().slots += 1;
                self.log_connection_limit(
                    "Postgres allows this role fewer connections than \
                     [rewrap].database_pool_size asks for (SQLSTATE 53300). The run continues \
                     with fewer and is slower. Lower database_pool_size, or raise the CONNECTION \
                     LIMIT of the role or max_connections of Postgres",
                );
                continue;
            }
            // These may hold the only connections that Postgres allows.
            for pool in [&self.probe_pool, &self.side_pool, &self.reserve_pool] {
                pool.retain(|_, _| false);
            }
            attempts += 1;
            if attempts >= self.options.max_attempts {
                return Err(error.into());
            }
            drop(slot);
            sleep(RETRY_PAUSE).await;
        }
    }

    /// Takes the connection of the load probe, on which no statement waits for a row. This
    /// fails while Postgres allows fewer connections than the pool may open.
    pub(super) async fn probe_client(&self) -> Result<Lease<'_>, StoreError> {
        self.probe_client_within(self.options.pool_acquire_timeout)
            .await
    }

    /// Takes the connection of the load probe if it is free now, otherwise any other.
    pub(super) async fn any_client(&self) -> Result<Lease<'_>, StoreError> {
        match self.probe_client_within(Duration::ZERO).await {
            Ok(client) => Ok(client),
            Err(_) => self.client().await,
        }
    }

    async fn probe_client_within(&self, wait: Duration) -> Result<Lease<'_>, StoreError> {
        if self.withheld().slots > 0 {
            return Err(StoreError::Unavailable(
                "Postgres allows no further connection".to_owned(),
            ));
        }
        let timeouts = Timeouts {
            wait: Some(wait),
            ..self.probe_pool.timeouts()
        };
        let client = self.probe_pool.timeout_get(&timeouts).await?;
        Ok(Lease::without_slot(self, client))
    }

    /// Takes the connection that is reserved for runs of one organization. If Postgres
    /// allows no further connection, this takes one of the others.
    pub(super) async fn reserve_client(&self) -> Result<Lease<'_>, StoreError> {
        match self.reserve_pool.get().await {
            Ok(client) => Ok(Lease::without_slot(self, client)),
            Err(error) if is_connection_limit(&error) => self.client().await,
            Err(error) => Err(error.into()),
        }
    }

    /// Takes a connection that runs do not write with: for the schema `nico_rewrap` and for
    /// scans. If Postgres allows no further connection, this takes one of the others.
    pub(super) async fn side_client(&self) -> Result<Lease<'_>, StoreError> {
        match self.side_client_strictly().await {
            Err(StoreError::TooManyConnections) => self.client().await,
            client => client,
        }
    }

    /// The same, but fails if Postgres allows no further connection.
    pub(super) async fn side_client_strictly(&self) -> Result<Lease<'_>, StoreError> {
        match self.side_pool.get().await {
            Ok(client) => Ok(Lease::without_slot(self, client)),
            Err(error) if is_connection_limit(&error) => Err(StoreError::TooManyConnections),
            Err(error) => Err(error.into()),
        }
    }

    /// Lets the pool open as many connections as are configured again: the limit in
    /// Postgres may have changed.
    pub fn restore_connections(&self) {
        let withheld = std::mem::take(&mut *self.withheld());
        self.slots.add_permits(withheld.slots - withheld.leased);
    }

    /// Notes that a statement waits for a pooler while rows are answered on other
    /// connections: the pooler has fewer server connections. The first time, one slot more
    /// is withheld. Returns `false` if there is no such pooler.
    pub(super) fn note_pooler_queue(&self, was_noted: &mut bool) -> bool {
        if self.options.pool_mode == PoolMode::Session {
            return false;
        }
        if !std::mem::replace(was_noted, true) {
            let mut withheld = self.withheld();
            if withheld.slots + 1 < self.options.database_pool_size {
                withheld.slots += 1;
                withheld.leased += 1;
                drop(withheld);
                self.log_connection_limit(
                    "the connection pooler has fewer server connections for this role than \
                     [rewrap].database_pool_size asks for. The run continues with fewer and is \
                     slower. Lower database_pool_size, or raise the pool size of the pooler",
                );
            }
        }
        true
    }

    /// Whether the slot of a lease that ends goes out of use.
    fn is_surplus(&self) -> bool {
        let leased = &mut self.withheld().leased;
        let is_surplus = *leased > 0;
        *leased = leased.saturating_sub(1);
        is_surplus
    }

    /// Closes the connection and asks Postgres to cancel the statement that runs on it. A
    /// pooler in transaction mode is not asked: it no longer knows the client.
    fn abandon(&self, client: ClientWrapper) {
        let cancel = client.cancel_token();
        let tls = self.tls.clone();
        // This ends the task that owns the socket, which closes the socket.
        drop(client);
        if self.options.pool_mode == PoolMode::Session
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(async move {
                // An error means that the session has ended, which is the goal.
                let _ = timeout(CANCEL_TIMEOUT, cancel.cancel_query(tls)).await;
            });
        }
    }

    fn withheld(&self) -> MutexGuard<'_, Withheld> {
        // A panic cannot leave the counts half changed.
        self.withheld.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log_connection_limit(&self, message: &'static str) {
        if self.limit_was_logged.swap(true, Ordering::Relaxed) {
            return;
        }
        let withheld = self.withheld().slots;
        let pool_size = self.options.database_pool_size;
        let connections = pool_size.saturating_sub(withheld).max(1);
        tracing::warn!(connections, "{message}");
    }
}

fn is_connection_limit(error: &PoolError) -> bool {
    matches!(error, PoolError::Backend(error)
        if error.code() == Some(&SqlState::TOO_MANY_CONNECTIONS))
}

fn no_free_connection() -> StoreError {
    StoreError::Unavailable("no connection became free within pool_acquire_timeout".to_owned())
}
