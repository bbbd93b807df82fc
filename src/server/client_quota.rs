//! How many connections each client has: one that takes all it can get must leave
//! some to others.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::auth::identity::{Caller, Identity};

/// Connections by client, and how many one may have.
#[derive(Debug)]
pub(super) struct ClientQuota {
    max: usize,
    held: Mutex<HashMap<Caller, usize>>,
}

/// One connection of a client, for as long as it exists.
#[derive(Debug)]
pub(super) struct QuotaGuard {
    quota: Arc<ClientQuota>,
    client: Caller,
}

impl ClientQuota {
    pub(super) fn new(max: u32) -> Arc<Self> {
        Arc::new(Self {
            max: max as usize,
            held: Mutex::default(),
        })
    }

    /// Another connection of this caller, unless it has as many as it may.
    pub(super) fn take(self: &Arc<Self>, caller: &Caller) -> Option<QuotaGuard> {
        let client = client(caller);
        let mut held = self.lock();
        let count = held.get(&client).copied().unwrap_or_default();
        if count >= self.max {
            return None;
        }
        held.insert(client.clone(), count + 1);
        Some(QuotaGuard {
            quota: self.clone(),
            client,
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Caller, usize>> {
        // Nothing in here is left half done by a panic.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for QuotaGuard {
    fn drop(&mut self) {
        let mut held = self.quota.lock();
        if let Some(count) = held.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.client);
            }
        }
    }
}

/// A service or machine is the same with each certificate that it gets, and gets them
/// for the asking. Names of people are not unique: they are told by their certificates.
fn client(caller: &Caller) -> Caller {
    match &caller.identity {
        Some(Identity::Service { .. } | Identity::Machine { .. }) => Caller {
            identity: caller.identity.clone(),
            ..Caller::default()
        },
        Some(Identity::External { .. }) | None => caller.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(identity: Option<Identity>, serial: &str) -> Caller {
        Caller {
            identity,
            serial: serial.to_owned(),
            issuer: "CN=ca".to_owned(),
        }
    }

    #[test]
    fn a_client_has_its_share_and_costs_others_nothing() {
        let service = |name: &str| {
            Some(Identity::Service {
                name: name.to_owned(),
            })
        };
        let person = Some(Identity::External {
            organization: None,
            group: None,
            name: Some("alice".to_owned()),
        });
        let quota = ClientQuota::new(2);
        let first = quota.take(&caller(service("a"), "1"));
        let renewed = quota.take(&caller(service("a"), "2"));
        assert!(first.is_some() && renewed.is_some());
        assert!(quota.take(&caller(service("a"), "3")).is_none());
        let others = [
            caller(service("b"), "1"),
            caller(person.clone(), "1"),
            caller(person.clone(), "1"),
            caller(person.clone(), "2"),
            caller(None, "1"),
            caller(None, "2"),
        ];
        let others = others.map(|other| quota.take(&other));
        assert!(others.iter().all(Option::is_some));
        assert!(quota.take(&caller(person, "1")).is_none());
        drop(first);
        let again = quota.take(&caller(service("a"), "1"));
        assert!(again.is_some());
        drop((again, renewed, others));
        assert!(quota.lock().is_empty());
    }
}
