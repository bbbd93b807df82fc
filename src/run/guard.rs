//! Lets only one site-wide apply of a site run at a time, over all instances.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep},
};

use super::{Site, history::History, record::RunRecord};
use crate::store::{PoolMode, SiteLock, StoreError};

/// The name of the lease.
const LEASE: &str = "site-wide apply";

/// How long a lease holds, and how often it is renewed.
const LEASE_SECONDS: f64 = 30.0;
const RENEWAL: Duration = Duration::from_secs(5);

/// A holder that could not renew its lease for this long must stop. After the lease expires,
/// another instance may take it.
const RENEWAL_LIMIT: Duration = Duration::from_secs(20);

/// The pause between two attempts to take the lock again.
const LOCK_PAUSE: Duration = Duration::from_millis(200);
/// Number of checks of the holder, and the pause between them.
const CHECKS: u32 = 10;
const CHECK_PAUSE: Duration = Duration::from_millis(200);

/// The run that holds the guard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The id of the run.
    pub run_id: String,
    /// The caller that started the run.
    pub caller: String,
    /// The instance that executes it.
    pub instance: String,
    /// When it started: RFC 3339.
    pub start_time: String,
}

impl Holder {
    /// The holder that executes this run.
    #[must_use]
    pub fn of(record: &RunRecord) -> Self {
        Self {
            run_id: record.id.clone(),
            caller: record.caller.clone(),
            instance: record.instance.clone(),
            start_time: humantime::format_rfc3339_millis(record.start_time).to_string(),
        }
    }
}

/// The right to run a site-wide apply.
pub enum SiteGuard<'a> {
    /// A lock in a separate session.
    Lock {
        /// The site.
        site: &'a Arc<Site>,
        /// The lock. It is taken again if its session is lost.
        lock: Mutex<Box<SiteLock<'a>>>,
    },
    /// A lease, behind a pooler that changes the session with every transaction.
    Lease {
        /// The site.
        site: &'a Arc<Site>,
        /// The id of the run.
        run_id: String,
        /// The holder as JSON.
        document: String,
    },
    /// No guard over all instances, only the limit of this process. The log says why.
    ProcessOnly,
}

/// The result of [`acquire`].
pub enum Acquired<'a> {
    /// The run may begin.
    Guard(SiteGuard<'a>),
    /// Another instance runs a site-wide apply. `None` if its run is unknown.
    Held(Option<Holder>),
}

/// Takes the guard for the run `record`.
///
/// # Errors
///
/// [`StoreError`] when the database does not answer.
pub async fn acquire<'a>(
    site: &'a Arc<Site>,
    history: &History,
    record: &RunRecord,
) -> Result<Acquired<'a>, StoreError> {
    if site.store.options().pool_mode == PoolMode::Session {
        return acquire_lock(site, history).await;
    }
    if !history.is_persistent() {
        tracing::warn!(
            "with pool_mode = \"transaction\" and without the schema nico_rewrap, other instances \
             can do a site-wide apply at the same time: run `nico-rewrap state migrate`"
        );
        return Ok(Acquired::Guard(SiteGuard::ProcessOnly));
    }
    // A holder has only strings, so this cannot fail.
    let document = serde_json::to_string(&Holder::of(record)).unwrap_or_default();
    let store = &site.store;
    let lease = store.take_lease(LEASE, &record.id, &document, LEASE_SECONDS);
    if lease.await.map_err(StoreError::into_unavailable)? {
        let run_id = record.id.clone();
        return Ok(Acquired::Guard(SiteGuard::Lease {
            site,
            run_id,
            document,
        }));
    }
    let lease = store.lease(LEASE).await;
    let lease = lease.map_err(StoreError::into_unavailable)?;
    let holder = lease.and_then(|lease| serde_json::from_str(&lease.document).ok());
    Ok(Acquired::Held(holder))
}

