//! May this caller re-wrap? A pure function that yields a [`Permit`], and a run
//! can't be started without one. Everything that is not allowed is denied.

use thiserror::Error;

use crate::identity::{Caller, Identity};

/// Who may re-wrap, beside external users.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// `[rewrap].allowed_services`: names of SPIFFE service identities.
    pub allowed_services: Vec<String>,
}

/// Proof that a caller was allowed to re-wrap. Only [`authorize`] makes one.
#[derive(Debug)]
pub struct Permit {
    identity: Identity,
}

impl Permit {
    /// Who was allowed.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }
}

/// Why a caller may not re-wrap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Denial {
    /// The certificate is verified, and no rule gives it an identity.
    #[error(
        "the client certificate gives no usable identity: neither its SPIFFE id nor its issuer \
         is one that [auth.trust] of the site config names"
    )]
    NoIdentity,
    /// The identity is not among those that may re-wrap.
    #[error(
        "this identity may not re-wrap: call with an admin certificate, or list the service in \
         [rewrap].allowed_services"
    )]
    NotAllowed,
}

/// Decides whether `caller` may re-wrap under `policy`.
///
/// # Errors
///
/// [`Denial`] when not.
pub fn authorize(policy: &Policy, caller: &Caller) -> Result<Permit, Denial> {
    let identity = caller.identity.as_ref().ok_or(Denial::NoIdentity)?;
    let allowed = match identity {
        Identity::External { .. } => true,
        Identity::Service { name } => policy.allowed_services.contains(name),
        Identity::Machine { .. } => false,
    };
    if allowed {
        Ok(Permit {
            identity: identity.clone(),
        })
    } else {
        Err(Denial::NotAllowed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(identity: Option<Identity>) -> Result<(), Denial> {
        let policy = Policy {
            allowed_services: vec!["nico-api".to_owned()],
        };
        let caller = Caller {
            identity,
            serial: String::new(),
            issuer: String::new(),
        };
        authorize(&policy, &caller).map(|_| ())
    }

    fn service(name: &str) -> Option<Identity> {
        Some(Identity::Service {
            name: name.to_owned(),
        })
    }

    #[test]
    fn external_users_and_listed_services_only() {
        let external = Identity::External {
            organization: None,
            group: None,
            name: None,
        };
        assert_eq!(decide(Some(external)), Ok(()));
        assert_eq!(decide(service("nico-api")), Ok(()));
        assert_eq!(decide(service("nico-dhcp")), Err(Denial::NotAllowed));
        assert_eq!(decide(service("nico-api/x")), Err(Denial::NotAllowed));
        let machine = Identity::Machine {
            id: "nico-api".to_owned(),
        };
        assert_eq!(decide(Some(machine)), Err(Denial::NotAllowed));
        assert_eq!(decide(None), Err(Denial::NoIdentity));
    }
}
