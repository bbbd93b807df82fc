//! The lock that lets only one site-wide apply of a site run at a time, over all instances.
//!
//! The lock belongs to a separate session. If the holder dies, Postgres ends the session and
//! the lock. If only the session ends, the holder must stop.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::{Store, StoreError, lease::Lease, statement::Statement};

/// How often to check that the session lives.
const CHECK: Duration = Duration::from_millis(500);

/// How many checks pass between two statements on the session.
const CHECKS_PER_PING: u32 = 8;

/// How long an ended apply waits for the answer to the statement that releases the lock.
const UNLOCK_LIMIT: Duration = Duration::from_millis(500);

// A session lock of this database. The two numbers are the names of this program and of the
// lock: "nico", "site".
const TRY_LOCK: Statement = Statement {
    text: "-- try_lock_site\nSELECT pg_try_advisory_lock(1852400495, 1936290917)",
    types: &[],
};

const UNLOCK: Statement = Statement {
    text: "-- unlock_site\nSELECT pg_advisory_unlock(1852400495, 1936290917)",
    types: &[],
};

const PING: Statement = Statement {
    text: "-- ping_site_lock\nSELECT 1",
    types: &[],
};

// This lock ends with its transaction, so it works behind every pooler.
const TRY_LOCK_CENSUS: Statement = Statement {
    text: "-- try_lock_census\nSELECT pg_try_advisory_xact_lock(1852400495, 1667591795)",
    types: &[],
};

/// The lock of a site-wide apply. Dropping it closes its session, which ends the lock.
pub struct SiteLock<'a> {
    store: &'a Store,
    lease: Lease<'a>,
}

impl Store {
    /// Tries to take the lock of site-wide applies. `None` if another session holds it.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the database does not answer.
    pub async fn try_lock_site(&self) -> Result<Option<SiteLock<'_>>, StoreError> {
        let lease = self.side_client_strictly().await?;
        let rows = self.query(&lease, &TRY_LOCK, &[]).await;
        let rows = rows.map_err(StoreError::into_unavailable)?;
        let row = rows.first().ok_or_else(StoreError::no_answer)?;
        if row.try_get(0)? {
            return Ok(Some(SiteLock { store: self, lease }));
        }
        lease.release();
        Ok(None)
    }

    /// Whether no instance takes an automatic census now.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the database does not answer.
    pub async fn census_is_free(&self) -> Result<bool, StoreError> {
        // The lock ends with this statement.
        let lease = self.side_client().await?;
        let free = self.try_lock_census(&lease).await?;
        lease.release();
        Ok(free)
    }

    /// Tries to take the lock of automatic censuses, until the end of the transaction on this
    /// connection.
    pub(super) async fn try_lock_census(&self, lease: &Lease<'_>) -> Result<bool, StoreError> {
        let rows = self.query(lease, &TRY_LOCK_CENSUS, &[]).await?;
        Ok(rows.first().ok_or_else(StoreError::no_answer)?.try_get(0)?)
    }
}

impl SiteLock<'_> {
    /// Returns when the session of the lock is lost: it ended, or the database does not
    /// answer on it.
    pub async fn lost(&self) -> StoreError {
        let lost = || StoreError::ConnectionLost("the session of the site's lock ended".to_owned());
        let mut checks = 0;
        loop {
            sleep(CHECK).await;
            if self.lease.is_closed() {
                return lost();
            }
            checks += 1;
            if checks % CHECKS_PER_PING == 0
                && self.store.query(&self.lease, &PING, &[]).await.is_err()
            {
                return lost();
            }
        }
    }

    /// Releases the lock.
    pub async fn unlock(self) {
        // After an error, or without an answer, the session is closed, and the lock ends with it.
        let unlock = self.store.query(&self.lease, &UNLOCK, &[]);
        if matches!(timeout(UNLOCK_LIMIT, unlock).await, Ok(Ok(_))) {
            self.lease.release();
        }
    }
}
