//! Limits the connections of each client, so that one client can't take all of them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::auth::identity::{Caller, Identity};

/// The number of connections of each client, and the limit.
#[derive(Debug)]
pub(super) struct ClientQuota {
    max: usize,
    held: Mutex<HashMap<Caller, usize>>,
}

/// Counts one connection of a client until it is dropped.
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

    /// Counts another connection of this caller. `None` if the caller has reached the limit.
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
        // A panic can't leave the map in an inconsistent state.
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

/// The key of a client in the quota. For a service or a machine, it is the identity, because one
/// service can have many certificates. For a person, it is the certificate, because names are not
/// unique.
fn client(caller: &Caller) -> Caller {
    match &caller.identity {
        Some(Identity::Service { .. } | Identity::Machine { .. } | Identity::Local { .. }) => {
            Caller {
                identity: caller.identity.clone(),
                ..Caller::default()
            }
        }
        Some(Identity::External { .. }) | None => caller.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(identity: Option<Identity>, serial: &str) -> Caller {
        Caller {
            identity,
            rule: "",
            refusal: None,
            serial: serial.to_owned(),
            issuer: "CN=ca".to_owned(),
        }
    }

    #[test]
    fn each_client_has_a_quota_of_its_own() {
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