/// Takes the session lock, or finds its holder in the history. A holder takes the lock shortly
/// before its run appears in the history, and releases it shortly after the run has ended there. So
/// this function checks the lock and the history several times.
async fn acquire_lock<'a>(
    site: &'a Arc<Site>,
    history: &History,
) -> Result<Acquired<'a>, StoreError> {
    let mut checks = 0;
    loop {
        match site.store.try_lock_site().await {
            Ok(Some(lock)) => {
                return Ok(Acquired::Guard(SiteGuard::Lock {
                    site,
                    lock: Mutex::new(Box::new(lock)),
                }));
            }
            Ok(None) => {}
            Err(error) if error.is_connection_limit() => {
                tracing::warn!(
                    "Postgres allows no further connection, so other instances can do a site-wide \
                     apply at the same time. Raise the CONNECTION LIMIT of the role"
                );
                return Ok(Acquired::Guard(SiteGuard::ProcessOnly));
            }
            Err(error) => return Err(error),
        }
        checks += 1;
        let holder = holder(history).await;
        if holder.is_some() {
            return Ok(Acquired::Held(holder));
        }
        if checks >= CHECKS {
            return Ok(Acquired::Held(silent_holder(history).await));
        }
        sleep(CHECK_PAUSE).await;
    }
}

/// The newest site-wide apply that the history shows in progress. An older one may belong to a
/// killed instance.
async fn holder(history: &History) -> Option<Holder> {
    let active = history.active().await.ok()?;
    let applies = active.iter().filter(|run| run.is_site_apply());
    applies.max_by_key(|run| run.start_time).map(Holder::of)
}

/// The newest site-wide apply whose instance is silent. An instance that is frozen, or that has
/// just lost the network, holds the lock until Postgres ends its session.
async fn silent_holder(history: &History) -> Option<Holder> {
    let runs = history.all().await.ok()?;
    let applies = runs.iter().filter(|run| run.is_site_apply());
    let silent = applies.filter(|run| run.is_silent());
    silent.max_by_key(|run| run.start_time).map(Holder::of)
}

impl<'a> SiteGuard<'a> {
    /// Takes the lock after its session was lost. `None` if another session holds it, or if the
    /// database does not answer for a while.
    async fn lock_again(site: &'a Arc<Site>) -> Option<Box<SiteLock<'a>>> {
        let since = Instant::now();
        loop {
            match site.store.try_lock_site().await {
                Ok(lock) => return lock.map(Box::new),
                Err(_) if since.elapsed() > RENEWAL_LIMIT => return None,
                Err(_) => sleep(LOCK_PAUSE).await,
            }
        }
    }

    /// Returns when the guard is lost. The run must then stop, because another instance may start
    /// an apply.
    pub async fn lost(&self) -> StoreError {
        match self {
            Self::ProcessOnly => std::future::pending().await,
            Self::Lock { site, lock } => loop {
                let held = lock.lock().await;
                let lost = held.lost().await;
                drop(held);
                // The connection of the lock can break while the other connections of the run work.
                // Try to take the lock again. This fails if another apply has started.
                match Self::lock_again(site).await {
                    Some(again) => *lock.lock().await = again,
                    None => break lost,
                }
            },
            Self::Lease {
                site,
                run_id,
                document,
            } => {
                let mut renewed = Instant::now();
                loop {
                    sleep(RENEWAL).await;
                    let asked = Instant::now();
                    let lease = site
                        .store
                        .take_lease(LEASE, run_id, document, LEASE_SECONDS);
                    match lease.await {
                        Ok(true) => renewed = asked,
                        Ok(false) => break,
                        Err(_) if renewed.elapsed() > RENEWAL_LIMIT => break,
                        Err(_) => {}
                    }
                }
                StoreError::Unavailable("the lease of the site-wide apply was lost".to_owned())
            }
        }
    }

    /// Releases the guard.
    pub async fn release(self) {
        match self {
            Self::ProcessOnly => {}
            Self::Lock { lock, .. } => lock.into_inner().unlock().await,
            Self::Lease { site, run_id, .. } => {
                if let Err(error) = site.store.end_lease(LEASE, &run_id).await {
                    tracing::warn!(%error, "cannot end the lease of the site-wide apply: it expires within 30 s");
                }
            }
        }
    }
}
